"""A large corpus through every stage: seconds and host memory of each, and what its index finds of exact search.

    python -m benchmarks.corpus --passages=1000000 --workdir=runs/corpus

Vectors are as wide as BERT-base's and ScaNN is in shards, as for 21 million passages; so that two cores can, passages
have six words and the network one layer, drawn.  A query is words of a passage, which is the relevant one, and first of
its recorded order.  One JSON line a stage, each in a process of its own; run again, it goes on where it was.
"""

import json
import pathlib
from collections.abc import Sequence

from absl import app, flags

from benchmarks import alone, drawn
from idistill_jax import cli, config, extras, flow
from idistill_jax.workdir import artifacts

_PASSAGES = flags.DEFINE_integer("passages", 1_000_000, "Passages of the corpus.", lower_bound=2000)
_SHARDS = flags.DEFINE_integer("shards", 4, "Shards of ScaNN's index.", lower_bound=1)


def measure(cfg: config.Config, workdir: str, name: str) -> dict[str, object]:
  """Runs one stage, in the calling process."""
  here = artifacts.Workdir(workdir)
  cli.Runner(cfg, here, ()).run(flow.STAGES[name])
  manifest = here.manifest(name) or {}
  return {"stage": name, "seconds": manifest["seconds"], "peak_bytes": alone.most(), "counts": manifest["counts"],
          "versions": extras.versions()}


def main(argv: Sequence[str]) -> None:
  folder = pathlib.Path(flags.FLAGS.workdir).absolute()
  cfg = drawn.experiment(drawn.once(folder / "drawn", _PASSAGES.value), _PASSAGES.value, _SHARDS.value)
  for stage in flow.STAGES.values():
    if stage.asked_for(cfg):
      print(json.dumps(alone.call(measure, cfg, str(folder / "run"), stage.name)), flush=True)


if __name__ == "__main__":
  app.run(main)
