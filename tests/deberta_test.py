"""What DeBERTa alone has: distances weighed by what tokens say, in buckets, and what of its checkpoints is refused."""

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
import safetensors.numpy
import small_models
from flax import nnx

from idistill_jax import config, sharding
from idistill_jax.data import tokenize
from idistill_jax.hf import export, networks
from idistill_jax.models import deberta, execution, families, kernels
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib
from idistill_jax.train import fit

TEXTS = [np.arange(length, dtype=np.int32) * 7 % 60 for length in (5, 30, 12, 2, 17)]
ROW = 40


def encoder(folder: pathlib.Path) -> config.Encoder:
  return config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=32, row_tokens=ROW)


def moved(params: Any) -> Any:
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def of_texts(states: Any, rows: Any) -> np.ndarray:
  return np.concatenate([np.asarray(states, np.float32)[rows.text_ids == text] for text in range(len(TEXTS))])


# -- As transformers has it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  pytest.importorskip("transformers")
  return small_models.write("deberta-v2", tmp_path_factory.mktemp("deberta"))


@pytest.fixture(scope="module")
def exact(folder) -> np.ndarray:
  return theirs(folder)


def theirs(folder: pathlib.Path, **how: Any) -> np.ndarray:
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder, **how).eval()
  with torch.no_grad():
    return np.concatenate([
      model(torch.tensor(text)[None].long()).last_hidden_state[0].float().numpy() for text in TEXTS])


@pytest.mark.torch
@pytest.mark.parametrize("changes", [{}, {"farthest": 40}, {"farthest": 200}, {"layer_norm_eps": 1e-2}], ids=str)
def test_states_are_those_of_transformers_and_what_config_json_says_shows_in_them(folder, exact, changes):
  sizes = families.read_config(folder)
  assert (sizes.buckets, sizes.farthest) == (8, 80)
  graph = nnx.split(families.encoder(dataclasses.replace(sizes, **changes), nnx.Rngs(0)))[0]
  rows = rows_of.packed(TEXTS, None, ROW)
  assert rows.segment_ids.max() > 1
  encode = jax.jit(lambda params: nnx.merge(graph, params)(rows, execution.PLAIN))
  found = of_texts(encode(networks.retriever(encoder(folder)).initial(0)["encoder"]), rows)
  apart = float(np.abs(found - exact).max())
  # Entries are of order 1.
  assert apart > 1e-3 if changes else apart < 2e-5, apart


@pytest.mark.torch
def test_in_short_products_we_are_as_near_to_exact_states_as_transformers(folder, exact):
  import torch

  network = networks.retriever(encoder(folder))
  how = dataclasses.replace(execution.PLAIN, products=jnp.dtype("bfloat16"), states=jnp.dtype("bfloat16"))
  rows = rows_of.packed(TEXTS, None, ROW)
  encode = jax.jit(lambda params: nnx.merge(network.graph, params).encoder(rows, how))
  ours = of_texts(encode(network.initial(0)), rows)
  off = lambda found: float(np.sqrt(np.square(found - exact).mean()))
  assert 1e-4 < off(ours) < 1.2 * off(theirs(folder, dtype=torch.bfloat16)), off(ours)


@pytest.mark.torch
@pytest.mark.parametrize("buckets, farthest", [(256, 512), (8, 80), (4, 80), (9, 33), (2, 24), (32, 2048)])
def test_distances_fall_into_the_buckets_of_transformers(buckets, farthest):
  torch = pytest.importorskip("torch")
  from transformers.models.deberta_v2 import modeling_deberta_v2

  distances = np.arange(-2 * farthest, 2 * farthest + 1)
  signed = modeling_deberta_v2.make_log_bucket_position(torch.tensor(distances), buckets, farthest).long()
  expected = torch.clamp(signed + buckets, 0, 2 * buckets - 1).numpy()
  sizes = deberta.DebertaConfig(**SIZES, buckets=buckets, farthest=farthest)
  np.testing.assert_array_equal(deberta.bucket(distances, sizes), expected)
  # Those of one side are no more than there are, and the farthest are told from the nearest.
  assert len(set(expected)) > 2 and expected[0] < expected[2 * farthest] == buckets < expected[-1]


@pytest.mark.torch
def test_a_cross_encoder_that_transformers_saved_gives_its_scores_and_an_encoder_without_its_head(
    folder, tmp_path, monkeypatch):
  """Control: with BERT's tanh behind the dense layer the scores are others."""
  import torch
  import transformers

  with torch.random.fork_rng():
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    with torch.no_grad():
      for part in (model.pooler, model.classifier):
        for parameter in part.parameters():
          parameter.add_(0.3 * torch.randn_like(parameter))
  start, out = tmp_path / "start", tmp_path / "out"
  model.save_pretrained(start)
  for name in ("tokenizer.json", "tokenizer_config.json"):
    (start / name).write_text((folder / name).read_text())
  pairs = [tokenize.pair(np.array([1, 9, 10, 2]), passage, tokenize.Between(np.zeros(0, int), 1))
           for passage in (np.array([1, 30, 31, 32, 2]), np.array([1, 40, 2]))]
  with torch.no_grad():
    expected = np.concatenate([model(torch.tensor(ids)[None].long()).logits[0].numpy() for ids, _ in pairs])
  rows = rows_of.packed(*map(list, zip(*pairs, strict=True)), 32)

  def scores() -> np.ndarray:
    network = networks.ranker(encoder(start), "classifier")
    return jax.jit(network.apply)(network.initial(0), rows)

  np.testing.assert_allclose(scores(), expected, atol=1e-5)
  assert np.ptp(expected) > 1e-3
  retriever = networks.retriever(encoder(start))
  cut = export.Cut(query_tokens=8, passage_tokens=32)
  export.export_retriever(retriever.initial(0), retriever, out, cut=cut, card="card\n")
  _, info = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"]
  assert "pooler.dense.weight" in safetensors.numpy.load_file(start / "model.safetensors")
  # What networks are made of is remembered.
  monkeypatch.setattr(networks, "_split", networks._split.__wrapped__)
  monkeypatch.setitem(families.FAMILIES, "deberta-v2", dataclasses.replace(deberta.DEBERTA, activation=jnp.tanh))
  assert np.abs(scores() - expected).max() > 1e-3


@pytest.mark.torch
def test_what_it_was_pretrained_with_is_no_encoders(folder, tmp_path):
  """Control: a tensor of a convolution is unknown."""
  for path in folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  there = safetensors.numpy.load_file(folder / "model.safetensors")
  assert "lm_predictions.lm_head.dense.weight" in there
  read = lambda: networks.retriever(encoder(tmp_path)).initial(0)
  write = lambda *keys: safetensors.numpy.save_file(
    there | {key: np.zeros(3, np.float32) for key in keys}, tmp_path / "model.safetensors")
  write("mask_predictions.dense.weight", "deberta.embeddings.position_embeddings.weight",
        "deberta.embeddings.word_embeddings._weight", "cls.predictions.bias", "pooler.dense.bias")
  distances = there["deberta.encoder.rel_embeddings.weight"]
  np.testing.assert_array_equal(read()["encoder"]["distance"]["embedding"], distances)
  write("deberta.encoder.conv.conv.bias")
  with pytest.raises(table_lib.WeightsError, match=r"\+ encoder\.conv\.conv\.bias \(3,\)"):
    read()


# -- config.json -------------------------------------------------------------------------------------------------------

# Of microsoft/deberta-v3-base, what its config.json says.
V3 = {
  "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
  "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "max_position_embeddings": 512,
  "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
  "pos_att_type": "p2c|c2p", "layer_norm_eps": 1e-7, "max_relative_positions": -1, "position_biased_input": False,
  "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 0, "vocab_size": 128100,
}  # fmt: skip


def read(folder: pathlib.Path, raw: dict[str, Any]) -> encoder_lib.Sizes:
  (folder / "config.json").write_text(json.dumps(raw))
  return families.read_config(folder)


@pytest.mark.parametrize("stated, farthest", [
  ({}, 512), ({"pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 768, "embedding_size": 768}, 512),
  ({"pos_att_type": "C2P | p2c", "max_relative_positions": 300, "attention_head_size": 64}, 300),
], ids=range(3))
def test_forms_of_config_json(stated, farthest, tmp_path):
  found = read(tmp_path, V3 | stated)
  assert (found.buckets, found.farthest, found.max_tokens, found.head_dim) == (256, farthest, 512, 64)
  assert not found.types_tell_halves


NEEDS = "this encoder family needs"


@pytest.mark.parametrize("stated, said", [
  ({"conv_kernel_size": 3}, f"conv_kernel_size is 3; {NEEDS} 0"),
  ({"share_att_key": False}, f"share_att_key is False; {NEEDS} True"),
  ({"share_att_key": None}, f"share_att_key is None; {NEEDS} True"),
  ({"relative_attention": None}, f"relative_attention is None; {NEEDS} True"),
  ({"norm_rel_ebd": None}, f"norm_rel_ebd is None; {NEEDS} 'layer_norm'"),
  ({"position_biased_input": True}, f"position_biased_input is True; {NEEDS} False"),
  ({"position_biased_input": None}, f"position_biased_input is None; {NEEDS} False"),
  ({"embedding_size": 128}, f"embedding_size is 128; {NEEDS} 768"),
  ({"pooler_hidden_size": 1536}, f"pooler_hidden_size is 1536; {NEEDS} 768"),
  ({"attention_head_size": 32}, f"attention_head_size is 32; {NEEDS} 64"),
  ({"type_vocab_size": 2}, f"type_vocab_size is 2; {NEEDS} 0"),
  ({"hidden_act": "relu"}, f"hidden_act is 'relu'; {NEEDS} 'gelu'"),
  ({"pooler_hidden_act": "tanh"}, f"pooler_hidden_act is 'tanh'; {NEEDS} 'gelu'"),
  ({"pos_att_type": "c2p"}, "pos_att_type is 'c2p'; c2p and p2c are supported"),
  ({"pos_att_type": ["c2p", "p2c", "p2p"]}, "pos_att_type is .*'p2p'"),
  ({"pos_att_type": None}, "pos_att_type is None"),
  ({"position_buckets": None}, "position_buckets is -1, of distances up to 512; 2 or more"),
  ({"max_relative_positions": 129}, "position_buckets is 256, of distances up to 129"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  """None: where config.json says nothing, transformers takes something else."""
  raw = {key: value for key, value in (V3 | stated).items() if value is not None}
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    read(tmp_path, raw)


# -- Attention ---------------------------------------------------------------------------------------------------------

R, L, H, K = 2, 6, 2, 4
SIZES = {
  "vocab_size": 60, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
  "max_position_embeddings": 80, "layer_norm_eps": 1e-7,
}  # fmt: skip


def drawn(*shape: int, seed: int) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_attention_is_the_papers_written_out_for_two_tokens_at_a_time():
  """A token's distance to itself, and to those before and behind it, each has a key and a query of its own."""
  q, k, v = (drawn(R, L, H, K, seed=seed) for seed in range(3))
  far_keys, far_queries = (drawn(2 * L, H, K, seed=seed) for seed in (3, 4))
  segments = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 2, 0, 0, 0]])
  found = jax.jit(deberta.attend)(q, k, v, far_queries, far_keys, segments)
  for r, i, h in np.ndindex(R, L, H):
    seen = [j for j in range(L) if segments[r, j] == segments[r, i]]
    # Keys are in the order of how far behind the token they lie, queries of how far before.
    logits = [q[r, i, h] @ k[r, j, h] + q[r, i, h] @ far_keys[L - 1 + j - i, h] + far_queries[L - 1 + i - j, h]
              @ k[r, j, h] for j in seen]
    weights = np.exp(np.array(logits) / np.sqrt(3 * K))
    np.testing.assert_allclose(found[r, i, h], weights @ v[r, seen, h] / weights.sum(), atol=1e-5)


def test_embeddings_of_distances_are_put_where_attention_reads_them():
  """Of keys, entry L - 1 + j - i is the embedding of i - j; of queries, entry L - 1 + i - j is."""
  sizes = deberta.DebertaConfig(**SIZES, buckets=4, farthest=80)
  model = deberta.Deberta(sizes, rngs=nnx.Rngs(0))
  found = jax.tree.map(np.asarray, model.beside(rows_of.one_a_row([np.arange(3)], None, L)).all)
  normed = np.asarray(model.distance_norm(model.distance.embedding[...]))
  for i, j in np.ndindex(L, L):
    of = normed[deberta.bucket(np.array(i - j), sizes)]
    np.testing.assert_array_equal(found.keys[0, L - 1 + j - i], of)
    np.testing.assert_array_equal(found.queries[0, L - 1 + i - j], of)


def test_attention_is_never_a_kernels_which_is_said_once(caplog):
  caplog.set_level("INFO", logger="absl")
  kernels.say_plain.cache_clear()
  model = deberta.Deberta(deberta.DebertaConfig(**SIZES, buckets=4, farthest=80), rngs=nnx.Rngs(0))
  rows = rows_of.one_a_row([np.arange(9)], None, 128)
  kernel = kernels.splash(sharding.make_mesh(config.Mesh()))
  expected = model(rows, execution.PLAIN)
  assert not caplog.records
  for _ in range(2):
    np.testing.assert_array_equal(model(rows, dataclasses.replace(execution.PLAIN, attend=kernel)), expected)
  assert [one.getMessage() for one in caplog.records] == [
    "no kernel weighs distances by what tokens say: this encoder attends by XLA's own products"]


@pytest.mark.torch
def test_trainings_are_not_planned_as_if_it_read_text_by_text(folder, tiny_weights):
  """Where one device has all rows, BERT does."""
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  cfg = config.Config(name="x").ranker
  plan = lambda weights: fit.shape(
    dataclasses.replace(cfg, passes=1), None, networks.retriever(encoder(weights)).on(mesh, "float32"), mesh)
  assert plan(tiny_weights).text_block is not None and plan(folder).text_block is None
  assert np.isfinite(plan(folder).attention_doubles)


# -- On a mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_scores_and_gradients_on_a_mesh_are_those_of_one_device(folder):
  network = networks.ranker(encoder(folder), "classifier")
  params = moved(network.initial(0))
  rows = rows_of.one_a_row([text[:24] for text in TEXTS * 2][:8], None, 32)
  alone, spread, _ = on_mesh.steps(network, params, rows)
  assert np.ptp(alone.scores) > 1e-3
  np.testing.assert_allclose(spread.scores, alone.scores, atol=1e-4)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(alone.gradients))
  for one, exact in zip(jax.tree.leaves(spread.gradients), jax.tree.leaves(alone.gradients), strict=True):
    # The floor is for keys' biases, whose gradient of content is rounding.
    np.testing.assert_allclose(one, exact, rtol=0, atol=1e-3 * float(jnp.abs(exact).max()) + 1e-6 * largest)
