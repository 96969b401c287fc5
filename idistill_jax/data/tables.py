"""A committed collection folder -> tables of passages, queries and judgements.

The row of a passage or query is its place in the collection, which is also its row in
`passages.npy`/`queries.npy`.  Passages stay in their files, and each is read when it is asked for; of all others a
process holds nothing, as where they are and what they are called is mapped.
"""

import array
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

import numpy as np

from idistill_jax import by_row, records
from idistill_jax import ids as ids_lib
from idistill_jax.data import example, tfrecord
from idistill_jax.workdir import outside

PASSAGES = "passages"
# Beside the passages: where each begins (`tfrecord.starts`), and the arrays of `ids.Ids`.
PLACES = tuple(f"{PASSAGES}.{name}.npy" for name in ("starts", "ids", "by_id"))
QUERIES = "queries"
LISTS = "lists"
ANSWERS = "answers"
RANKINGS = "rankings"
# Generated query-passage pairs.
SOURCES = "sources.tsv"
QRELS_HEADER = ["query-id", "corpus-id", "score"]

# query id -> passage id -> grade
Qrels = dict[str, dict[str, int]]
Item = TypeVar("Item", records.Passage, records.Query)
# Where judgements of several splits hold a query, the first of these wins: no test query is trained on.
_HELD_OUT_FIRST = {"test": 0, "dev": 1, "train": 3}


class UnknownIdError(LookupError):
  """An id that the table does not hold."""


class Table(Generic[Item]):
  """Items in collection order, found by row or by id.  Raises ValueError where two share an id."""

  def __init__(self, items: Iterable[Item], ids: ids_lib.Ids | None = None):
    """ids: those of the items, where they are known."""
    self.items: Sequence[Item] = items if isinstance(items, Sequence) else tuple(items)
    self.ids = ids_lib.of(item.id for item in self.items) if ids is None else ids

  def __len__(self) -> int:
    return len(self.items)

  def __iter__(self) -> Iterator[Item]:
    return iter(self.items)

  def __contains__(self, item_id: object) -> bool:
    return item_id in self.ids

  def row(self, item_id: str) -> int:
    """Place of an id in the collection; raises UnknownIdError."""
    row = self.ids.row(item_id)
    if row is None:
      raise UnknownIdError(f"{type(self).__name__}: none of {len(self)} has the id {item_id!r}")
    return row

  def by_id(self, item_id: str) -> Item:
    """The item with that id; raises UnknownIdError."""
    return self.items[self.row(item_id)]


class FullTexts(by_row.ByRow[str]):
  """Title and text of each passage, put together when it is asked for: a list would be the corpus a second time."""

  def __init__(self, passages: Sequence[records.Passage]):
    self._passages = passages

  def __len__(self) -> int:
    return len(self._passages)

  def at(self, row: int) -> str:
    return self._passages[row].full_text


class Passages(Table[records.Passage]):
  """Every passage of the collection."""

  @property
  def texts(self) -> FullTexts:
    """Of each passage, as every model reads it."""
    return FullTexts(self.items)


class Queries(Table[records.Query]):
  """Every query of the collection, all splits in one table."""

  @property
  def texts(self) -> list[str]:
    return [query.text for query in self.items]

  def of_split(self, split: str) -> tuple[records.Query, ...]:
    """Queries of one split in collection order.

    Items and not a smaller table: rows stay those of the whole collection, as in `queries.npy`.
    """
    return tuple(query for query in self.items if query.split == split)


def load_passages(folder: str | os.PathLike[str]) -> Passages:
  """Passages of a collection folder; where `note_places` has not been, or was before they were written anew, all are
  looked through once."""
  folder = pathlib.Path(folder)
  paths = tfrecord.shard_paths(folder, PASSAGES)
  try:
    starts, *found = (np.load(folder / name, mmap_mode="r") for name in PLACES)
    payloads, ids = tfrecord.Payloads(paths, starts), ids_lib.Ids(*found)
  except (FileNotFoundError, EOFError, ValueError):
    starts, ids = _places(folder)
    payloads = tfrecord.Payloads(paths, starts)
  return Passages(example.Records(payloads, records.Passage), ids)


def note_places(folder: str | os.PathLike[str]) -> None:
  """Writes, beside the passages of a folder, where each is; to be called when they have been written."""
  starts, ids = _places(folder)
  for name, found in zip(PLACES, (starts, ids.utf8_P, ids.ascending_P), strict=True):
    path = pathlib.Path(folder) / name
    path.unlink(missing_ok=True)  # not written over: it may be the file of another folder, too
    np.save(path, found)


def _places(folder: str | os.PathLike[str]) -> tuple[np.ndarray, ids_lib.Ids]:
  """`tfrecord.starts` and the ids of all passages, each of which is read and checked; raises ValueError where two have
  the same id."""
  lengths, packed = array.array("q"), [np.zeros(0, "S1")]
  for path in tfrecord.shard_paths(folder, PASSAGES):
    found = []
    for one, length in example.read_ids(path, records.Passage):
      found.append(one)
      lengths.append(length)
    packed.append(ids_lib.packed(found))
  try:
    return tfrecord.starts(lengths), ids_lib.of_packed(np.concatenate(packed))
  except ValueError as e:
    raise ValueError(f"{PASSAGES} of {folder}: {e}") from e


def load_queries(folder: str | os.PathLike[str]) -> Queries:
  """Queries of a collection folder."""
  return Queries(example.read_records(folder, QUERIES, records.Query))


def load_lists(folder: str | os.PathLike[str]) -> tuple[records.CandidateList, ...] | None:
  """Lists recorded elsewhere, passages in the order shown; None where the collection brings none."""
  if not tfrecord.exists(folder, LISTS):
    return None
  return tuple(example.read_records(folder, LISTS, records.CandidateList))


def load_answers(folder: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
  """Query id -> accepted answers; empty where the collection brings none."""
  if not tfrecord.exists(folder, ANSWERS):
    return {}
  return {one.query_id: one.answers for one in example.read_records(folder, ANSWERS, records.Answers)}


def load_rankings(folder: str | os.PathLike[str]) -> tuple[records.RankedList, ...]:
  """LLM rankings made elsewhere, one a query; empty where the collection brings none."""
  if not tfrecord.exists(folder, RANKINGS):
    return ()
  return tuple(example.read_records(folder, RANKINGS, records.RankedList))


def load_qrels(folder: str | os.PathLike[str], split: str) -> Qrels:
  """Judgements of one split of a collection folder.

  Raises FileNotFoundError naming the splits that have some.
  """
  path = pathlib.Path(folder) / "qrels" / f"{split}.tsv"
  if not path.exists():
    there = sorted(other.stem for other in path.parent.glob("*.tsv"))
    raise FileNotFoundError(
      f"{path}: no judgements for the split {split!r}; the collection has some for: "
      f"{', '.join(there) or 'none'}"
    )
  return read_qrels(path)


def load_some_qrels(folder: str | os.PathLike[str], split: str) -> Qrels:
  """The same where there are some, else {}."""
  path = pathlib.Path(folder) / "qrels" / f"{split}.tsv"
  return read_qrels(path) if path.exists() else {}


def read_qrels(path: str | os.PathLike[str]) -> Qrels:
  """BEIR judgements: a header `query-id  corpus-id  score`, then one tab-separated judgement a line, or a blank one.

  The header may be missing where the first line is a judgement, and may have other cases and underscores; a score may
  be written 1.0.  Raises ValueError naming file and line for a line of another form, bytes that are not UTF-8, a score
  that is no integer, and a pair judged twice with different scores.
  """
  found: Qrels = {}
  number = 0
  for number, line in outside.text_lines(outside.at(path), ValueError):
    fields = line.rstrip("\r\n").split("\t")
    score = _grade(fields[2]) if len(fields) == 3 and fields[0] and fields[1] else None
    if not line.strip() or (number == 1 and [one.lower().replace("_", "-") for one in fields] == QRELS_HEADER):
      continue
    if score is None:
      form = "query id, passage id and integer score with tabs between"
      form = f"a header {chr(9).join(QRELS_HEADER)!r} or {form}" if number == 1 else form
      commas = "; its fields are separated by commas, and tabs are needed" * (len(fields) == 1 and line.count(",") == 2)
      raise ValueError(f"{path}:{number}: expected {form}, found {line!r}{commas}")
    query_id, passage_id = fields[:2]
    if not all(re.fullmatch(r"\S+", one) for one in (query_id, passage_id)):
      raise ValueError(f"{path}:{number}: the ids {query_id!r} and {passage_id!r} may have no white space in them, as "
                       "those of queries and corpora have none")
    earlier = found.setdefault(query_id, {}).setdefault(passage_id, score)
    if earlier != score:
      raise ValueError(f"{path}:{number}: {query_id} {passage_id} is judged {score} here and {earlier} above")
  if not number:
    raise ValueError(f"{path}:1: expected a header {chr(9).join(QRELS_HEADER)!r} or a judgement, found ''")
  return found


def read_trec_qrels(path: str | os.PathLike[str]) -> Qrels:
  """TREC judgements: `query iteration passage grade` a line, or none.  Raises ValueError naming file and line."""
  found: Qrels = {}
  for number, line in outside.text_lines(outside.at(path), ValueError):
    if not line.strip():
      continue
    fields = line.split()
    grade = _grade(fields[3]) if len(fields) == 4 else None
    if grade is None:
      raise ValueError(f"{path}:{number}: expected `query 0 passage grade`, found {line!r}")
    earlier = found.setdefault(fields[0], {}).setdefault(fields[2], grade)
    if earlier != grade:
      raise ValueError(f"{path}:{number}: {fields[0]} {fields[2]} is judged {grade} here and {earlier} above")
  return found


def _grade(text: str) -> int | None:
  """An integer of trec_eval's 32 bits, as in 2 or 2.0; None for anything else."""
  found = int(text.partition(".")[0]) if re.fullmatch(r"-?\d{1,10}(\.0*)?", text.strip()) else None
  return found if found is not None and abs(found) < 2**31 else None


def write_qrels(path: str | os.PathLike[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
  """Writes judgements in BEIR's form, in the order of the mapping."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "w", encoding="utf-8", newline="") as out:
    out.write("\t".join(QRELS_HEADER) + "\n")
    for query_id, judged in qrels.items():
      for passage_id, score in judged.items():
        out.write(f"{query_id}\t{passage_id}\t{score}\n")


def mentioned(
  judgements: Iterable[Qrels], lists: Iterable[records.CandidateList | records.RankedList]
) -> set[str]:
  """Ids of the passages that judgements and lists name."""
  judged = {one for qrels in judgements for found in qrels.values() for one in found}
  return judged | {one for shown in lists for one in shown.passage_ids}


def split_of(query_id: str, stated: str | None, judgements: Mapping[str, Qrels]) -> str:
  """The split a query states, else that of the judgements which hold it (held-out ones first), else train."""
  if stated is not None:
    return stated
  holding = [split for split, qrels in judgements.items() if query_id in qrels]
  return min(holding, key=held_out_first, default="train")


def held_out_first(split: str) -> tuple[int, str]:
  """To sort splits by: what is in several belongs to the first of them, as nothing of a test is trained on."""
  return _HELD_OUT_FIRST.get(split, 2), split
