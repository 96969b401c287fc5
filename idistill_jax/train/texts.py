"""What a model reads: texts or pairs of them, tokenised or put together a piece at a time.

Nobody holds the tokens of a corpus, and nobody waits for them: a worker tokenises the pieces that it claims, each while
its device is at the one before.
"""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from idistill_jax.data import pack, tokenize

T = TypeVar("T")
Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
  """Some of the texts: how many tokens each has, int [n], and `text(i)` of each, counted from the piece's first.

  cut: what they lost at the encoder's lengths; None where they were tokenised before.
  """

  lengths: np.ndarray
  text: Callable[[int], pack.Text]
  cut: tokenize.Cut | None = None


class Texts(Protocol):
  """So many texts; `sample`: lengths of some that lie evenly among them, at most pack.SAMPLE."""

  @property
  def sample(self) -> np.ndarray: ...

  def __len__(self) -> int: ...

  def read(self, rows: range) -> Piece: ...


class Tokenised:
  """Texts that `table` makes tokens of when a piece of them is read."""

  def __init__(self, texts: Sequence[str], table: Callable[[Iterable[str]], tokenize.TokenTable]):
    self._texts, self._table = texts, table
    self.sample = table(texts[row] for row in pack.sample(len(texts))).lengths

  def __len__(self) -> int:
    return len(self._texts)

  def read(self, rows: range) -> Piece:
    made = self._table(self._texts[rows.start:rows.stop])
    return Piece(lengths=made.lengths, text=lambda i: (made[i], None), cut=made.cut)


class Pairs:
  """Queries with passages, row by row of two tables: pair i is queries[query_of[i]] and passages[passage_of[i]]."""

  def __init__(self, queries: tokenize.TokenTable, passages: tokenize.TokenTable, query_of: np.ndarray,
               passage_of: np.ndarray):
    self._queries, self._passages, self._query_of, self._passage_of = queries, passages, query_of, passage_of
    self.sample = self._lengths(pack.sample(len(query_of)))

  def __len__(self) -> int:
    return len(self._query_of)

  def read(self, rows: range) -> Piece:
    def text(i: int) -> pack.Text:
      query, passage = self._query_of[rows[i]], self._passage_of[rows[i]]
      return tokenize.pair(self._queries[query], self._passages[passage], self._passages.between)

    return Piece(lengths=self._lengths(np.arange(rows.start, rows.stop)), text=text)

  def _lengths(self, rows: np.ndarray) -> np.ndarray:
    return tokenize.pair_lengths(self._queries.lengths[self._query_of[rows]],
                                 self._passages.lengths[self._passage_of[rows]], self._passages.between)


def ahead(items: Iterator[T], make: Callable[[T], Made]) -> Generator[tuple[T, Made], None, None]:
  """(item, make(item)) of each; the next is asked for and made while whoever asked is at the one before."""
  pairs = ((item, make(item)) for item in items)
  # One: passages are decoded there, and protobuf has crashed when several threads parsed at once.
  with concurrent.futures.ThreadPoolExecutor(1, "pieces") as thread:
    coming = thread.submit(next, pairs, None)
    while (found := coming.result()) is not None:
      coming = thread.submit(next, pairs, None)
      yield found
