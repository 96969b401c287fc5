"""A dual encoder learns the LLM's order itself: the control of the method, and where ranker and retriever may start.

    python -m idistill_jax.stages.train_direct --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels -> teacher-*.tfrecord, model/, metrics.jsonl; passages.npy, queries.npy (embeddings).
"""

from idistill_jax import artifacts, cli, flow, processes
from idistill_jax.data import similarity, tables
from idistill_jax.train import checkpoint, fit, inference, inputs


def run(job: artifacts.Job) -> None:
  cfg, model = job.cfg.direct, job.shared / inference.MODEL
  orders = inputs.orders_as_scores(job, cfg.order_temperature)
  params = fit.fit_retriever(job, "train direct", cfg, teacher=orders, start="weights")
  # One that an earlier attempt left stays: helpers may be reading it, and finished pieces are its embeddings.
  if not processes.once(lambda: checkpoint.is_saved(model), "a look at the model"):
    checkpoint.save_model(model, params)
  encode(job)


def encode(job: artifacts.Job) -> None:
  """Embeddings of all texts by the model that the training has left: all that helpers do of the stage."""
  passages, queries = tables.load_passages(job.inputs["collection"]), tables.load_queries(job.inputs["collection"])
  retriever = inference.load_retriever(job.cfg, job.shared, job)
  retriever.encode_queries(queries.texts, into=job.out / similarity.QUERIES)
  retriever.encode_passages(passages.texts, into=job.out / similarity.PASSAGES)


if __name__ == "__main__":
  cli.main(flow.STAGES["train_direct"])
