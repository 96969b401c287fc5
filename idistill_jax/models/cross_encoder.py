"""The ranker: query and passage read together -> one score.

Two heads.  `PairCosine` compares what the joint reading made of the two halves; it adds no parameter, and weights that
were trained as an embedding start near the retriever's level there, so a thousand lists suffice.  `CrossEncoder` has
BertForSequenceClassification's head (first token, dense, tanh, one linear unit): the one for starting weights that
read pairs already, and it exports as a plain CrossEncoder.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import bert, layers, pooling
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import table as table_lib


class CrossEncoder(nnx.Module):
  """Packed pairs -> scores [T], float32, without the similarity term."""

  def __init__(self, cfg: bert.BertConfig, *, rngs: nnx.Rngs):
    width = cfg.hidden_size
    self.encoder = bert.Bert(cfg, rngs=rngs)
    self.pooler = layers.Dense("td,de->te", (width, width), (width,), rngs=rngs)
    self.classifier = layers.Dense("td,dl->tl", (width, 1), (1,), rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    first_TxD = pooling.first(self.encoder(rows, execution), rows)
    return self.classifier(jnp.tanh(self.pooler(first_TxD)))[:, 0]


class MeanLinear(nnx.Module):
  """Packed pairs -> SCALE x a linear unit over the mean of all states of the pair [T], float32.

  The unit starts at zero, so that a term added to the score ranks alone at first, and the scale lets it learn in the
  few steps of a thousand lists, at a rate that suits the encoder.
  """

  SCALE = 20.0

  def __init__(self, cfg: bert.BertConfig, *, rngs: nnx.Rngs):
    self.encoder = bert.Bert(cfg, rngs=rngs)
    self.classifier = layers.Dense("td,dl->tl", (cfg.hidden_size, 1), (1,), rngs=rngs)
    self.classifier.kernel[...] = jnp.zeros((cfg.hidden_size, 1))

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    return self.SCALE * self.classifier(pooling.mean(self.encoder(rows, execution), rows))[:, 0]


class PairCosine(nnx.Module):
  """Packed pairs -> SCALE x cosine of the means of query half and passage half [T], float32."""

  SCALE = 20.0

  def __init__(self, cfg: bert.BertConfig, *, rngs: nnx.Rngs):
    self.encoder = bert.Bert(cfg, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    units_Tx2xD = pooling.unit(pooling.halves(self.encoder(rows, execution), rows))
    return self.SCALE * jnp.einsum("td,td->t", units_Tx2xD[:, 0], units_Tx2xD[:, 1])


LINEAR_ROWS = (
  table_lib.Row("classifier/kernel", ("embed", "label"), "classifier.weight", "l d -> d l"),
  table_lib.Row("classifier/bias", ("label",), "classifier.bias", "l -> l"),
)
POOLER_ROWS = (
  table_lib.Row("pooler/kernel", ("embed", "embed_out"), "pooler.dense.weight", "o d -> d o"),
  table_lib.Row("pooler/bias", ("embed_out",), "pooler.dense.bias", "o -> o"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
  """A ranker's module, the rows that it adds to the encoder's, and which of a checkpoint's tensors are none of its."""

  module: type[CrossEncoder] | type[MeanLinear] | type[PairCosine]
  rows: tuple[table_lib.Row, ...]
  ignored: tuple[str, ...]

  @property
  def fresh(self) -> tuple[str, ...]:
    """What an embedding checkpoint lacks and training makes."""
    return tuple(row.path for row in self.rows)


# config.Ranker.head -> Head.
HEADS = {
  "classifier": Head(module=CrossEncoder, rows=POOLER_ROWS + LINEAR_ROWS, ignored=()),
  "mean": Head(module=MeanLinear, rows=LINEAR_ROWS, ignored=("pooler.*",)),
  "pair_cosine": Head(module=PairCosine, rows=(), ignored=("pooler.*", "classifier.*")),
}


def table(cfg: bert.BertConfig, head: str) -> table_lib.Table:
  return bert.table_of(cfg, HEADS[head].rows, ignored=HEADS[head].ignored, prefix="encoder/")
