"""The index folder: which kind of search a corpus gets, written and opened again, and measured against exact
search.

A folder holds `passages.npy` ([P, E], collection order; float32, or int8 beside `scales.npy`) and, where ScaNN is
used, `scann/` with a folder for each shard.
"""

import dataclasses
import operator
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np
from absl import logging

from idistill_jax import config as config_lib
from idistill_jax import processes
from idistill_jax.retrieval import ann, ann_shards, compact, exact, systems, tuning
from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.workdir import files

# Below this many passages exact search is fast enough that approximating buys nothing.
EXACT_BELOW = 20_000
# Up to so many passages ScaNN is built for the report's curve, too, where search is exact.  The first process does so
# alone while the others wait: of a million in 200 s and 13 GB on two cores, and of 21 million in more than an hour.
CURVE_UP_TO = 200_000
SCANN = "scann"


def choose(kind: str, passages: int) -> str:
  """The kind of index, "exact" or "scann", that a config's `index.kind` means for a corpus of that size."""
  if kind == "auto":
    return "exact" if passages < EXACT_BELOW else "scann"
  return kind


def write(
  folder: pathlib.Path,
  vectors_PxE: np.ndarray,
  ids: Sequence[str],
  cfg_index: config_lib.Index,
  queries_QxE: np.ndarray,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, float | int | str]:
  """Writes the index folder; returns its kind, and for ScaNN its settings and their recall on the queries.

  mesh: whose processes find together, by exact search, what ScaNN is tuned to find; the first does the rest alone.
  Raises as `ann.build` does.
  """
  vectors_PxE = compact.truncated(hits_lib.check_passages_together(vectors_PxE, ids), cfg_index.dimensions)
  kind, truth = choose(cfg_index.kind, len(ids)), None
  if kind == "scann" and len(queries_QxE):
    queries_QxE = compact.truncated(queries_QxE, cfg_index.dimensions)
    # What is read of them lives no longer than this: ScaNN needs the memory.
    truth = exact.Exact(compact.as_read(vectors_PxE, cfg_index.precision), ids, mesh=mesh).search(
      queries_QxE, cfg_index.tuned_depth)

  def write_alone() -> dict[str, float | int | str]:
    compact.write(folder, vectors_PxE, cfg_index.precision)
    made = {} if kind == "exact" else _write_scann(folder, ids, cfg_index, queries_QxE, truth)
    return {"index": kind, **made}

  return processes.once(write_alone, "the index")


def _write_scann(folder: pathlib.Path, ids: Sequence[str], cfg_index: config_lib.Index, queries_QxE: np.ndarray,
                 truth: hits_lib.Hits | None) -> Mapping[str, float | int]:
  """Over the vectors that are written; tuned to what exact search found."""
  built = _build(folder, ids, cfg_index, folder / SCANN)
  if truth is None:
    logging.warning("ScaNN is not tuned: no queries of dev or train are there that are not measured")
    return _said(built)
  tuned, recall = tuning.tune(built, truth, queries_QxE, cfg_index.recall_target)
  if recall < cfg_index.recall_target:
    logging.warning("ScaNN finds %.3f of exact search at most, less than index.recall_target", recall)
  tuned.save_settings(folder / SCANN)
  return {**_said(tuned), f"tuned recall@{cfg_index.tuned_depth}": round(recall, 4)}


def _build(
  folder: pathlib.Path, ids: Sequence[str], cfg_index: config_lib.Index, out: str | os.PathLike[str]
) -> ann_shards.Sharded:
  """ScaNN over the vectors of an index folder, of which one shard's are read at a time; written to `out`."""
  runs = ann_shards.runs(len(ids), cfg_index.scann_shard_passages)
  return ann_shards.build(out, ((compact.read(folder, run), ids[run]) for run in runs))


def _said(index: ann_shards.Sharded) -> dict[str, int]:
  settings = {name: getattr(index.settings, name) for name in ("leaves", "leaves_to_search", "reorder")}
  return {"shards": index.shards, **settings}


def check_grows(folder: pathlib.Path) -> None:
  """Raises ValueError for an index folder of 8-bit integers, whose scales were learnt from the corpus."""
  if (folder / compact.SCALES).exists():
    raise ValueError(
      f"{folder} holds 8-bit integers (index.precision=int8), whose scales were learnt from the corpus, and takes no "
      "new passages: add them to the files of the collection and run the pipeline again, which makes collection and "
      "index anew"
    )


def upsert(folder: pathlib.Path, ids: Sequence[str], new_ids: Sequence[str], vectors_PxE: np.ndarray) -> list[str]:
  """Adds passages to an index folder, or replaces vectors of those it holds; returns all ids in the new order.

  ids: what the folder holds.  Raises as `Sharded.upsert` and `check_grows` do.
  """
  check_grows(folder)
  vectors_PxE = hits_lib.check_passages(vectors_PxE, new_ids)
  hits_lib.tie_order(new_ids)
  scann = open_scann(folder, ids)
  old = compact.read(folder)
  vectors_PxE = compact.truncated(vectors_PxE, old.shape[1])
  row_of = {one: row for row, one in enumerate(ids)}
  added = [place for place, one in enumerate(new_ids) if one not in row_of]
  vectors = np.concatenate([old, vectors_PxE[added]])
  for place, one in enumerate(new_ids):
    if one in row_of:
      vectors[row_of[one]] = vectors_PxE[place]
  if scann is not None:
    scann.upsert(new_ids, vectors_PxE)
    scann.save(folder / SCANN)
  np.save(folder / compact.VECTORS, vectors)
  return [*ids, *(new_ids[place] for place in added)]


def remove(folder: pathlib.Path, ids: Sequence[str], gone: Collection[str]) -> list[str]:
  """Takes passages out of an index folder, also of 8-bit integers, whose scales stay; returns the ids that are left.

  ids: what the folder holds, `gone` among them.  Raises as `Sharded.remove` does.
  """
  scann, path = open_scann(folder, ids), folder / compact.VECTORS
  kept = [row for row, one in enumerate(ids) if one not in gone]
  vectors = np.load(path, mmap_mode="r")[kept]
  if scann is not None:
    scann.remove(gone)
    # Not over what is there: there may be fewer shards, and of a smaller one fewer files.
    half = folder / f"{SCANN}{files.HALF}"
    scann.save(half)
    shutil.rmtree(folder / SCANN)
    half.rename(folder / SCANN)
  np.save(path, vectors)
  return [ids[row] for row in kept]


def recall(folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray, k: int, mesh: jax.sharding.Mesh) -> float:
  """The share of exact search's first k that ScaNN finds, of a folder that has it, as it is set."""
  truth = open_exact(folder, ids, mesh).search(queries_QxE, k)
  return tuning.recall(truth, open_default(folder, ids).search(queries_QxE, k))


def open_exact(
  folder: pathlib.Path, ids: Sequence[str], mesh: jax.sharding.Mesh | None = None
) -> hits_lib.Searcher:
  """Exact search over the vectors of an index folder, which the devices of a mesh share."""
  vectors_PxE = compact.read(folder)
  return compact.Truncating(exact.Exact(vectors_PxE, ids, mesh=mesh), vectors_PxE.shape[1])


def kind_of(folder: pathlib.Path) -> str:
  """The kind of search that the folder was written for."""
  return "scann" if (folder / SCANN).exists() else "exact"


def open_default(
  folder: pathlib.Path, ids: Sequence[str], mesh: jax.sharding.Mesh | None = None
) -> hits_lib.Searcher:
  """The search that the folder was written for; `mesh` is for exact search."""
  scann = open_scann(folder, ids)
  return open_exact(folder, ids, mesh) if scann is None else compact.Truncating(scann, scann.width)


def open_scann(folder: pathlib.Path, ids: Sequence[str]) -> ann_shards.Sharded | None:
  """The ScaNN index of a folder, or None where it was written for exact search.

  Raises ValueError where it was built over other passages.
  """
  if kind_of(folder) != "scann":
    return None
  found = ann_shards.load(folder / SCANN)
  if len(found) != len(ids) or any(map(operator.ne, found.ids, ids)):
    raise ValueError(
      f"{folder / SCANN} holds {len(found)} passages that are not the collection's {len(ids)}, or in "
      "another order; run the index stage again"
    )
  return found


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Oracle:
  """The first k that exact search finds for queries to tune on, so many of the first (None where these are none), and
  for the others, to measure on; how many of these it answers in a second, all in one call, and the milliseconds that
  one takes."""

  k: int
  tuning_queries: int
  tuned_on: hits_lib.Hits | None
  truth: hits_lib.Hits
  queries_per_second: float
  milliseconds: float


def oracle(folder: pathlib.Path, exactly: hits_lib.Searcher, queries_QxE: np.ndarray, k: int) -> Oracle:
  """What ScaNN is held against, by exact search over the folder; half of the queries are to tune on where it holds no
  ScaNN."""
  half = 0 if kind_of(folder) == "scann" else len(queries_QxE) // 2
  truth, speed = tuning.timed(exactly, queries_QxE[half:], k)
  tuned_on = exactly.search(queries_QxE[:half], k) if half else None
  return Oracle(k=k, tuning_queries=half, tuned_on=tuned_on, truth=truth, queries_per_second=speed,
                milliseconds=tuning.latency(exactly, queries_QxE[half:], k))


def honesty(
  folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray, oracle: Oracle, cfg_index: config_lib.Index,
  mesh: jax.sharding.Mesh | None = None, judged: compact.Judged | None = None,
) -> dict[str, object]:
  """ScaNN against exact search in the form of metrics.json, whichever of the two the folder was written for.

  `curve` holds recall and speed from few leaves to all, `options` what smaller vectors keep of what `options_against`
  names, over so many passages of how many there are (`options_passages`); `whole_dimensions` are those of the model.
  Where the folder was written for exact search, a ScaNN index is built and tuned on half of the queries, to be measured
  on the others; should ScaNN not run on this machine, or there be more than CURVE_UP_TO passages, its numbers are None
  and the log says why.

  oracle: of these queries; asked before, so that its vectors need not be on the devices twice, nor beside ScaNN.
  judged: what options are measured against, too.  mesh: whose processes search exactly, together; what ScaNN finds of
  that, the first measures alone.
  """
  whole, queries_QxE = queries_QxE.shape[1], compact.truncated(queries_QxE, cfg_index.dimensions)
  rows = compact.measured_rows(ids, judged)
  vectors_PxE, measured = compact.read(folder, rows), [ids[row] for row in rows]
  options = compact.options(vectors_PxE, measured, queries_QxE, oracle.k, mesh, judged)
  against_scann = lambda: _against_scann(folder, ids, queries_QxE, oracle, cfg_index)
  return {
    **processes.once(against_scann, "ScaNN against exact search"),
    "options": options, "options_passages": [len(rows), len(ids)],
    "options_against": _against(vectors_PxE, whole, cfg_index.precision), "whole_dimensions": whole,
  }  # fmt: skip


def _against_scann(
  folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray, oracle: Oracle, cfg_index: config_lib.Index
) -> dict[str, object]:
  k, written = oracle.k, open_scann(folder, ids)
  tuned_on_QxE, measured_QxE = np.split(queries_QxE, [oracle.tuning_queries])
  if written is None and len(ids) > CURVE_UP_TO:
    logging.info("ScaNN is not compared with exact search: of more than %s passages it is not built for that alone; "
                 "--config.index.kind=scann builds it in the index stage", f"{CURVE_UP_TO:,}")
    return _exact_alone(oracle)
  try:
    scann = written or _tuned(folder, ids, tuned_on_QxE, oracle.tuned_on, cfg_index)
  except ann.ScannUnavailableError as e:
    logging.warning("ScaNN is not compared with exact search: %s", e)
    return _exact_alone(oracle)
  found, scann_speed = tuning.timed(scann, measured_QxE, k)
  return {
    f"recall@{k} of exact": tuning.recall(oracle.truth, found),
    "exact_queries_per_second": oracle.queries_per_second,
    "scann_queries_per_second": scann_speed,
    "exact_milliseconds": oracle.milliseconds,
    "scann_milliseconds": tuning.latency(scann, measured_QxE, k),
    "index": "scann" if written else "exact",
    **_said(scann),
    "curve": [dataclasses.asdict(point) for point in tuning.curve(scann, oracle.truth, measured_QxE)],
  }


def _exact_alone(oracle: Oracle) -> dict[str, object]:
  return {
    f"recall@{oracle.k} of exact": None, "exact_queries_per_second": oracle.queries_per_second,
    "scann_queries_per_second": None, "exact_milliseconds": oracle.milliseconds, "index": "exact",
  }  # fmt: skip


def _against(vectors_PxE: np.ndarray, whole: int, precision: str) -> str:
  """What the vectors of a folder are: the whole ones are not kept beside smaller ones."""
  if (vectors_PxE.shape[1], precision) == (whole, "float32"):
    return systems.WHOLE
  return f"the index's own vectors ({vectors_PxE.shape[1]} dimensions, {precision}), not the whole ones"


def _tuned(folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray, truth: hits_lib.Hits | None,
           cfg_index: config_lib.Index) -> ann_shards.Sharded:
  with tempfile.TemporaryDirectory() as out:
    built = _build(folder, ids, cfg_index, out)
  return built if truth is None else tuning.tune(built, truth, queries_QxE, cfg_index.recall_target)[0]
