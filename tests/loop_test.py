"""Training: restarts and meshes are invisible, divergence is named, nothing is compiled twice."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import secrets
import shutil
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jobs
import numpy as np
import optax
import pytest
import tiny_world
from jax.sharding import AxisType

from idistill_jax import cli, config, processes, records, sharding
from idistill_jax.data import batches, example
from idistill_jax.hf import networks
from idistill_jax.models import table
from idistill_jax.train import checkpoint, curves, inference, loop, objectives, optim, preemption, utilization, windows
from idistill_jax.train import step as step_lib


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
  devices = np.array(jax.devices()[:data * fsdp * tensor]).reshape(data, fsdp, tensor)
  return jax.sharding.Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def flat(params) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in table.flatten(params).items()}


def metrics(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@dataclasses.dataclass(frozen=True)
class Job:
  """In how many processes the ranker is trained."""

  processes: int

  def start(self, folder: pathlib.Path, weights: str, *flags: str, afresh: bool = False):
    return jobs.started(folder / "said", self.processes, "-m", "trained", str(folder), weights, *flags, afresh=afresh)


ALONE = Job(processes=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_weights) -> Callable[[Job], pathlib.Path]:
  """A run of each that nothing ended."""

  @functools.cache
  def made(kind: Job) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("whole")
    tiny_world.write_lists(folder)
    with kind.start(folder, tiny_weights, afresh=kind == ALONE) as job:
      job.succeed()
    return folder

  return made


def end_at(lines: int, later: float, end: signal.Signals, folder: pathlib.Path, weights: str, kind: Job = ALONE,
           which: int = 0) -> list[int]:
  """Starts a run and ends one of its processes some seconds after it has logged so many steps -> exit codes of all.

  It is slow enough to be killed between two checkpoints.
  """
  with kind.start(folder, weights, "--pause=0.5") as job:
    job.until(folder / "metrics.jsonl", lines)
    time.sleep(later)
    job.processes[which].send_signal(end)
    return job.wait(100)


def steps_saved(folder: pathlib.Path) -> list[int]:
  return [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]


def test_a_run_that_was_told_to_end_loses_no_step_and_continues_to_the_same_bits(tmp_path, tiny_weights, whole):
  told = tmp_path / "told"
  told.mkdir()
  tiny_world.write_lists(told)
  assert end_at(5, 0.0, signal.SIGTERM, told, tiny_weights) == [preemption.EXIT_CODE]
  assert not (told / inference.MODEL).exists()
  assert max(steps_saved(told)) == metrics(told)[-1]["step"] < 8
  with ALONE.start(told, tiny_weights) as job:
    job.succeed()
  assert_same_bits(told, whole(ALONE), tiny_weights)


def test_two_processes_of_which_one_is_killed_at_a_drawn_moment_come_to_the_same_bits(tmp_path, tiny_weights, whole):
  """Alone, and with the retriever: tests/processes_test.py kills what users run."""
  seed, killed, kind = secrets.randbits(32), tmp_path / "killed", Job(processes=2)
  killed.mkdir()
  tiny_world.write_lists(killed)
  rng = np.random.default_rng(seed)
  which = int(rng.integers(2))
  codes = end_at(rng.integers(3, 7), rng.uniform(0, 0.5), signal.SIGKILL, killed, tiny_weights, kind, which)
  assert codes[which] == -signal.SIGKILL and all(codes), (seed, codes)
  assert 8 not in steps_saved(killed) and not (killed / inference.MODEL).exists(), seed
  with kind.start(killed, tiny_weights) as job:
    job.succeed()
  assert_same_bits(killed, whole(kind), tiny_weights)


def assert_same_bits(found: pathlib.Path, whole: pathlib.Path, weights: str) -> None:
  """Weights, and metrics of every step: losses would differ if other lists had come, or in another order."""
  network = networks.ranker(tiny_world.encoder(weights), "pair_cosine")
  params, expected = (flat(inference.load_params(network, one, mesh_of(1, 1, 1), 0)) for one in (found, whole))
  for path, leaf in expected.items():
    np.testing.assert_array_equal(params[path], leaf, err_msg=path)
  assert timeless(found) == timeless(whole)
  assert len(metrics(whole)) == 8


def timeless(folder: pathlib.Path) -> list[dict]:
  """Metrics that are the same whenever, and however often, a training was started."""
  of_time = {"tokens_per_second", "mfu", "input_wait", "device_wait", "compiled", *windows.OF_START}
  return [{name: value for name, value in row.items() if name not in of_time} for row in metrics(folder)]


def assert_slots_lie_as_their_parameters(state) -> None:
  """Of a state's leaves: how each lies on the mesh, and which share of it a device has."""
  is_leaf = lambda leaf: isinstance(leaf, tuple) and len(leaf) == 2 and isinstance(leaf[0], jax.sharding.PartitionSpec)
  flat = lambda tree: jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
  shares = sorted({share for _, (_, share) in flat(state.params)})
  assert shares == [1 / 4, 1 / 2, 1], shares
  for slot in ("mu", "nu"):
    assert flat(optax.tree.get(state.opt_state, slot)) == flat(state.params), slot


# Every axis alone costs as much as all of them together, so each training has one.
@pytest.mark.parametrize("pairs, alone", [(True, (8, 1, 1)), (False, (1, 8, 1))], ids=["ranker", "retriever"])
def test_the_mesh_is_invisible(tmp_path, tiny_weights, pairs, alone, monkeypatch):
  seen, states = {}, []
  monkeypatch.setattr(loop, "save", lambda checkpoints, step, state, data: states.append(
    jax.tree.map(lambda leaf: (leaf.sharding.spec, leaf.addressable_shards[0].data.size / leaf.size), state)))
  for sizes in ((1, 1, 1), alone, (2, 2, 2)):
    folder = tmp_path / "x".join(map(str, sizes))
    folder.mkdir()
    training = tiny_world.training(folder, tiny_weights, mesh_of(*sizes), pairs=pairs, checkpoint_every=7)
    params = loop.train(training)
    seen[sizes] = flat(params), {name: [row[name] for row in metrics(folder)] for name in ("loss", "grad_norm")}
    if sizes == (2, 2, 2):
      assert {axis for leaf in jax.tree.leaves(params) for axis in leaf.sharding.spec if axis} == {"fsdp", "tensor"}
      assert_slots_lie_as_their_parameters(states[-1])
  # Adam divides by the gradient's own size, so rounding decides where a gradient is nearly zero: what the mesh must
  # not change is each leaf's update as a whole.
  start = {path: np.asarray(leaf) for path, leaf in table.flatten(training.network.initial(0)).items()}
  reference, expected = seen.pop((1, 1, 1))
  for sizes, (params, found) in seen.items():
    # Largest seen: 3e-6; 2e-5.
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=2e-5, err_msg=str(sizes))
    np.testing.assert_allclose(found["grad_norm"], expected["grad_norm"], rtol=1e-4, err_msg=str(sizes))
    for path, leaf in start.items():
      if path.endswith("key/bias"):  # it shifts all logits of a softmax, which changes none: its gradient is rounding
        assert np.abs(params[path] - leaf).max() < training.optim.peak_lr, (sizes, path)
      else:
        error = np.linalg.norm(params[path] - reference[path]) / np.linalg.norm(reference[path] - leaf)
        assert error < 1e-3, (sizes, path, error)  # largest seen: 2.8e-4
  # Control: losses differ between steps by far more than between meshes.
  assert np.std(expected["loss"]) > 1e-2 * abs(np.mean(expected["loss"]))


def test_a_training_goes_on_in_other_passes(tmp_path, tiny_weights):
  """Its batches have other rows then, and its checkpoint is what it was: no key says in how many passes it was made."""
  training = functools.partial(tiny_world.training, tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=True)
  one = training(checkpoint_every=7)
  whole, expected = flat(loop.train(one)), metrics(tmp_path)
  other = training(checkpoint_every=1, passes=2)
  assert other.batches.rows > one.batches.rows
  params, found = flat(loop.train(other)), metrics(tmp_path)
  assert found[:7] == expected[:7] and "first_step_seconds" in found[7]
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(found[7][name], expected[7][name], rtol=1e-5, err_msg=name)
  for path, leaf in whole.items():
    np.testing.assert_allclose(params[path], leaf, atol=one.optim.peak_lr / 100, err_msg=path)


def test_frozen_layers_go_on_over_another_mesh_and_stay_as_they_are(tmp_path, tiny_weights):
  def training(mesh: jax.sharding.Mesh) -> loop.Training:
    made = tiny_world.training(tmp_path, tiny_weights, mesh, pairs=True, checkpoint_every=7)
    network = made.network.frozen(1)
    learned = objectives.ranker(config.Ranker(loss="listmle", similarity_weight=1.0), network)
    return dataclasses.replace(made, network=network, loss_fn=learned)

  one = training(mesh_of(1, 1, 1))
  whole, params = flat(loop.train(one)), flat(loop.train(training(mesh_of(1, 2, 2))))
  start, row = flat(one.network.initial(0)), one.network.table.row
  for path, leaf in whole.items():
    np.testing.assert_allclose(params[path], leaf, atol=one.optim.peak_lr / 100, err_msg=path)
    stays = slice(None) if row(path).embeds else slice(1) if row(path).stacked else slice(0)
    np.testing.assert_array_equal(params[path][stays], start[path][stays], err_msg=path)
    assert (params[path] != start[path]).any() or row(path).embeds or not row(path).stacked, path


@jax.custom_vjp
def nan_gradient(x):
  return x


nan_gradient.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.nan,))


@pytest.mark.parametrize("name, worse", [
  ("loss", lambda loss: loss + jnp.nan),
  # Its parameters would be NaN, and saved before the next loss is seen.
  ("grad_norm", nan_gradient),
])
def test_what_is_not_finite_names_step_and_queries(tmp_path, tiny_weights, name, worse, monkeypatch, caplog):
  monkeypatch.setattr(loop, "_NAMED", 1)
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=True)
  lists = list(example.read_records(tmp_path, "lists", records.ScoredList))
  ids = [lists[slot.record].query_id for slot in training.batches.slots(4)]
  query = training.batches[4].similarities[0, 0]

  def loss_fn(params, batch):
    loss = training.loss_fn(params, batch)
    return jax.lax.cond(batch.similarities[0, 0] == query, worse, lambda loss: loss, loss)

  reason = (rf"^NonFiniteLossError: test: {name} is nan at step 5, on the lists of {len(ids)} queries "
            rf"\({ids[0]}, \.\.\.\); .*peak_lr.* kept in {training.checkpoints}$")
  with pytest.raises(SystemExit, match=reason), cli.ending_in_words():
    loop.train(tiny_world.with_loss(training, loss_fn))
  # All of them are in the log, which may be long.
  assert len(ids) > 1 and f"the queries of step 5 are {', '.join(ids)}\n" in caplog.text
  assert metrics(tmp_path)[-1]["step"] == 4
  assert checkpoint.Checkpoints(tmp_path / "checkpoints")._manager.latest_step() == 3


class Step:
  """Stands in for a train step that is compiled: it counts, and does nothing else."""

  def __init__(self) -> None:
    self.after = {step: jnp.asarray(step + 1, jnp.int32) for step in range(8)}
    self.seen, self.taken = {"loss": jnp.ones(()), "grad_norm": jnp.ones(())}, 0

  def lower(self, *_) -> "Step":
    return self

  compile = lower

  def __call__(self, state, batch):
    self.taken += 1
    return dataclasses.replace(state, step=self.after[self.taken - 1]), self.seen


def test_whatever_waits_for_other_processes_is_watched(tmp_path, tiny_weights, monkeypatch):
  now, waits, settle = [], [], loop.settle

  @contextlib.contextmanager
  def waiting(what):
    now.append(what)
    yield
    now.pop()

  monkeypatch.setattr(processes, "waiting", waiting)
  monkeypatch.setattr(step_lib, "make_step", lambda *_: Step())
  monkeypatch.setattr(
    loop, "settle", lambda pending, *rest: (waits.append((pending.step, *now)), settle(pending, *rest)))
  monkeypatch.setattr(
    preemption, "watch", lambda _: contextlib.nullcontext(lambda: waits.append(("ask", *now)) or False))
  loop.train(tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False, checkpoint_every=100))
  assert [what for what, *_ in waits if what != "ask"] == list(range(8))
  # Watched once: the end of a second watch within would end the first.
  assert not [wait for wait in waits if len(wait) != 2]
  assert waits[-1] == ("ask", "test, its end")


def test_of_several_processes_one_that_is_told_in_the_last_step_keeps_it(tmp_path, tiny_weights, monkeypatch):
  settle = loop.settle
  monkeypatch.setattr(processes, "count", lambda: 2)
  monkeypatch.setattr(step_lib, "make_step", lambda *_: Step())
  monkeypatch.setattr(loop, "settle", lambda pending, *rest: (
    signal.raise_signal(signal.SIGTERM) if pending.step == 7 else None, settle(pending, *rest)))
  with pytest.raises(preemption.Preempted):
    loop.train(tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False, checkpoint_every=100))
  assert checkpoint.Checkpoints(tmp_path / "checkpoints")._manager.latest_step() == 8


def test_what_is_not_finite_in_a_later_part_is_named_as_its_line_would_be(tmp_path, tiny_weights, monkeypatch):
  step = Step()
  step.seen["loss"] = jnp.full((), jnp.inf)
  monkeypatch.setattr(step_lib, "make_step", lambda *_: step)
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  with pytest.raises(loop.NonFiniteLossError, match="loss is inf at step 17, "):
    loop.train(dataclasses.replace(training, part=2))


def test_later_epochs_compile_nothing(tmp_path, tiny_weights, monkeypatch):
  made = []
  make_step = step_lib.make_step
  monkeypatch.setattr(step_lib, "make_step", lambda *args: made.append(make_step(*args)) or made[-1])
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  loop.train(training)
  assert len(training.batches) == 2 * 4
  assert made[0]._cache_size() == 1
  assert [row["compiled"] for row in metrics(tmp_path)] == [1] + 7 * [0]


def test_a_step_takes_the_memory_of_the_state_before_it():
  params = {"w": np.ones(1000, np.float32)}
  mesh = mesh_of(1, 1, 1)
  state = step_lib.init(params, optax.adamw(0.1), {"w": sharding.replicated(mesh)}, mesh)
  step = step_lib.make_step(lambda params, batch: (params["w"] * batch).sum(), optax.adamw(0.1), state)
  after, _ = step(state, np.float32(2))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_a_step_that_is_compiled_anew_is_counted_and_said(tmp_path, tiny_weights, caplog, monkeypatch):
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  batch = training.batches[3]
  odd = dataclasses.replace(batch, list_rows=np.pad(batch.list_rows, ((0, 0), (0, 1))))
  usual = batches.Batches.__getitem__
  monkeypatch.setattr(batches.Batches, "__getitem__", lambda self, step: odd if step == 3 else usual(self, step))
  loop.train(training)
  assert [row["compiled"] for row in metrics(tmp_path)] == [1, 0, 0, 1, 0, 0, 0, 0]
  assert "step 4 was compiled anew" in caplog.text


def test_the_readout_has_share_of_peak_and_waits_and_a_checkpoint_may_read_the_device(
    tmp_path, tiny_weights, monkeypatch):
  """A CPU hands over what it holds whatever the guard says; on other devices a save in its reach would be an error."""
  guard, save = lambda: jax.config.jax_transfer_guard_device_to_host, checkpoint.Checkpoints.save
  guarded, within = [], []
  monkeypatch.setattr(checkpoint.Checkpoints, "save", lambda *of: (within.append(guard()), save(*of))[1])
  settle = loop.settle
  monkeypatch.setattr(loop, "settle", lambda *of: (guarded.append(guard()), settle(*of))[1])
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  loop.train(training)
  assert set(within) == {"allow"} and set(guarded) == {"disallow"}
  shapes = {path: leaf.shape for path, leaf in flat(training.network.initial(0)).items()}
  kernels = sum(np.prod(shape) for path, shape in shapes.items() if "layers" in path and path.endswith("kernel"))
  assert utilization.flops_per_token(training.network) == 6 * kernels
  for row in metrics(tmp_path):
    expected = row["tokens_per_second"] * 6 * kernels / utilization.peak(training.mesh, "float32")
    assert 0 < row["mfu"] == pytest.approx(expected, rel=0.05, abs=1e-4) and row["input_wait"] >= 0


def test_looking_back_at_a_step_computes_nothing(tmp_path, tiny_weights, monkeypatch):
  """What it computed would stand on the device behind the step that is under way, and the host would wait for both."""
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  rate = optim.schedule(training.optim, len(training.batches))
  expected = [float(rate(step)) for step in range(len(training.batches))]
  settle, guard, within, lifted = loop.settle, jax.transfer_guard, [], []
  monkeypatch.setattr(jax, "transfer_guard", lambda level: (lifted.extend(within), guard(level))[1])

  def watched(*of):
    # Control: numbers of the host that go into a computation are refused there.
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
      rate(of[0].step)
    within.append(of[0].step)
    settle(*of)
    within.clear()

  monkeypatch.setattr(loop, "settle", watched)
  loop.train(training)
  assert not lifted
  np.testing.assert_allclose([row["lr"] for row in metrics(tmp_path)], expected, rtol=1e-6)


def test_the_first_step_since_a_start_tells_what_it_took(tmp_path, tiny_weights, caplog):
  caplog.set_level("INFO")
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  loop.train(training)
  first, *rest = metrics(tmp_path)
  assert set(windows.OF_START) <= first.keys() and not any(set(windows.OF_START) & row.keys() for row in rest)
  assert 0 < first["trace_seconds"] + first["compile_seconds"] < first["first_step_seconds"]
  assert "first step done after" in caplog.text and "traced in" in caplog.text
  window, *later = windows_of(tmp_path)
  assert all(window[name] == first[name] for name in windows.OF_START)
  assert not any(set(windows.OF_START) & one.keys() for one in later)


def test_a_profile_of_the_steps_asked_for_is_written(tmp_path, tiny_weights, caplog):
  training = tiny_world.training(tmp_path, tiny_weights, mesh_of(1, 1, 1), pairs=False)
  loop.train(dataclasses.replace(training, profile=range(2, 4)))
  traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert len(traces) == 1 and traces[0].stat().st_size > 1000
  assert "there is none" not in caplog.text
  assert cli.Steps().parse("10:15") == range(10, 16)
  for wrong in ("10", "0:3", "5:4", "a:b", "-1:3"):
    with pytest.raises(ValueError, match="FIRST:LAST"):
      cli.Steps().parse(wrong)


@pytest.mark.parametrize(("taken", "said"), [
  (range(1, 9), "steps 1 to 8"), (range(1020, 1024), "steps 1020 to 1023"), (range(0), "no step"),
])
def test_a_profile_of_steps_that_are_not_taken_is_missed(tmp_path, caplog, taken, said):
  """Of a training that is shorter, or goes on beyond them."""
  trace = utilization.Trace(range(1000, 1011), tmp_path / "profile")
  for step in taken:
    trace.before(step)
    trace.after(step, None)
  trace.close()
  assert f"--profile=1000:1010: there is none in {tmp_path / 'profile'}, as this run took {said}" in caplog.text


def flip_a_bit(folder: pathlib.Path) -> None:
  path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_weights) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
  """A whole training, with checkpoints of steps 3 and 6, and its parameters."""
  folder = tmp_path_factory.mktemp("trained")
  return folder, flat(loop.train(tiny_world.training(folder, tiny_weights, mesh_of(1, 1, 1), pairs=True)))


def test_from_the_checkpoint_before_a_damaged_one_training_comes_to_the_same(trained, tmp_path, tiny_weights, caplog):
  folder, expected = tmp_path / "again", trained[1]
  shutil.copytree(trained[0], folder)
  flip_a_bit(folder / "checkpoints" / "6" / "state")
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
  # One before each checkpoint, and at the end.
  found = windows_of(folder)
  assert [(one["process"], one["step"], one["steps"]) for one in found] == [(0, 3, 3), (0, 6, 3), (0, 8, 2)]
  for window, rows in zip(found, np.split(metrics(folder), [3, 6]), strict=True):
    for name in windows.MEANS:
      np.testing.assert_allclose(window[name], np.mean([row[name] for row in rows]), rtol=1e-6)
  events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  read = events.EventAccumulator(str(folder / curves.FOLDER))
  read.Reload()
  drawn = [(event.step, event.value) for event in read.Scalars("loss")]
  np.testing.assert_allclose(drawn, [(row["step"], row["loss"]) for row in metrics(folder)], rtol=1e-6)


def windows_of(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in windows.path(folder, 0).read_text().splitlines()]


def test_no_step_before_a_preemption_is_missing_in_the_windows(tmp_path, tiny_weights, monkeypatch):
  settle, made = loop.settle, functools.partial(tiny_world.training, tmp_path, tiny_weights, mesh_of(1, 1, 1))
  with monkeypatch.context() as patched, pytest.raises(preemption.Preempted):
    patched.setattr(loop, "settle", lambda pending, *rest: (
      signal.raise_signal(signal.SIGTERM) if pending.step == 3 else None, settle(pending, *rest)))
    loop.train(made(pairs=True))
  assert metrics(tmp_path)[-1]["step"] == 5
  loop.train(made(pairs=True))
  found = windows_of(tmp_path)
  assert [one["step"] for one in found] == np.cumsum([one["steps"] for one in found]).tolist() == [3, 5, 6, 8]


def test_a_window_whose_steps_are_taken_again_is_written_once(tmp_path):
  path = windows.path(tmp_path, 3)
  path.write_text('{"step": 20}\n{"step": 40}\n{"st')
  again = windows.Windows(tmp_path, 3, start=30, total=50)
  for step in range(31, 51):
    again.add({"step": step, **dict.fromkeys(windows.MEANS, 1.0)})
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [20, 50]
  # Also by a job of fewer processes, whose first one sees to the files of those that are no more.
  pieces = '{"piece": 1}\n'
  path.write_text('{"step": 20}\n{"step": 40}\n' + pieces)
  windows.Windows(tmp_path, 0, start=30, total=50)
  assert path.read_text() == '{"step": 20}\n' + pieces
