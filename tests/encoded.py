"""600 texts through the untrained retriever, as one process of a job: `python -m encoded FOLDER WEIGHTS`."""

import pathlib
import sys
import time

import numpy as np
import tiny_world

from idistill_jax import config
from idistill_jax.train import inference, pieces

TEXTS = [" ".join(np.random.default_rng(i).choice(tiny_world.WORDS, 2 + i % 7)) for i in range(600)]


def encode(weights: str, folder: pathlib.Path | None) -> np.ndarray:
  cfg = config.Config(name="test", encoder=tiny_world.encoder(weights))
  return inference.load_retriever(cfg, None, folder).encode_passages(TEXTS)


if __name__ == "__main__":
  import trained

  from idistill_jax import processes

  args = trained.parser.parse_args()
  pieces.LEAST = 32
  finish = pieces.Pieces.finish
  pieces.Pieces.finish = lambda *a: (time.sleep(args.pause), finish(*a))[1]
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  with processes.joined(launch):
    encode(args.weights, args.folder)
  sys.exit(0)
