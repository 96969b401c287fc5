"""Costs of programs that have not run: products by hand, bytes by XLA's own text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from idistill_jax import config, costs, sharding
from idistill_jax.data import pack
from idistill_jax.models import attention

A, B = jnp.ones((3, 5)), jnp.ones((5, 5))
PRODUCT = 2 * 3 * 5 * 5


def counted(function, *arguments) -> float:
  return costs.products(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_are_counted_in_every_turn_of_loops_and_in_what_is_called():
  loop = lambda a, b: jax.lax.scan(lambda a, _: (jnp.tanh(a @ b), None), a, length=7)[0]
  assert counted(lambda a, b: jnp.exp(a) + 1, A, B) == 0
  assert counted(lambda a, b: a @ b, A, B) == PRODUCT
  assert counted(jax.jit(loop), A, B) == 7 * PRODUCT
  assert counted(lambda a, b: jax.lax.scan(lambda a, _: (loop(a, b), None), a, length=2)[0], A, B) == 14 * PRODUCT
  # Forward once, with a product for each of the gradients; and forward again where nothing is kept.
  total = lambda a, b: loop(a, b).sum()
  assert counted(jax.grad(total, (0, 1)), A, B) == 3 * 7 * PRODUCT
  assert counted(jax.grad(jax.checkpoint(total), (0, 1)), A, B) > 3 * 7 * PRODUCT


def test_products_of_each_device_are_counted_for_all():
  mesh, rows = sharding.make_mesh(config.Mesh()), PartitionSpec(sharding.BATCH)
  a = jnp.ones((3 * mesh.size, 5))
  each = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)
  assert counted(each, a, B) == mesh.size * PRODUCT == counted(lambda a, b: a @ b, a, B)


@pytest.mark.parametrize("gradient", [False, True])
def test_fused_attention_is_counted_as_the_plain_one_which_keeps_no_weights_either(gradient):
  rows, length, heads, width = 2, 16, 3, 8
  segments = np.ones((rows, length), np.int32)
  packed = pack.Rows(token_ids=segments, positions=segments, halves=segments, segment_ids=segments, text_ids=segments,
                     starts=np.zeros(1, np.int32))
  x = jnp.ones((rows, length, heads, width))
  plain = lambda q, k, v: attention.attend(q, k, v, packed).sum()
  fused = costs.attention((rows, length), heads, width, forward=1, backward=int(gradient))
  assert fused == counted(jax.grad(plain, (0, 1, 2)) if gradient else plain, x, x, x)
  assert fused == (14 if gradient else 4) * rows * length**2 * heads * width


PROGRAM = """
%fused_add (p: f32[8,4]) -> f32[8,4] {
  ROOT %double = f32[8,4]{1,0} add(%p, %p)
}

ENTRY %main (x: bf16[8,4], w: f32[4,4]) -> f32[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %w = f32[4,4]{1,0} parameter(1)
  %all = (bf16[8,4]{1,0}, f32[4,4]{1,0}) tuple(%x, %w)
  %turned = (bf16[8,4]{1,0}, f32[4,4]{1,0}) while(%all), condition=%less, body=%turn
  %y = bf16[8,4]{1,0} get-tuple-element(%turned), index=0
  %gemm = (f32[8,4]{1,0}, s8[4096]{0}) custom-call(%y, %w), custom_call_target="__cublas$gemm"
  %product = f32[8,4]{1,0} get-tuple-element(%gemm), index=0
  ROOT %fusion = f32[8,4]{1,0} fusion(%product), kind=kLoop, calls=%fused_add
}
"""


def test_bytes_are_those_that_operations_read_and_write_one_after_the_other():
  y, w, product = 8 * 4 * 2, 4 * 4 * 4, 8 * 4 * 4
  assert costs._of_operations(PROGRAM) == (y + w + product) + (product + product)


SHARDED = """HloModule jit_step

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %all-reduce.1 = f32[8]{0} all-reduce(%p), replica_groups={}
  ROOT %add.1 = f32[8]{0} add(%p, %all-reduce.1)
}

ENTRY %main (a: f32[8], b: f32[8]) -> f32[64] {
  %a = f32[8]{0} parameter(0)
  %b = f32[8]{0} parameter(1)
  %all-gather-start.2 = (f32[8]{0}, f32[64]{0}) all-gather-start(%a), dimensions={0}
  %all-gather-start.3 = (f32[8]{0}, f32[64]{0}) all-gather-start(%b), dimensions={0}
  %all-gather-done.2 = f32[64]{0} all-gather-done(%all-gather-start.2)
  %fusion.4 = f32[64]{0} fusion(%all-gather-done.2), kind=kLoop, calls=%f
  %all-gather-done.3 = f32[64]{0} all-gather-done((f32[8]{0}, f32[64]{0}) %all-gather-start.3)
  ROOT %fusion.5 = f32[64]{0} fusion(%fusion.4, %all-gather-done.3), kind=kLoop, calls=%g
}
"""


def test_collectives_within_which_something_is_computed_are_told_from_those_that_are_waited_for():
  assert costs.collectives(SHARDED) == (3, 1)
  assert costs.collectives(SHARDED.replace("%fusion.4 = f32[64]{0} fusion", "%fusion.4 = f32[64]{0} bitcast")) == (3, 0)
