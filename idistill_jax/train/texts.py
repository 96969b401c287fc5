"""What a model reads: texts or pairs of them, tokenised or put together a piece at a time.

Nobody holds the tokens of a corpus, and nobody waits for them: a worker tokenises the pieces that it claims, each while
its device is at the one before.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from idistill_jax.data import pack, tokenize
from idistill_jax.train import pieces

T = TypeVar("T")
Made = TypeVar("Made")
# Of passages 37 MB of tokens, at 140 each.
KEPT = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
  """Some of the texts: how many tokens each has, int [n], and `text(i)` of each, counted from the piece's first.

  cuts: what they lost at the encoder's lengths, of pairs the queries and then the passages.
  """

  lengths: np.ndarray
  text: Callable[[int], pack.Text]
  cuts: tuple[tokenize.Cut, ...] = ()


class Texts(Protocol):
  """So many texts; `sample`: lengths of some that lie evenly among them, at most pack.SAMPLE.

  whose: int64 numbers that are others of other texts, where the stage's key and the sample do not tell.
  """

  @property
  def sample(self) -> np.ndarray: ...

  @property
  def whose(self) -> np.ndarray: ...

  def __len__(self) -> int: ...

  def read(self, rows: range) -> Piece: ...


class Tokenised:
  """Texts that `table` makes tokens of when a piece of them is read."""

  def __init__(self, texts: Sequence[str], table: Callable[[Iterable[str]], tokenize.TokenTable]):
    self._texts, self._table, self.whose = texts, table, np.zeros(0, np.int64)
    self.sample = table(texts[row] for row in pack.sample(len(texts))).lengths

  def __len__(self) -> int:
    return len(self._texts)

  def read(self, rows: range) -> Piece:
    made = self._table(self._texts[rows.start:rows.stop])
    return Piece(lengths=made.lengths, text=lambda i: (made[i], None), cuts=(made.cut,))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Half:
  """The queries of pairs, or their passages: pair i has texts[row_of[i]], of which `table` makes tokens.

  Tokens of the last texts, KEPT and a piece's, are kept: of few, those of several pieces are made once, but for the
  sample's and those that a worker had before it came to the first piece that has them, where they count.
  """

  texts: Sequence[str]
  row_of: np.ndarray
  table: Callable[[Iterable[str]], tokenize.TokenTable]
  _kept: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

  def read(self, pairs: np.ndarray) -> tuple[list[np.ndarray], tokenize.Cut]:
    """Tokens for each of these pairs, ascending, and how those texts were cut that no pair before them all has.

    A text counts once over all pieces, in the first that has it.
    """
    here = self.row_of[pairs]
    rows = np.unique(here)
    every, first = self._first_pairs
    is_new = first[np.searchsorted(every, rows)] >= pairs[:1]
    if len(self._kept) > KEPT:
      self._kept.clear()
    cut = self._keep(rows[is_new].tolist())
    self._keep([row for row in rows[~is_new].tolist() if row not in self._kept])
    return [self._kept[row] for row in here.tolist()], cut

  def _keep(self, rows: list[int]) -> tokenize.Cut:
    table = self.table(self.texts[row] for row in rows)
    self._kept.update((row, table[i]) for i, row in enumerate(rows))
    return table.cut

  @functools.cached_property
  def _first_pairs(self) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs, ascending, and the first pair of each."""
    return np.unique(self.row_of, return_index=True)


class Pairs:
  """Queries with passages, tokenised and joined when a piece of them is read; between: as in TokenTable."""

  def __init__(self, queries: Half, passages: Half, between: tokenize.Between):
    self._queries, self._passages, self._between = queries, passages, between
    sampled = self._read(pack.sample(len(self)))
    self.sample = sampled.lengths
    # Of lists that a search found, another machine may find one or the other otherwise, which no length tells.
    self.whose = pieces.numbers(np.concatenate([queries.row_of, passages.row_of], dtype=np.int64).tobytes())
    # Few pairs are the sample and one piece, too: whoever waits for the answer to one question waits for it once.
    self._whole = sampled if len(self.sample) == len(self) else None

  def __len__(self) -> int:
    return len(self._queries.row_of)

  def read(self, rows: range) -> Piece:
    if self._whole is not None and len(rows) == len(self):
      return self._whole
    return self._read(np.arange(rows.start, rows.stop))

  def _read(self, pairs: np.ndarray) -> Piece:
    (queries, of_queries), (passages, of_passages) = self._queries.read(pairs), self._passages.read(pairs)
    lengths = tokenize.pair_lengths(_lengths(queries), _lengths(passages), self._between)
    text = lambda i: tokenize.pair(queries[i], passages[i], self._between)
    return Piece(lengths=lengths, text=text, cuts=(of_queries, of_passages))


def _lengths(tokens: Sequence[np.ndarray]) -> np.ndarray:
  return np.fromiter(map(len, tokens), np.int64, len(tokens))


def ahead(items: Iterator[T], make: Callable[[T], Made]) -> Generator[tuple[T, Made], None, None]:
  """(item, make(item)) of each; the next is asked for and made while whoever asked is at the one before."""
  pairs = ((item, make(item)) for item in items)
  # One: passages are decoded there, and protobuf has crashed when several threads parsed at once.
  with concurrent.futures.ThreadPoolExecutor(1, "pieces") as thread:
    coming = thread.submit(next, pairs, None)
    while (found := coming.result()) is not None:
      coming = thread.submit(next, pairs, None)
      yield found
