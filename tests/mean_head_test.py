"""The head over the mean of a pair's states: by hand, and as a folder that CrossEncoder loads without our code."""

import jax
import numpy as np
import pytest
import rows_of

from idistill_jax import config
from idistill_jax.data import tokenize
from idistill_jax.hf import export, networks
from idistill_jax.models import cross_encoder

QUERIES = ["merge two sorted lists", "open a file", "wait"]
PASSAGES = ["heapq.merge. Merge multiple sorted inputs into a single sorted output.", "io.open. Open file.", "Lock."]
LENGTH = 32


@pytest.fixture
def network(tiny_weights):
  return networks.ranker(config.Encoder(weights=tiny_weights), "mean")


@pytest.fixture
def scores(network):
  """The network's scores of the pairs, as a function of its parameters."""
  queries, passages = (network.tokenizer.table(texts, LENGTH) for texts in (QUERIES, PASSAGES))
  pairs = [tokenize.pair(queries[i], passages[i], passages.between) for i in range(len(QUERIES))]
  rows = rows_of.packed([ids for ids, _ in pairs], [types for _, types in pairs], 64)
  return lambda params: np.asarray(jax.jit(network.apply)(params, rows))


@pytest.fixture
def trained(network):
  """Parameters with a head that says something."""
  params = network.initial(0)
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=params["classifier"]["kernel"].shape) / 100
  return params | {"classifier": {"kernel": kernel.astype(np.float32), "bias": np.array([0.03], np.float32)}}


def test_untrained_it_leaves_the_ranking_to_the_added_similarity(network, scores):
  np.testing.assert_array_equal(scores(network.initial(0)), 0.0)


@pytest.mark.torch
def test_cross_encoder_loads_the_exported_folder_without_our_code(network, scores, trained, tmp_path):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  export.export_ranker(trained, network, tmp_path / "ranker", head="mean", similarity=None, card="card\n",
                       cut=export.Cut(query_tokens=LENGTH, passage_tokens=LENGTH))
  theirs = sentence_transformers.CrossEncoder(str(tmp_path / "ranker"), device="cpu", trust_remote_code=False)
  ours = scores(trained)
  np.testing.assert_allclose(theirs.predict(list(zip(QUERIES, PASSAGES, strict=True))), ours, atol=1e-4)
  assert np.ptp(ours) > 0.1
  assert cross_encoder.MeanLinear.SCALE != 1  # else a forgotten scale would pass


def test_the_exported_folder_is_one_of_starting_weights_head_included(network, trained, tmp_path):
  export.export_ranker(trained, network, tmp_path / "ranker", head="mean", similarity=None, card="card\n",
                       cut=export.Cut(query_tokens=LENGTH, passage_tokens=LENGTH))  # fmt: skip
  again = networks.ranker(config.Encoder(weights=str(tmp_path / "ranker")), "mean").initial(0)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), again, trained)
