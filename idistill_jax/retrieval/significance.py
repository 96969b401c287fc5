"""Two systems on the same queries: is the difference real, and how large may it be?

Paired randomisation test (Smucker, Allan and Carterette, CIKM 2007): were the systems interchangeable, each
query's difference would have either sign with equal chance.  Intervals: percentile bootstrap over queries
(Efron, 1979).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from idistill_jax.retrieval import measures

RESAMPLES = 10_000
CONFIDENCE = 0.95
# A difference with a smaller p is told from chance.
SIGNIFICANT = 0.05
# Measures lie in [0, 1]: differences that spread no further are the same.
ROUNDING = 1e-12
# Resamples held in memory at a time.
BATCH = 1_000


class PairingError(ValueError):
  """Systems that were not measured on the same queries, or on too few."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
  """System a against system b on one measure.

  delta: mean of a minus mean of b; relative: delta over the mean of b, None where that is 0.
  effect: delta over the standard deviation of the differences (Cohen's d for pairs), None where they are all the same.
  p: two-sided; ci95: interval of delta; wins, losses, ties: queries on which a is better, worse, equal.
  """

  delta: float
  relative: float | None
  effect: float | None
  p: float
  ci95: tuple[float, float]
  wins: int
  losses: int
  ties: int

  def as_json(self) -> dict[str, float | int | list[float] | None]:
    return {**dataclasses.asdict(self), "ci95": list(self.ci95)}


def compare(
  per_query_a: Mapping[str, float],
  per_query_b: Mapping[str, float],
  *,
  resamples: int = RESAMPLES,
  seed: int = 0,
) -> Comparison:
  """Compares two systems query by query; raises PairingError unless both hold the same two or more queries.

  The p value is (count + 1) / (resamples + 1), doubled over the smaller tail, so never 0; with so few queries
  that all sign patterns are fewer than `resamples`, they are enumerated and p is exact.
  """
  from scipy import stats

  if per_query_a.keys() != per_query_b.keys():
    odd = sorted(per_query_a.keys() ^ per_query_b.keys())
    raise PairingError(f"{len(odd)} queries were measured for one system only, for example {odd[:3]}")
  query_ids = sorted(per_query_a)
  difference_Q = np.array([per_query_a[query_id] - per_query_b[query_id] for query_id in query_ids])
  _check(difference_Q)
  tested = stats.permutation_test(
    (difference_Q,),
    _mean,
    permutation_type="samples",
    vectorized=True,
    n_resamples=resamples,
    batch=BATCH,
    rng=np.random.default_rng(seed),
  )
  base = measures.mean(per_query_b)
  delta, spread = float(difference_Q.mean()), float(difference_Q.std(ddof=1))
  return Comparison(
    delta=delta,
    relative=delta / base if base else None,
    # The same differences come out of subtraction some last bits apart, and a spread of those says nothing.
    effect=delta / spread if spread > ROUNDING else None,
    p=float(tested.pvalue),
    ci95=_bootstrap(difference_Q, resamples, seed),
    wins=int((difference_Q > 0).sum()),
    losses=int((difference_Q < 0).sum()),
    ties=int((difference_Q == 0).sum()),
  )


def holm(p_values: Sequence[float]) -> list[float]:
  """P values corrected for their number: how sure all claims together are (Holm, 1979), in the given order."""
  order = sorted(range(len(p_values)), key=p_values.__getitem__)
  corrected, largest = [0.0] * len(p_values), 0.0
  for place, index in enumerate(order):
    largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
    corrected[index] = largest
  return corrected


def interval(
  per_query: Mapping[str, float], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
  """95 % bootstrap interval of the mean; raises PairingError for fewer than two queries."""
  return _bootstrap(np.array([per_query[query_id] for query_id in sorted(per_query)]), resamples, seed)


def _bootstrap(values_Q: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
  from scipy import stats

  _check(values_Q)
  found = stats.bootstrap(
    (values_Q,),
    _mean,
    n_resamples=resamples,
    batch=BATCH,
    vectorized=True,
    confidence_level=CONFIDENCE,
    method="percentile",
    rng=np.random.default_rng(seed),
  )
  return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
  return np.mean(values, axis=axis)


def _check(values_Q: np.ndarray) -> None:
  if len(values_Q) < 2:
    raise PairingError(f"significance needs at least two queries, found {len(values_Q)}")
  if not np.isfinite(values_Q).all():
    raise PairingError("a measured value is NaN or infinite")
