"""In which types a model computes: parameters are float32, matrix products read `products`, states between them are
`states`, sums are float32 always."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
  """products: type of the operands of matrix products.  states: type of what flows between layers."""

  products: Any
  states: Any


FLOAT32 = Precision(products=jnp.dtype("float32"), states=jnp.dtype("float32"))


def choose(compute_dtype: str, platform: str) -> Precision:
  """`compute_dtype` on a platform of `jax.default_backend()`.

  Accelerators are bound by memory, so states are as short as products.  A CPU multiplies bfloat16 twice as fast as
  float32 where the result is float32, and is slow at everything else in bfloat16, so its states stay float32.
  """
  products = jnp.dtype(compute_dtype)
  return Precision(products=products, states=jnp.dtype("float32") if platform == "cpu" else products)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(equation: str, operands: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """einsum(equation, x, kernel) over operands of type `operands`, summed in float32, in the type of x.

  Why a gradient of its own: the derived one multiplies a float32 cotangent with a short operand, which is slow
  everywhere, and rounds the kernel's gradient.
  """
  y = jnp.einsum(equation, x.astype(operands), kernel.astype(operands), preferred_element_type=jnp.float32)
  return y.astype(x.dtype)


def _forward(equation: str, operands: Any, x: jax.Array,
             kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(equation, operands, x, kernel), (x, kernel)


def _backward(equation: str, operands: Any, saved: tuple[jax.Array, jax.Array],
              dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  inputs, out = equation.split("->")
  left, right = inputs.split(",")
  multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  dy = dy.astype(operands)
  dx = multiply(f"{out},{right}->{left}", dy, kernel.astype(operands))
  dkernel = multiply(f"{left},{out}->{right}", x.astype(operands), dy)
  return dx.astype(x.dtype), dkernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)
