"""Tab-separated files, gzipped or not -> rows by column name, like those of `jsonl`.

DPR's `psgs_w100.tsv` has a header; without one the columns are an id, a text and, where there is a third, a title, as
in MS MARCO's `collection.tsv` and `queries.tsv`.
"""

import os
from collections.abc import Callable, Iterator, Sequence

from idistill_jax.data import collection
from idistill_jax.data.corpora import jsonl
from idistill_jax.workdir import outside

WITHOUT_HEADER = ("id", "text", "title")


def read(path: str | os.PathLike[str], is_header: Callable[[Sequence[str]], bool]) -> Iterator[jsonl.Row]:
  """Rows as a stream; blank lines are skipped.  is_header: whether the first line's fields, in small letters and
  without quotes and spaces around them, name columns, which are then called so.

  Raises CollectionError naming file and line for a line with another number of fields, and for bytes that are
  neither UTF-8 nor, where the name says so, gzip.
  """
  header: tuple[str, ...] | None = None
  # Not the csv module: a lone quote in MS MARCO's texts must not swallow lines, and its fields are bounded.
  for number, line in outside.text_lines(outside.at(path), collection.CollectionError):
    fields = line.rstrip("\r\n").split("\t")
    if not any(field.strip() for field in fields):
      continue
    if header is None:
      names = tuple(_unquoted(field).strip().lower() for field in fields)
      if is_header(names):
        header = names
        continue
      header = WITHOUT_HEADER[: len(fields)]
    if len(fields) != len(header):
      raise collection.CollectionError(
        f"{path}:{number}: expected {len(header)} fields ({', '.join(header)}), found {len(fields)}"
      )
    yield jsonl.Row(f"{path}:{number}", {name: _unquoted(field) for name, field in zip(header, fields, strict=True)})


def _unquoted(field: str) -> str:
  """DPR writes texts as CSV does: in quotes, quotes inside doubled."""
  if len(field) >= 2 and field[0] == field[-1] == '"' and '"' not in field[1:-1].replace('""', ""):
    return field[1:-1].replace('""', '"')
  return field
