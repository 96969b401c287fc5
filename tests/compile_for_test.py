"""Steps compiled for chips that are not here: they fit, and attend with the chip's kernel.  What needs the TPU's or the
GPU's compiler is skipped without it."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jobs
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from idistill_jax import chips, compile_for, config, sharding
from idistill_jax.hf import networks
from idistill_jax.retrieval import exact
from idistill_jax.train import objectives, utilization

COMMAND = (sys.executable, "-m", "idistill_jax.pipeline", "--config=configs/quickstart.py")
V5E = chips.CHIPS["TPU v5 lite"]
A_STEP = compile_for.Program(
  name="ranker step", tokens=8192, argument_bytes=2**30, temporary_bytes=2**30, flops=1e9, bytes_moved=1e9, kernels=2,
  attends=True, fusions=None, collectives=None)


def run(workdir, *flags: str) -> subprocess.CompletedProcess:
  environment = os.environ | jobs.ONE_DEVICE | {"COLUMNS": "160"}
  return subprocess.run([*COMMAND, f"--workdir={workdir}", *flags], env=environment, capture_output=True, text=True,
                        timeout=900)


@pytest.mark.parametrize("topology, mesh", [("v5e:4x4", ("--config.mesh.fsdp=4",)), ("v5p:2x2x2", ())])
def test_the_quickstart_compiles_for_a_slice(topology, mesh, tmp_path):
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  done = run(tmp_path / "w", f"--compile_only={topology}", *mesh)
  assert done.returncode == 0, done.stderr[-2000:]
  assert not (tmp_path / "w").exists()
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
from idistill_jax import chips, config, sharding

chips.mesh_of("v5e:2x2", config.Mesh())  # which finds the compiler
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


@pytest.mark.parametrize("topology, count", [("v4:2x2x2", 8), ("v5e:4x4", 16), ("v5p:2x2x1", 4)])
def test_a_device_of_a_slice_is_a_chip(topology, count):
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  assert chips.mesh_of(topology, config.Mesh()).size == count


def test_every_layer_is_counted(tiny_weights):
  """On a CPU, whose compiler counts as a TPU's does; of frozen layers no gradient is."""
  encoder = config.Encoder(weights=tiny_weights, query_tokens=16, passage_tokens=32, row_tokens=64, tokens_per_step=512)
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  retriever, found = networks.retriever(encoder), {}
  of_reading = utilization.flops_per_token(retriever) / 3
  for frozen in (0, 1):
    cfg = config.Config(name="counted", encoder=encoder, ranker=config.Ranker(passes=2, lists_per_batch=8))
    cfg.ranker.frozen_layers = cfg.direct.frozen_layers = cfg.retriever.frozen_layers = frozen
    of_step = utilization.flops_per_token(retriever.frozen(frozen))
    for one in (compiled() for compiled in compile_for.programs(cfg, mesh).values()):
      least = one.tokens * (of_reading if one.name == "encode" else of_step)
      # Attention, the loss and AdamW come on top.
      assert least < one.flops < 3 * least, one.name
      found[one.name, frozen] = one
  for name in {name for name, _ in found}:
    whole, part = found[name, 0], found[name, 1]
    if name == "encode":
      assert (part.flops, part.bytes_moved) == (whole.flops, whole.bytes_moved)
    else:
      assert part.flops < 0.85 * whole.flops and part.bytes_moved < whole.bytes_moved, name


@pytest.mark.parametrize("recall, approximates", [(1.0, False), (0.95, True)])
def test_search_over_a_slice_sorts_only_what_it_must(recall, approximates):
  """PartialReduce is the operation that finds the best of parts of a row as it is computed."""
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  mesh = chips.mesh_of("v5e:4x4", config.Mesh())
  of = lambda dtype, *shape, over=(): jax.ShapeDtypeStruct(
    shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*over)))
  best = of(jnp.float32, 256, 100), of(jnp.int32, 256, 100)
  blocks = of(jnp.float32, 16, exact.PASSAGE_BLOCK, 768, over=(mesh.axis_names,))
  number = of(jnp.int32)
  lowered = exact._merge.lower(best, of(jnp.float32, 256, 768), blocks, number, number, mesh=mesh, recall=recall)
  assert ("PartialReduce" in lowered.compile().as_text()) == approximates


@pytest.mark.parametrize("topology, extra", [("v5e:4x4", "tpu-compile"), ("h100", "gpu-compile")])
def test_without_the_compiler_it_says_what_to_install(topology, extra, tmp_path):
  # What jax looks for is in the way of what may be installed.
  (tmp_path / "libtpu.py").write_text("raise ModuleNotFoundError('libtpu')")
  (tmp_path / "jax_plugins").mkdir()
  (tmp_path / "jax_plugins/__init__.py").touch()
  environment = os.environ | jobs.ONE_DEVICE | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
  done = subprocess.run([*COMMAND, f"--workdir={tmp_path / 'w'}", f"--compile_only={topology}"], env=environment,
                        capture_output=True, text=True, timeout=120)
  assert done.returncode == 1 and f"launch/env.sh {extra}" in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_chip_is_refused():
  with pytest.raises(ValueError, match=r"'h1000' is no chip that can be compiled for: .* as v5e:4x4, h100 or h100:8"):
    chips.mesh_of("h1000", config.Mesh())


@pytest.mark.parametrize("changed, fault", [
  ({}, None), ({"temporary_bytes": 2**34}, "ranker step: needs 17.00 GiB of the 16.00 GiB that JAX takes"),
  ({"kernels": 0}, "ranker step: attends by XLA's own products"), ({"kernels": 0, "attends": False}, None),
])
def test_what_does_not_fit_or_has_no_kernel_ends_the_command(changed, fault, monkeypatch, capsys):
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  monkeypatch.setattr(chips, "mesh_of", lambda name, cfg: mesh)
  monkeypatch.setitem(chips.CHIPS, mesh.devices.flat[0].device_kind, V5E)
  monkeypatch.setenv("COLUMNS", "160")
  made = {"encode": dataclasses.replace(A_STEP, name="encode"), "step": dataclasses.replace(A_STEP, **changed)}
  monkeypatch.setattr(compile_for, "programs",
                      lambda cfg, mesh: {name: lambda one=one: one for name, one in made.items()})
  if fault is None:
    compile_for.check(config.Config(name="any"), "any")
  else:
    with pytest.raises(compile_for.UnfitError, match=f"^{fault}"):
      compile_for.check(config.Config(name="any"), "any")
  assert "ranker step" in capsys.readouterr().out, "the table comes first"


FAULTS = """
import sys
from idistill_jax import chips, compile_for, config
from idistill_jax.hf import networks

mesh = chips.mesh_of("v5e:1x1", config.Mesh())
network = networks.retriever(config.Encoder(weights=sys.argv[1])).on(mesh, "bfloat16")
for tokens, row_tokens in ((1024, 128), (1920, 192), (2**28, 512)):
  try:
    made = compile_for._encoding(network, mesh, tokens=tokens, row_tokens=row_tokens)
    print(made.faults(chips.CHIPS["TPU v5 lite"]))
  except compile_for.UnfitError as e:
    print([str(e).splitlines()[0]])
"""


def test_the_compiler_of_a_tpu_finds_what_has_no_kernel_and_what_does_not_fit(tiny_weights):
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  # In a process of its own, as above.
  done = subprocess.run([sys.executable, "-c", FAULTS, tiny_weights], env=os.environ | {"XLA_FLAGS": ""},
                        capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-2000:]
  none, plain, large = done.stdout.splitlines()
  assert none == "[]" and "encode: attends by XLA's own products" in plain
  assert "encode: does not fit into a TPU v5 lite; " in large and "its compiler says: RESOURCE_EXHAUSTED" in large


HEADS = """
import jax, jax.numpy as jnp
from flax import nnx
from idistill_jax import chips, config, costs, sharding
from idistill_jax.models import layers

everywhere = sharding.replicated(chips.mesh_of("v5e:1x1", config.Mesh()))
of = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
x = jax.ShapeDtypeStruct((8, 512, 768), jnp.bfloat16, sharding=everywhere)
for bias in (None, (12, 64)):
  graph, state = nnx.split(layers.Dense("rld,dhk->rlhk", (768, 12, 64), bias, rngs=nnx.Rngs(0)))
  apply = jax.jit(lambda state, x: nnx.merge(graph, state)(x, jnp.bfloat16))
  print(costs.bytes_moved(apply.lower(jax.tree.map(of, state), x).compile())[0])
"""


def test_a_bias_of_heads_moves_next_to_nothing_on_a_tpu():
  pytest.importorskip("libtpu", reason="needs the TPU's compiler: source launch/env.sh tpu-compile")
  # In a process of its own, as above.
  done = subprocess.run([sys.executable, "-c", HEADS], env=os.environ | {"XLA_FLAGS": ""}, capture_output=True,
                        text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  without, with_bias = map(float, done.stdout.split())
  assert without < with_bias < 1.01 * without


def test_steps_compile_for_a_gpu_that_is_not_here(tiny_weights):
  pytest.importorskip("jax_cuda12_plugin", reason="needs the GPU's compiler: source launch/env.sh gpu-compile")
  mesh = chips.mesh_of("h100", config.Mesh())
  h100 = chips.CHIPS[mesh.devices.flat[0].device_kind]
  network = networks.retriever(config.Encoder(weights=tiny_weights)).on(mesh, "bfloat16")
  step = compile_for._training("retriever step", config.Retriever(), network, objectives.retriever, mesh, texts=72,
                               tokens=8192, row_tokens=256)
  encode = compile_for._encoding(network, mesh, tokens=8192, row_tokens=256)
  assert (step.kernels, encode.kernels) == (2, 1) and step.fusions > encode.fusions > 0
  assert not step.faults(h100) + encode.faults(h100)
  assert step.collectives == encode.collectives == (0, 0)
  # At least the weights and AdamW's sums are read and written once, at most the scratch memory some tens of times.
  assert 2 * step.argument_bytes < step.bytes_moved < 2 * step.argument_bytes + 50 * step.temporary_bytes
  assert 0 < encode.bytes_moved < step.bytes_moved


def test_what_gpus_say_to_each_other_is_said_while_they_compute(tiny_weights):
  pytest.importorskip("jax_cuda12_plugin", reason="needs the GPU's compiler: source launch/env.sh gpu-compile")
  mesh = chips.mesh_of("h100:8", config.Mesh(fsdp=8))
  network = networks.retriever(config.Encoder(weights=tiny_weights)).on(mesh, "bfloat16")
  step = compile_for._training("retriever step", config.Retriever(), network, objectives.retriever, mesh, texts=72,
                               tokens=8192, row_tokens=256)
  total, overlapped = step.collectives
  assert total >= overlapped > total / 2
