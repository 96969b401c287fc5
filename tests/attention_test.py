"""Attention of packed rows: equal to JAX's own in value and gradient, and texts of a row do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax.models import attention

R, L, H, K = 3, 16, 2, 8
# Two texts and padding; one text; three texts without padding.
SEGMENTS = np.array([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16, [1] * 4 + [2] * 4 + [3] * 8], np.int32)


def drawn(seed: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), (R, L, H, K), jnp.float32)


def reference(q, k, v):
  together = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
  return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(together)[:, None])


def test_value_and_gradients_equal_those_of_jax():
  qkv, cotangent = [drawn(seed) for seed in range(3)], drawn(3)
  with jax.default_matmul_precision("float32"):
    ours, pull = jax.vjp(lambda q, k, v: attention.attend(q, k, v, SEGMENTS), *qkv)
    theirs, their_pull = jax.vjp(reference, *qkv)
  np.testing.assert_allclose(ours, theirs, atol=2e-6)
  for found, expected in zip(pull(cotangent), their_pull(cotangent), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_another_text_of_the_row_changes_nothing():
  q, k, v = map(drawn, range(3))
  out = attention.attend(q, k, v, SEGMENTS)
  # The second text of the first row changes; the control is that it sees itself.
  changed = attention.attend(q, k.at[0, 5:12].add(1.0), v.at[0, 5:12].add(1.0), SEGMENTS)
  np.testing.assert_array_equal(changed[0, :5], out[0, :5])
  assert float(jnp.abs(changed[0, 5:12] - out[0, 5:12]).max()) > 0.1


def test_large_logits_overflow_nothing():
  q, k, v = map(drawn, range(3))
  out, pull = jax.vjp(lambda q: attention.attend(q, 100 * k, v, SEGMENTS), 100 * q)
  assert np.isfinite(out).all() and np.isfinite(pull(out)[0]).all()
  np.testing.assert_allclose(out, reference(100 * q, 100 * k, v), atol=1e-4)


@pytest.mark.parametrize("short", ["bfloat16", "float16"])
def test_short_operands_give_short_results_near_the_exact_ones(short):
  qkv = [drawn(seed).astype(short) for seed in range(3)]
  out, pull = jax.vjp(lambda q, k, v: attention.attend(q, k, v, SEGMENTS), *qkv)
  exact, exact_pull = jax.vjp(reference, *(x.astype(jnp.float32) for x in qkv))
  assert out.dtype == short and {gradient.dtype.name for gradient in pull(out)} == {short}
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
  for found, expected in zip(pull(out), exact_pull(exact), strict=True):
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.08)
