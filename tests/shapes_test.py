"""Steps over many texts: their static shapes waste no more than they must."""

import dataclasses

import numpy as np
import pytest

from idistill_jax.data import pack
from idistill_jax.models import execution
from idistill_jax.train import pieces, shapes

ACCELERATOR = dataclasses.replace(execution.PLAIN, row_block=128, attention_doubles=6.0)


def lengths(count: int) -> np.ndarray:
  """About 80 tokens, as different as those of passages."""
  return np.random.default_rng(0).gamma(4.0, 20.0, count).astype(int).clip(6, 512)


def filled(lengths_T: np.ndarray, found: list[shapes.StepShape]) -> float:
  """Tokens by places of all steps that the pieces of these texts take."""
  places, rows = 0, tuple(shape.row_tokens for shape in found)
  for piece in pieces.cut(len(lengths_T)):
    mine = lengths_T[piece.start:piece.stop]
    for shape, (_, apart) in zip(found, pack.by_row_length(mine, rows), strict=True):
      needed = pack.place(mine[apart], shape.row_tokens, shape.texts_per_row).rows
      places += -(-needed // shape.rows) * shape.rows * shape.row_tokens
  return lengths_T.sum() / places


@pytest.mark.parametrize("count", [16_384, 30_000])
@pytest.mark.parametrize("shards", [1, 8])
def test_the_last_step_of_a_piece_is_no_emptier_than_the_others(count, shards):
  lengths_T, step_tokens = lengths(count), 65_536
  found = shapes.of(Texts(lengths_T), ACCELERATOR, 768, row_tokens=512, step_tokens=step_tokens, shards=shards)
  for shape in found:
    assert shape.rows % shards == 0 and shape.rows <= step_tokens // shape.row_tokens + shards
  # The control: as many rows as a step has room for.
  as_many = [dataclasses.replace(shape, rows=step_tokens // shape.row_tokens) for shape in found]
  assert filled(lengths_T, found) > max(0.9, filled(lengths_T, as_many) + 0.02)


def test_few_texts_have_one_shape_whatever_they_are():
  of = lambda texts_T: shapes.of(Texts(texts_T), ACCELERATOR, 768, row_tokens=256, step_tokens=2048, shards=1)
  assert of(lengths(3)) == of(lengths(500)) == of(np.full(9, 250))


@dataclasses.dataclass
class Texts:
  lengths_T: np.ndarray

  def __len__(self) -> int:
    return len(self.lengths_T)

  @property
  def sample(self) -> np.ndarray:
    return self.lengths_T[: pack.SAMPLE]
