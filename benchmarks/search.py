"""Queries a second against recall: exact search and ScaNN as the package runs them, FAISS beside them.

    python -m benchmarks.search --passages=100000 --out=search.jsonl --plot=search.svg
    python -m benchmarks.search --system=exact --recall=0.95
    python -m benchmarks.search --passages=1000000 --system=exact --system=scann_shards --shard_passages=250000
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.search --system=exact

One JSON line for each way to search: recall of the first `--depth` of exact search, speed, seconds and CPU seconds to
build, peak memory.  Every system has a process of its own and reads the vectors from a file.  FAISS is the
extra `bench`.  Exact search cuts the passages over all devices there are, as the last command pretends on a CPU.
"""

import importlib.util
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import alone, report
from idistill_jax import config, extras, sharding
from idistill_jax.retrieval import ann, ann_shards, exact, hits, tuning

_PASSAGES = flags.DEFINE_integer("passages", 100_000, "Passages of the collection.", lower_bound=1000)
_WIDTH = flags.DEFINE_integer("width", 768, "Dimensions of a vector.", lower_bound=2)
_QUERIES = flags.DEFINE_integer("queries", 200, "Queries, all asked in one call.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 100, "Passages of each query.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls, of which the fastest counts.", lower_bound=1)
_SYSTEMS = flags.DEFINE_multi_enum(
  "system", ["exact", "scann", "faiss_ivf", "faiss_pq"], ["exact", "scann", "scann_shards", "faiss_ivf", "faiss_pq"],
  "Repeat the flag for several; exact search always comes first, as recall is measured by it.")
_SHARD = flags.DEFINE_integer("shard_passages", 250_000, "Passages of a shard of scann_shards at most.",
                              lower_bound=1000)
_RECALL = flags.DEFINE_float(
  "recall", 1.0, "Below 1: exact search a second time, of which a TPU may miss as much; elsewhere it misses nothing.",
  lower_bound=0.01, upper_bound=1.0)
_OUT = flags.DEFINE_string("out", None, "A file that the lines are added to.")
_PLOT = flags.DEFINE_string("plot", None, "A picture of them (.svg, .png); needs the extra `report`.")

PACKAGES = ("idistill-jax", "jax", "scann", "faiss-cpu")
PASSAGES, QUERIES, TRUTH = "passages.npy", "queries.npy", "truth.npy"
# Centres, centres around each of them, and how far from them: cosines of about 0.4 and 0.7 between neighbours.  Few of
# the first and many of the second: what is near a query lies in more leaves than one, as in a real collection.
COARSE, FINE, SPREAD = 30, 1000, 0.8
BLOCK = 50_000
# How many lists FAISS looks into, as shares of all: as ScaNN's leaves.
PROBES = tuning.FRACTIONS


def draw(folder: pathlib.Path, passages: int, queries: int, width: int, seed: int = 0) -> None:
  """Unit vectors around centres around centres, passages and queries alike; written block by block."""
  rng = np.random.default_rng(seed)
  unit = lambda *shape: _unit(rng.standard_normal(shape, np.float32))
  coarse, around = unit(COARSE, width), unit(COARSE * FINE, width)
  centres = coarse.repeat(FINE, axis=0) + SPREAD * around
  for name, count in ((PASSAGES, passages), (QUERIES, queries)):
    out = np.lib.format.open_memmap(folder / name, "w+", np.float32, (count, width))
    for start in range(0, count, BLOCK):
      which = rng.integers(0, len(centres), min(BLOCK, count - start))
      out[start : start + BLOCK] = _unit(centres[which] + SPREAD * unit(len(which), width))
    out.flush()


def _unit(vectors: np.ndarray) -> np.ndarray:
  return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# -- Systems: a folder -> ways to search ---------------------------------------------------------------------------


Ways = Iterator[tuple[dict[str, Any], hits.Searcher]]


def _ids(count: int) -> list[str]:
  return [f"p{number:09d}" for number in range(count)]


def exact_ways(vectors_PxE: np.ndarray) -> Ways:
  mesh = sharding.make_mesh(config.Mesh())
  for least in dict.fromkeys((1.0, _RECALL.value)):
    searcher = exact.Exact(vectors_PxE, _ids(len(vectors_PxE)), mesh=mesh, recall=least)
    yield {"parts": mesh.size, "least_recall": least}, searcher


def scann_ways(vectors_PxE: np.ndarray) -> Ways:
  return _scann_ways(ann.build(vectors_PxE, _ids(len(vectors_PxE))))


def scann_shards_ways(vectors_PxE: np.ndarray) -> Ways:
  """As the index stage builds a corpus that one index would not hold: one shard after another, on disk."""
  ids = _ids(len(vectors_PxE))
  with tempfile.TemporaryDirectory() as folder:
    runs = ann_shards.runs(len(vectors_PxE), _SHARD.value)
    yield from _scann_ways(ann_shards.build(folder, ((vectors_PxE[run], ids[run]) for run in runs)))


def _scann_ways(built: ann.Scann | ann_shards.Sharded) -> Ways:
  for leaves in _counts(built.settings.leaves):
    reorder = _DEPTH.value * max(tuning.REORDERS)
    yield {"leaves_to_search": leaves, "reorder": reorder}, built.searching(leaves=leaves, reorder=reorder)


class _Faiss:
  """A FAISS index as a searcher."""

  def __init__(self, index: Any):
    self._index = index

  def search(self, queries_QxE: np.ndarray, k: int) -> hits.Hits:
    scores, rows = self._index.search(queries_QxE, k)
    return hits.Hits(rows=rows, scores=scores, found=(rows >= 0).sum(axis=1).astype(np.int32))


def faiss_ivf_ways(vectors_PxE: np.ndarray) -> Ways:
  """Inverted lists of whole vectors."""
  return _faiss_ways(vectors_PxE, "IVF{lists},Flat", reorder=None)


def faiss_pq_ways(vectors_PxE: np.ndarray) -> Ways:
  """Inverted lists of 4-bit codes for pairs of dimensions, and whole vectors to score again: ScaNN's plan."""
  return _faiss_ways(vectors_PxE, "IVF{lists},PQ{pairs}x4fs,RFlat", reorder=max(tuning.REORDERS))


def _faiss_ways(vectors_PxE: np.ndarray, factory: str, *, reorder: int | None) -> Ways:
  import faiss  # an extra: the other systems need none of it

  settings = ann.settings_for(len(vectors_PxE))
  width = vectors_PxE.shape[1]
  name = factory.format(lists=settings.leaves, pairs=width // 2)
  index = faiss.index_factory(width, name, faiss.METRIC_INNER_PRODUCT)
  index.train(np.ascontiguousarray(vectors_PxE[:: max(1, len(vectors_PxE) // settings.training_sample)]))
  for start in range(0, len(vectors_PxE), BLOCK):
    index.add(np.ascontiguousarray(vectors_PxE[start : start + BLOCK]))
  for probes in _counts(settings.leaves):
    faiss.extract_index_ivf(index).nprobe = probes
    if reorder is not None:
      index.k_factor = reorder
    yield {"lists": settings.leaves, "probes": probes}, _Faiss(index)


def _counts(leaves: int) -> list[int]:
  return sorted({max(1, round(share * leaves)) for share in PROBES})


WAYS: dict[str, Callable[[np.ndarray], Ways]] = {
  "exact": exact_ways, "scann": scann_ways, "scann_shards": scann_shards_ways, "faiss_ivf": faiss_ivf_ways,
  "faiss_pq": faiss_pq_ways,
}


# -- Measuring -----------------------------------------------------------------------------------------------------


def measure(folder: pathlib.Path, system: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
  """A line for each way in which the system can search; the first of exact search leaves the truth in the folder."""
  flags.FLAGS(["search", *arguments])
  vectors_PxE, queries_QxE = np.load(folder / PASSAGES, mmap_mode="r"), np.load(folder / QUERIES)
  started, busy = time.perf_counter(), time.process_time()
  lines: list[dict[str, Any]] = []
  built = None
  for way, searcher in WAYS[system](vectors_PxE):
    built = built or {"build_seconds": time.perf_counter() - started, "build_cpu_seconds": time.process_time() - busy}
    cpu = time.process_time()
    found, speed = tuning.timed(searcher, queries_QxE, _DEPTH.value, _REPEATS.value)
    cpu = (time.process_time() - cpu) / (1 + _REPEATS.value) / len(queries_QxE)
    if not (folder / TRUTH).exists():
      np.save(folder / TRUTH, found.rows)
    truth = hits.Hits(rows=np.load(folder / TRUTH), scores=found.scores, found=found.found)
    lines.append({"system": system, "device": _device(system), **way, "recall": round(tuning.recall(truth, found), 4),
                  "queries_per_second": speed, "cpu_seconds_per_query": cpu, **built})
  return [line | {"peak_memory_bytes": alone.most()} for line in lines]


def _device(system: str) -> str:
  """Only exact search knows another than the CPU."""
  if system != "exact":
    return "cpu"
  import jax  # which the others need not start

  return str(jax.devices()[0].device_kind)


def plot(lines: list[dict[str, Any]], path: str, title: str) -> None:
  """Speed against recall, one line a system."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
  for system in dict.fromkeys(line["system"] for line in lines):
    points = [(line["recall"], line["queries_per_second"]) for line in lines if line["system"] == system]
    axes.plot(*zip(*points, strict=True), marker="o", label=system.replace("_", " "))
  axes.set(yscale="log", xlabel="recall of exact search", ylabel="queries a second", title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  figure.savefig(path)


def main(argv: Sequence[str]) -> None:
  options = {flag.name: flag.value for flag in flags.FLAGS.get_key_flags_for_module("__main__")}
  if any(one.startswith("faiss") for one in _SYSTEMS.value) and importlib.util.find_spec("faiss") is None:
    raise app.UsageError(f"FAISS is not installed: {extras.install('bench')}; or name the --system that is")
  lines = [report.of_run(PACKAGES, benchmark="search", cpus=len(os.sched_getaffinity(0)), options=options)]
  print(json.dumps(lines[0]), flush=True)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    draw(folder, _PASSAGES.value, _QUERIES.value, _WIDTH.value)
    for system in ["exact", *(one for one in _SYSTEMS.value if one != "exact")]:
      arguments = [f"--{flag}={options[flag]}" for flag in ("depth", "repeats", "shard_passages", "recall")]
      found = alone.call(measure, folder, system, arguments)
      for line in found:
        print(json.dumps(line), flush=True)
      lines += found
  if _OUT.value:
    with open(_OUT.value, "a", encoding="utf-8") as out:
      out.writelines(json.dumps(line) + "\n" for line in lines)
  if _PLOT.value:
    plot(lines[1:], _PLOT.value, f"{_PASSAGES.value:,} passages x {_WIDTH.value}, first {_DEPTH.value}")


if __name__ == "__main__":
  app.run(main)
