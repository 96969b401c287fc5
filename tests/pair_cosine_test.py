"""The pair-cosine head: the cosine of the halves by hand, torch's version of it, and the exported folder."""

import jax
import numpy as np
import pytest
import rows_of

from idistill_jax import config
from idistill_jax.data import tokenize
from idistill_jax.hf import export
from idistill_jax.models import bert
from idistill_jax.train import networks

QUERIES = ["merge two sorted lists", "open a file", "wait"]
PASSAGES = ["heapq.merge. Merge multiple sorted inputs into a single sorted output.", "io.open. Open file.", "Lock."]


@pytest.fixture
def network(tiny_weights):
  return networks.ranker(config.Encoder(weights=tiny_weights), "pair_cosine")


@pytest.fixture
def pairs(network):
  queries, passages = (network.tokenizer.table(texts, 32) for texts in (QUERIES, PASSAGES))
  return [tokenize.pair(queries[i], passages[i]) for i in range(len(QUERIES))]


def test_score_is_the_cosine_of_the_means_of_the_halves(network, pairs):
  params = network.initial(0)
  rows = rows_of.packed([ids for ids, _ in pairs], [types for _, types in pairs], 64)
  scores = np.asarray(jax.jit(network.apply)(params, rows))
  encoder = bert.Bert.__call__
  states = np.asarray(jax.jit(lambda p, r: encoder(_merged(network, p).encoder, r, network.execution))(params, rows))
  for i, (ids, types) in enumerate(pairs):
    mine = states[rows.text_ids == i]
    assert len(mine) == len(ids)
    query, passage = (mine[types == half].mean(0) for half in (0, 1))
    expected = 20 * query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
    assert scores[i] == pytest.approx(expected, abs=1e-4)
  # Control: the halves read apart give another number, so the joint reading matters.
  assert np.ptp(scores) > 1e-2


def _merged(network, params):
  from flax import nnx

  return nnx.merge(network.graph, params)


@pytest.mark.torch
def test_cross_encoder_loads_the_exported_folder_with_the_same_scores(network, pairs, tmp_path):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  params = network.initial(0)
  export.export_ranker(params, network, tmp_path / "ranker", head="pair_cosine", similarity_weight=10.0, card="card\n",
                       cut=export.Cut(query_tokens=32, passage_tokens=32))
  rows = rows_of.packed([ids for ids, _ in pairs], [types for _, types in pairs], 64)
  ours = np.asarray(jax.jit(network.apply)(params, rows))
  theirs = sentence_transformers.CrossEncoder(str(tmp_path / "ranker"), device="cpu", trust_remote_code=True)
  np.testing.assert_allclose(theirs.predict(list(zip(QUERIES, PASSAGES, strict=True))), ours, atol=1e-4)
  # Without being told to, nothing is loaded; a head of random weights must not be put in its place.
  with pytest.raises(Exception, match="trust_remote_code"):
    sentence_transformers.CrossEncoder(str(tmp_path / "ranker"), device="cpu")
