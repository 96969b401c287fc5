"""600 texts through the untrained retriever, alone or as one process of a job: `python -m encoded FOLDER WEIGHTS`."""

import itertools
import os
import pathlib
import time
from typing import Any
from unittest import mock

import jax
import jobs
import numpy as np
import tiny_world

from idistill_jax import config, processes
from idistill_jax.train import inference, pieces
from idistill_jax.workdir import artifacts

TEXTS = [" ".join(np.random.default_rng(i).choice(tiny_world.WORDS, 2 + i % 7)) for i in range(600)]


def encode(weights: str, folder: pathlib.Path | None, least: int) -> np.ndarray:
  """folder: keeps the pieces, and what each process did.  least: texts of a piece."""
  cfg = config.Config(name="test", encoder=tiny_world.encoder(weights))
  job = folder and artifacts.Job(cfg=cfg, out=folder, inputs={}, cache=folder)
  with mock.patch.object(pieces, "LEAST", least):
    return inference.load_retriever(cfg, None, job).encode_passages(TEXTS)


def main(folder: pathlib.Path, weights: str, pause: float, name: int, behind: int) -> None:
  """behind: so many pieces others must have finished before this one finishes any."""
  finish, first = pieces.Pieces.finish, itertools.count()

  def slowly(work: pieces.Pieces, piece: range, *made: Any) -> None:
    if next(first) == 0:
      processes.meet("the first piece of each")  # whoever is first there would make them all
    while len(list(folder.glob("pieces/*/[0-9]*.npy"))) < behind:
      time.sleep(0.05)
    time.sleep(pause)
    finish(work, piece, *made)
    with (folder / f"made {name}").open("a") as out:
      out.write(f"{piece.start} ")

  with mock.patch.object(pieces.Pieces, "finish", slowly):
    np.save(folder / f"whole {name}.npy", encode(weights, folder, least=32))


if __name__ == "__main__":
  parser = jobs.parser()
  parser.add_argument("weights")
  parser.add_argument("--pauses", type=float, nargs="+", required=True, help="seconds before each piece, by process")
  parser.add_argument("--behind", type=int, default=0, help="see main; for the first process")
  args = parser.parse_args()
  if not args.coordinator:
    main(args.folder, args.weights, args.pauses[0], os.getpid(), 0)
  else:
    launch = processes.Launch(
      coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
    with processes.joined(launch):
      jax.devices()  # which no process finds before all look
      main(args.folder, args.weights, args.pauses[args.process], args.process,
           args.behind if args.process == 0 else 0)
