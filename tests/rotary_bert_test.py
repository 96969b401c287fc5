"""NomicBERT's and mGTE's own: config.json in its authors' words, thetas, what is refused."""

import json
import pathlib

import jax
import numpy as np
import pytest
import rows_of
import safetensors.numpy
import small_models

from idistill_jax import config
from idistill_jax.hf import export, networks
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import families, rotary

NOMIC = {
  "model_type": "nomic_bert", "vocab_size": 60, "type_vocab_size": 2, "hidden_size": 32, "num_hidden_layers": 2,
  "num_attention_heads": 4, "intermediate_size": 64, "layer_norm_eps": 1e-12, "max_position_embeddings": 80,
}  # fmt: skip
GTE = NOMIC | {"model_type": "gte", "type_vocab_size": 1}
# As the authors of NomicBERT publish it.
IN_GPT2S_WORDS = {
  "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
  "intermediate_size": "n_inner", "layer_norm_eps": "layer_norm_epsilon",
  "max_position_embeddings": "max_trained_positions",
}  # fmt: skip
PUBLISHED = {
  "activation_function": "swiglu", "prenorm": False, "causal": False, "qkv_proj_bias": False, "mlp_fc1_bias": False,
  "mlp_fc2_bias": False, "use_rms_norm": False, "rotary_emb_base": 700, "rotary_emb_fraction": 1.0,
  "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "n_positions": 8192,
}  # fmt: skip


def write(folder: pathlib.Path, stated: dict) -> pathlib.Path:
  (folder / "config.json").write_text(json.dumps(stated))
  return folder


def former(stated: dict) -> dict:
  return {IN_GPT2S_WORDS.get(name, name): value for name, value in stated.items()} | PUBLISHED


@pytest.mark.parametrize("stated, theta", [
  (NOMIC, 1000.0), (GTE, 160_000.0), (GTE | {"rope_theta": 50.0}, 50.0),
  (NOMIC | {"rope_parameters": {"rope_type": "default", "rope_theta": 20.0}}, 20.0), (former(NOMIC), 700),
], ids=str)
def test_theta_is_the_one_that_transformers_reads(stated, theta, tmp_path):
  transformers = pytest.importorskip("transformers")
  assert families.read_config(write(tmp_path, stated)).theta == theta
  known = transformers.AutoConfig.from_pretrained(write(tmp_path, families.read_raw(tmp_path)))
  assert known.rope_parameters["rope_theta"] == theta


def test_config_json_in_the_authors_words_says_the_same(tmp_path):
  ours = families.read_config(write(tmp_path, NOMIC | {"rope_theta": 700}))
  assert families.read_config(write(tmp_path, former(NOMIC))) == ours
  # A text beyond the positions of training would be read otherwise by the authors' code.
  assert ours.max_tokens == NOMIC["max_position_embeddings"]


@pytest.mark.torch
def test_a_checkpoint_in_the_authors_words_is_exported_in_those_of_transformers(tmp_path):
  """Control: its own config.json gives transformers a model of other sizes."""
  transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
  folder = small_models.write("nomic_bert", tmp_path / "source")
  stated = json.loads((folder / "config.json").read_text())
  del stated["rope_parameters"], stated["head_dim"]
  write(folder, former(stated))
  assert transformers.AutoConfig.from_pretrained(folder).hidden_size == 768
  network = networks.retriever(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=16, row_tokens=32))
  params = network.initial(0)
  export.export_retriever(params, network, tmp_path / "out", cut=export.Cut(query_tokens=8, passage_tokens=16), card="")
  model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
  text = network.tokenizer.table(small_models.TEXTS, 16)[1]
  with torch.no_grad():
    expected = model(input_ids=torch.tensor(text)[None].long()).last_hidden_state[0].mean(0).numpy()
  found = jax.jit(network.apply)(params, rows_of.one_a_row([text], None, 16))[0]
  np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)


def test_todays_names_win_over_former_ones_as_in_transformers(tmp_path):
  ours = families.read_config(write(tmp_path, NOMIC))
  both = {"n_embd": 64, "layer_norm_epsilon": 0.5, "max_trained_positions": 9}
  for stated in (NOMIC | both, both | NOMIC):
    assert families.read_config(write(tmp_path, stated)) == ours


@pytest.mark.torch
def test_tensors_of_mgte_may_have_the_prefix_of_its_authors(tmp_path):
  pytest.importorskip("transformers")
  folder = small_models.write("gte", tmp_path)
  network = networks.retriever(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=16, row_tokens=32))
  as_saved, path = network.initial(0), folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  assert any(name.startswith("gte.") for name in tensors)
  safetensors.numpy.save_file(
    {name.replace("gte.", "new.", 1) if name.startswith("gte.") else name: one for name, one in tensors.items()}, path)
  jax.tree.map(np.testing.assert_array_equal, network.initial(0), as_saved)


@pytest.mark.parametrize("stated, said", [
  (NOMIC | {"hidden_act": "gelu"}, "hidden_act is 'gelu'; this encoder family needs 'silu'"),
  (NOMIC | {"head_dim": 16}, "head_dim is 16; 8, a head's share, is supported"),
  (NOMIC | {"num_experts": 8}, "num_experts is 8"),
  (NOMIC | {"is_causal": True}, "is_causal is True"),
  (GTE | {"is_causal": True}, "is_causal is True"),
  (GTE | {"head_dim": 16}, "head_dim is 16"),
  (GTE | {"hidden_size": 36}, "heads are 9 wide"),
  ({name: one for name, one in former(NOMIC).items() if name != "n_embd"}, r"lacks \['hidden_size'\], or n_embd for"),
  (former(NOMIC) | {"activation_function": "gelu"}, "activation_function is 'gelu'"),
  (former(NOMIC) | {"prenorm": True}, "prenorm is True"),
  (NOMIC | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters .*'dynamic'.* theta of 1000"),
  (GTE | {"rope_scaling": {"type": "ntk", "factor": 8.0}}, "rope_scaling is {'type': 'ntk'"),
  (GTE | {"rope_theta": "far"}, "rope_parameters {} and a theta of 'far'"),
  (GTE | {"logn_attention_scale": True}, "logn_attention_scale is True"),
  (GTE | {"hidden_act": "silu"}, "hidden_act is 'silu'; this encoder family needs 'gelu'"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    families.read_config(write(tmp_path, stated))


def test_each_theta_has_its_frequencies():
  found = rotary.frequencies(np.array([10.0, 1000.0]), 4)
  np.testing.assert_allclose(found, [[1, 10**-0.5], [1, 1000**-0.5]], rtol=1e-6)
  np.testing.assert_array_equal(rotary.frequencies(10.0, 4), found[0])
