"""Frozen layers: no gradient reaches them or what lies below, nothing decays there, and all else learns as before."""

import jax
import numpy as np
import pytest
import rows_of
import small_models

from idistill_jax import config, sharding
from idistill_jax.hf import networks
from idistill_jax.models import table as table_lib
from idistill_jax.train import fit, optim
from idistill_jax.train import step as step_lib

pytest.importorskip("transformers")
pytest.importorskip("torch")
pytestmark = pytest.mark.torch

MESH = sharding.make_mesh(config.Mesh(data=1), jax.devices()[:1])
STRONG = config.Optim(peak_lr=0.1, weight_decay=1.0)


# These have the parameters of another one that is here, or fewer.
ALIKE = {"bert with one type", "roberta", "xlm-roberta", "camembert", "distilbert", "electra as wide as its embeddings",
         "nomic_bert", "gte without types", "modernbert of the first token", "eurobert", "t5"}


@pytest.fixture(scope="module", params=[name for name in small_models.SMALL if name not in ALIKE])
def network(request, tmp_path_factory) -> networks.Retriever:
  folder = small_models.write(request.param, tmp_path_factory.mktemp("small"))
  return networks.retriever(config.Encoder(
    weights=str(folder), normalize=False, query_tokens=10, passage_tokens=24, row_tokens=64)).on(MESH, "float32")


def gradients(network: networks.Network, params) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Of a sum over the embeddings that weighs each otherwise."""
  table = network.passage_table(small_models.TEXTS, 24)
  rows = rows_of.packed([table[i] for i in range(len(small_models.TEXTS))], None, 64)
  weights = np.random.default_rng(0).normal(size=(rows.starts.size, *network.each)).astype(np.float32)
  summed = lambda params: (network.apply(params, rows) * weights).sum()
  value, found = jax.jit(jax.value_and_grad(summed))(params)
  return np.asarray(value), {path: np.asarray(leaf) for path, leaf in table_lib.flatten(found).items()}


@pytest.fixture(scope="module")
def of_frozen(network) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Value and gradients where the first layer is frozen."""
  return gradients(network.frozen(1), network.initial(0))


def test_only_what_lies_above_learns(network, of_frozen):
  params = network.initial(0)
  changes = {path: np.broadcast_to(mask, leaf.shape) for (path, leaf), mask in zip(
    table_lib.flatten(params).items(),
    table_lib.flatten(table_lib.trained_mask(network.table, params, 1)).values(), strict=True)}
  (value, whole), (same, part) = gradients(network, params), of_frozen
  np.testing.assert_allclose(same, value, rtol=1e-5)
  largest = max(np.abs(gradient).max() for gradient in whole.values())
  for path, learns in changes.items():
    assert not part[path][~learns].any(), path
    row = network.table.row(path)
    if row.stacked:
      np.testing.assert_allclose(part[path][learns], whole[path][learns], atol=1e-5 * largest, err_msg=path)
    # What has no gradient, and is not said to be frozen, would decay.
    assert part[path].any() or not learns.all() or not row.decays, path
  assert not any(changes["encoder/word/embedding"].ravel())
  assert whole["encoder/word/embedding"].any() and any(whole[path][~learns].any() for path, learns in changes.items())


def test_nothing_decays_there(network, of_frozen):
  params, gradient = network.initial(0), of_frozen[1]
  mask = table_lib.flatten(table_lib.trained_mask(network.table, params, 1))

  def stayed(one: networks.Network) -> set[str]:
    """Paths of which nothing changed that one step would have left as it is."""
    tx = optim.of(one, STRONG, 10)
    updates, _ = jax.jit(tx.update)(table_lib.unflatten(gradient), jax.jit(tx.init)(params), params)
    return {path for path, update in table_lib.flatten(updates).items()
            if not np.asarray(update)[~np.broadcast_to(mask[path], update.shape)].any()}

  assert stayed(network.frozen(1)) == mask.keys()
  assert "encoder/word/embedding" not in stayed(network)


def test_what_stays_as_a_whole_has_no_moments(network):
  params = network.initial(0)
  mask = table_lib.flatten(table_lib.trained_mask(network.table, params, 1))
  stays = sum(leaf.size for path, leaf in table_lib.flatten(params).items() if not np.any(mask[path]))

  def kept(one: networks.Network) -> int:
    state = step_lib.init(params, optim.of(one, STRONG, 10), one.shardings(MESH), MESH)
    return sum(leaf.size for leaf in jax.tree.leaves(state.opt_state))

  assert stays and kept(network) - kept(network.frozen(1)) == 2 * stays


@pytest.mark.parametrize("trainings", [1, 2, 3, 5])
def test_the_mean_of_trainings_leaves_what_they_have_alike(trainings):
  rng = np.random.default_rng(0)
  alike, *learned = rng.normal(size=(1 + trainings, 1000)).astype(np.float32)
  found = fit._mean({"alike": jax.numpy.asarray(alike), "learned": jax.numpy.asarray(one)} for one in learned)
  np.testing.assert_array_equal(found["alike"], alike)
  np.testing.assert_allclose(found["learned"], np.mean(learned, 0), atol=1e-6)


def test_one_layer_at_least_learns(network):
  layers = network.sizes.num_hidden_layers
  said = f"frozen_layers is {layers}; .* has {layers} layers, of which one at least must learn"
  with pytest.raises(config.ConfigError, match=said):
    network.frozen(layers)
  assert network.frozen(layers - 1).execution.frozen_layers == layers - 1
