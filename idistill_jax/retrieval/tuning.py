"""How far must ScaNN look?  Operating points measured against exact search, and the cheapest that is good enough."""

import dataclasses
import math
import time
from typing import Protocol, Self, TypeVar

import numpy as np

from idistill_jax.retrieval import ann
from idistill_jax.retrieval import hits as hits_lib

# Shares of the leaves that are tried, and how many finds are scored again for each one that is asked for.
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0)
REORDERS = (1, 2, 5, 10)
# Timed searches, of which the fastest counts.
REPEATS = 3
# Queries that are asked one at a time, of which the median counts.
ALONE = 32


class Adjustable(hits_lib.Searcher, Protocol):
  """ScaNN in one piece or in shards."""

  @property
  def settings(self) -> ann.Settings: ...

  def searching(self, *, leaves: int, reorder: int) -> Self: ...


T = TypeVar("T", bound=Adjustable)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Point:
  """One way to search: recall of exact search's first k, speed with all queries in one call, and what one alone
  takes."""

  leaves_to_search: int
  reorder: int
  recall: float
  queries_per_second: float
  milliseconds: float


def timed(
  index: hits_lib.Searcher, queries_QxE: np.ndarray, k: int, repeats: int = REPEATS
) -> tuple[hits_lib.Hits, float]:
  """What was found, and queries a second."""
  found = index.search(queries_QxE, k)  # compiles, fills caches
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    found = index.search(queries_QxE, k)
    seconds.append(time.perf_counter() - started)
  return found, len(queries_QxE) / min(seconds)


def latency(index: hits_lib.Searcher, queries_QxE: np.ndarray, k: int) -> float:
  """Median milliseconds of a search for one query, as a person waits for it; a batch hides most of that."""
  milliseconds = []
  index.search(queries_QxE[:1], k)  # compiles
  for query_E in queries_QxE[:ALONE]:
    started = time.perf_counter()
    index.search(query_E[None], k)
    milliseconds.append(1000 * (time.perf_counter() - started))
  return float(np.median(milliseconds))


def recall(truth: hits_lib.Hits, found: hits_lib.Hits) -> float:
  """Mean share of the true passages that were found."""
  pairs = zip(truth.rows.tolist(), found.rows.tolist(), strict=True)
  return float(np.mean([len(set(one) & set(other)) / len(one) for one, other in pairs]))


def curve(index: Adjustable, truth: hits_lib.Hits, queries_QxE: np.ndarray) -> list[Point]:
  """Points from fast to thorough: more and more leaves with the most scoring again, then less of that."""
  k = truth.rows.shape[1]
  most = k * max(REORDERS)
  return [_point(index, truth, queries_QxE, leaves, most) for leaves in _leaves(index, k)]


def tune(index: T, truth: hits_lib.Hits, queries_QxE: np.ndarray, target: float) -> tuple[T, float]:
  """The index set to the fewest leaves, then the least scoring again, with `target` recall; and its recall.

  Where no setting reaches the target, the most thorough is taken.
  """
  k = truth.rows.shape[1]
  every = _leaves(index, k)
  points = (_point(index, truth, queries_QxE, leaves, k * max(REORDERS)) for leaves in every)
  enough = next((point for point in points if point.recall >= target), None)
  if enough is None:
    enough = _point(index, truth, queries_QxE, every[-1], k * max(REORDERS))
    return index.searching(leaves=enough.leaves_to_search, reorder=enough.reorder), enough.recall
  for factor in REORDERS:
    point = _point(index, truth, queries_QxE, enough.leaves_to_search, k * factor)
    if point.recall >= target:
      return index.searching(leaves=point.leaves_to_search, reorder=point.reorder), point.recall
  return index.searching(leaves=enough.leaves_to_search, reorder=enough.reorder), enough.recall


def _leaves(index: Adjustable, k: int) -> list[int]:
  """Counts to try, rising.  Not such as hold fewer than 2 k passages: short finds are filled from all leaves, which
  would look like recall, and for a smaller k would not happen."""
  leaves, passages = index.settings.leaves, index.settings.built
  counts = dict.fromkeys(max(1, math.ceil(fraction * leaves)) for fraction in FRACTIONS)
  return [count for count in counts if count == leaves or count * passages >= 2 * k * leaves]


def _point(index: Adjustable, truth: hits_lib.Hits, queries_QxE: np.ndarray, leaves: int, reorder: int) -> Point:
  tried = index.searching(leaves=leaves, reorder=reorder)
  k = truth.rows.shape[1]
  found, speed = timed(tried, queries_QxE, k)
  return Point(
    leaves_to_search=leaves, reorder=tried.settings.reorder, recall=recall(truth, found), queries_per_second=speed,
    milliseconds=latency(tried, queries_QxE, k),
  )  # fmt: skip
