"""160 pairs through the untrained ranker, as one process of a job: `python -m scored FOLDER WEIGHTS`.

Each writes which passages it has read and which pairs it has finished, and makes at least one piece.
"""

import json
import pathlib
from typing import Any
from unittest import mock

import encoded
import numpy as np
import tiny_world

from idistill_jax import config, processes
from idistill_jax.data import pack
from idistill_jax.train import inference, pieces
from idistill_jax.workdir import artifacts

QUERIES, PASSAGES = encoded.TEXTS[:40], encoded.TEXTS[40:200]
QUERY_OF, PASSAGE_OF = np.arange(160) // 4, np.random.default_rng(0).permutation(160)
# Pairs whose lengths every process looks at beforehand.
SAMPLE = 4


class Recorded(list):
  """Texts, and the rows that were read of them."""

  def __init__(self, texts: list[str]):
    super().__init__(texts)
    self.read: list[int] = []

  def __getitem__(self, row: Any) -> Any:
    self.read.append(int(row))
    return super().__getitem__(row)


def scores(weights: str, folder: pathlib.Path | None, passages: list[str]) -> np.ndarray:
  """folder: keeps the pieces."""
  cfg = config.Config(name="test", encoder=tiny_world.encoder(weights))
  job = folder and artifacts.Job(cfg=cfg, out=folder, inputs={}, cache=folder)
  with mock.patch.object(pieces, "LEAST", 16), mock.patch.object(pack, "SAMPLE", SAMPLE):
    return inference.load_ranker(cfg, None, job).score_rows(
      QUERIES, passages, QUERY_OF, PASSAGE_OF, np.zeros(len(QUERY_OF)))


def main(folder: pathlib.Path, weights: str) -> None:
  finish, finished, passages = pieces.Pieces.finish, [], Recorded(PASSAGES)

  def together(work: pieces.Pieces, piece: range, *made: Any) -> None:
    if not finished:
      processes.meet("a piece each")
    finished.extend(piece)
    finish(work, piece, *made)

  with mock.patch.object(pieces.Pieces, "finish", together):
    np.save(folder / f"scores {processes.index()}.npy", scores(weights, folder, passages))
  (folder / f"read {processes.index()}.json").write_text(json.dumps({"read": passages.read, "finished": finished}))


if __name__ == "__main__":
  import trained

  args = trained.parser.parse_args()
  with processes.joined(processes.Launch(
      coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)):
    main(args.folder, args.weights)
