"""The index folder: which kind of search a corpus gets, written and opened again, and measured against exact
search.

A folder holds `passages.npy` (float32 [P, E], collection order) and, where ScaNN is used, `scann/`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from idistill_jax import config as config_lib
from idistill_jax.retrieval import ann, exact
from idistill_jax.retrieval import hits as hits_lib

# Below this many passages exact search is fast enough that approximating buys nothing.
EXACT_BELOW = 20_000
VECTORS = "passages.npy"
SCANN = "scann"
# Timed searches, of which the fastest counts.
REPEATS = 3

Writer = Callable[[pathlib.Path, np.ndarray, Sequence[str], config_lib.Index], None]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Honesty:
  """What approximation costs and buys.  recall: share of exact search's k best that the index finds."""

  recall: float
  exact_queries_per_second: float
  index_queries_per_second: float


def _write_exact(
  folder: pathlib.Path, vectors_PxE: np.ndarray, ids: Sequence[str], cfg: config_lib.Index
) -> None:
  """Exact search needs the vectors alone, which every index folder holds."""


def _write_scann(
  folder: pathlib.Path, vectors_PxE: np.ndarray, ids: Sequence[str], cfg: config_lib.Index
) -> None:
  ann.build(vectors_PxE, ids, cfg).save(folder / SCANN)


WRITERS: dict[str, Writer] = {"exact": _write_exact, "scann": _write_scann}


def choose(kind: str, passages: int) -> str:
  """The kind of index, "exact" or "scann", that a config's `index.kind` means for a corpus of that size."""
  if kind == "auto":
    return "exact" if passages < EXACT_BELOW else "scann"
  if kind not in WRITERS:
    raise ValueError(f"index.kind is {kind!r}; known are auto, {', '.join(WRITERS)}")
  return kind


def write(
  folder: pathlib.Path, vectors_PxE: np.ndarray, ids: Sequence[str], cfg_index: config_lib.Index
) -> str:
  """Writes the index folder and returns the kind chosen; raises as `ann.build` does."""
  vectors_PxE = hits_lib.check_passages(vectors_PxE, ids)
  kind = choose(cfg_index.kind, len(ids))
  np.save(folder / VECTORS, vectors_PxE)
  WRITERS[kind](folder, vectors_PxE, ids, cfg_index)
  return kind


def open_exact(folder: pathlib.Path, ids: Sequence[str]) -> exact.Exact:
  """Exact search over the vectors of an index folder."""
  return exact.Exact(np.load(folder / VECTORS), ids)


def open_default(folder: pathlib.Path, ids: Sequence[str]) -> hits_lib.Searcher:
  """The search that the folder was written for."""
  return open_scann(folder, ids) or open_exact(folder, ids)


def open_scann(folder: pathlib.Path, ids: Sequence[str]) -> ann.Scann | None:
  """The ScaNN index of a folder, or None where it was written for exact search.

  Raises ValueError where it was built over other passages.
  """
  if not (folder / SCANN).exists():
    return None
  found = ann.load(folder / SCANN)
  if found.ids != list(ids):
    raise ValueError(
      f"{folder / SCANN} holds {len(found)} passages that are not the collection's {len(ids)}, or in "
      "another order; run the index stage again"
    )
  return found


def compare_with_exact(
  exact_index: hits_lib.Searcher,
  index: hits_lib.Searcher,
  queries_QxE: np.ndarray,
  k: int,
  repeats: int = REPEATS,
) -> Honesty:
  """Recall of exact search's k best, and both speeds, all queries in one call.

  Raises ValueError without queries.
  """
  if not len(queries_QxE):
    raise ValueError("there are no queries to compare the searches on")
  truth, exact_speed = _timed(exact_index, queries_QxE, k, repeats)
  found, index_speed = _timed(index, queries_QxE, k, repeats)
  pairs = zip(truth.rows.tolist(), found.rows.tolist(), strict=True)
  recalls = [len(set(one) & set(other)) / len(one) for one, other in pairs]
  return Honesty(
    recall=float(np.mean(recalls)), exact_queries_per_second=exact_speed, index_queries_per_second=index_speed
  )


def honesty(
  folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray, k: int, cfg_index: config_lib.Index
) -> dict[str, float | str | None]:
  """ScaNN against exact search in the form of metrics.json, whichever of the two the folder was written for.

  Where it was written for exact search, a ScaNN index is built to compare; should ScaNN not run on this
  machine, its numbers are None and the log says why.
  """
  exact_index = open_exact(folder, ids)
  written = open_scann(folder, ids)
  try:
    scann_index = written or ann.build(np.load(folder / VECTORS), ids, cfg_index)
  except ann.ScannUnavailableError as e:
    logging.warning("ScaNN is not compared with exact search: %s", e)
    found = compare_with_exact(exact_index, exact_index, queries_QxE, k)
    recall, speed = None, None
  else:
    found = compare_with_exact(exact_index, scann_index, queries_QxE, k)
    recall, speed = found.recall, found.index_queries_per_second
  return {
    f"recall@{k} of exact": recall,
    "exact_queries_per_second": found.exact_queries_per_second,
    "scann_queries_per_second": speed,
    "index": "scann" if written else "exact",
  }


def _timed(
  index: hits_lib.Searcher, queries_QxE: np.ndarray, k: int, repeats: int
) -> tuple[hits_lib.Hits, float]:
  found = index.search(queries_QxE, k)  # compiles, fills caches
  seconds = []
  for _ in range(repeats):
    started = time.perf_counter()
    found = index.search(queries_QxE, k)
    seconds.append(time.perf_counter() - started)
  return found, len(queries_QxE) / min(seconds)
