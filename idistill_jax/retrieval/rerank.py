"""A ranker over the first places of a search: hits -> ids in the new order, deeper places unchanged."""

from collections.abc import Callable, Sequence

import numpy as np

from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.retrieval import runs

# (query texts, passage texts, similarities) of each pair -> float [pairs]
Score = Callable[[Sequence[str], Sequence[str], np.ndarray], np.ndarray]


def once(score: Score) -> Score:
  """A ranker that scores each pair of texts one time, however many systems found it."""
  known: dict[tuple[str, str], float] = {}

  def remembering(queries: Sequence[str], passages: Sequence[str], similarities: np.ndarray) -> np.ndarray:
    pairs = list(zip(queries, passages, strict=True))
    new = {pair: place for place, pair in enumerate(pairs) if pair not in known}
    if new:
      scores = score([q for q, _ in new], [p for _, p in new], similarities[list(new.values())])
      known.update(zip(new, map(float, scores), strict=True))
    return np.array([known[pair] for pair in pairs])

  return remembering


def as_hits(
  orders: Sequence[Sequence[str]], row: Callable[[str], int], similarity: Callable[[int, np.ndarray], np.ndarray]
) -> hits_lib.Hits:
  """Rankings of any system as hits, with the similarities that a ranker adds its score to.

  orders: passage ids of each query, cut to the shortest ranking.  similarity: (place of the query, passage rows) ->
  float [K].
  """
  width = min(map(len, orders))
  rows_QxK = np.array([[row(one) for one in order[:width]] for order in orders], np.int32)
  scores_QxK = np.array([similarity(place, rows) for place, rows in enumerate(rows_QxK)], np.float32)
  return hits_lib.Hits(rows=rows_QxK, scores=scores_QxK, found=np.full(len(orders), width, np.int32))


def rerank(
  score: Score,
  query_texts: Sequence[str],
  passage_texts: Sequence[str],
  passage_ids: Sequence[str],
  hits: hits_lib.Hits,
  depth: int,
  similarities_QxN: np.ndarray,
) -> list[list[str]]:
  """Passage ids of each query, the first `depth` by the ranker's score (ties as in `runs.ranked`).

  similarities_QxN: a term of the score, for at least the first `depth` places of each query.

  Raises ValueError for depth < 1, and for scores that are not one finite number a pair.
  """
  if depth < 1:
    raise ValueError(f"the ranker needs at least one place to reorder, found a depth of {depth}")
  head_QxN = hits.rows[:, :depth]
  queries = [text for text, rows in zip(query_texts, head_QxN, strict=True) for _ in rows]
  passages = [passage_texts[row] for row in head_QxN.ravel()]
  scores = np.asarray(score(queries, passages, similarities_QxN[:, :depth].ravel()))
  if scores.shape != (len(queries),) or not np.isfinite(scores).all():
    raise ValueError(
      f"the ranker gave scores of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not "
      f"finite, for {len(queries)} pairs"
    )
  orders = []
  for rows, row_scores in zip(hits.rows, scores.reshape(head_QxN.shape), strict=True):
    ids = [passage_ids[row] for row in rows]
    head = {passage_id: float(value) for passage_id, value in zip(ids, row_scores, strict=False)}
    orders.append([*runs.ranked(head), *ids[depth:]])
  return orders
