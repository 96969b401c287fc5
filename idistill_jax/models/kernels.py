"""Attention by the kernels that accelerators have for it; what a kernel cannot do, `attention.attend` does."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import PartitionSpec

from idistill_jax import sharding
from idistill_jax.data import pack
from idistill_jax.models import attention

# Rows of other lengths are no whole number of the kernel's blocks.
SPLASH_BLOCK = 128
# Of the TPU's kernel, in tokens: larger ones have fewer turns, and weights of 1 MB each in the chip's own memory.
LARGEST_BLOCK = 512
# Heads so wide, and narrower ones, lie along tokens there.
NARROW_HEAD = 32


def splash(mesh: jax.sharding.Mesh, *, interpret: bool = False) -> attention.Attend:
  """The TPU's splash attention: reads segment ids, never holds the weights; in rows of multiples of SPLASH_BLOCK
  tokens, without a bias, or a window that layers differ in.  interpret: run the kernel on a CPU, to compare it with the
  plain form."""

  def attend_splash(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
                    bias_HxLxL: jax.Array | None = None, window: attention.Window | None = None) -> jax.Array:
    if bias_HxLxL is not None or any(isinstance(side, jax.Array) for side in window or ()):
      say_plain("splash attention takes no distances here")
    elif q_RxLxHxK.shape[1] % SPLASH_BLOCK:
      say_plain(f"splash attention takes no rows of {q_RxLxHxK.shape[1]} tokens, but of multiples of {SPLASH_BLOCK}")
    else:
      return _on_each_device(functools.partial(_splash, window=window, interpret=interpret), mesh)(
        q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, rows.segment_ids)
    return attention.attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, rows, bias_HxLxL, window)

  return attend_splash


def capability(device: Any) -> int:
  """First number of the compute capability of NVIDIA's GPUs, 8 for Ampere's and 9 for Hopper's; 0 of other devices:
  AMD's tell no number, or a word."""
  told = re.match(r"(\d+)\.\d+$", str(getattr(device, "compute_capability", "")))
  return int(told[1]) if told else 0


def cudnn(mesh: jax.sharding.Mesh) -> attention.Attend:
  """cuDNN's fused attention, tokens kept apart by a mask; for 16-bit types, which alone it takes, without a bias, and
  heads of a multiple of 8 numbers, of 128 at most before Hopper and of 256 since, and rows of an even length."""
  widest = 256 if capability(mesh.devices.flat[0]) >= 9 else 128

  def attend_cudnn(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
                   bias_HxLxL: jax.Array | None = None, window: attention.Window | None = None) -> jax.Array:
    if bias_HxLxL is not None:
      say_plain("cuDNN's attention takes no distances here")
    elif (width := q_RxLxHxK.shape[-1]) > widest or width % 8:
      say_plain(f"cuDNN's attention takes no heads of {width} numbers on this GPU")
    elif (length := q_RxLxHxK.shape[1]) % 2:
      say_plain(f"cuDNN's attention has no gradient of rows of {length} tokens, an odd number")
    else:
      together_RxLxL = attention.together(jnp.asarray(rows.segment_ids), window)
      return _on_each_device(_cudnn, mesh)(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, together_RxLxL)
    return attention.attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, rows, bias_HxLxL, window)

  return attend_cudnn


@functools.cache
def say_plain(why: str) -> None:
  """Said once."""
  logging.info("%s: this encoder attends by XLA's own products", why)


def _on_each_device(kernel: Callable[..., jax.Array], mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
  """XLA cannot cut a kernel over the mesh by itself: each device attends within its own rows and heads."""
  rows, by_head = PartitionSpec(sharding.BATCH), PartitionSpec(sharding.BATCH, None, sharding.RULES["heads"], None)
  return jax.shard_map(kernel, mesh=mesh, check_vma=False, in_specs=(by_head, by_head, by_head, rows),
                       out_specs=by_head)


def _splash(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array, *,
            window: attention.Window | None, interpret: bool) -> jax.Array:
  # Imported where it is used: a kernel of another platform is no part of every start.
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

  _, length, heads, width = q_RxLxHxK.shape
  square = (length, length)
  # mypy: the sides are constants, or the kernel is not asked.
  seen = (splash_attention_mask.FullMask(square) if window is None
          else splash_attention_mask.LocalMask(square, tuple(window), offset=0))  # type: ignore[arg-type]
  of_heads = splash_attention_mask.MultiHeadMask([seen] * heads)
  block = max(size for size in range(SPLASH_BLOCK, LARGEST_BLOCK + 1, SPLASH_BLOCK) if not length % size)
  # In one kernel, a gradient reads its operands once, but keeps a sum by the queries of each block of keys.
  in_one = block == length
  of_queries = None if in_one else block
  # Padded to the TPU's 128 lanes, a narrow head takes four times its place and more; tokens fill them.  One of 64 takes
  # twice its place, and laid along tokens more is moved around the kernel than that.
  layouts = splash_attention_kernel.QKVLayout
  lanes = layouts.SEQ_MINOR if width <= NARROW_HEAD else layouts.HEAD_DIM_MINOR
  sizes = splash_attention_kernel.BlockSizes(
    block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=of_queries, block_kv_dq=of_queries,
    use_fused_bwd_kernel=in_one, q_layout=lanes, k_layout=lanes, v_layout=lanes)
  kernel = splash_attention_kernel.make_splash_mha(of_heads, block_sizes=sizes, head_shards=1, q_seq_shards=1,
                                                   interpret=interpret)
  q, k, v = map(attention.heads_first, (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK))
  segments = splash_attention_kernel.SegmentIds(q=segments_RxL, kv=segments_RxL)
  mixed = jax.vmap(kernel)(q * width ** -0.5, k, v, segment_ids=segments)
  return attention.heads_first(mixed).astype(q_RxLxHxK.dtype)


def _cudnn(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, together_RxLxL: jax.Array) -> jax.Array:
  return jax.nn.dot_product_attention(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, mask=together_RxLxL[:, None],
                                      implementation="cudnn")
