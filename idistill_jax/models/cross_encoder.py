"""The ranker: query and passage read together -> one score.

Three heads.  `PairCosine` compares what the joint reading made of the two halves; it adds no parameter, and weights
that were trained as an embedding start near the retriever's level there, so a thousand lists suffice.  `MeanLinear`
reads the mean of the pair's states, which sentence-transformers has modules for.  `CrossEncoder` has the head of the
family's sequence classifiers (for BERT first token, dense, tanh, one linear unit): the one for starting weights that
read pairs already, and it exports as a plain CrossEncoder.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax import multiply
from idistill_jax.data import pack
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import families, layers, pooling
from idistill_jax.models import family as family_lib
from idistill_jax.models import table as table_lib


class CrossEncoder(nnx.Module):
  """Packed pairs -> scores [T], float32, without the similarity term."""

  def __init__(self, cfg: encoder_lib.Sizes, *, rngs: nnx.Rngs):
    width, family = cfg.hidden_size, families.FAMILIES[cfg.model_type]
    self.encoder = families.encoder(cfg, rngs)
    self.pool, self.activation = pooling.POOLINGS[cfg.classifier_pooling], family.activation
    bias = None if "pooler/bias" in family.lacks else (width,)
    self.pooler = layers.Dense("td,de->te", (width, width), bias, rngs=rngs)
    self.norm = layers.ScaleNorm(width, cfg.layer_norm_eps, rngs=rngs) if "norm" in family.classifier else None
    self.classifier = layers.Dense("td,dl->tl", (width, 1), (1,), rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    hidden_TxD = self.activation(self.pooler(self.pool(self.encoder(rows, execution), rows)))
    return self.classifier(hidden_TxD if self.norm is None else self.norm(hidden_TxD))[:, 0]


class MeanLinear(nnx.Module):
  """Packed pairs -> SCALE x a linear unit over the mean of all states of the pair [T], float32.

  The unit starts at zero, so that a term added to the score ranks alone at first, and the scale lets it learn in the
  few steps of a thousand lists, at a rate that suits the encoder.
  """

  SCALE = 20.0

  def __init__(self, cfg: encoder_lib.Sizes, *, rngs: nnx.Rngs):
    self.encoder = families.encoder(cfg, rngs)
    self.classifier = layers.Dense("td,dl->tl", (cfg.hidden_size, 1), (1,), rngs=rngs)
    self.classifier.kernel[...] = jnp.zeros((cfg.hidden_size, 1))

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    return self.SCALE * self.classifier(pooling.mean(self.encoder(rows, execution), rows))[:, 0]


class PairCosine(nnx.Module):
  """Packed pairs -> SCALE x cosine of the means of query half and passage half [T], float32."""

  SCALE = 20.0

  def __init__(self, cfg: encoder_lib.Sizes, *, rngs: nnx.Rngs):
    self.encoder = families.encoder(cfg, rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    units_Tx2xD = pooling.unit(pooling.halves(self.encoder(rows, execution), rows))
    return self.SCALE * multiply.einsum("td,td->t", units_Tx2xD[:, 0], units_Tx2xD[:, 1])


#  our path             logical axes             layout
PARAMETERS: tuple[encoder_lib.Parameter, ...] = (
  ("pooler/kernel", ("embed", "embed_out"), "o d -> d o"),
  ("pooler/bias", ("embed_out",), "o -> o"),
  ("norm/scale", ("embed_out",), "d -> d"),
  ("classifier/kernel", ("embed", "label"), "l d -> d l"),
  ("classifier/bias", ("label",), "l -> l"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Head:
  """A ranker's module, and what a family calls the modules that it adds to the encoder: ours -> HF's."""

  module: type[CrossEncoder] | type[MeanLinear] | type[PairCosine]
  tensors: Callable[[family_lib.Family], Mapping[str, str]]

  def rows(self, family: family_lib.Family) -> tuple[table_lib.Row, ...]:
    return family_lib.rows_of(PARAMETERS, self.tensors(family), family.lacks)

  def fresh(self, cfg: encoder_lib.Sizes) -> tuple[str, ...]:
    """What an embedding checkpoint lacks and training makes."""
    return tuple(row.path for row in self.rows(families.FAMILIES[cfg.model_type]))


# config.Ranker.head -> Head.
HEADS = {
  "classifier": Head(module=CrossEncoder, tensors=lambda family: family.classifier),
  # The name is that of sentence-transformers' module: no family's classifier reads a mean as it is, without a dense
  # layer, so that none is a start for this one.
  "mean": Head(module=MeanLinear, tensors=lambda family: {"classifier": "linear"}),
  "pair_cosine": Head(module=PairCosine, tensors=lambda family: {}),
}


def head_of(cfg: encoder_lib.Sizes, name: str) -> Head:
  """Raises encoder.UnsupportedModelError where the family has no sequence classifier, whose head "classifier" is."""
  if name == "classifier" and not families.FAMILIES[cfg.model_type].classifier:
    others = " or ".join(repr(one) for one in HEADS if one != name)
    raise encoder_lib.UnsupportedModelError(
      f"ranker.head is {name!r}, and model_type {cfg.model_type!r} has no sequence classifier that is an encoder and a "
      f"head: set ranker.head to {others}"
    )
  return HEADS[name]


def table(cfg: encoder_lib.Sizes, head: str) -> table_lib.Table:
  return families.table_of(cfg, HEADS[head].rows(families.FAMILIES[cfg.model_type]))
