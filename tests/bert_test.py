"""Packing is invisible: many texts a row give the values and gradients of one text a row, for both models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rows_of
import small_models
from flax import nnx

from idistill_jax import config
from idistill_jax.data import pack, tokenize
from idistill_jax.hf import networks
from idistill_jax.models import bert, deberta, execution, families, modern_bert
from idistill_jax.models import table as table_lib

ROW = 48
# Tokens of small models that are no special ones.
WORDS = {"modernbert": (100, 330), "deberta-v2": (20, 66)}
LENGTHS = (3, 20, 7, 31, 12, 2, 25)


@dataclasses.dataclass(frozen=True)
class Case:
  """A model with its texts in both layouts, and value and gradient as one jitted function.

  unused: a token that no text has.
  """

  packed: pack.Rows
  apart: pack.Rows
  params: dict
  run: object
  unused: int


@pytest.fixture(scope="module", params=[
  ("retriever", "bert"), ("ranker", "bert"), pytest.param(("ranker", "modernbert"), marks=pytest.mark.torch),
  pytest.param(("ranker", "deberta-v2"), marks=pytest.mark.torch)])
def case(request, tmp_path_factory) -> Case:
  model, family = request.param
  if family == "bert":
    folder, words = request.getfixturevalue("tiny_weights"), (1000, 20000)
  else:
    pytest.importorskip("transformers")
    folder, words = str(small_models.write(family, tmp_path_factory.mktemp(family))), WORDS[family]
  encoder = config.Encoder(weights=folder, query_tokens=16, passage_tokens=32)
  network = networks.retriever(encoder) if model == "retriever" else networks.ranker(encoder, "classifier")
  params = network.initial(0)
  rng = np.random.default_rng(0)
  if model == "ranker":
    # As it starts, the head says little or nothing of what happens below it.
    params["classifier"]["kernel"] = rng.normal(size=params["classifier"]["kernel"].shape).astype(np.float32)
  texts = [np.concatenate([[2], rng.integers(*words, n - 2), [3]]).astype(np.int32) for n in LENGTHS]
  types = None
  if model == "ranker":
    nothing = tokenize.Between(np.zeros(0, int), 1)
    pairs = [tokenize.pair(text[:len(text) // 2], text[len(text) // 2 - 1:], nothing) for text in texts]
    texts, types = [ids for ids, _ in pairs], [kinds for _, kinds in pairs]
  shape = jax.eval_shape(network.apply, params, rows_of.one_a_row(texts, types, ROW)).shape
  cotangent = jnp.asarray(rng.normal(size=shape).astype(np.float32))

  @jax.jit
  def run(params, rows):
    def loss(params):
      out = network.apply(params, rows)
      return (out * cotangent).sum(), out

    (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return out, grads

  # Equal shapes, so that one compiled function serves both layouts.
  return Case(packed=rows_of.packed(texts, types, ROW, rows=len(texts)), apart=rows_of.one_a_row(texts, types, ROW),
              params=params, run=run, unused=words[0] - 1)


def worst(case: Case, rows: pack.Rows) -> tuple[float, float]:
  """Largest difference to one text a row: of a value, and of a gradient as a share of its tensor's largest entry."""
  expected, expected_grads = case.run(case.params, case.apart)
  found, found_grads = case.run(case.params, rows)
  floor = 1e-6 * max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected_grads))
  share = lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(b).max() + floor))
  shares = jax.tree.map(share, found_grads, expected_grads)
  # A key's bias moves all logits of a query alike: its gradient is rounding, around zero.
  if "key" in shares["encoder"]["layers"]:
    shares["encoder"]["layers"]["key"]["bias"] = 0.0
  return float(jnp.abs(found - expected).max()), max(jax.tree.leaves(shares))


def test_packed_equals_one_text_a_row(case):
  assert case.packed.segment_ids.max() > 1, "nothing was packed"
  value, gradient = worst(case, case.packed)
  assert value < 1e-5
  assert gradient < 1e-4


@pytest.mark.parametrize("broken", ["segments", "places"])
def test_a_broken_layout_is_noticed(case, broken):
  rows = case.packed
  if broken == "segments":
    rows = dataclasses.replace(rows, segment_ids=(rows.segment_ids > 0).astype(np.int32))
  else:
    rows = rows_of.backwards(rows)
  value, gradient = worst(case, rows)
  assert value > 1e-3
  assert gradient > 1e-2


def test_what_padding_holds_is_never_read(case):
  token_ids = np.where(case.packed.segment_ids > 0, case.packed.token_ids, case.unused)
  rows = dataclasses.replace(case.packed, token_ids=token_ids)
  assert (rows.token_ids != case.packed.token_ids).any()
  expected, expected_grads = case.run(case.params, case.packed)
  found, found_grads = case.run(case.params, rows)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found_grads["encoder"]["word"]["embedding"][case.unused], 0.0)
  assert set(table_lib.flatten(found_grads)) == set(table_lib.flatten(expected_grads))


def test_an_absent_text_is_finite(case):
  """Batches pad short lists with empty texts: their outputs are masked away, so they must hold no NaN."""
  rows = dataclasses.replace(
    case.packed, segment_ids=np.zeros_like(case.packed.segment_ids),
    text_ids=np.full_like(case.packed.text_ids, len(LENGTHS)), starts=np.zeros_like(case.packed.starts))
  out, grads = case.run(case.params, rows)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((out, grads)))


SIZES = {
  "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 128,
  "max_position_embeddings": 64, "layer_norm_eps": 1e-12,
}  # fmt: skip


@pytest.mark.parametrize("sizes", [
  bert.BertConfig(**SIZES, type_vocab_size=2),
  modern_bert.ModernBertConfig(
    **SIZES, local=(False, True, True, False), reach=8, global_theta=160_000.0, local_theta=10_000.0),
  deberta.DebertaConfig(**SIZES, buckets=16, farthest=64),
], ids=["bert", "modernbert", "deberta"])
def test_rematerialising_gives_the_same_gradients_from_less_memory(sizes):
  graph, params = nnx.split(families.encoder(sizes, nnx.Rngs(0)))
  rows = rows_of.one_a_row([np.arange(64, dtype=np.int32) % 50] * 16, None, 64)

  def compiled(remat: str):
    how = dataclasses.replace(execution.PLAIN, remat=remat)
    loss = lambda params: (nnx.merge(graph, params)(rows, how)[..., 0] ** 3).sum()
    return jax.jit(jax.grad(loss)).lower(params).compile()

  found = {remat: compiled(remat) for remat in ("none", *execution.REMAT)}
  scratch = {remat: one.memory_analysis().temp_size_in_bytes for remat, one in found.items()}
  assert scratch["layers"] < scratch["products"] < scratch["none"]
  expected = jax.tree.leaves(found["none"](params))
  # Of all leaves together: a bias of the keys has no gradient but rounding.
  scale = max(float(jnp.abs(exact).max()) for exact in expected)
  for remat in execution.REMAT:
    for gradient, exact in zip(jax.tree.leaves(found[remat](params)), expected, strict=True):
      np.testing.assert_allclose(gradient / scale, exact / scale, atol=1e-5)
