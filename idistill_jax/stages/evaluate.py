"""Before and after: first stages, the LLM's order learned directly, ranker and distilled retriever, with tests.

    python -m idistill_jax.stages.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct, train_ranker, train_retriever, index -> metrics.json, runs/<system>.trec,
per_query.csv.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence, Set

import numpy as np
from absl import logging

from idistill_jax import cli, flow, processes, records, sharding
from idistill_jax.data import example, similarity, tables
from idistill_jax.report import claims
from idistill_jax.retrieval import (
  answers,
  bm25,
  compact,
  exact,
  hits,
  index,
  itself,
  leakage,
  measures,
  rerank,
  runs,
  summary,
)
from idistill_jax.retrieval import systems as systems_lib
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

METRICS, PER_QUERY, PARQUET, RUNS = "metrics.json", "per_query.csv", "per_query.parquet", "runs"
# The first system is tested against the second, where both are measured; the first pair is the primary test.
TESTS = (
  ("distilled", "initial"),
  ("ranker", "initial"),
  ("direct", "initial"),
  ("distilled", "direct"),
  ("ranker", "direct"),
  ("distilled", "bm25"),
  ("distilled+scann", "distilled"),
  ("ranker", "distilled"),
  ("hybrid", "distilled"),
  ("hybrid", "initial+bm25"),
  ("bm25+ranker", "bm25"),
  ("initial+bm25+ranker", "initial+bm25"),
  ("distilled+ranker", "distilled"),
  ("hybrid+ranker", "hybrid"),
  ("hybrid+ranker", "initial+bm25+ranker"),
)
# How many of exact search's best ScaNN is asked to find.
HONESTY_DEPTH = 100
# How many of a system's first passages are read for answers that stand for judgements.
_HELD = 20


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.evaluate
  theirs = systems_lib.read_runs(job.cfg)
  passages = tables.load_passages(job.inputs["collection"])
  table = tables.load_queries(job.inputs["collection"])
  qrels = judgements(job)
  accepted = tables.load_answers(job.inputs["collection"])
  queries = measurable(job, table, qrels if qrels is not None else accepted)
  ids, texts = [query.id for query in queries], [query.text for query in queries]
  known = measures.NAMES * (qrels is not None) + answers.NAMES * any(one in accepted for one in ids)
  # Errors now, and not after hours of what follows.
  summary.main_measure(known, cfg.main_measure)
  refuse_runs_of_other_queries(theirs, ids)
  own = itself.of(queries, passages, qrels or {})
  depth = cfg.depth + bool(own)
  rows, mesh = np.array([table.row(query_id) for query_id in ids]), sharding.make_mesh(job.cfg.mesh)
  initial, direct = (
    exact.Exact(embedded.passages_PxE, passages.ids, mesh=mesh).search(embedded.queries_QxE[rows], depth)
    for embedded in (similarity.load(job.inputs[stage]) for stage in ("candidates", "train_direct"))
  )
  by_terms = hits.by_first(job.pieces / "bm25.npz",
                           lambda: bm25.Bm25(passages.texts, passages.ids, cfg.bm25_language).search(texts, depth))
  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"], job)
  distilled_QxE = retriever.encode_queries(texts)
  # As exactly as what it is compared with, but over vectors that index.* may make smaller; ScaNN has a row of its own.
  exactly = index.open_exact(job.inputs["index"], passages.ids, mesh)
  distilled = exactly.search(distilled_QxE, depth)
  oracle = index.oracle(job.inputs["index"], exactly, distilled_QxE, HONESTY_DEPTH)
  del exactly  # its vectors leave the devices, before ScaNN and the ranker need memory

  searched = {"initial": initial, "bm25": by_terms, "direct": direct, "distilled": distilled}
  if index.kind_of(job.inputs["index"]) == "scann":
    by_scann = lambda: index.open_default(job.inputs["index"], passages.ids).search(distilled_QxE, depth)
    searched["distilled+scann"] = hits.by_first(job.pieces / "scann.npz", by_scann)
  systems = {
    name: without(job, name, runs.from_hits(ids, passages.ids, one), own, cfg.depth) for name, one in searched.items()
  }
  systems |= fused(systems, cfg.depth)

  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"], job)
  start, score = similarity.load(job.inputs[job.cfg.ranker.start_stage]), rerank.once(ranker.score_rows)
  for system, name in systems_lib.RERANKED[cfg.rerank].items():
    orders = [runs.ranked(systems[system][query_id]) for query_id in ids]
    reordered = rerank.reorder(score, texts, passages.texts, orders, passages.row,
                               lambda place, found: start(rows[place], found), cfg.rerank_depth)
    systems[name] = runs.from_order(dict(zip(ids, reordered, strict=True)))
  theirs = {name: without(job, name, found_run, own, None) for name, found_run in theirs.items()}
  judged = compact.Judged(query_ids=ids, qrels=qrels, own=own, relevant_from=cfg.relevant_from) if qrels else None
  ann = index.honesty(job.inputs["index"], passages.ids, distilled_QxE, oracle, job.cfg.index, mesh, judged)
  processes.once(lambda: write(job, systems, theirs, passages=passages, table=table, queries=queries, qrels=qrels,
                               accepted=accepted, ann=ann))


def without(job: artifacts.Job, name: str, found: runs.Run, own: Set[str], depth: int | None) -> runs.Run:
  """A run without passages that are their query, which are dropped by name."""
  return itself.without(found, own, depth, lambda query_id: job.drop(f"passage of {name} that is its query", query_id))


def fused(systems: Mapping[str, runs.Run], depth: int) -> dict[str, runs.Run]:
  return {name: runs.fused([systems[one] for one in parts], depth) for name, parts in systems_lib.FUSED.items()}


def write(job: artifacts.Job, ours: Mapping[str, runs.Run], theirs: Mapping[str, runs.Run], *,
          passages: tables.Passages, table: tables.Queries, queries: Sequence[records.Query],
          qrels: tables.Qrels | None, accepted: Mapping[str, Sequence[str]], ann: Mapping[str, object]) -> None:
  """Measures our systems and those that came as files, and writes what came out; ann: what `index.honesty` says."""
  cfg, ids = job.cfg.evaluate, [query.id for query in queries]
  systems = {**ours, **others(job, ids, theirs, passages)}
  for name, found_run in systems.items():
    runs.write_trec(job.out / RUNS / f"{name}.trec", found_run, name)
  in_context = contexts(ids, accepted, passages)
  measured = measure(systems, ids, qrels, in_context, cfg.relevant_from)
  if accepted:
    for query_id in ids:
      if query_id not in accepted:
        job.drop("query without answers, which answer@k leaves out", query_id)
  summary.write_per_query(job.out / PER_QUERY, measured)
  if cfg.parquet:
    summary.write_parquet(job.out / PARQUET, measured)
  pairs = (*TESTS, *((name, "initial") for name in theirs), *(("distilled", name) for name in theirs))
  tests = [pair for pair in pairs if set(pair) <= systems.keys()]
  main = summary.main_measure(list(measured["initial"]), cfg.main_measure)
  metrics = {
    "split": cfg.split,
    "queries": len(queries),
    "written_queries": len({*ids} & written(job)),
    "relevant_from": cfg.relevant_from,
    **summary.summarise(measured, tests, cfg.resamples, (TESTS[0], main)),
    "leakage": leaked(job, queries, table, qrels, accepted, measured, main,
                      holding(in_context, systems, cfg.relevant_from) if qrels is None else None),
    "ann": ann,
    "dropped_queries": len(table.of_split(cfg.split)) - len(queries),
  }
  (job.out / METRICS).write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(queries=len(queries), **{f"{name} {main}": metrics["systems"][name][main] for name in systems})


def judgements(job: artifacts.Job) -> tables.Qrels | None:
  """Judgements of the split; None where there are none but answers are, which then decide what is right.

  Raises MeasureError where no grade counts as relevant.
  """
  try:
    found = tables.load_qrels(job.inputs["collection"], job.cfg.evaluate.split)
  except FileNotFoundError:
    if tables.load_answers(job.inputs["collection"]):
      return None
    raise
  measures.check_grades(found, job.cfg.evaluate.relevant_from)
  return found


def written(job: artifacts.Job) -> Set[str]:
  """Queries that the LLM wrote."""
  return {query.id for query in tables.load_queries(job.inputs["queries"])} if "queries" in job.inputs else set()


def measurable(job: artifacts.Job, table: tables.Queries, known: Mapping[str, object]) -> list[records.Query]:
  """Queries of the split that `known` holds, in collection order; the others are dropped and counted.

  Raises ValueError where none is left.
  """
  split = table.of_split(job.cfg.evaluate.split)
  for query in split:
    if query.id not in known:
      job.drop("query without judgements", query.id)
  queries = [query for query in split if query.id in known]
  if not queries:
    raise ValueError(
      f"no query of the split {job.cfg.evaluate.split!r} has judgements or answers "
      f"({len(split)} queries, {len(known)} judged ids)"
    )
  return queries


def refuse_runs_of_other_queries(theirs: Mapping[str, runs.Run], ids: Sequence[str]) -> None:
  """Raises RunError for a run without a result for any of the measured queries."""
  for name, every in theirs.items():
    if not any(every.get(query_id) for query_id in ids):
      raise runs.RunError(
        f"the run {name} has no results for any of the {len(ids):,} measured queries, such as {ids[0]!r}; "
        f"it knows {next(iter(every), 'none')!r}: are these the same queries?"
      )


def others(
  job: artifacts.Job, ids: Sequence[str], theirs: Mapping[str, runs.Run], passages: tables.Passages
) -> dict[str, runs.Run]:
  """Other systems' results of the measured queries, as they are; what the collection does not know is named.

  A passage that it lacks keeps its place: without it those behind would move up.
  """
  found = {name: {query_id: every.get(query_id, {}) for query_id in ids} for name, every in theirs.items()}
  for name, run_of in found.items():
    for passage_id in sorted({one for results in run_of.values() for one in results if one not in passages}):
      job.drop(f"passage of {name} that the collection lacks (counts as wrong)", passage_id)
    for query_id, results in run_of.items():
      if not results:
        job.drop(f"query that {name} has no results for (counts as 0)", query_id)
  return found


def measure(
  systems: Mapping[str, runs.Run], ids: Sequence[str], qrels: tables.Qrels | None, in_context: answers.InContext,
  relevant_from: int,
) -> dict[str, dict[str, dict[str, float]]]:
  """system -> measure -> query id -> value: trec_eval's measures where there are judgements, answer-in-context of the
  queries that have answers."""
  measured: dict[str, dict[str, dict[str, float]]] = {name: {} for name in systems}
  if qrels is not None:
    judged = {query_id: qrels[query_id] for query_id in ids}
    for name, found in systems.items():
      measured[name] |= measures.per_query(judged, found, relevant_from=relevant_from)
  if in_context.query_ids:
    for name, found in systems.items():
      measured[name] |= in_context.measure({one: runs.ranked(found.get(one, {})) for one in in_context.query_ids})
  return measured


def contexts(ids: Sequence[str], accepted: Mapping[str, Sequence[str]], passages: tables.Passages) -> answers.InContext:
  """Of queries that have answers.  As DPR does, not in titles; a passage that the collection lacks holds nothing."""
  return answers.InContext({query_id: accepted[query_id] for query_id in ids if query_id in accepted},
                           lambda one: passages.by_id(one).text if one in passages else "")


def holding(in_context: answers.InContext, systems: Mapping[str, runs.Run], grade: int) -> tables.Qrels:
  """Of the first passages that were found before and after, those that hold an answer, as if they had that grade."""
  found = {one: {passage_id for system in TESTS[0]
                 for passage_id in runs.ranked(systems[system].get(one, {}))[:_HELD]}
           for one in in_context.query_ids}
  return {one: dict.fromkeys(in_context.holders(one, sorted(passage_ids)), grade) for one, passage_ids in found.items()}


def leaked(
  job: artifacts.Job, queries: Sequence[records.Query], table: tables.Queries, qrels: tables.Qrels | None,
  accepted: Mapping[str, Sequence[str]], measured: summary.Measured, main: str,
  by_answers: tables.Qrels | None = None,
) -> dict[str, object]:
  """What training saw of the test: queries are said aloud, passages are counted, and said aloud where the result rests
  on them.

  by_answers: stands for judgements where there are none.  Of a query for which nothing was found nobody knows whether
  training put it first: the difference is then over the others, with and without those of which it did.
  """
  lists: Iterable[records.RankedList | records.ScoredList] = itertools.chain(
    example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList),
    example.read_records(job.inputs["train_retriever"], artifacts.TEACHER, records.ScoredList),
  )
  judged = (qrels or {}, tables.load_some_qrels(job.inputs["collection"], "train"))
  least, train = job.cfg.evaluate.relevant_from, table.of_split("train")
  right_of = leakage.rights(judged, accepted, least)
  found = leakage.check(queries, train, by_answers or qrels or {}, lists, least, right_of)
  of, before, after = f"distilled against initial in {main}", measured["initial"][main], measured["distilled"][main]
  if by_answers:
    before, after = ({one: of_all[one] for one, held in by_answers.items() if held} for of_all in (before, after))
    of += f", over the {len(before):,} queries for which either found an answer,"
  found = dataclasses.replace(found, by_answers=bool(by_answers))
  said = found.measured(of, before, after, job.cfg.evaluate.resamples).as_json()
  if (leak := claims.leak(said)) is not None:
    logging.warning("%s", leak)
  if (seen := claims.seen(said)) is not None:
    logging.info("%s", seen)
  return said


if __name__ == "__main__":
  cli.main(flow.STAGES["evaluate"])
