"""How far a stage is that is being made, by what lies in its working folder; and what is removed of other work."""

import collections
import contextlib
import dataclasses
import datetime
import fnmatch
import itertools
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from absl import logging

from idistill_jax import machine
from idistill_jax.workdir import seconds
from idistill_jax.workdir import store as store_lib

# One JSON object a training step.
METRICS = "metrics.jsonl"
# One a process, and for each helper: see train/windows.py.
WINDOWS = "windows-*.jsonl"
# Of a helper's line there: what device_seconds is of an attempt.
HELPED = "device_seconds"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Begun:
  """written: what lies in its folder, and when that was last written, in seconds since the epoch.

  metrics: lines of METRICS so far.  windows: lines of each file of WINDOWS.  took: what its attempts, as last
  written, and its helpers took.  is_held: whether a run is at it.
  """

  written: Mapping[str, float]
  took: seconds.Took
  is_held: bool
  metrics: list[str]
  windows: Mapping[str, list[str]]

  @property
  def last_written(self) -> float | None:
    """When it last wrote any of its work, in seconds since the epoch; that it counts its seconds says only that it
    lives."""
    return max((when for file, when in self.written.items() if file != seconds.FILE), default=None)

  @property
  def last_step(self) -> dict[str, Any] | None:
    """The last line of its metrics; None where there is none yet, or a kill tore it."""
    try:
      return json.loads(self.metrics[-1])
    except (IndexError, json.JSONDecodeError):
      return None


def of_helper(file: str) -> str:
  """What a file is called that a helper keeps beside that of the run: with its machine and process in the name."""
  stem, dot, kind = file.partition(".")
  return f"{stem}-{machine.own_name()}{dot}{kind}"


def helped(store: store_lib.Store, name: str) -> Mapping[str, float]:
  """Kind of device -> seconds at the pieces that helpers made, times how many devices they had, of a working folder."""
  return _helped(_windows(store, name, store.written(name)))


def _helped(windows: Mapping[str, list[str]]) -> Mapping[str, float]:
  spent = collections.Counter[str]()
  for line in itertools.chain.from_iterable(windows.values()):
    with contextlib.suppress(json.JSONDecodeError):  # a kill tore it
      spent.update(json.loads(line).get(HELPED, {}))
  return spent


def _windows(store: store_lib.Store, name: str, written: Iterable[str]) -> Mapping[str, list[str]]:
  return {file: _text(store, f"{name}/{file}").splitlines() for file in sorted(fnmatch.filter(written, WINDOWS))}


def _text(store: store_lib.Store, file: str) -> str:
  return (store.read(file) or b"").decode()


def look(store: store_lib.Store, stage: str, over: Collection[str]) -> Begun | None:
  """The work that was last written to, None where there is none; `over`: in place of a key, what is no work."""
  found = {name: store.written(name) for name in store.folders(f".{stage}-")
           if name.removeprefix(f".{stage}-") not in over}  # fmt: skip
  if not found:
    return None
  return _look(store, stage, max(found, key=lambda name: max(found[name].values(), default=0.0)))


def _look(store: store_lib.Store, stage: str, name: str) -> Begun:
  written = store.written(name)
  windows, took = _windows(store, name, written), seconds.read(_text(store, f"{name}/{seconds.FILE}"))
  return Begun(written=written, took=took.and_helpers(_helped(windows)), is_held=store.is_held(stage) is not False,
               metrics=_text(store, f"{name}/{METRICS}").splitlines(), windows=windows)


def sweep(store: store_lib.Store, stage: str, mine: str, over: Collection[str]) -> None:
  """Removes the stage's working folders but `mine`; of what is work (`over`: as in `look`) it says how far it was.

  Where `mine` is none itself, but a finished folder that is taken over, work of the same config goes, too.
  """
  instead = "in place of which a finished folder is taken over" if mine.removeprefix(f".{stage}-") in over else (
    "begun with another config or of other inputs; this run begins at the stage's start")
  here = {path.name for path in store.local.glob(f".{stage}-*")}
  for name in sorted({*store.folders(f".{stage}-"), *here} - {mine}):
    if name.removeprefix(f".{stage}-") not in over:
      begun = _look(store, stage, name)
      step = "" if begun.last_step is None else f" as far as step {begun.last_step['step']},"
      logging.warning("%s: %s is removed, work of %s,%s %s", stage, name,
                      datetime.timedelta(seconds=round(begun.took.seconds)), step, instead)
    store.remove(name)
