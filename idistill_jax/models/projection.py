"""What a retriever's checkpoint has behind pooling: Dense modules of sentence-transformers, y = f(W x + b) each.

LaBSE has one (Feng et al. 2020, arXiv 2007.01852); where it is narrower than the states, embeddings are.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.data import tokenizer_files
from idistill_jax.models import encoder, layers
from idistill_jax.models import table as table_lib

TANH = "torch.nn.modules.activation.Tanh"
ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  "torch.nn.modules.linear.Identity": lambda x: x,
  TANH: jnp.tanh,
  "torch.nn.modules.activation.ReLU": jax.nn.relu,
  "torch.nn.modules.activation.GELU": layers.gelu,
}
# What else may be said of it, and must be this then: another input or output is no embedding's.
_NEEDS = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", "use_residual": False}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
  """path: of the module's folder in the checkpoint's.  activation: a key of ACTIVATIONS."""

  path: str
  in_features: int
  out_features: int
  bias: bool
  activation: str

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of the tensors in its folder."""
    bias = {"linear.bias": (self.out_features,)} if self.bias else {}
    return {"linear.weight": (self.out_features, self.in_features), **bias}

  @property
  def stated(self) -> dict[str, Any]:
    """What its config.json says."""
    return {"in_features": self.in_features, "out_features": self.out_features, "bias": self.bias,
            "activation_function": self.activation}

  def key(self, name: str) -> str:
    """Of one of its tensors among those of the whole checkpoint."""
    return f"{self.path}.{name}"


def read(folder: pathlib.Path, paths: Sequence[str], width: int) -> tuple[Projection, ...]:
  """Of modules at these paths in a folder, in this order, behind vectors of `width`.

  Raises encoder.UnsupportedModelError for what is no such module, or does not fit to what is before it.
  """
  found = []
  for path in paths:
    one = _read(folder / path / "config.json", path)
    if one.in_features != width:
      raise encoder.UnsupportedModelError(
        f"{folder / path / 'config.json'}: in_features is {one.in_features}, and what is before it gives {width}")
    width = one.out_features
    found.append(one)
  return tuple(found)


def _read(file: pathlib.Path, path: str) -> Projection:
  raw = tokenizer_files.parsed(file)
  if missing := [name for name in ("in_features", "out_features") if name not in raw]:
    raise encoder.UnsupportedModelError(f"{file}: lacks {missing}")
  for name, value in _NEEDS.items():
    if raw.get(name) not in (None, value):
      raise encoder.UnsupportedModelError(f"{file}: {name} is {raw[name]!r}; of a Dense module {value!r} is supported")
  activation = raw.get("activation_function", TANH)
  if activation not in ACTIVATIONS:
    raise encoder.UnsupportedModelError(
      f"{file}: activation_function {activation!r} is not supported; {', '.join(ACTIVATIONS)} are")
  return Projection(path=path, in_features=raw["in_features"], out_features=raw["out_features"],
                    bias=raw.get("bias", True), activation=activation)


class Projections(nnx.Module):
  """Pooled vectors [T, D] -> [T, E], float32: one behind the other, or the vectors as they are where there is none."""

  def __init__(self, each: Sequence[Projection], *, rngs: nnx.Rngs):
    self.activations = tuple(one.activation for one in each)
    self.layers = nnx.Dict({
      str(number): layers.Dense("td,de->te", (one.in_features, one.out_features),
                                (one.out_features,) if one.bias else None, rngs=rngs)
      for number, one in enumerate(each)
    })

  def __call__(self, vectors: jax.Array) -> jax.Array:
    for number, activation in enumerate(self.activations):
      vectors = ACTIVATIONS[activation](self.layers[str(number)](vectors))
    return vectors


def rows(each: Sequence[Projection], under: str) -> tuple[table_lib.Row, ...]:
  """Of the parameters of `Projections`, whose paths begin with `under`."""
  of = lambda number, leaf: f"{under}/layers/{number}/{leaf}"
  kernels = [table_lib.Row(of(number, "kernel"), ("embed", "embed_out"), one.key("linear.weight"), "o d -> d o")
             for number, one in enumerate(each)]
  biases = [table_lib.Row(of(number, "bias"), ("embed_out",), one.key("linear.bias"), "o -> o")
            for number, one in enumerate(each) if one.bias]
  return *kernels, *biases
