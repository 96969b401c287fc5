"""Losses that look at a whole list at once: scores [..., N] and the teacher's places [..., N] -> a scalar."""

import jax
import jax.numpy as jnp

from idistill_jax.losses import masked


def counted_terms(
  places: jax.Array, where: jax.Array, top_places: int | None, known: jax.Array | None
) -> jax.Array:
  """Items whose own term counts, bool [..., N]: present, known, and one of the first `top_places`."""
  counted = where
  if known is not None:
    counted = counted & known
  if top_places is not None:
    counted = counted & (masked.ranks(places, where) < top_places)
  return counted


def listmle(
  scores: jax.Array,
  places: jax.Array,
  *,
  where: jax.Array | None = None,
  top_places: int | None = None,
  known: jax.Array | None = None,
) -> jax.Array:
  """Negative log-likelihood of the teacher's order under the Plackett-Luce model of the scores.

      L = sum_i [ log( sum_{j: place_j >= place_i} exp s_j ) - s_i ]

  Choose the best item by softmax, take it away, choose the next among the rest.  With `top_places=k` the sum
  ends after the first k places of the list: minus the log-probability that exactly these k come first in this
  order.
  Items of equal place stand in each other's normaliser (Breslow's form for ties), so no order is made up for
  them.

  Source: Xia, Liu, Wang, Zhang, Li (2008), "Listwise Approach to Learning to Rank: Theory and Algorithm"; the
  first k places: Xia, Liu, Li (2009), "Statistical Consistency of Top-k Ranking".

  Prefer it when the teacher gives an order and no scores: it takes the order for what it is, every place of
  it.  Prefer `top_places` when the tail of the order is noise, as in an LLM's listing of twenty passages; where a list
  is a part of a longer one, the places are those of the part.

  Args:
    scores: [..., N], any float dtype.
    places: int [..., N], 0 is best; only their order counts.
    where: bool [..., N], items that exist.
    top_places: places from the top whose likelihood counts; None counts all.
    known: bool [..., N], False for items whose place the parser filled in.  Their own term is left out,
      because the teacher did not choose them; they stay in the normalisers of items placed before them,
      because the teacher chose those over them.

  >>> round(float(listmle(jnp.array([2.0, 1.0]), jnp.array([0, 1]))), 4)  # log(1 + exp(-1))
  0.3133
  """
  scores, where = masked.prepare(scores, where)
  still_there = (places[..., None, :] >= places[..., :, None]) & where[..., None, :]
  log_normalisers = masked.logsumexp(scores[..., None, :], still_there)
  counted = counted_terms(places, where, top_places, known)
  return masked.mean_over_lists(masked.total(log_normalisers - scores, counted), where)


def listnet(
  scores: jax.Array,
  places: jax.Array,
  *,
  where: jax.Array | None = None,
  top_places: int | None = None,
  known: jax.Array | None = None,
  temperature: float = 1.0,
) -> jax.Array:
  """Cross-entropy between the top-one probabilities of the teacher and of the scores (softmax loss).

      L = - sum_i p_i log softmax(s)_i,    p = softmax(-place / temperature)

  The relevance of an item is minus its place, so the places count as numbers here: a gap between two places
  is a gap in relevance.  `top_places` and `known` restrict p to the items whose terms count; the student's
  softmax keeps running over all of them.  The teacher's entropy is not subtracted, so the smallest value is
  that entropy.

  Source: Cao, Qin, Liu, Tsai, Li (2007), "Learning to Rank: From Pairwise Approach to Listwise Approach".

  Prefer it when only the top of the list matters: at temperature 1 the first three places carry 95 % of p.

  Args:
    scores, places, where, top_places, known: as in `listmle`.
    temperature: the larger, the further down the list the target reaches.

  >>> round(float(listnet(jnp.array([0.0, 0.0]), jnp.array([0, 1]))), 4)  # log 2
  0.6931
  """
  scores, where = masked.prepare(scores, where)
  counted = counted_terms(places, where, top_places, known)
  target = masked.softmax(-jnp.where(counted, places, 0).astype(jnp.float32) / temperature, counted)
  return masked.mean_over_lists(-masked.total(target * masked.log_softmax(scores, where), counted), where)
