"""Exact search equals sorting all inner products, however it is cut into blocks and spread over devices."""

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax import config, sharding
from idistill_jax.retrieval import exact, hits, index, runs


def by_sorting(vectors_PxE: np.ndarray, ids: list[str], queries_QxE: np.ndarray, k: int) -> list[list[str]]:
  """The k best ids of each query, by Python's sort."""
  scores_QxP = queries_QxE.astype(np.float64) @ vectors_PxE.astype(np.float64).T
  return [sorted(ids, key=lambda i: (row[ids.index(i)] + 0.0, i), reverse=True)[:k] for row in scores_QxP]


def searched(found: hits.Hits, ids: list[str]) -> list[list[str]]:
  return [[ids[row] for row in rows] for rows in found.rows]


def integers(rng: np.random.Generator, *shape: int) -> np.ndarray:
  """Small integers: inner products are exact, and many are equal."""
  return rng.integers(-2, 3, shape).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
  passages=st.integers(1, 20),
  width=st.integers(1, 3),
  k=st.integers(1, 24),
  block=st.sampled_from([1, 3, 7, 64]),
  seed=st.integers(0, 2**16),
)
def test_equals_sorting_ties_included(passages, width, k, block, seed):
  rng = np.random.default_rng(seed)
  ids = [f"p{number}" for number in rng.permutation(passages)]
  vectors, queries = integers(rng, passages, width), integers(rng, 3, width)
  found = exact.Exact(vectors, ids, passage_block=block).search(queries, k)
  assert searched(found, ids) == by_sorting(vectors, ids, queries, k)
  assert found.rows.shape == found.scores.shape == (3, min(k, passages))
  np.testing.assert_array_equal(found.scores, np.take_along_axis(queries @ vectors.T, found.rows, axis=1))


@settings(max_examples=15, deadline=None)
@given(size=st.sampled_from([1, 15, 16, 17, 200]), share=st.floats(0.01, 1), values=st.sampled_from([1, 3, 50]),
       seed=st.integers(0, 2**16))
def test_the_best_by_groups_are_the_best_ties_included(size, share, values, seed):
  """As a GPU finds them; some scores are those of places behind the last passage."""
  rng, k = np.random.default_rng(seed), max(1, int(share * size))
  scores = rng.integers(0, values, (3, 2, size)).astype(np.float32)
  scores[:, :, rng.integers(0, size + 1):] = -np.inf
  for found, expected in zip(exact._best_by_groups(scores, k=k), jax.lax.top_k(scores, k), strict=True):
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("platform, sorted_at_once", [("cuda", 1600), ("cpu", 16_384), ("tpu", 16_384)])
def test_a_gpu_sorts_no_whole_rows(platform, sorted_at_once):
  of = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype)
  best = of(jnp.float32, 256, 100), of(jnp.int32, 256, 100)
  lowered = exact._merge.trace(
    best, of(jnp.float32, 256, 768), of(jnp.float32, 1, exact.PASSAGE_BLOCK, 768), of(jnp.int32), of(jnp.int32),
    mesh=None, recall=1.0).lower(lowering_platforms=(platform,)).as_text()
  assert max(map(int, re.findall(r"chlo\.top_k.*tensor<[\dx]*?(\d+)xf32> ->", lowered))) == sorted_at_once


def test_ties_follow_the_ids_and_not_the_rows():
  vectors, ids = np.ones((4, 2), np.float32), ["b", "d", "a", "c"]
  found = exact.Exact(vectors, ids).search(np.ones((1, 2)), 3)
  assert searched(found, ids) == [["d", "c", "b"]]
  renamed = ["d", "a", "b", "c"]
  assert found.rows.tolist() != exact.Exact(vectors, renamed).search(np.ones((1, 2)), 3).rows.tolist()


def test_negative_zero_is_no_worse_than_zero():
  ids = ["a", "b", "c"]
  found = exact.Exact(np.array([[0.0], [-0.0], [0.0]]), ids).search(np.array([[-1.0]]), 3)
  assert searched(found, ids) == [["c", "b", "a"]]


def test_the_order_of_hits_is_the_order_that_is_measured():
  rng = np.random.default_rng(3)
  ids = [f"p{number}" for number in range(40)]
  found = exact.Exact(integers(rng, 40, 2), ids).search(integers(rng, 5, 2), 10)
  run = runs.from_hits([f"q{number}" for number in range(5)], ids, found)
  assert [runs.ranked(results) for results in run.values()] == searched(found, ids)


def test_where_no_hardware_approximates_asking_for_less_finds_all():
  rng = np.random.default_rng(4)
  ids = [f"p{number}" for number in range(100)]
  vectors, queries = rng.normal(size=(100, 8)), rng.normal(size=(5, 8))
  found = exact.Exact(vectors, ids, recall=0.9).search(queries, 10)
  assert searched(found, ids) == by_sorting(vectors, ids, queries, 10)


@pytest.mark.parametrize("recall", [0.0, 1.01, float("nan")])
def test_a_share_is_a_share(recall):
  with pytest.raises(ValueError, match="recall is"):
    exact.Exact(np.ones((1, 1)), ["a"], recall=recall)


def test_more_queries_than_a_block_and_none_at_all():
  rng = np.random.default_rng(5)
  ids = [f"p{number}" for number in range(30)]
  vectors, queries = integers(rng, 30, 3), integers(rng, exact.QUERY_BLOCK + 5, 3)
  index = exact.Exact(vectors, ids)
  assert searched(index.search(queries, 4), ids) == by_sorting(vectors, ids, queries, 4)
  assert index.search(queries[:0], 4).rows.shape == (0, 4)


MESH = r"""
import re, jax, numpy as np
from idistill_jax.retrieval import exact
from jax.sharding import AxisType
assert jax.device_count() == 8
rng = np.random.default_rng(0)
ids = [f"p{n}" for n in rng.permutation(203)]
vectors, queries = (rng.integers(-2, 3, (n, 4)).astype(np.float32) for n in (203, 9))
alone = exact.Exact(vectors, ids).search(queries, 30)
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
for block in (exact.PASSAGE_BLOCK, 5):
  index = exact.Exact(vectors, ids, mesh=mesh, passage_block=block)
  assert len(index._blocks_SxPxE[0].sharding.device_set) == 8
  assert index._blocks_SxPxE[0].addressable_shards[0].data.shape[0] == 1
  found = index.search(queries, 30)
  np.testing.assert_array_equal(found.rows, alone.rows)
  np.testing.assert_array_equal(found.scores, alone.scores)

# What travels between devices is the best of each, never all scores.
place = lambda array: exact._place(array, mesh)
best = (place(np.zeros((4, 10), np.float32)), place(np.zeros((4, 10), np.int32)))
index = exact.Exact(np.ones((8 * 512, 16)), [str(n) for n in range(8 * 512)], mesh=mesh)
queries, block = place(np.ones((4, 16), np.float32)), index._blocks_SxPxE[0]
text = exact._merge.lower(best, queries, block, 0, 4096, mesh=mesh, recall=1.0).compile().as_text()
gathered = [shape.split(",") for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)]
assert gathered, "nothing travels at all: the pattern no longer fits the compiler's text"
assert all(int(size) <= 8 * 10 for shape in gathered for size in shape), gathered
"""


def test_the_mesh_is_invisible():
  done = subprocess.run([sys.executable, "-c", MESH], capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("kind", ["exact", "scann"])
def test_no_device_holds_a_whole_index(tmp_path, monkeypatch, kind):
  if kind == "scann" and importlib.util.find_spec("scann") is None:
    pytest.skip("the extra `retrieval` is not installed")
  rng = np.random.default_rng(0)
  ids, vectors, queries = [f"p{i}" for i in range(803)], rng.normal(size=(803, 16)), rng.normal(size=(20, 16))
  cfg = config.Index(kind=kind, tuned_depth=5)
  mesh = sharding.make_mesh(config.Mesh(fsdp=2))
  spread, largest = exact._spread, []

  def placed(*what):
    made = spread(*what)
    largest.append(max(shard.data.nbytes for shard in made.addressable_shards))
    return made

  monkeypatch.setattr(exact, "_spread", placed)
  index.write(tmp_path, vectors, ids, cfg, queries, mesh)
  index.open_default(tmp_path, ids, mesh)
  exactly = index.open_exact(tmp_path, ids, mesh)
  found = exactly.search(queries, 7)
  index.honesty(tmp_path, ids, queries, index.oracle(tmp_path, exactly, queries, 7), cfg, mesh)
  assert max(largest) <= vectors.size * 4 / 7
  # Control: without the mesh, one device does, and finds the same.
  np.testing.assert_array_equal(index.open_exact(tmp_path, ids).search(queries, 7).rows, found.rows)
  assert max(largest) >= vectors.size * 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_passages_that_are_not_finite_are_named(bad):
  vectors = np.ones((4, 2))
  vectors[2, 1] = bad
  with pytest.raises(hits.VectorError, match=r"1 of 4 .*'p2'"):
    exact.Exact(vectors, ["p0", "p1", "p2", "p3"])


def test_many_bad_rows_are_counted():
  with pytest.raises(hits.VectorError, match=r"9 of 9 .*and 4 more"):
    exact.Exact(np.full((9, 2), np.nan), list("abcdefghi"))


@pytest.mark.parametrize(
  ("vectors", "ids", "message"),
  [
    (np.zeros((0, 2)), [], "no passages"),
    (np.zeros((2, 0)), ["a", "b"], "width 0"),
    (np.zeros((2, 2)), ["a"], "2 passage vectors but 1"),
    (np.zeros(2), ["a", "b"], "shape"),
    (np.zeros((2, 2)), ["a", "a"], "'a' occurs at rows"),
  ],
)
def test_passages_that_cannot_be_searched(vectors, ids, message):
  with pytest.raises(ValueError, match=message):
    exact.Exact(vectors, ids)


@pytest.mark.parametrize(
  ("queries", "k", "message"),
  [
    (np.ones((1, 2)), 0, "k must be at least 1"),
    (np.ones((1, 3)), 1, "width 2"),
    (np.array([[1, 1], [1, np.nan]]), 1, "query rows: 1"),
  ],
)
def test_queries_that_cannot_be_searched(queries, k, message):
  with pytest.raises(ValueError, match=message):
    exact.Exact(np.ones((2, 2)), ["a", "b"]).search(queries, k)


def test_inner_products_beyond_float32_are_refused():
  with pytest.raises(OverflowError, match=r"query rows \[1\]"):
    exact.Exact(np.full((2, 2), 1e30), ["a", "b"]).search(np.array([[1, 1], [1e30, 1e30]]), 1)
