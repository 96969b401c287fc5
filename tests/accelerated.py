"""Stages up to the evaluation, as `python -m accelerated` with a stage's flags; work is cut small enough to share, and
every process says what it did of it, which shards it wrote, how much of a corpus its devices hold, and whether it
indexes the corpus's terms.
"""

import itertools
import time
from typing import Any

from absl import flags

from idistill_jax import cli, flow, processes
from idistill_jax.data import example
from idistill_jax.retrieval import bm25, exact
from idistill_jax.train import loop, pieces

STAGES = flags.DEFINE_list("stages", [
  "collection", "candidates", "labels", "train_direct", "train_ranker", "scores", "train_retriever", "index",
  "evaluate"], "Which of them.")
HANG = flags.DEFINE_integer("hang", None, "Which process stops before the fourth step.")
PAUSE = flags.DEFINE_float("pause", 0.0, "Seconds before each step.")


def stopping(place: Any, placed: itertools.count) -> Any:
  # The first batch is placed twice: once to compile for it.
  wait = lambda: time.sleep(3600 if HANG.value == processes.index() and next(placed) == 4 else PAUSE.value)
  return lambda *batch: (wait(), place(*batch))[1]


if __name__ == "__main__":
  pieces.LEAST, pieces.MOST = 20, 7
  finish = pieces.Pieces.finish
  pieces.Pieces.finish = lambda work, piece, *made: (
    print("finished", work._name, piece), finish(work, piece, *made))[1]
  loop.place = stopping(loop.place, itertools.count())
  spread, indexed = exact._spread, bm25.Bm25.__init__

  def telling(*what):
    made = spread(*what)
    print("holds", sum(shard.data.size for shard in made.addressable_shards) / made.size, "of a block")
    return made

  exact._spread = telling
  write = example.write_shard
  example.write_shard = lambda *what: (path := write(*what), print("wrote", path.parent.name, path.name))[0]
  bm25.Bm25.__init__ = lambda *what: (print("indexes terms"), indexed(*what))[1]
  cli.run_app(lambda runner: [runner.run(stage) for name, stage in flow.STAGES.items() if name in STAGES.value])
