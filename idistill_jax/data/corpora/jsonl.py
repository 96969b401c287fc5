"""JSON-lines files, gzipped or not -> checked rows that know where they stand."""

import array
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from idistill_jax.data import collection


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """One line.  where: `file:line`, for messages."""

  where: str
  values: dict[str, Any]


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Rows of a file as a stream; blank lines are skipped.

  Raises CollectionError naming file and line for a line that is not one JSON object in UTF-8, and for a gzip
  file that ends early or is damaged.
  """
  path = pathlib.Path(path)
  number = 0
  with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
    try:
      for number, line in enumerate(file, start=1):
        if line.strip():
          yield Row(f"{path}:{number}", _parse(f"{path}:{number}", line))
    except (EOFError, OSError, zlib.error) as e:
      raise collection.CollectionError(
        f"{path}:{number + 1}: the gzip file cannot be read further: {e}; fetch it again"
      ) from e


def identified(path: str | os.PathLike[str]) -> Iterator[tuple[Row, str]]:
  """Rows with their `_id`, checked as `with_ids` does."""
  return with_ids(lambda: ((row, text(row, "_id")) for row in read(path)))


def with_ids(rows: Callable[[], Iterable[tuple[Row, str]]]) -> Iterator[tuple[Row, str]]:
  """Hands rows on whose id has no white space in it; raises CollectionError for any other.

  Behind the last row it raises for an id that occurred twice.  Of each id eight bytes are kept, and where two are the
  same, `rows` is called once more to see whether the ids are, and where they stand.
  """
  hashes = array.array("q")
  for row, row_id in rows():
    if not re.fullmatch(r"\S+", row_id):
      raise collection.CollectionError(
        f"{row.where}: the id {row_id!r} is empty or has white space in it, which run files and judgement "
        "files cannot hold"
      )
    hashes.append(hash(row_id))
    yield row, row_id
  values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
  if len(values) < len(hashes):
    _refuse_repeated(rows(), set(values[counts > 1].tolist()))


def _refuse_repeated(rows: Iterable[tuple[Row, str]], hashes: set[int]) -> None:
  """Raises CollectionError for the first id with one of the hashes that occurs twice."""
  seen: dict[str, str] = {}
  for row, row_id in rows:
    if hash(row_id) in hashes:
      if row_id in seen:
        raise collection.CollectionError(f"{row.where}: the id {row_id!r} stands in {seen[row_id]} already")
      seen[row_id] = row.where


def _parse(where: str, line: bytes) -> dict[str, Any]:
  try:
    values = json.loads(line)
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise collection.CollectionError(f"{where}: not JSON ({e}); found {_shorten(line)!r}") from e
  if not isinstance(values, dict):
    raise collection.CollectionError(f"{where}: expected a JSON object, found {_shorten(line)!r}")
  return values


def _shorten(line: bytes) -> str:
  shown = line.decode(errors="replace").rstrip("\r\n")
  return shown if len(shown) <= 80 else shown[:77] + "..."


def text(row: Row, key: str) -> str:
  """A value that must be there and be a string; raises CollectionError."""
  if key not in row.values:
    raise collection.CollectionError(
      f"{row.where}: no {key!r}; the line has {', '.join(map(repr, row.values)) or 'no keys'}"
    )
  value = row.values[key]
  if not isinstance(value, str):
    raise collection.CollectionError(f"{row.where}: {key!r} must be a string, found {value!r}")
  return value


def texts(row: Row, key: str) -> tuple[str, ...]:
  """A value that must be there and be a list of strings; raises CollectionError."""
  value = row.values.get(key)
  if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
    raise collection.CollectionError(f"{row.where}: {key!r} must be a list of strings, found {value!r}")
  return tuple(value)


def sha256(path: str | os.PathLike[str]) -> str:
  """Hash of a file's bytes."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
