"""The mesh, and logical axes -> PartitionSpec.  Raises where nothing matches and where two axes collide.

A parameter names what its axes mean ("embed", "heads"); the rules below say which mesh axis each meaning is laid
over.  Change a strategy here, never in a model.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from idistill_jax import config as config_lib

AXES = ("data", "fsdp", "tensor")

# Rows of a batch are spread over both axes that do not split a single matrix product.
BATCH = ("data", "fsdp")

# Meaning of an array axis -> mesh axis, or None where every device holds all of it.
RULES: dict[str, str | None] = {
  "layer": None,
  # 30,522, what most of BERT's family have, divides by 2, 3 and 5,087: over `tensor`, it would refuse 4 devices.
  "vocab": None,
  "embed": "fsdp",
  "embed_out": None,
  "heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  # Of products that are one matrix: query, key and value; and a gated MLP's two.
  "qkv": None,
  "gate": None,
  "position": None,
  "type": None,
  "bucket": None,
  "label": None,
}


class ShardingError(ValueError):
  """Axes that the mesh cannot carry; the message names the array, the axis and the sizes."""


def make_mesh(cfg: config_lib.Mesh, of: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """Mesh (data, fsdp, tensor) over all devices, or over those given; raises ShardingError where the sizes do not
  multiply to them."""
  devices = jax.device_count() if of is None else len(of)
  fixed = cfg.fsdp * cfg.tensor
  data = cfg.data if cfg.data is not None else max(1, devices // fixed)
  if data * fixed != devices:
    raise ShardingError(
      f"mesh data={data} x fsdp={cfg.fsdp} x tensor={cfg.tensor} needs {data * fixed} devices, "
      f"but {devices} are here; set --config.mesh.data/fsdp/tensor so that they multiply to {devices}"
    )
  shape = data, cfg.fsdp, cfg.tensor
  # Auto, not Explicit (the default of make_mesh): XLA propagates the layouts of intermediates.
  types = (AxisType.Auto,) * len(AXES)
  across = _across_slices(shape, jax.devices() if of is None else of)
  if math.prod(across) == 1:
    return jax.make_mesh(shape, AXES, axis_types=types, devices=of)
  within = [size // slices for size, slices in zip(shape, across, strict=True)]
  arranged = mesh_utils.create_hybrid_device_mesh(within, across, of, allow_split_physical_axes=True)
  return jax.sharding.Mesh(arranged, AXES, axis_types=types)


def _across_slices(shape: Sequence[int], devices: Sequence[Any]) -> list[int]:
  """Into how many slices each axis is cut; a slice is what a fast network joins: TPU chips, the GPUs of a node.

  Outer axes, which say least to each other, are cut first, and one within only where those do not do.
  """
  left, across = len({getattr(device, "slice_index", 0) for device in devices}), []
  for size in shape:
    across.append(math.gcd(size, left))
    left //= across[-1]
  return across


def local_mesh(cfg: config_lib.Mesh) -> jax.sharding.Mesh:
  """The mesh over this process's devices alone, as much like the whole one as they allow: for work that is dealt out
  to processes.  Alone it is the whole mesh."""
  return make_mesh(cfg) if jax.process_count() == 1 else make_mesh(_fitted(cfg), jax.local_devices())


def fitted(cfg: config_lib.Config) -> config_lib.Config:
  """The config with the mesh of `local_mesh`, whatever it says: for whoever reads what another machine trained."""
  return dataclasses.replace(cfg, mesh=_fitted(cfg.mesh))


def _fitted(cfg: config_lib.Mesh) -> config_lib.Mesh:
  devices = jax.local_device_count()
  tensor = math.gcd(cfg.tensor, devices)
  return dataclasses.replace(cfg, data=None, fsdp=math.gcd(cfg.fsdp, devices // tensor), tensor=tensor)


def put(tree: Any, layouts: Any) -> Any:
  """Arrays on the devices; of those on the host, which every process has, each hands over what its own devices hold."""
  return jax.device_put(tree, layouts) if jax.process_count() == 1 else jax.tree.map(_put, tree, layouts)


def _put(array: Any, layout: jax.sharding.Sharding) -> jax.Array:
  if layout.is_fully_addressable or (isinstance(array, jax.Array) and not array.is_fully_addressable):
    return jax.device_put(array, layout)
  host = np.asarray(array)
  return put_parts(host.shape, layout, lambda part: host[part])


def put_parts(shape: tuple[int, ...], layout: jax.sharding.Sharding,
              read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
  """An array of which `read` gives parts, each a device's share; it is asked for those of this process's devices."""
  parts = layout.addressable_devices_indices_map(shape)
  # Not `make_array_from_callback`, whose transfers a guard takes for accidents.
  return jax.make_array_from_single_device_arrays(
    shape, layout, [jax.device_put(read(part or ()), device) for device, part in parts.items()])


def batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Into how many parts the rows of a batch are cut."""
  return int(np.prod([mesh.shape[axis] for axis in BATCH]))


def spec(path: str, logical_axes: tuple[str, ...], shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
  """PartitionSpec of one array; raises ShardingError on an unknown axis, a collision or a size that does not divide."""
  physical: list[str | None] = []
  for axis, size in zip(logical_axes, shape, strict=True):
    if axis not in RULES:
      raise ShardingError(f"{path}: no rule for axis {axis!r}; known are {sorted(RULES)}")
    target = RULES[axis]
    if target is not None and target in physical:
      raise ShardingError(f"{path}: axes {logical_axes} lay {target!r} twice")
    if target is not None and size % mesh.shape[target]:
      raise ShardingError(
        f"{path}: axis {axis!r} of size {size} does not divide over mesh axis {target!r} of size {mesh.shape[target]}"
      )
    physical.append(target)
  return PartitionSpec(*physical)


def rows(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Sharding of an array whose first axis is the rows of a batch."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def own_rows(count: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """bool [count]: which rows of a batch this process's devices hold."""
  own = np.zeros(count, bool)
  for part in rows(mesh).addressable_devices_indices_map((count,)).values():
    if part is not None:
      own[part] = True
  return own


def packed(batch_rows: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shardings of packed texts: arrays [R, L] cut by rows, everything else on every device."""
  by_rows, everywhere = rows(mesh), replicated(mesh)
  return jax.tree.map(lambda array: by_rows if array.ndim == 2 else everywhere, batch_rows)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())
