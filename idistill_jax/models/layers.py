"""The parts that every encoder is made of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import ad_checkpoint

from idistill_jax.models import execution


def lift(vector: jax.Array, like: jax.Array) -> jax.Array:
  """Leading unit axes, so that adding a bias is no implicit rank promotion."""
  return vector.reshape((1,) * (like.ndim - vector.ndim) + vector.shape).astype(like.dtype)


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs) -> jax.Array:
  return 0.02 * jax.random.truncated_normal(rngs.params(), -2, 2, shape, jnp.float32)


class Dense(nnx.Module):
  """x @ kernel + bias; kernel axes may be split (heads, head_dim), so the contraction is an equation.

  bias: its shape; None adds nothing.
  """

  def __init__(self, equation: str, kernel: tuple[int, ...], bias: tuple[int, ...] | None, *, rngs: nnx.Rngs):
    self.equation = equation
    self.kernel = nnx.Param(_normal(kernel, rngs))
    self.bias = None if bias is None else nnx.Param(jnp.zeros(bias, jnp.float32))

  def __call__(self, x: jax.Array, products: Any = jnp.float32) -> jax.Array:
    """In the type of x; `products` is the operands' type."""
    y = execution.product(self.equation, products, x, self.kernel[...])
    y = ad_checkpoint.checkpoint_name(y, execution.PRODUCT)
    return y if self.bias is None else y + lift(self.bias[...], y)


def normalised(x: jax.Array, scale: jax.Array, eps: float, bias: jax.Array | None = None) -> jax.Array:
  """Layer norm over the last axis, statistics in float32 whatever the type of x, which is that of the result."""
  x32 = x.astype(jnp.float32)
  centred = x32 - x32.mean(-1, keepdims=True)
  variance = jnp.square(centred).mean(-1, keepdims=True)
  y = centred * jax.lax.rsqrt(variance + eps)
  y = y * lift(scale, y)
  return (y if bias is None else y + lift(bias, y)).astype(x.dtype)


class LayerNorm(nnx.Module):
  """With a scale and a bias."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return normalised(x, self.scale[...], self.eps, self.bias[...])


class ScaleNorm(nnx.Module):
  """Layer norm without a bias."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return normalised(x, self.scale[...], self.eps)


class Embedding(nnx.Module):
  def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
    self.embedding = nnx.Param(_normal((rows, width), rngs))

  def __call__(self, ids: jax.Array | np.ndarray) -> jax.Array:
    return jnp.take(self.embedding[...], ids, axis=0)


class RelativeBias(nnx.Module):
  """What the distance of two tokens adds to each head's logits.  (Raffel et al. 2020, arXiv 1910.10683, 2.1.)"""

  # Distances from this one on share the last bucket of their side.
  FARTHEST = 128

  def __init__(self, buckets: int, heads: int, *, rngs: nnx.Rngs):
    self.buckets = buckets
    self.embedding = nnx.Param(_normal((buckets, heads), rngs))

  def __call__(self, length: int) -> jax.Array:
    """[H, L, L], from token (second axis) to token (third)."""
    columns = np.arange(length)
    of_distance = self.bucket(columns[None, :] - columns[:, None])
    return jnp.moveaxis(jnp.take(self.embedding[...], of_distance, axis=0), -1, 0)

  def bucket(self, distances: np.ndarray) -> np.ndarray:
    """Half of the buckets are for tokens before, half for those behind; near ones have one of their own, and those
    farther off share them by the logarithm of their distance."""
    side = self.buckets // 2
    alone = side // 2
    far = np.maximum(np.abs(distances), 1).astype(np.float32)
    # In float32 like those who trained with it: a power of two lies on the border of two buckets.
    shared = alone + (np.log(far / alone) / np.float32(np.log(self.FARTHEST / alone)) * (side - alone)).astype(int)
    near = np.abs(distances) < alone
    return np.where(distances > 0, side, 0) + np.where(near, np.abs(distances), np.minimum(shared, side - 1))
