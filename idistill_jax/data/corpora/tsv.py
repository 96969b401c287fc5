"""Tab-separated files, gzipped or not -> rows by column name, like those of `jsonl`.

A first line that holds a known column name is a header (DPR's `psgs_w100.tsv` has one); without it the columns are
an id, a text and, where there is a third, a title, as in MS MARCO's `collection.tsv` and `queries.tsv`.
"""

import csv
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Iterator

from idistill_jax.data import collection
from idistill_jax.data.corpora import jsonl

WITHOUT_HEADER = ("id", "text", "title")


def read(path: str | os.PathLike[str], names: frozenset[str]) -> Iterator[jsonl.Row]:
  """Rows as a stream; names: column names that make a first line a header.

  Raises CollectionError naming file and line for a line with another number of fields, and for bytes that are
  neither UTF-8 nor, where the name says so, gzip.
  """
  path = pathlib.Path(path)
  number = 0
  with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as raw:
    try:
      # Fields may be quoted (DPR quotes texts); a lone quote in MS MARCO's unquoted texts must not swallow lines.
      lines = csv.reader(io.TextIOWrapper(raw, "utf-8", newline=""), delimiter="\t", strict=False,
                         quoting=csv.QUOTE_NONE)
      header: tuple[str, ...] | None = None
      for number, fields in enumerate(lines, start=1):
        if header is None:
          named = names.intersection(fields) and len(set(fields)) == len(fields)
          header = tuple(fields) if named else WITHOUT_HEADER[: len(fields)]
          if named:
            continue
        if len(fields) != len(header):
          raise collection.CollectionError(
            f"{path}:{number}: expected {len(header)} fields ({', '.join(header)}), found {len(fields)}"
          )
        values = {name: _unquoted(field) for name, field in zip(header, fields, strict=True)}
        yield jsonl.Row(f"{path}:{number}", values)
    except (EOFError, OSError, zlib.error, UnicodeDecodeError, csv.Error) as e:
      raise collection.CollectionError(f"{path}:{number + 1}: cannot be read further: {e}; fetch it again") from e


def _unquoted(field: str) -> str:
  """DPR writes texts as CSV does: in quotes, quotes inside doubled."""
  if len(field) >= 2 and field[0] == field[-1] == '"':
    return field[1:-1].replace('""', '"')
  return field
