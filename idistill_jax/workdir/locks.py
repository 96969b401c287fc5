"""One run at a time: a lock on a name in a folder, which goes with its process, however that ends."""

import contextlib
import fcntl
import functools
import os
import pathlib
import time
from collections.abc import Iterator
from typing import IO

from absl import logging

# Who looks (`is_held`) holds the lock for a moment: for so long it is asked for again.
_LOOK_SECONDS = 0.5


class BusyError(OSError):
  """Another run holds the lock."""


@contextlib.contextmanager
def alone(path: pathlib.Path, what: str) -> Iterator[None]:
  """Holds the lock `path` while the block runs; raises BusyError, naming `what`, where another run does.

  On file systems that know no locks nobody is held back, which is said.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  until = time.monotonic() + _LOOK_SECONDS
  while (lock := _taken(path)) is None:
    if time.monotonic() > until:
      raise BusyError(f"{what}: another run is at work there, it holds {path}; wait for it, or stop it first")
    time.sleep(_LOOK_SECONDS / 20)
  with lock:
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def _taken(path: pathlib.Path) -> IO[str] | None:
  """The file whose closing gives the lock back; None where another has it."""
  with contextlib.ExitStack() as opened:
    lock = opened.enter_context(open(path, "a"))
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      return None
    except OSError as e:
      _tell(path.parent, str(e))
    # Whoever held it may have taken the name away since it was opened.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
        opened.pop_all()
        return lock
  return None


@functools.cache
def _tell(folder: pathlib.Path, why: str) -> None:
  """Once a folder: it is asked for with every stage."""
  logging.warning("%s: its file system knows no locks (%s), so two runs there would not hold each other back: start no "
                  "second one", folder, why)


def is_held(path: pathlib.Path) -> bool | None:
  """Whether a run holds the lock; None on file systems that know no locks, where its file is there."""
  try:
    with open(path) as lock:
      # Shared, and for a moment: others who look are not in the way, and who wants it tries again.
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except BlockingIOError:
    return True
  except OSError:
    return None
  return False
