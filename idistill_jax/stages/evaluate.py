"""Before and after: first stages, the LLM's order learned directly, ranker and distilled retriever, with tests.

    python -m idistill_jax.stages.evaluate --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct, train_ranker, train_retriever, index -> metrics.json, runs/<system>.trec,
per_query.csv.
"""

import dataclasses
import functools
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
# How many of exact search's best ScaNN is asked to find.
HONESTY_DEPTH = 100
# How many of a system's first passages are read for answers that stand for judgements.
_HELD = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What is asked, and what is right.

  table: all queries of the collection.  queries: those that are measured, in its order.  qrels: judgements of their
  split; None where there are none and answers decide.  accepted: query id -> answers, of queries that have some.
  """

  passages: tables.Passages
  table: tables.Queries
  queries: Sequence[records.Query]
  qrels: tables.Qrels | None
  accepted: Mapping[str, Sequence[str]]

  @functools.cached_property
  def ids(self) -> list[str]:
    return [query.id for query in self.queries]

  @functools.cached_property
  def texts(self) -> list[str]:
    return [query.text for query in self.queries]

  @functools.cached_property
  def rows(self) -> np.ndarray:
    """Of the measured queries in the collection, int [Q]."""
    return np.array([self.table.row(query_id) for query_id in self.ids])

  @functools.cached_property
  def own(self) -> Set[str]:
    """Queries that are passages, which they are not to find."""
    return itself.of(self.queries, self.passages, self.qrels or {})

  @property
  def measures(self) -> Sequence[str]:
    """Names of what can be measured."""
    answered = any(one in self.accepted for one in self.ids)
    return measures.NAMES * (self.qrels is not None) + answers.NAMES * answered

  @functools.cached_property
  def in_context(self) -> answers.InContext:
    """Of queries that have answers.  As DPR does, not in titles; a passage that the collection lacks holds nothing."""
    return answers.InContext({query_id: self.accepted[query_id] for query_id in self.ids if query_id in self.accepted},
                             lambda one: self.passages.by_id(one).text if one in self.passages else "")

  def measure(self, systems: Mapping[str, runs.Run], relevant_from: int) -> dict[str, dict[str, dict[str, float]]]:
    """system -> measure -> query id -> value: trec_eval's measures where there are judgements, answer-in-context of the
    queries that have answers."""
    measured: dict[str, dict[str, dict[str, float]]] = {name: {} for name in systems}
    if self.qrels is not None:
      judged = {query_id: self.qrels[query_id] for query_id in self.ids}
      for name, found in systems.items():
        measured[name] |= measures.per_query(judged, found, relevant_from=relevant_from)
    if self.in_context.query_ids:
      for name, found in systems.items():
        orders = {one: runs.ranked(found.get(one, {})) for one in self.in_context.query_ids}
        measured[name] |= self.in_context.measure(orders)
    return measured


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.evaluate
  theirs, task = systems_lib.read_runs(job.cfg), read(job)
  # Errors now, and not after hours of what follows.
  summary.main_measure(task.measures, cfg.main_measure)
  systems_lib.refuse_runs_of_other_queries(theirs, task.ids)
  passages, mesh, depth = task.passages, sharding.make_mesh(job.cfg.mesh), cfg.depth + bool(task.own)
  initial, direct = (
    exact.Exact(embedded.passages_PxE, passages.ids, mesh=mesh).search(embedded.queries_QxE[task.rows], depth)
    for embedded in (similarity.load(job.inputs[stage]) for stage in ("candidates", "train_direct"))
  )
  by_terms = hits.by_first(job.pieces / "bm25.npz", lambda: bm25.Bm25(
    passages.texts, passages.ids, cfg.bm25_language).search(task.texts, depth))
  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"], job)
  distilled_QxE = retriever.encode_queries(task.texts)
  # As exactly as what it is compared with, but over vectors that index.* may make smaller; ScaNN has a row of its own.
  exactly = index.open_exact(job.inputs["index"], passages.ids, mesh)
  distilled = exactly.search(distilled_QxE, depth)
  oracle = index.oracle(job.inputs["index"], exactly, distilled_QxE, HONESTY_DEPTH)
  del exactly  # its vectors leave the devices, before ScaNN and the ranker need memory

  searched = {"initial": initial, "bm25": by_terms, "direct": direct, "distilled": distilled}
  if index.kind_of(job.inputs["index"]) == "scann":
    by_scann = lambda: index.open_default(job.inputs["index"], passages.ids).search(distilled_QxE, depth)
    searched["distilled+scann"] = hits.by_first(job.pieces / "scann.npz", by_scann)
  systems = {name: without(job, name, runs.from_hits(task.ids, passages.ids, one), task.own, cfg.depth)
             for name, one in searched.items()}
  systems |= fused(systems, cfg.depth)
  systems |= reranked(job, task, systems)

  theirs = {name: without(job, name, found_run, task.own, None) for name, found_run in theirs.items()}
  judged = compact.Judged(query_ids=task.ids, qrels=task.qrels, own=task.own,
                          relevant_from=cfg.relevant_from) if task.qrels else None
  ann = index.honesty(job.inputs["index"], passages.ids, distilled_QxE, oracle, job.cfg.index, mesh, judged)
  processes.once(lambda: write(job, task, systems, theirs, ann))


def read(job: artifacts.Job) -> Task:
  """Raises ValueError where no query can be measured; those that cannot are dropped and counted."""
  folder = job.inputs["collection"]
  table, qrels, accepted = tables.load_queries(folder), judgements(job), tables.load_answers(folder)
  queries = measurable(job, table, qrels if qrels is not None else accepted)
  return Task(passages=tables.load_passages(folder), table=table, queries=queries, qrels=qrels, accepted=accepted)


def without(job: artifacts.Job, name: str, found: runs.Run, own: Set[str], depth: int | None) -> runs.Run:
  """A run without passages that are their query, which are dropped by name."""
  return itself.without(found, own, depth, lambda query_id: job.drop(f"passage of {name} that is its query", query_id))


def fused(systems: Mapping[str, runs.Run], depth: int) -> dict[str, runs.Run]:
  return {name: runs.fused([systems[one] for one in parts], depth) for name, parts in systems_lib.FUSED.items()}


def reranked(job: artifacts.Job, task: Task, systems: Mapping[str, runs.Run]) -> dict[str, runs.Run]:
  """The first passages of those systems that the config names, as the ranker orders them."""
  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"], job)
  start, score = similarity.load(job.inputs[job.cfg.ranker.start_stage]), rerank.once(ranker.score_rows)
  made: dict[str, runs.Run] = {}
  for system, name in systems_lib.RERANKED[job.cfg.evaluate.rerank].items():
    orders = [runs.ranked(systems[system][query_id]) for query_id in task.ids]
    reordered = rerank.reorder(score, task.texts, task.passages.texts, orders, task.passages.row,
                               lambda place, found: start(task.rows[place], found), job.cfg.evaluate.rerank_depth)
    made[name] = runs.from_order(dict(zip(task.ids, reordered, strict=True)))
  return made


def write(job: artifacts.Job, task: Task, ours: Mapping[str, runs.Run], theirs: Mapping[str, runs.Run],
          ann: Mapping[str, object]) -> None:
  """Measures our systems and those that came as files, and writes what came out; ann: what `index.honesty` says."""
  cfg = job.cfg.evaluate
  systems = {**ours, **others(job, task, theirs)}
  for name, found_run in systems.items():
    runs.write_trec(job.out / RUNS / f"{name}.trec", found_run, name)
  measured = task.measure(systems, cfg.relevant_from)
  if task.accepted:
    for query_id in task.ids:
      if query_id not in task.accepted:
        job.drop("query without answers, which answer@k leaves out", query_id)
  summary.write_per_query(job.out / PER_QUERY, measured)
  if cfg.parquet:
    summary.write_parquet(job.out / PARQUET, measured)
  pairs = (*systems_lib.TESTS, *((name, "initial") for name in theirs), *(("distilled", name) for name in theirs))
  tests = [pair for pair in pairs if set(pair) <= systems.keys()]
  main = summary.main_measure(list(measured["initial"]), cfg.main_measure)
  by_answers = holding(task.in_context, systems, cfg.relevant_from) if task.qrels is None else None
  metrics = {
    "split": cfg.split,
    "queries": len(task.queries),
    "written_queries": len({*task.ids} & written(job)),
    "relevant_from": cfg.relevant_from,
    **summary.summarise(measured, tests, cfg.resamples, (systems_lib.TESTS[0], main)),
    "leakage": leaked(job, task, measured, main, by_answers),
    "ann": ann,
    "dropped_queries": len(task.table.of_split(cfg.split)) - len(task.queries),
  }
  (job.out / METRICS).write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(queries=len(task.queries), **{f"{name} {main}": metrics["systems"][name][main] for name in systems})


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


def others(job: artifacts.Job, task: Task, theirs: Mapping[str, runs.Run]) -> dict[str, runs.Run]:
  """Other systems' results of the measured queries, as they are; what the collection does not know is named.

  A passage that it lacks keeps its place: without it those behind would move up.
  """
  found = {name: {query_id: every.get(query_id, {}) for query_id in task.ids} for name, every in theirs.items()}
  for name, run_of in found.items():
    for passage_id in sorted({one for results in run_of.values() for one in results if one not in task.passages}):
      job.drop(f"passage of {name} that the collection lacks (counts as wrong)", passage_id)
    for query_id, results in run_of.items():
      if not results:
        job.drop(f"query that {name} has no results for (counts as 0)", query_id)
  return found


def holding(in_context: answers.InContext, systems: Mapping[str, runs.Run], grade: int) -> tables.Qrels:
  """Of the first passages that were found before and after, those that hold an answer, as if they had that grade."""
  found = {one: {passage_id for system in systems_lib.TESTS[0]
                 for passage_id in runs.ranked(systems[system].get(one, {}))[:_HELD]}
           for one in in_context.query_ids}
  return {one: dict.fromkeys(in_context.holders(one, sorted(passage_ids)), grade) for one, passage_ids in found.items()}


def leaked(job: artifacts.Job, task: Task, measured: summary.Measured, main: str,
           by_answers: tables.Qrels | None = None) -> dict[str, object]:
  """What training saw of the test: queries are said aloud, passages are counted, and said aloud where the result rests
  on them.

  by_answers: stands for judgements where there are none.  Of a query for which nothing was found nobody knows whether
  training put it first: the difference is then over the others, with and without those of which it did.
  """
  lists: Iterable[records.RankedList | records.ScoredList] = itertools.chain(
    example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList),
    example.read_records(job.inputs["train_retriever"], artifacts.TEACHER, records.ScoredList),
  )
  judged = (task.qrels or {}, tables.load_some_qrels(job.inputs["collection"], "train"))
  least, train = job.cfg.evaluate.relevant_from, task.table.of_split("train")
  right_of = leakage.rights(judged, task.accepted, least)
  found = leakage.check(task.queries, train, by_answers or task.qrels or {}, lists, least, right_of)
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
