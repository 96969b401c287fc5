"""The parameter table: one row a parameter; shapes, shardings, HF import, HF export and decay masks read the same rows.

A row's path uses "/" between the names of nested modules.  Rows whose HF key holds `{i}` or `{next}` describe one
parameter of many layers, stacked on a leading "layer" axis.  Params are nested dicts of arrays (`nnx.to_pure_dict`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import einops
import jax
import numpy as np
from jax.sharding import NamedSharding

from idistill_jax import sharding


class WeightsError(ValueError):
  """A checkpoint that does not fit the table; the message lists every key that is missing, unknown or misshapen."""


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """path | logical axes | HF key | HF layout -> ours (an einops pattern of a single layer's parameter).

  An HF key with `{i}` is one of every layer, with `{next}` one of every layer but the first.
  """

  path: str
  axes: tuple[str, ...]
  hf_key: str
  layout: str

  @property
  def stacked(self) -> bool:
    return "{i}" in self.hf_key or "{next}" in self.hf_key

  @property
  def is_kernel_of_layer(self) -> bool:
    return self.stacked and self.path.endswith("/kernel")

  @property
  def embeds(self) -> bool:
    """Whether it makes of tokens what the first layer reads; not what all layers read beside it."""
    return self.axes[0] in ("vocab", "position", "type") or self.path.endswith("project/kernel")

  @property
  def decays(self) -> bool:
    """Weight decay applies to matrices and embeddings, not to biases and normalisation scales."""
    return self.path.rsplit("/", 1)[-1] in ("kernel", "embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """Rows of one model, the sizes that its layouts need, and HF keys that it knows and leaves out."""

  rows: tuple[Row, ...]
  layers: int
  sizes: Mapping[str, int]
  ignored: tuple[str, ...] = ()

  def row(self, path: str) -> Row:
    found = [row for row in self.rows if row.path == path]
    if len(found) != 1:
      raise WeightsError(f"parameter {path!r} matches {len(found)} rows of the table")
    return found[0]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts -> {"a/b/c": leaf}."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def shardings(table: Table, abstract: Mapping[str, Any], mesh: jax.sharding.Mesh) -> dict[str, Any]:
  """A NamedSharding for every leaf of a (possibly abstract) params tree."""
  return unflatten({
    path: NamedSharding(mesh, sharding.spec(path, table.row(path).axes, leaf.shape, mesh))
    for path, leaf in flatten(abstract).items()
  })


def decay_mask(table: Table, params: Mapping[str, Any]) -> dict[str, Any]:
  return unflatten({path: table.row(path).decays for path in flatten(params)})


def trained_mask(table: Table, params: Mapping[str, Any], frozen_layers: int) -> dict[str, Any]:
  """Of every leaf, where weights may change: a bool, or of layers an array bool [layer, 1, ...]."""
  def of(path: str, leaf: Any) -> Any:
    row = table.row(path)
    if not row.stacked:
      return not (frozen_layers and row.embeds)
    # A parameter that the first layer lacks is stacked without it.
    first = table.layers - leaf.shape[0]
    return (np.arange(first, table.layers) >= frozen_layers).reshape(-1, *[1] * (len(leaf.shape) - 1))

  return unflatten({path: of(path, leaf) for path, leaf in flatten(params).items()})


def from_hf(table: Table, tensors: Mapping[str, np.ndarray], abstract: Mapping[str, Any], *,
            optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
  """HF tensors -> {path: array} in our layout.

  Raises WeightsError listing every parameter without a tensor (but for `optional` paths, which the caller
  initialises), every tensor that no row takes, and every shape that differs from `abstract`'s.
  """
  shapes = {path: leaf.shape for path, leaf in flatten(abstract).items()}
  taken, problems, out = set(), [], {}
  for path in shapes:
    row = table.row(path)
    keys = _hf_keys(table, row)
    missing = [key for key in keys if key not in tensors]
    if missing:
      if path not in optional:
        problems += [f"- {key} (for {path})" for key in missing]
      continue
    taken.update(keys)
    try:
      parts = [einops.rearrange(tensors[key], row.layout, **_used(table.sizes, row.layout)) for key in keys]
      array = np.stack(parts) if row.stacked else parts[0]
    except (einops.EinopsError, ValueError) as e:
      problems.append(
        f"~ {keys[0]}: {np.shape(tensors[keys[0]])} does not read as {row.layout!r}: {str(e).splitlines()[0]}"
      )
      continue
    if array.shape != shapes[path]:
      problems.append(f"~ {keys[0]}: gives {array.shape}, {path} is {shapes[path]}")
      continue
    out[path] = array
  unknown = [key for key in tensors if key not in taken and not _is_ignored(table, key)]
  problems += [f"+ {key} {np.shape(tensors[key])}" for key in sorted(unknown)]
  if problems:
    raise WeightsError(
      "checkpoint does not fit the model (- missing, + unknown, ~ wrong shape):\n  " + "\n  ".join(problems)
    )
  return out


def to_hf(table: Table, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Our params -> HF tensors: every row's arrow read backwards."""
  out = {}
  for path, leaf in flatten(params).items():
    row = table.row(path)
    theirs, ours = row.layout.split("->")
    backwards = f"{ours.strip()} -> {theirs.strip()}"
    array = np.asarray(jax.device_get(leaf), dtype=np.float32)
    parts = array if row.stacked else [array]
    for key, part in zip(_hf_keys(table, row), parts, strict=True):
      out[key] = np.ascontiguousarray(einops.rearrange(part, backwards, **_used(table.sizes, row.layout)))
  return out


def listing(table: Table, abstract: Mapping[str, Any], mesh: jax.sharding.Mesh) -> str:
  """One `path shape spec` line a parameter: what a golden test and a reviewer read."""
  flat = flatten(abstract)
  return "\n".join(
    f"{path}  {tuple(leaf.shape)}  {sharding.spec(path, table.row(path).axes, leaf.shape, mesh)}"
    for path, leaf in sorted(flat.items())
  ) + "\n"


def _hf_keys(table: Table, row: Row) -> list[str]:
  if not row.stacked:
    return [row.hf_key]
  return [row.hf_key.replace("{i}", str(i)).replace("{next}", str(i))
          for i in range("{next}" in row.hf_key, table.layers)]


def _used(sizes: Mapping[str, int], layout: str) -> dict[str, int]:
  names = layout.replace("(", " ").replace(")", " ").split()
  return {name: size for name, size in sizes.items() if name in names}


def _is_ignored(table: Table, key: str) -> bool:
  return any(key == name or (name.endswith("*") and key.startswith(name[:-1])) for name in table.ignored)
