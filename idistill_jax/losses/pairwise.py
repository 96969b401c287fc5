"""Losses over pairs of a list: scores [..., N] and the teacher's places [..., N] -> a scalar.

A pair belongs to its better item: it counts when that item's term counts (`listwise.counted_terms`) and the
other one exists.
"""

import math

import jax
import jax.numpy as jnp

from idistill_jax.losses import listwise, masked


def _ordered_pairs(places: jax.Array, where: jax.Array, counted: jax.Array) -> jax.Array:
  """[..., i, j]: i is placed before j, i's term counts and j exists."""
  return (places[..., :, None] < places[..., None, :]) & counted[..., :, None] & where[..., None, :]


def _pair_costs(scores: jax.Array) -> jax.Array:
  """[..., i, j]: log(1 + exp(s_j - s_i))."""
  return jax.nn.softplus(scores[..., None, :] - scores[..., :, None])


def _over_pairs(matrix: jax.Array) -> jax.Array:
  """[..., N, N] -> [..., N * N]."""
  return matrix.reshape(*matrix.shape[:-2], -1)


def ranknet(
  scores: jax.Array,
  places: jax.Array,
  *,
  where: jax.Array | None = None,
  top_places: int | None = None,
  known: jax.Array | None = None,
) -> jax.Array:
  """Mean logistic loss over the pairs that the teacher orders.

      L = 1/|P| sum_{(i, j) in P} log(1 + exp(s_j - s_i)),    P = {(i, j): place_i < place_j}

  The mean is taken inside each list first, so that a long list weighs as much as a short one.

  Source: Burges, Shaked, Renshaw, Lazier, Deeds, Hamilton, Hullender (2005), "Learning to Rank using Gradient
  Descent".

  Prefer it when the order as a whole matters, or when a teacher is right about most pairs and wrong about
  single places: a misplaced item spoils N - 1 pairs of N (N - 1) / 2, and no normaliser of a likelihood.

  Args:
    scores, places, where, known: as in `listwise.listmle`; only the order of places counts.
    top_places: keeps the pairs whose better item is among the first so many; None keeps all.

  >>> round(float(ranknet(jnp.array([1.0, 0.0]), jnp.array([0, 1]))), 4)  # log(1 + exp(-1))
  0.3133
  """
  scores, where = masked.prepare(scores, where)
  pairs = _over_pairs(_ordered_pairs(places, where, listwise.counted_terms(places, where, top_places, known)))
  sums = masked.total(_over_pairs(_pair_costs(scores)), pairs)
  return masked.mean_over_lists(sums / jnp.maximum(pairs.sum(-1), 1), where)


def lambda_loss(
  scores: jax.Array,
  places: jax.Array,
  *,
  where: jax.Array | None = None,
  top_places: int | None = None,
  known: jax.Array | None = None,
  mu: float = 0.0,
) -> jax.Array:
  """Logistic pair loss in which a pair weighs what swapping it would change in NDCG (LambdaRank scheme).

      L = sum_{(i, j) in P} (rho_ij + mu delta_ij) |G_i - G_j| log2(1 + exp(s_j - s_i))
      rho_ij   = |1 / D(r_i) - 1 / D(r_j)|                      LambdaRank
      delta_ij = |1 / D(|r_i - r_j|) - 1 / D(|r_i - r_j| + 1)|  NDCG-Loss2
      D(r) = log2(1 + r),    G_i = 1 / (1 + rank_i) / maxDCG,    P = {(i, j): place_i < place_j}

  r_i is the item's rank (from 1) by the current scores and rank_i its rank (from 0) by the teacher.  No
  gradient flows through r.  The gain is the reciprocal of the teacher's rank: 2^relevance - 1 of a
  twenty-item order would leave everything but its first places without weight.  Equal scores rank in the
  teacher's order.  `mu=0` is the LambdaRank scheme of the framework, `mu=10` its NDCG-Loss2++.

  Source: Wang, Li, Golbandi, Bendersky, Najork (2018), "The LambdaLoss Framework for Ranking Metric
  Optimization"; Burges, Ragno, Le (2006), "Learning to Rank with Nonsmooth Cost Functions".

  Prefer it when NDCG is the aim and the student already ranks sensibly: the weights follow its present ranks,
  so from a random start they are noise.

  Args:
    scores, places, where, known: as in `listwise.listmle`; only the order of places counts.
    top_places: NDCG@k by the teacher's order: keeps the pairs whose better item is among the first k; None
      keeps all.
    mu: weight of the NDCG-Loss2 part.

  >>> rho, max_dcg = 1 - 1 / math.log2(3), 1 + 1 / 2 / math.log2(3)
  >>> round(rho * (1 - 1 / 2) / max_dcg * math.log2(1 + 1), 4)
  0.1403
  >>> round(float(lambda_loss(jnp.array([0.0, 0.0]), jnp.array([0, 1]))), 4)
  0.1403
  """
  scores, where = masked.prepare(scores, where)
  ranks = masked.ranks(places, where)
  in_cutoff = where if top_places is None else where & (ranks < top_places)
  gains = 1.0 / (1.0 + ranks)
  max_dcg = masked.total(gains / jnp.log2(2.0 + ranks), in_cutoff)[..., None]
  gains = gains / jnp.where(max_dcg > 0, max_dcg, 1.0)
  student_ranks = 1 + _ranks_by_score(jax.lax.stop_gradient(scores), ranks, where)
  discounts = 1.0 / jnp.log2(1.0 + student_ranks)
  rho = jnp.abs(discounts[..., :, None] - discounts[..., None, :])
  # Two items of one pair never share a rank; the floor is for the diagonal and for absent items.
  apart = jnp.maximum(jnp.abs(student_ranks[..., :, None] - student_ranks[..., None, :]), 1)
  delta = jnp.abs(1.0 / jnp.log2(1.0 + apart) - 1.0 / jnp.log2(2.0 + apart))
  weights = (rho + mu * delta) * jnp.abs(gains[..., :, None] - gains[..., None, :])
  pairs = _ordered_pairs(places, where, listwise.counted_terms(places, where, top_places, known))
  sums = masked.total(_over_pairs(weights * _pair_costs(scores) / math.log(2)), _over_pairs(pairs))
  return masked.mean_over_lists(sums, where)


def _ranks_by_score(scores: jax.Array, tie_breaks: jax.Array, where: jax.Array) -> jax.Array:
  """Rank from 0 by falling score, int32 [..., N]; of equal scores the smaller tie break comes first; absent items last.

  Why not count the scores above each: XLA may compute one anew for every comparison, as part of the network that ends
  in it, and round it otherwise, so that it stands above itself.
  """
  order = jnp.lexsort((tie_breaks, -scores, ~where), axis=-1)
  return jnp.argsort(order, axis=-1).astype(jnp.int32)
