"""A machine that is taken away says so with SIGTERM: save, then go, with a code that says "run me again".

Whichever process of a job is told, all of them end at the same step.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from idistill_jax import processes, sharding

EXIT_CODE = processes.TERMINATED


class Preempted(SystemExit):
  """Work was saved and ends here; the same command continues it."""

  def __init__(self) -> None:
    super().__init__(EXIT_CODE)


@contextlib.contextmanager
def watch(mesh: jax.sharding.Mesh) -> Iterator[Callable[[], bool]]:
  """Whether SIGTERM has come since, to any process of the job; it ends nothing while this is watching, and comes
  to whoever listened before once the work is done without an answer to it.

  Several processes ask once a step, and all hear the same: what was known when they last asked, as the device never
  waits.  Signals reach the main thread alone; elsewhere nothing is watched.
  """
  came = threading.Event()
  asked = came.is_set if processes.count() == 1 else _one_late(functools.partial(_anywhere, came, mesh))
  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  before = signal.signal(signal.SIGTERM, lambda *_: came.set())
  try:
    yield asked
  finally:
    signal.signal(signal.SIGTERM, before)
  # What came after the last question; an exception ends this process anyway, and says more than the signal.
  if came.is_set():
    signal.raise_signal(signal.SIGTERM)


def _anywhere(came: threading.Event, mesh: jax.sharding.Mesh) -> jax.Array:
  each = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return _any(mesh)(sharding.put(np.full(mesh.size, came.is_set()), each))


@functools.cache
def _any(mesh: jax.sharding.Mesh) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))


def _one_late(ask: Callable[[], jax.Array]) -> Callable[[], bool]:
  """Answers with what the call before has set going."""
  under_way: list[jax.Array] = []

  def asked() -> bool:
    under_way.append(ask())
    return len(under_way) > 1 and bool(jax.device_get(under_way.pop(0)))

  return asked
