"""The one training loop: batches and a loss function -> parameters, checkpointed and resumable.

The device never waits for the host: a step is dispatched before the metrics of the one before are fetched, and
batches are packed ahead in threads.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
import optax
from absl import logging
from etils import epath

from idistill_jax import config as config_lib
from idistill_jax import processes, progress, sharding
from idistill_jax.data import batches as batches_lib
from idistill_jax.hf import networks
from idistill_jax.train import checkpoint, curves, optim, preemption, utilization, windows
from idistill_jax.train import step as step_lib
from idistill_jax.workdir import begun as begun_lib

# Queries of a batch that an error names; the log has all of more.
_NAMED = 5


class NonFiniteLossError(ValueError):
  """Training diverged; the message names the step and queries of its batch, and the log all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """One training: a network, what it learns from, and how.

  start: gives the parameters to begin with.  folder: where metrics.jsonl lives; found again by a restarted run, as are
  the checkpoints.  keep: makes a file in `folder`, or all of it (""), outlive this machine, as checkpoints do.  part:
  which of several trainings that share the folder; its steps are counted on from those of the part before.  profile:
  steps, counted from 1, whose trace is written to `folder`/profile.
  """

  name: str
  network: networks.Network
  start: Callable[[], Any]
  loss_fn: step_lib.LossFn
  batches: batches_lib.Batches
  optim: config_lib.Optim
  mesh: jax.sharding.Mesh
  folder: pathlib.Path
  checkpoints: epath.Path
  checkpoint_every: int
  profile: range | None
  part: int = 0
  keep: Callable[[str], None] = lambda name: None


def train(training: Training) -> Any:
  """Parameters after all steps.  Raises NonFiniteLossError; the last good checkpoint is kept.

  On SIGTERM it saves where it is and raises preemption.Preempted.
  """
  began, steps = time.perf_counter(), len(training.batches)

  # -- State: starting weights onto the mesh, or the newest checkpoint -------------------------------------------------
  tx, state = begun(training)
  data = batches_lib.iterator(training.batches)
  checkpoints = checkpoint.Checkpoints(training.checkpoints)
  state = checkpoints.restore(state, data) or state
  start = int(state.step)
  if start:
    logging.info("%s continues at step %d of %d", training.name, start, steps)
  readout = Readout(training, start, began)

  # -- Steps, looking back one -----------------------------------------------------------------------------------------
  train_step = step_lib.make_step(training.loss_fn, tx, state)
  pending: Pending | None = None
  trace = utilization.Trace(training.profile, training.folder / "profile")
  with (contextlib.closing(checkpoints), contextlib.closing(readout.log), readout.bar() as bar,
        preemption.watch(training.mesh) as preempted, utilization.compilations() as compiled,
        contextlib.closing(trace), jax.transfer_guard("disallow")):
    if start < steps:
      readout.compiling = compile_together(training, train_step, state, start)
    for step in range(start, steps):
      asked = time.perf_counter()
      batch = next(data)
      waited = time.perf_counter() - asked
      # What was compiled for the first step was compiled before it.
      before = compiled() if step > start else 0
      trace.before(step + 1)
      state, seen = train_step(state, place(batch, training.mesh))
      trace.after(step + 1, seen)
      now = Pending(step=step, seen=seen, waited=waited, compiled=compiled() - before, started=time.perf_counter())
      with processes.waiting(f"{training.name}, step {step + 1}"):
        if pending is not None:
          settle(pending, readout, bar)
        pending = now
        ending = preempted()
        if step + 1 < steps and (ending or (step + 1) % training.checkpoint_every == 0):
          # Whoever goes on from here finds the step's line written; where that is another run already, this one ends.
          settle(pending, readout, bar)
          pending = None
          readout.log.keep()
          save(checkpoints, step + 1, state, data)
          if ending:
            leave(training, checkpoints, step + 1)
    with processes.waiting(f"{training.name}, its end"):
      if pending is not None:
        settle(pending, readout, bar)
      readout.log.keep()
      # Of several processes, the first answer is to what was asked in the last step.
      if preempted() or preempted():
        # All is done but what comes after training: a restart finds the last step and takes none.
        save(checkpoints, steps, state, data)
        leave(training, checkpoints, steps)
  return state.params


def save(checkpoints: checkpoint.Checkpoints, step: int, state: step_lib.State, data: Any) -> None:
  """Orbax takes what it writes from the devices; elsewhere in the loop that would be a wait that nobody asked for."""
  with jax.transfer_guard("allow"):
    checkpoints.save(step, state, data)


def begun(training: Training) -> tuple[optax.GradientTransformation, step_lib.State]:
  """The optimizer, and the state before the first step."""
  params, network = training.start(), training.network
  tx = optim.of(network, training.optim, len(training.batches))
  return tx, step_lib.init(params, tx, network.shardings(training.mesh), training.mesh)


def leave(training: Training, checkpoints: checkpoint.Checkpoints, step: int) -> NoReturn:
  checkpoints.wait()
  logging.warning("%s: asked to end; saved at step %d of %d, where the same command goes on", training.name, step,
                  len(training.batches))
  raise preemption.Preempted


def compile_together(training: Training, train_step: Any, state: step_lib.State, step: int) -> utilization.Compiling:
  """Compiles the step in every process before any takes it: the first collective gives up on those that come late."""
  took = utilization.compile_timed(train_step, state, place(training.batches[step], training.mesh))
  processes.meet(f"{training.name}, compiled")
  return took


def place(batch: batches_lib.ListBatch, mesh: jax.sharding.Mesh) -> batches_lib.ListBatch:
  """The batch on the mesh: rows cut over the data axes, everything small on every device."""
  layout = jax.tree.map(lambda _: sharding.replicated(mesh), batch)
  return sharding.put(batch, dataclasses.replace(layout, rows=sharding.packed(batch.rows, mesh)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """A dispatched step whose metrics are still on the device.

  started: when it was dispatched, by perf_counter.  waited: seconds for its batch.  compiled: programs, for it.
  """

  step: int
  seen: Mapping[str, jax.Array]
  started: float
  waited: float
  compiled: int


class Readout:
  """What is said of every step, on display and in metrics.jsonl, and of the first one how long it was in coming."""

  def __init__(self, training: Training, start: int, began: float):
    """began: when the training was called, by perf_counter."""
    self.training, self.start, self.began = training, start, began
    # All at once, and here: what is computed between two steps waits on the device for the second of them.
    self.learning_rates = optim.rates(training.optim, len(training.batches))
    self.compiling: utilization.Compiling | None = None
    # Steps of the parts before.
    self.before = training.part * len(training.batches)
    self.log = MetricsLog(training, self.before + start, self.before + len(training.batches))
    self.finished = 0.0
    peak = utilization.peak(training.mesh, training.network.execution.products.name)
    self.share_of_peak = utilization.flops_per_token(training.network) / peak

  def bar(self) -> contextlib.AbstractContextManager[progress.Bar]:
    return progress.bar(self.training.name, total=len(self.training.batches), done=self.start)

  def first(self, step: int, finished: float) -> dict[str, float]:
    """What the row of the first step since this start has more than others; nothing of others."""
    if step > self.start or self.compiling is None:
      return {}
    logging.info("%s: first step done after %.1f s; it was %s", self.training.name, finished - self.began,
                 self.compiling)
    took = (finished - self.began, self.compiling.trace_seconds, self.compiling.compile_seconds,
            self.compiling.from_cache)
    return dict(zip(windows.OF_START, (round(float(one), 3) for one in took), strict=True))


def settle(pending: Pending, readout: Readout, bar: progress.Bar) -> None:
  """Fetches, logs and shows a step's metrics.  Raises NonFiniteLossError.

  A step's time runs from the end of the one before, or from its own dispatch where the device stood idle (which is
  after it was compiled).
  """
  asked = time.perf_counter()
  seen = {name: float(value) for name, value in jax.device_get(dict(pending.seen)).items()}
  finished = time.perf_counter()
  # As it is counted in metrics.jsonl.
  step = readout.before + pending.step + 1
  for name, value in seen.items():
    if not np.isfinite(value):
      training = readout.training
      ids = training.batches.query_ids(pending.step)
      first = ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
      if len(ids) > _NAMED:
        # Of thousands nobody could read the error.
        logging.error("%s: the queries of step %d are %s", training.name, step, ", ".join(ids))
      raise NonFiniteLossError(f"{training.name}: {name} is {value} at step {step}, on the lists of {len(ids)} queries "
                               f"({first}); lower its optim.peak_lr, which trains anew, or, where code or driver are "
                               "to blame, mend these and run the same command again; checkpoints before it are kept in "
                               f"{training.checkpoints}")
  tokens = readout.training.batches.tokens(pending.step)
  speed = tokens / (finished - max(readout.finished, pending.started))
  readout.finished = finished
  if pending.compiled and pending.step > readout.start:
    logging.warning("%s: step %d was compiled anew; its batch has another shape than those before",
                    readout.training.name, step)
  of_time = {"tokens_per_second": round(speed), "mfu": round(speed * readout.share_of_peak, 4),
             "input_wait": round(pending.waited, 4)}
  readout.log.write({"step": step, **seen,
                     "fill": round(tokens / readout.training.batches.room, 4), **of_time,
                     "device_wait": round(finished - asked, 4),
                     "lr": readout.learning_rates[pending.step], "compiled": pending.compiled,
                     **readout.first(pending.step, finished)})
  bar.update(pending.step + 1, loss=seen["loss"], **of_time)


class MetricsLog:
  """One JSON object a step and the same as curves, from the first process; from each of them a line a window.

  A restarted run drops the lines of steps that it takes again.
  """

  def __init__(self, training: Training, start: int, total: int):
    self._training, self._path = training, training.folder / begun_lib.METRICS
    self._window = windows.Windows(training.folder, processes.index(), start, total)
    self._curves: curves.Curves | None = None
    if processes.is_first():
      windows.drop_after(start, self._path)
      self._curves = curves.Curves(training.folder, begin_at=start + 1)

  def write(self, row: Mapping[str, float]) -> None:
    self._window.add(row)
    if self._curves is None:
      return
    with self._path.open("a") as out:
      out.write(json.dumps(row) + "\n")
    self._curves.write(row)

  def keep(self) -> None:
    """Makes it outlive this machine: all that is in the folder if this process is the first, else what is its own."""
    self._window.flush()
    self._training.keep("" if processes.is_first() else self._window.path.name)

  def close(self) -> None:
    if self._curves is None:
      self.keep()
      return
    try:
      self._window.flush()
    finally:
      self._curves.close()
