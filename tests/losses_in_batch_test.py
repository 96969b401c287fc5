"""The targets of a retriever step equal their definition; every retriever loss fits the one call."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax import losses

in_batch_targets = jax.jit(losses.in_batch_targets, static_argnames="slots")
score_distribution = jax.jit(losses.score_distribution, static_argnames="temperature")


def targets_of(rows, *, slots=None, where=None, scores=None):
  rows = np.asarray(rows)
  return losses.RetrieverTargets(
    teacher_scores=jnp.asarray(-np.arange(rows.size).reshape(rows.shape) / 3 if scores is None else scores),
    own_slots=jnp.asarray(np.arange(rows.size).reshape(rows.shape) if slots is None else slots),
    passage_rows=jnp.asarray(rows),
    where=jnp.asarray(np.ones(rows.shape, bool) if where is None else where),
  )


def spread(rows, **kwargs):
  targets = targets_of(rows, **kwargs)
  probs = score_distribution(targets.teacher_scores, temperature=1.0, where=targets.where)
  slots = max(
    int(np.max(targets.own_slots, where=np.asarray(targets.where), initial=0)) + 1, targets.where.size
  )
  return in_batch_targets(probs, targets.own_slots, targets.passage_rows, slots=slots, where=targets.where)


def test_other_lists_are_negatives():
  in_batch = spread([[10, 11], [12, 13]], scores=np.log([[0.25, 0.75], [0.5, 0.5]]))
  assert in_batch.where.all()
  np.testing.assert_allclose(in_batch.target, [[0.25, 0.75, 0, 0], [0, 0, 0.5, 0.5]], rtol=1e-6)


def test_an_own_passage_elsewhere_is_no_negative():
  in_batch = spread([[10, 11], [11, 12], [13, 14]])
  np.testing.assert_array_equal(
    in_batch.where.astype(int),
    [
      [1, 1, 0, 1, 1, 1],  # 11 in the second list's slot is my own passage
      [1, 0, 1, 1, 1, 1],
      [1, 1, 0, 1, 1, 1],  # 11 is one negative, not two
    ],
  )
  assert float(in_batch.target[0, 2]) == 0


def test_an_own_passage_that_was_not_drawn_is_no_negative():
  probs, slots, rows = np.full((2, 2), 0.5), np.arange(4).reshape(2, 2), np.array([[10, 11], [12, 13]])
  seen = in_batch_targets(probs, slots, rows, slots=4, list_rows=np.array([[10, 11, 13], [12, 13, 12]]))
  np.testing.assert_array_equal(seen.where.astype(int), [[1, 1, 1, 0], [1, 1, 1, 1]])
  np.testing.assert_array_equal(seen.target, in_batch_targets(probs, slots, rows, slots=4).target)
  # Control: without the whole list 13 counts as a negative of the first query.
  assert in_batch_targets(probs, slots, rows, slots=4).where.all()


def test_absent_passages_are_nowhere():
  where = [[True, False], [True, True], [False, False]]
  # The absent one claims a slot and a row that belong to others.
  in_batch = spread([[10, 12], [11, 12], [10, 11]], slots=[[0, 3], [2, 3], [-5, 99]], where=where)
  np.testing.assert_array_equal(
    in_batch.where.astype(int), [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
  )
  np.testing.assert_allclose(in_batch.target.sum(-1), [1, 1, 0], rtol=1e-6)
  assert not in_batch.target[:, 1].any()


def definition_of_negatives(rows, where):
  """The words of the docstring, as loops; every passage in a slot of its own."""
  size = rows.shape[1]
  admitted = np.zeros((len(rows), rows.size), bool)
  for b in range(len(rows)):
    if not where[b].any():
      continue
    own = {int(r) for r, present in zip(rows[b], where[b], strict=True) if present}
    seen = set()
    for slot in range(rows.size):
      owner, n = divmod(slot, size)
      row = int(rows[owner, n])
      if not where[owner, n]:
        continue
      if owner == b:
        admitted[b, slot] = True
      elif row not in own and row not in seen:
        seen.add(row)
        admitted[b, slot] = True
  return admitted


@pytest.mark.parametrize("seed", range(20))
def test_in_batch_targets_equal_their_definition(seed):
  rng = np.random.default_rng(seed)
  rows = np.stack([rng.permutation(8)[:4] for _ in range(4)])
  where = rng.random((4, 4)) < 0.8
  np.testing.assert_array_equal(spread(rows, where=where).where, definition_of_negatives(rows, where))


def multiplied(targets, slots):
  """The same mask, but for what a query holds: it owns some slot with the same passage, as a product."""
  queries, where = len(targets.where), np.asarray(targets.where)
  own, rows = np.zeros((queries, slots), bool), np.zeros(slots, int)
  for b, n in np.argwhere(where):
    own[b, targets.own_slots[b, n]] = True
    rows[targets.own_slots[b, n]] = targets.passage_rows[b, n]
  same, filled = rows[:, None] == rows[None, :], own.any(0)
  first = filled & ~(same & np.tri(slots, k=-1, dtype=bool) & filled).any(1)
  return own | (first & ~(own.astype(int) @ same > 0) & own.any(1, keepdims=True))


def test_mask_loss_and_gradient_equal_those_of_a_product():
  """Slots are shared, passages stand in several slots, and some are absent."""
  rng, slots = np.random.default_rng(0), 16
  of_targets = jax.jit(jax.value_and_grad(functools.partial(losses.DISTILLATION["kl_batch"], student_temperature=0.3)))
  of_mask = jax.jit(jax.value_and_grad(
    lambda scores, target, where: losses.kl_batch(scores, target, where=where, student_temperature=0.3)))
  for _ in range(20):
    own = np.stack([rng.permutation(slots)[:4] for _ in range(4)])
    targets = targets_of(rng.integers(0, 9, slots)[own], slots=own, where=rng.random((4, 4)) < 0.8)
    scores = jnp.asarray(rng.normal(size=(4, slots)), jnp.float32)
    in_batch = spread(targets.passage_rows, slots=own, where=targets.where)
    where = multiplied(targets, slots)
    np.testing.assert_array_equal(in_batch.where, where)
    for found, expected in zip(of_targets(scores, targets), of_mask(scores, in_batch.target, where), strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_nothing_is_multiplied_to_know_who_holds_what():
  """A product over the slots of 2,048 lists of 8 would be 1.1 PFLOP, more than the model's own."""
  shape = lambda dtype, *of: jax.ShapeDtypeStruct(of, dtype)
  targets = losses.RetrieverTargets(
    teacher_scores=shape(jnp.float32, 2048, 8), own_slots=shape(jnp.int32, 2048, 8),
    passage_rows=shape(jnp.int32, 2048, 8), where=shape(bool, 2048, 8), list_rows=shape(jnp.int32, 2048, 20))
  loss = functools.partial(losses.DISTILLATION["kl_batch"], student_temperature=0.3)
  lowered = jax.jit(jax.value_and_grad(loss)).trace(shape(jnp.float32, 2048, 16_384), targets).lower(
    lowering_platforms=("cuda",))
  assert "dot_general" not in lowered.as_text()


# The one call of a retriever step.


@pytest.fixture
def batch():
  """Three queries, lists of three that share passages, in slots of their own: scores [3, 9], targets."""
  rng = np.random.default_rng(1)
  rows = np.array([[0, 1, 2], [2, 3, 4], [1, 4, 5]])
  similarity = rng.normal(size=(3, 6)).astype(np.float32)
  teacher = rng.normal(size=(3, 3)).astype(np.float32)
  return similarity, rows, teacher


every_distillation = pytest.mark.parametrize("name", losses.DISTILLATION)


def test_the_step_calls_the_loss_it_names(batch):
  """Those that a function behind stands for; no two are the same."""
  similarity, rows, teacher = batch
  scores, targets = jnp.asarray(similarity[:, rows.reshape(-1)]), targets_of(rows, scores=teacher)
  step = {
    name: float(jax.jit(loss)(scores, targets, student_temperature=0.3))
    for name, loss in losses.DISTILLATION.items()
  }
  own = jnp.stack([scores[b, 3 * b : 3 * b + 3] for b in range(3)])
  in_batch = spread(rows, scores=teacher)
  temperatures = {"teacher_temperature": 1.0, "student_temperature": 0.3}
  best = jnp.arange(3) * 3 + teacher.argmax(-1)
  expected = {
    "kl_list": losses.kl_list(own, teacher, **temperatures),
    "kl_batch": losses.kl_batch(scores, in_batch.target, where=in_batch.where, student_temperature=0.3),
    "margin_mse": losses.margin_mse(own, teacher, **temperatures),
    "contrastive": losses.contrastive(scores, best, where=in_batch.where, student_temperature=0.3),
  }
  assert {name: step[name] for name in expected} == pytest.approx(
    {name: float(value) for name, value in expected.items()}, rel=1e-6)
  assert len({round(value, 5) for value in step.values()}) == len(step)


@every_distillation
def test_a_shared_slot_equals_slots_of_their_own(name, batch):
  """Encoding a passage once, or once for each list, is the same to every loss."""
  similarity, rows, teacher = batch
  loss = jax.jit(functools.partial(losses.DISTILLATION[name], student_temperature=0.3))
  apart = loss(jnp.asarray(similarity[:, rows.reshape(-1)]), targets_of(rows, scores=teacher))
  shared = loss(jnp.asarray(similarity), targets_of(rows, slots=rows, scores=teacher))
  assert float(shared) == pytest.approx(float(apart), rel=1e-6)
  if name in ("kl_batch", "contrastive"):
    # Control: rows that hide which passages are the same.
    hidden = loss(
      jnp.asarray(similarity[:, rows.reshape(-1)]), targets_of(np.arange(9).reshape(3, 3), scores=teacher)
    )
    assert float(hidden) != pytest.approx(float(apart), rel=1e-3)


@every_distillation
def test_absent_passages_and_queries_are_invisible_to_a_step(name, batch):
  similarity, rows, teacher = batch
  loss = jax.jit(jax.value_and_grad(functools.partial(losses.DISTILLATION[name], student_temperature=0.3)))
  scores = similarity[:, rows.reshape(-1)]
  value, grad = loss(jnp.asarray(scores), targets_of(rows, scores=teacher))
  # One absent passage a list, one absent query; what stands there is nonsense.
  padded = np.full((4, 13), math.nan, np.float32)
  padded[:3, :9] = scores
  where = np.zeros((4, 4), bool)
  where[:3, :3] = True
  padded_rows, padded_teacher = np.zeros((4, 4), int), np.full((4, 4), math.nan, np.float32)
  slots = np.full((4, 4), 77)
  padded_rows[:3, :3], padded_teacher[:3, :3], slots[:3, :3] = rows, teacher, np.arange(9).reshape(3, 3)
  padded_value, padded_grad = loss(
    jnp.asarray(padded), targets_of(padded_rows, slots=slots, where=where, scores=padded_teacher)
  )
  assert float(padded_value) == pytest.approx(float(value), rel=1e-6)
  np.testing.assert_allclose(padded_grad[:3, :9], grad, rtol=1e-5, atol=1e-7)
  assert not padded_grad[3].any() and not padded_grad[:, 9:].any()
  # Control: the same nonsense, declared present.
  assert not math.isfinite(
    float(loss(jnp.asarray(padded), targets_of(padded_rows, slots=slots % 13, scores=padded_teacher))[0])
  )
