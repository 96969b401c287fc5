"""What only a stage would find, hours after a pipeline has begun, looked at before its first."""

import dataclasses

from absl import logging

from idistill_jax import cli, config, flow, processes, sharding
from idistill_jax.hf import folders, networks, prompts, upload, weights
from idistill_jax.llm import session
from idistill_jax.models import compared, dual_encoder, families
from idistill_jax.report import page
from idistill_jax.retrieval import ann, bm25, index, measures, runs, summary, systems


def check(runner: cli.Runner) -> None:
  """Raises what reading the starting weights would raise, sharding.ShardingError for a mesh that a network still to be
  trained cannot lie on, ConfigError for one whose layers would all be frozen, and what stages still to be run would
  raise of an LLM, a run or a package; asks nobody, writes nothing."""
  # A large corpus takes hours until weights are first read, and a name on the Hub may be misspelt.
  processes.once(lambda: _check_weights(runner.cfg), "the weights")
  _check_trainings(runner)
  processes.once(lambda: _check_outside(runner), "a look at what is asked and read")
  check_index(runner)


def check_index(runner: cli.Runner) -> None:
  """Raises ann.ScannUnavailableError where the index will be ScaNN's and that cannot run; whether it will be may depend
  on how large the corpus is, so this is looked at once more when there is one."""

  def look() -> None:
    passages = (runner.workdir.manifest("collection") or {}).get("counts", {}).get("passages", 0)
    if index.choose(runner.cfg.index.kind, passages) == index.SCANN and _to_be_run(runner, "index"):
      ann.check_runs()

  processes.once(look, "a look at what the index needs")


def _check_weights(whole: config.Config) -> None:
  """Raises ConfigError, too, where an index wants more dimensions than embeddings have."""
  cfg, wanted = whole.encoder, whole.index.dimensions
  folder = folders.resolve(cfg.weights)
  weights.check(dataclasses.replace(cfg, weights=str(folder)))
  embedding = dual_encoder.read_embedding_config(folder, cfg.normalize)
  if wanted is not None and wanted > (width := embedding.width(families.read_config(folder).hidden_size)):
    raise config.ConfigError(f"index.dimensions is {wanted}; the embeddings of {cfg.weights} have {width}")
  if not embedding.normalize:
    logging.info("retrievers compare by inner products: embeddings keep their lengths%s",
                 "" if compared.stated(folder) or compared.modules(folder) is None else
                 "; sentence-transformers would take cosines of these weights, as encoder.normalize=true does")
  if (found := prompts.read(folder, cfg)).any:
    logging.info("retrievers read %r before each query and %r before each passage", found.query, found.passage)


def _check_trainings(runner: cli.Runner) -> None:
  cfg, trained = runner.cfg, [flow.STAGES[name] for name in flow.TRAININGS]
  if processes.once(lambda: all(runner.workdir.is_done(stage, cfg) for stage in trained), "a look at the trainings"):
    return
  # By all: whoever first asks for the devices waits until the other processes have told of theirs.
  mesh = sharding.make_mesh(cfg.mesh)
  retriever, ranker = networks.retriever(cfg.encoder), networks.ranker(cfg.encoder, cfg.ranker.head)
  for network in (retriever, ranker):
    network.shardings(mesh)
  for network, training in (retriever, cfg.direct), (ranker, cfg.ranker), (retriever, cfg.retriever):
    network.frozen(training.frozen_layers)


def _check_outside(runner: cli.Runner) -> None:
  """Raises protocol.Stop for an LLM without its key or SDK, runs.RunError for `candidates.run` and the files of
  `evaluate.runs`, ImportError for a package that is not there, upload.UploadError for what could not be uploaded."""
  cfg = runner.cfg
  for name, asked in session.ASKING.items():
    if session.asks(name, cfg) and _to_be_run(runner, name):
      session.check(asked(cfg))
  if cfg.candidates.run is not None and _to_be_run(runner, "candidates"):
    runs.read_trec(cfg.candidates.run)
  if _to_be_run(runner, "evaluate"):
    systems.read_runs(cfg)
    bm25.packages()
    measures.package()
  if _to_be_run(runner, "report"):
    page.packages()
  if cfg.evaluate.parquet and (_to_be_run(runner, "evaluate") or _to_be_run(runner, "answer")):
    summary.parquet()
  if _to_be_run(runner, "export"):
    upload.client_for((cfg.export.upload_ranker, cfg.export.upload_retriever))


def _to_be_run(runner: cli.Runner, name: str) -> bool:
  """Neither done, nor in a workdir from which it may be taken over: whether it can be is known when its inputs are."""
  stage = flow.STAGES[name]
  return not runner.workdir.is_done(stage, runner.cfg) and not any(
    other.manifest(name) for other in runner.others(stage))
