"""Training: restarts and meshes are invisible, divergence is named, nothing is compiled twice."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_world
from jax.sharding import AxisType

from idistill_jax import sharding
from idistill_jax.models import table
from idistill_jax.train import checkpoint, curves, loop, preemption, windows
from idistill_jax.train import step as step_lib


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
  devices = np.array(jax.devices()[:data * fsdp * tensor]).reshape(data, fsdp, tensor)
  return jax.sharding.Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def flat(params) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in table.flatten(params).items()}


def metrics(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


RUN = """
import os, pathlib, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
sys.path.insert(0, {tests!r})
import jax, numpy as np, tiny_world
from idistill_jax import config, sharding
from idistill_jax.models import table
from idistill_jax.train import loop
folder = pathlib.Path(sys.argv[1])
training = tiny_world.training(folder, {weights!r}, sharding.make_mesh(config.Mesh()), pairs=True, checkpoint_every=2)
if len(sys.argv) > 2:  # slow enough to be killed between two checkpoints
  import time
  settle = loop.settle
  loop.settle = lambda *a, **k: (time.sleep(0.5), settle(*a, **k))[1]
np.savez(folder / "params.npz", **{{k: np.asarray(v) for k, v in table.flatten(loop.train(training)).items()}})
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_continues_to_the_same_bits(tmp_path, tiny_weights, end):
  code = RUN.format(tests=str(pathlib.Path(__file__).parent), weights=tiny_weights)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  whole.mkdir()
  killed.mkdir()
  tiny_world.write_lists(whole)
  tiny_world.write_lists(killed)
  subprocess.run([sys.executable, "-c", code, str(whole)], check=True, timeout=120)

  process = subprocess.Popen([sys.executable, "-c", code, str(killed), "slowly"])
  deadline = time.monotonic() + 120
  while not (killed / "metrics.jsonl").exists() or len(metrics_lines(killed)) < 5:
    assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
    time.sleep(0.05)
  process.send_signal(end)
  process.wait()
  # Preempted, it says so and loses no step; killed, it goes back to the checkpoint before.
  assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: preemption.EXIT_CODE}[end]
  assert not (killed / "params.npz").exists()
  steps_saved = [int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit()]
  assert steps_saved and max(steps_saved) < 8
  if end == signal.SIGTERM:
    assert max(steps_saved) == metrics(killed)[-1]["step"]
  subprocess.run([sys.executable, "-c", code, str(killed)], check=True, timeout=120)

  expected, found = np.load(whole / "params.npz"), np.load(killed / "params.npz")
  for path in expected:
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
  timeless = lambda folder: [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in metrics(folder)]
  assert timeless(killed) == timeless(whole)
  assert len(metrics(whole)) == 8


def metrics_lines(folder: pathlib.Path) -> list[str]:
  return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.mark.parametrize("pairs", [True, False], ids=["ranker", "retriever"])
def test_the_mesh_is_invisible(tmp_path, tiny_weights, pairs):
  seen = {}
  for sizes in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)) if pairs else ((1, 1, 1), (8, 1, 1), (2, 2, 2)):
    folder = tmp_path / "x".join(map(str, sizes))
    folder.mkdir()
    training = tiny_world.training(folder, tiny_weights, mesh_of(*sizes), pairs=pairs, checkpoint_every=100)
    params = loop.train(training)
    seen[sizes] = flat(params), [row["loss"] for row in metrics(folder)]
    if sizes == (2, 2, 2):
      assert {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec if axis} == {"fsdp", "tensor"}
  # Adam divides by the gradient's own size, so rounding decides where a gradient is nearly zero: what the mesh must
  # not change is the update as a whole.
  start = {path: np.asarray(leaf) for path, leaf in table.flatten(training.network.initial(0)).items()}
  moved = lambda params: np.concatenate([(params[path] - leaf).ravel() for path, leaf in start.items()])
  reference, losses = seen.pop((1, 1, 1))
  for sizes, (params, other) in seen.items():
    np.testing.assert_allclose(other, losses, rtol=2e-4, err_msg=str(sizes))
    error = np.linalg.norm(moved(params) - moved(reference)) / np.linalg.norm(moved(reference))
    assert error < 0.02, sizes
  # Control: losses differ between steps by far more than between meshes.
  assert np.std(losses) > 1e-2 * abs(np.mean(losses))


def test_a_loss_that_is_not_finite_names_step_and_lists(tmp_path, tiny_weights):
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=True)
  bad = training.batches.slots(4)[0].record
  query = training.batches[4].similarities[0, 0]

  def loss_fn(params, batch):
    return jnp.where(batch.similarities[0, 0] == query, jnp.nan, 1.0) + training.loss_fn(params, batch)

  with pytest.raises(loop.NonFiniteLossError, match=rf"loss is nan at step 4, on lists \[.*\b{bad}\b.*\]"):
    loop.train(tiny_world.with_loss(training, loss_fn))
  assert checkpoint.Checkpoints(tmp_path / "checkpoints")._manager.latest_step() == 3


def test_later_epochs_compile_nothing(tmp_path, tiny_weights, monkeypatch):
  made = []
  make_step = step_lib.make_step
  monkeypatch.setattr(step_lib, "make_step", lambda *args: made.append(make_step(*args)) or made[-1])
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  loop.train(training)
  assert len(training.batches) == 2 * 4
  assert made[0]._cache_size() == 1


def shorten(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:16])


def flip_a_bit(folder: pathlib.Path) -> None:
  path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def lose_the_largest(folder: pathlib.Path) -> None:
  max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size).unlink()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_weights) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """A whole training, with checkpoints of steps 3 and 6, and its parameters."""
  folder = tmp_path_factory.mktemp("trained")
  return folder, flat(loop.train(tiny_world.training(folder, tiny_weights, mesh_of(1, 1, 1), pairs=True)))


@pytest.mark.parametrize("damage", [shorten, flip_a_bit, lose_the_largest])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(trained, tmp_path, tiny_weights, caplog, damage):
  folder, expected = tmp_path / "again", trained[1]
  shutil.copytree(trained[0], folder)
  damage(folder / "checkpoints" / "6" / "state")
  found = flat(loop.train(tiny_world.training(folder, tiny_weights, mesh_of(1, 1, 1), pairs=True)))
  assert f"checkpoint {folder}/checkpoints/6 cannot be used" in caplog.text
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)
  # Step 6 was taken again, and saved again.
  caplog.clear()
  loop.train(tiny_world.training(folder, tiny_weights, mesh_of(1, 1, 1), pairs=True))
  assert "cannot be used" not in caplog.text


def test_metrics_are_curves_and_windows_as_well(trained):
  folder = trained[0]
  (window,) = [json.loads(line) for line in windows.path(folder, 0).read_text().splitlines()]
  assert (window["process"], window["step"], window["steps"]) == (0, 8, 8)
  np.testing.assert_allclose(window["loss"], np.mean([row["loss"] for row in metrics(folder)]), rtol=1e-6)
  events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  pytest.importorskip("tensorboardX")
  read = events.EventAccumulator(str(folder / curves.FOLDER))
  read.Reload()
  drawn = [(event.step, event.value) for event in read.Scalars("loss")]
  np.testing.assert_allclose(drawn, [(row["step"], row["loss"]) for row in metrics(folder)], rtol=1e-6)


def test_when_no_checkpoint_is_left_training_starts_anew_and_says_so(trained, tmp_path, tiny_weights, caplog):
  folder, expected = tmp_path / "again", trained[1]
  shutil.copytree(trained[0], folder)
  for step in ("3", "6"):
    shorten(folder / "checkpoints" / step / "state")
  found = flat(loop.train(tiny_world.training(folder, tiny_weights, mesh_of(1, 1, 1), pairs=True)))
  assert "training starts anew" in caplog.text
  for path, leaf in expected.items():
    np.testing.assert_array_equal(found[path], leaf)
  assert [row["step"] for row in metrics(folder)] == list(range(1, 9))
