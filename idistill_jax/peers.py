"""This process among the others of a job: what they tell each other, and the thread that watches them.

What is said goes through the store of `jax.distributed`, which process 0 keeps.
"""

import concurrent.futures
import contextlib
import faulthandler
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from absl import logging

T = TypeVar("T")
# What a shell reports for a process that SIGTERM ended: launchers run the same command again.
TERMINATED = 128 + signal.SIGTERM
# What a job ends with that lost one of its processes: no error of its own, so launchers run the same command again.
LOST = os.EX_TEMPFAIL
_POLL_SECONDS = 1.0
# So long the others have to read why the job ends, before process 0 takes the store with it.
_LINGER_SECONDS = 5.0
# So long process 0 has to send what it made, when another ends the job.
_GRACE_SECONDS = 30.0
# So long process 0 has to answer: stopped, it would hold up whoever asks it for ever.
_ANSWER_SECONDS = 5.0
# After so long a wait says what it is for, and again after twice, four times as long.
_TELL_SECONDS = 60.0
# After so long without a word of its watcher, which has one every second, a process is gone, or stopped as a whole.
_SILENT_SECONDS = 5.0
# What a computation is to blame for, or the device it runs on, whoever else is silent.
_OWN = re.compile(r"^(RESOURCE_EXHAUSTED|INVALID_ARGUMENT|UNIMPLEMENTED)\b")
# What tells of the way to another process, in the words of Gloo (CPU), NCCL (GPU), and gRPC's states.
_OF_THE_WAY = re.compile(r"\bGloo\b|\bNCCL\b|^(UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b")
# A process that uses more of a core than this is at work, though it may say nothing of it, as ScaNN does for hours.
_BUSY_SHARE = 0.1


class ProcessError(RuntimeError):
  """Another process of the job is gone or does not answer.  awaited: which, where that is known."""

  exit_code = LOST

  def __init__(self, reason: str, awaited: Sequence[int] = ()):
    super().__init__(reason)
    self.awaited = awaited


class FailedElsewhereError(ProcessError):
  """Another process of the job met an error of its own: to run it again would meet it again."""

  exit_code = 1


def hearing(wait: Callable[..., T], *args: Any, at_most: float | None = None) -> T:
  """Waits in another thread: a signal that comes meanwhile is heard in this one, where Python runs its handlers.

  Raises TimeoutError after `at_most` seconds; the other thread is left to its wait.
  """
  done = concurrent.futures.Future[T]()

  def run() -> None:
    try:
      done.set_result(wait(*args))
    except BaseException as e:
      done.set_exception(e)

  threading.Thread(target=run, daemon=True).start()
  return done.result(at_most)


def _answered(ask: Callable[..., T], *args: Any) -> T:
  """What the store says; raises RuntimeError where process 0, which keeps it, is gone or stopped."""
  with contextlib.suppress(TimeoutError):
    return hearing(ask, *args, at_most=_ANSWER_SECONDS)
  raise RuntimeError(f"process 0 does not answer within {_ANSWER_SECONDS:g} s")


class Peers:
  """This process among the others, and the thread that watches them."""

  def __init__(self, store: Any, index: int, count: int, patience: float):
    self._store, self.index, self.count, self._all = store, index, count, count
    self.patience = patience
    self.moves = 0
    # Every process counts the same agreements and meetings in the same order.
    self._numbers = itertools.count()
    self.awaited: tuple[str, float] | None = None
    # When the watcher last looked at this process's work, and how much it had done.
    self._told = time.monotonic(), time.process_time(), 0
    self._leaving = threading.Lock()
    self._beat()
    self._watcher = threading.Thread(target=self._watch, daemon=True)
    self._watcher.start()

  def once(self, work: Callable[[], Any], what: str) -> Any:
    if self.count == 1:
      return work()
    key = f"once/{next(self._numbers)}"
    if self.index == 0:
      with self._alone():
        said = json.dumps(work(), default=str)
      self._store.key_value_set(key, said)
      return json.loads(said)
    return json.loads(self._wait_for(key, what))

  def _wait_for(self, key: str, what: str) -> str:
    """What process 0 says at the end of work that it does alone."""
    began = moved = time.monotonic()
    moves, tell_after = None, _TELL_SECONDS
    while (heard := self._read(key)) is None:
      now = time.monotonic()
      if (seen := self._said("moves")) != moves:
        moves, moved = seen, now
      if now - moved > self.patience:
        raise ProcessError(f"{what}: process 0 has shown no sign of work for {now - moved:.0f} s", [0])
      if now - began > tell_after:
        logging.warning("process %d has waited %.0f s for process 0 to finish %s; it last showed work %.0f s ago",
                        self.index, now - began, what, now - moved)
        tell_after *= 2
    return heard

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
      hearing(self._store.wait_at_barrier, f"{next(self._numbers)} {where}", round(1000 * self.patience))
    except RuntimeError as e:
      said = " ".join(str(e).partition("RPC:")[0].split())
      raise ProcessError(f"{where}: not all {self.count} processes came within {self.patience:g} s ({said})") from e

  def tell_all(self, what: str, said: str) -> dict[int, str]:
    """Process -> what it said, once all have."""
    if self.count == 1:
      return {self.index: said}
    folder = f"told/{next(self._numbers)}"
    self._store.key_value_set(f"{folder}/{self.index}", said)
    self.meet(what)
    return self._said(folder)

  def fail(self, error: BaseException) -> NoReturn:
    """Ends all processes because of this one's error."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is on its way
    awaited: Sequence[int] = ()
    match self._of_another(error):
      case SystemExit(code=int(code)):
        reason = "it was asked to end (SIGTERM)" if code == TERMINATED else f"it left with {code}"
      case ProcessError() as lost:
        code, reason, awaited = lost.exit_code, str(lost), lost.awaited
        print(reason, file=sys.stderr)
      case SystemExit():
        code, reason = 1, str(error)
        print(reason, file=sys.stderr)
      case _:
        code, reason = 1, "".join(traceback.format_exception_only(error)).strip()
        traceback.print_exception(error)
    self._end(code, reason, awaited)

  def _of_another(self, error: BaseException) -> BaseException:
    """The error, or a ProcessError in its place where a computation failed because another process is gone.

    JAX has no class of errors for that: Gloo's "Connection closed by peer" comes as UNKNOWN or INTERNAL, as others do.
    """
    import jax

    if not isinstance(error, jax.errors.JaxRuntimeError) or _OWN.search(str(error)):
      return error
    silent = self._silent()
    if not silent and not _OF_THE_WAY.search(str(error)):
      return error
    traceback.print_exception(error)
    return ProcessError(f"{' '.join(str(error).split())}; processes that are silent: {silent}", silent)

  def _silent(self) -> list[int]:
    try:
      before = _answered(self._said, "beats")
      time.sleep(_SILENT_SECONDS)
      now = _answered(self._said, "beats")
    except RuntimeError:  # the store does not answer, nor does process 0
      return [0] if self.index else []
    return [one for one in range(self._all) if one != self.index and now.get(one) == before.get(one)]

  def _end(self, code: int, reason: str, awaited: Sequence[int] = ()) -> NoReturn:
    """awaited: processes that the others waited for in vain."""
    end = {"process": self.index, "reason": reason, "code": code, "awaited": awaited}
    try:
      _answered(self._store.key_value_set, "ended", json.dumps(end))
    except RuntimeError:  # another was faster, and has the say; or process 0 is gone
      code = (json.loads(self._read("ended") or "null") or {}).get("code", code)
    self._leave(code)

  def _leave(self, code: int) -> NoReturn:
    """Without the farewell of `jax.distributed`, which would wait for those that cannot come."""
    self._leaving.acquire()  # for good: of work and watcher, whoever comes second waits for the end
    with contextlib.suppress(RuntimeError):
      _answered(self._store.key_value_set, f"heard/{self.index}", "")
      until = time.monotonic() + _LINGER_SECONDS
      while self.index == 0 and time.monotonic() < until and len(self._said("heard")) < self._all:
        time.sleep(0.05)
      if self.index == 0:
        # Whoever has heard still has to go, before it sees the store gone and aborts.
        time.sleep(_POLL_SECONDS)
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
      self._beat()
      if self.index == 0:
        self._tell_moves()
      if (awaited := self.awaited) is not None and time.monotonic() - awaited[1] > self.patience:
        self._give_up(awaited[0])
    if (end := json.loads(said)) is not None and end["process"] != self.index:
      print(f"process {self.index} ends because process {end['process']} did: {end['reason']}", file=sys.stderr)
      if self.index in end["awaited"]:
        faulthandler.dump_traceback(sys.stderr)  # where it stands
      else:
        self._ask_to_end()
      self._leave(end["code"])

  def _beat(self) -> None:
    """Says that this process lives."""
    with contextlib.suppress(RuntimeError):  # process 0 is gone, see `_read`
      _answered(self._store.key_value_set, f"beats/{self.index}", str(time.monotonic()), True)

  def _ask_to_end(self) -> None:
    """Gives the main thread time to come to `fail` by itself, so that it can keep what it has.

    One that waits for other processes does so in C++, and for ever.
    """
    if not self._leaving.locked():
      os.kill(os.getpid(), signal.SIGTERM)  # which Python hands to its main thread
    asked = time.monotonic()
    while not self._leaving.locked() and time.monotonic() - asked < _GRACE_SECONDS:
      if (self.index > 0 or self.awaited is not None) and time.monotonic() - asked > _LINGER_SECONDS / 2:
        break
      time.sleep(0.05)

  def _tell_moves(self) -> None:
    """What `_wait_for` hears: another number whenever this process has worked since the last one."""
    wall, cpu, moves = time.monotonic(), time.process_time(), self.moves
    before = self._told
    if moves > before[2] or cpu - before[1] > _BUSY_SHARE * (wall - before[0]):
      self._store.key_value_set("moves/0", str(wall), allow_overwrite=True)
    self._told = wall, cpu, moves

  def _give_up(self, what: str) -> None:
    reason = f"{what} did not end within {self.patience:g} s"
    # Before process 0 is asked, which may be the one that is lost.
    print(f"process {self.index}: {reason}", file=sys.stderr, flush=True)
    busy = [0]
    with contextlib.suppress(RuntimeError):  # else it does not answer
      _answered(self._store.key_value_set, f"waiting/{self.index}", "", True)
      time.sleep(2 * _POLL_SECONDS)
      busy = sorted(set(range(self._all)) - set(_answered(self._said, "waiting")))
    reason += f"; processes that are not waiting for it: {busy}"
    print(f"process {self.index}: {reason}", file=sys.stderr)
    self._end(LOST, reason, busy)

  def _said(self, what: str) -> dict[int, str]:
    """Process -> what it said."""
    return {int(key.rpartition("/")[2]): said for key, said in self._store.key_value_dir_get(f"{what}/")}

  def _read(self, key: str) -> str | None:
    """What the store holds, or None when nothing came for a moment."""
    try:
      return self._store.blocking_key_value_get(key, round(1000 * _POLL_SECONDS))
    except RuntimeError as e:
      if "DEADLINE_EXCEEDED" not in str(e):
        # Process 0 is gone; jax.distributed says so and ends this one once it has missed enough heartbeats.
        time.sleep(_POLL_SECONDS)
      return None
