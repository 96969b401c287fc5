"""Similarities of a retriever, looked up in files that need not fit into memory."""

import numpy as np
import pytest

from idistill_jax.data import similarity


@pytest.mark.parametrize("at_a_time", [2, 65_536], ids=["some", "all"])
def test_each_way_to_ask_gives_the_inner_products(tmp_path, monkeypatch, at_a_time):
  monkeypatch.setattr(similarity, "_PAIRS", at_a_time)
  np.save(tmp_path / similarity.QUERIES, np.array([[1, 0], [0, 2]], np.float32))
  np.save(tmp_path / similarity.PASSAGES, np.array([[3, 5], [7, 11], [13, 17]], np.float32))
  similarities = similarity.load(tmp_path)
  query_of, passage_of = np.array([0, 1, 1, 0, 1]), np.array([2, 0, 2, 0, 1])
  assert similarities.of_pairs(query_of, passage_of).tolist() == [13, 10, 34, 3, 22]
  assert similarities(1, np.array([2, 0])).tolist() == [34, 10]
  assert similarities.of_lists(np.array([0, 1]), np.array([[0, 1], [2, 0]])).tolist() == [[3, 7], [34, 10]]
  assert similarities.of_pairs(query_of[:0], passage_of[:0]).shape == (0,)
