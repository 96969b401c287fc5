"""The frame of both training stages: a network and lists -> a trained model in the stage's folder."""

import functools
from collections.abc import Callable
from typing import Any, Literal

from idistill_jax import artifacts, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import batches
from idistill_jax.train import checkpoint, inference, inputs, loop, networks
from idistill_jax.train import step as step_lib


def fit(job: artifacts.Job, name: str, cfg: config_lib.Ranker | config_lib.Distillation, *, network: networks.Network,
        data: inputs.Inputs, records: batches.Records, decode: Callable[[bytes], batches.TrainingList],
        texts: batches.Texts, loss_fn: step_lib.LossFn,
        start: Literal["weights", "direct"]) -> None:
  """Trains on `records`, decoded and read as `texts`, and saves the model; checkpoints and metrics.jsonl beside it.

  start: as in config.Ranker; "direct" needs the train_direct stage among the job's inputs.
  """
  mesh = sharding.make_mesh(job.cfg.mesh)
  row_tokens = job.cfg.encoder.list_row
  stream = batches.Batches(
    records=records, decode=decode, texts=texts,
    shape=batches.Shape(lists=cfg.lists_per_batch, passages=cfg.passages_per_list, always_best=cfg.always_best,
                        row_tokens=row_tokens, row_multiple=sharding.batch_shards(mesh) * cfg.passes),
    similarity=data.similarity, epochs=cfg.epochs, seed=job.cfg.seed,
  )
  params = loop.train(loop.Training(
    name=name, network=network, start=functools.partial(STARTS[start], job, network), loss_fn=loss_fn,
    batches=stream, optim=cfg.optim, mesh=mesh, folder=job.out, checkpoint_every=cfg.checkpoint_every,
  ))
  checkpoint.save_model(job.out / inference.MODEL, params)
  job.count(lists=stream.lists, steps=len(stream), rows=stream.rows, row_tokens=row_tokens)


def _from_weights(job: artifacts.Job, network: networks.Network) -> Any:
  return network.initial(job.cfg.seed)


def _from_direct(job: artifacts.Job, network: networks.Network) -> Any:
  """The encoder of the retriever that learned the LLM's order; what it lacks (a head) as ever."""
  direct = networks.retriever(job.cfg.encoder)
  mesh = sharding.make_mesh(job.cfg.mesh)
  trained = inference.load_params(direct, job.inputs["train_direct"], mesh, job.cfg.seed)
  return network.initial(job.cfg.seed) | {"encoder": trained["encoder"]}


STARTS = {"weights": _from_weights, "direct": _from_direct}
