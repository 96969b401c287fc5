"""Several real processes on loopback as one job, bounded in time and cleaned up whatever happens."""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks import ports

TESTS = pathlib.Path(__file__).parent


def parser() -> argparse.ArgumentParser:
  """Reads a folder and what `started` adds."""
  made = argparse.ArgumentParser()
  made.add_argument("folder", type=pathlib.Path)
  made.add_argument("--coordinator", default=None)
  made.add_argument("--processes", type=int)
  made.add_argument("--process", type=int)
  made.add_argument("--patience", type=float, default=60)
  return made


@dataclasses.dataclass(frozen=True)
class Job:
  """processes: in the order of their numbers, each writing to the file of its number in `folder`."""

  processes: list[subprocess.Popen]
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

  def until(self, path: pathlib.Path, lines: int = 1, seconds: float = 180) -> None:
    """Waits for so many lines in a file."""
    deadline = time.monotonic() + seconds
    while not path.exists() or len(path.read_text().splitlines()) < lines:
      assert all(one.poll() is None for one in self.processes), f"ended too early\n{self.said()[-4000:]}"
      assert time.monotonic() < deadline, f"{path} has not {lines} lines after {seconds} s"
      time.sleep(0.02)


@contextlib.contextmanager
def started(folder: pathlib.Path, count: int, *command: str, devices: int = 1, patience: float = 60) -> Iterator[Job]:
  """`python <command>` so many times, with the flags that make one job of them; alone where count is 1."""
  folder.mkdir(parents=True, exist_ok=True)
  # Compiled fast rather than well: the programs are small and run a few times.
  flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
  address = f"127.0.0.1:{ports.free()}"
  running: list[subprocess.Popen] = []
  with contextlib.ExitStack() as stack:
    stack.callback(lambda: [one.kill() for one in running])
    for number in range(count):
      several = [f"--coordinator={address}", f"--processes={count}", f"--process={number}", f"--patience={patience}"]
      log = stack.enter_context((folder / f"{number}.log").open("w"))
      running.append(subprocess.Popen([sys.executable, *command, *(several if count > 1 else [])], env=environment,
                                      stdout=log, stderr=subprocess.STDOUT))
    yield Job(running, folder)
