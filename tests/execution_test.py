"""Matrix products of short operands: float32 sums, the types promised, gradients near the exact ones."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax.models import attention, execution

EQUATIONS = {"rld,df->rlf": ((2, 6, 8), (8, 12)), "rlhk,hkd->rld": ((2, 6, 4, 3), (4, 3, 8)),
             "rld,dhk->rlhk": ((2, 6, 8), (8, 4, 3))}


def drawn(equation: str) -> tuple[jax.Array, jax.Array]:
  shapes = EQUATIONS[equation]
  return tuple(jax.random.normal(jax.random.key(i), shape, jnp.float32) for i, shape in enumerate(shapes))


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a device as the choice looks at."""

  platform: str
  compute_capability: str | None


def mesh_of(platform: str, capability: str | None = "9.0", **axes: int) -> types.SimpleNamespace:
  return types.SimpleNamespace(devices=np.array([[[Device(platform, capability)]]], object),
                               shape={"data": 1, "fsdp": 1, "tensor": 1} | axes)


def chosen(dtype: str, platform: str, remat: str = "none", capability: str | None = "9.0",
           **axes: int) -> execution.Execution:
  return execution.choose(dtype, mesh_of(platform, capability, **axes), remat)


def test_a_cpu_keeps_long_states_and_an_accelerator_short_ones(monkeypatch):
  monkeypatch.setattr(execution, "cpu_multiplies_bfloat16", lambda: True)
  bfloat16, float32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
  pair = lambda one: (one.products, one.states)
  assert pair(chosen("bfloat16", "cpu")) == (bfloat16, float32)
  assert pair(chosen("bfloat16", "gpu")) == pair(chosen("bfloat16", "tpu")) == (bfloat16, bfloat16)
  assert pair(chosen("float32", "gpu")) == pair(chosen("float32", "cpu")) == (float32, float32)


def test_a_cpu_that_would_only_emulate_short_products_makes_long_ones(monkeypatch):
  monkeypatch.setattr(execution, "cpu_multiplies_bfloat16", lambda: False)
  assert chosen("bfloat16", "cpu").products == jnp.dtype("float32")
  assert chosen("bfloat16", "gpu").products == chosen("bfloat16", "tpu").products == jnp.dtype("bfloat16")


@pytest.mark.parametrize("flags, has", [
  ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx512f avx512_bf16 avx512_vbmi", True),
  ("vendor_id\t: GenuineIntel\nflags\t: fpu avx512f avx512_bf16 avx512_vbmi", False),
  ("vendor_id\t: GenuineIntel\nflags\t: fpu avx512_bf16 amx_bf16", True),
  ("Features\t: fp asimd i8mm bf16 dgh", True), ("flags\t: fpu avx2 avx512f svebf16x", False),
])
def test_the_system_tells_what_its_cpu_multiplies(flags, has, monkeypatch):
  monkeypatch.setattr(execution, "_cpuinfo", lambda: flags)
  assert execution.cpu_multiplies_bfloat16() == has
  # Where tiles are multiplied, attention weighs more.
  assert (chosen("bfloat16", "cpu").attention_doubles < execution.PLAIN.attention_doubles) == ("amx" in flags)
  assert chosen("float32", "cpu").attention_doubles == execution.PLAIN.attention_doubles


def test_less_memory_needs_a_loop_over_layers():
  assert chosen("float32", "cpu").unroll_layers and not chosen("float32", "cpu", "layers").unroll_layers
  assert chosen("bfloat16", "tpu", "products").remat == "products"
  assert chosen("bfloat16", "gpu").unroll_layers and chosen("bfloat16", "gpu", data=8).unroll_layers
  # A TPU's compiler takes minutes, and who shares weights fetches a layer's in the turn before it.
  for other in (chosen("bfloat16", "gpu", "layers"), chosen("bfloat16", "tpu"), chosen("bfloat16", "gpu", fsdp=2),
                chosen("bfloat16", "gpu", tensor=2)):
    assert not other.unroll_layers


def test_gpus_alone_are_asked_for_products_of_cublas():
  assert execution.compiler_options(mesh_of("gpu")) == {"xla_gpu_enable_triton_gemm": False}
  assert execution.compiler_options(mesh_of("cpu")) is execution.compiler_options(mesh_of("tpu")) is None


def test_each_platform_has_its_attention():
  assert chosen("bfloat16", "cpu").attend is attention.attend
  assert chosen("bfloat16", "gpu").attend.__name__ == "attend_cudnn"
  # Turing and Volta have no such kernel, AMD's GPUs say "gfx942".
  for capability in ("7.5", "gfx942", None):
    assert chosen("bfloat16", "gpu", capability=capability).attend is attention.attend
  # cuDNN takes 16-bit types only.
  assert chosen("float32", "gpu").attend is attention.attend
  assert "splash" in chosen("bfloat16", "tpu").attend.__qualname__
  # Its kernel would round float32.
  assert chosen("float32", "tpu").attend is attention.attend


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("operands", ["float32", "bfloat16"])
def test_product_and_gradients_equal_einsum(equation, operands):
  x, kernel = drawn(equation)
  y, pull = jax.vjp(lambda x, kernel: execution.product(equation, operands, x, kernel), x, kernel)
  exact, exact_pull = jax.vjp(lambda x, kernel: jnp.einsum(equation, x, kernel), x, kernel)
  # 8 bits of mantissa in each factor, over sums of at most 12 of them; float32 sums add nothing to that.
  tolerance = {"float32": 1e-5, "bfloat16": 0.05}[operands]
  np.testing.assert_allclose(y, exact, atol=tolerance * 3)
  for found, expected in zip(pull(exact), exact_pull(exact), strict=True):
    assert found.dtype == jnp.float32
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(found / scale, expected / scale, atol=tolerance)


def test_sums_are_of_float32_whatever_the_operands():
  # Added one by one in bfloat16, 1 + 256 x 2^-9 stays 1: each addend is below half of the last place.
  x = jnp.concatenate([jnp.ones(1), jnp.full(256, 2.0 ** -9)]).reshape(1, 1, -1)
  summed = execution.product("rld,df->rlf", "bfloat16", x, jnp.ones((257, 1)))
  assert float(summed[0, 0, 0]) == 1.5


@pytest.mark.parametrize("states, written", [("float32", "f32"), ("bfloat16", "bf16")])
def test_a_product_is_written_in_the_type_of_the_states(states, written):
  """Not long, to be read again and rounded; but the kernel's gradient stays long, and on a CPU all is."""
  x, kernel = drawn("rld,df->rlf")

  def all_three(x, kernel, dy):
    y, pull = jax.vjp(lambda x, kernel: execution.product("rld,df->rlf", "bfloat16", x, kernel), x, kernel)
    return y, *pull(dy)

  lowered = jax.jit(all_three).lower(x.astype(states), kernel, jnp.zeros((2, 6, 12), states)).as_text()
  results = re.findall(r"stablehlo\.dot_general .*-> tensor<\S*x(\w+)>", lowered)
  assert results == [written, written, "f32"]


def test_short_states_stay_short_and_parameters_get_long_gradients():
  x, kernel = drawn("rld,df->rlf")
  y, pull = jax.vjp(lambda x, kernel: execution.product("rld,df->rlf", "bfloat16", x, kernel),
                    x.astype(jnp.bfloat16), kernel)
  dx, dkernel = pull(y)
  assert (y.dtype, dx.dtype, dkernel.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
