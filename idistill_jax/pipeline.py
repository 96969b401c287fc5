"""The table of contents: corpus and queries in, a better ranker and retriever out.

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --dry_run
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --compile_only=v5e:4x4
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart --estimate

`flow` has the stages, in order.  Each reads folders of earlier ones and writes its own; finished stages are skipped, a
killed run continues.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags, logging

from idistill_jax import amounts, cli, config, dry_run, flow, processes
from idistill_jax.data import tables
from idistill_jax.llm import session
from idistill_jax.report import claims, terminal
from idistill_jax.retrieval import answers, leakage, measures, summary, systems
from idistill_jax.stages import collection
from idistill_jax.workdir import anew, artifacts, inputs, outside

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the stages would read, write, ask and take; do nothing.")
_COMPILE_ONLY = flags.DEFINE_string(
  "compile_only", None, "A TPU slice, as v5e:4x4, or GPUs, h100 or h100:8, which need not be here: compile the "
  "training steps and the encoding for it, print what they need, end with an error where one does not fit; do nothing.")


def run(runner: cli.Runner) -> None:
  """Runs every stage that is asked for and not done, then prints what came out."""
  stages = [stage for stage in flow.STAGES.values() if stage.asked_for(runner.cfg)]
  processes.once(lambda: _check_paths(runner, stages))
  done = processes.once(lambda: all(runner.workdir.is_done(stage, runner.cfg) for stage in stages), "a look at all")
  if not done:
    # Not above: it imports JAX, seconds that a run with nothing to do, or a misspelt flag, need not wait for.
    from idistill_jax import ahead

    ahead.check(runner)
  for stage in stages:
    runner.run(stage)
    if stage.name == "collection":
      processes.once(lambda: check(runner), "a look at the collection")
      if not done:
        processes.once(lambda: warn_of_leakage(runner), "a look at its queries")
        ahead.check_index(runner)
  processes.once(lambda: terminal.print_summary(runner.workdir))


def _check_paths(runner: cli.Runner, stages: Sequence[artifacts.Stage]) -> None:
  """What a stage would only come to after hours: raises FileExistsError for a folder of another's, FileNotFoundError
  for a file that is not there, and RunError for the files of `evaluate.runs`."""
  for stage in stages:
    runner.workdir.refuse_foreign(stage.name)
  systems.run_files(runner.cfg)
  read = runner.cfg.collection
  if read.path is not None and read.source not in ("stdlib", "ir_datasets") and not outside.at(read.path).exists():
    raise FileNotFoundError(f"{read.path}: collection.path names nothing that is there")
  for field, path in (("collection.rankings", read.rankings), ("collection.rankings_shown", read.rankings_shown),
                      ("candidates.run", runner.cfg.candidates.run)):
    if path is not None:
      outside.file(path, field)


def check(runner: cli.Runner) -> None:
  """Raises ConfigError where the collection has nothing to train on, nothing to measure by, not what the main measure
  wants, or nothing to hold a reader's answers against, and MeasureError where no grade counts as relevant.

  Why not in the stage: which split is measured is no part of its key, as it changes nothing of what it writes.
  """
  split, manifest = runner.cfg.evaluate.split, runner.workdir.manifest("collection") or {}
  queries = manifest["counts"]["queries"]
  where, folder = f"{runner.workdir.stated}/collection", runner.workdir.folder("collection")
  if not queries.get("train"):
    raise config.ConfigError(f"{where}: {collection.no_training_queries(queries, runner.cfg.collection)}")
  if runner.cfg.retriever.teacher == "pairs" and not (folder / tables.SOURCES).exists():
    raise config.ConfigError(f"{where}: retriever.teacher is 'pairs', and no query there comes with the passage that "
                             "it was written for; take ranker, llm or both")
  judged = tables.load_some_qrels(folder, split)
  measures.check_grades(judged, runner.cfg.evaluate.relevant_from)
  reader = bool(systems.ANSWERED[runner.cfg.answer.systems])
  stated = runner.cfg.evaluate.main_measure
  if judged and not reader and stated in (None, *measures.NAMES):
    return
  known = tables.load_answers(folder)
  answered = {one.id for one in tables.load_queries(folder).of_split(split) if one.id in known}
  if not judged and not answered:
    raise config.ConfigError(
      f"{where}: no query of the split {split!r} has judgements or answers, so nothing could be measured"
      f"{_how_to_measure(runner.cfg, manifest['counts'], _lost(folder, manifest['drops']))}"
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


def warn_of_leakage(runner: cli.Runner) -> None:
  """Says before anything is paid for that test queries train, too; `evaluate` says it of what was trained."""
  folder, cfg = runner.workdir.folder("collection"), runner.cfg.evaluate
  queries, judged = tables.load_queries(folder), tables.load_some_qrels(folder, cfg.split)
  trained = tables.load_some_qrels(folder, "train")
  known = leakage.rights((judged, trained), tables.load_answers(folder), cfg.relevant_from)
  test = [query for query in queries.of_split(cfg.split) if not judged or query.id in judged]
  found = leakage.check(test, queries.of_split("train"), judged, (), cfg.relevant_from, known)
  if (said := claims.leak(found.as_json())) is not None:
    logging.warning("%s", said)


def _lost(folder: pathlib.Path, drops: Mapping[str, Mapping[str, Any]]) -> str:
  """What was left out of the judgements that were read, and whether their columns are the other way round."""
  said, passages, queries = [], tables.load_passages(folder), tables.load_queries(folder)
  for reason, drop in drops.items():
    if reason.startswith("judgement "):
      pairs = [one.split() for one in drop["examples"]]
      swapped = all(first in passages and second in queries for first, second in pairs)
      said.append(f"{drop['count']} x {reason}, as {drop['examples'][0]!r}"
                  + " (the columns look swapped: a query's id comes before a passage's)" * swapped)
  return f"; left out, as ids are those of queries and corpus, were: {'; '.join(said)}" if said else ""


def _how_to_measure(cfg: config.Config, counts: Mapping[str, Any], lost: str) -> str:
  """What to do where no judgement is left for the split; lost: what is said of those that were left out."""
  split, source, queries = cfg.evaluate.split, cfg.collection, counts["queries"]
  if others := ", ".join(one for one in counts["judgements"] if one != "train"):
    return (f"{lost}; it has judgements for: {others}; name one with --config.evaluate.split, or add qrels/{split}.tsv "
            "to what is read")
  if lost:
    return lost
  if config.writes_queries(cfg):
    return (f"; it has queries for: {', '.join(queries)}, and of those that were written for {split!r} none was kept: "
            "raise --config.queries.passages or --config.queries.held_out")
  if sum(queries.values()) == 1:
    return "; there is one query, and one cannot be both trained on and measured: add more"
  if source.train_fraction is not None and queries.keys() == {"train"}:
    return f"; collection.train_fraction={source.train_fraction:g} took all {queries['train']} to train on: lower it"
  written = ("have the LLM write queries to measure by, and those that are there train: --config.queries.passages=700, "
             f"or --config=configs/my_corpus.py --config.collection.source={source.source}")
  if source.source not in ("beir", "jsonl", "tsv") or source.path is None:
    return f"; it has no judgements and no answers; {written}"
  stray = sorted(one.name for one in outside.at(source.path).glob("qrels*") if one.name != "qrels" or one.is_file())
  beside = f"; beside the corpus lies {', '.join(stray)}, which is not read: move it to" if stray else "; add"
  return f"{beside} qrels/{split}.tsv in {source.path}, or {written}"


def estimate(runner: cli.Runner) -> None:
  """Prints what asking would cost, counted where what a stage reads is done, else at most and what must run first."""
  looks = anew.Looks(runner.workdir, runner.cfg, flow.STAGES.values())
  for stage in flow.STAGES.values():
    if stage.name not in session.ASKING or not stage.asked_for(runner.cfg):
      continue
    print(f"\n{stage.name}:")
    first = {name: look for name, look in looks.before(stage.name).items() if look.state in ("to do", "anew")}
    if not first or looks.at(stage.name).state == "done":
      flow.module(stage.name).print_estimate(runner)
      continue
    commands = (f"{name}: {look}\n{inputs.made_by(name, runner.workdir.stated)}" for name, look in first.items())
    most = amounts.of(stage, runner, looks) or ["how much is asked is not known yet"]
    print("\n".join([*most, "to count it, there come first:", *commands]))


def asked_for(runner: cli.Runner) -> None:
  """What the flags ask for: a look ahead, or the work."""
  if _DRY_RUN.value:
    dry_run.show(runner, flow.STAGES.values())
  elif _COMPILE_ONLY.value is not None:
    from idistill_jax import compile_for  # not above, as `ahead` is not

    compile_for.check(runner.cfg, _COMPILE_ONLY.value)
  else:
    run(runner)


if __name__ == "__main__":
  cli.run_app(asked_for, estimate=estimate)
