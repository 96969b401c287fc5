"""Stages up to the evaluation, as `python -m accelerated` with a stage's flags; work is cut small enough to share."""

from absl import flags

from idistill_jax import cli, pipeline
from idistill_jax.train import pieces

STAGES = flags.DEFINE_list("stages", [
  "collection", "candidates", "labels", "train_direct", "train_ranker", "scores", "train_retriever", "index",
  "evaluate"], "Which of them.")

if __name__ == "__main__":
  pieces.LEAST = 64
  cli.run_app(lambda runner: [runner.run(stage) for stage in pipeline.STAGES if stage.name in STAGES.value])
