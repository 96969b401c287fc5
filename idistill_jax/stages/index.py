"""The distilled retriever's embeddings of the corpus, made searchable.

    python -m idistill_jax.stages.index --config=configs/quickstart.py --workdir=runs/quickstart

collection, labels, train_retriever -> passages.npy ([P, E], collection order), and where ScaNN is used scann/, tuned to
`index.recall_target` on queries that were held out, as `tuned_on` says, and tuned_on.json (their ids).
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from idistill_jax import cli, config, flow, processes, records, sharding
from idistill_jax.data import deal, example, tables
from idistill_jax.retrieval import ann, compact, index
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

# What queries for tuning are, as the manifest counts them, and the file of their ids.
TUNED_ON, DEV, UNUSED, USED = "tuned on", "dev", "unused train", "used train"
TUNING = "tuned_on.json"
# With fewer that were held out, those that training learned from make up for what lacks.
ENOUGH = 100


def run(job: artifacts.Job) -> None:
  passage_ids, tuned, passages_PxE, queries_QxE = encode(job)
  if tuned:
    job.count(**{TUNED_ON: {what: len(queries) for what, queries in tuned.items()}})
    ids = {what: [query.id for query in queries] for what, queries in tuned.items()}
    processes.once(lambda: (job.out / TUNING).write_text(json.dumps(ids) + "\n", encoding="utf-8"))
  made = index.write(job.out, passages_PxE, passage_ids, job.cfg.index, queries_QxE, sharding.make_mesh(job.cfg.mesh))
  job.count(passages=len(passage_ids), **made)


def encode(job: artifacts.Job) -> tuple[Sequence[str], Mapping[str, list[records.Query]], np.ndarray, np.ndarray]:
  """Passage ids, queries as of `tuned_on`, the embeddings of both, float32 [P, E] and [Q, E]: all that helpers do."""
  passages = tables.load_passages(job.inputs["collection"])
  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"], job)
  tuned: dict[str, list[records.Query]] = {}
  if index.choose(job.cfg.index.kind, len(passages)) == "scann":
    ann.check_runs()  # before the corpus is encoded
    found = processes.once(lambda: {what: [dataclasses.asdict(query) for query in queries]
                                    for what, queries in tuned_on(job.cfg, job.inputs).items()}, "queries to tune on")
    tuned = {what: [records.Query(**query) for query in queries] for what, queries in found.items()}
  if USED in tuned and processes.is_first():
    held_out = sum(len(queries) for what, queries in tuned.items() if what != USED)
    logging.warning(
      "ScaNN is tuned on %d queries that training learned from, as no more than %d were held out: it may find less of "
      "others than it says; queries of a split dev, unless it is measured, would be taken first", len(tuned[USED]),
      held_out)
  queries_QxE = retriever.encode_queries([query.text for queries in tuned.values() for query in queries])
  passages_PxE = retriever.encode_passages(passages.texts, into=job.out / compact.VECTORS)
  return passages.ids, tuned, passages_PxE, queries_QxE


def tuned_on(cfg: config.Config, inputs: Mapping[str, pathlib.Path]) -> dict[str, list[records.Query]]:
  """Queries that ScaNN is tuned on, by what they are; at most `index.tuning_queries`, none of test, and none of the
  split that is measured.

  Those of dev; where they are few, those of train that neither the LLM nor the teacher gave a list; and of those that
  have one no more than make up ENOUGH: of what the retriever learned from, it finds more than of others.
  """
  table, measured = tables.load_queries(inputs["collection"]), config.not_tuned_on(cfg)
  dev, train = ([] if split == measured else _drawn(table.of_split(split)) for split in ("dev", "train"))
  taught = _taught(inputs)
  parts = {
    DEV: dev,
    UNUSED: [query for query in train if query.id not in taught],
    USED: [query for query in train if query.id in taught],
  }
  found: dict[str, list[records.Query]] = {}
  left = cfg.index.tuning_queries
  for what, queries in parts.items():
    if what == USED:
      left = min(left, ENOUGH - (cfg.index.tuning_queries - left))
    if kept := queries[: max(0, left)]:
      found[what] = kept
      left -= len(kept)
  return found


def _drawn(queries: Iterable[records.Query]) -> list[records.Query]:
  """In an order that has nothing to do with the collection's, and is the same at any time."""
  return sorted(queries, key=lambda query: deal.drawn(query.id))


def _taught(inputs: Mapping[str, pathlib.Path]) -> set[str]:
  """Ids of the queries whose lists training learned from."""
  teacher = example.read_records(inputs["train_retriever"], artifacts.TEACHER, records.ScoredList)
  # Not all of these are in the teacher's: it may score other queries' lists alone.
  ordered = example.read_records(inputs["labels"], artifacts.RANKINGS, records.RankedList)
  return {one.query_id for lists in (teacher, ordered) for one in lists}


if __name__ == "__main__":
  cli.main(flow.STAGES["index"])
