"""The data flow on one page: every stage in order, what it reads, and what its result depends on.

Nothing here imports JAX: a stage's module in `idistill_jax.stages` is imported when it is run.
"""

import dataclasses
import importlib
import types
from collections.abc import Mapping
from typing import Any

from idistill_jax import config, fingerprints
from idistill_jax.workdir import artifacts


def module(stage: str) -> types.ModuleType:
  """Where the stage's work is: `run(job)`, and `print_estimate(runner)` where it asks an LLM."""
  return importlib.import_module(f"idistill_jax.stages.{stage}")


def _read_by(stages: Mapping[str, artifacts.Stage]) -> dict[str, artifacts.Stage]:
  """The stages, each with those that read it."""
  readers = lambda name: tuple(one.name for one in stages.values() if name in (*one.reads, *one.reads_if))
  return {name: dataclasses.replace(stage, read_by=readers(name)) for name, stage in stages.items()}


def _stage(name: str, **declared: Any) -> artifacts.Stage:
  return artifacts.Stage(name=name, run=lambda job: module(name).run(job), **declared)


# By name, all but the page that shows them; fields are as `artifacts.Stage` says.
SHOWN = _read_by({stage.name: stage for stage in (
  # The LLM writes queries, where a corpus has none (off unless asked for).
  _stage("queries", reads=(), config=("queries", "collection", "encoder", "labels", "seed"),
         fingerprint=fingerprints.queries, asked_for=config.writes_queries, together=True),

  # Corpus, queries, judgements, in one form.
  _stage("collection", reads=(), reads_if={"queries": config.writes_queries}, config=("collection",),
         fingerprint=fingerprints.collection),

  # The initial retriever's top passages for each query.
  _stage("candidates", reads=("collection",), config=("encoder", "candidates"),
         fingerprint=fingerprints.candidates, together=True),

  # The LLM puts lists in order.
  _stage("labels", reads=("collection", "candidates"), config=("labels", "seed"), fingerprint=fingerprints.labels),

  # The control: a dual encoder learns that order itself.
  _stage("train_direct", reads=("collection", "candidates", "labels"), config=("encoder", "direct", "seed"),
         fingerprint=fingerprints.weights, together=True),

  # A cross-encoder learns it (ListMLE).
  _stage("train_ranker", reads=("collection", "candidates", "labels", "train_direct"),
         config=("encoder", "ranker", "seed"), fingerprint=fingerprints.ranker, together=True),

  # It scores more and deeper lists than the LLM saw.
  _stage("scores", reads=("collection", "candidates", "labels", "train_direct", "train_ranker"),
         config=("encoder", "ranker", "scores"), together=True),

  # A dual encoder learns the ranker's distribution (KL).
  _stage("train_retriever", reads=("collection", "candidates", "labels", "train_direct", "scores"),
         config=("encoder", "retriever", "seed"), fingerprint=fingerprints.weights, together=True),

  # Its embeddings of the corpus, searchable.
  _stage("index", reads=("collection", "labels", "train_retriever"), config=("encoder", "index"),
         fingerprint=config.not_tuned_on, together=True),

  # Before and after, with tests.
  _stage("evaluate",
         reads=("collection", "candidates", "labels", "train_direct", "train_ranker", "train_retriever", "index"),
         reads_if={"queries": config.writes_queries}, config=("encoder", "ranker", "index", "evaluate"),
         fingerprint=fingerprints.evaluate, together=True),

  # Hugging Face folders.
  _stage("export", reads=("collection", "labels", "train_direct", "train_ranker", "train_retriever", "evaluate"),
         config=("name", "seed", "encoder", "labels", "direct", "ranker", "retriever", "evaluate", "export")),

  # A reader LLM answers from what each system found.  Behind the export: a quota keeps nobody from the models.
  _stage("answer", reads=("collection", "evaluate"), config=("answer", "labels", "evaluate"),
         fingerprint=fingerprints.answer),
)})

STAGES = SHOWN | {
  # One page to look at, which shows all of them and the whole config.
  "report": _stage("report", reads=tuple(name for name in SHOWN if name != "queries"),
                   reads_if={"queries": config.writes_queries},
                   config=tuple(field.name for field in dataclasses.fields(config.Config)), shows=True),
}

# Those that learn, each a model of its own.
TRAININGS = ("train_direct", "train_ranker", "train_retriever")
