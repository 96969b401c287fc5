"""Streams of packed training batches: lists -> static-shape arrays, step by step.

`Batches[step]` takes the step's lists, samples passages, looks up tokens and packs them; it is a pure function of
(lists, seed, step), so a Grain iterator over it resumes exactly and restarts are invisible.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from idistill_jax.data import deal, pack, tokenize
from idistill_jax.data import lists as lists_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ListBatch:
  """B lists of N passages as packed texts.

  rows: the texts; pairs in list order (ranker), or B queries followed by B x N passages (retriever).
  values: float32 [B, N]; what the teacher says: places (ranker) or logits (retriever).
  where: bool [B, N]; False where a list is shorter or a batch holds fewer lists.
  known: bool [B, N]; False where the LLM left a place out and the parser filled it.
  passage_rows: int32 [B, N]; which passage of the corpus; equal numbers are equal passages.
  list_rows: int32 [B, W]; every passage of each list, drawn or not; short lists repeat their first.
  similarities: float32 [B, N]; of the retriever that the ranker starts from.
  weights: float32 [B]; how much each list counts; 1 where nothing says otherwise.
  """

  rows: pack.Rows
  values: Any
  where: Any
  known: Any
  passage_rows: Any
  list_rows: Any
  similarities: Any
  weights: Any


# (query row, rows of the passages that were drawn) of each list of a batch.
Drawn = Sequence[tuple[int, np.ndarray]]


class Texts(Protocol):
  """Which texts a batch holds, and how long they are."""

  def lengths(self, query_row: int, passage_rows: np.ndarray) -> np.ndarray: ...

  def batch(self, lists: Drawn, size: int, width: int) -> tuple[np.ndarray, Callable[[int], pack.Text]]:
    """How long each of the texts is, 0 where it is absent, and what gives one of them."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairTexts:
  """Query and passage read together, for each passage of each list."""

  queries: tokenize.Tokens
  passages: tokenize.Tokens

  def lengths(self, query_row: int, passage_rows: np.ndarray) -> np.ndarray:
    return tokenize.pair_lengths(
      self.queries.lengths_of(query_row), self.passages.lengths_of(passage_rows), self.passages.between)

  def batch(self, lists: Drawn, size: int, width: int) -> tuple[np.ndarray, Callable[[int], pack.Text]]:
    lengths_BxN = np.zeros((size, width), np.int64)
    for b, (query_row, passage_rows) in enumerate(lists):
      lengths_BxN[b, :len(passage_rows)] = self.lengths(query_row, passage_rows)

    def text(i: int) -> pack.Text:
      query_row, passage_rows = lists[i // width]
      return tokenize.pair(self.queries[query_row], self.passages[passage_rows[i % width]], self.passages.between)

    return lengths_BxN.ravel(), text


@dataclasses.dataclass(frozen=True, kw_only=True)
class DualTexts:
  """The queries of the batch, then the passages of each list."""

  queries: tokenize.Tokens
  passages: tokenize.Tokens

  def lengths(self, query_row: int, passage_rows: np.ndarray) -> np.ndarray:
    return np.append(self.passages.lengths_of(passage_rows), self.queries.lengths_of(query_row))

  def batch(self, lists: Drawn, size: int, width: int) -> tuple[np.ndarray, Callable[[int], pack.Text]]:
    of_queries_B, of_passages_BxN = np.zeros(size, np.int64), np.zeros((size, width), np.int64)
    for b, (query_row, passage_rows) in enumerate(lists):
      of_queries_B[b] = self.queries.lengths_of(query_row)
      of_passages_BxN[b, :len(passage_rows)] = self.passages.lengths_of(passage_rows)

    def text(i: int) -> pack.Text:
      if i < size:
        return self.queries[lists[i][0]], None
      b, n = divmod(i - size, width)
      return self.passages[lists[b][1][n]], None

    return np.append(of_queries_B, of_passages_BxN), text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Lists a batch, passages a list, how many of them are always the best, divisor of the rows.

  row_tokens: None picks the multiple of `row_block` that costs least where attention in rows of `attention_doubles`
  tokens costs as much as all else.  text_block: where attention is to read text by text, planned lengths are multiples
  of it.
  """

  lists: int
  passages: int
  always_best: int
  row_tokens: int | None
  row_block: int = 16
  attention_doubles: float = math.inf
  text_block: int | None = None
  row_multiple: int = 1


def _all_rows(count: int) -> np.ndarray:
  return np.ones(count, bool)


class Batches:
  """Random access by step over the whole training, for `grain.MapDataset.source`."""

  def __init__(self, *, lists: Sequence[lists_lib.NumberedList], texts: Texts, shape: Shape,
               similarity: Callable[[int, np.ndarray], np.ndarray], epochs: int, seed: int,
               own: Callable[[int], np.ndarray] = _all_rows):
    """own: number of rows -> which of them this process fills in; the others are some other process's."""
    if not lists:
      raise ValueError("no lists to train on: every one was dropped; see the drops in the manifests before this stage")
    self._lists, self._texts = lists, texts
    self._shape, self._similarity, self._seed = shape, similarity, seed
    self._steps: list[list[deal.Slot]] = []
    self._longest = max(len(one.passage_rows) for one in lists)
    planned: list[np.ndarray] = []
    for epoch in range(epochs):
      lengths = [texts.lengths(one.query_row, self._sampled(one, deal.Slot(epoch, i)).passage_rows)
                 for i, one in enumerate(lists)]
      dealt = deal.deal(np.array([n.sum() for n in lengths]), shape.lists, epoch=epoch, seed=seed)
      planned += [np.concatenate([lengths[slot.record] for slot in slots]) for slots in dealt]
      self._steps += dealt
    self._tokens = [int(lengths.sum()) for lengths in planned]
    choices = (shape.row_tokens,) if shape.row_tokens else pack.row_choices(
      max(int(lengths.max()) for lengths in planned), shape.row_block)
    self.row_tokens, self.rows = pack.plan(planned, choices, shape.attention_doubles, shape.row_multiple)
    self.stairs = () if shape.text_block is None else pack.stairs(planned, shape.text_block, self.row_tokens)
    self._own = own(self.rows)

  def __len__(self) -> int:
    return len(self._steps)

  def __repr__(self) -> str:
    # What Grain and its errors show.
    return f"Batches(steps={len(self)}, shape={self._shape}, rows={self.rows} x {self.row_tokens}, seed={self._seed})"

  def part(self, which: int, parts: int) -> "Batches":
    """The steps of one of several equal parts of the epochs: rows of the same shape, other lists in each batch."""
    share = len(self) // parts
    steps = slice(which * share, (which + 1) * share)
    one = copy.copy(self)
    one._steps, one._tokens = self._steps[steps], self._tokens[steps]
    return one

  @property
  def room(self) -> int:
    """How many tokens the rows of a batch would hold."""
    return self.rows * self.row_tokens

  def slots(self, step: int) -> list[deal.Slot]:
    """Which lists the step trains on."""
    return self._steps[step]

  def query_ids(self, step: int) -> list[str]:
    """Whose lists these are: what an error message names."""
    return [self._lists[slot.record].query_id for slot in self._steps[step]]

  def tokens(self, step: int) -> int:
    """How many tokens the step's texts have, whichever process fills them in."""
    return self._tokens[step]

  def _sampled(self, one: lists_lib.NumberedList, slot: deal.Slot) -> lists_lib.NumberedList:
    places = deal.sample(
      len(one.passage_rows), self._shape.passages, self._shape.always_best, seed=self._seed, slot=slot
    )
    return dataclasses.replace(one, passage_rows=one.passage_rows[places], values=one.values[places],
                               known=one.known[places])

  def __getitem__(self, step: int) -> ListBatch:
    size, width = self._shape.lists, self._shape.passages
    whole = [self._lists[slot.record] for slot in self._steps[step]]
    lists = [self._sampled(one, slot) for one, slot in zip(whole, self._steps[step], strict=True)]
    # Where each text goes depends on all of them; their tokens are put together by the process whose rows they are in.
    lengths, text = self._texts.batch([(one.query_row, one.passage_rows) for one in lists], size, width)
    placement = pack.place(lengths, self.row_tokens)
    rows = pack.fill(lengths, text, placement, rows=self.rows, row_tokens=self.row_tokens, own=self._own,
                     stairs=self.stairs)
    values = np.zeros((size, width), np.float32)
    similarities = np.zeros((size, width), np.float32)
    where, known = np.zeros((size, width), bool), np.zeros((size, width), bool)
    passage_rows = np.zeros((size, width), np.int32)
    list_rows = np.zeros((size, self._longest), np.int32)
    weights = np.ones(size, np.float32)
    for b, one in enumerate(lists):
      n = len(one.passage_rows)
      weights[b] = one.weight
      list_rows[b] = whole[b].passage_rows[0]
      list_rows[b, :len(whole[b].passage_rows)] = whole[b].passage_rows
      values[b, :n], where[b, :n], known[b, :n] = one.values, True, one.known
      passage_rows[b, :n] = one.passage_rows
      similarities[b, :n] = self._similarity(one.query_row, one.passage_rows)
    return ListBatch(rows=rows, values=values, where=where, known=known, passage_rows=passage_rows,
                     list_rows=list_rows, similarities=similarities, weights=weights)


def iterator(batches: Batches) -> grain.DatasetIterator:
  """Checkpointable iterator over all steps, reading ahead in threads."""
  dataset = grain.MapDataset.source(batches)
  options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
  return iter(dataset.to_iter_dataset(options))
