"""Orbax, wrapped once: weights, optimizer and data position in one checkpoint; finished models by themselves."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from idistill_jax import processes
from idistill_jax.train import orbax_s3
from idistill_jax.train import step as step_lib
from idistill_jax.workdir import remote

STATE, DATA, SUMS = "state", "data", "sums"
# Orbax's file that says when a checkpoint was saved, to the nanosecond.
_SAVED = "_CHECKPOINT_METADATA"
# What TensorStore says of files that are torn or lost.  Of a full table of files, a bucket that does not answer or
# refuses, it says other things, by ValueError all the same.
_DAMAGED = {"DATA_LOSS", "OUT_OF_RANGE", "NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}


class CheckpointsError(OSError):
  """There are checkpoints, and none of them can be used."""


class _Damage(Exception):
  """A checkpoint is not what was saved."""


class Checkpoints:
  """The last two training states of a stage, saved in the background."""

  def __init__(self, folder: epath.PathLike):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
    with _reaching(folder), processes.waiting(f"opening {folder}"):
      self._manager = ocp.CheckpointManager(_absolute(folder), options=options)

  def save(self, step: int, state: step_lib.State, data: grain.DatasetIterator) -> None:
    """The data position is taken at once, so `data` may move on as soon as this returns.

    It is the same in every process, as all deal the same batches: one copy serves any number of them.
    """
    # As it will be read.
    position = json.loads(json.dumps(data.get_state()))
    with _reaching(self._manager.directory):
      self._manager.save(step, args=ocp.args.Composite(**{
        STATE: ocp.args.StandardSave(state), SUMS: ocp.args.StandardSave(_sums(state)),
        DATA: ocp.args.JsonSave({"position": position, "sum": _sum(position)}),
      }))

  def wait(self) -> None:
    """Until what was saved is on the disk, whichever process wrote it."""
    with _reaching(self._manager.directory):
      self._manager.wait_until_finished()
    processes.meet("the checkpoint")

  def restore(self, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State | None:
    """Newest state that is what was saved, with `data` moved to its position; None where nothing was saved yet.

    A torn or corrupted newest checkpoint is reported, and deleted once the one before it was read.  Raises
    CheckpointsError where none can be read, and what is no damage as it came, or as OSError with the bucket's url:
    either way every checkpoint stays.
    """
    with _reaching(self._manager.directory):
      return self._restore(state, data)

  def _restore(self, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State | None:
    damaged: dict[int, _Damage] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        restored = self._read(step, state, data)
      except _Damage as e:
        logging.error("checkpoint %s/%d cannot be used (%s); trying the one before", self._manager.directory, step, e)
        damaged[step] = e
        continue
      except Exception as e:
        e.add_note(f"This came while checkpoint {self._manager.directory}/{step} was read, and tells of no torn or "
                   "lost file, so all checkpoints stay as they are: mend the cause, run the same command again")
        raise
      # Else the step could not be saved when it comes again.
      for torn in damaged:
        with processes.waiting(f"deleting checkpoint {torn}"):
          self._manager.delete(torn)
      return restored
    if damaged:
      raise CheckpointsError(
        f"none of the checkpoints {', '.join(map(str, damaged))} in {self._manager.directory} can be used "
        f"({next(iter(damaged.values()))}); they stay as they are: bring back a copy of one, or delete that folder to "
        "train from the first step")
    return None

  def _read(self, step: int, state: step_lib.State, data: grain.DatasetIterator) -> step_lib.State:
    """Raises _Damage, in all processes where one finds any."""
    abstract, sums = jax.tree.map(ocp.utils.to_shape_dtype_struct, (state, _sums(state)))
    found: Any = None
    said = ""
    # A damaged shard is known to the process that reads it, and what follows takes all of them; Orbax would have the
    # others wait for one that failed.
    with (processes.agreed(f"reading checkpoint {step}"),
          ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=_alone()) as reader):
      try:
        found = reader.restore(self._manager.directory / str(step), args=ocp.args.Composite(**{
          STATE: ocp.args.StandardRestore(abstract), DATA: ocp.args.JsonRestore(),
          SUMS: ocp.args.StandardRestore(sums),
        }))
        position = found[DATA]["position"]
        if found[DATA]["sum"] != _sum(position):
          raise ValueError("its data position is not the one that was saved")
        data.set_state(position)
      except Exception as e:  # Orbax and TensorStore raise any, Exception itself among them.
        if not (said := _damage(e)):
          raise
    if told := [damage for damage in processes.told(f"checkpoint {step}", said).values() if damage]:
      raise _Damage(told[0])
    with processes.waiting(f"the sums of checkpoint {step}"):
      same = np.array_equal(*jax.device_get((found[SUMS]["words"], _sums(found[STATE])["words"])))
    if not same:
      raise _Damage("its bits are not those that were saved")
    return found[STATE]

  def close(self) -> None:
    with _reaching(self._manager.directory), processes.waiting("the last checkpoint"):
      self._manager.wait_until_finished()
      self._manager.close()


@jax.jit
def _sums(state: step_lib.State) -> dict[str, jax.Array]:
  """words, uint32 [leaves]: the bits of each array, summed as integers: a flipped one changes it, a mesh does not.

  Of a flipped bit in its files, Orbax itself notices nothing.
  """
  words = lambda leaf: jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}").astype(jnp.uint32)
  return {"words": jnp.stack([words(leaf).sum(dtype=jnp.uint32) for leaf in jax.tree.leaves(state)])}


def _sum(position: dict[str, Any]) -> str:
  """Of the data's position, which is a number or two in JSON: flipped, they would be another position."""
  return hashlib.sha256(json.dumps(position, sort_keys=True).encode()).hexdigest()


def save_model(folder: epath.PathLike, params: Any) -> None:
  """A finished model's parameters, readable under any mesh."""
  with _reaching(folder), processes.waiting(f"saving {folder}"), ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(_absolute(folder), params, force=True)


def save_model_once(folder: epath.PathLike, make: Callable[[], Any]) -> None:
  """The parameters that `make` gives, unless an earlier attempt has left a whole model there, which stays as it is."""
  if not processes.once(lambda: is_saved(folder), f"a look at {folder}"):
    save_model(folder, make())


def is_saved(folder: epath.PathLike) -> bool:
  """Whether `save_model` has come to its end there: in a bucket a folder is there from the first file on."""
  with _reaching(folder):
    return epath.Path(folder).exists() and ocp.utils.is_checkpoint_finalized(_absolute(folder))


def saving(folder: epath.PathLike) -> bytes:
  """What is another of every saving of a model; raises FileNotFoundError."""
  with _reaching(folder):
    return (epath.Path(folder) / _SAVED).read_bytes()


def load_model(folder: epath.PathLike, abstract: Any) -> Any:
  """Parameters saved by `save_model`, placed as `abstract`'s leaves say; raises FileNotFoundError."""
  with _reaching(folder):
    if not epath.Path(folder).exists():
      raise FileNotFoundError(f"{folder}: no trained model there")
    with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as checkpointer:
      return checkpointer.restore(_absolute(folder), abstract)


@contextlib.contextmanager
def _reaching(folder: epath.PathLike) -> Iterator[None]:
  """As `remote.reaching`; what tells of a device, of another process or of damage keeps its kind."""
  try:
    yield
  except (jax.errors.JaxRuntimeError, processes.ProcessError, CheckpointsError):
    raise
  except Exception as e:
    with remote.reaching(folder):
      raise e


def _alone() -> ocp.options.MultiprocessingOptions:
  """Every process reads for itself, whichever others do: Orbax must not ask for them."""
  return ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(), active_processes={jax.process_index()},
    barrier_sync_key_prefix=f"alone{jax.process_index()}")


def _damage(error: BaseException) -> str:
  """What an error while reading says of a torn or lost file; "" where it is not known to tell of one."""
  if type(error) is Exception and error.__cause__ is not None:  # Orbax's word around TensorStore's
    return _damage(error.__cause__)
  status = re.match(r"([A-Z_]+): ", str(error))
  if isinstance(error, ValueError) and status and status[1] not in _DAMAGED:
    return ""
  # TensorStore adds its whole specification.
  said = " ".join(str(error).partition("[tensorstore_spec")[0].split())
  return f"{type(error).__name__}: {said}" if isinstance(error, (FileNotFoundError, ValueError, KeyError)) else ""


def _absolute(folder: epath.PathLike) -> epath.Path:
  """As Orbax wants it; a path into a bucket is, though epath would put the current folder in front."""
  path = epath.Path(folder)
  if os.fspath(path).startswith("s3://"):
    orbax_s3.teach()
  return path if "://" in os.fspath(path) else path.absolute()
