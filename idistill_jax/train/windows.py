"""What each process of a job did: a JSON line every so many steps, or each piece, of its own in a file of its own.

Where one process is slower than the others, or stopped before them, its file says so; metrics.jsonl is the job's.  Of
a stage that does both, the lines of steps stand before those of pieces.
"""

import json
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

from idistill_jax import processes
from idistill_jax.workdir import artifacts, begun, files

STEPS = 20
# What the row of the first step since a start has more than others, and so the window that holds it.
OF_START = ("first_step_seconds", "trace_seconds", "compile_seconds", "from_cache")
# What a window has the mean of: of the job the first two, of this process the others.
MEANS = ("loss", "tokens_per_second", "input_wait", "device_wait")


def path(folder: pathlib.Path, process: int) -> pathlib.Path:
  return folder / f"windows-{process:05d}.jsonl"


def drop_after(step: int, log: pathlib.Path) -> None:
  """Leaves the lines of a log up to a step: those after it, and one that a kill tore, are of steps taken again."""
  lines = log.read_text().splitlines() if log.exists() else []
  files.write_atomically(log, "".join(line + "\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
  try:
    said = json.loads(line)
  except json.JSONDecodeError:
    return float("inf")
  # A piece is made after the steps, and not again.
  return said["step"] if "piece" not in said else 0


def _add(log: pathlib.Path, process: int, said: Mapping[str, Any]) -> None:
  with log.open("a") as out:
    out.write(json.dumps({"process": process, "host": socket.gethostname(), **said}) + "\n")


def add_piece(job: artifacts.Job, work: str, place: tuple[int, int], *, texts: int, tokens: int,
              room: int, seconds: float) -> None:
  """A line for a piece that this process has finished; it outlives this machine as the piece does.

  A helper's says what its devices took.  place: which piece, from 1, and of how many.  room: places for tokens in the
  rows that they were in.  seconds: from when it was claimed, or the one before it was finished.
  """
  log = path(job.out, processes.index())
  _add(log, processes.index(), {
    "work": work, "piece": place[0], "pieces": place[1], "texts": texts, "seconds": round(seconds, 3),
    "texts_per_second": round(texts / seconds, 1), "tokens_per_second": round(tokens / seconds),
    "fill": round(tokens / room, 4), **(_helped(seconds) if job.helps else {}),
  })
  job.keep(log.name)


def _helped(seconds: float) -> dict[str, dict[str, float]]:
  """What a run's devices cost is counted with its attempts."""
  on = processes.hardware()
  return {begun.HELPED: {on["kind"]: round(on["devices"] * seconds, 3)}}


class Windows:
  """`add` takes a step's row of metrics.jsonl; after STEPS of them, and after the last of `total`, a line is written.

  `flush` writes one of fewer: before a checkpoint, as whoever goes on from there begins another.  seconds: from the end
  of the window before.  MEANS: over the window; input_wait and device_wait are seconds a step that this process waited
  for its batch, and for the devices and with them for the other processes.  The one that all wait for is the one whose
  device_wait is least.
  """

  def __init__(self, folder: pathlib.Path, process: int, start: int, total: int):
    self.path, self._process, self._total = path(folder, process), process, total
    # Those that an earlier attempt had more of, with more processes, write no more.
    for log in folder.glob("windows-?????.jsonl") if process == 0 else ():
      if log >= path(folder, processes.count()):
        drop_after(start, log)
    drop_after(start, self.path)
    self._rows: list[Mapping[str, float]] = []
    self._began = time.perf_counter()

  def add(self, row: Mapping[str, float]) -> None:
    self._rows.append(row)
    if len(self._rows) >= STEPS or row["step"] >= self._total:
      self.flush()

  def flush(self) -> None:
    """Writes the line of the steps since the last one, if there are any."""
    if not self._rows:
      return
    now, count = time.perf_counter(), len(self._rows)
    _add(self.path, self._process, {
      "step": self._rows[-1]["step"], "steps": count, "seconds": round(now - self._began, 3),
      **{name: sum(one[name] for one in self._rows) / count for name in MEANS},
      **{name: one[name] for one in self._rows for name in OF_START if name in one},
    })
    self._rows, self._began = [], now
