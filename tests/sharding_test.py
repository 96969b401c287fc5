"""Logical axes either lie on the mesh or are an error that names them."""

import collections
import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from idistill_jax import config, sharding


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def test_axes_are_laid_by_their_meaning(mesh):
  assert sharding.spec("w", ("layer", "embed", "mlp"), (3, 8, 10), mesh) == PartitionSpec(None, "fsdp", "tensor")


def test_unknown_axis(mesh):
  with pytest.raises(sharding.ShardingError, match=r"head/w: no rule for axis 'embd'; known are .*'embed'"):
    sharding.spec("head/w", ("embd", "mlp"), (8, 8), mesh)


def test_collision(mesh):
  with pytest.raises(sharding.ShardingError, match=r"head/w: axes \('heads', 'mlp'\) lay 'tensor' twice"):
    sharding.spec("head/w", ("heads", "mlp"), (8, 8), mesh)


def test_size_that_does_not_divide(mesh):
  with pytest.raises(sharding.ShardingError, match=r"head/w: axis 'mlp' of size 7 .* 'tensor' of size 2"):
    sharding.spec("head/w", ("embed", "mlp"), (8, 7), mesh)


def test_more_or_fewer_names_than_axes(mesh):
  with pytest.raises(ValueError, match="argument"):
    sharding.spec("head/w", ("embed",), (8, 8), mesh)


def test_alone_all_rows_are_ones_own_and_the_local_mesh_is_the_whole(mesh):
  assert sharding.own_rows(8, mesh).all()
  assert sharding.local_mesh(config.Mesh(fsdp=2)) == sharding.make_mesh(config.Mesh(fsdp=2))


@pytest.mark.parametrize("sizes, shape", [
  ({"data": 16, "fsdp": 2}, (4, 2, 1)), ({"fsdp": 6, "tensor": 4}, (1, 2, 4)), ({"data": 1, "tensor": 3}, (8, 1, 1))])
def test_a_mesh_of_another_machine_is_fitted_to_this_one(sizes, shape):
  cfg = sharding.fitted(config.Config(name="x", mesh=config.Mesh(**sizes)))
  assert tuple(sharding.make_mesh(cfg.mesh).shape.values()) == shape


def test_data_takes_what_is_left_over():
  assert dict(sharding.make_mesh(config.Mesh(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
  """What JAX says of one."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("sizes, together", [
  ({"fsdp": 2, "tensor": 2}, 1), ({"fsdp": 8}, 1), ({"fsdp": 16}, 2), ({"data": 1, "fsdp": 8, "tensor": 2}, 2),
  ({"data": 2, "fsdp": 1, "tensor": 8}, 1)])
def test_slices_are_laid_over_data_and_over_what_lies_within_only_where_that_does_not_do(sizes, together):
  """Two nodes of eight GPUs, which JAX tells apart as slices.  together: how many slices share an array over `fsdp`."""
  nodes = [Gpu(id=i, slice_index=i // 8, process_index=i) for i in range(16)]
  found = sharding.make_mesh(config.Mesh(**sizes), nodes)
  assert dict(found.shape) == {"data": 16 // (sizes["fsdp"] * sizes.get("tensor", 1)), "tensor": 1, **sizes}
  assert collections.Counter(one.id for one in found.devices.flat) == dict.fromkeys(range(16), 1)
  slices = np.vectorize(lambda one: one.slice_index)(found.devices)
  assert {len(set(row)) for row in slices.reshape(-1, slices.shape[2])} == {1}, "a matrix product is cut within one"
  assert {len(set(slices[i, :, j])) for i in range(slices.shape[0]) for j in range(slices.shape[2])} == {together}


@pytest.mark.parametrize("sizes, needed", [
  ({"data": 2, "fsdp": 2, "tensor": 1}, 4), ({"data": 4, "fsdp": 4, "tensor": 1}, 16), ({"fsdp": 3}, 6),
  ({"tensor": 16}, 16)])
def test_sizes_that_do_not_multiply_to_the_devices(sizes, needed):
  with pytest.raises(sharding.ShardingError, match=f"needs {needed} devices, but 8 are here"):
    sharding.make_mesh(config.Mesh(**sizes))
