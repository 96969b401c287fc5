"""Which lists go into which batch, and which of their passages: a function of the seed alone.

Batches of a fixed number of lists hold varying numbers of tokens, and a static shape must hold the largest.  So
lists are dealt like cards, long ones first, each to the batch that has least: totals come out nearly equal, and one
shape is nearly full in every step.  All lists are dealt once an epoch; a little noise on the lengths makes every
epoch's batches different.
"""

import dataclasses
import hashlib
import heapq

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
  """One appearance of a list in training."""

  epoch: int
  record: int


def drawn(key: str) -> float:
  """A number in [0, 1) that depends on the key alone, so that whatever is drawn by it stays drawn when others come;
  what is sorted by it has its first ones for a sample."""
  return int(hashlib.sha256(key.encode()).hexdigest()[:13], 16) / 2**52


def deal(costs: np.ndarray, lists_per_batch: int, *, epoch: int, seed: int) -> list[list[Slot]]:
  """Batches of one epoch, in order; `costs[i]` is the number of tokens that list i brings."""
  rng = np.random.default_rng([seed, epoch, 0])
  count = -(-len(costs) // lists_per_batch)
  noisy = costs * rng.uniform(0.9, 1.1, len(costs))
  batches: list[list[Slot]] = [[] for _ in range(count)]
  lightest = [(0.0, int(order), batch) for batch, order in enumerate(rng.permutation(count))]
  heapq.heapify(lightest)
  for record in np.argsort(-noisy, kind="stable"):
    total, order, batch = heapq.heappop(lightest)
    batches[batch].append(Slot(epoch, int(record)))
    if len(batches[batch]) < lists_per_batch:
      heapq.heappush(lightest, (total + float(costs[record]), order, batch))
  return [batches[i] for i in rng.permutation(count)]


def sample(length: int, size: int, always_best: int, *, seed: int, slot: Slot) -> np.ndarray:
  """Places of a list (0 = best) that take part: the best `always_best`, and others drawn evenly; ascending."""
  if length <= size:
    return np.arange(length)
  rng = np.random.default_rng([seed, slot.epoch, slot.record, 1])
  others = rng.choice(np.arange(always_best, length), size - always_best, replace=False)
  return np.concatenate([np.arange(always_best), np.sort(others)])
