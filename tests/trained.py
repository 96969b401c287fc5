"""Eight steps of a tiny ranker, alone or as one process of a job: `python -m trained FOLDER WEIGHTS`."""

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator
from unittest import mock

import jobs
import numpy as np
import tiny_world

from idistill_jax import config, processes, sharding
from idistill_jax.data import pack
from idistill_jax.train import checkpoint, loop, windows

parser = jobs.parser()
parser.add_argument("weights")
parser.add_argument("--fsdp", type=int, default=1)
parser.add_argument("--pause", type=float, default=0.0, help="seconds before each step, of the last process")
parser.add_argument("--hang", type=int, default=None, help="which process stops before its fifth step")


def main(args: argparse.Namespace) -> None:
  place, placed = loop.place, itertools.count()
  slow = processes.index() == processes.count() - 1
  # Few enough for those that are ended to write some.
  windows.STEPS = 2

  def slowly(*batch):
    # The first batch is placed twice: once to compile for it.
    time.sleep(3600 if args.hang == processes.index() and next(placed) == 5 else args.pause * slow)
    return place(*batch)

  loop.place = slowly
  mesh = sharding.make_mesh(config.Mesh(fsdp=args.fsdp))
  with texts_are_counted():
    params = loop.train(
      tiny_world.training(args.folder, args.weights, mesh, pairs=True, checkpoint_every=2))
  checkpoint.save_model(args.folder / "model", params)


@contextlib.contextmanager
def texts_are_counted() -> Iterator[None]:
  """Says in the end of how many of its batches' texts this process has put the tokens together."""
  fill, there, read = pack.fill, [], []
  counted = lambda lengths, text, *rest, **more: (
    there.append(np.count_nonzero(lengths)), fill(lengths, lambda i: (read.append(i), text(i))[1], *rest, **more))[1]
  try:
    with mock.patch.object(pack, "fill", counted):
      yield
  finally:
    print(f"reads {len(read) / sum(there):.2f} of the texts", flush=True)


if __name__ == "__main__":
  given = parser.parse_args()
  launch = given.coordinator and processes.Launch(
    coordinator=given.coordinator, count=given.processes, index=given.process, patience=given.patience)
  with processes.joined(launch or None):
    main(given)
