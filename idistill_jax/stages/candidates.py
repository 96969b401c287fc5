"""The initial retriever's top passages for each query.

    python -m idistill_jax.stages.candidates --config=configs/quickstart.py --workdir=runs/quickstart

collection -> candidates-*.tfrecord for the training queries; passages.npy, queries.npy (embeddings, collection order).
"""

from idistill_jax import artifacts, cli, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import weights
from idistill_jax.retrieval import exact
from idistill_jax.train import inference


def run(job: artifacts.Job) -> None:
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])

  retriever = inference.load_retriever(job.cfg, None)
  passages_PxE = retriever.encode_passages(passages.texts)
  queries_QxE = retriever.encode_queries(queries.texts)
  similarity.save(job.out, similarity.Similarities(queries_QxE, passages_PxE))

  train = queries.of_split("train")
  rows = [queries.row(query.id) for query in train]
  hits = exact.Exact(passages_PxE, passages.ids).search(queries_QxE[rows], job.cfg.candidates.depth)
  example.write_records(job.out, artifacts.CANDIDATES, (
    records.CandidateList(query_id=query.id, passage_ids=tuple(passages.ids[row] for row in hit_rows),
                          scores=tuple(float(score) for score in scores))
    for query, hit_rows, scores in zip(train, hits.rows, hits.scores, strict=True)
  ))
  job.count(passages=len(passages), queries=len(queries), lists=len(train), depth=hits.rows.shape[1])


STAGE = artifacts.Stage(
  name="candidates", reads=("collection",), config=("encoder", "candidates"), run=run,
  fingerprint=lambda cfg: weights.fingerprint(cfg.encoder.weights),
)

if __name__ == "__main__":
  cli.main(STAGE)
