"""What every searcher returns, the one tie rule, and the checks on vectors that all of them share.

The tie rule is trec_eval's: equal float32 scores rank by id, the greater id first (ids compared as text).
Using the rule of the evaluator for searching as well means that the order a search returns is the order that
is measured.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from etils import epath

from idistill_jax import ids as ids_lib
from idistill_jax import processes
from idistill_jax.workdir import remote

# How many offending rows an error names before it only counts.
ROWS_NAMED = 5
# Vectors of a block.
_ROWS = 16_384


class VectorError(ValueError):
  """Vectors that cannot be searched; the message names the offending rows by id."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Hits:
  """Passages of each query, best first.

  rows: int32 [Q, K], places in the collection.  scores: float32 [Q, K], higher is better.
  found: int32 [Q], how many leading places matched the query at all.  Vector search matches everything (found
  = K); BM25 does not match a passage that shares no term with the query, and fills the places that remain
  with such passages.
  """

  rows: np.ndarray
  scores: np.ndarray
  found: np.ndarray


class Searcher(Protocol):
  """Vectors to hits."""

  def search(self, queries_QxE: np.ndarray, k: int) -> Hits: ...


def tie_order(ids: Sequence[str]) -> np.ndarray:
  """int32 [P]: rows in the order in which equal scores rank; raises ValueError on a repeated id."""
  return ids_lib.of(ids).ascending_P[::-1].astype(np.int32)


def check_passages(vectors_PxE: np.ndarray, ids: Sequence[str]) -> np.ndarray:
  """float32 [P, E], C order; raises VectorError as `check_shape` does, and where a row is not finite."""
  return _check_rows(vectors_PxE, ids, range(len(ids)))


def check_passages_together(vectors_PxE: np.ndarray, ids: Sequence[str]) -> np.ndarray:
  """As `check_passages`, called by all processes: each looks at its share, and what one finds is the error of all."""
  count, number = processes.count(), processes.index()
  with processes.agreed("the check of the passages' vectors"):
    return _check_rows(vectors_PxE, ids, range(len(ids) * number // count, len(ids) * (number + 1) // count))


def _check_rows(vectors_PxE: np.ndarray, ids: Sequence[str], rows: range) -> np.ndarray:
  vectors_PxE = _float32(check_shape(vectors_PxE, ids))
  bad = rows.start + not_finite(vectors_PxE[rows.start : rows.stop])
  refuse(bad, len(rows), lambda row: repr(ids[row]), "passages")
  return vectors_PxE


def check_shape(vectors_PxE: np.ndarray, ids: Sequence[str]) -> np.ndarray:
  """The vectors, of which none is read; raises VectorError where they are not one an id, or there are none at all."""
  vectors_PxE = np.asarray(vectors_PxE)
  if vectors_PxE.ndim != 2:
    raise VectorError(f"passage vectors have the shape {vectors_PxE.shape}; expected [passages, embedding]")
  if len(vectors_PxE) != len(ids):
    raise VectorError(f"{len(vectors_PxE)} passage vectors but {len(ids)} passage ids")
  if not len(ids):
    raise VectorError("there are no passages to search; is the corpus empty?")
  _check_width(vectors_PxE, "passages")
  return vectors_PxE


def check_queries(queries_QxE: np.ndarray, width: int) -> np.ndarray:
  """float32 [Q, E], C order; raises VectorError on another width and on a row that is not finite."""
  queries_QxE = np.asarray(queries_QxE)
  if queries_QxE.ndim != 2 or queries_QxE.shape[1] != width:
    raise VectorError(
      f"query vectors have the shape {queries_QxE.shape}; the index holds vectors of width {width}"
    )
  _check_width(queries_QxE, "query rows")
  queries_QxE = _float32(queries_QxE)
  refuse(not_finite(queries_QxE), len(queries_QxE), str, "query rows")
  return queries_QxE


def by_first(path: epath.Path, find: Callable[[], Hits]) -> Hits:
  """What `find` gives in the first process of a job: it alone needs the memory, and the others read it from `path`.

  path: where all see it, as in `Job.pieces`.
  """
  if processes.count() == 1:
    return find()
  found: list[Hits] = []

  def keep() -> None:
    found.append(find())
    out = io.BytesIO()
    np.savez(out, **dataclasses.asdict(found[0]))
    with remote.reaching(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(out.getvalue())

  processes.once(keep, f"the search of {path.stem}")
  if found:
    return found[0]
  with remote.reaching(path):
    return Hits(**np.load(io.BytesIO(path.read_bytes())))


def blocks(count: int) -> Iterator[slice]:
  """Of so many vectors, those to look at, or compute with, at once: what comes of all their values is a quarter of a
  corpus, or another corpus."""
  return (slice(i, i + _ROWS) for i in range(0, count, _ROWS))


def check_k(k: int) -> None:
  if k < 1:
    raise ValueError(f"k must be at least 1, found {k}")


def not_finite(vectors: np.ndarray) -> np.ndarray:
  """Rows that hold NaN or infinity, ascending."""
  finite = [np.isfinite(vectors[block]).all(axis=1) for block in blocks(len(vectors))]
  return np.flatnonzero(~np.concatenate([np.zeros(0, bool), *finite]))


def refuse(bad: np.ndarray, count: int, name: Callable[[int], str], what: str) -> None:
  """Raises VectorError, naming some of them, where any of so many vectors, those that were looked at, are bad."""
  if not len(bad):
    return
  named = ", ".join(name(int(row)) for row in bad[:ROWS_NAMED])
  more = "" if len(bad) <= ROWS_NAMED else f" and {len(bad) - ROWS_NAMED} more"
  raise VectorError(
    f"{len(bad)} of {count} vectors that this process looked at hold NaN or infinity ({what}: {named}{more}); "
    "the encoder's weights or its input are broken"
  )


def _check_width(vectors: np.ndarray, what: str) -> None:
  if vectors.shape[1] == 0:
    raise VectorError(f"vectors of {what} have width 0; did the encoder return an empty embedding?")


def _float32(vectors: np.ndarray) -> np.ndarray:
  """In C order, before a look whether they are finite: a float64 value may be, and yet overflow to inf here."""
  with np.errstate(over="ignore"):
    return np.ascontiguousarray(vectors, np.float32)
