"""Measured systems -> the numbers of metrics.json and one CSV line a query and system."""

import csv
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from idistill_jax import config, extras
from idistill_jax.retrieval import measures, significance

# What is talked about where no config says: the first of these that was measured.
MAIN_MEASURES = ("MRR@10", "answer@20")
# system -> measure -> query id -> value
Measured = Mapping[str, Mapping[str, Mapping[str, float]]]


def main_measure(measured: Sequence[str], stated: str | None) -> str:
  """The measure that a run is about, of those that it has; stated: `evaluate.main_measure`.

  Raises ConfigError where what is stated is not measured.
  """
  if stated is not None and stated not in measured:
    raise config.ConfigError(f"evaluate.main_measure is {stated!r}; what is measured here is {', '.join(measured)}")
  return stated or next((name for name in MAIN_MEASURES if name in measured), measured[0])


def label(pair: tuple[str, str]) -> str:
  """What a test of the first system against the second is called."""
  return " vs ".join(pair)


def summarise(
  measured: Measured, tests: Sequence[tuple[str, str]], resamples: int,
  primary: tuple[tuple[str, str], str] | None = None,
) -> dict[str, Any]:
  """Means, 95 % intervals, and each pair of `tests` (first against second) on every measure.

  primary: the pair and the measure of the one test that is declared before anything is measured, and stands by its own
  p.  `p_holm` corrects each measure's other p values for their number.  A measure of one query has a mean alone.
  """
  names = list(next(iter(measured.values())))
  testable = [name for name, values in next(iter(measured.values())).items() if len(values) > 1]
  return {
    "measures": names,
    "systems": {
      system: {name: measures.mean(values[name]) for name in names} for system, values in measured.items()
    },
    "intervals": {
      system: {name: list(significance.interval(values[name], resamples=resamples)) for name in testable}
      for system, values in measured.items()
    },
    **({} if primary is None else {"primary": {"test": label(primary[0]), "measure": primary[1]}}),
    "tests": _tests(measured, tests, testable, resamples, primary) if testable else {},
  }


def _tests(
  measured: Measured, tests: Sequence[tuple[str, str]], names: Sequence[str], resamples: int,
  primary: tuple[tuple[str, str], str] | None,
) -> dict[str, dict[str, dict[str, Any]]]:
  found: dict[str, dict[str, dict[str, Any]]] = {label(pair): {} for pair in tests}
  for name in names:
    compared = {
      (one, other): significance.compare(measured[one][name], measured[other][name], resamples=resamples)
      for one, other in tests
    }
    rest = [pair for pair in compared if (pair, name) != primary]
    corrected = dict(zip(rest, significance.holm([compared[pair].p for pair in rest]), strict=True))
    for pair, test in compared.items():
      found[label(pair)][name] = {**test.as_json(), "p_holm": corrected.get(pair, test.p)}
  return found


def rows(measured: Measured) -> Iterator[dict[str, str | float | None]]:
  """One a query and system: query_id, system, then each measure; None where a measure says nothing of a query."""
  first = next(iter(measured.values()))
  for query_id in dict.fromkeys(query_id for values in first.values() for query_id in values):
    for system, values in measured.items():
      yield {"query_id": query_id, "system": system, **{name: of.get(query_id) for name, of in values.items()}}


def write_per_query(path: str | os.PathLike[str], measured: Measured) -> None:
  """CSV: query_id, system, then one column a measure."""
  with open(path, "w", encoding="utf-8", newline="") as file:
    out = csv.DictWriter(file, ["query_id", "system", *next(iter(measured.values()))], lineterminator="\n")
    out.writeheader()
    out.writerows(rows(measured))


def read_query_ids(path: str | os.PathLike[str]) -> set[str]:
  """Queries of such a table: those that were measured."""
  with open(path, encoding="utf-8", newline="") as file:
    return {row["query_id"] for row in csv.DictReader(file)}


def write_parquet(path: str | os.PathLike[str], measured: Measured) -> None:
  """The same table as Parquet.  Raises as `parquet` does."""
  pyarrow = parquet()
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows(measured))), path)


def parquet() -> types.ModuleType:
  """pyarrow with its writer.  Raises ModuleNotFoundError naming the extra."""
  with extras.needed("Parquet", "datasets"):
    import pyarrow.parquet
  return pyarrow
