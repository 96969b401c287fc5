"""The ranker moves the first places only."""

import numpy as np
import pytest

from idistill_jax.retrieval import rerank

IDS = ["a", "b", "c", "d"]
TEXTS = ["A", "B", "C", "D"]
FOUND = [["a", "b", "c", "d"], ["d", "c", "b", "a"]]
# Another retriever's than the one that found them, by query and passage.
SIMILARITIES = np.array([[1, 2, 3, 4], [9, 8, 7, 6]], np.float32)


def reordered(score, depth: int) -> list[list[str]]:
  similarity = lambda place, rows: SIMILARITIES[place, rows]
  return rerank.reorder(score, ["x", "y"], TEXTS, FOUND, IDS.index, similarity, depth)


def test_the_first_places_are_reordered_and_the_rest_stays():
  asked = []

  def score(queries, passages, query_of, passage_of, similarities):
    asked.extend((queries[q], passages[p], s) for q, p, s in zip(query_of, passage_of, similarities, strict=True))
    return similarities * [-1, 1, -1, 1, 1, -1]

  assert reordered(score, 3) == [["b", "a", "c", "d"], ["c", "d", "b", "a"]]
  assert asked == [("x", "A", 1), ("x", "B", 2), ("x", "C", 3), ("y", "D", 6), ("y", "C", 7), ("y", "B", 8)]


def test_deeper_than_the_hits_and_ties():
  assert reordered(lambda *pairs: np.zeros(8), 10) == [["d", "c", "b", "a"]] * 2


@pytest.mark.parametrize("scores", [np.full(4, np.nan), np.zeros(3), np.zeros((4, 1))])
def test_scores_that_rank_nothing(scores):
  with pytest.raises(ValueError, match="for 4 pairs"):
    reordered(lambda *pairs: scores, 2)


def test_no_place_to_reorder():
  with pytest.raises(ValueError, match="at least one place"):
    reordered(lambda *pairs: pairs[-1], 0)


def test_a_pair_is_scored_once():
  asked = []

  def score(queries, passages, query_of, passage_of, similarities):
    asked.extend((queries[q], passages[p]) for q, p in zip(query_of, passage_of, strict=True))
    return -similarities

  remembering = rerank.once(score)
  ask = lambda *pairs: remembering(["x", "y"], TEXTS, *map(np.array, pairs)).tolist()
  assert ask([0, 0], [0, 1], [1.0, 2.0]) == [-1, -2]
  assert ask([0, 1, 0], [1, 1, 0], [2.0, 5.0, 1.0]) == [-2, -5, -1]
  assert asked == [("x", "A"), ("x", "B"), ("y", "B")]


def test_rankings_of_any_length_are_reordered_by_score_and_similarity():
  """Behind the depth nothing moves, and what finds little, or nothing, shortens no other."""
  similarity = lambda place, rows: 10.0 * place + rows
  reorder = lambda depth: rerank.reorder(
    lambda *pairs: -pairs[-1], ["x", "y", "z"], TEXTS, [["c", "a", "b"], ["d"], []], IDS.index, similarity, depth)
  assert reorder(2) == [["a", "c", "b"], ["d"], []]
  assert reorder(3) == [["a", "b", "c"], ["d"], []]
  broken = lambda *pairs: pairs[-1] * np.nan
  with pytest.raises(ValueError, match="not finite, for 4 pairs"):
    rerank.reorder(broken, ["x", "y"], TEXTS, [["c", "a", "b"], ["d"]], IDS.index, similarity, 9)
