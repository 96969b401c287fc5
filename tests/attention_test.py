"""Attention of packed rows: equal to JAX's own in value and gradient, and texts of a row do not see each other."""

import dataclasses
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from idistill_jax import config, sharding
from idistill_jax.data import pack
from idistill_jax.models import attention, kernels

R, L, H, K = 3, 16, 2, 8
# Two texts and padding; one text; three texts without padding.
SEGMENTS = np.array([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16, [1] * 4 + [2] * 4 + [3] * 8], np.int32)


def packed(segments: np.ndarray, stairs: pack.Stairs = ()) -> pack.Rows:
  """Rows of texts that lie as the segments say; of tokens nothing is read here."""
  text_ids, positions, starts = np.zeros_like(segments), np.zeros_like(segments), []
  for row, segment in ((row, one) for row, texts in enumerate(segments) for one in range(1, texts.max() + 1)):
    columns = np.flatnonzero(segments[row] == segment)
    text_ids[row, columns], positions[row, columns] = len(starts), np.arange(len(columns))
    starts.append(row * segments.shape[1] + columns[0])
  # And an absent text, as short lists have them.
  text_ids[segments == 0] = len(starts) + 1
  return pack.Rows(token_ids=segments, positions=positions, halves=segments, segment_ids=segments, text_ids=text_ids,
                   starts=np.array([*starts, 0], np.int32), stairs=stairs)


ROWS = packed(SEGMENTS)
# Lengths are 16, 8, 7, 5, 4, 4: pieces are longer than some, and the last of them begin before the end of the rows.
BY_TEXT = packed(SEGMENTS, ((2, 16), (1, 8), (4, 6)))
REAL = (SEGMENTS > 0)[:, :, None, None]


def drawn(seed: int) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), (R, L, H, K), jnp.float32)


CAUSAL, NEAR, ALL = attention.Window(None, 0), attention.Window(3, 3), attention.Window(L, L)


def reference(q, k, v, window=ALL):
  behind = np.arange(L) - np.arange(L)[:, None]
  seen = (behind <= int(window.behind)) & (-behind <= (L if window.before is None else int(window.before)))
  together = (SEGMENTS[:, :, None] == SEGMENTS[:, None, :]) & seen
  return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(together)[:, None])


def vjp(fn: Callable[..., jax.Array], *operands):
  """As jax.vjp, each way as one program: of operations by themselves, each would be compiled."""
  value, pull = jax.jit(lambda *operands: jax.vjp(fn, *operands))(*operands)
  return value, jax.jit(pull)


@pytest.mark.parametrize("window", [None, attention.Window(0, 0), jax.tree.map(jnp.int32, NEAR),
                                    attention.Window(5, 2), CAUSAL])
def test_value_and_gradients_equal_those_of_jax(window):
  qkv, cotangent = [drawn(seed) for seed in range(3)], drawn(3)
  with jax.default_matmul_precision("float32"):
    ours, pull = vjp(lambda q, k, v: attention.attend(q, k, v, ROWS, None, window), *qkv)
    theirs, their_pull = vjp(lambda q, k, v: reference(q, k, v, window or ALL), *qkv)
  np.testing.assert_allclose(ours, theirs, atol=2e-6)
  for found, expected in zip(pull(cotangent), their_pull(cotangent), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("rows", [ROWS, BY_TEXT], ids=["by row", "by text"])
@pytest.mark.parametrize("part", [7, 4, 1])
def test_keys_in_parts_give_what_they_give_together(rows, part, monkeypatch):
  """The last part is shorter, and some hold nothing that a token sees."""
  operands = [*(drawn(seed) for seed in range(3)), jax.random.normal(jax.random.key(4), (H, L, L), jnp.float32)]
  parts, weights = [], attention._weights
  monkeypatch.setattr(attention, "_weights", lambda q, k, *rest: (parts.append(k.shape[2]), weights(q, k, *rest))[1])
  # Traced anew each time.
  attend = lambda window: jax.jit(lambda q, k, v, bias: attention.attend(q, k, v, rows, bias, window))(*operands)
  for window in (None, NEAR):
    with jax.default_matmul_precision("float32"):
      whole = attend(window)
      with monkeypatch.context() as patched:
        patched.setattr(attention, "_WHOLE", part)
        patched.setattr(attention, "_PART", part)
        assert max(parts) > part
        parts.clear()
        found = attend(window)
    assert max(parts) <= part and len(parts) > 1
    np.testing.assert_allclose(np.where(REAL, found, 0), np.where(REAL, whole, 0), atol=2e-6)


def test_a_bias_of_distances_is_added_to_the_logits_and_has_its_gradient():
  bias = jax.random.normal(jax.random.key(4), (H, L, L), jnp.float32)
  operands, cotangent = [*(drawn(seed) for seed in range(3)), bias], drawn(3)

  def plainly(q, k, v, bias):
    together = SEGMENTS[:, :, None] == SEGMENTS[:, None, :]
    return jax.nn.dot_product_attention(q, k, v, bias=bias[None], mask=jnp.asarray(together)[:, None])

  with jax.default_matmul_precision("float32"):
    ours, pull = vjp(lambda q, k, v, bias: attention.attend(q, k, v, ROWS, bias), *operands)
    theirs, their_pull = vjp(plainly, *operands)
  np.testing.assert_allclose(ours, theirs, atol=2e-6)
  for found, expected in zip(pull(cotangent), their_pull(cotangent), strict=True):
    np.testing.assert_allclose(found, expected, atol=2e-5)
  assert float(jnp.abs(ours - attention.attend(*operands[:3], ROWS)).max()) > 0.1


@pytest.mark.parametrize("biased, window", [(False, None), (True, None), (False, NEAR), (False, CAUSAL)])
def test_text_by_text_equals_whole_rows(biased, window):
  # Of distances, as all biases are: a text's tokens are as far apart in its piece as in its row.
  of_distance = jax.random.normal(jax.random.key(4), (H, 2 * L), jnp.float32)
  bias = of_distance[:, L + np.arange(L)[:, None] - np.arange(L)[None]] if biased else None
  qkv, cotangent = [drawn(seed) for seed in range(3)], drawn(3) * REAL
  with jax.default_matmul_precision("float32"):
    whole, whole_pull = vjp(
      lambda *operands: attention.attend(*operands[:3], ROWS, *operands[3:], window), *qkv, bias)
    found, pull = vjp(
      lambda *operands: attention.attend(*operands[:3], BY_TEXT, *operands[3:], window), *qkv, bias)
  np.testing.assert_allclose(found, whole * REAL, atol=2e-6)
  for gradient, expected in zip(pull(cotangent)[:3], whole_pull(cotangent)[:3], strict=True):
    np.testing.assert_allclose(gradient, expected * REAL, atol=2e-5)
  if biased:
    # A piece lies elsewhere in the bias than its text in the row: what distances get is the same.
    of = lambda pulled: jax.ops.segment_sum(pulled(cotangent)[3].reshape(H, -1).T, np.ravel(
      L + np.arange(L)[:, None] - np.arange(L)[None]), num_segments=2 * L)
    np.testing.assert_allclose(of(pull), of(whole_pull), atol=2e-5)
  # Control: a text longer than its stair is not read whole.
  low = dataclasses.replace(BY_TEXT, stairs=((1, 16), (1, 7), (4, 7)))
  assert float(jnp.abs(attention.attend(*qkv, low, bias, window) - found).max()) > 0.01


def test_a_kernel_that_takes_no_bias_leaves_it_to_the_plain_form_and_says_so_once(caplog):
  caplog.set_level("INFO", logger="absl")
  mesh, bias = sharding.make_mesh(config.Mesh()), jax.random.normal(jax.random.key(4), (H, L, L), jnp.float32)
  kernels.say_plain.cache_clear()
  for kernel in (kernels.splash(mesh), kernels.cudnn(mesh)) * 2:
    np.testing.assert_array_equal(kernel(*map(drawn, range(3)), ROWS, bias),
                                  attention.attend(*map(drawn, range(3)), ROWS, bias))
  # Nor a window that layers differ in, whose sides no kernel is compiled for.
  window = jax.tree.map(jnp.int32, NEAR)
  np.testing.assert_array_equal(kernels.splash(mesh)(*map(drawn, range(3)), ROWS, None, window),
                                attention.attend(*map(drawn, range(3)), ROWS, None, window))
  said = [one.getMessage().partition(" takes no distances")[0] for one in caplog.records]
  assert said == ["splash attention", "cuDNN's attention"]


@pytest.mark.parametrize("capability, width, fused", [
  (8, 128, True), (8, 256, False), (9, 256, True), (9, 264, False), (9, 12, False)])
def test_heads_that_the_gpu_kernel_is_not_made_for_are_attended_plainly_which_is_said(
    capability, width, fused, monkeypatch, caplog):
  caplog.set_level("INFO", logger="absl")
  kernels.say_plain.cache_clear()
  monkeypatch.setattr(kernels, "capability", lambda device: capability)
  monkeypatch.setattr(kernels, "_cudnn", lambda q, k, v, together: jnp.zeros_like(q))
  x = jax.random.normal(jax.random.key(0), (R, L, H, width), jnp.bfloat16)
  found = kernels.cudnn(sharding.make_mesh(config.Mesh(), jax.devices()[:1]))(x, x, x, ROWS)
  np.testing.assert_array_equal(found, jnp.zeros_like(x) if fused else attention.attend(x, x, x, ROWS))
  assert [one.getMessage().partition(" numbers")[0] for one in caplog.records] == (
    [] if fused else [f"cuDNN's attention takes no heads of {width}"])


def test_rows_of_an_odd_length_are_attended_plainly_on_a_gpu(monkeypatch):
  """cuDNN reads them, and has no gradient of them."""
  monkeypatch.setattr(kernels, "capability", lambda device: 9)
  monkeypatch.setattr(kernels, "_cudnn", lambda q, k, v, together: jnp.zeros_like(q))
  attend = kernels.cudnn(sharding.make_mesh(config.Mesh(), jax.devices()[:1]))
  for length, fused in ((32, True), (31, False)):
    x, texts = jax.random.normal(jax.random.key(0), (2, length, H, 8), jnp.bfloat16), np.ones((2, length), np.int32)
    plain = attention.attend(x, x, x, packed(texts))
    np.testing.assert_array_equal(attend(x, x, x, packed(texts)), jnp.zeros_like(x) if fused else plain)


def test_rows_that_the_kernel_cannot_cut_are_read_plainly_which_is_said_once(caplog):
  caplog.set_level("INFO", logger="absl")
  kernels.say_plain.cache_clear()
  kernel, qkv = kernels.splash(sharding.make_mesh(config.Mesh())), [drawn(seed) for seed in range(3)]
  for _ in range(2):
    np.testing.assert_array_equal(kernel(*qkv, ROWS), attention.attend(*qkv, ROWS))
  assert [one.getMessage().partition(", but")[0] for one in caplog.records] == [
    f"splash attention takes no rows of {L} tokens"]


def test_another_text_of_the_row_changes_nothing():
  q, k, v = map(drawn, range(3))
  out = attention.attend(q, k, v, ROWS)
  # The second text of the first row changes; the control is that it sees itself.
  changed = attention.attend(q, k.at[0, 5:12].add(1.0), v.at[0, 5:12].add(1.0), ROWS)
  np.testing.assert_array_equal(changed[0, :5], out[0, :5])
  assert float(jnp.abs(changed[0, 5:12] - out[0, 5:12]).max()) > 0.1


def test_large_logits_overflow_nothing():
  q, k, v = map(drawn, range(3))
  out, pull = vjp(lambda q: attention.attend(q, 100 * k, v, ROWS), 100 * q)
  assert np.isfinite(out).all() and np.isfinite(pull(out)[0]).all()
  np.testing.assert_allclose(out, reference(100 * q, 100 * k, v), atol=1e-4)


@pytest.mark.parametrize("short", ["bfloat16", "float16"])
def test_short_operands_give_short_results_near_the_exact_ones(short):
  qkv = [drawn(seed).astype(short) for seed in range(3)]
  out, pull = vjp(lambda q, k, v: attention.attend(q, k, v, ROWS), *qkv)
  exact, exact_pull = vjp(reference, *(x.astype(jnp.float32) for x in qkv))
  assert out.dtype == short and {gradient.dtype.name for gradient in pull(out)} == {short}
  np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)
  for found, expected in zip(pull(out), exact_pull(exact), strict=True):
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.08)


# Rows of one block, and of five, whose gradient is two kernels.
@pytest.mark.parametrize("tensor, length, width, window", [
  (1, 128, 64, None), (2, 256, 32, None), (2, 640, 32, None), (1, 128, 64, CAUSAL),
  (1, 640, 64, attention.Window(200, 9))])
def test_the_tpu_kernel_equals_the_plain_form_on_a_mesh(tensor, length, width, window):
  # Two rows of two texts and padding, two heads, on 8 devices; the kernel runs interpreted.
  mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=tensor, data=None))
  rows = sharding.batch_shards(mesh)
  qkv = [jax.random.normal(jax.random.key(seed), (rows, length, 2, width), jnp.float32) for seed in range(3)]
  texts = packed(np.repeat([[1] * 50 + [2] * (length - 68) + [0] * 18], rows, 0).astype(np.int32))
  cotangent = jax.random.normal(jax.random.key(4), qkv[0].shape) * (texts.segment_ids > 0)[:, :, None, None]
  kernel = kernels.splash(mesh, interpret=True)
  with mesh:
    found, pull = jax.vjp(jax.jit(lambda q, k, v: kernel(q, k, v, texts, None, window)), *qkv)
  expected, plain_pull = jax.vjp(lambda q, k, v: attention.attend(q, k, v, texts, None, window), *qkv)
  np.testing.assert_allclose(found[:, :-18], expected[:, :-18], atol=2e-5)
  for gradient, plain in zip(pull(cotangent), plain_pull(cotangent), strict=True):
    np.testing.assert_allclose(gradient, plain, atol=1e-4)


@pytest.mark.parametrize("width, laid", [(32, "32x128"), (64, "128x64")])
def test_the_tpu_kernel_is_given_tokens_of_narrow_heads_along_its_lanes(width, laid):
  """Of 128; a head of 32 would be padded to four times as much."""
  texts, mesh = packed(np.ones((2, 128), np.int32)), sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  of = jax.ShapeDtypeStruct((2, 128, 4, width), jnp.bfloat16)
  attend = jax.jit(lambda q, k, v: kernels.splash(mesh)(q, k, v, texts))
  lowered = attend.trace(of, of, of).lower(lowering_platforms=("tpu",)).as_text()
  (read,) = re.findall(r"@tpu_custom_call.* : \((.*)\) -> ", lowered)
  assert read.count(f"tensor<2x4x{laid}xbf16>") == 3


@pytest.mark.parametrize("window", [None, NEAR, CAUSAL])
def test_the_gpu_kernel_is_lowered_on_a_mesh_by_which_xla_could_not_cut_it(window, monkeypatch):
  """As far as it goes without a GPU: what jax asks of the device is answered for it."""
  from jax._src.cudnn import fused_attention_stablehlo

  monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)
  devices = np.array(jax.devices()).reshape(2, 2, 2)
  mesh = jax.sharding.Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  attend = kernels.cudnn(mesh)
  whole, segments = jax.ShapeDtypeStruct((8, 128, 4, 64), jnp.bfloat16), jax.ShapeDtypeStruct((8, 128), jnp.int32)
  texts = lambda segments: dataclasses.replace(packed(np.ones((8, 128), np.int32)), segment_ids=segments)
  total = lambda q, k, v, segments: attend(q, k, v, texts(segments), None, window).astype(jnp.float32).sum()
  gradients = jax.grad(total, (0, 1, 2))
  lowered = jax.jit(gradients).trace(whole, whole, whole, segments).lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaScaleBiasSoftmax" in lowered and "__cudnn$fmhaScaleBiasSoftmaxBackward" in lowered
  # A quarter of the rows and half of the heads on each device.
  assert "tensor<2x2x128x64xbf16>" in lowered or "tensor<2x128x2x64xbf16>" in lowered
