"""Smaller vectors: their first dimensions alone, 8-bit integers, or both; and what that costs.

Truncated unit vectors are scaled to unit length again, as cosines need it; where a model leaves lengths alone, they
mean something.  int8: each dimension is scaled by its largest absolute value over the corpus, so an inner product with
a float query needs no other constant.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence, Set

import jax
import numpy as np

from idistill_jax import config as config_lib
from idistill_jax.retrieval import exact, itself, measures, runs, tuning
from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.workdir import files

VECTORS, SCALES = "passages.npy", "scales.npy"
# Options are measured on so many passages: recall on a part tells them apart as well.
MEASURED_PASSAGES = 100_000
# What is measured of each where there are judgements.
MEASURES = ("MRR@10", "nDCG@10")


def truncated(vectors_NxE: np.ndarray, dimensions: int | None) -> np.ndarray:
  """The first dimensions, of unit vectors as unit vectors; the vectors as they are for None, or for all of them.

  Raises ValueError where there are fewer.
  """
  if dimensions is None or dimensions == vectors_NxE.shape[1]:
    return vectors_NxE
  if not 1 <= dimensions <= vectors_NxE.shape[1]:
    raise ValueError(f"index.dimensions is {dimensions}; the embeddings have {vectors_NxE.shape[1]}")
  cut = vectors_NxE[:, :dimensions]
  if not np.allclose(_lengths(vectors_NxE), 1.0, atol=1e-2):
    return cut
  return cut / np.maximum(_lengths(cut)[:, None], 1e-12)


def _lengths(vectors_NxE: np.ndarray) -> np.ndarray:
  """float32 [N]; of a block at a time, as numpy squares all that it is given first."""
  lengths = [np.linalg.norm(vectors_NxE[block], axis=1) for block in hits_lib.blocks(len(vectors_NxE))]
  return np.concatenate([np.zeros(0, np.float32), *lengths])


@dataclasses.dataclass(frozen=True, slots=True)
class Int8:
  """codes: int8 [P, E]; scales: float32 [E]."""

  codes: np.ndarray
  scales: np.ndarray

  @classmethod
  def of(cls, vectors_PxE: np.ndarray) -> "Int8":
    largest = np.maximum(vectors_PxE.max(axis=0), -vectors_PxE.min(axis=0))
    scales = (largest / 127).astype(np.float32)
    scales[scales == 0] = 1.0
    codes = np.empty(vectors_PxE.shape, np.int8)
    for block in hits_lib.blocks(len(codes)):
      codes[block] = np.rint(vectors_PxE[block] / scales)
    return cls(codes, scales)

  def restored(self) -> np.ndarray:
    """float32 [P, E], off by at most half a scale."""
    restored = self.codes.astype(np.float32)
    restored *= self.scales
    return restored


def write(folder: pathlib.Path, vectors_PxE: np.ndarray, precision: str) -> None:
  """Vectors of an index folder, as float32 or as codes with their scales; they may be mapped from the file there, which
  then stays where it holds them already."""
  if precision == "float32" and _is_of(folder / VECTORS, vectors_PxE):
    return
  files.remove_halves(folder / VECTORS)
  with files.replacing(folder / VECTORS) as out:
    if precision == "int8":
      small = Int8.of(vectors_PxE)
      np.save(out, small.codes)
      np.save(folder / SCALES, small.scales)
    else:
      np.save(out, vectors_PxE)


def _is_of(file: pathlib.Path, vectors: np.ndarray) -> bool:
  """Whether the array is all of what is mapped from the file."""
  mapped = vectors
  while isinstance(mapped.base, np.ndarray):  # a part of a map is one, too
    mapped = mapped.base
  return (isinstance(mapped, np.memmap) and mapped.filename is not None and pathlib.Path(mapped.filename) == file
          and mapped.shape == vectors.shape and mapped.dtype == vectors.dtype)


def as_read(vectors_PxE: np.ndarray, precision: str) -> np.ndarray:
  """What `read` gives of vectors that were written so."""
  return Int8.of(vectors_PxE).restored() if precision == "int8" else vectors_PxE


def read(folder: pathlib.Path, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
  """float32 [P, E] of an index folder, or some of its rows; mapped where they are stored as such."""
  vectors = np.load(folder / VECTORS, mmap_mode="r")[rows]
  return Int8(vectors, np.load(folder / SCALES)).restored() if (folder / SCALES).exists() else vectors


class Truncating:
  """A searcher over truncated vectors that is asked with whole ones."""

  def __init__(self, inner: hits_lib.Searcher, width: int):
    self._inner, self._width = inner, width

  def search(self, queries_QxE: np.ndarray, k: int) -> hits_lib.Hits:
    queries_QxE = np.asarray(queries_QxE)
    if queries_QxE.ndim == 2 and queries_QxE.shape[1] > self._width:
      queries_QxE = truncated(queries_QxE, self._width)
    return self._inner.search(queries_QxE, k)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
  """The measured queries: ids in the order of their vectors, judgements, which of them are passages (`itself.of`), and
  the lowest grade that counts."""

  query_ids: Sequence[str]
  qrels: Mapping[str, Mapping[str, int]]
  own: Set[str]
  relevant_from: int

  def measure(self, ids: Sequence[str], found: hits_lib.Hits) -> dict[str, float]:
    run = itself.without(runs.from_hits(self.query_ids, ids, found), self.own, None, lambda query_id: None)
    judged = {query_id: self.qrels[query_id] for query_id in self.query_ids}
    values = measures.per_query(judged, run, MEASURES, relevant_from=self.relevant_from)
    return {name: measures.mean(of) for name, of in values.items()}


def measured_rows(ids: Sequence[str], judged: Judged | None = None) -> np.ndarray:
  """Rows of the passages that options are measured on: all; of more than MEASURED_PASSAGES, the judged ones and others
  drawn at random."""
  if len(ids) <= MEASURED_PASSAGES:
    return np.arange(len(ids))
  known = {one for of in judged.qrels.values() for one in of} if judged is not None else set()
  drawn = np.random.default_rng(0).permutation(len(ids))
  is_known = np.array([ids[row] in known for row in drawn])
  return np.sort(np.concatenate([drawn[is_known], drawn[~is_known]])[:MEASURED_PASSAGES])


def options(
  vectors_PxE: np.ndarray, ids: Sequence[str], queries_QxE: np.ndarray, k: int,
  mesh: jax.sharding.Mesh | None = None, judged: Judged | None = None,
) -> list[dict[str, float | int | str]]:
  """What each kind of smaller vector keeps of exact search's first k over the given ones, its bytes a passage on the
  disk, and where there are judgements its measures."""
  width = vectors_PxE.shape[1]

  def search(dimensions: int, precision: str) -> hits_lib.Hits:
    searched = as_read(truncated(vectors_PxE, dimensions), precision)
    return Truncating(exact.Exact(searched, ids, mesh=mesh), dimensions).search(queries_QxE, k)

  sizes = dict.fromkeys(max(1, size) for size in (width, width // 2, width // 4))
  found = {option: search(*option)
           for option in itertools.product(sizes, config_lib.PRECISIONS)}
  truth = found[width, "float32"]
  return [{
    "dimensions": dimensions, "precision": precision, f"recall@{k} of exact": tuning.recall(truth, hits),
    "bytes a passage": dimensions * (1 if precision == "int8" else 4),
    **({} if judged is None else judged.measure(ids, hits)),
  } for (dimensions, precision), hits in found.items()]  # fmt: skip
