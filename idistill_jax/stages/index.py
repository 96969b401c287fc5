"""The distilled retriever's embeddings of the corpus, made searchable.

    python -m idistill_jax.stages.index --config=configs/quickstart.py --workdir=runs/quickstart

collection, train_retriever -> passages.npy ([P, E], collection order), and scann/ where ScaNN is used: tuned to
`index.recall_target` on queries of dev, and of train where there are too few.
"""

from idistill_jax import artifacts, cli, sharding
from idistill_jax.data import tables
from idistill_jax.retrieval import compact, index
from idistill_jax.train import inference


def run(job: artifacts.Job) -> None:
  passages = tables.load_passages(job.inputs["collection"])
  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"], job)
  # Of those that the retriever learned from it finds more than of others, and those of test are for measuring.
  queries = tables.load_queries(job.inputs["collection"])
  tuned_on = [*queries.of_split("dev"), *queries.of_split("train")][: job.cfg.index.tuning_queries]
  if index.choose(job.cfg.index.kind, len(passages)) == "exact":
    tuned_on = []
  queries_QxE = retriever.encode_queries([query.text for query in tuned_on])
  passages_PxE = retriever.encode_passages(passages.texts, into=job.out / compact.VECTORS)
  if job.helps:
    return
  made = index.write(job.out, passages_PxE, passages.ids, job.cfg.index, queries_QxE, sharding.make_mesh(job.cfg.mesh))
  job.count(passages=len(passages), **made)


STAGE = artifacts.Stage(
  name="index",
  reads=("collection", "train_retriever"),
  config=("encoder", "index"),
  run=run,
  together=True,
)

if __name__ == "__main__":
  cli.main(STAGE)
