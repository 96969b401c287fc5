"""Ranker and retriever as Hugging Face folders, and onto the Hub where the config names a repository.

    python -m idistill_jax.stages.export --config=configs/quickstart.py --workdir=runs/quickstart

train_direct, train_ranker, train_retriever (parameters), collection, labels, evaluate (facts for the cards) -> ranker/
and retriever/.  The retriever whose similarity is a term of the ranker's score lies in ranker/similarity/.
"""

import json
import pathlib
from typing import Any

import jax

from idistill_jax import cli, flow, records, sharding
from idistill_jax.data import example
from idistill_jax.hf import card, export, networks, upload
from idistill_jax.report import claims
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts, outdated

RANKER: card.Kind = "ranker"
RETRIEVER: card.Kind = "retriever"
_METRICS = "metrics.json"


def run(job: artifacts.Job) -> None:
  cfg = job.cfg
  repositories: dict[card.Kind, str | None] = {RANKER: cfg.export.upload_ranker, RETRIEVER: cfg.export.upload_retriever}
  # First of all, so that a missing token is told before anything is written.
  api = upload.client_for(repositories.values())
  mesh = sharding.local_mesh(cfg.mesh)
  cut = export.Cut(query_tokens=cfg.encoder.query_tokens, passage_tokens=cfg.encoder.passage_tokens)
  pair_cut = export.Cut(query_tokens=cfg.encoder.query_tokens, passage_tokens=cfg.encoder.pair_cut)

  loaded_as = {name: repository or f"path/to/{name}" for name, repository in repositories.items()}

  network = networks.ranker(cfg.encoder, cfg.ranker.head)
  params = inference.load_params(network, job.inputs["train_ranker"], mesh, cfg.seed)
  retriever = networks.retriever(cfg.encoder)
  told = facts(job, "train_ranker", retriever)
  text = card.render(RANKER, told, loaded_as[RANKER])
  export.export_ranker(params, network, job.out / RANKER, head=cfg.ranker.head, cut=pair_cut,
                       similarity=similarity(job, retriever, told, cut, mesh), card=text)

  params = inference.load_params(retriever, job.inputs["train_retriever"], mesh, cfg.seed)
  text = card.render(RETRIEVER, facts(job, "train_retriever", retriever), loaded_as[RETRIEVER])
  export.export_retriever(params, retriever, job.out / RETRIEVER, cut=cut, card=text)

  for name, repository in repositories.items():
    if repository is not None:
      job.count(**{f"{name} uploaded": upload.upload(api, job.out / name, repository, private=cfg.export.private)})
  job.count(**{f"{name} bytes": _size(job.out / name) for name in repositories})


def similarity(
  job: artifacts.Job, network: networks.Retriever, told: card.Facts, cut: export.Cut, mesh: jax.sharding.Mesh
) -> export.Similarity | None:
  """The term of the ranker's score that is no reading of the pair, from the retriever that the ranker starts from."""
  cfg = job.cfg
  if cfg.ranker.similarity_weight is None:
    return None
  trained = {"weights": None, "direct": job.inputs["train_direct"]}[cfg.ranker.start]
  return export.Similarity(
    weight=cfg.ranker.similarity_weight, params=inference.load_params(network, trained, mesh, cfg.seed),
    network=network, cut=cut, card=card.of_similarity(told),
  )


def facts(job: artifacts.Job, training: str, retriever: networks.Retriever) -> card.Facts:
  """What the model card tells, from what the stages that made the model have written; of what was measured of an
  earlier model, nothing."""
  manifests = {name: _read_json(folder / artifacts.MANIFEST) for name, folder in job.inputs.items()}
  lists = example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList)
  metrics = job.inputs["evaluate"] / _METRICS
  measured = _read_json(metrics) if metrics.exists() and not outdated.made_anew(manifests, "evaluate") else None
  return card.Facts(
    cfg=job.cfg, retriever=retriever,
    collection=manifests["collection"]["counts"], labels=manifests["labels"]["counts"],
    longest_list=max(len(one.passage_ids) for one in lists),
    training=manifests[training]["counts"], versions=manifests[training]["versions"],
    metrics=measured, caveats=claims.caveats(measured) if measured else (),
  )


def _read_json(path: pathlib.Path) -> Any:
  return json.loads(path.read_text(encoding="utf-8"))


def _size(folder: pathlib.Path) -> int:
  return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
  cli.main(flow.STAGES["export"])
