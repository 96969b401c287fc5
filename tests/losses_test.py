"""Losses equal their definition; padding, order, dtype and slots are invisible to them."""

import doctest
import functools
import importlib
import itertools
import math
import pkgutil
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax import config, losses
from idistill_jax.losses import masked


def in_slots(loss):
  """A retriever's loss of lists that all point at the same slots, the teacher's temperature 2 and the student's 0.5."""

  def of_lists(scores, places, where):
    flat = lambda array: array.reshape(-1, array.shape[-1])
    places, where = flat(places), flat(where)
    slots = jnp.broadcast_to(jnp.arange(places.shape[-1]), places.shape)
    targets = losses.RetrieverTargets(
      teacher_scores=-places / 2.0, own_slots=slots, passage_rows=slots, where=where)
    return loss(flat(scores), targets, student_temperature=0.5)

  return of_lists


def by_places(loss, **kwargs):
  return lambda s, p, w: loss(s, p, where=w, **kwargs)


def with_known(loss, **kwargs):
  return lambda s, p, w: loss(s, p, where=w, known=p % 2 == 0, **kwargs)


# Every loss of both tables as f(scores [..., N], places [..., N], where): what a teacher says follows from the places.
LOSSES = {
  **{name: by_places(loss) for name, loss in losses.LISTWISE.items()},
  **{f"{name}_top2": by_places(loss, top_places=2) for name, loss in losses.LISTWISE.items()},
  **{f"{name}_known": with_known(loss) for name, loss in losses.LISTWISE.items()},
  **{name: in_slots(loss) for name, loss in losses.DISTILLATION.items()},
  "ranknet_top2_known": with_known(losses.ranknet, top_places=2),
  "listnet_top2_temperature": by_places(losses.listnet, top_places=2, temperature=3.0),
  "lambda_top2_mu": by_places(losses.lambda_loss, top_places=2, mu=10.0),
}
every_listwise = pytest.mark.parametrize("loss", losses.LISTWISE.values(), ids=losses.LISTWISE)
every_loss = pytest.mark.parametrize("name", LOSSES)


@jax.jit
def all_losses(scores, places, where):
  """Name -> (value, gradient).  One program, because compiling each takes most of the time here."""
  return {name: jax.value_and_grad(loss)(scores, places, where) for name, loss in LOSSES.items()}


def value_and_grad(name, scores, places, where=None):
  where = np.ones(np.shape(scores), bool) if where is None else np.asarray(where)
  value, grad = all_losses(jnp.asarray(scores), jnp.asarray(places, jnp.int32), jnp.asarray(where))[name]
  return float(value), np.asarray(grad)


@pytest.fixture
def lists():
  """Three lists of five: scores, places."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3, 5)).astype(np.float32)
  places = np.stack([rng.permutation(5) for _ in range(3)]).astype(np.int32)
  return scores, places


def softmax(values):
  total = sum(math.exp(v) for v in values)
  return [math.exp(v) / total for v in values]


def log2_cost(difference):
  return math.log2(1 + math.exp(-difference))


# Definitions, as arithmetic.  One list: the teacher puts the item scored 2 first, then 0.5, then 1.

SCORES = jnp.array([0.5, 2.0, 1.0])
PLACES = jnp.array([1, 0, 2])


def test_listmle_is_the_plackett_luce_likelihood():
  first = math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(1))
  second = math.exp(0.5) / (math.exp(0.5) + math.exp(1))
  assert float(losses.listmle(SCORES, PLACES)) == pytest.approx(-math.log(first) - math.log(second), rel=1e-6)
  assert float(losses.listmle(SCORES, PLACES, top_places=1)) == pytest.approx(-math.log(first), rel=1e-6)


def test_listmle_leaves_out_the_term_of_a_filled_in_item_but_not_the_item():
  known = jnp.array([False, True, True])  # the item at place 1 was filled in
  first = math.exp(2) / (math.exp(2) + math.exp(0.5) + math.exp(1))
  assert float(losses.listmle(SCORES, PLACES, known=known)) == pytest.approx(-math.log(first), rel=1e-6)


def test_listmle_of_equal_places_makes_up_no_order():
  places = jnp.array([0, 0, 1])
  total = math.exp(0.5) + math.exp(2) + math.exp(1)
  expected = -math.log(math.exp(0.5) / total) - math.log(math.exp(2) / total)
  assert float(losses.listmle(SCORES, places)) == pytest.approx(expected, rel=1e-6)


def test_listnet_is_cross_entropy_of_two_softmaxes():
  target, student = softmax([-1, 0, -2]), softmax([0.5, 2, 1])
  expected = -sum(p * math.log(q) for p, q in zip(target, student, strict=True))
  assert float(losses.listnet(SCORES, PLACES)) == pytest.approx(expected, rel=1e-6)
  top = softmax([-1 / 3, 0])  # the two best at temperature 3; the student still weighs all three
  expected = -top[0] * math.log(student[0]) - top[1] * math.log(student[1])
  assert float(losses.listnet(SCORES, PLACES, top_places=2, temperature=3.0)) == pytest.approx(
    expected, rel=1e-6
  )


def test_ranknet_is_the_mean_over_pairs():
  costs = [math.log(1 + math.exp(-d)) for d in (2 - 0.5, 2 - 1, 0.5 - 1)]
  assert float(losses.ranknet(SCORES, PLACES)) == pytest.approx(sum(costs) / 3, rel=1e-6)
  assert float(losses.ranknet(SCORES, PLACES, top_places=1)) == pytest.approx(
    (costs[0] + costs[1]) / 2, rel=1e-6
  )
  known = jnp.array(
    [True, False, True]
  )  # the best item was filled in: only the pair of the other two is left
  assert float(losses.ranknet(SCORES, PLACES, known=known)) == pytest.approx(costs[2], rel=1e-6)


@pytest.mark.parametrize("mu", [0.0, 10.0])
def test_lambda_loss_weighs_pairs_by_what_a_swap_changes(mu):
  discount = {r: 1 / math.log2(1 + r) for r in (1, 2, 3)}
  max_dcg = 1 * discount[1] + 1 / 2 * discount[2] + 1 / 3 * discount[3]
  # Items A (teacher 0, student rank 1), B (teacher 1, student rank 3), C (teacher 2, student rank 2).
  step = {1: discount[1] - discount[2], 2: discount[2] - discount[3]}
  a_b = (discount[1] - discount[3] + mu * step[2]) * (1 - 1 / 2) * log2_cost(2 - 0.5)
  a_c = (discount[1] - discount[2] + mu * step[1]) * (1 - 1 / 3) * log2_cost(2 - 1)
  b_c = (discount[2] - discount[3] + mu * step[1]) * (1 / 2 - 1 / 3) * log2_cost(0.5 - 1)
  expected = (a_b + a_c + b_c) / max_dcg
  assert float(losses.lambda_loss(SCORES, PLACES, mu=mu)) == pytest.approx(expected, rel=1e-5)
  expected = (a_b + a_c) / 1.0  # maxDCG@1 is 1
  assert float(losses.lambda_loss(SCORES, PLACES, mu=mu, top_places=1)) == pytest.approx(expected, rel=1e-5)


def test_kl_list_is_the_divergence_at_two_temperatures():
  teacher = jnp.array([3.0, 1.0, 2.0])
  p, q = softmax([3 / 0.5, 1 / 0.5, 2 / 0.5]), softmax([0.5 / 2, 2 / 2, 1 / 2])
  expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
  actual = losses.kl_list(SCORES, teacher, teacher_temperature=0.5, student_temperature=2.0)
  assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_kl_batch_counts_every_passage_that_where_admits():
  scores, target = jnp.array([0.5, 2.0, 1.0, -1.0]), jnp.array([0.25, 0.75, 0.0, 0.0])
  total = math.exp(0.5 / 2) + math.exp(2 / 2) + math.exp(-1 / 2)  # without the third
  expected = 0.25 * math.log(0.25 / (math.exp(0.5 / 2) / total)) + 0.75 * math.log(
    0.75 / (math.exp(2 / 2) / total)
  )
  where = jnp.array([True, True, False, True])
  assert float(losses.kl_batch(scores, target, where=where, student_temperature=2.0)) == pytest.approx(
    expected, rel=1e-6
  )


def test_margin_mse_compares_leads_of_the_best():
  teacher = jnp.array([3.0, 1.0, 2.0])
  expected = (((0.5 - 2) / 0.5 - (3 - 1) / 4) ** 2 + ((0.5 - 1) / 0.5 - (3 - 2) / 4) ** 2) / 2
  actual = losses.margin_mse(SCORES, teacher, teacher_temperature=4.0, student_temperature=0.5)
  assert float(actual) == pytest.approx(expected, rel=1e-6)


def test_contrastive_is_the_log_probability_of_the_positive():
  expected = -math.log(math.exp(1 / 0.5) / (math.exp(0.5 / 0.5) + math.exp(2 / 0.5) + math.exp(1 / 0.5)))
  assert float(losses.contrastive(SCORES, jnp.array(2), student_temperature=0.5)) == pytest.approx(
    expected, rel=1e-6
  )


def test_teacher_distributions():
  where = jnp.array([True, False, True])
  order = losses.order_distribution(jnp.array([4, 0, 2]), temperature=2.0, where=where)
  np.testing.assert_allclose(order, [1 / (1 + math.e), 0, math.e / (1 + math.e)], rtol=1e-6)
  scored = losses.score_distribution(jnp.array([1.0, 99.0, 0.0]), temperature=0.5, where=where)
  np.testing.assert_allclose(scored, [math.e**2 / (1 + math.e**2), 0, 1 / (1 + math.e**2)], rtol=1e-6)


# What a likelihood must be.


def test_the_likelihoods_of_all_orders_sum_to_one():
  scores = jnp.array([0.3, -1.2, 2.0, 0.7])
  places = [jnp.array(order) for order in itertools.permutations(range(4))]
  assert sum(math.exp(-float(losses.listmle(scores, p))) for p in places) == pytest.approx(1, rel=1e-5)
  # Control: another loss is no likelihood.
  assert sum(math.exp(-float(losses.listnet(scores, p))) for p in places) != pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_likelihoods_of_all_beginnings_sum_to_one(k):
  scores = jnp.array([0.3, -1.2, 2.0, 0.7])
  probability_of = {}
  for order in itertools.permutations(range(4)):
    places = jnp.argsort(jnp.array(order))
    value = math.exp(-float(losses.listmle(scores, places, top_places=k)))
    # The order of the rest does not matter.
    assert probability_of.setdefault(order[:k], value) == pytest.approx(value, rel=1e-5)
  assert len(probability_of) == math.perm(4, k)
  assert sum(probability_of.values()) == pytest.approx(1, rel=1e-5)


# What `top_places` and `known` are to every loss of rankers.


@pytest.fixture
def choosing(lists):
  """Places with gaps, and (loss, top_places or known) -> its gradient [3, 5]."""
  scores, places = lists[0], lists[1] * 2
  return places, lambda loss, **kwargs: np.asarray(
    jax.jit(jax.grad(functools.partial(loss, **kwargs)))(scores, places))


@every_listwise
def test_top_places_choose_the_terms_that_known_would(loss, choosing):
  """But for a factor a list, as NDCG@k has one; a list that is no longer than `top_places` is whole."""
  places, slopes = choosing
  first = places < 4
  direction = lambda of: of / np.linalg.norm(of, axis=-1, keepdims=True)
  top, whole = slopes(loss, top_places=2), slopes(loss)
  np.testing.assert_allclose(direction(top), direction(slopes(loss, known=first)), rtol=1e-4, atol=1e-6)
  assert (top[~first] > 0).all()  # something to be better than, and no more
  np.testing.assert_array_equal(slopes(loss, top_places=5), whole)
  # Control: the terms of the others count where nothing is said.
  assert np.abs(direction(top) - direction(whole)).max() > 1e-3


@every_listwise
def test_what_is_not_known_is_something_to_be_better_than(loss, choosing):
  places, slopes = choosing
  known, whole = places != 2, slopes(loss)
  without = slopes(loss, known=known)
  assert (without[~known] > 0).all()
  assert np.abs(without - whole).max() > 1e-2
  np.testing.assert_array_equal(slopes(loss, known=np.ones(places.shape, bool)), whole)


@every_listwise
def test_with_nothing_known_there_is_nothing_to_learn(loss, lists):
  value, grad = jax.jit(jax.value_and_grad(functools.partial(loss, known=np.zeros((3, 5), bool))))(*lists)
  assert float(value) == 0
  np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize("name", ["kl_list", "kl_batch"])
def test_divergence_is_zero_exactly_where_student_and_teacher_agree(name, lists):
  scores, places = lists
  value, grad = value_and_grad(name, -places * 0.5 / 2.0 + 3.0, places)  # temperatures 0.5 and 2
  assert value == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(grad, 0, atol=1e-6)
  assert value_and_grad(name, scores, places)[0] > 0.01


@pytest.mark.parametrize("loss", losses.DISTILLATION.values(), ids=losses.DISTILLATION)
def test_no_gradient_reaches_the_teacher(loss, lists):
  scores, places = lists
  f = lambda scores, places: in_slots(loss)(scores, places, np.ones(places.shape, bool))
  to_student, to_teacher = jax.jit(jax.grad(f, argnums=(0, 1)))(scores, places.astype(np.float32))
  assert not np.any(to_teacher)
  assert np.any(to_student)


def test_places_may_have_gaps_where_only_their_order_counts(lists):
  scores, places = lists
  for name in ("listmle", "listmle_top2", "ranknet", "lambda", "lambda_top2_mu"):
    assert value_and_grad(name, scores, places * 3 + 1)[0] == value_and_grad(name, scores, places)[0], name
  # Control: listnet reads places as numbers.
  assert value_and_grad("listnet", scores, places * 3)[0] != value_and_grad("listnet", scores, places)[0]


# Symmetries of all losses.


@every_loss
@pytest.mark.parametrize("garbage", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
def test_padding_is_invisible(name, garbage, lists):
  scores, places = lists
  value, grad = value_and_grad(name, scores, places)
  # Absent slots stand in between, with places that would come first.
  columns = [0, 2, 3, 5, 6]
  padded_scores = np.full((3, 8), garbage, np.float32)
  padded_places = np.zeros((3, 8), np.int32)
  where = np.zeros((3, 8), bool)
  padded_scores[:, columns], padded_places[:, columns], where[:, columns] = scores, places, True
  padded_value, padded_grad = value_and_grad(name, padded_scores, padded_places, where)
  assert padded_value == pytest.approx(value, rel=1e-6)
  np.testing.assert_allclose(padded_grad[:, columns], grad, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(padded_grad[:, [1, 4, 7]], 0)
  # Control: without the mask the same slots are seen.
  assert value_and_grad(name, padded_scores, padded_places)[0] != pytest.approx(value, rel=1e-3)


@every_loss
def test_reordering_a_list_reorders_its_gradient(name, lists):
  scores, places = lists
  value, grad = value_and_grad(name, scores, places)
  order = [3, 0, 4, 2, 1]
  new_value, new_grad = value_and_grad(name, scores[:, order], places[:, order])
  assert new_value == pytest.approx(value, rel=1e-5)
  np.testing.assert_allclose(new_grad, grad[:, order], rtol=1e-4, atol=1e-6)
  # Control: scores that move alone.
  assert value_and_grad(name, scores[:, order], places)[0] != pytest.approx(value, rel=1e-3)


@every_loss
def test_equal_scores_hide_no_order(name):
  """All scores may be equal at the start; the gradient must still follow the items, not the slots."""
  places = np.array([2, 0, 3, 1, 4])
  order = [3, 1, 0, 2, 4]
  grad = value_and_grad(name, np.zeros(5, np.float32), places)[1]
  new_grad = value_and_grad(name, np.zeros(5, np.float32), places[order])[1]
  np.testing.assert_allclose(new_grad, grad[order], atol=1e-6)
  assert grad[1] < 0  # the best item is pulled up


@every_loss
def test_adding_a_constant_to_a_list_changes_nothing(name, lists):
  scores, places = lists
  value, grad = value_and_grad(name, scores, places)
  shifted_value, shifted_grad = value_and_grad(
    name, scores + np.array([[1.0], [-2.0], [4.0]], np.float32), places
  )
  assert shifted_value == pytest.approx(value, rel=1e-4)
  np.testing.assert_allclose(shifted_grad, grad, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(grad.sum(-1), 0, atol=1e-5)
  # Control: a factor is no constant.
  assert value_and_grad(name, scores * 2, places)[0] != pytest.approx(value, rel=1e-3)


@every_loss
def test_lists_without_items_give_zero_and_do_not_count(name, lists):
  scores, places = lists
  nothing = np.zeros(scores.shape, bool)
  for garbage in (scores, np.full_like(scores, math.nan)):
    value, grad = value_and_grad(name, garbage, places, nothing)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)
  where = np.array([[True] * 5, [False] * 5, [True] * 5])
  some_value, some_grad = value_and_grad(name, scores, places, where)
  (value, grad), (other_value, other_grad) = (value_and_grad(name, scores[i], places[i]) for i in (0, 2))
  assert some_value == pytest.approx((value + other_value) / 2, rel=1e-5)
  np.testing.assert_allclose(some_grad, [grad / 2, np.zeros(5), other_grad / 2], rtol=1e-4, atol=1e-7)
  # Control: a list with items counts.
  assert value_and_grad(name, scores, places)[0] != pytest.approx(some_value, rel=1e-3)


@every_loss
def test_the_value_is_the_mean_over_lists(name, lists):
  scores, places = lists
  alone = [value_and_grad(name, scores[i], places[i])[0] for i in range(3)]
  assert value_and_grad(name, scores, places)[0] == pytest.approx(sum(alone) / 3, rel=1e-5)
  # Leading axes are batch, however many.
  nested = value_and_grad(name, scores[:, None], places[:, None])
  assert nested[0] == pytest.approx(sum(alone) / 3, rel=1e-5)
  assert nested[1].shape == (3, 1, 5)


@every_loss
def test_a_list_of_one_has_nothing_to_learn_from(name):
  value, grad = value_and_grad(name, np.arange(5.0, dtype=np.float32), np.arange(5), np.arange(5) == 3)
  assert value == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(grad, 0, atol=1e-6)


@every_loss
def test_extreme_scores_stay_finite(name):
  places = np.array([[0, 1, 2, 3, 4]] * 3)
  scores = np.array([[1e4, -1e4, 1e4, -1e4, 0], [-1e4, -1e4, 0, 1e4, 1e4], [-1e4] * 4 + [1e4]], np.float32)
  value, grad = value_and_grad(name, scores, places)
  assert math.isfinite(value)
  assert np.isfinite(grad).all()
  assert np.abs(grad).max() > 0.01  # a wrong order is still told to change


@every_loss
def test_bfloat16_scores_are_computed_in_float32(name, lists):
  scores, places = lists
  rounded = jnp.asarray(scores, jnp.bfloat16)
  value, grad = all_losses(rounded, jnp.asarray(places), jnp.ones(scores.shape, bool))[name]
  assert (value.dtype, grad.dtype) == (jnp.float32, jnp.bfloat16)
  assert float(value) == pytest.approx(value_and_grad(name, rounded.astype(jnp.float32), places)[0], rel=1e-6)
  # Control: the unrounded scores have another value.
  assert float(value) != pytest.approx(value_and_grad(name, scores, places)[0], rel=1e-6)


@every_listwise
def test_a_mask_of_another_shape_is_refused(loss):
  with pytest.raises(ValueError, match=r"where has shape \(3,\), scores \(2, 3\)"):
    loss(jnp.zeros((2, 3)), jnp.zeros((2, 3), int), where=jnp.ones(3, bool))


@pytest.mark.parametrize(
  "section, table", [(config.Ranker, losses.LISTWISE), (config.Retriever, losses.DISTILLATION)]
)
def test_config_names_exactly_the_losses_that_exist(section, table):
  assert set(typing.get_args(typing.get_type_hints(section)["loss"])) == set(table)


@pytest.mark.parametrize("module", sorted(m.name for m in pkgutil.iter_modules(losses.__path__)))
def test_examples_in_docstrings(module):
  result = doctest.testmod(importlib.import_module(f"idistill_jax.losses.{module}"))
  assert result.failed == 0
  assert result.attempted > 0 or module == masked.__name__.rsplit(".", 1)[-1]
