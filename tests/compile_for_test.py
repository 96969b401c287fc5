"""Steps compiled for TPU slices: they fit, and attend with the TPU's kernel.  Skipped without the TPU's compiler."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jobs
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from idistill_jax import compile_for, config, sharding
from idistill_jax.retrieval import exact
from idistill_jax.train import networks, utilization

COMMAND = (sys.executable, "-m", "idistill_jax.compile_for", "--config=configs/quickstart.py")


def run(*flags: str) -> subprocess.CompletedProcess:
  environment = os.environ | jobs.ONE_DEVICE | {"COLUMNS": "160"}
  return subprocess.run([*COMMAND, *flags], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.parametrize("topology, mesh", [("v5e:4x4", ("--config.mesh.fsdp=4",)), ("v5p:2x2x2", ())])
def test_the_quickstart_compiles_for_a_slice(topology, mesh):
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  done = run(f"--topology={topology}", *mesh)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "DOES NOT FIT" not in done.stdout
  lines = {name: line.split() for line in done.stdout.splitlines()
           for name in ("ranker step", "direct step", "retriever step", "encode") if line.strip().startswith(name)}
  assert len(lines) == 4
  # The last column counts kernels: one forward and one backward in a step, as rows are one block; one in encoding.
  assert {name: int(line[-1]) for name, line in lines.items()} == {
    "ranker step": 2, "direct step": 2, "retriever step": 2, "encode": 1}, done.stdout


TWO_SLICES = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from idistill_jax import compile_for, config, sharding

compile_for.mesh_of("v5e:2x2", config.Mesh())  # which finds the compiler
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2", num_slices=2).devices
mesh = sharding.make_mesh(config.Mesh(fsdp=2), devices)
print(dict(mesh.shape), [{one.slice_index for one in part.flat} for part in mesh.devices])
total = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))
rows = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharding.rows(mesh))
print("all-reduce" in total.lower(rows).compile().as_text())
"""


def test_a_job_of_two_slices_has_a_mesh_and_compiles_for_it():
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  # In a process of its own: the compiler ends at flags of the CPU's that it does not know.
  done = subprocess.run([sys.executable, "-c", TWO_SLICES], env=os.environ | {"XLA_FLAGS": ""}, capture_output=True,
                        text=True, timeout=300)  # fmt: skip
  assert done.stdout == "{'data': 4, 'fsdp': 2, 'tensor': 1} [{0}, {0}, {1}, {1}]\nTrue\n", done.stderr[-2000:]


@pytest.mark.parametrize("topology, chips", [("v4:2x2x2", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4)])
def test_a_device_of_a_slice_is_a_chip(topology, chips):
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  assert compile_for.mesh_of(topology, config.Mesh()).size == chips


def test_every_layer_is_counted(tiny_weights):
  """On a CPU, whose compiler counts as a TPU's does."""
  encoder = config.Encoder(weights=tiny_weights, query_tokens=16, passage_tokens=32, row_tokens=64, tokens_per_step=512)
  cfg = config.Config(name="counted", encoder=encoder, ranker=config.Ranker(passes=2, lists_per_batch=8))
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  of_step = utilization.flops_per_token(networks.retriever(encoder))
  for one in compile_for.programs(cfg, mesh):
    least = one.tokens * of_step * (1 / 3 if one.name == "encode" else 1)
    # Attention, the loss and AdamW come on top.
    assert least < one.flops < 3 * least, one.name


@pytest.mark.parametrize("recall, approximates", [(1.0, False), (0.95, True)])
def test_search_over_a_slice_sorts_only_what_it_must(recall, approximates):
  """PartialReduce is the operation that finds the best of parts of a row as it is computed."""
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  mesh = compile_for.mesh_of("v5e:4x4", config.Mesh())
  of = lambda dtype, *shape, over=(): jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*over)))
  best = of(jnp.float32, 256, 100), of(jnp.int32, 256, 100)
  blocks = of(jnp.float32, 16, exact.PASSAGE_BLOCK, 768, over=(mesh.axis_names,))
  number = of(jnp.int32)
  lowered = exact._merge.lower(best, of(jnp.float32, 256, 768), blocks, number, number, mesh=mesh, recall=recall)
  assert ("PartialReduce" in lowered.compile().as_text()) == approximates


def test_without_the_compiler_it_says_what_to_install(tmp_path):
  (tmp_path / "libtpu.py").write_text("raise ModuleNotFoundError('libtpu')")
  environment = os.environ | jobs.ONE_DEVICE | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
  done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=120)
  assert done.returncode == 1 and "launch/env.sh tpu-compile" in done.stderr and "Traceback" not in done.stderr
