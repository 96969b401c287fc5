"""Several real processes on loopback as one job, bounded in time and cleaned up whatever happens.

Imports take a process longer than most of what it is started for.  So they are forked, by a process that has them
behind it, computes nothing and has no device: Python's forkserver.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import pkgutil
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from unittest import mock

from benchmarks import ports
from idistill_jax import stages

TESTS = pathlib.Path(__file__).parent
# Not the pipeline: whatever defines flags is run by each process itself, and could not be twice.
IMPORTED = (*(f"idistill_jax.stages.{one.name}" for one in pkgutil.iter_modules(stages.__path__)), "tiny_world")


def of_devices(count: int) -> dict[str, str]:
  """The environment of a process that has so many; the suite itself has eight."""
  # Of a flag that is there twice, XLA reads the last.
  return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"}


# As a user's laptop has.
ONE_DEVICE = of_devices(1)


def parser() -> argparse.ArgumentParser:
  """Reads a folder and what `started` adds."""
  made = argparse.ArgumentParser()
  made.add_argument("folder", type=pathlib.Path)
  made.add_argument("--coordinator", default=None)
  made.add_argument("--processes", type=int)
  made.add_argument("--process", type=int)
  made.add_argument("--patience", type=float, default=60)
  return made


class Forked:
  """`python <command>`, -m or -c, with the imports behind it; as subprocess.Popen to those who watch and end it."""

  def __init__(self, command: tuple[str, ...], environment: dict[str, str], log: pathlib.Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    self._process = context.Process(target=_run, args=(command, environment, log))
    # The first one starts the server, which must find the modules.
    with mock.patch.dict(os.environ, environment):
      self._process.start()
    self.pid = self._process.pid

  def poll(self) -> int | None:
    return self._process.exitcode

  def wait(self, timeout: float | None = None) -> int:
    self._process.join(timeout)
    if (code := self.poll()) is None:
      raise TimeoutError(f"process {self.pid} has not ended within {timeout} s")
    return code

  def send_signal(self, what: int) -> None:
    # It may have ended, and not said so yet.
    with contextlib.suppress(ProcessLookupError):
      if self.poll() is None:
        os.kill(self.pid, what)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


def _run(command: tuple[str, ...], environment: dict[str, str], log: pathlib.Path) -> None:
  """In a process that was just forked."""
  assert set(IMPORTED) <= sys.modules.keys(), "the server has not imported what it is there for"
  with log.open("a") as out:
    os.dup2(out.fileno(), sys.stdout.fileno())
    os.dup2(out.fileno(), sys.stderr.fileno())
  os.environ.clear()
  os.environ.update(environment)
  how, what, *flags = command
  if how == "-m":
    sys.argv = [what, *flags]
    runpy.run_module(what, run_name="__main__", alter_sys=True)
  else:
    sys.argv = [how, *flags]
    exec(what, {"__name__": "__main__"})


@dataclasses.dataclass(frozen=True)
class Job:
  """processes: in the order of their numbers, each writing to the file of its number in `folder`."""

  processes: list[subprocess.Popen | Forked]
  folder: pathlib.Path

  def wait(self, seconds: float = 400) -> list[int]:
    """Exit codes."""
    until = time.monotonic() + seconds
    return [one.wait(max(0.1, until - time.monotonic())) for one in self.processes]

  def succeed(self, seconds: float = 400) -> None:
    codes = self.wait(seconds)
    assert not any(codes), f"{codes}\n{self.said()[-6000:]}"

  def said(self, number: int | None = None) -> str:
    """What a process, or all of them, wrote."""
    numbers = range(len(self.processes)) if number is None else [number]
    return "\n".join((self.folder / f"{i}.log").read_text(errors="replace") for i in numbers)

  def assert_running(self) -> None:
    assert all(one.poll() is None for one in self.processes), f"ended too early\n{self.said()[-4000:]}"

  def until(self, path: pathlib.Path, lines: int = 1, seconds: float = 180) -> None:
    """Waits for so many lines in a file."""
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
      self.assert_running()
      assert time.monotonic() < deadline, f"{path} has not {lines} lines after {seconds} s"
      time.sleep(0.02)


@contextlib.contextmanager
def started(
  folder: pathlib.Path, count: int, *command: str, patience: float = 60, afresh: bool = False, devices: int = 1,
  machine: Callable[[int], Mapping[str, str]] = lambda number: {},
) -> Iterator[Job]:
  """`python <command>` so many times, with the flags that make one job of them; alone where count is 1.

  afresh: by Python itself, as a user starts it.  devices: of each process.  machine: what the environment of a process
  has beside that of this one.
  """
  folder.mkdir(parents=True, exist_ok=True)
  shared = os.environ | of_devices(devices) | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
  address = f"127.0.0.1:{ports.free()}"
  running: list[subprocess.Popen | Forked] = []
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: [one.kill() for one in running])
    for number in range(count):
      several = [f"--coordinator={address}", f"--processes={count}", f"--process={number}", f"--patience={patience}"]
      whole, environment = (*command, *(several if count > 1 else [])), shared | machine(number)
      log = folder / f"{number}.log"
      out = stack.enter_context(log.open("w"))
      running.append(
        subprocess.Popen([sys.executable, *whole], env=environment, stdout=out, stderr=subprocess.STDOUT) if afresh else
        Forked(whole, environment, log))
    yield Job(running, folder)
