"""The frame of the training stages: a network, lists and a start -> trained parameters."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from absl import logging

from idistill_jax import cli, processes, sharding
from idistill_jax import config as config_lib
from idistill_jax import records as records_lib
from idistill_jax.data import batches
from idistill_jax.hf import networks
from idistill_jax.train import checkpoint, inference, inputs, loop, objectives, shares
from idistill_jax.train import step as step_lib
from idistill_jax.workdir import artifacts

# A student that begins with so much of its probability on one passage of each list can only be wrong or right.
SHARP = 0.95
_LISTS_LOOKED_AT = 200


def fit(job: artifacts.Job, name: str, cfg: config_lib.Ranker | config_lib.Distillation, *, network: networks.Network,
        data: inputs.Inputs, texts: batches.Texts, loss_fn: step_lib.LossFn, start: Literal["weights", "direct"],
        trainings: int = 1) -> Any:
  """Parameters trained on the lists of `data`, read as `texts`; checkpoints and metrics.jsonl in the job's folder.

  start: as in config.Ranker; "direct" needs the train_direct stage among the job's inputs.  trainings: as in
  config.Distillation.
  """
  mesh = sharding.make_mesh(job.cfg.mesh)
  stream = batches.Batches(
    lists=data.lists, texts=texts, shape=shape(cfg, job.cfg.encoder.list_row_tokens, network, mesh),
    similarity=data.similarity, epochs=cfg.epochs * trainings, seed=job.cfg.seed,
    own=functools.partial(sharding.own_rows, mesh=mesh),
  )
  parts = [loop.Training(
    name=name, network=network, start=functools.partial(STARTS[start], job, network), loss_fn=loss_fn,
    batches=stream.part(part, trainings), optim=cfg.optim, mesh=mesh, folder=job.out,
    checkpoints=job.shared / artifacts.CHECKPOINTS / str(part), checkpoint_every=cfg.checkpoint_every, part=part,
    keep=job.keep, profile=cli.profiled_steps(),
  ) for part in range(trainings)]
  params = _mean(_trained(job, network, part) for part in parts)
  job.count(lists=len(data.lists), steps=len(stream), rows=stream.rows, row_tokens=stream.row_tokens)
  return params


def shape(cfg: config_lib.Ranker | config_lib.Distillation, row_tokens: int | None, network: networks.Network,
          mesh: jax.sharding.Mesh) -> batches.Shape:
  """Of the batches; row_tokens: as in batches.Shape."""
  execution = network.execution
  # Texts are gathered from all rows: that is for rows which one device has, all at once.
  by_text = execution.text_block if mesh.size == cfg.passes == 1 and network.sizes.attends_by_text else None
  return batches.Shape(
    lists=cfg.lists_per_batch, passages=cfg.passages_per_list, always_best=cfg.always_best, row_tokens=row_tokens,
    row_block=by_text or execution.row_block, text_block=by_text,
    attention_doubles=math.inf if by_text else execution.attention_doubles * network.sizes.hidden_size,
    row_multiple=sharding.batch_shards(mesh) * cfg.passes,
  )


def fit_retriever(job: artifacts.Job, name: str, cfg: config_lib.Distillation, *,
                  teacher: Sequence[records_lib.ScoredList | None], start: Literal["weights", "direct"]) -> Any:
  """Parameters of a dual encoder trained on the teacher's lists, which stay in the job's folder."""
  encoder = job.cfg.encoder
  shares.write(job, artifacts.TEACHER, teacher)
  network = networks.retriever(encoder).on(sharding.make_mesh(job.cfg.mesh), encoder.training_dtype)
  network = network.frozen(cfg.frozen_layers)
  data = inputs.load(job, network, encoder.list_cut, "candidates", teacher)
  # The similarities are those of the starting weights, and MarginMSE has no softmax.
  if start == "weights" and cfg.loss != "margin_mse" and processes.is_first():
    warn_of_sharpness(name, data, cfg.student_temperature)
  return fit(
    job, name, cfg, network=network, data=data,
    texts=batches.DualTexts(queries=data.query_tokens, passages=data.passage_tokens),
    loss_fn=objectives.retriever(cfg, network), start=start, trainings=cfg.trainings,
  )


def warn_of_sharpness(name: str, data: inputs.Inputs, temperature: float) -> None:
  """Says where a temperature made for cosines meets inner products that lie further apart, and what would suit."""
  similarities = [
    data.similarity(one.query_row, one.passage_rows)
    for one in data.lists[:_LISTS_LOOKED_AT] if len(one.passage_rows) > 1
  ]
  if not similarities:
    return
  # The largest of a softmax is one over this sum.
  sharpness = np.mean([1 / np.exp((one - one.max()) / temperature).sum() for one in similarities])
  if sharpness > SHARP:
    spread = np.mean([one.std() for one in similarities])
    logging.warning(
      "%s: the starting weights put %.0f %% of a list's probability on one passage: their similarities spread by %.3g "
      "(standard deviation in a list), and student_temperature is %g; about %.2g leaves them something to learn",
      name, 100 * sharpness, spread, temperature, spread,
    )


def _trained(job: artifacts.Job, network: networks.Network, training: loop.Training) -> Any:
  """Parameters of one of the trainings; a finished one is found again when the stage is taken up later."""
  # Not among the pieces: these begin when the stage's own model is there, and then helpers come.
  folder = job.shared / artifacts.CHECKPOINTS / "trained" / str(training.part)
  checkpoint.save_model_once(folder / inference.MODEL, lambda: loop.train(training))
  return inference.load_params(network, folder, training.mesh, job.cfg.seed)


def _mean(models: Iterator[Any]) -> Any:
  """Of each parameter, one model at a time; what all have alike, as frozen layers, stays as it is, to the bit."""
  mean = next(models)
  for count, params in enumerate(models, 2):
    mean = jax.tree.map(lambda so_far, own, count=count: so_far + (own - so_far) / count, mean, params)
  return mean


def averaged(job: artifacts.Job, params: Any, direct_share: float) -> Any:
  """The weighted mean of a retriever's parameters and the direct retriever's.

  Models trained apart from the same start err apart, and their mean errs less than either: Wortsman et al. (2022),
  "Model soups", arXiv 2203.05482.
  """
  return jax.tree.map(lambda own, direct: (1 - direct_share) * own + direct_share * direct, params, _direct(job))


def reaching(job: artifacts.Job, params: Any, reach: float) -> Any:
  """The weights so many times as far from the starting ones as `params` are: Ilharco et al. (2023), "Editing models
  with task arithmetic", arXiv 2212.04089.  A mean of models lies nearer to their start than each of them."""
  start = STARTS["weights"](job, networks.retriever(job.cfg.encoder))
  return jax.tree.map(lambda own, first: first + reach * (own - first), params, start)


def _from_weights(job: artifacts.Job, network: networks.Network) -> Any:
  return network.initial(job.cfg.seed)


def _from_direct(job: artifacts.Job, network: networks.Network) -> Any:
  """What the retriever that learned the LLM's order has of them; what it lacks (a head) as ever."""
  return network.initial(job.cfg.seed) | {name: part for name, part in _direct(job).items() if name in network.abstract}


def _direct(job: artifacts.Job) -> Any:
  network, mesh = networks.retriever(job.cfg.encoder), sharding.make_mesh(job.cfg.mesh)
  return inference.load_params(network, job.inputs["train_direct"], mesh, job.cfg.seed)


STARTS = {"weights": _from_weights, "direct": _from_direct}
