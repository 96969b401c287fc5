"""JSON-lines files and JSON arrays, gzipped or not -> checked rows that know where they stand."""

import array
import codecs
import dataclasses
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from idistill_jax.data import characters, collection
from idistill_jax.workdir import outside

# So many repeated ids are shown; of more, the number is told.
_EXAMPLES = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """One line.  where: `file:line`, for messages."""

  where: str
  values: dict[str, Any]


def read(path: str | os.PathLike[str]) -> Iterator[Row]:
  """Rows of a file as a stream; blank lines are skipped.

  Raises CollectionError naming file and line for a line that is not one JSON object in UTF-8, and as `lines` does.
  """
  for where, line in lines(path):
    if line.strip():
      yield Row(where, _object(where, line))


def lines(path: str | os.PathLike[str]) -> Iterator[tuple[str, bytes]]:
  """`file:line` and each line of a file as a stream.

  Raises CollectionError naming file and line where it cannot be read further, as a gzip file that ends early.
  """
  yield from ((f"{path}:{number}", line)
              for number, line in outside.lines(outside.at(path), collection.CollectionError))


def entries(path: str | os.PathLike[str]) -> list[Any]:
  """Entries of a file that is one JSON array, in memory; raises CollectionError."""
  path = outside.at(path)
  try:
    with outside.reading(path) as file:
      found = json.load(file)
  except (ValueError, RecursionError, EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise collection.CollectionError(f"{path}: not JSON: {e}; JSON lines belong into a file that ends in .jsonl") from e
  if not isinstance(found, list):
    raise collection.CollectionError(f"{path}: expected a JSON array, found {type(found).__name__}")
  return found


def identified(path: str | os.PathLike[str]) -> Iterator[tuple[Row, str]]:
  """Rows with their `_id`, checked as `with_ids` does."""
  return with_ids(lambda: ((row, own_id(row)) for row in read(path)))


def whole_id(where: str, found: str) -> str:
  """The id; raises CollectionError where it ends within a character: no file could hold it."""
  if not characters.is_whole(found):
    raise collection.CollectionError(f"{where}: the id {found!r} ends within half a character; write it whole")
  return found


def with_ids(rows: Callable[[], Iterable[tuple[Row, str]]]) -> Iterator[tuple[Row, str]]:
  """Hands rows on whose id has no white space in it; raises CollectionError for any other.

  Behind the last row it raises for ids that occurred twice, with their number.  Of each id eight bytes are kept, and
  where two are the same, `rows` is called once more to see whether the ids are, and where they stand.
  """
  hashes = array.array("q")
  for row, row_id in rows():
    if not re.fullmatch(r"\S+", row_id):
      raise collection.CollectionError(
        f"{row.where}: the id {row_id!r} is empty or has white space in it, which run files and judgement "
        "files cannot hold"
      )
    whole_id(row.where, row_id)
    hashes.append(hash(row_id))
    yield row, row_id
  values, counts = np.unique(np.frombuffer(hashes, np.int64), return_counts=True)
  if len(values) < len(hashes):
    _refuse_repeated(rows(), set(values[counts > 1].tolist()))


def _refuse_repeated(rows: Iterable[tuple[Row, str]], hashes: set[int]) -> None:
  """Raises CollectionError naming the first ids with one of the hashes that occur twice, and their number."""
  seen: dict[str, str] = {}
  repeated: list[str] = []
  for row, row_id in rows:
    if hash(row_id) in hashes and seen.setdefault(row_id, row.where) != row.where:
      repeated.append(f"{row.where}: the id {row_id!r} stands in {seen[row_id]} already")
  if repeated:
    rest = len(repeated) - _EXAMPLES
    more = f"; and {rest} others: {len(repeated)} repeat an id in all" if rest > 0 else ""
    raise collection.CollectionError("; ".join(repeated[:_EXAMPLES]) + more)


def with_texts(rows: Iterable[tuple[Row, str]], names: Sequence[str]) -> Iterator[tuple[Row, str, str]]:
  """Rows and ids with the text under the first of `names`, "" where it is absent or null.

  Raises CollectionError for a value that is no text, and behind the last row where none has any of the names: that is
  a file of another kind.
  """
  first_row, found = None, False
  for row, row_id in rows:
    first_row = first_row or row
    found = found or any(name in row.values for name in names)
    yield row, row_id, words(row, names) or ""
  if first_row is not None and not found:
    raise collection.CollectionError(lacking(first_row, "text", names))


def value(where: str, line: bytes) -> Any:
  """What a line says; raises CollectionError where it is not JSON in UTF-8."""
  try:
    return json.loads(line)
  except (ValueError, RecursionError) as e:  # brackets without end, a number of thousands of digits
    raise collection.CollectionError(f"{where}: not JSON ({e}); found {_shorten(line)!r}") from e


def _object(where: str, line: bytes) -> dict[str, Any]:
  is_array = line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
  hint = "; one object a line is needed, found an array" * is_array
  try:
    values = value(where, line)
  except collection.CollectionError as e:  # an array over several lines
    raise collection.CollectionError(f"{e}{hint}") from e
  if not isinstance(values, dict):
    raise collection.CollectionError(f"{where}: expected a JSON object, found {_shorten(line)!r}{hint}")
  return values


def _shorten(line: bytes) -> str:
  shown = line.decode(errors="replace").rstrip("\r\n")
  return shown if len(shown) <= 80 else shown[:77] + "..."


def first(row: Row, names: Sequence[str]) -> Any:
  """The value under the first of `names` that is there and not null; None where none is."""
  return next((value for name in names if (value := row.values.get(name)) is not None), None)


def words(row: Row, names: Sequence[str]) -> str | None:
  """The same as text, numbers written out; raises CollectionError for a value of another kind."""
  value = first(row, names)
  if value is not None and (not isinstance(value, (str, int)) or isinstance(value, bool)):
    pandas = "; written by pandas? read ids as text: dtype=str"
    hint = pandas * ("_id" in names and isinstance(value, float) and value.is_integer())
    raise collection.CollectionError(f"{row.where}: {' or '.join(names)} must be text, found {value!r}{hint}")
  return None if value is None else str(value)


def split(row: Row, names: Sequence[str]) -> str | None:
  """The split that a row states, None where it states none; raises CollectionError for one that is no file's name, as
  judgements of a split lie in a file of that name."""
  found = words(row, names) or None
  if found is not None and not re.fullmatch(r"[\w.-]+", found):
    raise collection.CollectionError(
      f"{row.where}: {' or '.join(names)} {found!r} cannot name a file; use letters, digits, '_', '-' and '.'"
    )
  return found


def lacking(row: Row, what: str, names: Sequence[str]) -> str:
  """What to say of a row that has none of the names."""
  there = ", ".join(map(repr, row.values)) or "no keys"
  return f"{row.where}: no {what}: none of {', '.join(names)} among {there}"


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


def own_id(row: Row) -> str:
  """Its `_id`, a number written out; raises CollectionError for one that is absent or of another kind."""
  found = words(row, ("_id",))
  return text(row, "_id") if found is None else found


def texts(row: Row, key: str) -> tuple[str, ...]:
  """A value that must be there and be a list of strings; raises CollectionError."""
  value = row.values.get(key)
  if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
    raise collection.CollectionError(f"{row.where}: {key!r} must be a list of strings, found {value!r}")
  return tuple(value)
