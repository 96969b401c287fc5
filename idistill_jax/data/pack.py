"""Many texts -> few full rows of one static shape.

Best fit, longest first: each text goes into the fullest row that still holds it.  Attention stays within a text
because every text of a row has its own segment id; `text_ids` says for every token which text it belongs to, so that
pooling is a segment sum.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np

# (texts, tokens), longest first: that so many of the longest texts have at most so many tokens, the next so many...
Stairs = tuple[tuple[int, int], ...]
# Token ids and, of a pair, which half each is of.
Text = tuple[np.ndarray, np.ndarray | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Packed texts, as every encoder reads them.

  token_ids, positions, segment_ids: int32 [R, L]; segment 0 is padding, texts count from 1 in each row.
  halves: int32 [R, L]; 1 for the passage of a pair, 0 for its query and for texts alone.
  text_ids: int32 [R, L]; the number of the text a token belongs to, T where it is padding.
  starts: int32 [T]; flat position (row * L + column) of each text's first token; 0 for an absent (empty) text.
  stairs: how long the texts are at most, for attention text by text; () where that is not known beforehand.
  """

  token_ids: np.ndarray | jax.Array
  positions: np.ndarray | jax.Array
  halves: np.ndarray | jax.Array
  segment_ids: np.ndarray | jax.Array
  text_ids: np.ndarray | jax.Array
  starts: np.ndarray | jax.Array
  stairs: Stairs = dataclasses.field(default=(), metadata={"static": True})


# So many texts tell how well rows fill.
SAMPLE = 2048


def sample(count: int, most: int | None = None) -> np.ndarray:
  """Rows of at most SAMPLE texts, or `most`, that lie evenly among so many."""
  return np.linspace(0, count - 1, min(count, SAMPLE if most is None else most)).astype(int)


class DoesNotFitError(ValueError):
  """A text longer than a row, or more texts than the given rows hold."""


@dataclasses.dataclass(frozen=True)
class Placement:
  """Row and first column of each text; rows is how many were opened."""

  row: np.ndarray
  column: np.ndarray
  rows: int


def place(lengths: Sequence[int] | np.ndarray, row_tokens: int, max_texts: int | None = None) -> Placement:
  """Best-fit decreasing.  Texts of length 0 take no place (row 0, column 0); at most `max_texts` share a row."""
  lengths = np.asarray(lengths)
  if lengths.size and lengths.max() > row_tokens:
    raise DoesNotFitError(f"a text of {lengths.max()} tokens does not fit into rows of {row_tokens}")
  row, column = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
  open_rows: list[list[int]] = [[] for _ in range(row_tokens + 1)]  # by free tokens
  texts_in: list[int] = []
  for i in np.argsort(-lengths, kind="stable"):
    n = int(lengths[i])
    if n == 0:
      break
    free = next((f for f in range(n, row_tokens + 1) if open_rows[f]), None)
    if free is None:
      r, free = len(texts_in), row_tokens
      texts_in.append(0)
    else:
      r = open_rows[free].pop()
    row[i], column[i] = r, row_tokens - free
    texts_in[r] += 1
    if texts_in[r] != max_texts:
      open_rows[free - n].append(r)
  return Placement(row, column, len(texts_in))


# So many times a text is placed to decide how long rows are: a few seconds, whatever there is to train on.
_PLACED = 400_000


def cost(rows: int, row_tokens: int, doubling: float) -> float:
  """Of reading so many rows, where attention in rows of `doubling` tokens costs as much as all else."""
  return rows * row_tokens * (1 + row_tokens / doubling)


def plan(batches: Sequence[np.ndarray], choices: Sequence[int], doubling: float,
         row_multiple: int = 1) -> tuple[int, int]:
  """(tokens a row, rows) of the one shape that holds each of the batches (lengths of their texts) and costs least.

  choices: lengths of rows to pick from.  doubling: as in `cost`; where rows are attended in whole, short ones may be
  cheaper than full ones.  The number of rows is a multiple of `row_multiple`.
  """

  def rows(of: Sequence[np.ndarray], row_tokens: int) -> int:
    return -(-max(place(lengths, row_tokens).rows for lengths in of) // row_multiple) * row_multiple

  few = batches[: max(_PLACED // (len(choices) * max(len(batches[0]), 1)), 1)]
  row_tokens = choices[0]
  if len(choices) > 1:
    row_tokens = min(choices, key=lambda choice: cost(rows(few, choice), choice, doubling))
  return row_tokens, rows(batches, row_tokens)


# So many different lengths of pieces are compiled for; more take longer to compile than they save.
_STEPS = 3


def stairs(batches: Sequence[np.ndarray], block: int, row_tokens: int) -> Stairs:
  """The stairs below which each of the batches (lengths of their texts) stays.

  Lengths are multiples of `block`, and at most _STEPS different ones: those with which attention, quadratic in them,
  costs least.
  """
  tops = np.zeros(max(len(lengths) for lengths in batches), np.int64)
  for lengths in batches:
    tops[: len(lengths)] = np.maximum(tops[: len(lengths)], -np.sort(-lengths))
  rounded = np.minimum(-(-tops[tops > 0] // block) * block, row_tokens)
  lengths, counts = np.unique(rounded, return_counts=True)

  def raised(chosen: Sequence[int]) -> np.ndarray:
    return np.array([*chosen, lengths[-1]])[np.searchsorted([*chosen, lengths[-1]], lengths)]

  chosen = min(itertools.combinations(lengths[:-1], min(_STEPS, len(lengths)) - 1),
               key=lambda chosen: int((counts * raised(chosen) ** 2).sum()))
  up = raised(chosen)
  return tuple((int(counts[up == tokens].sum()), int(tokens)) for tokens in np.unique(up)[::-1])


def row_choices(longest: int, multiple: int) -> tuple[int, ...]:
  """Lengths of rows worth trying for texts of up to `longest` tokens: multiples that hold one to three of them."""
  least = -(-longest // multiple)
  return tuple(range(least * multiple, 3 * least * multiple + 1, multiple))


def row_lengths(sample: np.ndarray, row_tokens: int, block: int, doubling: float) -> tuple[int, ...]:
  """One or two lengths of rows, rising to `row_tokens`: each text goes into the shortest that holds it.

  Short rows are cheap to attend in and hard to fill: what is chosen costs least, `doubling` as in `cost`.  Lengths are
  multiples of `block`.

  sample: lengths of the texts, or of some of them; all are placed here, once for each choice.
  """
  choices = [(row_tokens,), *((short, row_tokens) for short in range(block, row_tokens, block))]
  return min(choices, key=lambda choice: sum(
    cost(place(sample[apart], row).rows, row, doubling) for row, apart in by_row_length(sample, choice)))


def by_row_length(lengths: np.ndarray, rows: tuple[int, ...]) -> list[tuple[int, np.ndarray]]:
  """(length of row, indices of the texts that go there)."""
  which = np.minimum(np.searchsorted(rows, lengths), len(rows) - 1)  # what fits nowhere is refused by `place`
  return [(row, np.flatnonzero(which == i)) for i, row in enumerate(rows)]


def fill(lengths: Sequence[int] | np.ndarray, text: Callable[[int], Text], placement: Placement, *, rows: int,
         row_tokens: int, text_ids: np.ndarray | None = None, text_count: int | None = None,
         own: np.ndarray | None = None, stairs: Stairs = ()) -> Rows:
  """Writes texts of the given lengths into `rows` rows.  `text_ids` renumbers them (default 0..T-1), `text_count` is
  then T.

  own: bool [rows]; rows where it is False stay empty, and their texts are not asked for, though they have their starts.

  Raises DoesNotFitError where the placement needs more rows, or a text is longer than its stair.
  """
  lengths = np.asarray(lengths, np.int64)
  if placement.rows > rows:
    raise DoesNotFitError(f"{len(lengths)} texts need {placement.rows} rows, {rows} are given")
  ids = np.arange(len(lengths)) if text_ids is None else np.asarray(text_ids)
  count = len(lengths) if text_count is None else text_count
  shape = (rows, row_tokens)
  token_ids, positions, of_half, segment_ids = (np.zeros(shape, np.int32) for _ in range(4))
  owners = np.full(shape, count, np.int32)
  starts = np.zeros(count, np.int32)
  firsts = placement.row.astype(np.int64) * row_tokens + placement.column
  if stairs:
    tops = np.repeat([tokens for _, tokens in stairs], [most for most, _ in stairs])
    longest_first = -np.sort(-lengths)
    if longest_first[len(tops):].any() or (longest_first[: len(tops)] > tops[: len(lengths)]).any():
      raise DoesNotFitError(f"texts of {longest_first.tolist()} tokens are more, or longer, than the stairs {stairs}")
  there = np.flatnonzero(lengths)
  starts[ids[there]] = firsts[there]
  here = there if own is None else there[own[placement.row[there]]]
  if here.size:
    # All tokens of all texts at once: a loop over texts would keep an accelerator waiting.
    each = lengths[here]
    within = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    cells = np.repeat(firsts[here], each) + within
    texts = [text(int(i)) for i in here]
    # Not by `flat`, which repeats or cuts what is not as many.
    token_ids.reshape(-1)[cells] = np.concatenate([tokens for tokens, _ in texts])
    positions.flat[cells] = within
    row = placement.row[here]
    segment_ids.flat[cells] = np.repeat(counted(row, np.argsort(row, kind="stable")) + 1, each)
    owners.flat[cells] = np.repeat(ids[here], each)
    if halves := [half for _, half in texts if half is not None]:
      of_half.reshape(-1)[cells] = np.concatenate(halves)
  return Rows(token_ids=token_ids, positions=positions, halves=of_half, segment_ids=segment_ids,
              text_ids=owners, starts=starts, stairs=stairs)


def counted(row: np.ndarray, order: np.ndarray) -> np.ndarray:
  """0, 1, 2... for the texts of each row; `order` sorts the texts by row, and within a row as they are counted."""
  sorted_row = row[order]
  found = np.empty(len(row), np.int64)
  found[order] = np.arange(len(row)) - np.searchsorted(sorted_row, sorted_row, side="left")
  return found


def real_tokens(rows: Rows) -> int:
  return int((np.asarray(rows.segment_ids) > 0).sum())
