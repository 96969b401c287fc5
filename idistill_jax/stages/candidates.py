"""The initial retriever's top passages for each query, or those of another system's run.

    python -m idistill_jax.stages.candidates --config=configs/quickstart.py --workdir=runs/quickstart

collection -> candidates-*.tfrecord for the training queries; passages.npy, queries.npy (embeddings, collection order).
"""

from idistill_jax import cli, flow, records, sharding
from idistill_jax.data import tables
from idistill_jax.retrieval import exact, itself, runs
from idistill_jax.train import inference, shares
from idistill_jax.workdir import artifacts


def run(job: artifacts.Job) -> None:
  passages, queries, passages_PxE, queries_QxE = inference.embed_collection(job, None)

  train = queries.of_split("train")
  own = itself.of(train, passages, tables.load_some_qrels(job.inputs["collection"], "train"))
  if job.cfg.candidates.run is None:
    rows = [queries.row(query.id) for query in train]
    index = exact.Exact(passages_PxE, passages.ids, mesh=sharding.make_mesh(job.cfg.mesh))
    hits = index.search(queries_QxE[rows], job.cfg.candidates.depth + bool(own))
    found = runs.from_hits([query.id for query in train], passages.ids, hits)
  else:
    found = from_run(job, runs.read_trec(job.cfg.candidates.run), passages)
  found = itself.without(found, own, None, lambda query_id: job.drop("candidate that is its query", query_id))
  lists = []
  for query in train:
    if order := runs.ranked(found.get(query.id, {}))[:job.cfg.candidates.depth]:
      scores = tuple(found[query.id][one] for one in order)
      lists.append(records.CandidateList(query_id=query.id, passage_ids=tuple(order), scores=scores))
    else:
      job.drop("training query without candidates", query.id)
  if train and not lists:
    of_run = f"{job.cfg.candidates.run} holds none of the {len(train)} training queries"
    raise ValueError(of_run if job.cfg.candidates.run else
                     f"none of {len(train)} training queries finds a passage but itself: add passages")
  shares.write(job, artifacts.CANDIDATES, lists)
  job.count(passages=len(passages), queries=len(queries), lists=len(lists), depth=job.cfg.candidates.depth)


def from_run(job: artifacts.Job, found: runs.Run, passages: tables.Passages) -> runs.Run:
  """Another system's run without passages that the collection lacks, which are dropped by name."""
  kept: runs.Run = {}
  for query_id, results in found.items():
    kept[query_id] = {one: score for one, score in results.items() if one in passages}
    for passage_id in results:
      if passage_id not in kept[query_id]:
        job.drop("passage of candidates.run that the collection lacks", f"{query_id} {passage_id}")
  return kept


if __name__ == "__main__":
  cli.main(flow.STAGES["candidates"])
