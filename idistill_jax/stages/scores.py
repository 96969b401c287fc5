"""The ranker scores lists: those that the LLM ordered, deeper ones, and those of queries that no LLM saw.

    python -m idistill_jax.stages.scores --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct, train_ranker -> scores-*.tfrecord (ScoredList, best first).
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from idistill_jax import cli, flow, processes, records, sharding
from idistill_jax.data import example, similarity, tables
from idistill_jax.retrieval import exact, itself
from idistill_jax.train import inference, truncation
from idistill_jax.workdir import artifacts

# (query id, passage ids)
Candidates = tuple[str, tuple[str, ...]]
# query id -> passage ids in the LLM's order
Ranked = Mapping[str, tuple[str, ...]]


def run(job: artifacts.Job) -> None:
  lists, scores = score(job)
  ends = np.cumsum([len(ids) for _, ids in lists])
  scored = (
    _best_first(query_id, ids, scores[end - len(ids):end]) for (query_id, ids), end in zip(lists, ends, strict=True)
  )
  processes.once(lambda: example.write_records(job.out, artifacts.SCORES, scored))
  job.count(lists=len(lists), pairs=len(scores))


def score(job: artifacts.Job) -> tuple[Sequence[Candidates], np.ndarray]:
  """Lists, and scores of their passages, float32 [pairs], list after list: all that helpers do of the stage."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  lists = list(_lists(job, queries, passages))
  if not lists:
    return lists, np.zeros(0, np.float32)  # the LLM ordered every query's list, and only others were asked for

  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"], job)
  similarities = similarity.load(job.inputs[job.cfg.ranker.start_stage])
  query_of = np.repeat([queries.row(query_id) for query_id, _ in lists], [len(ids) for _, ids in lists])
  passage_of = np.array([passages.row(passage_id) for _, ids in lists for passage_id in ids])
  return lists, ranker.score_rows(
    queries.texts, passages.texts, query_of, passage_of, similarities.of_pairs(query_of, passage_of),
    truncation.telling(job))


def _lists(job: artifacts.Job, queries: tables.Queries, passages: tables.Passages) -> Iterator[Candidates]:
  """(query id, passage ids) to score: the first passages of each query that is wanted."""
  cfg = job.cfg.scores
  ranked = {
    one.query_id: one.passage_ids
    for one in example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList)
  }
  unlabelled = 0
  for query_id, found in CANDIDATES[cfg.candidates](job, ranked, queries, passages):
    if query_id in ranked:
      if cfg.lists == "all":
        yield query_id, found
    elif cfg.unlabelled_queries is None or unlabelled < cfg.unlabelled_queries:
      unlabelled += 1
      yield query_id, found


def _of_initial(job: artifacts.Job, ranked: Ranked, queries: tables.Queries,
                passages: tables.Passages) -> Iterator[Candidates]:
  """What the LLM ordered stands in front: it was drawn from the same passages, not as deep."""
  for one in example.read_records(job.inputs["candidates"], artifacts.CANDIDATES, records.CandidateList):
    found = ranked.get(one.query_id, ()) + one.passage_ids[:job.cfg.scores.depth]
    yield one.query_id, tuple(dict.fromkeys(found))


def _of_direct(job: artifacts.Job, ranked: Ranked, queries: tables.Queries,
               passages: tables.Passages) -> Iterator[Candidates]:
  train = queries.of_split("train")
  embedded = similarity.load(job.inputs["train_direct"])
  index = exact.Exact(embedded.passages_PxE, passages.ids, mesh=sharding.make_mesh(job.cfg.mesh))
  own = itself.of(train, passages, tables.load_some_qrels(job.inputs["collection"], "train"))
  depth = job.cfg.scores.depth
  hits = index.search(embedded.queries_QxE[[queries.row(query.id) for query in train]], depth + bool(own))
  for query, rows in zip(train, hits.rows, strict=True):
    found = (passages.ids[row] for row in rows)
    yield query.id, tuple(one for one in found if one != query.id or one not in own)[:depth]


# config.Scores.candidates -> each training query with the passages to score.
CANDIDATES = {"initial": _of_initial, "direct": _of_direct}


def _best_first(query_id: str, ids: tuple[str, ...], scores: np.ndarray) -> records.ScoredList:
  order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
  return records.ScoredList(query_id=query_id, passage_ids=tuple(ids[i] for i in order),
                            scores=tuple(float(scores[i]) for i in order))


if __name__ == "__main__":
  cli.main(flow.STAGES["scores"])
