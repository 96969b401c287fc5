"""Several processes are one job: the same numbers as alone, shared work, one end with one reason."""

import contextlib
import importlib.util
import json
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import bucket as bucket_lib
import encoded
import jax
import jobs
import loop_test
import numpy as np
import pytest
import scored
import tiny_world
import trained
from jax.sharding import AxisType

from benchmarks import ports
from idistill_jax import config, flow, peers, processes, sharding
from idistill_jax.data import example, similarity
from idistill_jax.hf import networks
from idistill_jax.models import table
from idistill_jax.records import CandidateList, ScoredList
from idistill_jax.retrieval import exact
from idistill_jax.train import inference, loop, pieces, preemption, windows
from idistill_jax.workdir import artifacts, configs, leases, remote

CONFIG = (
  "-m", "accelerated", "--config=configs/quickstart.py:tiny", "--config.encoder.training_dtype=float32",
  "--config.encoder.inference_dtype=float32", "--config.encoder.list_row_tokens=128", "--config.encoder.row_tokens=128",
  "--config.encoder.passage_tokens=48", "--config.encoder.list_passage_tokens=48",
  "--config.encoder.tokens_per_step=512",
  "--config.evaluate.resamples=100", "--config.evaluate.rerank_depth=5", "--config.direct.epochs=1",
  "--config.ranker.lists_per_batch=4", "--config.ranker.checkpoint_every=2",
)
# What launchers start again: a process was lost, or what is beneath aborts because of that.
AGAIN = (peers.LOST, -signal.SIGABRT)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_weights) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("alone")
  with jobs.started(folder, 1, *CONFIG, f"--workdir={folder / 'run'}") as job:
    job.succeed()
  assert shares(job.said()) == {1.0}
  return folder / "run"


def shares(said: str) -> set[float]:
  """How much of the blocks of a corpus the devices of a process held."""
  return {float(share) for share in re.findall(r"^holds (\S+) of a block$", said, re.MULTILINE)}


# -- The same numbers ------------------------------------------------------------------------------------------------


def test_two_processes_run_every_stage_and_are_invisible(alone, tmp_path):
  with jobs.started(tmp_path, 2, *CONFIG, f"--workdir={tmp_path / 'run'}", afresh=True) as job:
    job.succeed()
  # The first does the talking, and the others nothing twice.
  assert "evaluate: done in" in job.said(0) and "done in" not in job.said(1)
  # What it takes much memory for, each does a part of, or one alone.
  assert shares(job.said(0)) == shares(job.said(1)) == {0.5}
  assert "indexes terms" in job.said(0) and "indexes terms" not in job.said(1)
  # Of each stage that has lists for the next, both wrote shards, neither those of the other.
  wrote = [wrote_shards(job.said(number)) for number in range(2)]
  assert not wrote[0] & wrote[1]
  for stage, name in (("candidates", artifacts.CANDIDATES), ("scores", artifacts.SCORES),
                      ("train_retriever", artifacts.TEACHER)):
    shards = [{shard for shard in of_one if re.match(rf"\.{stage}-\w+ {name}-", shard)} for of_one in wrote]
    assert [len(of_one) for of_one in shards] == [1, 1], wrote
  stages = [path.name for path in alone.iterdir() if (path / artifacts.MANIFEST).exists()]
  assert len(stages) == 9
  for stage in stages:
    assert_same(alone / stage, tmp_path / "run" / stage)
  for number in range(2):
    assert did(job.said(number)) >= {"encode passages", "score pairs"}, job.said(number)


def test_four_processes_over_two_axes_are_invisible(alone, tmp_path):
  """What is encoded and scored is dealt out to processes, as it is to two of them, whatever the axes are."""
  stages = ("candidates", "train_retriever", "evaluate")
  # Of the others two need no device, two train as the retriever does, one encodes as the candidates do, and one scores
  # as the evaluation does.
  for stage in ("collection", "labels", "train_direct", "train_ranker", "scores", "index"):
    shutil.copytree(alone / stage, tmp_path / "run" / stage)
  axes = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", f"--stages={','.join(stages)}")
  with jobs.started(tmp_path, 4, *CONFIG, *axes, f"--workdir={tmp_path / 'run'}") as job:
    job.succeed()
  for stage in stages:
    assert_same(alone / stage, tmp_path / "run" / stage)
  for number in range(4):
    assert did(job.said(number)) >= {"encode passages", "score pairs"}, job.said(number)


def test_a_pod_whose_hosts_have_only_a_bucket_in_common_is_invisible_and_so_is_the_loss_of_one(
    alone, tmp_path, monkeypatch):
  """Two devices a host.  One host is lost in a training; then the same command goes on, on new ones."""
  # One stage of pieces, and one of steps: the others are of one of these kinds.
  stages = ("candidates", "train_ranker")
  with bucket_lib.running("gs") as found:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    workdir = artifacts.Workdir(f"{found.url}/pod")
    files, base = remote.file_system(workdir.stated)
    for stage in ("collection", "labels", "train_direct"):
      files.put(str(alone / stage), f"{base}/{stage}", recursive=True)

    def start(hosts: str, *flags: str):
      for number in range(2):
        (tmp_path / f"{hosts} {number}").mkdir()
      axes = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", f"--stages={','.join(stages)}")
      return jobs.started(tmp_path / hosts, 2, *CONFIG, *axes, f"--workdir={workdir.stated}", *flags, devices=2,
                          machine=lambda number: {"TMPDIR": str(tmp_path / f"{hosts} {number}")})

    with start("lost", "--hang=1") as before:
      while not (begun := workdir.begun("train_ranker")) or "checkpoints/0/2/commit_success.txt" not in begun.written:
        before.assert_running()
        time.sleep(0.2)
      before.processes[1].kill()
      codes = before.wait(60)
      assert codes[0] in AGAIN and codes[1] == -signal.SIGKILL, before.said()
    with start("new") as after:
      after.succeed()
    assert "train ranker continues at step 2 of" in after.said(0)
    for stage in stages:
      assert_same(alone / stage, workdir.folder(stage))
    for number in range(2):
      assert "encode passages" in did(before.said(number) + after.said(number))
      last = windows.path(workdir.folder("train_ranker"), number).read_text().splitlines()[-1]
      assert json.loads(last)["step"] == len(losses(alone / "train_ranker"))


def wrote_shards(said: str) -> set[str]:
  return set(re.findall(r"^wrote (.*)$", said, re.MULTILINE))


def did(said: str) -> set[str]:
  """Work of which a process has finished pieces."""
  return set(re.findall(r"^finished \d+ (.*) range", said, re.MULTILINE))


def test_evaluation_puts_no_block_of_a_corpus_on_one_device(alone, tmp_path, monkeypatch):
  for stage in flow.STAGES["evaluate"].reads:
    shutil.copytree(alone / stage, tmp_path / stage)
  spread, shares = exact._spread, []

  def placed(*what):
    made = spread(*what)
    shares.append(max(shard.data.size for shard in made.addressable_shards) / made.size)
    return made

  monkeypatch.setattr(exact, "_spread", placed)
  artifacts.Workdir(tmp_path).execute(flow.STAGES["evaluate"], configs.load(alone))
  assert set(shares) == {1 / 8}


def assert_same(expected: pathlib.Path, found: pathlib.Path) -> None:
  """Two folders of a stage, whatever is in them, up to rounding."""
  keys = [json.loads((folder / artifacts.MANIFEST).read_text())["key"] for folder in (expected, found)]
  assert keys[0] == keys[1]
  assert not list(found.glob("pieces"))
  if (expected / similarity.PASSAGES).exists():
    np.testing.assert_allclose(np.load(found / similarity.PASSAGES), np.load(expected / similarity.PASSAGES), atol=1e-4)
  if (expected / "metrics.jsonl").exists():
    np.testing.assert_allclose(losses(found), losses(expected), rtol=2e-4)
    start, (ours, theirs) = learned(expected, None), (learned(expected, folder) for folder in (expected, found))
    assert np.linalg.norm(theirs - ours) < 0.01 * np.linalg.norm(ours - start)
  for name, cls in ((artifacts.CANDIDATES, CandidateList), (artifacts.SCORES, ScoredList),
                    (artifacts.TEACHER, ScoredList)):
    if shards := [path.name for path in expected.glob(f"{name}-*.tfrecord")]:
      assert sorted(shards) == sorted(path.name for path in found.glob(f"{name}-*.tfrecord"))
      both = [{one.query_id: dict(zip(one.passage_ids, one.scores, strict=True))
               for one in example.read_records(folder, name, cls)} for folder in (expected, found)]
      assert both[0].keys() == both[1].keys()
      for query_id, scores in both[0].items():
        common = scores.keys() & both[1][query_id].keys()
        assert len(common) > 0.9 * len(scores)
        np.testing.assert_allclose([both[1][query_id][one] for one in common], [scores[one] for one in common],
                                   atol=1e-3 * max(map(abs, scores.values())))
  if (expected / "metrics.json").exists():
    systems = [json.loads((folder / "metrics.json").read_text())["systems"] for folder in (expected, found)]
    for name, measured in systems[0].items():
      assert systems[1][name] == pytest.approx(measured, abs=1e-3), name


def learned(stage: pathlib.Path, folder: pathlib.Path | None) -> np.ndarray:
  """All weights that a training stage left in a folder, or those that it would be given for None, in one row."""
  cfg = configs.load(stage.parent)
  ranker = stage.name == "train_ranker"
  network = networks.ranker(cfg.encoder, cfg.ranker.head) if ranker else networks.retriever(cfg.encoder)
  params = inference.load_params(network, folder, sharding.make_mesh(config.Mesh(), jax.devices()[:1]), cfg.seed)
  return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(params)])


def losses(folder: pathlib.Path) -> list[float]:
  return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -- Ends ------------------------------------------------------------------------------------------------------------


def test_processes_of_different_configs_do_nothing_together(tmp_path):
  with contextlib.ExitStack() as stack:
    several = [f"--coordinator=127.0.0.1:{ports.free()}", "--processes=2", f"--workdir={tmp_path / 'run'}"]
    both = [stack.enter_context(jobs.started(tmp_path / f"{number}", 1, *CONFIG, *several, f"--process={number}",
                                             f"--config.seed={number}")) for number in range(2)]  # fmt: skip
    assert [job.wait(120) for job in both] == [[1], [1]], both[0].said() + both[1].said()
  for job in both:
    assert "ConfigError: process 1 has seed: 1; process 0 has seed: 0: all processes" in job.said()
  assert not (tmp_path / "run").exists()


def test_processes_of_hosts_that_share_no_folder_are_told_so_before_any_stage(tmp_path):
  folders = [tmp_path / str(number) for number in range(2)]
  with contextlib.ExitStack() as stack:
    several = [f"--coordinator=127.0.0.1:{ports.free()}", "--processes=2", "--stages=collection"]
    both = [stack.enter_context(jobs.started(folder, 1, *CONFIG, *several, f"--process={number}",
                                             f"--workdir={folder / 'run'}")) for number, folder in enumerate(folders)]
    assert [job.wait(120) for job in both] == [[1], [1]], both[0].said() + both[1].said()
  first, second = (f"{socket.gethostname()}:{folder / 'run'}" for folder in folders)
  for job in both:
    assert f"what process 0 writes to {first} is not seen by process 1 ({second}); all processes" in job.said()
  # And nothing is left of the look.
  assert not list(tmp_path.glob("*/run/*"))


def test_a_job_that_does_not_come_together_ends_with_the_reason_and_is_not_tried_again(tmp_path):
  places = [f"127.0.0.1:{ports.free()}" for _ in range(2)]
  agree = lambda number: jobs.started(
    tmp_path / f"{number}", 1, "-m", "agreeing", str(tmp_path), f"--coordinator={places[number]}", "--processes=2",
    f"--process={number}", "--patience=3")
  with agree(0) as first, agree(1) as second:
    assert first.wait(60) == second.wait(60) == [1]
  assert f"after 3 s (--patience) not all 2 processes have joined process 0 at {places[0]}" in first.said()
  assert f"after 3 s (--patience) nobody answers at {places[1]} (" in second.said()


@pytest.mark.parametrize("flags, words", [
  (["--coordinator=127.0.0.1:8476"], "needs --processes and --process"),
  (["--coordinator=here", "--processes=2", "--process=0"], "--coordinator=here is no host:port"),
  (["--coordinator=127.0.0.1:8476", "--processes=2", "--process=2"], "--process=2 is none of --processes=2"),
  (["--coordinator=auto"], "no TPU pod, GKE, Slurm or Open MPI is found"),
  (["--coordinator=127.0.0.1:{taken}", "--processes=2", "--process=0"], "cannot listen at that port"),
  (["--coordinator=127.0.0.1:99999", "--processes=2", "--process=0"], "cannot listen at that port"),
])
def test_a_job_that_cannot_be_begun_ends_in_words(flags, words, tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as other:
    done = subprocess.run([
      sys.executable, "-m", "idistill_jax.pipeline", "--config=configs/quickstart.py:tiny",
      f"--workdir={tmp_path / 'w'}", *(flag.format(taken=other.getsockname()[1]) for flag in flags)],
      capture_output=True, text=True, timeout=120)  # fmt: skip
  assert done.returncode == 1 and words in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("end, code, reason", [
  ("badly", 1, "process 0 ends because process 1 did: ValueError: line 3 of corpus.jsonl is no JSON"),
  ("late", peers.LOST, "the last line: not all 2 processes came within 5 s"),
])
def test_what_ends_one_ends_all_with_its_reason(tmp_path, end, code, reason):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), f"--end={end}", patience=5) as job:
    assert job.wait(120) == [code] * 2, job.said()
  assert reason in job.said(0)
  assert "all well" not in job.said()


def test_work_of_the_first_that_stops_ends_all_and_work_that_goes_on_does_not(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), "--end=slowly", patience=8) as job:
    assert job.wait(120) == [peers.LOST] * 2, job.said()
  assert "a long sleep: process 0 has shown no sign of work for" in job.said(1)
  assert "agreeing.py" in job.said(0), job.said(0)  # where it stood


def test_sigterm_is_heard_at_a_meeting(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), "--end=first late", patience=300) as job:
    job.until(tmp_path / "half way 1")
    time.sleep(1)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait(60) == [processes.TERMINATED] * 2, job.said()
  assert "process 0 ends because process 1 did: it was asked to end (SIGTERM)" in job.said(0)


def test_what_goes_wrong_in_one_goes_wrong_in_all(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), "--end=apart") as job:
    job.succeed(60)
  assert (tmp_path / "apart 1").read_text() == "ValueError: torn"
  assert (tmp_path / "apart 0").read_text() == "FailedElsewhereError: reading failed in process 1 (ValueError: torn)"


@pytest.mark.parametrize("told", [0, 1])
def test_whoever_is_told_to_end_the_first_keeps_what_it_has(tmp_path, told):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), "--end=keeps") as job:
    for path in ("half way 1", "at work"):
      job.until(tmp_path / path)
    job.processes[told].send_signal(signal.SIGTERM)
    assert job.wait(60) == [processes.TERMINATED] * 2, job.said()
  assert (tmp_path / "kept 0").exists()


def test_the_first_killed_ends_the_others_with_the_reason(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), "--end=hung") as job:
    job.until(tmp_path / "half way 1")
    job.processes[0].kill()
    codes = job.wait(60)
    assert codes[0] == -signal.SIGKILL and codes[1] in AGAIN, job.said()
  assert "leader task was preempted/died" in job.said(1)


def test_the_reason_is_said_though_the_first_which_would_tell_the_others_is_stopped(tmp_path):
  flags = ("--end=waits", "--heartbeat=600")
  with jobs.started(tmp_path, 2, "-m", "agreeing", str(tmp_path), *flags, patience=5) as job:
    for number in range(2):
      job.until(tmp_path / f"half way {number}")
    job.processes[0].send_signal(signal.SIGSTOP)
    assert job.processes[1].wait(60) == peers.LOST, job.said(1)
  reason = "process 1: a step of all did not end within 5 s"
  assert f"{reason}\n{reason}; processes that are not waiting for it: [0]\n" in job.said(1), job.said(1)


# The first that is stopped, and the second that hangs, are above and below, where nothing is trained.
@pytest.mark.parametrize("how, which", [("killed", 0), ("killed", 1), ("stopped", 1), ("hanging", 0)])
def test_a_lost_process_ends_the_job_with_the_reason(tmp_path, tiny_weights, how, which):
  tiny_world.write_lists(tmp_path)
  hang = [f"--hang={which}"] if how == "hanging" else []
  with jobs.started(tmp_path / "job", 2, "-m", "trained", str(tmp_path), tiny_weights, "--pause=0.2", *hang,
                    patience=15) as job:  # fmt: skip
    lost, other = job.processes[which], job.processes[1 - which]
    job.until(tmp_path / "metrics.jsonl", 3)
    if how != "hanging":
      lost.send_signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    code, said = other.wait(60), job.said(1 - which)
    lost.send_signal(signal.SIGCONT)
    code_of_lost = lost.wait(60)
  assert code in AGAIN, said
  assert code_of_lost in (AGAIN if how != "killed" else [-signal.SIGKILL]), job.said(which)
  # What is beneath says it, or this does, whichever is faster.
  of_first = r"leader task was preempted/died|DEADLINE_EXCEEDED(?s:.*)/Heartbeat"
  beneath = r"tasks are unhealthy.*\n1\n" if which else of_first
  if how == "killed":
    assert re.search(rf"{beneath}|Gloo.*(closed|reset).*processes that are silent: \[{which}\]", said), said
  else:
    reason = rf"test, step \d did not end within 15 s; processes that are not waiting for it: \[{which}\]"
    assert re.search(rf"{beneath}|{reason}", said), said
  if how == "hanging":
    assert code == code_of_lost == peers.LOST
    assert "slowly" in job.said(which), job.said(which)  # where it stood


@pytest.mark.parametrize("hang", [False, True], ids=["slow alone", "hanging"])
def test_exact_search_waits_for_its_devices_and_for_nobody_when_alone(tmp_path, hang):
  command = ("-m", "searched", str(tmp_path), "none", *(["--hang=1"] if hang else []))
  with jobs.started(tmp_path / "job", 2, *command, patience=5) as job:
    codes = job.wait(120)
  if not hang:
    assert codes == [0, 0] and job.said().count("all well") == 2, job.said()
    return
  assert set(codes) <= set(AGAIN), codes
  reason = "exact search, queries from 0 on did not end within 5 s; processes that are not waiting for it: [1]"
  assert reason in job.said(0), job.said(0)


def test_each_process_looks_at_its_own_vectors_and_one_that_is_not_finite_is_refused_by_all(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "counted", str(tmp_path)) as job:
    job.succeed(120)
  said = [job.said(number).splitlines() for number in range(2)]
  assert "search looks at 102" in said[0] and "search looks at 101" in said[1]
  # Of its own, that is, and not of all 203.
  bad = ("VectorError: 1 of 101 vectors that this process looked at hold NaN or infinity (passages: 'p000'); "
         "the encoder's weights or its input are")
  told = lambda number, what: next(line for line in said[number] if line.startswith(what))
  # The row is the first in the file, and the last in the order that the devices share.
  for what, its, other in (("search", 1, 0), ("the check", 0, 1)):
    assert f"{what} is refused: {bad}" in told(its, f"{what} is refused")
    assert f"failed in process {its} ({bad}" in told(other, f"{what} is refused: FailedElsewhereError")


@pytest.mark.skipif(importlib.util.find_spec("scann") is None, reason="the extra `retrieval` is not installed")
def test_an_index_is_written_and_measured_with_a_corpus_that_no_process_holds_alone(tmp_path):
  said = []
  for count in (1, 2):
    folder = tmp_path / str(count)
    with jobs.started(folder, count, "-m", "indexed", str(folder)) as job:
      job.succeed(120)
    said.append([json.loads((folder / f"{number}.json").read_text()) for number in range(count)])
  (alone,), (first, second) = said
  assert first["shares"] == second["shares"] == [0.5] and alone["shares"] == [1.0]
  assert (alone["opens ScaNN"], first["opens ScaNN"], second["opens ScaNN"]) == (True, True, False)
  for kind in ("exact", "scann"):
    assert first[kind] == second[kind], "the second is told what the first has made alone"
    assert first[kind]["made"]["index"] == kind and first[kind]["recall"] > 0.9
  assert first["exact"]["rows"] == alone["exact"]["rows"]


# -- Restarts --------------------------------------------------------------------------------------------------------


def test_what_users_run_comes_to_the_same_bits_though_it_is_killed_at_random_moments(alone, tmp_path):
  stages, seed = ("train_ranker", "scores", "train_retriever"), secrets.randbits(32)
  for path in alone.iterdir():
    if path.is_dir() and path.name not in stages:
      shutil.copytree(path, tmp_path / "run" / path.name)
  # As it is, most of this is spent on compiling.
  pause, every = 0.4, [f"--config.{model}.checkpoint_every=1" for model in ("ranker", "retriever")]
  start = lambda: jobs.started(tmp_path, 1, *CONFIG, *every, f"--pause={pause}", f"--workdir={tmp_path / 'run'}",
                               f"--stages={','.join(stages)}")
  seconds = sum(json.loads((alone / stage / artifacts.MANIFEST).read_text())["seconds"] for stage in stages)
  seconds += pause * sum(len(losses(alone / stage)) for stage in (stages[0], stages[-1]))
  moments = np.random.default_rng(seed).uniform(0, seconds, 3).tolist()
  for moment in moments:
    with start() as job:
      with contextlib.suppress(TimeoutError):
        job.wait(moment)
      job.processes[0].kill()
      job.wait()
  said = f"seed {seed}: killed after {moments} s"
  with start() as job:
    assert job.wait() == [0], f"{said}\n{job.said()}"
  for stage in stages:
    found, expected = tmp_path / "run" / stage, alone / stage
    if stage == "scores":
      records = lambda folder: {path.name: path.read_bytes() for path in folder.glob("*.tfrecord")}
      assert records(found) == records(expected) != {}, said
    else:
      np.testing.assert_array_equal(learned(found, found), learned(expected, expected), err_msg=f"{stage}, {said}")
      assert loop_test.timeless(found) == loop_test.timeless(expected) != [], said


def test_a_job_goes_on_with_other_processes_and_another_mesh(tmp_path, tiny_weights, monkeypatch, capfd):
  whole, moved = tmp_path / "whole", tmp_path / "moved"
  for folder in (whole, moved):
    folder.mkdir()
    tiny_world.write_lists(folder)
  with trained.texts_are_counted():
    expected = loop.train(training(whole, tiny_weights, 1, 1, 1))
  assert capfd.readouterr().out == "reads 1.00 of the texts\n"

  # One process, told to end after its second step.
  settle = loop.settle
  monkeypatch.setattr(loop, "settle", lambda pending, *rest: (
    signal.raise_signal(signal.SIGTERM) if pending.step == 1 else None, settle(pending, *rest))[1])
  with pytest.raises(preemption.Preempted):
    loop.train(training(moved, tiny_weights, 1, 1, 1))
  monkeypatch.undo()
  first = len(losses(moved))
  assert 2 <= first < 5

  # Two processes, of which one is slow, and only that one is told.
  command = ("-m", "trained", str(moved), tiny_weights, "--fsdp=2", "--pause=1")
  with jobs.started(tmp_path / "job", 2, *command) as job:
    job.until(moved / "metrics.jsonl", first + 1)
    job.processes[1].send_signal(signal.SIGTERM)
    assert job.wait() == [preemption.EXIT_CODE] * 2, job.said()
  read = [float(re.search(r"reads (\S+) of the texts", job.said(number))[1]) for number in range(2)]
  # The last rows, those of the second, are nearly empty here; and which batches are read ahead is not the same.
  assert min(read) > 0 and sum(read) == pytest.approx(1, abs=0.1)
  waits = [json.loads(windows.path(moved, number).read_text().splitlines()[-1])["device_wait"] for number in range(2)]
  assert waits[0] > waits[1] + 0.3, waits
  second = len(losses(moved))
  assert first < second < 8
  assert max(int(path.name) for path in (moved / "checkpoints").iterdir() if path.name.isdigit()) == second

  # One process over eight devices.
  params = loop.train(training(moved, tiny_weights, 2, 2, 2))
  np.testing.assert_allclose(losses(moved), losses(whole), rtol=2e-4)
  start = table.flatten(training(whole, tiny_weights, 1, 1, 1).network.initial(0))
  update = lambda tree: np.concatenate([(np.asarray(leaf) - start[path]).ravel()
                                        for path, leaf in table.flatten(tree).items()])
  error = np.linalg.norm(update(params) - update(expected)) / np.linalg.norm(update(expected))
  assert error < 0.02


def training(folder: pathlib.Path, weights: str, *sizes: int) -> loop.Training:
  devices = np.array(jax.devices()[:int(np.prod(sizes))]).reshape(sizes)
  mesh = jax.sharding.Mesh(devices, sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  return tiny_world.training(folder, weights, mesh, pairs=True)

# -- Pieces ----------------------------------------------------------------------------------------------------------


def finished(folder: pathlib.Path) -> dict[pathlib.Path, int]:
  return {path: path.stat().st_mtime_ns for path in folder.glob("pieces/*/[0-9]*.npy")}


def until(is_so: Callable[[], object]) -> None:
  deadline = time.monotonic() + 120
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_workers_of_different_speeds_share_pieces_and_none_is_made_twice(tmp_path, tiny_weights, monkeypatch):
  """Those that the slow one has at the end take it longer than others have patience; each alone takes less."""
  command = ("-m", "encoded", str(tmp_path), tiny_weights, "--behind=12", "--pauses", "7", "0")
  with jobs.started(tmp_path / "job", 2, *command, patience=13) as job:
    job.succeed()
  made = [(tmp_path / f"made {number}").read_text().split() for number in range(2)]
  assert 1 <= len(made[0]) < len(made[1]) and len(set(made[0] + made[1])) == 16 == len(made[0] + made[1])
  assert not list(tmp_path.glob("pieces/*/*.lease"))
  # Each has said of each of its pieces how long it took, and the slow one that it is slow.
  for number in range(2):
    lines = [json.loads(line) for line in windows.path(tmp_path, number).read_text().splitlines()]
    assert [str((line["piece"] - 1) * len(encoded.TEXTS) // 16) for line in lines] == made[number]
    assert {(line["process"], line["work"], line["pieces"]) for line in lines} == {(number, "encode passages", 16)}
    assert (min(line["seconds"] for line in lines) > 7) == (number == 0)
    for line in lines:
      assert line["texts"] in (37, 38) and line["tokens_per_second"] > 2 * line["texts_per_second"] > 0
  found = encoded.encode(tiny_weights, tmp_path, least=32)
  np.testing.assert_array_equal(found, np.load(tmp_path / "whole 0.npy"))
  told = {}
  monkeypatch.setattr(pieces.Pieces, "tell", lambda _, piece, texts: told.update({piece: texts}))
  np.testing.assert_allclose(found, encoded.encode(tiny_weights, None, least=32), atol=1e-5)
  assert len(told) == 16 and all(texts == len(piece) for piece, texts in told.items())


def test_each_process_reads_the_texts_of_the_pairs_that_it_scores(tmp_path, tiny_weights):
  with jobs.started(tmp_path, 2, "-m", "scored", str(tmp_path), tiny_weights) as job:
    job.succeed(120)
  told = [json.loads((tmp_path / f"read {number}.json").read_text()) for number in range(2)]
  every = len(scored.PASSAGES)
  assert sorted(told[0]["finished"] + told[1]["finished"]) == [*range(every)]
  of_pairs = lambda pairs: sorted(scored.PASSAGE_OF[list(pairs)].tolist())
  sampled = np.linspace(0, every - 1, scored.SAMPLE).astype(int)
  for one in told:
    assert 0 < len(one["finished"]) < every
    assert sorted(one["read"]) == sorted(of_pairs(sampled) + of_pairs(one["finished"]))
  alone = scored.scores(tiny_weights, None, scored.PASSAGES)
  for number in range(2):
    np.testing.assert_allclose(np.load(tmp_path / f"scores {number}.npy"), alone, atol=1e-5)


def test_the_living_make_what_a_killed_worker_was_at(tmp_path, tiny_weights):
  """Processes of their own, not of one job, which would end."""
  start = lambda name, pause: jobs.started(
    tmp_path / name, 1, "-m", "encoded", str(tmp_path), tiny_weights, f"--pauses={pause}")
  with start("lost", 3600) as lost:
    until(lambda: list(tmp_path.glob("pieces/*/*.lease")))
    with start("alive", 0.2) as alive:
      until(lambda: len(finished(tmp_path)) >= 3)
      before = finished(tmp_path)
      lost.processes[0].kill()
      lost.wait()
      alive.succeed(200)
  after = finished(tmp_path)
  assert len(after) == 16 and {path: after[path] for path in before} == before
  assert len((tmp_path / f"made {alive.processes[0].pid}").read_text().split()) == 16


def test_a_job_that_lost_one_within_its_pieces_goes_on_with_those_that_are_missing(tmp_path, tiny_weights):
  command = ("-m", "encoded", str(tmp_path), tiny_weights, "--pauses")
  # The first keeps one to itself, and is at it until the job ends.
  with jobs.started(tmp_path / "job", 2, *command, "3600", "0.3", patience=8) as job:
    until(lambda: len(finished(tmp_path)) >= 3)
    job.processes[1].kill()
    codes = job.wait(60)
    assert codes[0] in AGAIN and codes[1] == -signal.SIGKILL, job.said()
  before = finished(tmp_path)
  assert 3 <= len(before) < 16
  with jobs.started(tmp_path / "alone", 1, *command, "0") as alone:
    alone.succeed()
  after = finished(tmp_path)
  assert len(after) == 16 and {path: after[path] for path in before} == before
  made = (tmp_path / f"made {alone.processes[0].pid}").read_text().split()
  assert len(made) == 16 - len(before)


def test_a_second_worker_helps(tmp_path, tiny_weights):
  """By sleeps, which want no core: of 16 pieces each takes half a second of whoever makes it."""
  seconds = []
  for count in (1, 2):
    folder = tmp_path / str(count)
    with jobs.started(folder, count, "-m", "encoded", str(folder), tiny_weights, "--pauses", "0.5", "0.5") as job:
      job.succeed()
    # From the first one's end on: what comes before is compiling, and waiting for the other.
    ends = finished(folder).values()
    seconds.append((max(ends) - min(ends)) / 1e9)
  assert seconds[0] > 15 * 0.5  # the control: alone, none is made during another's sleep
  assert seconds[1] < 0.8 * seconds[0], seconds


@pytest.fixture
def two(tmp_path, monkeypatch) -> tuple[leases.Leases, leases.Leases]:
  """Workers on two machines that see one folder."""
  monkeypatch.setattr(leases, "LEASE_SECONDS", 2.5)
  return leases.Leases(tmp_path), leases.Leases(tmp_path)


def take(worker: leases.Leases) -> bool:
  return worker.take("7-9", "7-9.npy", worker.names())


def test_a_piece_is_one_workers_for_as_long_as_that_lives(two, tmp_path, monkeypatch):
  one, other = two
  assert take(one) and not take(other)
  time.sleep(4)
  assert not take(other), "it has written its lease since"
  one.give_back("7-9")
  assert take(other) and not take(one)
  # What falls silent on another machine goes over when the lease is up, and then to one alone.
  monkeypatch.setattr(other, "_said", lambda: b"elsewhere 1 x 1")
  time.sleep(1)
  assert not take(one)
  time.sleep(4)
  third = leases.Leases(tmp_path)
  assert [take(one), take(third), take(other)] == [True, False, False]
  (tmp_path / "7-9.npy").touch()
  one.give_back("7-9")
  assert not third.take("7-9", "7-9.npy", set()), "finished since the folder was looked at"
  for worker in (one, other, third):
    worker.close()
  # That it was taken over from another, who may come back, is left to be seen.
  assert sorted(one.names()) == ["7-9.1.lease", "7-9.npy"]


def test_a_run_alone_has_the_patience_that_it_is_given(tmp_path):
  said = subprocess.run([
    sys.executable, "-c", "from idistill_jax import cli, processes; cli.run_app(lambda _: print(processes.patience()))",
    "--config=configs/quickstart.py:tiny", f"--workdir={tmp_path}", "--patience=7"],
    capture_output=True, text=True, timeout=120, check=True)  # fmt: skip
  assert said.stdout == "7.0\n"
  assert processes.patience() == processes.PATIENCE_SECONDS


def test_pieces_that_others_never_finish_are_waited_for_as_long_as_there_is_patience(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(pieces, "_LOST_SECONDS", 0.0)
  monkeypatch.setattr(processes, "patience", lambda: 1.0)
  one, other = (pieces.Pieces(tmp_path, "test", 20, np.full(1, 7)) for _ in range(2))
  held = next(next(one.rounds()))
  with pytest.raises(processes.ProcessError, match=r"others are at 1 of 2 pieces, .* within 1 s; .*00-000000010"):
    for claimed in other.rounds():
      for piece in claimed:
        other.finish(piece, np.zeros(10))
  one.finish(held, np.ones(10))
  assert not list(other.rounds()) and other.whole().tolist() == 10 * [1.0] + 10 * [0.0]
  # Control: other work finds nothing of it.
  assert pieces.Pieces(tmp_path, "test", 20, np.full(1, 8)).left() == 20


@pytest.mark.parametrize("total", [0, 1, 1023, 1024, 1025, 50_000, 10_000_001])
def test_pieces_cover_the_work_and_are_nearly_equal(total):
  cut = pieces.cut(total)
  assert [i for piece in cut for i in (piece.start, piece.stop)][1:-1:2] == [piece.start for piece in cut][1:]
  assert sum(map(len, cut)) == total
  assert not cut or max(map(len, cut)) - min(map(len, cut)) <= 1
  assert all(len(piece) <= pieces.LARGEST for piece in cut)
