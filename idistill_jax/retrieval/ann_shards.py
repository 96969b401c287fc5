"""One ScaNN index for each run of the collection, searched as one: where no machine could build it in one piece.

Shards are built and saved one after another, so that building takes the memory of one.  Searching holds all of
them, and so does tuning, for which `build` loads what it has saved: vectors and codes, without what building needs
beside them.
"""

import copy
import os
import pathlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from idistill_jax.retrieval import ann
from idistill_jax.retrieval import hits as hits_lib


class Sharded:
  """ScaNN indexes over consecutive runs of a collection."""

  def __init__(self, shards: Sequence[ann.Scann]):
    self._shards = list(shards)
    self._number()

  def _number(self) -> None:
    """Where each shard's rows begin in the collection, and where each row stands among equals."""
    self.ids = [one for shard in self._shards for one in shard.ids]
    self._first_of_shard = np.cumsum([0, *map(len, self._shards)])[:-1].astype(np.int32)
    self._tie_of_row = np.empty(len(self.ids), np.int32)
    self._tie_of_row[hits_lib.tie_order(self.ids)] = np.arange(len(self.ids), dtype=np.int32)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def shards(self) -> int:
    return len(self._shards)

  @property
  def width(self) -> int:
    """Dimensions of the vectors."""
    return self._shards[0].width

  @property
  def settings(self) -> ann.Settings:
    """Of the shard with most leaves; the others differ from it by a leaf at most."""
    return max((shard.settings for shard in self._shards), key=lambda settings: settings.leaves)

  def search(self, queries_QxE: np.ndarray, k: int) -> hits_lib.Hits:
    """As `ann.Scann.search`: the best of what the shards find, whose scores are inner products all of them."""
    found = [shard.search(queries_QxE, k) for shard in self._shards]
    rows = np.concatenate([one.rows + first for one, first in zip(found, self._first_of_shard, strict=True)], axis=1)
    scores = np.concatenate([one.scores for one in found], axis=1)
    best = np.lexsort((self._tie_of_row[rows], -scores), axis=1)[:, :k]
    return hits_lib.Hits(
      rows=np.take_along_axis(rows, best, axis=1),
      scores=np.take_along_axis(scores, best, axis=1),
      found=np.full(len(best), best.shape[1], np.int32),
    )

  def searching(self, *, leaves: int, reorder: int) -> "Sharded":
    """The same index, looking into so many leaves of each shard and scoring so many finds of each again."""
    made = copy.copy(self)
    made._shards = [shard.searching(leaves=leaves, reorder=reorder) for shard in self._shards]
    return made

  def upsert(self, ids: Sequence[str], vectors_PxE: np.ndarray) -> None:
    """Gives passages that are there already new vectors, and adds the others to the last shard.

    Raises as `ann.Scann.upsert`; then nothing has changed.
    """
    vectors_PxE = hits_lib.check_queries(hits_lib.check_passages(vectors_PxE, ids), self.width)
    hits_lib.tie_order(ids)  # raises where an id is repeated
    shard_of = {one: number for number, shard in enumerate(self._shards) for one in shard.ids}
    shard_P = np.array([shard_of.get(one, len(self._shards) - 1) for one in ids])
    for number in np.unique(shard_P):
      rows = np.flatnonzero(shard_P == number)
      self._shards[number].upsert([ids[int(row)] for row in rows], vectors_PxE[rows])
    self._number()

  def remove(self, ids: Collection[str]) -> None:
    """Takes passages out; a shard that held no others goes.  Raises ValueError, and nothing has changed, for an id that
    is not there, and where none would be left."""
    gone = set(ids)
    named = [gone.intersection(shard.ids) for shard in self._shards]
    if sum(map(len, named)) != len(gone) or len(gone) == len(self):
      raise ValueError(f"{len(gone)} passages cannot be removed from an index of {len(self)}, "
                       f"which holds {sum(map(len, named))} of them: some must be left, and no other be named")
    left = [(shard, its) for shard, its in zip(self._shards, named, strict=True) if len(its) < len(shard)]
    for shard, its in left:
      if its:
        shard.remove(its)
    self._shards = [shard for shard, _ in left]
    self._number()

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes all shards; the folder may be moved afterwards."""
    for number, shard in enumerate(self._shards):
      shard.save(_shard_folder(folder, number))

  def save_settings(self, folder: str | os.PathLike[str]) -> None:
    """Writes how to search, beside shards that are saved already."""
    for number, shard in enumerate(self._shards):
      shard.save_settings(_shard_folder(folder, number))


def runs(passages: int, most: int) -> list[slice]:
  """The fewest runs of at most `most` passages, all of nearly equal length."""
  count = -(-passages // most)
  return [slice(i * passages // count, (i + 1) * passages // count) for i in range(count)]


def build(folder: str | os.PathLike[str], parts: Iterable[tuple[np.ndarray, Sequence[str]]]) -> Sharded:
  """Builds and saves an index for each part (vectors [P, E], ids), which are asked for one at a time.

  Raises as `ann.build`, and ValueError for an id that two parts hold.
  """
  for number, (vectors_PxE, ids) in enumerate(parts):
    ann.build(vectors_PxE, ids).save(_shard_folder(folder, number))
  return load(folder)


def load(folder: str | os.PathLike[str]) -> Sharded:
  """Reads what was built or saved; raises FileNotFoundError or ValueError naming the file."""
  folders = sorted(path.parent for path in pathlib.Path(folder).glob(f"*/{ann.SETTINGS}"))
  if not folders:
    raise FileNotFoundError(f"{folder} holds no shard of a ScaNN index; run the index stage again")
  return Sharded([ann.load(path) for path in folders])


def _shard_folder(folder: str | os.PathLike[str], number: int) -> pathlib.Path:
  return pathlib.Path(folder) / f"{number:05d}"
