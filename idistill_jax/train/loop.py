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
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from idistill_jax import artifacts, progress, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import batches as batches_lib
from idistill_jax.data import pack
from idistill_jax.models import table as table_lib
from idistill_jax.train import checkpoint, curves, networks, optim, preemption, windows
from idistill_jax.train import step as step_lib


class NonFiniteLossError(FloatingPointError):
  """Training diverged; the message names the step and the lists of its batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
  """One training: a network, what it learns from, and how.

  start: gives the parameters to begin with.  folder: where metrics.jsonl lives; found again by a restarted run, as are
  the checkpoints.  keep: makes what lies in `folder` outlive this machine, as checkpoints do.
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
  keep: Callable[[], None] = lambda: None


def train(training: Training) -> Any:
  """Parameters after all steps.  Raises NonFiniteLossError; the last good checkpoint is kept.

  On SIGTERM it saves where it is and raises preemption.Preempted.
  """
  steps = len(training.batches)
  learning_rate = optim.schedule(training.optim, steps)

  # -- State: starting weights onto the mesh, or the newest checkpoint -------------------------------------------------
  params = training.start()
  tx = optim.adamw(training.optim, steps, table_lib.decay_mask(training.network.table, params))
  state = step_lib.init(params, tx, training.network.shardings(training.mesh), training.mesh)
  del params
  data = batches_lib.iterator(training.batches)
  checkpoints = checkpoint.Checkpoints(training.checkpoints)
  state = checkpoints.restore(state, data) or state
  start = int(state.step)
  if start:
    logging.info("%s continues at step %d of %d", training.name, start, steps)
  log = MetricsLog(training.folder, keep_until=start, total=steps)

  # -- Steps, looking back one -----------------------------------------------------------------------------------------
  train_step = step_lib.make_step(training.loss_fn, tx, state)
  pending: Pending | None = None
  finished = 0.0
  guard = jax.transfer_guard("disallow")
  watched = progress.bar(training.name, total=steps, done=start)
  with contextlib.closing(checkpoints), contextlib.closing(log), watched as bar, preemption.watch() as preempted, guard:
    for step in range(start, steps):
      batch = next(data)
      tokens = pack.real_tokens(batch.rows)
      state, seen = train_step(state, place(batch, training.mesh))
      now = Pending(step=step, seen=seen, tokens=tokens, fill=tokens / batch.rows.token_ids.size,
                    started=time.perf_counter())
      if pending is not None:
        finished = settle(pending, training, learning_rate, log, bar, finished)
        if step % training.checkpoint_every == 0:
          training.keep()
      pending = now
      if step + 1 < steps and (preempted() or (step + 1) % training.checkpoint_every == 0):
        checkpoints.save(step + 1, state, data)
        if preempted():
          settle(pending, training, learning_rate, log, bar, finished)
          logging.warning("%s: asked to end; saved at step %d of %d, where the same command goes on", training.name,
                          step + 1, steps)
          raise preemption.Preempted
    if pending is not None:
      settle(pending, training, learning_rate, log, bar, finished)
    if preempted():
      # All is done but what comes after training: a restart finds the last step and takes none.
      checkpoints.save(steps, state, data)
      raise preemption.Preempted
  return state.params


def place(batch: batches_lib.ListBatch, mesh: jax.sharding.Mesh) -> batches_lib.ListBatch:
  """The batch on the mesh: rows cut over the data axes, everything small on every device."""
  layout = jax.tree.map(lambda _: sharding.replicated(mesh), batch)
  return jax.device_put(batch, dataclasses.replace(layout, rows=sharding.packed(batch.rows, mesh)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pending:
  """A dispatched step whose metrics are still on the device.  started: when it was dispatched, by perf_counter."""

  step: int
  seen: Mapping[str, jax.Array]
  tokens: int
  fill: float
  started: float


def settle(pending: Pending, training: Training, learning_rate: Any, log: "MetricsLog", bar: progress.Bar,
           finished_before: float) -> float:
  """Fetches, logs and shows a step's metrics -> when it was finished.  Raises NonFiniteLossError.

  A step's time runs from the end of the one before, or from its own dispatch where the device stood idle (which is
  after it was compiled).
  """
  seen = {name: float(value) for name, value in jax.device_get(dict(pending.seen)).items()}
  finished = time.perf_counter()
  if not np.isfinite(seen["loss"]):
    records = [slot.record for slot in training.batches.slots(pending.step)]
    raise NonFiniteLossError(f"{training.name}: loss is {seen['loss']} at step {pending.step}, on lists {records}; "
                             f"checkpoints before it are kept in {training.folder}")
  speed = round(pending.tokens / (finished - max(finished_before, pending.started)))
  with jax.transfer_guard("allow"):
    rate = float(learning_rate(pending.step))
  log.write({"step": pending.step + 1, **seen, "fill": round(pending.fill, 4), "tokens_per_second": speed, "lr": rate})
  bar.update(pending.step + 1, loss=seen["loss"], tokens_per_second=speed)
  return finished


class MetricsLog:
  """One JSON object a step, and the same as curves; a restarted run drops the lines of steps that it takes again."""

  def __init__(self, folder: pathlib.Path, keep_until: int, total: int):
    self._path = path = folder / artifacts.METRICS
    self._window = windows.Windows(folder, jax.process_index(), total)
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if _step_of(line) <= keep_until]
    path.write_text("".join(line + "\n" for line in kept))
    self._curves = curves.Curves(folder, begin_at=keep_until + 1)

  def write(self, row: Mapping[str, float]) -> None:
    self._window.add(row)
    with self._path.open("a") as out:
      out.write(json.dumps(row) + "\n")
    self._curves.write(row)

  def close(self) -> None:
    self._curves.close()


def _step_of(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except json.JSONDecodeError:
    return float("inf")  # torn by a kill; its step is taken again
