"""Measured systems -> the numbers of metrics.json and one CSV line a query and system."""

import csv
import os
from collections.abc import Mapping, Sequence
from typing import Any

from idistill_jax.retrieval import measures, significance

# system -> measure -> query id -> value
Measured = Mapping[str, Mapping[str, Mapping[str, float]]]


def summarise(measured: Measured, tests: Sequence[tuple[str, str]], resamples: int) -> dict[str, Any]:
  """Means, 95 % intervals, and each pair of `tests` (first against second) on every measure."""
  names = list(next(iter(measured.values())))
  return {
    "measures": names,
    "systems": {
      system: {name: measures.mean(values[name]) for name in names} for system, values in measured.items()
    },
    "intervals": {
      system: {name: list(significance.interval(values[name], resamples=resamples)) for name in names}
      for system, values in measured.items()
    },
    "tests": {
      f"{one} vs {other}": {
        name: significance.compare(measured[one][name], measured[other][name], resamples=resamples).as_json()
        for name in names
      }
      for one, other in tests
    },
  }


def write_per_query(path: str | os.PathLike[str], measured: Measured) -> None:
  """CSV: query_id, system, then one column a measure."""
  with open(path, "w", encoding="utf-8", newline="") as file:
    out = csv.writer(file, lineterminator="\n")
    names = list(next(iter(measured.values())))
    out.writerow(["query_id", "system", *names])
    for query_id in next(iter(measured.values()))[names[0]]:
      for system, values in measured.items():
        out.writerow([query_id, system, *(values[name][query_id] for name in names)])
