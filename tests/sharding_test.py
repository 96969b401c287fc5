"""Logical axes either lie on the mesh or are an error that names them."""

import jax
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


def test_data_takes_what_is_left_over():
  assert dict(sharding.make_mesh(config.Mesh(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("sizes, needed", [
  ({"data": 2, "fsdp": 2, "tensor": 1}, 4), ({"data": 4, "fsdp": 4, "tensor": 1}, 16), ({"fsdp": 3}, 6),
  ({"tensor": 16}, 0)])
def test_sizes_that_do_not_multiply_to_the_devices(sizes, needed):
  with pytest.raises(sharding.ShardingError, match=f"needs {needed} devices, but 8 are here"):
    sharding.make_mesh(config.Mesh(**sizes))
