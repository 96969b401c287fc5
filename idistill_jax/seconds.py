"""What the attempts at a stage took, kept beside their work until it is committed."""

import pathlib
import time

from absl import logging

from idistill_jax import files

FILE = "seconds"


class Spent:
  """What the attempts took that a folder tells of, and one that begins now."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / FILE
    before = float(self._path.read_text() or 0) if self._path.exists() else 0.0
    self._began = time.time() - before

  def so_far(self) -> float:
    return time.time() - self._began

  def write(self) -> None:
    """A full disk costs the number: as an error it would hide why a stage ended, and keep its answers from a bucket."""
    try:
      if self._path.parent.exists():
        files.write_atomically(self._path, str(self.so_far()))
    except OSError as e:
      logging.warning("%s: not written (%s)", self._path, e)
