"""A retriever's similarities, looked up in the embeddings that its stage wrote."""

import dataclasses
import pathlib

import numpy as np

PASSAGES, QUERIES = "passages.npy", "queries.npy"
# Pairs whose embeddings are in memory at a time.
_PAIRS = 65_536


@dataclasses.dataclass(frozen=True)
class Similarities:
  """Embeddings in collection order; memory-mapped, so that a corpus need not fit into memory."""

  queries_QxE: np.ndarray
  passages_PxE: np.ndarray

  def __call__(self, query_row: int, passage_rows: np.ndarray) -> np.ndarray:
    """float32 [N] of one query with the given passages."""
    return np.asarray(self.passages_PxE[passage_rows] @ self.queries_QxE[query_row], np.float32)

  def of_lists(self, query_rows: np.ndarray, passage_rows_QxN: np.ndarray) -> np.ndarray:
    """float32 [Q, N] of each query with the passages of its row."""
    return np.einsum("qe,qne->qn", self.queries_QxE[query_rows], self.passages_PxE[passage_rows_QxN])

  def of_pairs(self, query_rows: np.ndarray, passage_rows: np.ndarray) -> np.ndarray:
    """float32 [pairs] of query_rows[i] with passage_rows[i]."""
    made = np.empty(len(query_rows), np.float32)
    for i in range(0, len(made), _PAIRS):
      here = slice(i, i + _PAIRS)
      made[here] = np.einsum("ie,ie->i", self.queries_QxE[query_rows[here]], self.passages_PxE[passage_rows[here]])
    return made


def load(folder: pathlib.Path) -> Similarities:
  """From the folder of the candidates or the train_direct stage."""
  return Similarities(np.load(folder / QUERIES, mmap_mode="r"), np.load(folder / PASSAGES, mmap_mode="r"))
