"""Before and after: initial retriever, BM25, the LLM's order learned directly, ranker and distilled retriever.

    python -m idistill_jax.stages.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, train_direct, train_ranker, train_retriever, index -> metrics.json, runs/<system>.trec,
per_query.csv.
"""

import json

import numpy as np

from idistill_jax import artifacts, cli, records
from idistill_jax.data import similarity, tables
from idistill_jax.retrieval import bm25, exact, index, measures, rerank, runs, summary
from idistill_jax.train import inference

METRICS, PER_QUERY, RUNS = "metrics.json", "per_query.csv", "runs"
# The first system is tested against the second.
TESTS = (
  ("distilled", "initial"), ("ranker", "initial"), ("direct", "initial"), ("distilled", "direct"), ("ranker", "direct"),
  ("distilled", "bm25"), ("ranker", "distilled"),
)
# How many of exact search's best ScaNN is asked to find.
HONESTY_DEPTH = 100


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.evaluate
  passages = tables.load_passages(job.inputs["collection"])
  table = tables.load_queries(job.inputs["collection"])
  qrels = tables.load_qrels(job.inputs["collection"], cfg.split)
  queries = judged_queries(job, table, qrels)
  ids, texts = [query.id for query in queries], [query.text for query in queries]

  rows = np.array([table.row(query_id) for query_id in ids])
  initial, direct = (
    exact.Exact(embedded.passages_PxE, passages.ids).search(embedded.queries_QxE[rows], cfg.depth)
    for embedded in (similarity.load(job.inputs[stage]) for stage in ("candidates", "train_direct"))
  )

  by_terms = bm25.Bm25(passages.texts, passages.ids).search(texts, cfg.depth)

  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"])
  start = similarity.load(job.inputs[job.cfg.ranker.start_stage])
  reranked = rerank.rerank(ranker.score, texts, passages.texts, passages.ids, initial, cfg.rerank_depth,
                           start.of_lists(rows, initial.rows[:, :cfg.rerank_depth]))

  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"])
  distilled_QxE = retriever.encode_queries(texts)
  distilled = index.open_default(job.inputs["index"], passages.ids).search(distilled_QxE, cfg.depth)

  systems = {
    "initial": runs.from_hits(ids, passages.ids, initial),
    "bm25": runs.from_hits(ids, passages.ids, by_terms),
    "direct": runs.from_hits(ids, passages.ids, direct),
    "ranker": runs.from_order(dict(zip(ids, reranked, strict=True))),
    "distilled": runs.from_hits(ids, passages.ids, distilled),
  }
  for name, found in systems.items():
    runs.write_trec(job.out / RUNS / f"{name}.trec", found, name)
  judged = {query_id: qrels[query_id] for query_id in ids}
  measured = {name: measures.per_query(judged, found) for name, found in systems.items()}
  summary.write_per_query(job.out / PER_QUERY, measured)
  metrics = {
    "split": cfg.split,
    "queries": len(queries),
    **summary.summarise(measured, TESTS, cfg.resamples),
    "ann": index.honesty(job.inputs["index"], passages.ids, distilled_QxE, HONESTY_DEPTH, job.cfg.index),
    "dropped_queries": sum(len(what) for what in job.drops.values()),
  }
  (job.out / METRICS).write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(
    queries=len(queries), **{f"{name} MRR@10": metrics["systems"][name]["MRR@10"] for name in systems}
  )


def judged_queries(job: artifacts.Job, table: tables.Queries, qrels: tables.Qrels) -> list[records.Query]:
  """Queries of the split that have judgements, in collection order; the others are dropped and counted.

  Raises ValueError where none is left, and where `evaluate.depth` is too shallow for the measures.
  """
  split = table.of_split(job.cfg.evaluate.split)
  for query in split:
    if query.id not in qrels:
      job.drop("query without judgements", query.id)
  known = {query.id for query in split}
  for query_id in qrels:
    if query_id not in known:
      job.drop("judgements of a query that the split does not hold", query_id)
  queries = [query for query in split if query.id in qrels]
  if not queries:
    raise ValueError(
      f"no query of the split {job.cfg.evaluate.split!r} has judgements "
      f"({len(split)} queries, {len(qrels)} judged ids)"
    )
  deepest = max(measures.cutoff(name) for name in measures.NAMES)
  if job.cfg.evaluate.depth < deepest:
    raise ValueError(
      f"evaluate.depth is {job.cfg.evaluate.depth}, but the measures look {deepest} places deep"
    )
  return queries


STAGE = artifacts.Stage(
  name="evaluate",
  reads=("collection", "candidates", "train_direct", "train_ranker", "train_retriever", "index"),
  config=("encoder", "ranker", "index", "evaluate"),
  run=run,
)

if __name__ == "__main__":
  cli.main(STAGE)
