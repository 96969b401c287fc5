"""ScaNN behind the same `.search` as exact search: build, save, load.  `ann_shards` makes one searcher of several.

ScaNN answers several mistakes by ending the process or with meaningless rows, so everything that it could
stumble over is settled before it is called.
"""

import copy
import dataclasses
import itertools
import json
import math
import os
import pathlib
import platform
import sys
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from idistill_jax import extras
from idistill_jax.retrieval import hits as hits_lib

# ScaNN learns 16 centres for each pair of dimensions and refuses fewer points than centres.
QUANTISE_FROM = 16
TRAINING_SAMPLE = 250_000
REORDER = 200
SETTINGS = "index.json"


class ScannUnavailableError(ImportError):
  """ScaNN cannot run here; the message says what to install or to set."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
  """ScaNN's settings for a corpus.  leaves: partitions; leaves_to_search: those a query looks into; reorder:
  how many quantised finds are scored again exactly; training_sample: points that partitions are learnt
  from; built: passages that were there when they were."""

  leaves: int
  leaves_to_search: int
  reorder: int
  training_sample: int
  built: int


def settings_for(passages: int) -> Settings:
  """Leaves near the square root of the corpus, a tenth of them searched: where `tuning.tune` starts from."""
  leaves = max(1, math.isqrt(passages))
  return Settings(
    leaves=leaves,
    leaves_to_search=max(1, math.ceil(leaves / 10)),
    reorder=min(passages, REORDER),
    training_sample=min(passages, TRAINING_SAMPLE),
    built=passages,
  )


class Scann:
  """A built ScaNN index over passages in the order of the tie rule."""

  def __init__(self, searcher: Any, ids: Sequence[str], width: int, settings: Settings,
               row_of_place: Sequence[int] | None = None):
    """row_of_place: the passages at ScaNN's places; None where none has gone: those of the build in the order of the
    tie rule, then those that came later."""
    self._searcher = searcher
    self._width = width
    self.settings = settings
    self._has_gaps_filled = row_of_place is not None
    later = np.arange(settings.built, len(ids), dtype=np.int32)
    self._number(ids, np.concatenate([hits_lib.tie_order(ids[: settings.built]), later])
                 if row_of_place is None else np.array(row_of_place, np.int32))

  def _number(self, ids: Sequence[str], row_of_place: np.ndarray) -> None:
    self._ids, self._row_of_place = list(ids), row_of_place
    tie_of_row = np.empty(len(self._ids), np.int32)
    tie_of_row[hits_lib.tie_order(self._ids)] = np.arange(len(self._ids), dtype=np.int32)
    self._tie_of_place = tie_of_row[self._row_of_place]

  def __len__(self) -> int:
    return len(self._ids)

  @property
  def ids(self) -> list[str]:
    """Passage ids in the order of the collection: what the rows of hits point at."""
    return self._ids

  @property
  def width(self) -> int:
    """Dimensions of the vectors."""
    return self._width

  def search(self, queries_QxE: np.ndarray, k: int) -> hits_lib.Hits:
    """As `exact.Exact.search`, every place filled.

    A query whose leaves hold fewer than min(k, P) passages is asked again in all leaves.
    """
    hits_lib.check_k(k)
    queries_QxE = hits_lib.check_queries(queries_QxE, self._width)
    k = min(k, len(self))
    places, scores = self._ask(queries_QxE, k, self.settings.leaves_to_search)
    short = np.flatnonzero(np.isnan(scores).any(axis=1))
    if len(short):
      places[short], scores[short] = self._ask(queries_QxE[short], k, self.settings.leaves)
    if np.isnan(scores).any():
      raise RuntimeError(f"ScaNN found fewer than {k} of {len(self)} passages with all its leaves searched")
    # Scores descending, then the tie rule.
    order = np.lexsort((self._tie_of_place[places], -scores), axis=1)
    return hits_lib.Hits(
      rows=self._row_of_place[np.take_along_axis(places, order, axis=1)],
      scores=np.take_along_axis(scores, order, axis=1),
      found=np.full(len(queries_QxE), k, np.int32),
    )

  def _ask(self, queries_QxE: np.ndarray, k: int, leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """Places int64 and scores float32, both [Q, k]; a place that ScaNN left open has the score NaN."""
    places = np.zeros((len(queries_QxE), k), np.int64)
    scores = np.full((len(queries_QxE), k), np.nan, np.float32)
    if len(queries_QxE):
      found, distances = self._searcher.search_batched_parallel(
        queries_QxE,
        final_num_neighbors=k,
        pre_reorder_num_neighbors=max(k, self.settings.reorder),
        leaves_to_search=leaves,
      )
      places[:, : found.shape[1]] = found
      scores[:, : found.shape[1]] = distances
    # Indices beside a NaN mean nothing and may point past the corpus.
    return np.where(np.isnan(scores), 0, places), scores

  def searching(self, *, leaves: int, reorder: int) -> "Scann":
    """The same index, looking into so many leaves and scoring so many finds again."""
    # Not a new one, which would sort all ids again.
    made = copy.copy(self)
    made.settings = dataclasses.replace(
      self.settings, leaves_to_search=min(self.settings.leaves, leaves), reorder=min(len(self), reorder))
    return made

  def upsert(self, ids: Sequence[str], vectors_PxE: np.ndarray) -> None:
    """Adds passages, and gives those that are there already new vectors; what was learnt for the build stays.

    Raises hits.VectorError (not finite, wrong shape) and ValueError (repeated id); then nothing has changed.
    """
    vectors_PxE = hits_lib.check_queries(hits_lib.check_passages(vectors_PxE, ids), self._width)
    hits_lib.tie_order(ids)  # raises where an id is repeated
    row_of = {one: row for row, one in enumerate(self._ids)}
    place_of_row = np.argsort(self._row_of_place)
    places = [int(place_of_row[row_of[one]]) if one in row_of else None for one in ids]
    self._searcher.searcher.upsert(places, vectors_PxE, len(ids))
    after = self._ids + [one for one in ids if one not in row_of]
    later = np.arange(len(self._ids), len(after), dtype=np.int32)
    self._number(after, np.concatenate([self._row_of_place, later]))

  def remove(self, ids: Collection[str]) -> None:
    """Takes passages out; what was learnt for the build stays.

    Raises ValueError, and nothing has changed, for an id that is not there, and where none would be left.
    """
    gone = set(ids)
    kept = np.array([one not in gone for one in self._ids])
    if (kept == 0).sum() != len(gone) or not kept.any():
      raise ValueError(f"{len(gone)} passages cannot be removed from an index of {len(self)}, "
                       f"which holds {(kept == 0).sum()} of them: some must be left, and no other be named")
    # The last first, as what is last comes to the place of what goes: no other place that is named moves.
    places, order = np.flatnonzero(~kept[self._row_of_place])[::-1], self._row_of_place.copy()
    for last, place in zip(range(len(order) - 1, -1, -1), places, strict=False):
      order[place] = order[last]
    self._searcher.searcher.delete(places.tolist())
    row_after = (np.cumsum(kept) - 1).astype(np.int32)
    self._has_gaps_filled = True
    self._number(list(itertools.compress(self._ids, kept)), row_after[order[: len(order) - len(places)]])
    self.settings = dataclasses.replace(self.settings, reorder=min(self.settings.reorder, len(self)))

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the index; the folder may be moved afterwards."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._searcher.serialize(str(folder), relative_path=True)
    self.save_settings(folder)

  def save_settings(self, folder: str | os.PathLike[str]) -> None:
    """Writes how to search, beside an index that is saved already."""
    about = {"width": self._width, "settings": dataclasses.asdict(self.settings), "ids": self._ids}
    if self._has_gaps_filled:
      about["row_of_place"] = self._row_of_place.tolist()
    (pathlib.Path(folder) / SETTINGS).write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


def build(vectors_PxE: np.ndarray, ids: Sequence[str]) -> Scann:
  """Partitions, quantises and indexes the passages for inner products.

  Raises hits.VectorError (empty, not finite, wrong shape), ValueError (repeated id), ScannUnavailableError.
  """
  vectors_PxE = hits_lib.check_passages(vectors_PxE, ids)
  settings = settings_for(len(ids))
  builder = _scann().scann_ops_pybind.builder(vectors_PxE[hits_lib.tie_order(ids)], 10, "dot_product")
  builder = builder.set_n_training_threads(os.cpu_count() or 1)
  if len(ids) < QUANTISE_FROM:
    builder = builder.score_brute_force()
  else:
    builder = builder.tree(
      num_leaves=settings.leaves,
      num_leaves_to_search=settings.leaves_to_search,
      training_sample_size=settings.training_sample,
    )
    builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(settings.reorder)
  return Scann(builder.build(), ids, vectors_PxE.shape[1], settings)


def load(folder: str | os.PathLike[str]) -> Scann:
  """Reads what `Scann.save` wrote; raises FileNotFoundError or ValueError naming the file."""
  folder = pathlib.Path(folder)
  path = folder / SETTINGS
  if not path.exists():
    raise FileNotFoundError(f"{path} is not there: {folder} holds no saved ScaNN index")
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
    ids, width, settings = about["ids"], about["width"], Settings(**about["settings"])
    row_of_place = about.get("row_of_place")
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(f"{path}: not the description of a ScaNN index ({e}); build the index again") from e
  return Scann(_scann().scann_ops_pybind.load_searcher(str(folder)), ids, width, settings, row_of_place)


def missing_cpu_features(cpuinfo: str, machine: str) -> list[str]:
  """What ScaNN's wheels need and a /proc/cpuinfo lacks.  On x86-64 they use AVX2 and FMA without asking."""
  if machine not in ("x86_64", "AMD64"):
    return []
  flags = next(
    (line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), []
  )
  return [name for name in ("avx2", "fma") if name not in flags]


def check_runs() -> None:
  """Raises ScannUnavailableError where ScaNN is not installed, or would not run here."""
  _scann()


def _scann() -> ModuleType:
  """The scann package; raises ScannUnavailableError before its import could kill the process with SIGILL."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  if cpuinfo.exists():
    missing = missing_cpu_features(cpuinfo.read_text(), platform.machine())
    if missing:
      raise ScannUnavailableError(
        f"ScaNN needs a CPU with {' and '.join(missing)}, which this one lacks; use --config.index.kind=exact"
      )
  # Where TensorFlow is installed, scann loads it along with an operator built for one version of it: another
  # version breaks the import, the right one costs ten seconds.  Search needs neither, so TensorFlow looks
  # absent meanwhile.
  before = sys.modules.get("tensorflow")
  sys.modules["tensorflow"] = None  # type: ignore[assignment]
  try:
    import scann
  except ModuleNotFoundError as e:
    raise ScannUnavailableError(
      f"ScaNN is not installed: {extras.install('retrieval')}; or use --config.index.kind=exact"
    ) from e
  finally:
    if before is None:
      del sys.modules["tensorflow"]
    else:
      sys.modules["tensorflow"] = before
  return scann
