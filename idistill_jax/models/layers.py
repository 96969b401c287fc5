"""The parts that every encoder is made of."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint

from idistill_jax.models import execution


def lift(vector: jax.Array, like: jax.Array) -> jax.Array:
  """Leading unit axes, so that adding a bias is no implicit rank promotion."""
  return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape).astype(like.dtype)


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs) -> jax.Array:
  return 0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)


class Dense(nnx.Module):
  """x @ kernel + bias; kernel axes may be split (heads, head_dim), so the contraction is an equation."""

  def __init__(self, equation: str, kernel: tuple[int, ...], bias: tuple[int, ...], *, rngs: nnx.Rngs):
    self.equation = equation
    self.kernel = nnx.Param(_normal(kernel, rngs))
    self.bias = nnx.Param(jnp.zeros(bias, jnp.float32))

  def __call__(self, x: jax.Array, products: Any = jnp.float32) -> jax.Array:
    """In the type of x; `products` is the operands' type."""
    y = execution.product(self.equation, products, x, self.kernel[...])
    y = ad_checkpoint.checkpoint_name(y, execution.PRODUCT)
    return y + lift(self.bias[...], y)


class LayerNorm(nnx.Module):
  """Statistics in float32 whatever the type of x."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.eps)
    return (y * lift(self.scale[...], y) + lift(self.bias[...], y)).astype(x.dtype)


class Embedding(nnx.Module):
  def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
    self.embedding = nnx.Param(_normal((rows, width), rngs))

  def __call__(self, ids: jax.Array) -> jax.Array:
    return jnp.take(self.embedding[...], ids, axis=0)
