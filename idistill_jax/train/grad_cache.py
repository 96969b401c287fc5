"""Batches larger than memory, with exact gradients.

In-batch losses need every vector of a batch at once, but not every activation.  Rows are encoded in passes; each pass
keeps nothing but its vectors, and is run again when its gradient is due: GradCache (Gao, Zhang, Han, Callan 2021,
arXiv 2101.06983), which in JAX is a scan over rematerialised passes.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from idistill_jax.data import pack

Encode = Callable[[Any, pack.Rows], jax.Array]


def in_passes(encode: Encode, passes: int) -> Encode:
  """`encode` (params, rows) -> [T, ...] over 1/passes of the rows at a time; the same values and gradients.

  Rows must divide into the passes.  Pass c takes rows c, c + passes, ...: each device keeps the rows that it has.
  """
  if passes == 1:
    return encode

  def apply(params: Any, rows: pack.Rows) -> jax.Array:
    row_tokens = rows.token_ids.shape[1]
    row_of_T, column_of_T = jnp.divmod(rows.starts, row_tokens)

    def one(total: jax.Array, part: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
      number, arrays = part
      local = row_of_T // passes * row_tokens + column_of_T
      out = encode(params, pack.Rows(**arrays, starts=local))
      here_T = row_of_T % passes == number
      return total + jnp.where(here_T.reshape(-1, *(1,) * (out.ndim - 1)), out, 0), None

    of_rows = (f.name for f in dataclasses.fields(rows) if f.name not in ("starts", "stairs"))
    by_row: dict[str, Any] = {name: _split(getattr(rows, name), passes) for name in of_rows}
    first = pack.Rows(**{name: array[0] for name, array in by_row.items()}, starts=rows.starts)
    empty = jnp.zeros_like(jax.eval_shape(encode, params, first))
    return jax.lax.scan(jax.checkpoint(one), empty, (jnp.arange(passes), by_row))[0]

  return apply


def _split(array_RxL: Any, passes: int) -> jax.Array:
  """[R, L] -> [passes, R / passes, L]."""
  rows, width = array_RxL.shape
  return jnp.moveaxis(jnp.reshape(array_RxL, (rows // passes, passes, width)), 1, 0)
