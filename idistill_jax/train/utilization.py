"""How well a training uses its devices: FLOPs against the measured peak, programs compiled, a profiler's trace."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from idistill_jax import multiply
from idistill_jax.hf import networks
from idistill_jax.models import table as table_lib

# jax.monitoring's names: a program was compiled, or fetched compiled; it was fetched from the persistent cache.
COMPILED, FETCHED = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"


@functools.cache
def matrix_rate(dtype: str) -> float:
  """FLOP/s of one large matrix product on one device, the best of five: what "peak" means here."""
  size = 8192 if jax.default_backend() != "cpu" else 1024
  factor = jnp.ones((size, size), dtype)
  # As exact as the models' own products are: in float32 other devices would round, and be faster by that.
  square = jax.jit(lambda a: multiply.matmul(a, a))
  return 2 * size**3 / seconds(lambda: square(factor))


def seconds(call: Callable[[], Any]) -> float:
  """Of one call of a compiled program, the best of five samples, after one more.

  Where dispatch and the way back take a part of a millisecond, a sample is of several calls and one wait, so that all
  but the first are dispatched while the device works.  A CPU would do calls that do not need each other at once.
  """
  calls = 20 if jax.default_backend() != "cpu" else 1
  jax.block_until_ready(call())

  def sample() -> float:
    started = time.perf_counter()
    for _ in range(calls):
      last = call()
    jax.block_until_ready(last)
    return (time.perf_counter() - started) / calls

  return min(sample() for _ in range(5))


def peak(mesh: jax.sharding.Mesh, dtype: str) -> float:
  """FLOP/s of all devices of the mesh together; those that a CPU pretends to have share its cores."""
  return matrix_rate(dtype) * (1 if jax.default_backend() == "cpu" else mesh.size)


def flops_per_token(network: networks.Network) -> float:
  """Of a training step: two for each weight of the layers, once forward and, where it is not frozen, twice backward.

  Attention's own products and what a gradient computes anew are not counted (as in Chowdhery et al. 2022, "PaLM",
  appendix B, whose MFU this is).
  """
  shapes = table_lib.flatten(network.abstract).items()
  layers, frozen = network.table.layers, network.execution.frozen_layers
  weights = sum(math.prod(leaf.shape) for path, leaf in shapes if network.table.row(path).is_kernel_of_layer)
  return weights * (2.0 + 4.0 * (layers - frozen) / layers)


@contextlib.contextmanager
def compilations() -> Iterator[Callable[[], int]]:
  """How many programs this process has compiled since."""
  found: list[float] = []

  def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == COMPILED:
      found.append(duration_secs)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield lambda: len(found)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiling:
  """Seconds that a program took before it could run, and whether JAX's persistent cache had it compiled."""

  trace_seconds: float
  compile_seconds: float
  from_cache: bool

  def __str__(self) -> str:
    how = "fetched from the compilation cache" if self.from_cache else "compiled"
    return f"traced in {self.trace_seconds:.1f} s, {how} in {self.compile_seconds:.1f} s"


def compile_timed(function: Any, *arguments: Any) -> Compiling:
  """Compiles a jitted function for its arguments; the next call with their like finds it compiled."""
  fetched: list[str] = []

  def listen(event: str, **kwargs: str | int) -> None:
    if event == FETCHED:
      fetched.append(event)

  jax.monitoring.register_event_listener(listen)
  try:
    started = time.perf_counter()
    lowered = function.lower(*arguments)
    traced = time.perf_counter()
    lowered.compile()
    compiled = time.perf_counter()
  finally:
    jax.monitoring.unregister_event_listener(listen)
  return Compiling(trace_seconds=traced - started, compile_seconds=compiled - traced, from_cache=bool(fetched))


class Trace:
  """Steps of a training, counted from 1, as a trace for XProf, TensorBoard or Perfetto; none where `steps` is None."""

  def __init__(self, steps: range | None, folder: pathlib.Path):
    self._steps, self._folder, self._running = steps, folder, False
    # All that this run took.
    self._taken = range(1, 1)

  def before(self, step: int) -> None:
    self._taken = range(self._taken.start if self._taken else step, step + 1)
    # Also where a restarted run begins amid them.
    if self._steps is not None and step in self._steps and not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True

  def after(self, step: int, result: Any) -> None:
    """`result`: what the step computes, waited for at the end."""
    if self._running and self._steps is not None and step == self._steps[-1]:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    if self._steps is None:
      return
    seen = range(max(self._steps.start, self._taken.start), min(self._steps.stop, self._taken.stop))
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      logging.info("profile of steps %d to %d: tensorboard --logdir=%s", seen[0], seen[-1], self._folder)
    elif not seen:
      took = f"steps {self._taken[0]} to {self._taken[-1]}" if self._taken else "no step"
      logging.warning("--profile=%d:%d: there is none in %s, as this run took %s; name some of a training's steps that "
                      "are to be taken", self._steps[0], self._steps[-1], self._folder, took)
