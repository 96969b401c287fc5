"""Several processes as one job: they start together, agree, wait for one another, and end together with a reason.

Alone, as ever but on pods and clusters, every function here is a plain call.  What processes tell each other goes
through the store of `jax.distributed`, which process 0 keeps: work without an accelerator can wait for work with one,
and what ends one process ends all, each saying why, instead of leaving the others in a collective for ever.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import logging

from idistill_jax import peers

# The coordinator of `Launch` where the cluster itself tells who is who.
AUTO = "auto"
PATIENCE_SECONDS = 600.0
TERMINATED, ProcessError = peers.TERMINATED, peers.ProcessError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
  """How a process finds the others.

  coordinator: host:port of process 0, or AUTO on TPU pods and GKE, Slurm and Open MPI, which tell all of it.
  count, index: how many processes there are, and which one this is.
  patience: seconds until all are there, and without a sign of life, of work, or at one step, after which another
  process counts as lost.
  """

  coordinator: str
  count: int | None
  index: int | None
  patience: float

  def __post_init__(self) -> None:
    """Raises ValueError for what JAX would take no job of, in words of its own or none."""
    if self.coordinator == AUTO:
      return
    if self.count is None or self.index is None:
      raise ValueError(f"--coordinator={self.coordinator} needs --processes and --process beside it; "
                       f"--coordinator={AUTO} finds all three on TPU pods and GKE, Slurm and Open MPI")
    if not 0 <= self.index < self.count:
      raise ValueError(f"--process={self.index} is none of --processes={self.count}, which are counted from 0")
    host, _, port = self.coordinator.rpartition(":")
    if not (host and port.isdecimal()):
      raise ValueError(f"--coordinator={self.coordinator} is no host:port, as 127.0.0.1:8476")


def index() -> int:
  """Which process this is; 0 where it is alone, also for as long as the others wait for it."""
  return 0 if _job is None else _job.index


def count() -> int:
  """How many processes work together."""
  return 1 if _job is None else _job.count


def hardware() -> dict[str, Any]:
  """What all processes compute on; each calls it, as whoever first looks at the devices waits for the others."""
  import jax

  return {"processes": count(), "devices": jax.device_count(), "kind": jax.devices()[0].device_kind}


def is_first() -> bool:
  return index() == 0


def patience() -> float:
  """Seconds after which a process that does not get on counts as lost: one of the job, or a helper."""
  return _patience


def moved() -> None:
  """Tells those who wait for this process that its work goes on."""
  if _job is not None:
    _job.moves += 1


def once(work: Callable[[], Any], what: str = "its part") -> Any:
  """What `work` gives in the first process, which does it alone; the others wait, however long it takes.

  They raise ProcessError, naming `what`, when it neither computes nor says that it has `moved` for as long as they have
  patience.  The result travels as JSON; what JSON cannot say arrives as a string.
  """
  return work() if _job is None else _job.once(work, what)


def meet(where: str) -> None:
  """Waits until every process is there; raises ProcessError naming those that stay away."""
  if _job is not None:
    _job.meet(where)


@contextlib.contextmanager
def agreed(what: str) -> Iterator[None]:
  """Around work of all processes: what goes wrong in one goes wrong in all, in the others as FailedElsewhereError."""
  try:
    yield
  except Exception as e:
    if _job is not None:
      _job.tell_all(what, f"{type(e).__name__}: {e}")
    raise
  if _job is not None:
    wrong = {process: said for process, said in _job.tell_all(what, "").items() if said}
    if wrong:
      where = ", ".join(f"process {i} ({said})" for i, said in wrong.items())
      raise peers.FailedElsewhereError(f"{what} failed in {where}")


def told(what: str, said: str) -> dict[int, str]:
  """Process -> what it said of `what`, once all have; each calls it."""
  return {0: said} if _job is None else _job.tell_all(what, said)


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
def joined(launch: Launch | None, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
  """Within, this process is one of a job; None leaves it alone, with that patience.

  An exception, or SIGTERM, ends all processes.  SIGTERM is raised as SystemExit, so that what is half done can be
  kept; ProcessError ends with its code.  Ctrl-C does as SIGTERM does, and then ends by its own signal, so that a
  shell's loop ends too; pressed again, it ends this process as it is.
  """
  global _job, _patience
  job = None if launch is None else _connect(launch)
  before, pressed = signal.signal(signal.SIGTERM, _terminated), _Interrupt()
  _job, _patience = job, patience if launch is None else launch.patience
  try:
    yield
    if job is not None:
      job.meet("the end")
  except BaseException as e:
    if job is not None:
      job.fail(e)
    if isinstance(e, ProcessError):
      print(e, file=sys.stderr)
      raise SystemExit(e.exit_code) from e
    if pressed.once and isinstance(e, SystemExit) and e.code == TERMINATED:
      print("ended by Ctrl-C; the same command goes on from what is kept", file=sys.stderr)
      sys.excepthook = lambda *_: None  # of nothing but what is raised here
      raise KeyboardInterrupt from None
    raise
  finally:
    _job, _patience = None, PATIENCE_SECONDS
    signal.signal(signal.SIGTERM, before)
    pressed.forget()
  if job is not None:
    job.close()


class _Interrupt:
  """Hears Ctrl-C in place of whoever did, once; a job in the background, which a shell starts deaf to it, stays so."""

  def __init__(self) -> None:
    self.once, self._before = False, signal.getsignal(signal.SIGINT)
    if self._before is signal.default_int_handler:
      signal.signal(signal.SIGINT, self._hear)

  def _hear(self, *_: object) -> None:
    self.once = True
    self.forget()
    signal.raise_signal(signal.SIGTERM)

  def forget(self) -> None:
    signal.signal(signal.SIGINT, self._before)


def _terminated(*_: object) -> NoReturn:
  # Whoever is asked twice is leaving already.
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  raise SystemExit(TERMINATED)


def _connect(launch: Launch) -> peers.Peers:
  import jax
  from jax._src import distributed  # the store has no public name; Orbax reaches it here too

  found = launch.coordinator == AUTO
  if launch.index == 0 and not found:
    _check_port(launch.coordinator)
  # SIGTERM is ours: a stage that does not train ends at once, a training agrees on a step first.
  jax.config.update("jax_enable_preemption_service", False)
  where = "where the cluster says" if found else f"at {launch.coordinator}"
  logging.info("process %s waits %s for %s processes to join, at most %g s (--patience)",
               *("of this job" if found else launch.index, where, "all" if found else launch.count, launch.patience))
  state = distributed.global_state
  try:
    # Its own timeout comes second: it aborts the process.
    peers.hearing(functools.partial(
      jax.distributed.initialize, coordinator_address=None if found else launch.coordinator,
      num_processes=launch.count, process_id=launch.index, cluster_detection_method=None if found else "deactivate",
      heartbeat_timeout_seconds=round(launch.patience), initialization_timeout=round(2 * launch.patience) + 60,
    ), at_most=launch.patience)
  except ValueError as e:  # that no coordinator was given
    if not found:
      raise
    raise ValueError(f"--coordinator={AUTO}: no TPU pod, GKE, Slurm or Open MPI is found here that tells where process "
                     "0 is; name its host:port, and give --processes and --process") from e
  except TimeoutError:
    print(f"after {launch.patience:g} s (--patience) {_missing(state)}", file=sys.stderr, flush=True)
    # Whom the cluster itself sends comes to no wrong place: who is missing may be there next time.  Not by an
    # exception: what still waits beneath would abort the process on its way out.
    os._exit(peers.LOST if found else 1)
  return peers.Peers(state.client, state.process_id, state.num_processes, launch.patience)


def _check_port(coordinator: str) -> None:
  """Raises OSError where this process cannot listen at the port of host:port.

  Why not leave it to JAX: its server may end the process with a segmentation fault there.
  """
  port, both = int(coordinator.rpartition(":")[2]), socket.has_dualstack_ipv6()
  try:
    socket.create_server(("::" if both else "", port), family=socket.AF_INET6 if both else socket.AF_INET,
                         dualstack_ipv6=both).close()
  except (OSError, OverflowError) as e:
    raise OSError(f"--coordinator={coordinator}: process 0 cannot listen at that port ({e}), as something else does, "
                  "or it needs rights; take another") from e


def _missing(state: Any) -> str:
  """Why a job has not come together, as far as this process can tell."""
  if state.coordinator_address is None:
    return "the cluster has not told where process 0 is"
  if state.process_id == 0:
    return (f"not all {state.num_processes} processes have joined process 0 at {state.coordinator_address}: are all "
            "started, each with the same --coordinator and --processes and a --process of its own?")
  host, _, port = state.coordinator_address.rpartition(":")
  try:
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
  except (OSError, ValueError) as e:
    return (f"nobody answers at {state.coordinator_address} ({e}): does --coordinator name the host of process 0, and "
            "a port that others may reach, and is that process started?")
  return f"not all processes have joined process 0 at {state.coordinator_address}, which answers: are all started?"


_job: peers.Peers | None = None
_patience = PATIENCE_SECONDS
