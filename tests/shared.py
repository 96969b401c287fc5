"""Lists read and written as one process of a job: `python -m shared FOLDER`.  Each says what it has read for either."""

import json
import pathlib
from unittest import mock

import jobs
import numpy as np

from idistill_jax import by_row, config, processes, records
from idistill_jax.data import example
from idistill_jax.train import pieces, shares
from idistill_jax.workdir import artifacts

LISTS = 21


def write_lists(folder: pathlib.Path) -> None:
  example.write_records(folder, "lists", (
    records.ScoredList(query_id=f"q{i}", passage_ids=tuple(f"p{j}" for j in range(i % 4)), scores=(float(i),) * (i % 4))
    for i in range(LISTS)
  ), shards=3)


def share(folder: pathlib.Path, out: pathlib.Path) -> tuple[dict[str, np.ndarray], list[int], list[int]]:
  """Arrays of all lists but every fifth, which lists were read for them, and which for the shards in `out`."""
  job = artifacts.Job(cfg=config.Config(name="test"), out=out, inputs={}, cache=out)
  lists, asked = example.open_records(folder, "lists", records.ScoredList), list[int]()
  some = by_row.Each(lambda i: (asked.append(i), None if i % 5 == 4 else lists[i])[1], range(LISTS))
  arrays = shares.read(job, "lists", some, lambda those: {
    "scores": np.array([score for one in those for score in one.scores], np.float32)})
  for_arrays, asked[:] = asked[:], []
  with mock.patch.object(pieces, "LEAST", 4):
    shares.write(job, "again", some)
  return dict(arrays), for_arrays, asked


def main(folder: pathlib.Path) -> None:
  arrays, *read = share(folder, folder / "out")
  np.savez(folder / f"{processes.index()}.npz", **arrays)
  (folder / f"{processes.index()}.json").write_text(json.dumps(read))


if __name__ == "__main__":
  args = jobs.parser().parse_args()
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  with processes.joined(launch):
    main(args.folder)
