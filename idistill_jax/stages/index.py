"""The distilled retriever's embeddings of the corpus, made searchable.

    python -m idistill_jax.stages.index --config=configs/quickstart.py --workdir=runs/quickstart

collection, train_retriever -> passages.npy (float32 [P, E], collection order), and scann/ where ScaNN is
used.
"""

from idistill_jax import artifacts, cli
from idistill_jax.data import tables
from idistill_jax.retrieval import index
from idistill_jax.train import inference


def run(job: artifacts.Job) -> None:
  passages = tables.load_passages(job.inputs["collection"])
  retriever = inference.load_retriever(job.cfg, job.inputs["train_retriever"])
  kind = index.write(job.out, retriever.encode_passages(passages.texts), passages.ids, job.cfg.index)
  job.count(passages=len(passages), index=kind)


STAGE = artifacts.Stage(
  name="index",
  reads=("collection", "train_retriever"),
  config=("encoder", "index"),
  run=run,
)

if __name__ == "__main__":
  cli.main(STAGE)
