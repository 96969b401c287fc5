"""A machine that is taken away says so with SIGTERM: save, then go, with a code that says "run me again"."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

# What a shell reports for a process that SIGTERM ended: launchers run the same command again.
EXIT_CODE = 128 + signal.SIGTERM


class Preempted(SystemExit):
  """Work was saved and ends here; the same command continues it."""

  def __init__(self) -> None:
    super().__init__(EXIT_CODE)


@contextlib.contextmanager
def watch() -> Iterator[Callable[[], bool]]:
  """Whether SIGTERM has come since; it ends nothing while this is watching.

  Signals reach the main thread alone; elsewhere nothing is watched.
  """
  came = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield came.is_set
    return
  before = signal.signal(signal.SIGTERM, lambda *_: came.set())
  try:
    yield came.is_set
  finally:
    signal.signal(signal.SIGTERM, before)
