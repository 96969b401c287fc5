"""corpus, queries (given or written), judgements -> one folder that every later stage reads.

    python -m idistill_jax.stages.collection --config=configs/quickstart.py --workdir=runs/quickstart

Writes `passages-*.tfrecord`, `passages.*.npy` (where each of them is), `queries-*.tfrecord`, `qrels/<split>.tsv` and
`collection.json` (what a report shows); where the source brings them, also `lists-*.tfrecord` (candidate lists recorded
elsewhere), `rankings-*.tfrecord` (LLM rankings made elsewhere), `answers-*.tfrecord` (accepted answers) and
`sources.tsv` (generated query-passage pairs, for the contrastive baseline alone).
"""

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from idistill_jax import cli, config, flow, records
from idistill_jax.data import collection, corpora, example, subset, tables
from idistill_jax.data.corpora import rankings
from idistill_jax.workdir import artifacts

STATISTICS = "collection.json"
_RECORDS_PER_SHARD = 50_000


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.collection
  whole = corpora.SOURCES[cfg.source].load(cfg)
  if cfg.train_fraction is not None:
    whole = subset.divide(whole, cfg.train_fraction)
  whole = rankings.add(_with_written_queries(whole, job), cfg)
  kept = subset.limited(whole, max_passages=cfg.max_passages, max_queries_per_split=cfg.max_queries_per_split)
  facts = statistics(kept)
  _write(job, tables.PASSAGES, kept.passages, facts["passages"])
  tables.note_places(job.out)
  _write(job, tables.QUERIES, kept.queries, len(kept.queries))
  if kept.lists:
    _write(job, tables.LISTS, kept.lists, len(kept.lists))
  if kept.rankings:
    _write(job, tables.RANKINGS, kept.rankings, len(kept.rankings))
  if kept.answers:
    answers = (records.Answers(query_id=one, answers=found) for one, found in kept.answers.items())
    _write(job, tables.ANSWERS, answers, len(kept.answers))
  for split, qrels in kept.qrels.items():
    if qrels:
      tables.write_qrels(job.out / "qrels" / f"{split}.tsv", qrels)
  if kept.pairs:
    tables.write_qrels(job.out / tables.SOURCES, kept.pairs)
  (job.out / STATISTICS).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(**facts)
  if not facts["queries"].get("train"):
    # No error here: for benchmarks of first stages there is nothing to train.
    logging.warning("%s: %s", facts["title"], no_training_queries(facts["queries"], job.cfg))
  for drop in kept.drops:
    job.drop(drop.reason, drop.what)


def _with_written_queries(whole: collection.Collection, job: artifacts.Job) -> collection.Collection:
  """The collection and what the stage `queries` wrote for it.

  What a training query was written for is a generated pair, as in the quickstart: nothing learns from it but the
  contrastive baseline.  Where the collection has queries of its own to measure by, no written one is measured beside
  them, or in their place: those of that split train.
  """
  if not config.writes_queries(job.cfg):
    if not whole.queries:
      raise collection.CollectionError(
        f"{whole.title}: a corpus without queries; have some written with --config.queries.passages=700"
      )
    return whole
  folder = job.inputs["queries"]
  qrels = {path.stem: tables.read_qrels(path) for path in sorted((folder / "qrels").glob("*.tsv"))}
  trained = {"train", *collection.measurable(whole)}
  pairs = {query_id: judged for split in trained for query_id, judged in qrels.pop(split, {}).items()}
  queries = (dataclasses.replace(query, split="train") if query.split in trained else query
             for query in tables.load_queries(folder))
  return collection.with_queries(whole, queries, qrels, pairs)


def _write(job: artifacts.Job, name: str, items: Iterable[Any], count: int) -> None:
  example.write_records(job.out, name, items, shards=-(-count // _RECORDS_PER_SHARD), count=count)


def no_training_queries(queries: Mapping[str, int], cfg: config.Config) -> str:
  """What to say where none trains.  queries: how many each split has."""
  count, fraction = sum(queries.values()), cfg.collection.train_fraction
  if config.writes_queries(cfg):
    # Why not train_fraction: it draws none of those that were written.
    what = (f"{count}, those that the LLM wrote among them, are left, all held out: queries/statuses.json says why "
            "others were dropped; raise --config.queries.passages, or lower --config.queries.held_out")
  elif count == 1:
    what = "there is one query, and one cannot be both trained on and measured: add more"
  elif fraction is not None:
    what = f"--config.collection.train_fraction={fraction:g} draws none of {count}; raise it, or add queries"
  else:
    what = "--config.collection.train_fraction=0.5 trains on half of the others, which are then not measured"
  return f"no training queries, so no list that an LLM could order; {what}"


def statistics(found: collection.Collection) -> dict[str, Any]:
  """Sizes that describe a collection to a reader; words are split at white space."""
  passages = words = 0
  for passage in found.passages:
    passages += 1
    words += len(passage.full_text.split())
  return {
    "title": found.title,
    "passages": passages,
    "mean_words": round(words / passages, 1),
    "queries": dict(sorted(collections.Counter(query.split for query in found.queries).items())),
    "judgements": {split: sum(map(len, qrels.values())) for split, qrels in found.qrels.items() if qrels},
    "lists": len(found.lists),
    **({"rankings": len(found.rankings)} if found.rankings else {}),
    **({"questions with answers": len(found.answers)} if found.answers else {}),
  }


if __name__ == "__main__":
  cli.main(flow.STAGES["collection"])
