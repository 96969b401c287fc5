"""Norms and gates: values and gradients of the plain forms, and nothing long kept for the gradient of short states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax.models import layers

TOKENS, WIDTH, EPS = 12, 64, 1e-12


def drawn(seed: int, *shape: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


X, DY = 3 * drawn(0, 3, 4, WIDTH) + 0.5, drawn(1, 3, 4, WIDTH)
SCALE, BIAS = 1 + 0.2 * drawn(2, WIDTH), 0.1 * drawn(3, WIDTH)


def norm(x, scale, bias=None):
  return layers.normalised(x, scale, EPS, bias)


def plain_norm(x, scale, bias=None):
  x32 = x.astype(jnp.float32)
  centred = x32 - x32.mean(-1, keepdims=True)
  y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
  return (y * layers.lift(scale, y) + (0 if bias is None else layers.lift(bias, y))).astype(x.dtype)


def rms_norm(x, scale):
  return layers.rms_normalised(x, scale, EPS)


def plain_rms_norm(x, scale):
  x32 = x.astype(jnp.float32)
  y = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + EPS)
  return (y * layers.lift(scale, y)).astype(x.dtype)


def plain_gelu(x):
  return jax.nn.gelu(x, approximate=False)


def plain_gelu_by_tanh(x):
  x32 = x.astype(jnp.float32)
  share = 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x32 + 0.044715 * x32**3)))
  return (x32 * share).astype(x.dtype)


# Ours, plain, and what they read.
PAIRS = {
  "norm": (norm, plain_norm, (X, SCALE, BIAS)),
  "norm without a bias": (norm, plain_norm, (X, SCALE)),
  "norm of the root mean square": (rms_norm, plain_rms_norm, (X, SCALE)),
  "gelu": (layers.gelu, plain_gelu, (X,)),
  "silu": (layers.silu, jax.nn.silu, (X,)),
  "gelu by tanh": (layers.gelu_by_tanh, plain_gelu_by_tanh, (X,)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_value_and_gradients_are_those_of_the_plain_form(name):
  ours, plain, read = PAIRS[name]
  value, pull = jax.vjp(ours, *read)
  expected, plain_pull = jax.vjp(plain, *read)
  np.testing.assert_allclose(value, expected, atol=1e-6)
  for found, gradient in zip(pull(DY), plain_pull(DY), strict=True):
    np.testing.assert_allclose(found, gradient, atol=1e-5)


def test_every_term_of_the_gradients_is_seen_at_that_tolerance():
  dx = jax.vjp(norm, X, SCALE, BIAS)[1](DY)[0]
  scaled = DY * layers.lift(SCALE, DY)
  # A norm that took its mean, or its variance, for a constant.
  inverse = jax.lax.rsqrt(X.var(-1, keepdims=True) + EPS)
  y = (X - X.mean(-1, keepdims=True)) * inverse
  for wrong in (scaled - y * (scaled * y).mean(-1, keepdims=True), scaled - scaled.mean(-1, keepdims=True)):
    assert float(jnp.abs(wrong * inverse - dx).max()) > 1e-3
  # A norm of the root mean square that took it for a constant, or that took the mean off.
  inverse = jax.lax.rsqrt(jnp.square(X).mean(-1, keepdims=True) + EPS)
  dx = jax.vjp(rms_norm, X, SCALE)[1](DY)[0]
  for wrong in (scaled * inverse, jax.vjp(norm, X, SCALE)[1](DY)[0]):
    assert float(jnp.abs(wrong - dx).max()) > 1e-3
  # One GELU for the other.
  assert float(jnp.abs(layers.gelu(X) - layers.gelu_by_tanh(X)).max()) > 1e-4
  # A GELU whose slope is its value's share alone.
  slope = layers.gelu(X) / X
  assert float(jnp.abs(slope * DY - jax.vjp(layers.gelu, X)[1](DY)[0]).max()) > 1e-3


@pytest.mark.parametrize("name", PAIRS)
def test_short_states_are_computed_long(name):
  """Near the exact ones as far as the last rounding goes: 8 bits."""
  ours, plain, read = PAIRS[name]
  short = (read[0].astype(jnp.bfloat16), *read[1:])
  exact, exact_pull = jax.vjp(plain, short[0].astype(jnp.float32), *read[1:])
  value, pull = jax.vjp(ours, *short)
  dy = DY.astype(jnp.bfloat16)
  gradients = pull(dy)
  assert [value.dtype, *(one.dtype for one in gradients)] == [jnp.bfloat16, *(one.dtype for one in short)]
  for found, expected in zip((value, *gradients), (exact, *exact_pull(dy.astype(jnp.float32))), strict=True):
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=1e-5, rtol=2**-8)


def long_and_wide(form, read) -> int:
  """How many float32 arrays of a number for each entry of the state a gradient keeps."""
  _, pull = jax.vjp(form, read[0].astype(jnp.bfloat16), *read[1:])
  return sum(kept.dtype == jnp.float32 and kept.size >= TOKENS * WIDTH for kept in jax.tree.leaves(pull))


def test_nothing_long_is_kept_of_short_states():
  assert all(long_and_wide(ours, read) == 0 for ours, _, read in PAIRS.values())
  assert long_and_wide(plain_norm, PAIRS["norm"][2]) > 0


@pytest.mark.parametrize("gate", [layers.gelu, layers.gelu_by_tanh, layers.silu])
def test_far_from_zero_a_gate_is_its_input_or_nothing_and_finite(gate):
  far = jnp.array([-1e4, -120.0, 0.0, 40.0, 1e4])
  np.testing.assert_array_equal(gate(far), jnp.maximum(far, 0))
  np.testing.assert_allclose(jax.vjp(gate, far)[1](jnp.ones(5))[0], [0, 0, 0.5, 1, 1], atol=1e-30)
