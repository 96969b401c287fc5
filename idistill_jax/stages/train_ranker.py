"""A cross-encoder learns the LLM's order.

    python -m idistill_jax.stages.train_ranker --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates or train_direct (similarities, start), labels (rankings) -> model/ (parameters), metrics.jsonl.
"""

from idistill_jax import cli, flow, sharding
from idistill_jax.data import batches
from idistill_jax.hf import networks
from idistill_jax.train import checkpoint, fit, inference, inputs, objectives
from idistill_jax.workdir import artifacts


def run(job: artifacts.Job) -> None:
  cfg, encoder = job.cfg.ranker, job.cfg.encoder
  network = networks.ranker(encoder, cfg.head).on(sharding.make_mesh(job.cfg.mesh), encoder.training_dtype)
  network = network.frozen(cfg.frozen_layers)
  data = inputs.load(job, network, encoder.pair_cut, cfg.start_stage, inputs.rankings(job))
  params = fit.fit(
    job, "train ranker", cfg, network=network, data=data,
    texts=batches.PairTexts(queries=data.query_tokens, passages=data.passage_tokens),
    loss_fn=objectives.ranker(cfg, network), start=cfg.start,
  )
  checkpoint.save_model(job.shared / inference.MODEL, params)


if __name__ == "__main__":
  cli.main(flow.STAGES["train_ranker"])
