"""Products of float32 stay float32 on accelerators: read off whole losses with their gradients, lowered for each."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world

from idistill_jax import config, losses, multiply
from idistill_jax.hf import networks
from idistill_jax.models import cross_encoder
from idistill_jax.train import objectives

ACCELERATORS = ("tpu", "cuda")
PRODUCT = re.compile(
  r"stablehlo\.dot_general .*precision = \[(\w+), (\w+)\].* : \(tensor<\S*?(\w+)>, tensor<\S*?(\w+)>\)")


def found(function, *arguments, platform: str) -> set[tuple[str, str]]:
  """(type, precision) of all operands of products."""
  lowered = jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
  products = PRODUCT.findall(lowered)
  assert len(products) == lowered.count("stablehlo.dot_general ")
  kind = lambda shape: shape.rpartition("x")[2]
  return {pair for a, b, x, y in products for pair in ((kind(x), a), (kind(y), b))}


def loss_of(heads: str | None, loss: str, weights: str, dtype: str):
  """A function of parameters and batch; heads: the ranker's, None for the retriever."""
  encoder = tiny_world.encoder(weights)
  network = networks.retriever(encoder) if heads is None else networks.ranker(encoder, heads)
  execution = dataclasses.replace(network.execution, products=jnp.dtype(dtype), states=jnp.dtype(dtype))
  network = dataclasses.replace(network, execution=execution)
  if heads is None:
    return network, objectives.retriever(config.Retriever(loss=loss), network)
  return network, objectives.ranker(config.Ranker(loss=loss), network)


CASES = [*((head, "listmle") for head in cross_encoder.HEADS), *((None, loss) for loss in losses.DISTILLATION)]


@pytest.mark.parametrize("head, loss", CASES)
@pytest.mark.parametrize("dtype, types", [("float32", {"f32"}), ("bfloat16", {"bf16", "f32"})])
def test_losses_multiply_float32_as_it_is(head, loss, dtype, types, tiny_weights, tmp_path):
  network, loss_fn = loss_of(head, loss, tiny_weights, dtype)
  tiny_world.write_lists(tmp_path)
  batch = tiny_world.stream(tmp_path, network, pairs=head is not None)[0]
  for platform in ACCELERATORS:
    products = found(jax.value_and_grad(loss_fn), network.abstract, batch, platform=platform)
    assert {(kind, precision) for kind, precision in products if kind == "f32"} <= {("f32", "HIGHEST")}
    # Short operands are multiplied as ever.
    assert ("bf16", "HIGHEST") not in products and {kind for kind, _ in products} <= types
    assert (types - {"f32"} or {"f32"}) <= {kind for kind, _ in products}


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_what_is_not_told_is_rounded(platform):
  x = jax.ShapeDtypeStruct((4, 4), jnp.float32)
  assert found(jnp.matmul, x, x, platform=platform) == {("f32", "DEFAULT")}
  assert found(multiply.matmul, x, x, platform=platform) == {("f32", "HIGHEST")}


def test_products_of_short_operands_are_summed_long():
  x = jnp.ones((1, 257), jnp.bfloat16).at[0, 1:].set(2.0 ** -9)
  for product in (multiply.matmul(x, jnp.ones((257, 1), jnp.bfloat16)),
                  multiply.einsum("ab,bc->ac", x, jnp.ones((257, 1), jnp.bfloat16))):
    assert product.dtype == np.float32 and float(product[0, 0]) == 1.5
