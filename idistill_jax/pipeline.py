"""The table of contents: corpus and queries in, a better ranker and retriever out.

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --dry_run
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --compile_only=v5e:4x4
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart --estimate

Each stage reads folders of earlier ones and writes its own; finished stages are skipped, a killed run continues.
"""

import dataclasses

from absl import flags, logging

from idistill_jax import artifacts, cli, compile_for, config, dry_run, processes, sharding
from idistill_jax.data import tables
from idistill_jax.hf import prompts, weights
from idistill_jax.models import dual_encoder
from idistill_jax.report import terminal
from idistill_jax.retrieval import answers, measures, summary
from idistill_jax.stages import (
  answer,
  candidates,
  collection,
  evaluate,
  export,
  index,
  labels,
  queries,
  report,
  scores,
  train_direct,
  train_ranker,
  train_retriever,
)
from idistill_jax.train import networks

STAGES = (
  queries.STAGE,          # the LLM writes queries, where a corpus has none (off unless asked for)
  collection.STAGE,       # corpus, queries, judgements, in one form
  candidates.STAGE,       # the initial retriever's top passages for each query
  labels.STAGE,           # the LLM puts lists in order
  train_direct.STAGE,     # the control: a dual encoder learns that order itself
  train_ranker.STAGE,     # a cross-encoder learns it (ListMLE)
  scores.STAGE,           # it scores more and deeper lists than the LLM saw
  train_retriever.STAGE,  # a dual encoder learns the ranker's distribution (KL)
  index.STAGE,            # its embeddings of the corpus, searchable
  evaluate.STAGE,         # before and after, with tests
  answer.STAGE,           # a reader LLM answers from what each system found
  export.STAGE,           # Hugging Face folders
  report.STAGE,           # one page to look at
)

ESTIMATES = (
  (queries.STAGE, queries.print_estimate), (labels.STAGE, labels.print_estimate), (answer.STAGE, answer.print_estimate),
)

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the stages would read, write, ask and take; do nothing.")
_COMPILE_ONLY = flags.DEFINE_string(
  "compile_only", None, "A TPU slice, as v5e:4x4, or h100, which need not be here: compile the training steps and the "
  "encoding for it, print what they need, end with an error where one does not fit; do nothing.")


def run(runner: cli.Runner) -> None:
  """Runs every stage that is asked for and not done, then prints what came out."""
  processes.once(lambda: _check_paths(runner))
  # A large corpus takes hours until weights are first read, and a name on the Hub may be misspelt.
  processes.once(lambda: _check_weights(runner.cfg.encoder), "the weights")
  _check_mesh(runner)
  for stage in STAGES:
    if stage.asked_for(runner.cfg):
      runner.run(stage)
    if stage is collection.STAGE:
      processes.once(lambda: check(runner), "a look at the collection")
  processes.once(lambda: terminal.print_summary(runner.workdir))


def _check_paths(runner: cli.Runner) -> None:
  """What a stage would only come to after hours: raises FileExistsError for a folder of another's, FileNotFoundError
  and RunError for the files of `evaluate.runs`."""
  for stage in STAGES:
    if stage.asked_for(runner.cfg):
      runner.workdir.refuse_foreign(stage.name)
  evaluate.run_files(runner.cfg)


def _check_weights(cfg: config.Encoder) -> None:
  folder = weights.resolve(cfg.weights)
  weights.check(dataclasses.replace(cfg, weights=str(folder)))
  if not dual_encoder.read_embedding_config(folder, cfg.normalize).normalize:
    logging.info("retrievers compare by inner products: embeddings keep their lengths")
  if (found := prompts.read(folder, cfg)).any:
    logging.info("retrievers read %r before each query and %r before each passage", found.query, found.passage)


def _check_mesh(runner: cli.Runner) -> None:
  """Raises sharding.ShardingError for a mesh that a network still to be trained cannot lie on: not after its labels."""
  cfg, trained = runner.cfg, (train_direct.STAGE, train_ranker.STAGE, train_retriever.STAGE)
  if processes.once(lambda: all(runner.workdir.is_done(stage, cfg) for stage in trained), "a look at the trainings"):
    return
  # By all: whoever first asks for the devices waits until the other processes have told of theirs.
  mesh = sharding.make_mesh(cfg.mesh)
  for network in (networks.retriever(cfg.encoder), networks.ranker(cfg.encoder, cfg.ranker.head)):
    network.shardings(mesh)


def check(runner: cli.Runner) -> None:
  """Raises ConfigError where the collection has nothing to train on, nothing to measure by, not what the main measure
  wants, or nothing to hold a reader's answers against.

  Why not in the stage: which split is measured is no part of its key, as it changes nothing of what it writes.
  """
  split, counts = runner.cfg.evaluate.split, (runner.workdir.manifest("collection") or {})["counts"]
  where, folder = f"{runner.workdir.stated}/collection", runner.workdir.folder("collection")
  if not counts["queries"].get("train"):
    raise config.ConfigError(f"{where}: {collection.NO_TRAINING_QUERIES}")
  judged = tables.load_some_qrels(folder, split)
  reader = bool(answer.SYSTEMS[runner.cfg.answer.systems])
  stated = runner.cfg.evaluate.main_measure
  if judged and not reader and stated in (None, *measures.NAMES):
    return
  known = tables.load_answers(folder)
  answered = {one.id for one in tables.load_queries(folder).of_split(split) if one.id in known}
  if not judged and not answered:
    there = ", ".join(one for one in counts["judgements"] if one != "train") or "none"
    raise config.ConfigError(
      f"{where}: no query of the split {split!r} has judgements or answers, so nothing could be measured; it has "
      f"judgements for: {there}; name one with --config.evaluate.split, or add qrels/{split}.tsv to what is read"
    )
  # Where there are judgements, what they do not name is not measured.
  if judged:
    answered &= judged.keys()
  summary.main_measure(measures.NAMES * bool(judged) + answers.NAMES * bool(answered), stated)
  if reader and not answered:
    raise config.ConfigError(
      f"{where}: no query of the split {split!r} that is measured has answers, so nothing could be said of a reader's; "
      "ask none with --config.answer.systems=none"
    )


def estimate(runner: cli.Runner) -> None:
  """Prints what asking would cost, counted where what a stage reads is there, else at most and what must run first."""
  for stage, print_estimate in ESTIMATES:
    if stage.asked_for(runner.cfg):
      print(f"\n{stage.name}:")
      try:
        print_estimate(runner)
      except artifacts.MissingInputError as e:
        print("\n".join([*dry_run.amounts(stage, runner), f"to count it: {e}"]))


def asked_for(runner: cli.Runner) -> None:
  """What the flags ask for: a look ahead, or the work."""
  if _DRY_RUN.value:
    dry_run.show(runner, STAGES)
  elif _COMPILE_ONLY.value is not None:
    compile_for.check(runner.cfg, _COMPILE_ONLY.value)
  else:
    run(runner)


if __name__ == "__main__":
  cli.run_app(asked_for, estimate=estimate)
