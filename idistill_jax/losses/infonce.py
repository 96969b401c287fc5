"""The loss that needs no teacher: a query's positive passage against all the others -> a scalar."""

import jax

from idistill_jax.losses import distillation


def contrastive(
  scores: jax.Array, positives: jax.Array, *, where: jax.Array | None = None, student_temperature: float
) -> jax.Array:
  """InfoNCE: minus the log-probability of the positive under a softmax over all passages of the batch.

      L = -log( exp(s_+ / T) / sum_m exp(s_m / T) )

  Source: van den Oord, Li, Vinyals (2018), "Representation Learning with Contrastive Predictive Coding"; with
  in-batch negatives for passages: Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain Question
  Answering".

  Prefer it when there are pairs of query and passage and nothing that grades the rest: the baseline that a
  distilled retriever has to beat.

  Args:
    scores: [..., M], every query against every passage of the batch, any float dtype.
    positives: int [...], the slot of each query's positive.  One that `where` excludes gives its list the
      value 0.
    where: bool [..., M], passages in the softmax; `in_batch.in_batch_targets` keeps false negatives out of
      it.
    student_temperature: in units of the scores.

  >>> import jax.numpy as jnp
  >>> round(float(contrastive(jnp.zeros((1, 4)), jnp.array([2]), student_temperature=0.05)), 4)  # log 4
  1.3863
  """
  return distillation.kl_batch(
    scores, jax.nn.one_hot(positives, scores.shape[-1]), where=where, student_temperature=student_temperature
  )
