"""A ranker over the first places of a search: hits -> ids in the new order, deeper places unchanged."""

from collections.abc import Callable, Sequence

import numpy as np

from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.retrieval import runs

# (query texts, passage texts, similarities) of each pair -> float [pairs]
Score = Callable[[Sequence[str], Sequence[str], np.ndarray], np.ndarray]


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
