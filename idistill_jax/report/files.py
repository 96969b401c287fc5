"""A workdir's JSON and CSV files for the report; each fault is named with its path and what to do."""

import csv
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


class ReportError(ValueError):
  """A file of the workdir that cannot be read; the message names it and what to do."""


def read_object(path: pathlib.Path) -> dict[str, Any] | None:
  """A JSON object, or None where there is no such file."""
  return parse_object(path.read_text(encoding="utf-8"), str(path)) if path.exists() else None


def parse_object(text: str, path: str) -> dict[str, Any]:
  try:
    found = json.loads(text)
  except ValueError as e:
    raise ReportError(f"{path}: not JSON ({e}); run the stage that wrote it again") from e
  if not isinstance(found, dict):
    raise ReportError(
      f"{path}: an object is needed, found a {type(found).__name__}; run the stage that wrote it again"
    )
  return found


def read_per_query(
  path: pathlib.Path, measures: Sequence[str]
) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
  """Measure -> system -> query id -> value, from a CSV of query_id, system and one column a measure."""
  if not path.exists():
    return {}
  values: dict[str, dict[str, dict[str, float]]] = {measure: {} for measure in measures}
  with open(path, encoding="utf-8", newline="") as file:
    rows = csv.DictReader(file)
    missing = {"query_id", "system", *measures} - set(rows.fieldnames or ())
    if missing:
      raise ReportError(f"{path}: the columns {', '.join(sorted(missing))} are missing; run evaluate again")
    for row in rows:
      for measure in measures:
        if row[measure] == "":
          continue  # a query that the measure does not know, as one without answers
        try:
          values[measure].setdefault(row["system"], {})[row["query_id"]] = float(row[measure])
        except (TypeError, ValueError):
          raise ReportError(f"{path}:{rows.line_num}: the value {row[measure]!r} is no number") from None
  return values
