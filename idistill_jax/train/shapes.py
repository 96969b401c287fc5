"""In which static shapes many texts are read: rows of a step, their length, and how many texts they hold."""

import dataclasses
import math

import numpy as np

from idistill_jax.data import pack
from idistill_jax.models import execution as execution_lib
from idistill_jax.train import pieces as pieces_lib
from idistill_jax.train import texts as texts_lib

# At most this many texts share a row on average; fixes the number of pooled vectors a step.
SHORTEST_TEXT = 6
# Of a collection, so many times as many as texts of their mean length would fill a row: half of the texts are shorter,
# and rows that may hold no more of them stay open.  What is pooled is fetched, places that no text takes too.
ROOM_FOR_SHORTER = 4
# A piece's texts may be so many times as long as the sample says: three deviations of the sum of 2,048 lengths.
LONGER_PIECE = 1.04
# What a sample has none of, may be so many of as many others (at 95 %): a step for them is as small as that.
UNSEEN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShape:
  """Rows of a step, tokens of a row, and texts of a row at most."""

  rows: int
  row_tokens: int
  texts_per_row: int


def of(texts: texts_lib.Texts, execution: execution_lib.Execution, width: int, *, row_tokens: int, step_tokens: int,
       shards: int) -> list[StepShape]:
  """One for each length of rows; the same for all workers, as they see the same sample.

  width: of the model's states.  shards: rows are a multiple of it.  Of few texts all have the same, so that no other
  question compiles another.
  """
  sample, few = texts.sample, len(texts) < pack.SAMPLE
  row_lengths = (row_tokens,) if few else pack.row_lengths(
    sample, row_tokens, execution.row_block, execution.attention_doubles * width)
  piece = None if few else max(map(len, pieces_lib.cut(len(texts))))

  def shape(length: int, apart: np.ndarray) -> StepShape:
    share = max(len(apart), UNSEEN) / max(len(sample), 1)
    return _shape(length, sample[apart], rows=max(1, step_tokens // length), shards=shards,
                  count=len(texts) * len(apart) // max(len(sample), 1), piece=piece and share * piece)

  return [shape(length, apart) for length, apart in pack.by_row_length(sample, row_lengths)]


def _shape(row_tokens: int, sample: np.ndarray, *, rows: int, shards: int, count: int,
           piece: float | None) -> StepShape:
  """For `count` texts of such lengths; of few, one may be as short as any.

  rows: at most, but for the multiple.  piece: how many are packed together, where these are a part of all: its steps
  get equally many rows, so that the last one is no emptier than the others.
  """
  shortest = SHORTEST_TEXT if count < pack.SAMPLE else max(SHORTEST_TEXT, sample.mean() / ROOM_FOR_SHORTER)
  texts_per_row = max(1, int(row_tokens / shortest))
  if piece is not None:
    of_sample = pack.place(sample, row_tokens, texts_per_row).rows
    needed = LONGER_PIECE * piece * (of_sample / len(sample) if len(sample) else 1.0)
    rows = math.ceil(needed / math.ceil(needed / rows))
  return StepShape(rows=-(-rows // shards) * shards, row_tokens=row_tokens, texts_per_row=texts_per_row)


def step(indices: np.ndarray, row: np.ndarray, column: np.ndarray, piece: texts_lib.Piece,
          shape: StepShape) -> tuple[np.ndarray, np.ndarray, pack.Rows]:
  slots = pack.counted(row, np.lexsort((column, row))) + row * shape.texts_per_row
  rows = pack.fill(piece.lengths[indices], lambda i: piece.text(int(indices[i])),
                   pack.Placement(row, column, shape.rows), rows=shape.rows, row_tokens=shape.row_tokens,
                   text_ids=slots, text_count=shape.rows * shape.texts_per_row)
  return indices, slots, rows
