"""A process for each measurement, so that none shares threads or memory with another."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def call(function: Callable[..., T], *arguments: object) -> T:
  """Its result from a process of its own; spawned, as one that is forked begins with the memory of this one."""
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
    return alone.submit(function, *arguments).result()
