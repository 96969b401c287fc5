"""A dual encoder learns the LLM's order itself: the control of the method, and where ranker and retriever may start.

    python -m idistill_jax.stages.train_direct --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels -> teacher-*.tfrecord, model/, metrics.jsonl; passages.npy, queries.npy (embeddings).
"""

from idistill_jax import artifacts, cli, sharding
from idistill_jax.data import batches, example, similarity, tfrecord
from idistill_jax.hf import weights
from idistill_jax.train import checkpoint, fit, inference, inputs, networks, objectives


def run(job: artifacts.Job) -> None:
  cfg, encoder = job.cfg.direct, job.cfg.encoder
  example.write_records(job.out, artifacts.TEACHER, inputs.orders_as_scores(job, cfg.order_temperature))
  network = networks.retriever(encoder).on(sharding.make_mesh(job.cfg.mesh), encoder.training_dtype)
  data = inputs.load(job, network, encoder.list_cut, "candidates")
  params = fit.fit(
    job, "train direct", cfg, network=network, data=data,
    records=tfrecord.ShardedRecords(job.out, artifacts.TEACHER), decode=data.scored,
    texts=batches.DualTexts(queries=data.query_tokens, passages=data.passage_tokens),
    loss_fn=objectives.retriever(cfg, network), start="weights",
  )
  checkpoint.save_model(job.out / inference.MODEL, params)
  retriever = inference.load_retriever(job.cfg, job.out)
  similarity.save(job.out, similarity.Similarities(retriever.encode_queries(data.queries.texts),
                                                   retriever.encode_passages(data.passages.texts)))


STAGE = artifacts.Stage(
  name="train_direct", reads=("collection", "candidates", "labels"), config=("encoder", "direct", "mesh", "seed"),
  run=run, fingerprint=lambda cfg: weights.fingerprint(cfg.encoder.weights),
)

if __name__ == "__main__":
  cli.main(STAGE)
