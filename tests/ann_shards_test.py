"""Shards of ScaNN are one searcher: they find what one index or exact search finds, ties included."""

import gc
import importlib.util
import shutil

import numpy as np
import pytest

from idistill_jax import config
from idistill_jax.retrieval import ann, ann_shards, compact, exact, index, tuning

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
  tuned, recall = tuning.tune(shards, truth, QUERIES, 0.95)
  assert recall >= 0.95 and tuned.settings.leaves_to_search < shards.settings.leaves
  # Of other queries somewhat less, by chance, and more than in one leaf.
  held_out = drawn(100, 2)
  honest, one_leaf = oracle.search(held_out, 20), shards.searching(leaves=1, reorder=200)
  found = tuning.recall(honest, tuned.search(held_out, 20))
  assert found > 0.85 and found > tuning.recall(honest, one_leaf.search(held_out, 20))
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


@pytest.mark.parametrize("gone", [
  IDS[3:1900:7], [IDS[0]], [IDS[1899]], IDS[:475], [*IDS[:475], *IDS[1895:1900]], IDS[1425:1900], IDS[:1899]])
def test_what_is_removed_is_found_no_more_and_all_else_as_before(tmp_path, gone):
  """Also a whole shard of four, and all but one passage; later ones come to what is left, and some of them go."""
  cfg = config.Index(kind="scann", scann_shard_passages=MOST, tuned_depth=20)
  index.write(tmp_path, VECTORS[:1900], IDS[:1900], cfg, QUERIES)
  left = index.remove(tmp_path, IDS[:1900], set(gone))
  assert left == [one for one in IDS[:1900] if one not in set(gone)]
  rows = {one: row for row, one in enumerate(IDS)}
  assert_finds(tmp_path, left, VECTORS[[rows[one] for one in left]])
  late = drawn(100, 3)[:60]
  grown = index.upsert(tmp_path, left, [*IDS[1900:1959], left[0]], late)
  vectors = np.concatenate([late[59:], VECTORS[[rows[one] for one in left[1:]]], late[:59]])
  assert_finds(tmp_path, grown, vectors)
  again = index.remove(tmp_path, grown, {grown[0], *IDS[1900:1910]})
  kept = [row for row, one in enumerate(grown) if one in set(again)]
  assert len(again) == len(grown) - 11
  assert_finds(tmp_path, again, vectors[kept])


def assert_finds(folder, ids, vectors):
  """With all leaves ScaNN finds each passage by its own vector, or one that equals it, and all of them in the end."""
  np.testing.assert_array_equal(np.load(folder / compact.VECTORS), vectors)
  scann = index.open_scann(folder, ids)
  everything = scann.searching(leaves=scann.settings.leaves, reorder=len(ids))
  found = everything.search(vectors, 1)
  np.testing.assert_allclose((vectors[found.rows[:, 0]] * vectors).sum(1), 1.0, atol=1e-5)
  assert (found.rows[:, 0] == np.arange(len(ids))).mean() > 0.95
  assert sorted(everything.search(QUERIES[:1], len(ids) + 5).rows[0]) == list(range(len(ids)))
  scann.search(QUERIES, 20)  # as it is set


@pytest.mark.parametrize("gone", [IDS, [IDS[0], "another"], ["another"]])
def test_none_left_or_one_that_is_not_there_is_an_error_and_changes_nothing(folder, gone):
  shards = ann_shards.load(folder)
  with pytest.raises(ValueError, match="some must be left, and no other be named"):
    shards.remove(gone)
  one = shards._shards[0]
  with pytest.raises(ValueError, match="some must be left, and no other be named"):
    one.remove(gone)
  assert shards.ids == IDS and len(one) == one._searcher.size()


def test_passages_go_from_an_index_that_takes_no_new_ones(tmp_path):
  cfg = config.Index(kind="exact", precision="int8")
  index.write(tmp_path, VECTORS, IDS, cfg, QUERIES[:0])
  before = compact.read(tmp_path)
  left = index.remove(tmp_path, IDS, set(IDS[::3]))
  kept = [row for row in range(PASSAGES) if row % 3]
  assert left == [IDS[row] for row in kept]
  np.testing.assert_array_equal(compact.read(tmp_path), before[kept])
  assert index.open_default(tmp_path, left).search(VECTORS[50:51], 1).rows[0, 0] == kept.index(50)


def test_a_folder_without_shards_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="no shard of a ScaNN index; run the index stage again"):
    ann_shards.load(tmp_path)


@pytest.mark.parametrize("passages, most, lengths", [(1, 5, [1]), (5, 5, [5]), (6, 5, [3, 3]), (11, 5, [3, 4, 4])])
def test_runs_are_few_and_nearly_equal(passages, most, lengths):
  runs = ann_shards.runs(passages, most)
  assert [run.stop - run.start for run in runs] == lengths
  assert [i for run in runs for i in range(passages)[run]] == list(range(passages))
