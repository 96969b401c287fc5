"""EuroBERT's and Qwen3's own: who sees whom, heads that share keys, a last token that is pooled, what is refused."""

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
from idistill_jax.data import pack
from idistill_jax.hf import export, networks
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution, families, llama, pooling
from idistill_jax.train import inference

SIZES = llama.LlamaConfig(
  model_type="qwen3", vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
  intermediate_size=64, max_position_embeddings=80, layer_norm_eps=1e-6, width=12, theta=500.0, causal=True,
  norms_heads=True)
TEXTS = [np.arange(length, dtype=np.int32) * 7 % 60 for length in (5, 30, 12, 1, 17)]


def moved(params: Any) -> Any:
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params)


def states(sizes: llama.LlamaConfig, rows: pack.Rows) -> np.ndarray:
  """Of the rows' tokens, text by text."""
  graph, params = nnx.split(families.encoder(sizes, nnx.Rngs(0)))
  params = moved(nnx.to_pure_dict(params))
  found = np.asarray(jax.jit(lambda params: nnx.merge(graph, params)(rows, execution.PLAIN))(params))
  return np.concatenate([found[rows.text_ids == text] for text in range(len(rows.starts))])


# -- Who sees whom -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_a_token_sees_what_stands_before_it_and_in_eurobert_all_of_its_text(causal):
  sizes, text, other = dataclasses.replace(SIZES, causal=causal), TEXTS[1], TEXTS[1].copy()
  other[20] = 59
  one, changed = (states(sizes, rows_of.packed([text, TEXTS[2]], None, 48)) for text in (text, other))
  apart = np.abs(changed - one).max(-1)
  assert (apart[20:30] > 1e-6).all() and (apart[30:] == 0).all()
  assert (apart[:20] == 0).all() if causal else (apart[:20] > 1e-6).all()


@pytest.mark.parametrize("causal", [True, False])
def test_text_by_text_attention_sees_as_whole_rows_do(causal):
  sizes, rows = dataclasses.replace(SIZES, causal=causal), rows_of.packed(TEXTS, None, 40)
  by_text = states(sizes, dataclasses.replace(rows, stairs=((1, 32), (4, 24))))
  np.testing.assert_allclose(by_text, states(sizes, rows), atol=1e-5)


# -- The last token ----------------------------------------------------------------------------------------------------


def test_the_last_state_of_each_text_is_found_in_packed_rows():
  rows = rows_of.packed(TEXTS, None, 40)
  drawn = np.random.default_rng(0).normal(size=(*rows.token_ids.shape, 3)).astype(np.float32)
  expected = [drawn[rows.text_ids == text][-1] for text in range(len(TEXTS))]
  np.testing.assert_array_equal(pooling.last(jnp.asarray(drawn), rows), expected)
  assert (np.asarray(pooling.first(jnp.asarray(drawn), rows)) != expected).any()


@pytest.mark.torch
def test_sentence_transformers_pools_it_too_in_and_out(tmp_path):
  """As Qwen3's embedding models do.  Control: a mean is another vector."""
  sentence_transformers = pytest.importorskip("sentence_transformers")
  from sentence_transformers import models

  source = small_models.write("qwen3", tmp_path / "source")
  modules = [models.Transformer(str(source), max_seq_length=30),
             models.Pooling(small_models.WIDTH, pooling_mode="lasttoken"), models.Normalize()]
  started = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
  started.save(str(tmp_path / "started"), create_model_card=False)
  embedded = lambda folder: inference.load_retriever(config.Config(name="x", encoder=config.Encoder(
    weights=str(folder), query_tokens=8, passage_tokens=30, row_tokens=64, tokens_per_step=256)), None)
  ours = embedded(tmp_path / "started")
  assert ours.forward.network.embedding.pooling == "last"
  found = ours.encode_passages(small_models.TEXTS)
  np.testing.assert_allclose(found, started.encode(small_models.TEXTS), atol=1e-5)
  export.export_retriever(ours.forward.params, ours.forward.network, tmp_path / "out", card="card\n",
                          cut=export.Cut(query_tokens=8, passage_tokens=30))
  theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu", local_files_only=True)
  np.testing.assert_allclose(theirs.encode(small_models.TEXTS), found, atol=1e-5)
  assert np.abs(embedded(source).encode_passages(small_models.TEXTS) - found).max() > 0.1


# -- What is read, and what is refused ---------------------------------------------------------------------------------


RAW = {
  "model_type": "qwen3", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
  "intermediate_size": 64, "max_position_embeddings": 80, "rms_norm_eps": 1e-6, "num_key_value_heads": 2,
}  # fmt: skip
EUROBERT = {name: value for name, value in RAW.items() if name != "num_key_value_heads"} | {"model_type": "eurobert"}


def write(folder: pathlib.Path, stated: dict) -> pathlib.Path:
  (folder / "config.json").write_text(json.dumps(stated))
  return folder


@pytest.mark.torch
@pytest.mark.parametrize("stated", [
  RAW, RAW | {"rope_theta": 7.0}, RAW | {"head_dim": 20}, EUROBERT, EUROBERT | {"num_key_value_heads": None},
  EUROBERT | {"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}, "num_key_value_heads": 1},
], ids=range(6))
def test_config_json_is_read_as_transformers_reads_it(stated, tmp_path):
  transformers = pytest.importorskip("transformers")
  ours, known = families.read_config(write(tmp_path, stated)), transformers.AutoConfig.from_pretrained(tmp_path)
  assert (ours.head_dim, ours.num_key_value_heads, ours.theta) == (
    known.head_dim, known.num_key_value_heads, known.rope_parameters["rope_theta"])
  assert ours.causal == ours.norms_heads == (stated["model_type"] == "qwen3")


@pytest.mark.torch
@pytest.mark.parametrize("causal", [True, False])
def test_qwen3_sees_both_sides_where_config_json_says_so(causal, tmp_path):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  folder = small_models.write("qwen3", tmp_path)
  write(folder, json.loads((folder / "config.json").read_text()) | {"is_causal": causal})
  network = networks.retriever(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=30))
  assert network.sizes.causal == causal
  encode = jax.jit(lambda params, rows: nnx.merge(network.graph, params).encoder(rows, network.execution))
  found = encode(network.initial(0), rows_of.one_a_row([TEXTS[1]], None, 30))[0]
  with torch.no_grad():
    expected = transformers.AutoModel.from_pretrained(folder).eval()(torch.tensor(TEXTS[1])[None].long())
  np.testing.assert_allclose(found, expected.last_hidden_state[0].numpy(), atol=2e-5)


@pytest.mark.parametrize("stated, said", [
  (RAW | {"hidden_act": "gelu"}, "hidden_act is 'gelu'; this encoder family needs 'silu'"),
  (RAW | {"attention_bias": True}, "attention_bias is True"),
  (EUROBERT | {"mlp_bias": True}, "mlp_bias is True"),
  (RAW | {"use_sliding_window": True}, "use_sliding_window is True"),
  (EUROBERT | {"is_causal": True}, "is_causal is True"),
  (RAW | {"head_dim": 5}, "heads are 5 wide"),
  (RAW | {"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types has \['sliding_attention'\]"),
  (RAW | {"num_key_value_heads": 3}, "num_attention_heads is 4, no multiple of 3 num_key_value_heads"),
  (RAW | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is {'type': 'yarn'"),
  (EUROBERT | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_parameters .*'yarn'.* theta of 10000"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    families.read_config(write(tmp_path, stated))


# -- On a mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_scores_and_gradients_on_a_mesh_are_those_of_one_device(tmp_path):
  """Two heads of keys, one on each half of `tensor`."""
  network = networks.ranker(config.Encoder(
    weights=str(small_models.write("qwen3", tmp_path)), query_tokens=8, passage_tokens=20), "pair_cosine")
  params, mesh = moved(network.initial(0)), sharding.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))
  assert network.shardings(mesh)["encoder"]["layers"]["key"]["kernel"].spec[2] == "tensor"
  texts = [text[:24] for text in TEXTS * 2][:8]
  rows = rows_of.one_a_row(texts, [np.arange(len(text)) * 2 // max(len(text), 2) for text in texts], 32)
  alone, spread, _ = on_mesh.steps(network, params, rows)
  np.testing.assert_allclose(spread.loss, alone.loss, rtol=1e-5)
  apart = on_mesh.apart(spread.gradients, alone.gradients)
  assert max(jax.tree.leaves(apart)) < 1e-3, apart
