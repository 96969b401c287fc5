"""Shards of ScaNN are one searcher: they find what one index or exact search finds, ties included."""

import gc
import importlib.util
import shutil

import numpy as np
import pytest

from idistill_jax import config
from idistill_jax.retrieval import ann, ann_shards, exact, index, tuning

# Not importorskip: importing scann in this process brings TensorFlow in, where that is installed.
if importlib.util.find_spec("scann") is None:
  pytest.skip("the extra `retrieval` is not installed", allow_module_level=True)

PASSAGES, MOST = 2000, 600
IDS = [f"p{number}" for number in np.random.default_rng(0).permutation(PASSAGES)]


def drawn(count: int, seed: int) -> np.ndarray:
  """Unit vectors around 20 centres; the last 40 of them equal the first."""
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(0).standard_normal((20, 32))
  vectors = centres[rng.integers(0, 20, count)] + 0.7 * rng.standard_normal((count, 32))
  vectors[-40:] = vectors[:40]
  return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, QUERIES = drawn(PASSAGES, 0), drawn(100, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Four shards, built with no more than one in memory, in a folder that has moved since."""
  here, alive = tmp_path_factory.mktemp("here"), []

  def parts():
    for run in ann_shards.runs(PASSAGES, MOST):
      alive.append(sum(isinstance(one, ann.Scann) for one in gc.get_objects()))
      yield VECTORS[run], IDS[run]

  assert ann_shards.build(here, parts()).shards == len(alive) == 4
  assert set(alive) == {alive[0]}
  return shutil.move(here, here.with_name("there"))


def test_merged_they_find_what_exact_search_finds(folder):
  shards = ann_shards.load(folder)
  everything = shards.searching(leaves=shards.settings.leaves, reorder=PASSAGES)
  found, truth = everything.search(VECTORS[:60], 50), exact.Exact(VECTORS, IDS).search(VECTORS[:60], 50)
  np.testing.assert_array_equal(found.rows[:, :2], truth.rows[:, :2])  # the equal ones of two shards
  assert tuning.recall(truth, found) > 0.999  # sums of another order may change places at the end
  np.testing.assert_allclose(found.scores, truth.scores, atol=1e-5)
  alone = ann.build(VECTORS, IDS)
  one = alone.searching(leaves=alone.settings.leaves, reorder=PASSAGES).search(VECTORS[:60], 50)
  assert tuning.recall(one, found) > 0.999
  # More than there is.
  assert everything.search(QUERIES[:1], PASSAGES + 5).rows.shape == (1, PASSAGES)


def test_they_are_tuned_together(folder):
  shards, oracle = ann_shards.load(folder), exact.Exact(VECTORS, IDS)
  truth = oracle.search(QUERIES, 20)
  tuned, recall = tuning.tune(shards, truth, QUERIES, 0.9)
  assert recall >= 0.9 and tuned.settings.leaves_to_search < shards.settings.leaves
  held_out = drawn(100, 2)
  assert tuning.recall(oracle.search(held_out, 20), tuned.search(held_out, 20)) > 0.85
  tuned.save_settings(folder)
  again = ann_shards.load(folder)
  assert again.settings == tuned.settings
  np.testing.assert_array_equal(again.search(QUERIES, 20).rows, tuned.search(QUERIES, 20).rows)


def test_an_index_folder_in_shards_takes_later_passages(tmp_path):
  cfg = config.Index(kind="scann", scann_shard_passages=MOST, tuned_depth=20)
  old, late = VECTORS[:1900], drawn(100, 3)
  made = index.write(tmp_path, old, IDS[:1900], cfg, QUERIES)
  assert made["shards"] == 4 and made["tuned recall@20"] >= 0.9
  oracle = index.oracle(tmp_path, index.open_exact(tmp_path, IDS[:1900]), QUERIES, 20)
  said = index.honesty(tmp_path, IDS[:1900], QUERIES, oracle, cfg)
  assert said["index"] == "scann" and said["shards"] == 4
  assert said["recall@20 of exact"] == pytest.approx(made["tuned recall@20"], abs=1e-3)
  # Twenty new ones, and new vectors for one of the first shard.
  ids = index.upsert(tmp_path, IDS[:1900], [*IDS[1900:1920], IDS[5]], late[:21])
  assert ids == IDS[:1920]
  grown = index.open_scann(tmp_path, ids)
  assert len(grown) == 1920
  # All leaves: as tuned, the search may miss any single passage, a new one too.
  found = grown.searching(leaves=grown.settings.leaves, reorder=1920).search(late[:21], 1)
  assert found.rows[:, 0].tolist() == [*range(1900, 1920), 5]


def test_a_folder_without_shards_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="no shard of a ScaNN index; run the index stage again"):
    ann_shards.load(tmp_path)


@pytest.mark.parametrize("passages, most, lengths", [(1, 5, [1]), (5, 5, [5]), (6, 5, [3, 3]), (11, 5, [3, 4, 4])])
def test_runs_are_few_and_nearly_equal(passages, most, lengths):
  runs = ann_shards.runs(passages, most)
  assert [run.stop - run.start for run in runs] == lengths
  assert [i for run in runs for i in range(passages)[run]] == list(range(passages))
