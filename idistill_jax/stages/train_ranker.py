"""A cross-encoder learns the LLM's order.

    python -m idistill_jax.stages.train_ranker --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates (similarities), labels (rankings) -> model/ (parameters), metrics.jsonl.
"""

from idistill_jax import artifacts, cli, sharding
from idistill_jax.data import batches, tfrecord
from idistill_jax.hf import weights
from idistill_jax.train import checkpoint, inference, inputs, loop, networks, objectives


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.ranker
  mesh = sharding.make_mesh(job.cfg.mesh)
  network = networks.ranker(job.cfg.encoder, cfg.head).computing_in(job.cfg.encoder.training_dtype)
  data = inputs.load(job, network, job.cfg.encoder.pair_cut)
  stream = batches.Batches(
    records=tfrecord.ShardedRecords(job.inputs["labels"], artifacts.RANKINGS), decode=data.ranked,
    texts=batches.PairTexts(queries=data.query_tokens, passages=data.passage_tokens),
    shape=batches.Shape(lists=cfg.lists_per_batch, passages=cfg.passages_per_list, always_best=cfg.always_best,
                        row_tokens=job.cfg.encoder.list_row, row_multiple=sharding.batch_shards(mesh)),
    similarity=data.similarity, epochs=cfg.epochs, seed=job.cfg.seed,
  )
  params = loop.train(loop.Training(
    name="train ranker", network=network, loss_fn=objectives.ranker(cfg, network), batches=stream,
    optim=cfg.optim, mesh=mesh, folder=job.out, checkpoint_every=cfg.checkpoint_every, seed=job.cfg.seed,
  ))
  checkpoint.save_model(job.out / inference.MODEL, params)
  job.count(steps=len(stream), rows=stream.rows, row_tokens=job.cfg.encoder.list_row)


STAGE = artifacts.Stage(
  name="train_ranker",
  reads=("collection", "candidates", "labels"),
  config=("encoder", "ranker", "mesh", "seed"),
  run=run,
  fingerprint=lambda cfg: weights.fingerprint(cfg.encoder.weights),
)

if __name__ == "__main__":
  cli.main(STAGE)
