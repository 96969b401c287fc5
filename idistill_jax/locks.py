"""One run at a time: a lock on a name in a folder, which goes with its process, however that ends."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Iterator


class BusyError(OSError):
  """Another run holds the lock."""


@contextlib.contextmanager
def alone(path: pathlib.Path, what: str) -> Iterator[None]:
  """Holds the lock `path` while the block runs; raises BusyError, naming `what`, where another run does.

  On file systems that know no locks nobody is held back.
  """
  busy = BusyError(f"{what}: another run is at work there, it holds {path}; wait for it, or stop it first")
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise busy from None
    except OSError:
      pass
    # Whoever held it may have taken the name away since it was opened.
    if not path.exists() or not os.path.samestat(os.fstat(lock.fileno()), path.stat()):
      raise busy
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def is_held(path: pathlib.Path) -> bool:
  """Whether a run holds the lock; on file systems that know no locks, whether its file is there."""
  try:
    with open(path) as lock:
      # Shared, and for a moment: others who look are not in the way.
      fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except FileNotFoundError:
    return False
  except OSError:
    return True
  return False
