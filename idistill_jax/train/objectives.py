"""What each training minimises: a batch of lists -> a scalar.  The loop knows no other difference."""

from typing import Any

import jax
import jax.numpy as jnp

from idistill_jax import config as config_lib
from idistill_jax import losses, multiply
from idistill_jax.data import batches
from idistill_jax.hf import networks
from idistill_jax.train import grad_cache
from idistill_jax.train import step as step_lib


def ranker(cfg: config_lib.Ranker, network: networks.Network) -> step_lib.LossFn:
  """Loss of the scores of pairs against the LLM's places; `batch.values` are places.

  Each list's loss counts `batch.weights` times in the mean over the lists of the batch: a list of weight 0 teaches
  nothing, and no list's share depends on the weights of those it is dealt with.
  """
  loss, apply = losses.LISTWISE[cfg.loss], grad_cache.in_passes(network.apply, cfg.passes)

  def loss_fn(params: Any, batch: batches.ListBatch) -> jax.Array:
    scores_BxN = apply(params, batch.rows).reshape(batch.where.shape)
    if cfg.similarity_weight is not None:
      scores_BxN = scores_BxN + cfg.similarity_weight * batch.similarities

    def one(scores_N: jax.Array, places_N: jax.Array, where_N: jax.Array, known_N: jax.Array) -> jax.Array:
      return loss(scores_N, places_N, where=where_N, top_places=cfg.top_places, known=known_N)

    losses_B = jax.vmap(one)(scores_BxN, batch.values, batch.where, batch.known)
    return (batch.weights * losses_B).sum() / jnp.maximum(batch.where.any(-1).sum(), 1)

  return loss_fn


def retriever(cfg: config_lib.Distillation, network: networks.Network) -> step_lib.LossFn:
  """Loss of the similarities of queries and passages against the teacher; `batch.values` are its logits."""
  loss, apply = losses.DISTILLATION[cfg.loss], grad_cache.in_passes(network.apply, cfg.passes)

  def loss_fn(params: Any, batch: batches.ListBatch) -> jax.Array:
    lists, width = batch.where.shape
    vectors = apply(params, batch.rows)
    queries_BxE, passages_MxE = vectors[:lists], vectors[lists:]
    targets = losses.RetrieverTargets(
      teacher_scores=batch.values, own_slots=jnp.arange(lists * width).reshape(lists, width),
      passage_rows=batch.passage_rows, where=batch.where, list_rows=batch.list_rows,
    )
    scores_BxM = multiply.einsum("be,me->bm", queries_BxE, passages_MxE)
    return loss(scores_BxM, targets, student_temperature=cfg.student_temperature)

  return loss_fn
