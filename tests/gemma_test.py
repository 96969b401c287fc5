"""EmbeddingGemma's own: a window to both sides, two thetas, a scalar, norms about one, and two forms of config.json."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import pytest
import rows_of
import small_models
from flax import nnx

from idistill_jax import config, sharding
from idistill_jax.data import pack, tokenizer_files
from idistill_jax.hf import export, networks
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution, families, gemma
from idistill_jax.models import table as table_lib

TEXTS = [np.arange(length, dtype=np.int32) * 7 % 60 for length in (5, 30, 12, 1, 17)]
ROWS = rows_of.packed(TEXTS, None, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  pytest.importorskip("transformers")
  return small_models.write("gemma3_text", tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def params(folder) -> dict[str, Any]:
  return networks.retriever(encoder(folder)).initial(0)["encoder"]


@pytest.fixture(scope="module")
def theirs(folder) -> np.ndarray:
  return states_in_torch(folder)


def encoder(folder: pathlib.Path) -> config.Encoder:
  return config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=32)


def states_in_torch(folder: pathlib.Path, **how: Any) -> np.ndarray:
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder, **how).eval()
  with torch.no_grad():
    return np.concatenate([
      model(torch.tensor(text)[None].long()).last_hidden_state[0].float().numpy() for text in TEXTS])


def states(sizes: gemma.GemmaConfig, params: Any, rows: pack.Rows = ROWS,
           how: execution.Execution = execution.PLAIN) -> np.ndarray:
  """Of the rows' tokens, text by text."""
  graph = nnx.split(nnx.eval_shape(lambda: families.encoder(sizes, nnx.Rngs(0))))[0]
  found = np.asarray(jax.jit(lambda params: nnx.merge(graph, params)(rows, how))(params), np.float32)
  return np.concatenate([found[rows.text_ids == text] for text in range(len(rows.starts))])


# -- As transformers has it --------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("changes", [
  {}, {"reach": 3}, {"reach": 5}, {"reach": 100}, {"local": (True, True, False)}, {"local_theta": 21.0},
  {"global_theta": 480.0}, {"scalar": 12}, {"scalar": 21}, {"layer_norm_eps": 1e-2}], ids=str)
def test_states_are_those_of_transformers_and_what_config_json_says_shows_in_them(folder, params, theirs, changes):
  sizes = families.read_config(folder)
  assert (sizes.local, sizes.reach, sizes.scalar, sizes.head_dim) == ((True, False, True), 4, 20, 12)
  assert (sizes.global_theta, sizes.local_theta) == (500.0, 20.0) and ROWS.segment_ids.max() > 1
  apart = float(np.abs(states(dataclasses.replace(sizes, **changes), params) - theirs).max())
  # Entries are of order 1.
  assert apart > 1e-3 if changes else apart < 2e-5, apart


@pytest.mark.torch
def test_norms_multiply_by_one_more_than_they_hold_and_embeddings_are_longer_than_in_the_file(folder, params, theirs):
  """Controls: what came of them if each were taken as the file has it."""
  flat = table_lib.flatten(params)
  as_filed = {path: leaf - 1 for path, leaf in flat.items() if path.endswith("/offset")}
  assert len(as_filed) == 7
  for path, leaf in {**as_filed, "word/embedding": flat["word/embedding"] * small_models.WIDTH ** -0.5}.items():
    found = states(families.read_config(folder), table_lib.unflatten(flat | {path: leaf}))
    assert np.abs(found - theirs).max() > 1e-2, path


@pytest.mark.torch
def test_in_short_products_we_are_as_near_to_exact_states_as_transformers(folder, params, theirs):
  import torch

  short = states_in_torch(folder, dtype=torch.bfloat16)
  how = dataclasses.replace(execution.PLAIN, products=jnp.dtype("bfloat16"), states=jnp.dtype("bfloat16"))
  ours = states(families.read_config(folder), params, how=how)
  off = lambda found: float(np.sqrt(np.square(found - theirs).mean()))
  assert 1e-4 < off(ours) < 1.2 * off(short), (off(ours), off(short))


# -- The window --------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_text_by_text_attention_sees_the_window_as_whole_rows_do(folder, params):
  by_text = dataclasses.replace(ROWS, stairs=((1, 32), (4, 24)))
  sizes = families.read_config(folder)
  np.testing.assert_allclose(states(sizes, params, by_text), states(sizes, params), atol=2e-5)


@pytest.mark.torch
def test_what_lies_beyond_all_windows_changes_nothing(folder, params):
  """With local layers alone a token is read by those at most layers x reach away to either side, and by those that
  far."""
  sizes, other = dataclasses.replace(families.read_config(folder), local=(True, True, True)), TEXTS[1].copy()
  other[14] = 59
  one, changed = (states(sizes, params, rows_of.one_a_row([text], None, 30)) for text in (TEXTS[1], other))
  apart = np.abs(changed - one).max(-1)
  assert (apart[2:27] > 1e-6).all() and (apart[:2] == 0).all() and (apart[27:] == 0).all()


# -- What is read, and what is refused ---------------------------------------------------------------------------------


# As transformers 4 wrote it.
RAW = {
  "model_type": "gemma3_text", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 7, "num_attention_heads": 4,
  "num_key_value_heads": 2, "head_dim": 12, "intermediate_size": 64, "max_position_embeddings": 80,
  "rms_norm_eps": 1e-6, "query_pre_attn_scalar": 20, "sliding_window": 8, "use_bidirectional_attention": True,
  "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None,
  "final_logit_softcapping": None, "rope_theta": 900.0, "rope_local_base_freq": 30.0, "rope_scaling": None,
}  # fmt: skip
DEFAULTS = {name: value for name, value in RAW.items() if not name.startswith(("rope", "sliding"))}
PLAIN_ROPE = {"rope_type": "default"}


def write(folder: pathlib.Path, stated: dict) -> pathlib.Path:
  (folder / "config.json").write_text(json.dumps(stated))
  return folder


@pytest.mark.torch
@pytest.mark.parametrize("stated", [
  RAW, DEFAULTS, RAW | {"sliding_window_pattern": 3}, RAW | {"_sliding_window_pattern": 3},
  RAW | {"layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 4, "sliding_window_pattern": 2},
  RAW | {"sliding_window": 512}, RAW | {"sliding_window": 7}, RAW | {"sliding_window": 1},
  RAW | {"rope_parameters": {"full_attention": PLAIN_ROPE | {"rope_theta": 90.0}, "sliding_attention": PLAIN_ROPE}},
  DEFAULTS | {"rope_parameters": {"sliding_attention": PLAIN_ROPE | {"rope_theta": 90}}},
], ids=range(10))
def test_both_forms_of_config_json_are_read_as_transformers_reads_them_and_writes_them_anew(stated, tmp_path):
  transformers = pytest.importorskip("transformers")
  ours, known = families.read_config(write(tmp_path, stated)), transformers.AutoConfig.from_pretrained(tmp_path)
  assert ours.local == tuple(kind == "sliding_attention" for kind in known.layer_types)
  # Theirs is the first distance that is not seen.
  assert ours.reach == known.sliding_window - 1
  of_kind = {kind: one["rope_theta"] for kind, one in known.rope_parameters.items()}
  assert {"full_attention": ours.global_theta, "sliding_attention": ours.local_theta} == of_kind
  assert (ours.width, ours.num_key_value_heads, ours.scalar) == (
    known.head_dim, known.num_key_value_heads, known.query_pre_attn_scalar)
  known.save_pretrained(tmp_path / "again")
  assert families.read_config(tmp_path / "again") == ours


@pytest.mark.parametrize("stated, said", [
  ({"use_bidirectional_attention": False}, "use_bidirectional_attention is False; this encoder family needs True"),
  ({"use_bidirectional_attention": None}, "use_bidirectional_attention is None"),
  ({"attention_bias": True}, "attention_bias is True; this encoder family needs False"),
  ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
  ({"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; this encoder family needs 'gelu_pytorch_tanh'"),
  ({"rope_scaling": {"rope_type": "linear", "factor": 8.0}}, "rope_scaling is {'rope_type': 'linear'"),
  ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}, "full_attention has rope_param"),
  ({"rope_parameters": PLAIN_ROPE | {"rope_theta": 10.0}}, r"rope_parameters has \['rope_theta', 'rope_type'"),
  ({"rope_local_base_freq": None}, "sliding_attention has rope_parameters {} and a theta of None"),
  ({"layer_types": ["full_attention"] * 4}, "layer_types is .*; 7 of full_attention, sliding_attention"),
  ({"layer_types": ["linear_attention"] * 7}, "layer_types is .*'linear_attention'"),
  ({"sliding_window": None}, "sliding_window is None; a number is supported"),
  ({"num_key_value_heads": 3}, "num_attention_heads is 4, no multiple of 3 num_key_value_heads"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  assert families.read_config(write(tmp_path, RAW)).hidden_size == 32
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    families.read_config(write(tmp_path, RAW | stated))


def test_a_gemma_that_does_not_say_whether_it_is_causal_is_refused(tmp_path):
  """As those are that write texts."""
  causal = {name: value for name, value in RAW.items() if name != "use_bidirectional_attention"}
  with pytest.raises(encoder_lib.UnsupportedModelError, match="use_bidirectional_attention is None; this"):
    families.read_config(write(tmp_path, causal))


# -- A token without embedding -----------------------------------------------------------------------------------------


@pytest.mark.torch
def test_the_name_of_a_token_without_embedding_is_spelled_as_other_words_and_so_it_is_in_the_exported_folder(
    folder, tmp_path, monkeypatch):
  """Google's tokenizer has a place for images, of which config.json knows nothing."""
  import transformers

  text, network = "wait <image_soft_token> sorted", networks.retriever(encoder(folder))
  beyond = network.sizes.vocab_size
  assert beyond in transformers.AutoTokenizer.from_pretrained(folder)(text)["input_ids"], "nothing to be spelled"
  ids = network.tokenizer.table([text], 99)[0].tolist()
  assert max(ids) < beyond
  export.export_retriever(network.initial(0), network, tmp_path, card="card\n",
                          cut=export.Cut(query_tokens=8, passage_tokens=32))
  known = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert known(text)["input_ids"] == ids and known.decode(ids, skip_special_tokens=True) == text
  monkeypatch.setitem(families.FAMILIES, "gemma3_text", dataclasses.replace(gemma.GEMMA, unembedded=()))
  with pytest.raises(tokenizer_files.TokenizerError, match=f"token ids up to {beyond}, and .* vocab_size {beyond}"):
    networks.retriever(encoder(folder))


# -- On a mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_scores_and_gradients_on_a_mesh_are_those_of_one_device(folder):
  """Two heads of keys, one on each half of `tensor`."""
  network = networks.ranker(encoder(folder), "pair_cosine")
  params, mesh = network.initial(0), sharding.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))
  assert network.shardings(mesh)["encoder"]["layers"]["key"]["kernel"].spec[2] == "tensor"
  texts = [text[:24] for text in TEXTS * 2][:8]
  rows = rows_of.one_a_row(texts, [np.arange(len(text)) * 2 // max(len(text), 2) for text in texts], 32)
  alone, spread, _ = on_mesh.steps(network, params, rows)
  np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-5)
  apart = on_mesh.apart(spread.gradients, alone.gradients)
  assert max(jax.tree.leaves(apart)) < 1e-3, apart
