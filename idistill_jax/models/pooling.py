"""Token states of packed rows -> one vector a text."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from idistill_jax.data import pack

Pooling = Literal["mean", "cls", "last"]


def mean(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """Mean of each text's token states [T, D], in float32."""
  return _mean_by(states_RxLxD, rows.text_ids, rows.starts.shape[0])


def halves(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """Means of each pair's query half and passage half, [T, 2, D], in float32."""
  texts = rows.starts.shape[0]
  means_2TxD = _mean_by(states_RxLxD, 2 * rows.text_ids + rows.halves, 2 * texts)
  return means_2TxD.reshape(texts, 2, -1)


def _mean_by(states_RxLxD: jax.Array, groups_RxL: jax.Array | np.ndarray, count: int) -> jax.Array:
  """Mean state of each group [count, D]; tokens of groups from `count` on belong to none."""
  states_TxD = states_RxLxD.astype(jnp.float32).reshape(-1, states_RxLxD.shape[-1])
  groups = groups_RxL.reshape(-1)
  sums = jax.ops.segment_sum(states_TxD, groups, num_segments=count + 1)[:count]
  counts = jax.ops.segment_sum(jnp.ones_like(groups, jnp.float32), groups, num_segments=count + 1)[:count]
  return sums / jnp.maximum(counts, 1.0)[:, None]


def first(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """State of each text's first token [T, D], in float32."""
  return _at(states_RxLxD, jnp.asarray(rows.starts))


def last(states_RxLxD: jax.Array, rows: pack.Rows) -> jax.Array:
  """State of each text's last token [T, D], in float32: the one that has seen all others, where none sees ahead."""
  texts = rows.starts.shape[0]
  lengths_T = jnp.bincount(jnp.asarray(rows.text_ids).reshape(-1), length=texts + 1)[:texts]
  return _at(states_RxLxD, jnp.asarray(rows.starts) + jnp.maximum(lengths_T, 1) - 1)


def _at(states_RxLxD: jax.Array, places_T: jax.Array) -> jax.Array:
  return states_RxLxD.reshape(-1, states_RxLxD.shape[-1])[places_T].astype(jnp.float32)


def unit(vectors: jax.Array) -> jax.Array:
  """Vectors [..., D] at length 1.  Absent texts are zero vectors; the floor keeps their gradient finite."""
  return vectors * jax.lax.rsqrt(jnp.maximum(jnp.square(vectors).sum(-1, keepdims=True), 1e-12))


POOLINGS = {"mean": mean, "cls": first, "last": last}
