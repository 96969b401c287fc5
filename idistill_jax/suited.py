"""Whether a collection has what a config wants of it: looked at as soon as it is there, before anybody is asked.

Why not in its stage: which split is measured, and how, is no part of that one's key, as it changes nothing of what it
writes.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from absl import logging

from idistill_jax import config
from idistill_jax.data import tables
from idistill_jax.report import claims
from idistill_jax.retrieval import answers, leakage, measures, summary, systems
from idistill_jax.stages import collection
from idistill_jax.workdir import artifacts, outside


def check(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  """Raises ConfigError where the collection has nothing to train on, nothing to measure by, not what the main measure
  wants, or nothing to hold a reader's answers against, and MeasureError where no grade counts as relevant.
  """
  split, manifest = cfg.evaluate.split, workdir.manifest("collection") or {}
  queries = manifest["counts"]["queries"]
  where, folder = f"{workdir.stated}/collection", workdir.folder("collection")
  if not queries.get("train"):
    raise config.ConfigError(f"{where}: {collection.no_training_queries(queries, cfg)}")
  if cfg.retriever.teacher == "pairs" and not (folder / tables.SOURCES).exists():
    raise config.ConfigError(f"{where}: retriever.teacher is 'pairs', and no query there comes with the passage that "
                             "it was written for; take ranker, llm or both")
  judged = tables.load_some_qrels(folder, split)
  measures.check_grades(judged, cfg.evaluate.relevant_from)
  reader = bool(systems.ANSWERED[cfg.answer.systems])
  stated = cfg.evaluate.main_measure
  if judged and not reader and stated in (None, *measures.NAMES):
    return
  known = tables.load_answers(folder)
  answered = {one.id for one in tables.load_queries(folder).of_split(split) if one.id in known}
  if not judged and not answered:
    raise config.ConfigError(
      f"{where}: no query of the split {split!r} has judgements or answers, so nothing could be measured"
      f"{_how_to_measure(cfg, manifest['counts'], _lost(folder, manifest['drops']))}"
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


def warn_of_leakage(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  """Says before anything is paid for that test queries train, too; `evaluate` says it of what was trained."""
  folder, evaluate = workdir.folder("collection"), cfg.evaluate
  queries, judged = tables.load_queries(folder), tables.load_some_qrels(folder, evaluate.split)
  trained = tables.load_some_qrels(folder, "train")
  known = leakage.rights((judged, trained), tables.load_answers(folder), evaluate.relevant_from)
  test = [query for query in queries.of_split(evaluate.split) if not judged or query.id in judged]
  found = leakage.check(test, queries.of_split("train"), judged, (), evaluate.relevant_from, known)
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
