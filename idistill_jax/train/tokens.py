"""Tokens of the texts that a training reads: made once a stage, each piece of them by the process that claims it.

Which texts share a row depends on the lengths of all, and which tokens a process needs on the rows that its devices
hold.  So all are kept in one file, in a bucket one a machine, which processes map: what is read of it is the memory of
none of them.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from idistill_jax import processes, progress
from idistill_jax.data import pack, tokenize
from idistill_jax.train import pieces, truncation
from idistill_jax.workdir import artifacts

# So many texts tell whose tokens they are.
_LOOKED_AT = 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokensOfRows:
  """Tokens of some texts of a collection.

  rows: which, ascending.  made: of each its `length`, and as many `ids` of those it has room for.  between: as in
  tokenize.TokenTable.
  """

  rows: np.ndarray
  made: np.ndarray
  between: tokenize.Between

  def __getitem__(self, row: int) -> np.ndarray:
    place = self.rows.searchsorted(row)
    if self.rows[place] != row:
      raise KeyError(f"row {row} is in no list that was read")
    return self._ids[place, :self._lengths[place]]

  def lengths_of(self, rows: np.ndarray | int) -> np.ndarray:
    return self._lengths[self.rows.searchsorted(rows)]

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    return self.made["length"].astype(np.int64)

  @functools.cached_property
  def _ids(self) -> np.ndarray:
    # No longer a memmap, each slice of which takes microseconds.
    return np.asarray(self.made["ids"])


def of_rows(job: artifacts.Job, kind: str, texts: Sequence[str], rows: np.ndarray,
            table: Callable[[Iterable[str]], tokenize.TokenTable], *, ids: int,
            between: tokenize.Between) -> TokensOfRows:
  """Tokens of texts[rows] (rows ascending), which `table` makes; every process of a job calls it.

  kind: what the texts are, for log and manifest, which are told how they were cut.  ids: one more than the largest
  token id.  between: as in TokensOfRows.  Raises as `Pieces.rounds` and `Pieces.whole` do.
  """
  total = len(rows)
  some = table(texts[row] for row in rows[pack.sample(total, _LOOKED_AT)])
  kept = np.dtype([("length", np.int32), ("ids", np.min_scalar_type(ids - 1), (some.cut.at,))])
  shared, here = (folder / artifacts.CHECKPOINTS / "tokens" for folder in (job.shared, job.out))
  # All of them: of as many others, most of which are the same, a sample may tell nothing.
  whose = np.append(pieces.numbers(np.asarray(rows, np.int64).tobytes()), some.flat)
  work = pieces.Pieces(shared, f"0 tokens of {kind}", total, whose, job.still_alone, np.zeros(0, kept))
  with contextlib.closing(work), progress.bar(f"tokenise {kind}", total=total, done=total - work.left()) as bar:
    for claimed in work.rounds():
      bar.update(total - work.left())
      for piece in claimed:
        made = table(texts[row] for row in rows[piece.start:piece.stop])
        work.finish(piece, _padded(made, kept), (made.cut,))
        bar.update(total - work.left())
    if total and processes.is_first():
      truncation.telling(job)(kind, *work.cuts())
    here.mkdir(parents=True, exist_ok=True)
    return TokensOfRows(rows=rows, made=work.whole(here / f"{kind}.half"), between=between)


def _padded(table: tokenize.TokenTable, kept: np.dtype) -> np.ndarray:
  """In one shape for every text, so that the n-th is found without a look at those before it."""
  made = np.zeros(len(table), kept)
  made["length"] = table.lengths
  made["ids"][np.arange(made["ids"].shape[1]) < table.lengths[:, None]] = table.flat
  return made
