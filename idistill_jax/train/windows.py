"""What each process of a job did: a JSON line every so many steps, of its own in a file of its own.

Where one process is slower than the others, or stopped before them, its file says so; metrics.jsonl is the job's.
"""

import json
import pathlib
import socket
import time
from collections.abc import Mapping

from idistill_jax import files

STEPS = 20


def path(folder: pathlib.Path, process: int) -> pathlib.Path:
  return folder / f"windows-{process:05d}.jsonl"


def drop_after(step: int, log: pathlib.Path) -> None:
  """Leaves the lines of a log up to a step: those after it, and one that a kill tore, are of steps taken again."""
  lines = log.read_text().splitlines() if log.exists() else []
  files.write_atomically(log, "".join(line + "\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except json.JSONDecodeError:
    return float("inf")


class Windows:
  """`add` takes a step's row of metrics.jsonl; after STEPS of them, and after the last of `total`, a line is written.

  seconds: from the end of the window before.  loss, tokens_per_second: means over the window.
  """

  def __init__(self, folder: pathlib.Path, process: int, start: int, total: int):
    self.path, self._process, self._total = path(folder, process), process, total
    drop_after(start, self.path)
    self._rows: list[Mapping[str, float]] = []
    self._began = time.perf_counter()

  def add(self, row: Mapping[str, float]) -> None:
    self._rows.append(row)
    if len(self._rows) < STEPS and row["step"] < self._total:
      return
    now, count = time.perf_counter(), len(self._rows)
    line = {
      "process": self._process, "host": socket.gethostname(), "step": row["step"], "steps": count,
      "seconds": round(now - self._began, 3),
      **{name: sum(one[name] for one in self._rows) / count for name in ("loss", "tokens_per_second")},
    }
    with self.path.open("a") as out:
      out.write(json.dumps(line) + "\n")
    self._rows, self._began = [], now
