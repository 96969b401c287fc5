"""Work over many texts, cut into pieces that are dealt out to processes and kept as files once they are done.

The cut is a function of the amount of work alone.  So a job that starts again, with as many processes or others, finds
the finished pieces of the last one, whoever made them, and deals out what is left.
"""

import hashlib

import numpy as np
from etils import epath

from idistill_jax import processes

# Texts of a piece: enough for full rows, few enough to lose; a small corpus is cut into MOST of them, as far as that.
LEAST, LARGEST, MOST = 2048, 8192, 16


def cut(total: int) -> list[range]:
  """Runs of nearly equal length that cover `total` texts."""
  size = min(max(-(-total // MOST), LEAST), LARGEST)
  count = -(-total // size)
  return [range(i * total // count, (i + 1) * total // count) for i in range(count)]


class Pieces:
  """The pieces of one piece of work.  folder: where finished ones lie; None keeps them in memory, for one process."""

  def __init__(self, folder: epath.PathLike | None, name: str, lengths: np.ndarray):
    self._name = name
    self._all = cut(len(lengths))
    self._made: dict[int, np.ndarray] = {}
    self._folder = None
    if folder is not None:
      # Other work under the same name would be the work of another program.
      digest = hashlib.sha256(np.asarray(lengths, np.int64).tobytes()).hexdigest()[:8]
      self._folder = epath.Path(folder) / f"{name.replace(' ', '_')}-{digest}"

  def mine(self) -> list[range]:
    """What this process has to do: its share of the pieces that are not done yet."""
    if self._folder is None:
      return self._all
    return [self._all[i] for i in processes.once(self._missing)[processes.index()::processes.count()]]

  def _missing(self) -> list[int]:
    return [i for i, piece in enumerate(self._all) if not self._path(piece).exists()]

  def finish(self, piece: range, values: np.ndarray) -> None:
    """Keeps the output [len(piece), ...] of a piece."""
    if self._folder is None:
      self._made[piece.start] = values
      return
    path = self._path(piece)
    path.parent.mkdir(parents=True, exist_ok=True)
    working = path.parent / f".{path.stem}.{processes.index()}.npy"
    with working.open("wb") as out:
      np.save(out, values)
    working.replace(path)

  def whole(self) -> np.ndarray:
    """The output of all pieces, in order, once every process has finished its own."""
    processes.meet(f"the end of {self._name}")
    if not self._all:
      return np.zeros((0,), np.float32)
    return np.concatenate([
      self._made[piece.start] if self._folder is None else self._read(piece) for piece in self._all
    ])

  def _read(self, piece: range) -> np.ndarray:
    with self._path(piece).open("rb") as found:
      return np.load(found)

  def _path(self, piece: range) -> epath.Path:
    assert self._folder is not None
    return self._folder / f"{piece.start:09d}-{piece.stop:09d}.npy"
