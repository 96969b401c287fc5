"""The ranker scores lists: those that the LLM ordered, deeper ones, and those of queries that no LLM saw.

    python -m idistill_jax.stages.scores --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_ranker -> scores-*.tfrecord (ScoredList, best first).
"""

from collections.abc import Iterator

import numpy as np

from idistill_jax import artifacts, cli, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.train import inference


def run(job: artifacts.Job) -> None:
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  lists = list(_lists(job))
  if not lists:
    # The LLM ordered every query's list, and only others were asked for.
    example.write_records(job.out, artifacts.SCORES, ())
    job.count(lists=0, pairs=0)
    return

  ranker = inference.load_ranker(job.cfg, job.inputs["train_ranker"])
  similarities = similarity.load(job.inputs["candidates"])
  query_of = np.repeat([queries.row(query_id) for query_id, _ in lists], [len(ids) for _, ids in lists])
  passage_of = np.array([passages.row(passage_id) for _, ids in lists for passage_id in ids])
  initial = np.einsum("ie,ie->i", similarities.queries_QxE[query_of], similarities.passages_PxE[passage_of])
  tokenizer = ranker.forward.network.tokenizer
  scores = ranker.score_rows(
    tokenizer.table(queries.texts, job.cfg.encoder.query_tokens),
    tokenizer.table(passages.texts, job.cfg.encoder.pair_cut), query_of, passage_of, initial,
  )

  ends = np.cumsum([len(ids) for _, ids in lists])
  example.write_records(job.out, artifacts.SCORES, (
    _best_first(query_id, ids, scores[end - len(ids):end]) for (query_id, ids), end in zip(lists, ends, strict=True)
  ))
  job.count(lists=len(lists), pairs=len(scores))


def _lists(job: artifacts.Job) -> Iterator[tuple[str, tuple[str, ...]]]:
  """(query id, passage ids) to score: each query's candidates to the depth, and with them what the LLM ordered."""
  cfg = job.cfg.scores
  ranked = {
    one.query_id: one for one in example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList)
  }
  unlabelled = 0
  for one in example.read_records(job.inputs["candidates"], artifacts.CANDIDATES, records.CandidateList):
    if not one.passage_ids:
      job.drop("query without candidates", one.query_id)
      continue
    deep = one.passage_ids[:cfg.depth]
    if one.query_id in ranked:
      if cfg.lists == "all":
        yield one.query_id, tuple(dict.fromkeys(ranked[one.query_id].passage_ids + deep))
    elif cfg.unlabelled_queries is None or unlabelled < cfg.unlabelled_queries:
      unlabelled += 1
      yield one.query_id, deep


def _best_first(query_id: str, ids: tuple[str, ...], scores: np.ndarray) -> records.ScoredList:
  order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))
  return records.ScoredList(query_id=query_id, passage_ids=tuple(ids[i] for i in order),
                            scores=tuple(float(scores[i]) for i in order))


STAGE = artifacts.Stage(
  name="scores",
  reads=("collection", "candidates", "labels", "train_ranker"),
  config=("encoder", "ranker", "scores"),
  run=run,
)

if __name__ == "__main__":
  cli.main(STAGE)
