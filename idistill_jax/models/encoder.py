"""What encoders have in common: the sizes that others ask for, and the loop over a stack of layers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import pooling


class UnsupportedModelError(ValueError):
  """A checkpoint of a family, or with a feature, that no encoder here has."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
  """Of an encoder, under the names that Hugging Face's config.json gives BERT's, and what others than it read.

  model_type: a key of families.FAMILIES.  width: of a head; None: its share of the states.
  max_position_embeddings: rows of a table of positions, or positions that were trained; None bounds no text.
  first_position: a text's first token has this row of a table of positions.
  types_tell_halves: the passage of a pair has type 1; else all tokens have the same type, or none.
  classifier_pooling: what the family's sequence classifier reads of a pair.
  """

  model_type: str
  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  width: int | None = None
  intermediate_size: int
  max_position_embeddings: int | None = None
  layer_norm_eps: float
  first_position: int = 0
  types_tell_halves: bool
  classifier_pooling: pooling.Pooling = "cls"

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_attention_heads if self.width is None else self.width

  @property
  def lacks(self) -> frozenset[str]:
    """Paths of parameters that others of the family have, and an encoder of these sizes has not."""
    return frozenset()

  @property
  def attends_by_text(self) -> bool:
    """Whether attention can read text by text (see attention.attend)."""
    return True

  @property
  def max_tokens(self) -> int | None:
    """Tokens of a text that have a position; None: however many there are."""
    return None if self.max_position_embeddings is None else self.max_position_embeddings - self.first_position


# Our path, its logical axes, and the layout of HF's tensor -> ours (see table.Row).
Parameter = tuple[str, tuple[str, ...], str]


class Beside(NamedTuple):
  """What layers read beside states and parameters.

  each: of every layer its own, leaves [layer, ...] that a layer gets its entry of.  all: of all layers the same.
  """

  each: Any = None
  all: Any = None


Stacked = TypeVar("Stacked", bound=nnx.Module)


def stack(make: Callable[[nnx.Rngs], Stacked], count: int, rngs: nnx.Rngs) -> Stacked:
  """`count` modules as one, whose parameters carry a leading "layer" axis."""
  # mypy: `...` is a filter too, which nnx's annotation of StateAxes leaves out.
  vmapped = nnx.vmap(make, in_axes=(nnx.StateAxes({...: 0}),), out_axes=0)  # type: ignore[arg-type]
  made: Stacked = nnx.split_rngs(splits=count)(vmapped)(rngs)
  return made


def through(layers: nnx.Module, x_RxLxD: jax.Array, rows: pack.Rows, beside: Beside,
            execution: execution_lib.Execution) -> jax.Array:
  """States behind the last of stacked layers [R, L, D]; each is called as layer(x, rows, beside, execution)."""
  graph, stacked = nnx.split(layers)

  def layer(x_RxLxD: jax.Array, own: Any) -> tuple[jax.Array, None]:
    params, each = own
    return nnx.merge(graph, params)(x_RxLxD, rows, Beside(each, beside.all), execution), None

  own, frozen = (stacked, beside.each), execution.frozen_layers
  if frozen:
    first, own = jax.tree.map(lambda leaf: leaf[:frozen], own), jax.tree.map(lambda leaf: leaf[frozen:], own)
    x_RxLxD = jax.lax.stop_gradient(jax.lax.scan(layer, x_RxLxD, first, unroll=execution.unroll_layers)[0])
  layer_kept = execution_lib.rematerialised(layer, execution.remat)
  return jax.lax.scan(layer_kept, x_RxLxD, own, unroll=execution.unroll_layers)[0]
