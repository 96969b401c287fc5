"""A live progress bar with rate and time left; plain log lines where no terminal is watching."""

import contextlib
import threading
import time
from collections.abc import Iterator

from absl import logging
from rich import console as rich_console
from rich import progress as rich_progress

from idistill_jax import processes

PLAIN_EVERY_SECONDS = 15.0
# What is finished sooner is not worth a bar or a line: a question to the models would leave several.
FROM_SECONDS = 1.0


class Bar:
  """`update(done, **facts)` moves the bar and shows the facts beside it."""

  def __init__(self, name: str, total: int, done: int, live: rich_progress.Progress | None):
    self._name, self._total, self._live = name, total, live
    self._first, self._done, self._started, self._said = done, done, time.monotonic(), time.monotonic()
    self._task = live.add_task(name, total=total, completed=done, facts="") if live else None

  def update(self, done: int, **facts: float | str) -> None:
    if done > self._done:
      self._done = done
      processes.moved()
    text = " ".join(_said(key, value) for key, value in facts.items())
    if self._live is not None and self._task is not None:
      self._live.update(self._task, completed=done, facts=text)
      return
    now = time.monotonic()
    spent = now - self._started
    if now - self._said > PLAIN_EVERY_SECONDS or (done >= self._total and spent > FROM_SECONDS):
      self._said = now
      left = spent / max(done - self._first, 1) * (self._total - done)
      logging.info("%s %d/%d  %s  %.0f s left", self._name, done, self._total, text, left)


def _said(key: str, value: float | str) -> str:
  if isinstance(value, str):
    return value
  return f"{key.replace('tokens_per_second', 'tok/s')} {value:,.4g}"


@contextlib.contextmanager
def bar(name: str, *, total: int, done: int = 0) -> Iterator[Bar]:
  console = rich_console.Console(stderr=True)
  # The terminal is the first process's.
  if not console.is_terminal or not processes.is_first():
    yield Bar(name, total, done, None)
    return
  columns = (
    rich_progress.TextColumn("{task.description:>16}"),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn("{task.fields[facts]}"),
  )
  live = rich_progress.Progress(*columns, console=console)
  # By its own clock: the first update may come minutes later, after a program was compiled.
  shown = threading.Timer(FROM_SECONDS, live.start)
  shown.daemon = True
  shown.start()
  try:
    yield Bar(name, total, done, live)
  finally:
    shown.cancel()
    shown.join()
    live.stop()
