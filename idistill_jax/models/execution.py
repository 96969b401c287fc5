"""How a model computes on each platform: types, attention, and how its layers are compiled.

Everywhere parameters are float32 and sums are float32; matrix products read `products`, states between layers are
`states`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from idistill_jax import multiply
from idistill_jax.models import attention, kernels


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
  """products, states: see above.  attend: see models/attention.py.

  unroll_layers: compile every layer for itself rather than one loop over them.
  remat: what a gradient computes anew, a key of REMAT.
  row_block: lengths of rows are whole multiples of it.  attention_doubles: in rows of so many times the model's width,
  attention costs as much as all else.  text_block: where attention of trainings reads text by text, in pieces of a
  multiple of so many tokens.  frozen_layers: no gradient reaches so many of the first layers, and what lies below them.
  """

  products: Any
  states: Any
  attend: attention.Attend
  unroll_layers: bool
  remat: str
  row_block: int
  attention_doubles: float
  text_block: int | None = None
  frozen_layers: int = 0

  def without_gradient(self) -> "Execution":
    """For reading alone, where unrolled layers gain nothing and take three times as long to compile."""
    return dataclasses.replace(self, unroll_layers=False, remat="none", frozen_layers=0)


# Runs anywhere, and exactly: what a network is born with.
PLAIN = Execution(products=jnp.dtype("float32"), states=jnp.dtype("float32"), attend=attention.attend,
                  unroll_layers=False, remat="none", row_block=16, attention_doubles=2.5)


# The name of what `layers.Dense` computes; a policy by primitives would not see into `product`, which has a gradient of
# its own.
PRODUCT = "product"
# What `jax.checkpoint` keeps of each layer: nothing but its input, or its matrix products without attention's.
REMAT = {
  "layers": jax.checkpoint_policies.nothing_saveable,
  "products": jax.checkpoint_policies.save_only_these_names(PRODUCT),
}


def rematerialised(layer: Callable[..., Any], remat: str) -> Callable[..., Any]:
  """The layer, with less kept for its gradient; remat: "none" or a key of REMAT."""
  return layer if remat == "none" else jax.checkpoint(layer, policy=REMAT[remat])


def cpu_multiplies_bfloat16() -> bool:
  """Whether this machine's CPU multiplies it faster than float32; False where the system does not tell."""
  # AMX and ARM's instructions are faster on any CPU that has them; AVX-512's are on AMD's, and slower on Intel's.
  fast = {"amx_bf16", "bf16"} | ({"avx512_bf16"} if "AuthenticAMD" in _cpuinfo() else set())
  return not fast.isdisjoint(_cpuinfo().split())


@functools.cache
def _cpuinfo() -> str:
  try:
    return pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return ""


def has_fused_attention(device: Any) -> bool:
  """Whether cuDNN attends in bfloat16 there: on NVIDIA's GPUs from Ampere on."""
  return kernels.capability(device) >= 8


def choose(compute_dtype: str, mesh: jax.sharding.Mesh, remat: str) -> Execution:
  """For products of `compute_dtype` on the devices of `mesh`."""
  products = jnp.dtype(compute_dtype)
  match mesh.devices.flat[0].platform:
    case "cpu":
      # Where instructions are fast, bfloat16 products with a float32 result take half as long as float32 ones;
      # elsewhere up to twice as long, and they are no more exact.  All else in bfloat16 is slow.
      if products == jnp.bfloat16 and not cpu_multiplies_bfloat16():
        products = jnp.dtype("float32")
      # A loop over layers copies what the gradient needs of each into one array and out again.
      # In unrolled layers XLA computes nothing anew, so who asks for less memory gets the loop.
      # Where bfloat16 tiles are multiplied at once, attention's share is twice as large.
      tiles = products == jnp.bfloat16 and "amx_bf16" in _cpuinfo()
      return dataclasses.replace(PLAIN, products=products, unroll_layers=remat == "none", remat=remat,
                                 attention_doubles=1.3 if tiles else PLAIN.attention_doubles, text_block=8)
    # The kernels multiply in bfloat16 whatever they are given, or take nothing longer.
    case "tpu" if products == jnp.bfloat16:
      attend = kernels.splash(mesh)
    case "gpu" | "cuda" if products == jnp.bfloat16 and has_fused_attention(mesh.devices.flat[0]):
      attend = kernels.cudnn(mesh)
    case platform:
      kernels.say_plain(f"there is no kernel here for {products.name} on this {platform}")
      attend = attention.attend
  # Accelerators are bound by memory, so states are as short as products.  A GPU's loop over layers copies what the
  # gradient needs as a CPU's does, a third of all bytes; for a TPU, unrolled layers take minutes to compile, and where
  # GPUs share weights, XLA fetches fewer of an unrolled layer's while it computes.
  # By the count of FLOPs, a row of six times the width doubles the cost.
  alone = mesh.shape["fsdp"] * mesh.shape["tensor"] == 1
  unroll = remat == "none" and alone and mesh.devices.flat[0].platform != "tpu"
  return Execution(products=products, states=products, attend=attend, unroll_layers=unroll, remat=remat,
                   row_block=kernels.SPLASH_BLOCK, attention_doubles=6.0)


def compiler_options(mesh: jax.sharding.Mesh) -> dict[str, Any] | None:
  """What is asked of XLA for the devices of a mesh.

  On GPUs, products by cuBLAS, which adds a bias as it writes: Triton's of unrolled layers take most of a minute to
  compile.
  """
  return {"xla_gpu_enable_triton_gemm": False} if mesh.devices.flat[0].platform in ("gpu", "cuda") else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(equation: str, operands: Any, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """einsum(equation, x, kernel) over operands of type `operands`, summed in float32, in the type of x.

  Why a gradient of its own: the derived one multiplies a float32 cotangent with a short operand, which is slow
  everywhere, and rounds the kernel's gradient.
  """
  return multiply.einsum(equation, x.astype(operands), kernel.astype(operands), x.dtype)


def _forward(equation: str, operands: Any, x: jax.Array,
             kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return product(equation, operands, x, kernel), (x, kernel)


def _backward(equation: str, operands: Any, saved: tuple[jax.Array, jax.Array],
              dy: jax.Array) -> tuple[jax.Array, jax.Array]:
  x, kernel = saved
  inputs, out = equation.split("->")
  left, right = inputs.split(",")
  dy = dy.astype(operands)
  dx = multiply.einsum(f"{out},{right}->{left}", dy, kernel.astype(operands), x.dtype)
  dkernel = multiply.einsum(f"{left},{out}->{right}", x.astype(operands), dy)
  return dx, dkernel.astype(kernel.dtype)


product.defvjp(_forward, _backward)
