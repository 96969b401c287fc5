"""A process for each measurement, so that none shares threads or memory with another."""

import concurrent.futures
import multiprocessing
import pathlib
import re
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call(function: Callable[..., T], *arguments: object) -> T:
  """Its result from a process of its own; spawned, as one that is forked begins with the memory of this one."""
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
    return alone.submit(function, *arguments).result()


def most() -> int:
  """Bytes of memory that this process has held at most; what `getrusage` says begins with those of its parent."""
  found = re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())
  assert found, "only Linux tells"
  return 1024 * int(found[1])
