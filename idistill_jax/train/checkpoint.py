"""Orbax, wrapped once: weights, optimizer and data position in one checkpoint; finished models by themselves."""

import os
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from idistill_jax import processes
from idistill_jax.train import step as step_lib

STATE, DATA, SUMS = "state", "data", "sums"


class Checkpoints:
  """The last two training states of a stage, saved in the background."""

  def __init__(self, folder: epath.PathLike):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
    self._manager = ocp.CheckpointManager(_absolute(folder), options=options)

  def save(self, step: int, state: step_lib.State, data: grain.DatasetIterator) -> None:
    """The data position is taken at once, so `data` may move on as soon as this returns.

    It is the same in every process, as all deal the same batches: one copy serves any number of them.
    """
    self._manager.save(step, args=ocp.args.Composite(**{
      STATE: ocp.args.StandardSave(state), DATA: ocp.args.JsonSave(data.get_state()),
      SUMS: ocp.args.StandardSave(_sums(state)),
    }))

  def wait(self) -> None:
    """Until what was saved is on the disk, whichever process wrote it."""
    self._manager.wait_until_finished()
    processes.meet("the checkpoint")

  def restore(self, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State | None:
    """Newest state that is what was saved, with `data` moved to its position; None where nothing was saved yet.

    A torn or corrupted newest checkpoint is reported and deleted, and the one before it is used.
    """
    unreadable: list[int] = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._read(step, state, data)
      except Exception as e:  # Orbax and TensorStore raise any, Exception itself among them.
        logging.error("checkpoint %s/%d cannot be used (%s); trying the one before", self._manager.directory, step, e)
        unreadable.append(step)
        continue
      # Else the step could not be saved when it comes again.
      for torn in unreadable:
        self._manager.delete(torn)
      return restored
    if unreadable:
      logging.error("none of the checkpoints %s in %s can be used; training starts anew", unreadable,
                    self._manager.directory)
      for torn in unreadable:
        self._manager.delete(torn)
    return None

  def _read(self, step: int, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State:
    abstract, sums = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state, _sums(state)))
    # A damaged shard is known to the process that reads it, and what follows takes all of them.
    with processes.agreed(f"reading checkpoint {step}"):
      found = self._manager.restore(step, args=ocp.args.Composite(**{
        STATE: ocp.args.StandardRestore(abstract), DATA: ocp.args.JsonRestore(), SUMS: ocp.args.StandardRestore(sums),
      }))
    if not np.array_equal(*jax.device_get((found[SUMS]["words"], _sums(found[STATE])["words"]))):
      raise ValueError("its bits are not those that were saved")
    data.set_state(found[DATA])
    return found[STATE]

  def close(self) -> None:
    self._manager.wait_until_finished()
    self._manager.close()


@jax.jit
def _sums(state: step_lib.State) -> dict[str, jax.Array]:
  """words, uint32 [leaves]: the bits of each array, summed as integers: a flipped one changes it, a mesh does not.

  Of a flipped bit in its files, Orbax itself notices nothing.
  """
  words = lambda leaf: jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
  return {"words": jnp.stack([words(leaf).sum(dtype=jnp.uint32) for leaf in jax.tree.leaves(state)])}


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
