"""Stages up to the evaluation, as `python -m accelerated` with a stage's flags; work is cut small enough to share, and
every process says what it did of it.
"""

from absl import flags

from idistill_jax import cli, pipeline
from idistill_jax.train import pieces

STAGES = flags.DEFINE_list("stages", [
  "collection", "candidates", "labels", "train_direct", "train_ranker", "scores", "train_retriever", "index",
  "evaluate"], "Which of them.")

if __name__ == "__main__":
  pieces.LEAST = 64
  finish = pieces.Pieces.finish
  pieces.Pieces.finish = lambda work, piece, made: (print("finished", work._name, piece), finish(work, piece, made))[1]
  cli.run_app(lambda runner: [runner.run(stage) for stage in pipeline.STAGES if stage.name in STAGES.value])
