"""Token sequences -> `pack.Rows`, packed or one text a row."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from idistill_jax.data import pack


def packed(texts: Sequence[np.ndarray], types: Sequence[np.ndarray] | None, row_tokens: int,
           rows: int | None = None) -> pack.Rows:
  """As few rows as they need, or `rows` of which the last stay empty."""
  placement = pack.place([len(text) for text in texts], row_tokens)
  return _fill(texts, types, placement, rows or placement.rows, row_tokens)


def one_a_row(texts: Sequence[np.ndarray], types: Sequence[np.ndarray] | None, row_tokens: int) -> pack.Rows:
  n = len(texts)
  placement = pack.Placement(np.arange(n, dtype=np.int32), np.zeros(n, np.int32), n)
  return _fill(texts, types, placement, n, row_tokens)


def backwards(rows: pack.Rows) -> pack.Rows:
  """Every row's tokens in reverse, but for the positions, which stay where they are: encoders read the ones' places or
  the others."""
  starts, length = np.asarray(rows.starts), rows.token_ids.shape[1]
  turned = {name: np.asarray(getattr(rows, name))[:, ::-1] for name in (
    "token_ids", "halves", "segment_ids", "text_ids")}
  return dataclasses.replace(rows, starts=starts + length - 1 - 2 * (starts % length), **turned)


def _fill(texts: Sequence[np.ndarray], types: Sequence[np.ndarray] | None, placement: pack.Placement, rows: int,
          row_tokens: int) -> pack.Rows:
  text = lambda i: (texts[i], None if types is None else types[i])
  return pack.fill([len(one) for one in texts], text, placement, rows=rows, row_tokens=row_tokens)
