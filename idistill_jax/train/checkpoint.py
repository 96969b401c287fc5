"""Orbax, wrapped once: weights, optimizer and data position in one checkpoint; finished models by themselves."""

import os
from typing import Any

import grain
import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from idistill_jax import processes
from idistill_jax.train import step as step_lib

STATE, DATA = "state", "data"


class Checkpoints:
  """The last two training states of a stage, saved in the background."""

  def __init__(self, folder: epath.PathLike):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(_absolute(folder), options=options)

  def save(self, step: int, state: step_lib.State, data: grain.DatasetIterator) -> None:
    """The data position is taken at once, so `data` may move on as soon as this returns.

    It is the same in every process, as all deal the same batches: one copy serves any number of them.
    """
    self._manager.save(step, args=ocp.args.Composite(
      **{STATE: ocp.args.StandardSave(state), DATA: ocp.args.JsonSave(data.get_state())}))

  def wait(self) -> None:
    """Until what was saved is on the disk, whichever process wrote it."""
    self._manager.wait_until_finished()
    processes.meet("the checkpoint")

  def restore(self, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State | None:
    """Newest state that can be read, with `data` moved to its position; None where nothing was saved yet.

    A torn newest checkpoint is reported and the one before it is used.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._manager.restore(step, args=ocp.args.Composite(
          **{STATE: ocp.args.StandardRestore(abstract), DATA: ocp.args.JsonRestore()}))
      except (ValueError, OSError, KeyError) as e:
        logging.error("checkpoint of step %d cannot be read (%s); trying the one before", step, e)
        continue
      data.set_state(restored[DATA])
      return restored[STATE]
    return None

  def close(self) -> None:
    self._manager.wait_until_finished()
    self._manager.close()


def save_model(folder: epath.PathLike, params: Any) -> None:
  """A finished model's parameters, readable under any mesh."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(_absolute(folder), params, force=True)


def load_model(folder: epath.PathLike, abstract: Any) -> Any:
  """Parameters saved by `save_model`, placed as `abstract`'s leaves say; raises FileNotFoundError."""
  if not epath.Path(folder).exists():
    raise FileNotFoundError(f"{folder}: no trained model there")
  alone = ocp.options.MultiprocessingOptions()
  if all(leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(abstract)):
    # Every process for itself, or one while the others wait: Orbax must not ask for them.
    alone = ocp.options.MultiprocessingOptions(
      primary_host=jax.process_index(), active_processes={jax.process_index()},
      barrier_sync_key_prefix=f"alone{jax.process_index()}")
  with ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer:
    return checkpointer.restore(_absolute(folder), abstract)


def _absolute(folder: epath.PathLike) -> epath.Path:
  """As Orbax wants it; a path into a bucket is, though epath would put the current folder in front."""
  path = epath.Path(folder)
  return path if "://" in os.fspath(path) else path.absolute()
