"""The direct control, and trainings that start from it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_world

from idistill_jax import config, sharding, validation
from idistill_jax.hf import networks
from idistill_jax.models import table
from idistill_jax.train import checkpoint, fit, inference, loop
from idistill_jax.workdir import artifacts


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_weights) -> artifacts.Job:
  """A job whose train_direct folder holds a retriever that is not the starting one."""
  cfg = config.Config(name="x", encoder=tiny_world.encoder(tiny_weights))
  folder = tmp_path_factory.mktemp("train_direct")
  network = networks.retriever(cfg.encoder)
  trained = {path: leaf + 0.5 for path, leaf in table.flatten(network.initial(0)).items()}
  checkpoint.save_model(folder / inference.MODEL, table.unflatten(trained))
  return artifacts.Job(cfg=cfg, out=folder, inputs={"train_direct": folder}, cache=folder)


@pytest.mark.parametrize("head", ["pair_cosine", "classifier"])
def test_a_ranker_starts_with_the_encoder_of_either(job, head):
  network = networks.ranker(job.cfg.encoder, head)
  weights, direct = (table.flatten(fit.STARTS[start](job, network)) for start in ("weights", "direct"))
  assert weights.keys() == direct.keys()
  for path, leaf in weights.items():
    # A head that the retriever lacks is the same in both.
    moved = 0.5 if path.startswith("encoder/") else 0.0
    np.testing.assert_allclose(direct[path], leaf + moved, rtol=1e-6, err_msg=path)


def test_the_start_fits_the_mesh(job):
  network = networks.retriever(job.cfg.encoder)
  mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2))
  loaded = inference.load_params(network, job.inputs["train_direct"], mesh, 0)
  for path, leaf in table.flatten(fit.STARTS["direct"](job, network)).items():
    np.testing.assert_array_equal(leaf, table.flatten(loaded)[path])


def test_weights_are_averaged_by_share(job):
  network = networks.retriever(job.cfg.encoder)
  own, direct = network.initial(0), fit.STARTS["direct"](job, network)
  mixed = table.flatten(fit.averaged(job, own, 0.25))
  for path, leaf in table.flatten(own).items():
    np.testing.assert_allclose(mixed[path], 0.75 * leaf + 0.25 * np.asarray(table.flatten(direct)[path]), rtol=1e-5,
                               atol=1e-7, err_msg=path)


def test_reach_leads_from_the_starting_weights_beyond_the_trained_ones(job, tiny_weights):
  network = networks.retriever(job.cfg.encoder)
  start = table.flatten(network.initial(0))
  trained = table.unflatten({path: leaf + 0.5 for path, leaf in start.items()})
  for path, leaf in table.flatten(fit.reaching(job, trained, 1.5)).items():
    np.testing.assert_allclose(leaf, np.asarray(start[path]) + 0.75, rtol=1e-6, atol=1e-6, err_msg=path)


def test_several_trainings_are_averaged_and_finished_ones_are_found_again(job, tmp_path, tiny_weights, monkeypatch):
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  whole = tiny_world.training(tmp_path, tiny_weights, mesh, pairs=False)
  here = artifacts.Job(cfg=job.cfg, out=tmp_path, inputs={}, cache=tmp_path)
  parts = [dataclasses.replace(whole, batches=whole.batches.part(part, 2), part=part,
                               checkpoints=whole.checkpoints / str(part)) for part in range(2)]
  first = table.flatten(fit._trained(here, whole.network, parts[0]))
  mean = table.flatten(fit._mean(fit._trained(here, whole.network, part) for part in parts))

  def never(training):
    pytest.fail(f"part {training.part} is trained again")

  monkeypatch.setattr(loop, "train", never)
  second = table.flatten(fit._trained(here, whole.network, parts[1]))
  moved = 0.0
  for path, leaf in mean.items():
    one, other = np.asarray(first[path]), np.asarray(second[path])
    np.testing.assert_allclose(leaf, (one + other) / 2, rtol=1e-6, atol=1e-7, err_msg=path)
    moved = max(moved, np.abs(one - other).max())
  assert moved > 1e-4  # control: each saw the lists in other company
  steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert steps == list(range(1, 9))


@pytest.mark.parametrize("field, value", [("direct_share", 1.5), ("reach", 0.0)])
def test_a_share_beyond_the_whole_and_no_reach_are_refused(field, value):
  cfg = config.Config(name="x", retriever=config.Retriever(**{field: value}))
  with pytest.raises(config.ConfigError, match=rf"retriever\.{field}"):
    validation.validate(cfg)
