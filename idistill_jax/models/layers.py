"""The parts that every encoder is made of."""

import functools
import math
from collections.abc import Callable
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


@jax.custom_vjp
def biased(y: jax.Array, bias: jax.Array) -> jax.Array:
  """y + bias in the type of y; the gradient of the bias is summed over all tokens in float32.

  Heads are one axis while it is added: along one a GPU's product adds it itself, of two it reads a bias for every
  token.  Not before, nor for the gradient: a TPU would write all heads once more, apart.  Why a gradient of its own:
  the derived one sums in the type of y.
  """
  flat = y.reshape(*y.shape[:y.ndim - bias.ndim], -1)
  return (flat + lift(bias.reshape(-1), flat)).reshape(y.shape)


def _biased_backward(bias: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  # For GPUs, without the barrier, XLA keeps dy in float32 as well, for the sum alone; for TPUs it fuses the sum.
  dy = jax.lax.platform_dependent(dy, cuda=jax.lax.optimization_barrier, default=lambda dy: dy)
  return dy, dy.sum(tuple(range(dy.ndim - bias.ndim)), dtype=jnp.float32).astype(bias.dtype)


biased.defvjp(lambda y, bias: (biased(y, bias), bias), _biased_backward)


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
    if self.bias is None:
      return y
    bias = self.bias[...]
    # Where states are short, this is an accelerator.
    return y + lift(bias, y) if x.dtype == jnp.float32 else biased(y, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def normalised(x: jax.Array, scale_D: jax.Array, eps: float, bias_D: jax.Array | None = None) -> jax.Array:
  """Layer norm over the last axis, computed in float32 whatever the type of x, which is that of the result.  (Ba et al.
  2016, arXiv 1607.06450.)

  Why a gradient of its own: the derived one keeps all that is computed on the way, in float32; this one x as it is, and
  two numbers a token.
  """
  return _normalised(x, scale_D, eps, bias_D)[0]


def _normalised(x: jax.Array, scale_D: jax.Array, eps: float, bias_D: jax.Array | None) -> tuple[jax.Array, Any]:
  x32 = x.astype(jnp.float32)
  mean = x32.mean(-1, keepdims=True)
  centred = x32 - mean
  inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
  y = centred * inverse * lift(scale_D, centred)
  return (y if bias_D is None else y + lift(bias_D, y)).astype(x.dtype), (x, mean, inverse, scale_D, bias_D)


def _normalised_backward(eps: float, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  x, mean, inverse, scale_D, bias_D = saved
  dy, tokens = dy.astype(jnp.float32), tuple(range(x.ndim - 1))
  y = (x.astype(jnp.float32) - mean) * inverse
  scaled = dy * lift(scale_D, dy)
  along = (scaled * y).mean(-1, keepdims=True)
  dx = (scaled - scaled.mean(-1, keepdims=True) - y * along) * inverse
  return dx.astype(x.dtype), (dy * y).sum(tokens), None if bias_D is None else dy.sum(tokens)


normalised.defvjp(_normalised, _normalised_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_normalised(x: jax.Array, scale_D: jax.Array, eps: float) -> jax.Array:
  """Over the last axis divided by its root mean square, which leaves the mean where it is.  (Zhang and Sennrich 2019,
  arXiv 1910.07467.)  Types, and a gradient of its own, as `normalised` has them."""
  return _rms_normalised(x, scale_D, eps)[0]


def _rms_normalised(x: jax.Array, scale_D: jax.Array, eps: float) -> tuple[jax.Array, Any]:
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + eps)
  return (x32 * inverse * lift(scale_D, x32)).astype(x.dtype), (x, inverse, scale_D)


def _rms_normalised_backward(eps: float, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, inverse, scale_D = saved
  dy, y = dy.astype(jnp.float32), x.astype(jnp.float32) * inverse
  scaled = dy * lift(scale_D, dy)
  dx = (scaled - y * (scaled * y).mean(-1, keepdims=True)) * inverse
  return dx.astype(x.dtype), (dy * y).sum(tuple(range(x.ndim - 1)))


rms_normalised.defvjp(_rms_normalised, _rms_normalised_backward)


_OfEach = Callable[[jax.Array], jax.Array]


def _of_each(function: _OfEach, slope: _OfEach) -> _OfEach:
  """The function of each number, computed in float32 whatever the type of x, which is that of the result.

  Why a gradient of its own: the derived one keeps more than x, and that of short states is computed in their type.
  """

  @jax.custom_vjp
  def computed(x: jax.Array) -> jax.Array:
    return function(x.astype(jnp.float32)).astype(x.dtype)

  def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return computed(x), x

  def backward(x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (slope(x.astype(jnp.float32)) * dy.astype(jnp.float32)).astype(x.dtype),

  computed.defvjp(forward, backward)
  return computed


def _derived(function: _OfEach) -> _OfEach:
  return lambda x32: jax.jvp(function, (x32,), (jnp.ones_like(x32),))[1]


def _share_below(x32: jax.Array) -> jax.Array:
  # Not of `erfc`, which costs an exponential, too.
  return 0.5 * (1.0 + jax.lax.erf(x32 * math.sqrt(0.5)))


def _density(x32: jax.Array) -> jax.Array:
  return jnp.exp(-0.5 * jnp.square(x32)) / math.sqrt(2 * math.pi)


_gelu_by_tanh = functools.partial(jax.nn.gelu, approximate=True)

# x times the share of a normal distribution below x (Hendrycks and Gimpel 2016, arXiv 1606.08415); the same with that
# paper's approximation of the share, for encoders that were trained with it; and x times its logistic function (Elfwing
# et al. 2017, arXiv 1702.03118).
gelu = _of_each(lambda x32: x32 * _share_below(x32), lambda x32: _share_below(x32) + x32 * _density(x32))
gelu_by_tanh = _of_each(_gelu_by_tanh, _derived(_gelu_by_tanh))
silu = _of_each(jax.nn.silu, _derived(jax.nn.silu))


class ScaleNorm(nnx.Module):
  """Layer norm without a bias."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.scale = nnx.Param(jnp.ones((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return normalised(x, self.scale[...], self.eps)


class LayerNorm(ScaleNorm):
  """And with one."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    super().__init__(width, eps, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return normalised(x, self.scale[...], self.eps, self.bias[...])


class RmsNorm(ScaleNorm):
  """Without taking the mean off."""

  def __call__(self, x: jax.Array) -> jax.Array:
    return rms_normalised(x, self.scale[...], self.eps)


class Embedding(nnx.Module):
  def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
    self.embedding = nnx.Param(_normal((rows, width), rngs))

  def __call__(self, ids: jax.Array | np.ndarray) -> jax.Array:
    return jnp.take(self.embedding[...], ids, axis=0)


class TypeEmbedding(Embedding):
  """Of token types: x with those of a pair's halves added, or of the first type where these are not told."""

  def __init__(self, types: int, width: int, tell_halves: bool, *, rngs: nnx.Rngs):
    super().__init__(types, width, rngs=rngs)
    self.tell_halves = tell_halves

  def added(self, x: jax.Array, halves: jax.Array | np.ndarray) -> jax.Array:
    return x + (self(halves) if self.tell_halves else lift(self.embedding[0], x))


class RelativeBias(nnx.Module):
  """What the distance of two tokens adds to each head's logits.  (Raffel et al. 2020, arXiv 1910.10683, 2.1.)

  Distances from `farthest` on share the last bucket of their side.
  """

  def __init__(self, buckets: int, heads: int, farthest: int = 128, *, rngs: nnx.Rngs):
    self.buckets, self.farthest = buckets, farthest
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
    shared = alone + (np.log(far / alone) / np.float32(np.log(self.farthest / alone)) * (side - alone)).astype(int)
    near = np.abs(distances) < alone
    return np.where(distances > 0, side, 0) + np.where(near, np.abs(distances), np.minimum(shared, side - 1))
