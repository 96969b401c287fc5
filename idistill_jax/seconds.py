"""What the attempts at a stage took, kept beside their work until it is committed."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

from idistill_jax import files

FILE = "seconds"
# A kill costs no more of the count than this; of a machine that goes for good, no more than the second: what is sent to
# a bucket is paid for by the request.
WRITTEN_SECONDS, SENT_SECONDS = 30.0, 300.0


class Spent:
  """What the attempts took that a folder tells of, and one that begins now."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / FILE
    before = float(self._path.read_text() or 0) if self._path.exists() else 0.0
    self._began = time.time() - before
    self._writing = threading.Lock()

  def so_far(self) -> float:
    return time.time() - self._began

  def write(self) -> None:
    """A full disk costs the number: as an error it would hide why a stage ended, and keep its answers from a bucket."""
    try:
      with self._writing:
        if self._path.parent.exists():
          files.write_atomically(self._path, str(self.so_far()))
    except OSError as e:
      logging.warning("%s: not written (%s)", self._path, e)

  @contextlib.contextmanager
  def kept(self, send: Callable[[], object]) -> Iterator[None]:
    """Writes it every now and then while the block runs, and at its end; `send` makes it outlive this machine."""
    ended = threading.Event()
    writer = threading.Thread(target=self._keep_writing, args=(ended, send), daemon=True)
    writer.start()
    try:
      yield
    finally:
      ended.set()
      # What comes next may take the folder away.
      writer.join()
      self.write()

  def _keep_writing(self, ended: threading.Event, send: Callable[[], object]) -> None:
    sent = time.monotonic()
    while not ended.wait(WRITTEN_SECONDS):
      self.write()
      if time.monotonic() - sent > SENT_SECONDS:
        sent = time.monotonic()
        try:
          send()
        except Exception as e:  # a bucket has its own; where the stage is another run's by now, the work finds out too
          logging.warning("%s: not sent (%s)", self._path, e)
