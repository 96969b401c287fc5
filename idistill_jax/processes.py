"""Several processes as one job: they start together, agree, wait for one another, and end together with a reason.

Alone, as ever but on pods and clusters, every function here is a plain call.  What processes tell each other goes
through the store of `jax.distributed`, which process 0 keeps: work without an accelerator can wait for work with one,
and what ends one process ends all, each saying why, instead of leaving the others in a collective for ever.
"""

import contextlib
import dataclasses
import faulthandler
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import logging

# What a shell reports for a process that SIGTERM ended: launchers run the same command again.
TERMINATED = 128 + signal.SIGTERM
# The coordinator of `Launch` where the cluster itself tells who is who.
AUTO = "auto"
_POLL_SECONDS = 1.0
# So long the others have to read why the job ends, before process 0 takes the store with it.
_LINGER_SECONDS = 5.0


class ProcessError(RuntimeError):
  """Another process of the job is gone or does not answer."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
  """How a process finds the others.

  coordinator: host:port of process 0, or AUTO on TPU pods, Slurm, Open MPI and Kubernetes, which tell all of it.
  count, index: how many processes there are, and which one this is.
  patience: seconds without a sign of life, or at one step, after which another process counts as lost.
  """

  coordinator: str
  count: int | None
  index: int | None
  patience: float


def index() -> int:
  """Which process this is; 0 where it is alone, also for as long as the others wait for it."""
  return 0 if _job is None else _job.index


def count() -> int:
  """How many processes work together."""
  return 1 if _job is None else _job.count


def is_first() -> bool:
  return index() == 0


def once(work: Callable[[], Any]) -> Any:
  """What `work` gives in the first process, which does it alone; the others wait, however long it takes.

  The result travels as JSON; what JSON cannot say arrives as a string.
  """
  return work() if _job is None else _job.once(work)


def meet(where: str) -> None:
  """Waits until every process is there; raises ProcessError naming those that stay away."""
  if _job is not None:
    _job.meet(where)


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
  """Around a wait that other processes must end; one that outlasts the patience ends the job."""
  if _job is None or _job.count == 1:  # alone, it waits for nobody
    yield
    return
  _job.awaited = what, time.monotonic()
  try:
    yield
  finally:
    _job.awaited = None


@contextlib.contextmanager
def joined(launch: Launch | None) -> Iterator[None]:
  """Within, this process is one of a job; None leaves it alone.  An exception, or SIGTERM, ends all processes."""
  global _job
  if launch is None:
    yield
    return
  job = _connect(launch)
  before = signal.signal(signal.SIGTERM, _terminated)
  _job = job
  try:
    yield
    job.meet("the end")
  except BaseException as e:
    job.fail(e)
  finally:
    _job = None
    signal.signal(signal.SIGTERM, before)
  job.close()


def _terminated(*_: object) -> NoReturn:
  raise SystemExit(TERMINATED)


def _connect(launch: Launch) -> "_Job":
  import jax
  from jax._src import distributed  # the store has no public name; Orbax reaches it here too

  found = launch.coordinator == AUTO
  if not found and None in (launch.count, launch.index):
    raise ValueError(f"--coordinator={launch.coordinator} needs --processes and --process beside it; "
                     f"--coordinator={AUTO} finds all three on TPU pods, Slurm, Open MPI and Kubernetes")
  # SIGTERM is ours: a stage that does not train ends at once, a training agrees on a step first.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    coordinator_address=None if found else launch.coordinator, num_processes=launch.count, process_id=launch.index,
    cluster_detection_method=None if found else "deactivate", heartbeat_timeout_seconds=round(launch.patience),
  )
  state = distributed.global_state
  return _Job(state.client, state.process_id, state.num_processes, launch.patience)


class _Job:
  """This process among the others, and the thread that watches them."""

  def __init__(self, store: Any, index: int, count: int, patience: float):
    self._store, self.index, self.count, self._all = store, index, count, count
    self._patience = patience
    # Every process counts the same agreements and meetings in the same order.
    self._numbers = itertools.count()
    self.awaited: tuple[str, float] | None = None
    self._leaving = threading.Lock()
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()

  def once(self, work: Callable[[], Any]) -> Any:
    if self.count == 1:
      return work()
    key = f"once/{next(self._numbers)}"
    if self.index == 0:
      with self._alone():
        said = json.dumps(work(), default=str)
      self._store.key_value_set(key, said)
      return json.loads(said)
    while (heard := self._read(key)) is None:
      pass
    return json.loads(heard)

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    """Whoever works while the others wait asks nothing of them."""
    self.count = 1
    try:
      yield
    finally:
      self.count = self._all

  def meet(self, where: str) -> None:
    if self.count == 1:
      return
    try:
      self._store.wait_at_barrier(f"{next(self._numbers)} {where}", round(1000 * self._patience))
    except RuntimeError as e:
      said = " ".join(str(e).partition("RPC:")[0].split())
      raise ProcessError(f"{where}: not all {self.count} processes came within {self._patience:g} s ({said})") from e

  def fail(self, error: BaseException) -> NoReturn:
    """Ends all processes because of this one's error."""
    match error:
      case SystemExit(code=int(code)):
        reason = "it was asked to end (SIGTERM)" if code == TERMINATED else f"it left with {code}"
      case SystemExit() | ProcessError():
        code, reason = 1, str(error)
        print(reason, file=sys.stderr)
      case _:
        code, reason = 1, "".join(traceback.format_exception_only(error)).strip()
        traceback.print_exception(error)
    self._end(code, reason)

  def _end(self, code: int, reason: str, awaited: Sequence[int] = ()) -> NoReturn:
    """awaited: processes that the others waited for in vain."""
    end = {"process": self.index, "reason": reason, "code": code, "awaited": awaited}
    with contextlib.suppress(RuntimeError):  # another was faster
      self._store.key_value_set("ended", json.dumps(end))
    self._leave(code)

  def _leave(self, code: int) -> NoReturn:
    """Without the farewell of `jax.distributed`, which would wait for those that cannot come."""
    self._leaving.acquire()  # for good: of work and watcher, whoever comes second waits for the end
    with contextlib.suppress(RuntimeError):
      self._store.key_value_set(f"heard/{self.index}", "")
      until = time.monotonic() + _LINGER_SECONDS
      while self.index == 0 and time.monotonic() < until and len(self._said("heard/")) < self._all:
        time.sleep(0.05)
    logging.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

  def close(self) -> None:
    import jax

    if self.index == 0:
      self._store.key_value_set("ended", "null")
    self._watcher.join()
    jax.distributed.shutdown()

  def _watch(self) -> None:
    """Until the job ends: leaves when another process has, or when one keeps this one waiting for too long."""
    while (said := self._read("ended")) is None:
      if (awaited := self.awaited) is not None and time.monotonic() - awaited[1] > self._patience:
        self._give_up(awaited[0])
    if (end := json.loads(said)) is not None and end["process"] != self.index:
      print(f"process {self.index} ends because process {end['process']} did: {end['reason']}", file=sys.stderr)
      if self.index in end["awaited"]:
        faulthandler.dump_traceback(sys.stderr)  # where it stands
      self._leave(end["code"])

  def _give_up(self, what: str) -> None:
    self._store.key_value_set(f"waiting/{self.index}", "", allow_overwrite=True)
    time.sleep(2 * _POLL_SECONDS)
    busy = sorted(set(range(self._all)) - {int(key.rpartition("/")[2]) for key in self._said("waiting/")})
    reason = f"{what} did not end within {self._patience:g} s; processes that are not waiting for it: {busy}"
    print(f"process {self.index}: {reason}", file=sys.stderr)
    self._end(1, reason, busy)

  def _said(self, folder: str) -> list[str]:
    return [key for key, _ in self._store.key_value_dir_get(folder)]

  def _read(self, key: str) -> str | None:
    """What the store holds, or None when nothing came for a moment."""
    try:
      return self._store.blocking_key_value_get(key, round(1000 * _POLL_SECONDS))
    except RuntimeError as e:
      if "DEADLINE_EXCEEDED" not in str(e):
        # Process 0 is gone; jax.distributed says so and ends this one once it has missed enough heartbeats.
        time.sleep(_POLL_SECONDS)
      return None


_job: _Job | None = None
