"""Reductions over lists with absent items: what is absent reaches neither the value nor the gradient.

Absent slots are overwritten before any arithmetic, not multiplied by zero after it: `0 * inf` is NaN, and the
gradient of a `where` that comes too late is NaN as well.
"""

import jax
import jax.numpy as jnp


def prepare(scores: jax.Array, where: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """float32 scores [..., N] with zeros in absent slots, and the mask [..., N] (all present where None)."""
  if where is None:
    where = jnp.ones(scores.shape, bool)
  if where.shape != scores.shape:
    raise ValueError(f"where has shape {where.shape}, scores {scores.shape}; they must be equal")
  return jnp.where(where, scores.astype(jnp.float32), 0.0), where


def logsumexp(scores: jax.Array, where: jax.Array) -> jax.Array:
  """log of the sum of exp over present items, [..., N] -> [...]; a constant where none is."""
  absent = jnp.where(where.any(-1, keepdims=True), -jnp.inf, 0.0)
  return jax.nn.logsumexp(jnp.where(where, scores, absent), axis=-1)


def log_softmax(scores: jax.Array, where: jax.Array) -> jax.Array:
  """Log-probabilities over present items, [..., N]; 0 in absent slots."""
  return jnp.where(where, scores - logsumexp(scores, where)[..., None], 0.0)


def softmax(scores: jax.Array, where: jax.Array) -> jax.Array:
  """Probabilities over present items, [..., N]; 0 in absent slots."""
  return jnp.where(where, jnp.exp(log_softmax(scores, where)), 0.0)


def ranks(places: jax.Array, where: jax.Array) -> jax.Array:
  """How many present items stand before each item, int32 [..., N]: places without gaps."""
  before = (places[..., None, :] < places[..., :, None]) & where[..., None, :]
  return before.sum(-1, dtype=jnp.int32)


def total(values: jax.Array, where: jax.Array) -> jax.Array:
  """Sum of present values, [..., N] -> [...]."""
  return jnp.where(where, values, 0.0).sum(-1)


def mean_over_lists(values: jax.Array, where: jax.Array) -> jax.Array:
  """Mean of the values [...] of lists with a present item in where [..., N]; 0 where no list has one."""
  present = where.any(-1)
  return jnp.where(present, values, 0.0).sum() / jnp.maximum(present.sum(), 1)
