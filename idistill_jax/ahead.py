"""What only a stage would find, hours after a pipeline has begun, looked at before its first."""

import dataclasses

from absl import logging

from idistill_jax import cli, config, flow, processes, sharding
from idistill_jax.hf import folders, prompts, weights
from idistill_jax.models import dual_encoder
from idistill_jax.train import networks


def check(runner: cli.Runner) -> None:
  """Raises what reading the starting weights would raise, and sharding.ShardingError for a mesh that a network still to
  be trained cannot lie on: not after its labels."""
  # A large corpus takes hours until weights are first read, and a name on the Hub may be misspelt.
  processes.once(lambda: _check_weights(runner.cfg.encoder), "the weights")
  _check_mesh(runner)


def _check_weights(cfg: config.Encoder) -> None:
  folder = folders.resolve(cfg.weights)
  weights.check(dataclasses.replace(cfg, weights=str(folder)))
  if not dual_encoder.read_embedding_config(folder, cfg.normalize).normalize:
    logging.info("retrievers compare by inner products: embeddings keep their lengths")
  if (found := prompts.read(folder, cfg)).any:
    logging.info("retrievers read %r before each query and %r before each passage", found.query, found.passage)


def _check_mesh(runner: cli.Runner) -> None:
  cfg, trained = runner.cfg, [flow.STAGES[name] for name in flow.TRAININGS]
  if processes.once(lambda: all(runner.workdir.is_done(stage, cfg) for stage in trained), "a look at the trainings"):
    return
  # By all: whoever first asks for the devices waits until the other processes have told of theirs.
  mesh = sharding.make_mesh(cfg.mesh)
  for network in (networks.retriever(cfg.encoder), networks.ranker(cfg.encoder, cfg.ranker.head)):
    network.shardings(mesh)
