"""The ranker: query and passage read together -> one score.

The head is BertForSequenceClassification's (first token, dense, tanh, one linear unit), so that the ranker exports as
a plain CrossEncoder.  The classifier starts at zero: with the initial retriever's similarity added to the score, the
untrained ranker orders exactly as the retriever does, and training only has to learn corrections.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import bert, pooling
from idistill_jax.models import table as table_lib


class CrossEncoder(nnx.Module):
  """Packed pairs -> scores [T], float32, without the similarity term."""

  def __init__(self, cfg: bert.BertConfig, *, rngs: nnx.Rngs):
    width = cfg.hidden_size
    self.encoder = bert.Bert(cfg, rngs=rngs)
    self.pooler = bert.Dense("td,de->te", (width, width), (width,), rngs=rngs)
    self.classifier = bert.Dense("td,dl->tl", (width, 1), (1,), rngs=rngs)
    self.classifier.kernel[...] = jnp.zeros((width, 1))

  def __call__(self, rows: pack.Rows, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    first_TxD = pooling.first(self.encoder(rows, dtype), rows)
    return self.classifier(jnp.tanh(self.pooler(first_TxD)))[:, 0]


HEAD_ROWS = (
  table_lib.Row("pooler/kernel", ("embed", "embed_out"), "pooler.dense.weight", "o d -> d o"),
  table_lib.Row("pooler/bias", ("embed_out",), "pooler.dense.bias", "o -> o"),
  table_lib.Row("classifier/kernel", ("embed", "label"), "classifier.weight", "l d -> d l"),
  table_lib.Row("classifier/bias", ("label",), "classifier.bias", "l -> l"),
)

# What an embedding checkpoint lacks and training makes.
FRESH = ("pooler/kernel", "pooler/bias", "classifier/kernel", "classifier/bias")


def table(cfg: bert.BertConfig) -> table_lib.Table:
  return bert.table_of(cfg, HEAD_ROWS, ignored=(), prefix="encoder/")
