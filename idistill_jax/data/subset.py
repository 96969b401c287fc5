"""The part of a collection that an experiment takes: a share of its queries to train on, the first of its passages.

What is kept still has all it needs, and everything that is left out is named.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable

from idistill_jax.data import collection, deal, stream

# So many passages beyond a limit are named; of more, the number is told.
_NAMED = 1000


def divide(whole: collection.Collection, train_fraction: float) -> collection.Collection:
  """That share of the held-out queries, drawn by a hash of their ids, becomes the training split.

  Their judgements are left out, so that nothing is measured on what was trained on.  Raises CollectionError where
  the collection has training queries of its own, and for a share outside (0, 1).
  """
  if not 0 < train_fraction < 1:
    raise collection.CollectionError(f"collection.train_fraction must lie between 0 and 1, found {train_fraction}")
  if any(query.split == "train" for query in whole.queries):
    raise collection.CollectionError(f"{whole.title} has training queries: unset collection.train_fraction")

  moved = {query.id for query in whole.queries if deal.drawn(query.id) < train_fraction}
  return dataclasses.replace(
    whole,
    queries=tuple(
      dataclasses.replace(query, split="train") if query.id in moved else query for query in whole.queries
    ),
    qrels={
      split: {query_id: judged for query_id, judged in qrels.items() if query_id not in moved}
      for split, qrels in whole.qrels.items()
    },
  )


def limited(
  whole: collection.Collection, *, max_passages: int | None, max_queries_per_split: int | None
) -> collection.Collection:
  """The first queries of each split, their relevant passages, their lists, then passages in corpus order.

  Neither limit is ever exceeded: a query whose relevant passages no longer fit is left out, then so is a list
  whose passages do not, and both are named.  `None` sets no limit.
  """
  if max_passages is None and max_queries_per_split is None:
    return whole
  limit = math.inf if max_passages is None else max_passages
  per_split: collections.Counter[str] = collections.Counter()
  queries: set[str] = set()
  passages: set[str] = set()
  lists, drops = [], []

  def fits(passage_ids: Iterable[str]) -> bool:
    more = set(passage_ids) - passages
    if len(passages) + len(more) > limit:
      return False
    passages.update(more)
    return True

  for query in whole.queries:
    if max_queries_per_split is not None and per_split[query.split] >= max_queries_per_split:
      drops.append(collection.Drop("query beyond collection.max_queries_per_split", query.id))
    elif not fits(collection.relevant(whole.qrels.get(query.split, {}).get(query.id, {}))):
      drops.append(collection.Drop("query whose passages exceed collection.max_passages", query.id))
    else:
      per_split[query.split] += 1
      queries.add(query.id)
  for shown in whole.lists:
    if shown.query_id in queries and not fits(shown.passage_ids):
      drops.append(collection.Drop("recorded list whose passages exceed collection.max_passages", shown.query_id))
    else:
      lists.append(shown)
  for ranking in whole.rankings:
    # One that does not fit is named when passages are known.
    if ranking.query_id in queries:
      fits(ranking.passage_ids)
  kept = whole.passages
  if max_passages is not None:
    beyond = (passage.id for passage in whole.passages if not fits((passage.id,)))
    reason = "passage beyond collection.max_passages"
    drops += [collection.Drop(reason, one) for one in itertools.islice(beyond, _NAMED)]
    drops += [collection.Drop(reason, "and others")] * sum(1 for _ in beyond)
    kept = stream.only(kept, lambda passage: passage.id in passages)
  smaller = dataclasses.replace(whole, passages=kept, lists=tuple(lists), drops=whole.drops + tuple(drops))
  kept_ids = collection.named(whole) if max_passages is None else passages
  return collection.not_empty(collection.restrict(smaller, queries, kept_ids))
