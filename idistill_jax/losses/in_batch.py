"""What a retriever step learns from, and its losses behind one call: (scores [B, M], targets) -> a scalar.

A batch holds B queries with a list of N passages each, in M slots (columns of the score matrix).  A slot
holds one passage; a passage that stands in several lists may be encoded once, with all lists pointing at its
slot, or once a list, in slots of their own.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from idistill_jax.losses import distillation, infonce, masked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RetrieverTargets:
  """The teacher's view of a batch; a pytree of arrays [B, N].

  teacher_scores: divided by the teacher's temperature already, so that lists of different teachers can stand
    in one batch: ranker score / T, or -place / T for an LLM's order.
  own_slots: int, the slot of each passage, 0 <= slot < M.
  passage_rows: int, which passage of the corpus it is; equal rows are the same passage.
  where: bool, passages that exist; the other fields may hold anything where it is False.
  list_rows: int [B, W], every passage of each list, where only some were drawn into the batch; a repeated passage
    does no harm.  None: those drawn are all.
  """

  teacher_scores: jax.Array
  own_slots: jax.Array
  passage_rows: jax.Array
  where: jax.Array
  list_rows: jax.Array | None = None


class InBatch(NamedTuple):
  """target: float32 [B, M] probabilities; where: bool [B, M], slots in the student's softmax."""

  target: jax.Array
  where: jax.Array


def in_batch_targets(
  teacher_probs: jax.Array,
  own_slots: jax.Array,
  passage_rows: jax.Array,
  *,
  slots: int,
  where: jax.Array | None = None,
  list_rows: jax.Array | None = None,
) -> InBatch:
  """Each list's distribution [B, N] spread over the slots of the batch, and which slots are its negatives.

  The target is `teacher_probs` at the own slots and zero elsewhere.  The student's softmax of a query runs
  over
    - its own slots;
    - of every other passage of the batch exactly one slot, the first that holds it: a passage that stands in
      many lists is one negative, not many.
  A passage of the own list found in another slot is no negative, and neither is a slot that no list points
  at.  Within a list passages are expected to be distinct.  Queries without a passage have neither target nor
  negatives.

  Args:
    teacher_probs, own_slots, passage_rows, where: [B, N], see RetrieverTargets.
    slots: M.

  >>> rows = jnp.array([[7, 8], [8, 9]])  # passage 8 stands in both lists
  >>> in_batch_targets(jnp.full((2, 2), 0.5), jnp.arange(4).reshape(2, 2), rows, slots=4).where.astype(int)
  Array([[1, 1, 0, 1],
         [1, 0, 1, 1]], dtype=int32)
  """
  probs_BxN, where_BxN = masked.prepare(teacher_probs, where)
  # Absent passages are sent past the end, where a scatter drops them.
  slots_BxN = jnp.where(where_BxN, own_slots, slots)
  at_BxN = (jnp.arange(slots_BxN.shape[0])[:, None], slots_BxN)
  shape_BxM = (slots_BxN.shape[0], slots)
  target_BxM = jnp.zeros(shape_BxM, jnp.float32).at[at_BxN].add(probs_BxN, mode="drop")
  own_BxM = jnp.zeros(shape_BxM, bool).at[at_BxN].set(True, mode="drop")

  filled_M = own_BxM.any(0)
  rows_M = jnp.zeros(slots, passage_rows.dtype).at[slots_BxN].set(passage_rows, mode="drop")
  same_MxM = rows_M[:, None] == rows_M[None, :]
  earlier_MxM = jnp.tri(slots, k=-1, dtype=bool) & filled_M[None, :]
  first_M = filled_M & ~(same_MxM & earlier_MxM).any(1)
  # Not as a product with `same_MxM`: with thousands of queries that takes longer than the model.
  held_BxM = ((rows_M[None, :, None] == passage_rows[:, None, :]) & where_BxN[:, None, :]).any(-1)
  if list_rows is not None:
    held_BxM = held_BxM | (rows_M[None, :, None] == list_rows[:, None, :]).any(-1)
  negative_BxM = first_M[None, :] & ~held_BxM & own_BxM.any(1, keepdims=True)
  return InBatch(target_BxM, own_BxM | negative_BxM)


def _own(scores: jax.Array, targets: RetrieverTargets) -> jax.Array:
  """Each query's scores of its own list, [B, N]."""
  return jnp.take_along_axis(scores, jnp.where(targets.where, targets.own_slots, 0), axis=-1)


def _spread(scores: jax.Array, targets: RetrieverTargets) -> InBatch:
  probs = distillation.score_distribution(targets.teacher_scores, temperature=1.0, where=targets.where)
  return in_batch_targets(
    probs, targets.own_slots, targets.passage_rows, slots=scores.shape[-1], where=targets.where,
    list_rows=targets.list_rows,
  )


def _kl_list(scores: jax.Array, targets: RetrieverTargets, *, student_temperature: float) -> jax.Array:
  return distillation.kl_list(
    _own(scores, targets),
    targets.teacher_scores,
    where=targets.where,
    teacher_temperature=1.0,
    student_temperature=student_temperature,
  )


def _kl_batch(scores: jax.Array, targets: RetrieverTargets, *, student_temperature: float) -> jax.Array:
  spread = _spread(scores, targets)
  return distillation.kl_batch(
    scores, spread.target, where=spread.where, student_temperature=student_temperature
  )


def _margin_mse(scores: jax.Array, targets: RetrieverTargets, *, student_temperature: float) -> jax.Array:
  return distillation.margin_mse(
    _own(scores, targets),
    targets.teacher_scores,
    where=targets.where,
    teacher_temperature=1.0,
    student_temperature=student_temperature,
  )


def _contrastive(scores: jax.Array, targets: RetrieverTargets, *, student_temperature: float) -> jax.Array:
  """The positive is the teacher's best; the rest of the own list are negatives like the others."""
  best = jnp.argmax(jnp.where(targets.where, targets.teacher_scores, -jnp.inf), axis=-1, keepdims=True)
  positives = jnp.take_along_axis(targets.own_slots, best, axis=-1)[:, 0]
  where = _spread(scores, targets).where
  return infonce.contrastive(scores, positives, where=where, student_temperature=student_temperature)


# config.Distillation.loss -> f(scores [B, M], targets, *, student_temperature).
DISTILLATION: dict[str, Callable[..., jax.Array]] = {
  "kl_list": _kl_list,
  "kl_batch": _kl_batch,
  "margin_mse": _margin_mse,
  "contrastive": _contrastive,
}
