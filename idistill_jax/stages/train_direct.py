"""A dual encoder learns the LLM's order itself: the control of the method, and where ranker and retriever may start.

    python -m idistill_jax.stages.train_direct --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels -> teacher-*.tfrecord, model/, metrics.jsonl; passages.npy, queries.npy (embeddings).
"""

from idistill_jax import cli, flow
from idistill_jax.train import checkpoint, fit, inference, inputs
from idistill_jax.workdir import artifacts


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.direct
  orders = inputs.orders_as_scores(job, cfg.order_temperature)
  params = fit.fit_retriever(job, "train direct", cfg, teacher=orders, start="weights")
  # Once, as helpers may be reading it, and finished pieces are its embeddings.
  checkpoint.save_model_once(job.shared / inference.MODEL, lambda: params)
  inference.embed_collection(job, job.shared)


if __name__ == "__main__":
  cli.main(flow.STAGES["train_direct"])
