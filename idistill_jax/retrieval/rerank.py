"""A ranker over the first places of a search: rankings -> the same in the new order, deeper places unchanged."""

from collections.abc import Callable, Sequence

import numpy as np

from idistill_jax.retrieval import runs

# (query texts, passage texts, of each pair its row in either of them, and its similarity) -> float [pairs]
Score = Callable[[Sequence[str], Sequence[str], np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def once(score: Score) -> Score:
  """A ranker that scores each pair of rows one time, however many systems found it; it is asked of the same texts."""
  known: dict[tuple[int, int], float] = {}

  def remembering(queries: Sequence[str], passages: Sequence[str], query_of: np.ndarray, passage_of: np.ndarray,
                  similarities: np.ndarray) -> np.ndarray:
    pairs = list(zip(query_of.tolist(), passage_of.tolist(), strict=True))
    new = {pair: place for place, pair in enumerate(pairs) if pair not in known}
    if new:
      places = list(new.values())
      scores = score(queries, passages, query_of[places], passage_of[places], similarities[places])
      known.update(zip(new, map(float, scores), strict=True))
    return np.array([known[pair] for pair in pairs])

  return remembering


def reorder(
  score: Score, query_texts: Sequence[str], passage_texts: Sequence[str], orders: Sequence[Sequence[str]],
  row: Callable[[str], int], similarity: Callable[[int, np.ndarray], np.ndarray], depth: int,
) -> list[list[str]]:
  """Rankings of any system, however long each is, the first `depth` by the ranker's score (ties as in `runs.ranked`).

  orders: passage ids of each query.  row: of an id in passage_texts.  similarity: (place of the query, passage rows) ->
  float [N], a term of the score.

  Raises ValueError for depth < 1, and for scores that are not one finite number a pair.
  """
  if depth < 1:
    raise ValueError(f"the ranker needs at least one place to reorder, found a depth of {depth}")
  heads = [[row(one) for one in order[:depth]] for order in orders]
  similarities = np.concatenate([similarity(place, np.array(rows, np.int32)) for place, rows in enumerate(heads)])
  scores = _scores(score, query_texts, passage_texts, heads, similarities)
  of_each = np.split(scores, np.cumsum([len(rows) for rows in heads])[:-1])
  return [
    [*runs.ranked(dict(zip(order[:depth], map(float, values), strict=True))), *order[depth:]]
    for order, values in zip(orders, of_each, strict=True)
  ]


def _scores(score: Score, query_texts: Sequence[str], passage_texts: Sequence[str], heads: Sequence[Sequence[int]],
            similarities: np.ndarray) -> np.ndarray:
  """Of each query with the passages of its head, one after the other."""
  query_of = np.repeat(np.arange(len(query_texts)), [len(rows) for rows in heads])
  passage_of = np.array([row for rows in heads for row in rows], np.int64)
  scores = np.asarray(score(query_texts, passage_texts, query_of, passage_of, similarities))
  if scores.shape != query_of.shape or not np.isfinite(scores).all():
    raise ValueError(
      f"the ranker gave scores of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not "
      f"finite, for {len(query_of)} pairs"
    )
  return scores
