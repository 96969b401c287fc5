"""Batches encoded in passes: the same values and gradients, less memory."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_world

from idistill_jax import config, sharding, validation
from idistill_jax.hf import networks
from idistill_jax.models import table
from idistill_jax.train import grad_cache, loop, objectives

MODELS = {
  "retriever": (lambda encoder: networks.retriever(encoder), False),
  "pair_cosine": (lambda encoder: networks.ranker(encoder, "pair_cosine"), True),
  "classifier": (lambda encoder: networks.ranker(encoder, "classifier"), True),
}


def network_and_batch(tmp_path, tiny_weights, name):
  build, pairs = MODELS[name]
  network = build(tiny_world.encoder(tiny_weights))
  if not (tmp_path / "lists-00000-of-00002.tfrecord").exists():
    tiny_world.write_lists(tmp_path)
  return network, tiny_world.stream(tmp_path, network, pairs)[0]


def loss_of(network, name, passes):
  if name == "retriever":
    return objectives.retriever(config.Retriever(loss="kl_batch", passes=passes), network)
  return objectives.ranker(config.Ranker(loss="listmle", passes=passes), network)


def assert_same(found, expected, tolerance=2e-5):
  found, expected = table.flatten(found), table.flatten(expected)
  largest = max(float(np.abs(leaf).max()) for leaf in expected.values())
  for path, leaf in expected.items():
    # A shift of all logits changes no softmax, nor one of all scores a list's loss: the gradients of the key's bias and
    # of the classifier's are rounding, of which the latter sums more.
    floor = (0.1 if path == "classifier/bias" else 1e-2) * largest
    scale = max(float(np.abs(leaf).max()), floor)
    np.testing.assert_allclose(np.asarray(found[path]) / scale, np.asarray(leaf) / scale, atol=tolerance, err_msg=path)


@pytest.mark.parametrize("name", MODELS)
def test_passes_are_invisible_in_loss_and_gradient(tmp_path, tiny_weights, name):
  network, batch = network_and_batch(tmp_path, tiny_weights, name)
  params = network.initial(0)
  whole, gradient = jax.jit(jax.value_and_grad(loss_of(network, name, 1)))(params, batch)
  assert batch.rows.token_ids.shape[0] == 8
  for passes in (2, 8):
    loss, found = jax.jit(jax.value_and_grad(loss_of(network, name, passes)))(params, batch)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    assert_same(found, gradient)


def test_passes_are_invisible_on_a_mesh(tmp_path, tiny_weights):
  network, batch = network_and_batch(tmp_path, tiny_weights, "retriever")
  mesh = sharding.make_mesh(config.Mesh(fsdp=2, data=2, tensor=2))
  params = network.initial(0)
  step = jax.jit(jax.value_and_grad(loss_of(network, "retriever", 2)))
  alone, gradient = step(params, batch)
  loss, found = step(jax.tree.map(jax.device_put, params, network.shardings(mesh)), loop.place(batch, mesh))
  np.testing.assert_allclose(loss, alone, rtol=1e-5)
  assert_same(found, gradient, tolerance=1e-4)


def test_halves_trained_apart_are_something_else(tmp_path, tiny_weights):
  # The control: accumulating the gradients of smaller batches loses the negatives between them.
  network, batch = network_and_batch(tmp_path, tiny_weights, "retriever")
  params, loss = network.initial(0), loss_of(network, "retriever", 1)
  apart = [dataclasses.replace(batch, where=batch.where & (np.arange(3) == b)[:, None]) for b in range(3)]
  whole = jax.jit(loss)(params, batch)
  assert abs(np.mean([jax.jit(loss)(params, one) for one in apart]) - whole) > 0.05


def test_passes_save_the_memory_of_what_they_do_not_keep(tmp_path, tiny_weights):
  network, batch = network_and_batch(tmp_path, tiny_weights, "retriever")
  params = network.initial(0)
  rows = jax.tree.map(lambda x: np.concatenate([x] * 32) if np.ndim(x) == 2 else x, batch.rows)

  def temporary(passes: int) -> int:
    encode = grad_cache.in_passes(network.apply, passes)
    compiled = jax.jit(jax.grad(lambda params: encode(params, rows).sum())).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # Parameters' gradients stay, activations shrink to an eighth.
  assert temporary(8) < 0.6 * temporary(1)


def test_no_passes_are_refused(tiny_weights):
  cfg = config.Config(name="x")
  cfg.retriever.passes = 0
  with pytest.raises(config.ConfigError, match=r"retriever\.passes"):
    validation.validate(cfg)
