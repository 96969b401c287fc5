"""The ranker scores lists: those that the LLM ordered, deeper ones, and those of queries that no LLM saw.

    python -m idistill_jax.stages.scores --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct, train_ranker -> scores-*.tfrecord (ScoredList, best first).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from absl import logging

from idistill_jax import by_row, cli, flow, records, sharding
from idistill_jax.data import example, similarity, tables
from idistill_jax.data import lists as lists_lib
from idistill_jax.retrieval import exact, itself, runs
from idistill_jax.train import inference, inputs, shares, truncation
from idistill_jax.workdir import artifacts

# Row of a query -> rows of passages, in the LLM's order.
Ranked = Mapping[int, np.ndarray]


def run(job: artifacts.Job) -> None:
  passage_ids, lists, learned = score(job)
  similarities = similarity.load(job.inputs[job.cfg.ranker.start_stage])

  def scored(i: int) -> records.ScoredList:
    one = lists[i]
    similar = similarities.of_pairs(np.full_like(one.passage_rows, one.query_row), one.passage_rows)
    scores = inference.whole_score(learned[lists.span(i)], similar, job.cfg.ranker.similarity_weight)
    return _best_first(one.query_id, [passage_ids[row] for row in one.passage_rows], scores)

  shares.write(job, artifacts.SCORES, by_row.Each(scored, range(len(lists))))
  job.count(lists=len(lists), pairs=len(learned))


def score(job: artifacts.Job) -> tuple[Sequence[str], lists_lib.Lists, np.ndarray]:
  """Passage ids, lists, and what the ranker says of their passages, without the similarity, float32 [pairs], list after
  list: all that helpers do."""
  passages, queries = tables.load_passages(job.inputs["collection"]), tables.load_queries(job.inputs["collection"])
  lists = to_score(job, queries, passages)
  if not lists:
    # The LLM ordered every query's list, and only others were asked for.
    return passages.ids, lists, np.zeros(0, np.float32)
  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"], job)
  query_of = np.repeat(lists.query_rows, lists.lengths)
  return passages.ids, lists, ranker.learned(
    queries.texts, passages.texts, query_of, lists.passage_rows, truncation.telling(job))


def to_score(job: artifacts.Job, queries: tables.Queries, passages: tables.Passages) -> lists_lib.Lists:
  """The first passages of each training query whose list is wanted."""
  cfg = job.cfg.scores
  ranked = {one.query_row: one.passage_rows
            for one in inputs.numbers(job, "rankings", inputs.rankings(job), queries, passages)}
  every = CANDIDATES[cfg.candidates](job, ranked, queries, passages)
  unlabelled = ~np.isin(every.query_rows, list(ranked))
  wanted = unlabelled if cfg.lists == "unlabelled" else np.ones_like(unlabelled)
  if cfg.unlabelled_queries is not None:
    wanted &= ~unlabelled | (np.cumsum(unlabelled) <= cfg.unlabelled_queries)
  return every.only(wanted)


def _of_initial(job: artifacts.Job, ranked: Ranked, queries: tables.Queries,
                passages: tables.Passages) -> lists_lib.Lists:
  """What the LLM ordered stands in front: it was drawn from the same passages, not as deep."""

  def both(one: records.CandidateList) -> lists_lib.NumberedList:
    found = lists_lib.numbered(one, queries, passages)
    rows = [*ranked.get(found.query_row, ()), *found.passage_rows[:job.cfg.scores.depth]]
    return lists_lib.unscored(found.query_id, found.query_row, tuple(dict.fromkeys(rows)))

  def arrays(some: Iterable[records.CandidateList]) -> dict[str, np.ndarray]:
    kept, depths = list[lists_lib.NumberedList](), list[int]()
    for one in some:
      kept.append(both(one))
      depths.append(len(one.passage_ids))
    return lists_lib.arrays(kept) | {"depths": np.array(depths, np.int64)}

  candidates = example.open_records(job.inputs["candidates"], artifacts.CANDIDATES, records.CandidateList)
  every = shares.read(job, "candidates", candidates, arrays)
  # Of another system's run, one query may have fewer than the next.
  if candidates and (deepest := int(every["depths"].max())) < job.cfg.scores.depth:
    logging.warning("the first %d passages of a query are scored, not scores.depth=%d: the candidates are no more",
                    deepest, job.cfg.scores.depth)
  return lists_lib.Lists(every, queries.ids)


def _of_direct(job: artifacts.Job, ranked: Ranked, queries: tables.Queries,
               passages: tables.Passages) -> lists_lib.Lists:
  train = queries.of_split("train")
  embedded = similarity.load(job.inputs["train_direct"])
  index = exact.Exact(embedded.passages_PxE, passages.ids, mesh=sharding.make_mesh(job.cfg.mesh))
  own = itself.of(train, passages, tables.load_some_qrels(job.inputs["collection"], "train"))
  depth, query_rows = job.cfg.scores.depth, [queries.row(query.id) for query in train]
  hits = index.search(embedded.queries_QxE[query_rows], depth + bool(own))

  def found(i: int) -> lists_lib.NumberedList:
    rows = hits.rows[i]
    if train[i].id in own:
      rows = rows[rows != passages.row(train[i].id)]
    return lists_lib.unscored(train[i].id, query_rows[i], rows[:depth])

  return lists_lib.Lists(lists_lib.arrays(map(found, range(len(train)))), queries.ids)


# config.Scores.candidates -> each training query with the passages to score.
CANDIDATES: dict[str, Callable[[artifacts.Job, Ranked, tables.Queries, tables.Passages], lists_lib.Lists]] = {
  "initial": _of_initial, "direct": _of_direct}


def _best_first(query_id: str, ids: Sequence[str], scores: np.ndarray) -> records.ScoredList:
  scored = dict(zip(ids, scores.tolist(), strict=True))
  order = runs.ranked(scored)
  return records.ScoredList(query_id=query_id, passage_ids=tuple(order), scores=tuple(scored[one] for one in order))


if __name__ == "__main__":
  cli.main(flow.STAGES["scores"])
