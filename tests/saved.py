"""A small state that lies over two processes, saved, torn, read again and kept as a model: `python -m saved`.

What lies over `fsdp` is read by its own process alone, so that the second finds damage that the first does not see; it
stops before the second model.
"""

import time
from typing import Any

import jax
import jobs
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from idistill_jax import config, processes, sharding
from idistill_jax.train import checkpoint
from idistill_jax.train import step as step_lib

LONG = 3600


class Position:
  """Stands in for the data's: where it is, as a number."""

  def __init__(self, at: int):
    self.at = at

  def get_state(self) -> dict[str, int]:
    return {"at": self.at}

  def set_state(self, state: dict[str, int]) -> None:
    self.at = state["at"]


def state(step: int, mesh: jax.sharding.Mesh) -> step_lib.State:
  everywhere, cut = sharding.replicated(mesh), NamedSharding(mesh, PartitionSpec("fsdp"))
  values = np.random.default_rng(step).normal(size=(2, 30_000)).astype(np.float32)
  put: Any = sharding.put
  return step_lib.State(step=put(np.asarray(step, np.int32), everywhere), params={"w": put(values, cut)},
                        opt_state={"m": put(np.ones(3, np.float32), everywhere)})


if __name__ == "__main__":
  args = jobs.parser().parse_args()
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  with processes.joined(launch):
    mesh, first = sharding.make_mesh(config.Mesh(fsdp=2)), args.process == 0
    kept = checkpoint.Checkpoints(args.folder / "checkpoints")
    for step in (1, 2):
      kept.save(step, state(step, mesh), Position(step))
    kept.wait()
    if not first:
      torn = args.folder / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d"
      for path in torn.iterdir():
        path.write_bytes(path.read_bytes()[:16])
    processes.meet("torn")
    position = Position(0)
    found = kept.restore(state(0, mesh), position)
    print("restored", int(found.step), "of the data", position.at, flush=True)
    for folder in ("first", "second"):
      if folder == "second" and not first:
        time.sleep(LONG)
      checkpoint.save_model(args.folder / folder, found.params)
