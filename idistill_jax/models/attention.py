"""Attention within the texts of packed rows: one plain form, and those that an accelerator has a kernel for.

All have the signature of `attend`: (q, k, v [R, L, H, K], segments [R, L], bias [H, L, L] or None) -> [R, L, H, K].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec

from idistill_jax import sharding

Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]

# Added to the score of a pair of tokens of two texts; finite, so that a row of nothing but padding has no NaN.
APART = -1e9


@jax.custom_vjp
def attend(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
           bias_HxLxL: jax.Array | None = None) -> jax.Array:
  """softmax(q k' / sqrt(K) + bias) v over tokens of equal segment [R, L, H, K], in the type of q; sums in float32.

  Why not `jax.nn.dot_product_attention`, and why a gradient of its own: heads in front of tokens, and a softmax that
  divides after the second product, run several times as fast on CPU (see BUILD.md, performance), and recomputing the
  weights costs less than keeping them.
  """
  return _forward(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL)[0]


def _forward(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
             bias_HxLxL: jax.Array | None) -> tuple[jax.Array, Any]:
  q, k, v = _heads_first(q_RxLxHxK), _heads_first(k_RxLxHxK), _heads_first(v_RxLxHxK)
  weights, total = _weights(q, k, segments_RxL, bias_HxLxL)
  mixed_RxHxLxK = _product(weights.astype(v.dtype), v) / total
  mixed = _heads_first(mixed_RxHxLxK).astype(q_RxLxHxK.dtype)
  return mixed, (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL, mixed)


def _backward(saved: Any, dmixed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, None, jax.Array | None]:
  *qkv, segments, bias, mixed = saved
  q, k, v, mixed, dmixed = map(_heads_first, (*qkv, mixed, dmixed))
  short, scale = q.dtype, q.shape[-1] ** -0.5
  weights, total = _weights(q, k, segments, bias)
  weights = weights / total
  carried = (dmixed.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1, keepdims=True)
  dlogits = weights * (_product(dmixed, _transposed(v)) - carried)
  dbias = None if bias is None else dlogits.sum(0).astype(bias.dtype)
  dlogits = dlogits.astype(short)
  dq = _product(dlogits, k) * scale
  dk = _product(_transposed(dlogits), q) * scale
  dv = _product(_transposed(weights.astype(short)), dmixed)
  dq, dk, dv = (_heads_first(gradient).astype(short) for gradient in (dq, dk, dv))
  return dq, dk, dv, None, dbias


attend.defvjp(_forward, _backward)


def _weights(q_RxHxLxK: jax.Array, k_RxHxLxK: jax.Array, segments_RxL: jax.Array,
             bias_HxLxL: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """exp(logits - their maximum) [R, H, L, L] and its sums [R, H, L, 1], float32."""
  logits = _product(q_RxHxLxK * q_RxHxLxK.shape[-1] ** -0.5, _transposed(k_RxHxLxK))
  # Added, not chosen by `where`: XLA compiles that to faster code on CPU.
  apart_RxLxL = jnp.where(segments_RxL[:, :, None] == segments_RxL[:, None, :], 0.0, APART)
  logits = logits + apart_RxLxL[:, None]
  if bias_HxLxL is not None:
    logits = logits + bias_HxLxL[None].astype(jnp.float32)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  return weights, weights.sum(-1, keepdims=True)


def _heads_first(x: jax.Array) -> jax.Array:
  """[R, L, H, K] -> [R, H, L, K], and back."""
  return jnp.swapaxes(x, 1, 2)


def _transposed(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)


_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


# Rows of other lengths are no whole number of the kernel's blocks.
SPLASH_BLOCK = 128


def splash(mesh: jax.sharding.Mesh, *, interpret: bool = False) -> Attend:
  """The TPU's splash attention: reads segment ids, never holds the weights.  Rows that are no multiple of SPLASH_BLOCK
  tokens, or have a bias, are read by `attend`.  interpret: run the kernel on a CPU, to hold it against the plain form.
  """

  def attend_splash(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
                    bias_HxLxL: jax.Array | None = None) -> jax.Array:
    if bias_HxLxL is not None:
      _say_plain("splash attention")
    if bias_HxLxL is not None or q_RxLxHxK.shape[1] % SPLASH_BLOCK:
      return attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL)
    return _on_each_device(functools.partial(_splash, interpret=interpret), mesh)(
      q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL)

  return attend_splash


def cudnn(mesh: jax.sharding.Mesh) -> Attend:
  """cuDNN's fused attention, texts kept apart by a mask; for 16-bit types, which alone it takes, and without a bias."""

  def attend_cudnn(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
                   bias_HxLxL: jax.Array | None = None) -> jax.Array:
    if bias_HxLxL is not None:
      _say_plain("cuDNN's attention")
      return attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL)
    return _on_each_device(_cudnn, mesh)(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL)

  return attend_cudnn


@functools.cache
def _say_plain(kernel: str) -> None:
  """Said once."""
  logging.info("%s takes no bias of distances here: this encoder attends by XLA's own products", kernel)


def _on_each_device(kernel: Callable[..., jax.Array], mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
  """XLA cannot cut a kernel over the mesh by itself: each device attends within its own rows and heads."""
  rows, by_head = PartitionSpec(sharding.BATCH), PartitionSpec(sharding.BATCH, None, sharding.RULES["heads"], None)
  return jax.shard_map(kernel, mesh=mesh, check_vma=False, in_specs=(by_head, by_head, by_head, rows),
                       out_specs=by_head)


def _splash(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array, *,
            interpret: bool) -> jax.Array:
  # Imported where it is used: a kernel of another platform is no part of every start.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  _, length, heads, width = q_RxLxHxK.shape
  everything = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((length, length))] * heads)
  kernel = splash_attention_kernel.make_splash_mha(everything, head_shards=1, q_seq_shards=1, interpret=interpret)
  q, k, v = _heads_first(q_RxLxHxK) * width ** -0.5, _heads_first(k_RxLxHxK), _heads_first(v_RxLxHxK)
  segments = splash_attention_kernel.SegmentIds(q=segments_RxL, kv=segments_RxL)
  return _heads_first(jax.vmap(kernel)(q, k, v, segment_ids=segments)).astype(q_RxLxHxK.dtype)


def _cudnn(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array) -> jax.Array:
  together_RxLxL = segments_RxL[:, :, None] == segments_RxL[:, None, :]
  return jax.nn.dot_product_attention(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, mask=together_RxLxL[:, None],
                                      implementation="cudnn")
