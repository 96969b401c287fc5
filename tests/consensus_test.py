"""Several orders of one list: the middle of them, and how far they agree."""

import itertools

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax.llm import consensus, parse


def answer(order, filled=()):
  return parse.Parsed(tuple(order), "repaired" if filled else "complete", tuple(filled))


def ranks(order):
  return tuple(float(order.index(i)) for i in range(len(order)))


def disagreements(order, all_ranks):
  """Pairs that an order has the other way round than one of the given orders; equal ranks disagree with nothing."""
  return sum(one[later] < one[earlier] for one in all_ranks for earlier, later in itertools.combinations(order, 2))


several = st.integers(1, 6).flatmap(lambda n: st.lists(st.permutations(range(n)), min_size=2, max_size=5))


@settings(max_examples=60, deadline=None)
@given(several)
def test_kemeny_is_the_order_with_the_fewest_disagreements(orders):
  given_ranks = [ranks(order) for order in orders]
  best = min(disagreements(order, given_ranks) for order in itertools.permutations(range(len(orders[0]))))
  assert disagreements(consensus.kemeny(given_ranks), given_ranks) == best


def test_borda_and_kemeny_differ_where_they_should():
  """Three of five put 0 first, two put it last: most pairs are won by 0, its mean rank is not the best."""
  orders = [(0, 1, 2)] * 3 + [(1, 2, 0)] * 2
  given_ranks = [ranks(order) for order in orders]
  assert consensus.kemeny(given_ranks) == (0, 1, 2) and consensus.borda(given_ranks) == (1, 0, 2)


@settings(max_examples=60, deadline=None)
@given(several)
def test_agreement_is_the_mean_of_kendalls_tau(orders):
  given_ranks = [ranks(order) for order in orders]
  found = consensus.agreement(given_ranks)
  if len(orders[0]) < 2:
    assert found == 1.0
    return
  pairs = list(itertools.combinations(given_ranks, 2))
  assert found == pytest.approx(sum(scipy.stats.kendalltau(a, b).statistic for a, b in pairs) / len(pairs))


def test_equal_orders_come_back_and_agree():
  order = (3, 0, 2, 1)
  assert consensus.of([answer(order)] * 3, asked=3) == consensus.Consensus(order, (), 1.0)
  assert consensus.of([answer(order, filled=(3,))], asked=1) == consensus.Consensus(order, (3,), 1.0)
  order = (3, 0, 1, 2)
  assert consensus.of([answer(order, filled=(2, 3))] * 2, asked=2) == consensus.Consensus(order, (2, 3), 1.0)
  assert consensus.of([answer(range(4)), answer(range(3, -1, -1))], asked=2).agreement == -1.0


@pytest.mark.parametrize(("answered", "agreement"), [(4, 1.0), (3, 3 / 6), (2, 1 / 6), (1, 0.0)])
def test_an_order_that_was_lost_agrees_with_none(answered, agreement):
  assert consensus.of([answer((1, 0, 2))] * answered, asked=4).agreement == pytest.approx(agreement)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 6).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.permutations(range(n)),
                                                     st.integers(0, n // 2), st.integers(0, n // 2))))
def test_agreement_of_repaired_answers_is_tau_b(drawn):
  one, other, one_left_out, other_left_out = drawn
  answers = [answer(order, range(len(order) - left_out, len(order)))
             for order, left_out in ((one, one_left_out), (other, other_left_out))]
  tied = [[min(order.index(i), len(order) - left_out) for i in range(len(order))]
          for order, left_out in ((one, one_left_out), (other, other_left_out))]
  assert consensus.of(answers, asked=2).agreement == pytest.approx(scipy.stats.kendalltau(*tied).statistic)


def test_what_an_answer_left_out_has_no_say_in_it():
  named_all, left_out = answer((2, 1, 0)), answer((2, 0, 1), filled=(1, 2))
  found = consensus.of([named_all, left_out], asked=2)
  assert found.order == (2, 1, 0) and found.filled == ()
  # Nobody named 1 and 0: they stay at the end and are marked.
  found = consensus.of([answer((3, 2, 0, 1), filled=(2, 3)), answer((2, 3, 1, 0), filled=(2, 3))], asked=2)
  assert sorted(found.order[:2]) == [2, 3] and found.filled == (2, 3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.permutations(range(20)), min_size=2, max_size=4))
def test_long_lists_go_by_borda(orders):
  found = consensus.of([answer(order) for order in orders], asked=len(orders))
  assert found.order == consensus.borda([ranks(order) for order in orders])
