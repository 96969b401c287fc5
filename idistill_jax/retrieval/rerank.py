"""A ranker over the first places of a search: rankings -> the same in the new order, deeper places unchanged."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

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


def _scores(score: Score, query_texts: Sequence[str], passage_texts: Sequence[str], heads: Iterable[Iterable[int]],
            similarities: np.ndarray) -> np.ndarray:
  """Of each query with the passages of its head, one after the other."""
  queries, passages = [], []
  for text, rows in zip(query_texts, heads, strict=True):
    for row in rows:
      queries.append(text)
      passages.append(passage_texts[row])
  scores = np.asarray(score(queries, passages, similarities))
  if scores.shape != (len(queries),) or not np.isfinite(scores).all():
    raise ValueError(
      f"the ranker gave scores of shape {scores.shape}, {int((~np.isfinite(scores)).sum())} of them not "
      f"finite, for {len(queries)} pairs"
    )
  return scores
