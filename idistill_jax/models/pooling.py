"""Token states of packed rows -> one vector a text."""

from typing import Literal

import jax
import jax.numpy as jnp

from idistill_jax.data import pack

Pooling = Literal["mean", "cls"]


def mean(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """Mean of each text's token states [T, D], in float32."""
  texts = rows.starts.shape[0]
  states_TxD = states_RxLxD.astype(jnp.float32).reshape(-1, states_RxLxD.shape[-1])
  owners = rows.text_ids.reshape(-1)
  sums_TxD = jax.ops.segment_sum(states_TxD, owners, num_segments=texts + 1)[:texts]
  counts_T = jax.ops.segment_sum(jnp.ones_like(owners, jnp.float32), owners, num_segments=texts + 1)[:texts]
  return sums_TxD / jnp.maximum(counts_T, 1.0)[:, None]


def first(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """State of each text's first token [T, D], in float32."""
  return states_RxLxD.reshape(-1, states_RxLxD.shape[-1])[rows.starts].astype(jnp.float32)


POOLINGS = {"mean": mean, "cls": first}
