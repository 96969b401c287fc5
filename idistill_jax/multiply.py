"""Products of arrays that are as exact as their operands, on every platform; sums are float32."""

from typing import Any

import jax
import jax.numpy as jnp


def einsum(equation: str, x: jax.Array, y: jax.Array, result: Any = jnp.float32) -> jax.Array:
  """jnp.einsum of two operands of one type, in the type `result`.

  Why not cast to it: who multiplies then writes float32, which is read again to be rounded.
  """
  return jnp.einsum(equation, x, y, precision=_precision(x, y), preferred_element_type=result)


def matmul(x: jax.Array, y: jax.Array) -> jax.Array:
  """jnp.matmul of two operands of one type, float32."""
  return jnp.matmul(x, y, precision=_precision(x, y), preferred_element_type=jnp.float32)


def _precision(x: jax.Array, y: jax.Array) -> jax.lax.Precision | None:
  # Unless told otherwise, a TPU rounds float32 operands to bfloat16 and an H100 to TF32; short ones lose nothing.
  return jax.lax.Precision.HIGHEST if jnp.float32 in (x.dtype, y.dtype) else None
