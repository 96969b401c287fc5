"""Losses of both students, pure jnp, one contract: `f(scores, targets, *, where=None, ...) -> float32`.

- The last axis is the list, leading axes are batch.
- `where` says which items exist.  What is in the other slots, NaN included, is seen by neither value
  nor gradient.
- The value is the mean over lists that have at least one item; without any it is 0, with zero gradients.  A
  list with nothing to compare (one item, no known item) has items: it adds 0 and is counted.
- Computed in float32 whatever the dtype of the scores.

Ranker losses (`LISTWISE`) take `places`: int, 0 is what the teacher put first, in the order in which the
scores stand, so callers sort nothing.  Gaps are allowed, as when a list is a part of a longer one.
`listmle`, `ranknet` and `lambda_loss` read only their order; `listnet` reads them as numbers (relevance is
minus the place).  All take `top_places` and `known`, which choose the items whose own term counts; the
others remain something to be better than.

Retriever losses (`DISTILLATION`) take `RetrieverTargets`; the functions behind them can be called directly.
"""

from collections.abc import Callable

import jax

from idistill_jax.losses.distillation import (
  kl_batch,
  kl_list,
  margin_mse,
  order_distribution,
  score_distribution,
)
from idistill_jax.losses.in_batch import DISTILLATION, InBatch, RetrieverTargets, in_batch_targets
from idistill_jax.losses.infonce import contrastive
from idistill_jax.losses.listwise import listmle, listnet
from idistill_jax.losses.pairwise import lambda_loss, ranknet

# config.Ranker.loss -> f(scores [..., N], places [..., N], *, where, top_places, known).
LISTWISE: dict[str, Callable[..., jax.Array]] = {
  "listmle": listmle,
  "listnet": listnet,
  "ranknet": ranknet,
  "lambda": lambda_loss,
}

__all__ = [
  "DISTILLATION",
  "LISTWISE",
  "InBatch",
  "RetrieverTargets",
  "contrastive",
  "in_batch_targets",
  "kl_batch",
  "kl_list",
  "lambda_loss",
  "listmle",
  "listnet",
  "margin_mse",
  "order_distribution",
  "ranknet",
  "score_distribution",
]
