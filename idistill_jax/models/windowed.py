"""Layers of two kinds: some see all of a text, the others near tokens alone; each has its turns of queries and keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from idistill_jax.models import attention, encoder, rotary


class Sight(NamedTuple):
  """A layer's; of all of them, each field has a leading "layer" axis.

  reach: int32 []; how many tokens away its tokens see.  frequencies: [K / 2], radians a token.
  """

  reach: jax.Array
  frequencies: jax.Array

  @property
  def window(self) -> attention.Window:
    return attention.Window(self.reach, self.reach)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes(encoder.Sizes):
  """And how far each layer sees.

  local: of every layer, whether its tokens attend to those at most `reach` tokens away alone.
  global_theta, local_theta: base of the turns' frequencies in layers that see all of a text, and in local ones.
  """

  types_tell_halves: bool = False
  local: tuple[bool, ...]
  reach: int
  global_theta: float
  local_theta: float

  def sight(self, length: int) -> Sight:
    """Of all layers, in rows of so many tokens."""
    local = np.array(self.local)
    return Sight(
      reach=jnp.asarray(np.where(local, self.reach, length), jnp.int32),
      frequencies=rotary.frequencies(np.where(local, self.local_theta, self.global_theta), self.head_dim),
    )


class Former(NamedTuple):
  """What had a kind's theta before `rope_parameters`: a field of config.json, and transformers' default of it."""

  field: str
  default: float


def read(raw: Mapping[str, Any], otherwise: Sequence[str], *, of_global: Former,
         of_local: Former) -> Mapping[str, Any]:
  """config.json -> the fields of Sizes that are not `reach`, in either form of it, of transformers 4 and 5.

  otherwise: kinds of the layers where it does not tell them.  Raises encoder.UnsupportedModelError without the file's
  name.
  """
  formers = {"full_attention": of_global, "sliding_attention": of_local}
  known, count = ", ".join(formers), raw["num_hidden_layers"]
  kinds = raw.get("layer_types") or otherwise
  if len(kinds) != count or not set(kinds) <= set(formers):
    raise encoder.UnsupportedModelError(f"layer_types is {kinds}; {count} of {known} are supported")
  stated = raw.get("rope_parameters") or {}
  if unknown := set(stated) - set(formers):
    raise encoder.UnsupportedModelError(f"rope_parameters has {sorted(unknown)}; {known} are supported")
  theta = lambda kind: _theta(kind, stated.get(kind) or {}, raw.get(*formers[kind]))
  return {"local": tuple(kind == "sliding_attention" for kind in kinds),
          "global_theta": theta("full_attention"), "local_theta": theta("sliding_attention")}


def _theta(kind: str, stated: Mapping[str, Any], otherwise: Any) -> float:
  try:
    return rotary.theta(stated, otherwise)
  except encoder.UnsupportedModelError as e:
    raise encoder.UnsupportedModelError(f"{kind} has {e}") from e
