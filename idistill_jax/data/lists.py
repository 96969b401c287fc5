"""Lists as numbers: few arrays for all of them, whichever process has read which."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from idistill_jax import by_row, records
from idistill_jax.data import tables

Record = records.CandidateList | records.RankedList | records.ScoredList


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberedList:
  """One list as numbers, best passage first; query_id: what people look it up by."""

  query_id: str
  query_row: int
  passage_rows: np.ndarray
  values: np.ndarray
  known: np.ndarray
  weight: float = 1.0


class Lists(by_row.ByRow[NumberedList]):
  """Any number of lists, each put together when it is asked for.

  query_rows, lengths: int64 [lists].  weights: float32 [lists].  passage_rows: int64, values: float32, known: bool, all
  [passages of all lists], list after list.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], query_ids: Sequence[str]):
    """arrays: by the names above.  query_ids: of all rows of the collection's queries."""
    self.query_rows, self.lengths, self.weights = (arrays[name] for name in ("query_rows", "lengths", "weights"))
    self.passage_rows, self.values, self.known = (arrays[name] for name in ("passage_rows", "values", "known"))
    self._ends, self._query_ids = np.cumsum(self.lengths), query_ids

  def __len__(self) -> int:
    return len(self.query_rows)

  def only(self, wanted: np.ndarray) -> "Lists":
    """The lists for which `wanted`, bool [lists], is true."""
    of_lists = {name: getattr(self, name)[wanted] for name in ("query_rows", "lengths", "weights")}
    kept = np.repeat(wanted, self.lengths)
    return Lists(of_lists | {name: getattr(self, name)[kept] for name in ("passage_rows", "values", "known")},
                 self._query_ids)

  def span(self, row: int) -> slice:
    """Where a list's passages stand among those of all lists."""
    end = int(self._ends[row])
    return slice(end - int(self.lengths[row]), end)

  def at(self, row: int) -> NumberedList:
    query_row, span = int(self.query_rows[row]), self.span(row)
    return NumberedList(
      query_id=self._query_ids[query_row], query_row=query_row, passage_rows=self.passage_rows[span],
      values=self.values[span], known=self.known[span], weight=float(self.weights[row]))


def arrays(lists: Iterable[NumberedList]) -> dict[str, np.ndarray]:
  """What `Lists` is made of."""
  lists = list(lists)
  joined = lambda name, kind: np.concatenate([np.zeros(0, kind), *(getattr(one, name) for one in lists)], dtype=kind)
  return {
    "query_rows": np.array([one.query_row for one in lists], np.int64),
    "lengths": np.array([len(one.passage_rows) for one in lists], np.int64),
    "weights": np.array([one.weight for one in lists], np.float32),
    "passage_rows": joined("passage_rows", np.int64), "values": joined("values", np.float32),
    "known": joined("known", bool),
  }


def numbered(one: Record, queries: tables.Queries, passages: tables.Passages) -> NumberedList:
  """Of the LLM's order, values are places, 0 = best; of a retriever's or teacher's scores they are these."""
  known = np.ones(len(one.passage_ids), bool)
  if isinstance(one, records.RankedList):
    known[list(one.filled_places)] = False
    values, weight = np.arange(len(known), dtype=np.float32), one.weight
  else:
    values, weight = np.asarray(one.scores, np.float32), 1.0
  return NumberedList(
    query_id=one.query_id, query_row=queries.row(one.query_id),
    passage_rows=np.array([passages.row(i) for i in one.passage_ids], np.int64), values=values, known=known,
    weight=weight,
  )


def unscored(query_id: str, query_row: int, passage_rows: Sequence[int] | np.ndarray) -> NumberedList:
  """A list of which nobody has said anything yet."""
  rows = np.asarray(passage_rows, np.int64)
  return NumberedList(query_id=query_id, query_row=query_row, passage_rows=rows, values=np.zeros(len(rows), np.float32),
                      known=np.ones(len(rows), bool))
