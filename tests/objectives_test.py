"""The ranker's objective: lists count by their weights, and equally where nothing says otherwise."""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import pytest

from idistill_jax import config, losses
from idistill_jax.data import batches
from idistill_jax.train import objectives


def batch(weights) -> batches.ListBatch:
  rng = np.random.default_rng(0)
  lists, width = len(weights), 5
  where = np.ones((lists, width), bool)
  where[1, 3:] = where[-1] = False  # a shorter list, and none at all
  known = np.ones((lists, width), bool)
  known[0, 4] = False
  return batches.ListBatch(
    rows=rng.normal(size=(lists * width,)).astype(np.float32),
    values=np.tile(np.arange(5.0, dtype=np.float32), (lists, 1)),
    where=where, known=known, passage_rows=None, list_rows=None,
    similarities=rng.normal(size=(lists, width)).astype(np.float32), weights=np.array(weights, np.float32),
  )


def objective(loss: str):
  network = types.SimpleNamespace(apply=lambda params, rows: params * rows)
  return objectives.ranker(config.Ranker(loss=loss, top_places=3, similarity_weight=2.0), network)


@pytest.mark.parametrize("loss", losses.LISTWISE)
def test_equal_weights_change_nothing(loss):
  one = batch([1, 1, 1, 1])
  scores = jnp.asarray(one.rows).reshape(4, 5) * 1.5 + 2.0 * one.similarities
  expected = losses.LISTWISE[loss](scores, one.values, where=one.where, top_places=3, known=one.known)
  assert objective(loss)(1.5, one) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("loss", losses.LISTWISE)
def test_a_list_counts_by_its_weight_whoever_is_beside_it(loss):
  alone = [objective(loss)(1.5, batch([float(i == k) for i in range(4)])) for k in range(3)]
  mixed = objective(loss)(1.5, batch([0.5, 0.25, 1.0, 7.0]))
  assert mixed == pytest.approx(float(0.5 * alone[0] + 0.25 * alone[1] + alone[2]), rel=1e-6)
  assert min(map(float, alone)) > 0


def test_a_list_of_weight_zero_teaches_nothing():
  slope = jax.grad(objective("listmle"))
  only_first = jax.grad(lambda p, b: objective("listmle")(p, b) * 3)(1.5, batch([1, 0, 0, 0]))
  assert float(slope(1.5, batch([0, 0, 0, 0]))) == 0.0 and abs(float(only_first)) > 1e-3


COMPILED = """
import json, pathlib, sys
import jax
import numpy as np
import tiny_world
from idistill_jax import config, losses
from idistill_jax.hf import networks
from idistill_jax.train import objectives

weights, folder = sys.argv[1], pathlib.Path(sys.argv[2])
network = networks.ranker(tiny_world.encoder(weights), "classifier")
tiny_world.write_lists(folder)
params, stream = network.initial(0), tiny_world.stream(folder, network, pairs=True)
apply, worst = jax.jit(network.apply), {}
for name, loss in losses.LISTWISE.items():
  cfg = config.Ranker(head="classifier", loss=name, top_places=2, similarity_weight=3.0)
  objective = jax.jit(objectives.ranker(cfg, network))
  for one in (stream[i] for i in range(len(stream))):
    scores = np.asarray(apply(params, one.rows)).reshape(one.where.shape) + np.float32(3.0) * one.similarities
    alone = float(loss(scores, one.values, where=one.where, top_places=2, known=one.known))
    worst[name] = max(worst.get(name, 0.0), abs(float(objective(params, one)) / alone - 1))
print(json.dumps(worst))
"""


def test_compiled_with_the_network_it_is_what_it_is_of_the_finished_scores(tiny_weights, tmp_path):
  """XLA may compute a score anew, and round it otherwise, wherever it is read: nothing may rest on its being equal to
  itself.  In a process that compiles as users' do: this one leaves out what would show it."""
  paths = [str(folder) for folder in (jobs.TESTS, jobs.TESTS.parent)]
  environment = os.environ | {
    "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "PYTHONPATH": os.pathsep.join(paths)}
  done = subprocess.run([sys.executable, "-c", COMPILED, tiny_weights, str(tmp_path)], env=environment, text=True,
                        capture_output=True, timeout=300)  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  worst = json.loads(done.stdout)
  assert worst.keys() == losses.LISTWISE.keys() and max(worst.values()) < 1e-4, worst
