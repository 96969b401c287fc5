"""The tests find what is there, do not find what is not, and say the same backwards."""

import json

import numpy as np
import pytest
from scipy import stats

from idistill_jax.retrieval import significance


def named(values) -> dict[str, float]:
  return {f"q{number}": float(value) for number, value in enumerate(values)}


def test_a_plain_case():
  a, b = named([1, 1, 0.5, 0, 0.25]), named([0.5, 1, 0.25, 0.5, 0])
  found = significance.compare(a, b, resamples=1000)
  assert found.delta == pytest.approx(0.1)
  assert found.relative == pytest.approx(0.1 / 0.45)
  assert (found.wins, found.losses, found.ties) == (3, 1, 1)
  assert found.ci95[0] <= found.delta <= found.ci95[1]


def test_few_queries_are_enumerated():
  """Of 2^4 sign patterns of four equal differences, one reaches the sum and one its negative."""
  found = significance.compare(named([1, 1, 1, 1]), named([0, 0, 0, 0]), resamples=1000)
  assert found.p == pytest.approx(2 / 16)
  assert found.relative is None


def test_an_obvious_difference():
  rng = np.random.default_rng(0)
  b = rng.random(100)
  found = significance.compare(named(b + 0.2 + 0.1 * rng.standard_normal(100)), named(b), resamples=2000)
  # The smallest p there is: no resample reached the difference, twice (0 + 1) / (n + 1).
  assert found.p == pytest.approx(2 / 2001)
  assert 0.15 < found.ci95[0] < found.ci95[1] < 0.25


def test_equal_systems():
  found = significance.compare(named([0.5] * 30), named([0.5] * 30), resamples=500)
  assert (found.p, found.delta, found.ci95, found.ties) == (1.0, 0.0, (0.0, 0.0), 30)


def test_backwards_is_the_mirror_image():
  rng = np.random.default_rng(1)
  a, b = named(rng.random(60)), named(rng.random(60))
  one, other = (significance.compare(x, y, resamples=5000) for x, y in ((a, b), (b, a)))
  assert one.delta == pytest.approx(-other.delta)
  assert one.p == pytest.approx(other.p, abs=0.03)
  assert one.ci95 == pytest.approx((-other.ci95[1], -other.ci95[0]), abs=0.01)
  assert (one.wins, one.losses) == (other.losses, other.wins)


def test_the_seed_decides_and_the_order_of_queries_does_not():
  rng = np.random.default_rng(2)
  a, b = named(rng.random(40)), named(rng.random(40))
  found = significance.compare(a, b, resamples=500, seed=3)
  assert found == significance.compare(dict(reversed(a.items())), b, resamples=500, seed=3)
  assert found != significance.compare(a, b, resamples=500, seed=4)


def test_p_is_uniform_where_there_is_no_difference_and_is_not_where_there_is():
  """200 pairs of systems; Kolmogorov-Smirnov against the uniform distribution."""
  rng = np.random.default_rng(4)

  def simulated(shift: float) -> list[float]:
    return [
      significance.compare(named(rng.random(50) + shift), named(rng.random(50)), resamples=199).p
      for _ in range(200)
    ]

  null = simulated(0.0)
  assert stats.kstest(null, "uniform").pvalue > 0.01
  assert 0.01 <= np.mean(np.array(null) < 0.05) <= 0.1
  assert stats.kstest(simulated(0.15), "uniform").pvalue < 1e-6


def test_p_is_near_the_t_tests_where_that_one_holds():
  rng = np.random.default_rng(5)
  a, b = rng.standard_normal(200) + 0.15, rng.standard_normal(200)
  found = significance.compare(named(a), named(b), resamples=20_000)
  assert found.p == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.01)


def test_intervals_cover_the_mean_about_as_often_as_they_say():
  rng = np.random.default_rng(6)
  covered = []
  for _ in range(200):
    low, high = significance.interval(named(rng.random(60)), resamples=300)
    covered.append(low <= 0.5 <= high)
  assert 0.89 <= np.mean(covered) <= 0.99


def test_json():
  found = significance.compare(named([1, 0, 1]), named([0, 0, 1]), resamples=100)
  said = json.loads(json.dumps(found.as_json()))
  assert set(said) == {"delta", "relative", "effect", "p", "ci95", "wins", "losses", "ties"}
  assert said["ci95"] == list(found.ci95)


def test_bad_input():
  with pytest.raises(
    significance.PairingError, match=r"1 queries were measured for one system only, for example .'q2'"
  ):
    significance.compare(named([1, 2]), named([1, 2, 3]))
  with pytest.raises(significance.PairingError, match="at least two queries, found 1"):
    significance.compare(named([1]), named([2]))
  with pytest.raises(significance.PairingError, match="at least two queries, found 0"):
    significance.interval({})
  with pytest.raises(significance.PairingError, match="NaN"):
    significance.compare(named([1, np.nan]), named([1, 2]))


def test_holm_by_hand():
  # 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.04 -> made monotone.
  assert significance.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
  assert significance.holm([0.9, 0.6]) == [1.0, 1.0] and significance.holm([]) == []
  # Control: uncorrected, both would pass at 0.05.
  assert max(significance.holm([0.03, 0.04])) > 0.05


def test_effect_is_cohens_d_for_pairs():
  a, b = named([1, 1, 0.5, 0, 0.25]), named([0.5, 1, 0.25, 0.5, 0])
  difference = np.array([0.5, 0, 0.25, -0.5, 0.25])
  found = significance.compare(a, b, resamples=100)
  assert found.effect == pytest.approx(difference.mean() / difference.std(ddof=1))
  assert significance.compare(b, b, resamples=100).effect is None
  # Control: the differences are the same, and yet their spread is not 0.
  shifted = {query: value + 0.1 for query, value in b.items()}
  assert np.std([shifted[query] - b[query] for query in b]) > 0
  assert significance.compare(shifted, b, resamples=100).effect is None
