"""Losses that move a student's scores towards a teacher's distribution or margins -> a scalar.

No gradient reaches a teacher.
"""

import jax
import jax.numpy as jnp

from idistill_jax.losses import masked


def score_distribution(scores: jax.Array, *, temperature: float, where: jax.Array | None = None) -> jax.Array:
  """A scoring teacher's distribution, softmax(scores / temperature), float32 [..., N]; 0 in absent slots.

  >>> score_distribution(jnp.array([0.0, 0.0, 9.0]), temperature=0.5, where=jnp.array([True, True, False]))
  Array([0.5, 0.5, 0. ], dtype=float32)
  """
  scores, where = masked.prepare(scores, where)
  return masked.softmax(scores / temperature, where)


def order_distribution(places: jax.Array, *, temperature: float, where: jax.Array | None = None) -> jax.Array:
  """An ordering teacher's distribution, softmax(-place / temperature), float32 [..., N]; 0 in absent slots.

  Places count as numbers: the distribution over a part of a list is that of the whole list, conditioned on
  the part.

  >>> [round(float(p), 4) for p in order_distribution(jnp.array([1, 0]), temperature=1.0)]  # 1/(1+e), e/(1+e)
  [0.2689, 0.7311]
  """
  return score_distribution(-places.astype(jnp.float32), temperature=temperature, where=where)


def kl_list(
  scores: jax.Array,
  teacher_scores: jax.Array,
  *,
  where: jax.Array | None = None,
  teacher_temperature: float,
  student_temperature: float,
) -> jax.Array:
  """Kullback-Leibler divergence of the student from the teacher over each query's own list.

      L = sum_i p_i log(p_i / q_i),    p = softmax(teacher / T_t),    q = softmax(s / T_s)

  Not multiplied by T_s^2, as Hinton et al. do to keep it in step with a second, hard-label loss, and
  sentence-transformers' DistillKLDivLoss with them: there is no second loss here, and so the value is in nats
  and comparable between temperatures.  Divide the learning rate instead where the optimiser is sensitive to
  scale.

  Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network"; for retrieval: Lin,
  Yang, Lin (2020), "Distilling Dense Representations for Ranking using Tightly-Coupled Teachers".

  Prefer it when lists already hold the hard negatives, or the batch is too small for the others' passages to
  teach anything; otherwise `kl_batch`.

  Args:
    scores: the student's, [..., N], any float dtype.
    teacher_scores: [..., N]; for an LLM's order minus the place.
    where: bool [..., N], items that exist.
    teacher_temperature, student_temperature: in units of each one's scores.

  >>> scores, teacher = jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0])
  >>> round(float(kl_list(scores, teacher, teacher_temperature=1.0, student_temperature=1.0)), 4)
  0.1109
  """
  target = score_distribution(teacher_scores, temperature=teacher_temperature, where=where)
  return kl_batch(scores, target, where=where, student_temperature=student_temperature)


def kl_batch(
  scores: jax.Array, target: jax.Array, *, where: jax.Array | None = None, student_temperature: float
) -> jax.Array:
  """Kullback-Leibler divergence of the student from a given distribution over all passages of the batch.

      L = sum_m p_m log(p_m / q_m),    q = softmax(s / T_s) over the M passages that `where` admits

  p is the teacher's distribution over the query's own list and zero elsewhere (`in_batch.in_batch_targets`
  makes it), so every other passage of the batch is pushed away as a negative while the own list keeps the
  teacher's shape.  Not multiplied by T_s^2, see `kl_list`.

  Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network", over the in-batch
  negatives of Karpukhin et al. (2020), "Dense Passage Retrieval for Open-Domain Question Answering", as
  combined by Lin, Yang, Lin (2021), "In-Batch Negatives for Knowledge Distillation with Tightly-Coupled
  Teachers for Dense Retrieval".

  Prefer it for a retriever: it is the loss that also says where the rest of the corpus belongs.

  Args:
    scores: [..., M], every query against every passage of the batch, any float dtype.
    target: [..., M] probabilities; what lies in slots that `where` excludes is ignored.
    where: bool [..., M], passages in the student's softmax.
    student_temperature: in units of the scores.

  >>> target = jnp.array([[1.0, 0.0, 0.0, 0.0]])
  >>> round(float(kl_batch(jnp.zeros((1, 4)), target, student_temperature=0.05)), 4)  # log 4
  1.3863
  """
  scores, where = masked.prepare(scores, where)
  target = jax.lax.stop_gradient(jnp.where(where, target, 0.0).astype(jnp.float32))
  log_student = masked.log_softmax(scores / student_temperature, where)
  divergence = jax.scipy.special.xlogy(target, target) - target * log_student
  return masked.mean_over_lists(masked.total(divergence, where), where)


def margin_mse(
  scores: jax.Array,
  teacher_scores: jax.Array,
  *,
  where: jax.Array | None = None,
  teacher_temperature: float,
  student_temperature: float,
) -> jax.Array:
  """Mean squared error between the student's and the teacher's lead of the best item over each other one.

      L = 1/(n - 1) sum_{j != b} ( (s_b - s_j) / T_s - (t_b - t_j) / T_t )^2,    b = argmax t

  The pairs are the teacher's best against the rest, not all pairs: the margin of a positive over its
  negatives is what the source defines.  Of several best the first is taken.  Temperatures of 1 give the
  published loss; others bring cosines and logits to one scale.

  Source: Hofstätter, Althammer, Schroeder, Sertkan, Hanbury (2020), "Improving Efficient Neural Ranking
  Models with Cross-Architecture Knowledge Distillation".

  Prefer it when the teacher's scores are calibrated (a cross-encoder's logits), so that their size is worth
  learning; an LLM's order has no such size.

  Args:
    scores, teacher_scores, where, teacher_temperature, student_temperature: as in `kl_list`.

  >>> scores, teacher = jnp.array([3.0, 1.0]), jnp.array([5.0, 4.0])
  >>> float(margin_mse(scores, teacher, teacher_temperature=1.0, student_temperature=1.0))  # (2 - 1)^2
  1.0
  """
  scores, where = masked.prepare(scores, where)
  teacher, _ = masked.prepare(jax.lax.stop_gradient(teacher_scores), where)
  # A squared difference of differences: what counts is how far each item's error lies from that of the best.
  errors = scores / student_temperature - teacher / teacher_temperature
  best = jnp.argmax(jnp.where(where, teacher, -jnp.inf), axis=-1, keepdims=True)
  squares = jnp.square(jnp.take_along_axis(errors, best, axis=-1) - errors)
  # The best item's own square is zero, so it needs no mask, only no place in the count.
  others = jnp.maximum(where.sum(-1) - 1, 1)
  return masked.mean_over_lists(masked.total(squares, where) / others, where)
