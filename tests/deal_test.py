"""Dealing lists into batches: all of them, once an epoch, in nearly equal batches, differently every time."""

import numpy as np
import pytest

from idistill_jax.data import deal

COSTS = np.random.default_rng(1).integers(100, 700, 1000)


def _records(batches):
  return [slot.record for batch in batches for slot in batch]


def test_every_list_is_dealt_once():
  assert sorted(_records(deal.deal(COSTS, 16, epoch=0, seed=0))) == list(range(1000))


def test_batches_are_nearly_equal():
  totals = np.array([COSTS[[slot.record for slot in batch]].sum() for batch in deal.deal(COSTS, 16, epoch=0, seed=0)])
  rng = np.random.default_rng(0)
  shuffled = np.array([COSTS[rows].sum() for rows in rng.permutation(992).reshape(62, 16)])
  # One batch holds fewer lists, so the largest counts against the middle; plain shuffling is the control.
  assert totals.max() / np.median(totals) < 1.05
  assert shuffled.max() / np.median(shuffled) > 1.10


@pytest.mark.parametrize("other", [{"epoch": 1, "seed": 0}, {"epoch": 0, "seed": 1}])
def test_epochs_and_seeds_deal_differently(other):
  first = deal.deal(COSTS, 16, epoch=0, seed=0)
  assert first == deal.deal(COSTS, 16, epoch=0, seed=0)
  neighbours = lambda batches: {frozenset(slot.record for slot in batch) for batch in batches}
  assert len(neighbours(first) & neighbours(deal.deal(COSTS, 16, **other))) < 3


def test_samples_hold_the_best_and_others_in_order():
  seen = [deal.sample(20, 8, 2, seed=0, slot=deal.Slot(0, record)) for record in range(400)]
  for places in seen:
    assert places[:2].tolist() == [0, 1]
    assert len(np.unique(places)) == 8
    assert (np.diff(places) > 0).all()
  counts = np.bincount(np.concatenate(seen), minlength=20)
  # Every other place is drawn with probability 6 / 18; 400 draws lie within five standard errors of it.
  assert abs(counts[2:] / 400 - 1 / 3).max() < 5 * np.sqrt(1 / 3 * 2 / 3 / 400)


def test_short_lists_are_taken_whole():
  assert deal.sample(5, 8, 2, seed=0, slot=deal.Slot(0, 0)).tolist() == [0, 1, 2, 3, 4]
