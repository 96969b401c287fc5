"""Accelerators that are not here: what their makers say of them, and devices of theirs to compile for.

TPU slices need the package libtpu (extra `tpu-compile`), NVIDIA's H100 needs JAX's CUDA plugin (extra `gpu-compile`).
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from idistill_jax import config as config_lib
from idistill_jax import extras, sharding


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
  """What one chip can do, by its maker's data sheet: FLOP/s in bfloat16, bytes/s and bytes of its memory.

  taken: the share of that memory that JAX takes: of a GPU's as launch/gpu.sh says.
  """

  flops: float
  bandwidth: float
  memory: float
  taken: float = 1.0


# By `device_kind`.
CHIPS = {
  "TPU v4": Chip(flops=275e12, bandwidth=1228e9, memory=32 * 2**30),
  "TPU v5 lite": Chip(flops=197e12, bandwidth=819e9, memory=16 * 2**30),
  "TPU v5": Chip(flops=459e12, bandwidth=2765e9, memory=95 * 2**30),
  "TPU v6 lite": Chip(flops=918e12, bandwidth=1640e9, memory=32 * 2**30),
  # Of the SXM module; without sparsity.
  "NVIDIA H100 80GB HBM3": Chip(flops=989e12, bandwidth=3352e9, memory=84_942_979_072, taken=0.92),
}


def of(mesh: jax.sharding.Mesh) -> Chip:
  """What each chip of a mesh of `mesh_of` can do."""
  return CHIPS[mesh.devices.flat[0].device_kind]


# What XLA asks of a GPU, as its GpuTargetConfigProto: the sizes of NVIDIA's compute capability 9.0 and of this card.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: 233472
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
}
platform_name: "CUDA"
runtime_version { major: 12 minor: 9 }
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CUDNN = 91000

# By platform: how a lowered program calls the kernel for attention, and how it is compiled.
KERNELS = {"tpu": "@tpu_custom_call", "gpu": "@__cudnn$fmha"}
# Which of several forms is fastest can only be tried where there is a GPU.
OPTIONS: dict[str, dict[str, Any]] = {"gpu": {"xla_gpu_autotune_level": 0}}


class NoCompilerError(ModuleNotFoundError):
  """What compiles for the chip is not installed."""


def mesh_of(name: str, cfg: config_lib.Mesh) -> jax.sharding.Mesh:
  """The mesh over a TPU slice, named as libtpu does ("v5e:4x4"), or over one GPU, "h100", or "h100:8" of a host.

  Raises NoCompilerError, ValueError for what nobody knows, and ShardingError where sizes differ.
  """
  # Nothing is run: no device of this machine need be found or started.
  jax.config.update("jax_platforms", "cpu")
  gpus = re.fullmatch(r"h100(?::([1-9]\d*))?", name)
  devices = _gpus(int(gpus[1] or 1)) if gpus else _slice(name)
  kind = devices[0].device_kind
  if kind not in CHIPS:
    raise ValueError(f"{name}: no data sheet of a {kind} here; known are {sorted(CHIPS)}")
  return sharding.make_mesh(cfg, devices)


def _slice(name: str) -> list[Any]:
  from jax.experimental import topologies

  if not re.fullmatch(r"v\w+:\d+(x\d+)+", name):
    raise ValueError(f"{name!r} is no chip that can be compiled for: name some, as v5e:4x4, h100 or h100:8")
  try:
    import libtpu
  except ModuleNotFoundError as e:
    raise NoCompilerError(f"compiling for a TPU needs its compiler: {extras.install('tpu-compile')}") from e
  # Asking the cloud's metadata server which TPU this is would only wait for nobody.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())
  # The two cores of a v4 chip are told apart unless asked otherwise, and no mesh is made of half chips.
  one_a_chip = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **one_a_chip).devices)
  except jax.errors.JaxRuntimeError as e:
    raise ValueError(f"{name}: no such TPU slice, says its compiler: {e}") from e


def _gpus(count: int) -> list[Any]:
  from jax.experimental import topologies

  try:
    # One partition of one host.
    return list(topologies.get_topology_desc(platform="cuda", target_config=H100, topology=f"1x1x{count}").devices)
  except NotImplementedError as e:  # of a platform that no plugin has brought
    raise NoCompilerError(f"compiling for a GPU needs its compiler: {extras.install('gpu-compile')}") from e


@contextlib.contextmanager
def as_if_here(mesh: jax.sharding.Mesh) -> Iterator[None]:
  """Within it cuDNN's attention can be traced for a described GPU: JAX asks the GPU and the cuDNN of this machine
  whether they can do it."""
  if mesh.devices.flat[0].platform != "gpu":
    yield
    return
  from jax._src.cudnn import fused_attention_stablehlo as asked

  replaced: dict[str, Any] = {"check_cudnn_version": lambda: CUDNN, "check_compute_capability": lambda least: True}
  before = {name: getattr(asked, name) for name in replaced}
  try:
    for name, answer in replaced.items():
      setattr(asked, name, answer)
    yield
  finally:
    for name, answer in before.items():
      setattr(asked, name, answer)
