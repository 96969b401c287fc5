"""The workdir: done is skipped, changed is redone, killed continues, missing names its command, half is never seen."""

import concurrent.futures
import dataclasses
import errno
import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time

import killed
import pytest

from idistill_jax import cli, config, extras, flow, peers
from idistill_jax.workdir import artifacts, inputs, locks, manifests


class Counted:
  """A stage that writes one file and counts its runs; `outside` is what it reads from outside the workdir."""

  def __init__(self, name: str = "labels", reads: tuple[str, ...] = (), sections: tuple[str, ...] = ("labels",)):
    self.runs, self.outside, self.fail_after = 0, "a", ""
    self.stage = artifacts.Stage(
      name=name, reads=reads, config=sections, run=self.run, fingerprint=lambda cfg: self.outside)

  def run(self, job: artifacts.Job) -> None:
    self.runs += 1
    before = "".join((folder / "text").read_text() for folder in job.inputs.values())
    (job.out / "text").write_text(f"{before}{self.stage.name} {self.runs};")
    if self.fail_after:
      raise RuntimeError(self.fail_after)


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> artifacts.Workdir:
  return artifacts.Workdir(tmp_path / "w")


@pytest.fixture
def cfg() -> config.Config:
  return config.Config(name="x")


def test_done_until_something_it_depends_on_changes(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  one = Counted()
  assert not workdir.is_done(one.stage, cfg)
  workdir.execute(one.stage, cfg)
  assert workdir.is_done(one.stage, cfg)
  # Another section and another process's objects change nothing.
  cfg.ranker.epochs += 1
  assert artifacts.Workdir(workdir.root).is_done(one.stage, cfg)
  # Its own section and its outside do.
  cfg.labels.lists += 1
  assert not workdir.is_done(one.stage, cfg)
  cfg.labels.lists -= 1
  one.outside = "b"
  assert not workdir.is_done(one.stage, cfg)


def test_change_spreads_downstream(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  first, second = Counted("first", (), ("collection",)), Counted("second", ("first",), ("labels",))
  third = Counted("third", ("second",), ())
  for one in (first, second, third):
    workdir.execute(one.stage, cfg)
  cfg.collection.max_passages = 5
  assert not workdir.is_done(first.stage, cfg)
  # Not yet: what they read is still the old folder.
  assert workdir.is_done(second.stage, cfg)
  workdir.execute(first.stage, cfg)
  assert not workdir.is_done(second.stage, cfg)
  workdir.execute(second.stage, cfg)
  assert not workdir.is_done(third.stage, cfg)


def test_same_inputs_made_again_change_nothing(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  first, second = Counted("first", (), ()), Counted("second", ("first",), ())
  workdir.execute(first.stage, cfg)
  workdir.execute(second.stage, cfg)
  workdir.execute(first.stage, cfg)
  assert workdir.is_done(second.stage, cfg)


def test_manifest_says_what_happened(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  def run(job: artifacts.Job) -> None:
    job.count(lists=3)
    for i in range(25):
      job.drop("too long", f"q{i}")

  stage = artifacts.Stage(name="labels", reads=(), config=("labels", "seed"), run=run)
  manifest = workdir.execute(stage, cfg)
  assert manifest == workdir.manifest("labels")
  assert manifest["counts"] == {"lists": 3}
  assert manifest["drops"]["too long"]["count"] == 25
  assert manifest["drops"]["too long"]["examples"] == [f"q{i}" for i in range(manifests.EXAMPLES_PER_DROP)]
  assert manifest["config"] == {"labels": config.as_dict(cfg)["labels"], "seed": 0}
  assert manifest["versions"]["jax"]


def test_missing_input_names_its_command(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  stage = Counted("labels", ("collection",)).stage
  with pytest.raises(inputs.MissingInputError, match=r"python -m idistill_jax\.stages\.collection --config"):
    workdir.execute(stage, cfg)
  # A folder without a manifest was not committed by anyone.
  workdir.folder("collection").mkdir(parents=True)
  with pytest.raises(inputs.MissingInputError):
    workdir.execute(stage, cfg)
  assert not workdir.is_done(stage, cfg)


def test_a_stage_is_held_to_the_settings_of_what_it_reads(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  made = Counted("train_ranker", (), ("encoder", "ranker", "seed"))
  reads = Counted("evaluate", ("train_ranker",), ("encoder", "ranker", "evaluate"))
  cfg.ranker.similarity_weight = None
  workdir.execute(made.stage, cfg)
  # Neither another section, nor what is set aside, nor the seed, with which lists were drawn or weights trained.
  cfg.evaluate.depth, cfg.ranker.passes, cfg.seed = 7, 2, 1
  workdir.execute(dataclasses.replace(reads.stage, config=(*reads.stage.config, "seed")), cfg)
  cfg.ranker.similarity_weight, cfg.ranker.optim.peak_lr, cfg.encoder.query_tokens = 30.0, 0.5, 3
  with pytest.raises(config.ConfigError) as raised:
    workdir.execute(reads.stage, cfg)
  for said in ("--config.ranker.similarity_weight=none ", "--config.ranker.optim.peak_lr=5e-05 ", "would be 3, ",
               "--config.encoder.query_tokens=64 ", "\n  python -m idistill_jax.stages.train_ranker --config="):
    assert said in str(raised.value), raised.value
  assert reads.runs == 1
  # What only shows does so.
  workdir.execute(dataclasses.replace(reads.stage, name="report", shows=True), cfg)
  # Made anew with them, it is read with them.
  workdir.execute(made.stage, cfg)
  workdir.execute(reads.stage, cfg)
  # Of a version that had fewer fields: what is not said was the default.
  manifest = json.loads((workdir.folder("train_ranker") / artifacts.MANIFEST).read_text())
  del manifest["config"]["ranker"]["epochs"]
  (workdir.folder("train_ranker") / artifacts.MANIFEST).write_text(json.dumps(manifest))
  workdir.inputs(reads.stage, cfg)
  cfg.ranker.epochs = 9
  with pytest.raises(config.ConfigError, match=r"made with ranker.epochs=1; here it would be 9"):
    workdir.inputs(reads.stage, cfg)


def test_an_input_that_is_made_anew_meanwhile_is_found_out(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  made, reads = Counted("collection", (), ("collection",)), Counted("candidates", ("collection",), ("candidates",))
  workdir.execute(made.stage, cfg)
  other = config.Config(name="x", collection=config.Collection(max_passages=300))

  def run(job: artifacts.Job) -> None:
    if reads.runs == 0:
      artifacts.Workdir(workdir.root).execute(made.stage, other)
    reads.run(job)

  stage = dataclasses.replace(reads.stage, run=run)
  with pytest.raises(inputs.ChangedInputError, match=r"has made collection anew while candidates was at work"):
    workdir.execute(stage, cfg)
  # Neither committed nor gone on with: nobody knows what of it is of which.
  assert not workdir.is_done(stage, cfg) and not list(workdir.root.glob(".candidates-*"))
  workdir.execute(made.stage, cfg)
  assert not workdir.is_done(stage, cfg)
  manifest = workdir.execute(stage, cfg)
  assert manifest["inputs"] == {"collection": workdir.manifest("collection")["key"]}


def test_what_another_run_reads_is_not_made_anew_under_it(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  made, reads = Counted("collection", (), ("collection",)), Counted("candidates", ("collection",), ("candidates",))
  stage = dataclasses.replace(made.stage, read_by=("labels", "candidates"))
  workdir.execute(stage, cfg)

  def run(job: artifacts.Job) -> None:
    with pytest.raises(locks.BusyError, match=r"collection: would be made anew, and another run is at candidates"):
      artifacts.Workdir(workdir.root).execute(stage, cfg)
    reads.run(job)

  workdir.execute(dataclasses.replace(reads.stage, run=run), cfg)
  assert (made.runs, reads.runs) == (1, 1)
  workdir.execute(stage, cfg)


def test_what_another_run_reads_is_not_taken_over_under_it(tmp_path, workdir, cfg) -> None:
  made, reads = Counted("collection", (), ("collection",)), Counted("candidates", ("collection",), ("candidates",))
  stage, theirs = dataclasses.replace(made.stage, read_by=("candidates",)), artifacts.Workdir(tmp_path / "theirs")
  other = config.Config(name="x", collection=config.Collection(max_passages=300))
  workdir.execute(stage, cfg)
  theirs.execute(stage, other)

  def run(job: artifacts.Job) -> None:
    with pytest.raises(locks.BusyError, match=r"collection: would be made anew, and another run is at candidates"):
      artifacts.Workdir(workdir.root).take_over(stage, other, theirs)
    reads.run(job)

  workdir.execute(dataclasses.replace(reads.stage, run=run), cfg)
  assert workdir.is_done(reads.stage, cfg)
  # The control: now nobody is at it.
  assert workdir.take_over(stage, other, theirs) and not workdir.is_done(reads.stage, cfg)


def test_where_there_are_no_locks_a_kill_keeps_nobody_from_what_was_read(
    workdir: artifacts.Workdir, cfg: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
  def refuse(*_: object) -> None:
    raise OSError(errno.ENOLCK, "no locks")

  monkeypatch.setattr(fcntl, "flock", refuse)
  made = Counted("collection", (), ("collection",))
  workdir.root.mkdir(parents=True)
  (workdir.root / ".candidates.lock").touch()
  workdir.execute(dataclasses.replace(made.stage, read_by=("candidates",)), cfg)
  assert made.runs == 1 and locks.is_held(workdir.root / ".candidates.lock") is None


def test_of_the_flow_every_stage_knows_who_reads_it() -> None:
  assert flow.STAGES["labels"].read_by == (
    "train_direct", "train_ranker", "scores", "train_retriever", "index", "evaluate", "export")
  assert flow.STAGES["queries"].read_by == ("collection", "evaluate") and flow.STAGES["report"].read_by == ()


def test_a_folder_that_was_moved_and_linked_is_replaced(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  """As a large index that has gone to another disk."""
  one, elsewhere = Counted(), workdir.root.parent / "large disk"
  workdir.execute(one.stage, cfg)
  workdir.folder("labels").rename(elsewhere)
  workdir.folder("labels").symlink_to(elsewhere)
  for run in 2, 3:
    one.outside = str(run)
    workdir.execute(one.stage, cfg)
    assert (workdir.folder("labels") / "text").read_text() == f"labels {run};"
  assert (elsewhere / "text").read_text() == "labels 1;" and not list(workdir.root.glob(".labels-*"))


def test_what_a_kill_in_a_commit_left_is_swept_where_all_is_done(
    workdir: artifacts.Workdir, cfg: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
  one = Counted()
  workdir.execute(one.stage, cfg)
  (workdir.root / ".labels-replaced").mkdir()
  (workdir.root / f".labels-{workdir.manifest('labels')['key']}").mkdir()
  (workdir.root / ".labels-0123").mkdir()  # another's work, begun
  cli.Runner(cfg, workdir, ()).run(one.stage)
  assert {path.name for path in workdir.root.iterdir()} == {"config.json", "labels", ".labels-0123"} and one.runs == 1


def test_what_is_no_manifest_is_told(workdir: artifacts.Workdir, cfg: config.Config, tmp_path: pathlib.Path) -> None:
  workdir.folder("labels").mkdir(parents=True)
  for text in '{"name": "an extension"}', "[1]":
    (workdir.folder("labels") / artifacts.MANIFEST).write_text(text)
    with pytest.raises(ValueError, match=r"labels/manifest\.json: is of no stage; move"):
      workdir.manifest("labels")
  (tmp_path / "file").touch()
  with pytest.raises(NotADirectoryError, match="file: is a file; a workdir is a folder"):
    artifacts.Workdir(tmp_path / "file")


def test_that_other_code_goes_on_is_said(
    workdir: artifacts.Workdir, cfg: config.Config, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
  one = Counted()
  one.fail_after = "disk full"
  for code, said in ("a", False), ("a", False), ("b", True):
    caplog.clear()
    monkeypatch.setattr(extras, "code", lambda code=code: code)
    with pytest.raises(RuntimeError):
      workdir.execute(one.stage, cfg)
    assert ("labels: goes on with what was begun by other code (code a there, b here)" in caplog.text) is said
  one.fail_after = ""
  workdir.execute(one.stage, cfg)
  assert [path.name for path in workdir.folder("labels").glob("*.json")] == [artifacts.MANIFEST]


def test_failed_stage_leaves_the_old_folder_and_its_own_work(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  one = Counted()
  workdir.execute(one.stage, cfg)
  cfg.labels.lists += 1
  one.fail_after = "disk full"
  with pytest.raises(RuntimeError, match="disk full"):
    workdir.execute(one.stage, cfg)
  assert (workdir.folder("labels") / "text").read_text() == "labels 1;"
  assert not workdir.is_done(one.stage, cfg)
  left = [path for path in workdir.root.glob(".labels-*/text")]
  assert len(left) == 1 and left[0].read_text() == "labels 2;"
  one.fail_after = ""
  workdir.execute(one.stage, cfg)
  assert (workdir.folder("labels") / "text").read_text() == "labels 3;"
  assert {path.name for path in workdir.root.iterdir()} == {"config.json", "labels"}, "no working folder stays behind"


KILLED = textwrap.dedent("""
  import os, signal, sys
  from idistill_jax import config
  from idistill_jax.workdir import artifacts

  def run(job):
    log = job.out / "log"
    steps = len(log.read_text().split()) if log.exists() else 0
    while steps < 4:
      with log.open("a") as f:
        f.write(f"{steps} ")
      steps += 1
      if steps == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    job.count(steps=steps)

  cfg = config.Config(name="x", seed=int(sys.argv[3]))
  workdir = artifacts.Workdir(sys.argv[1])
  first = artifacts.Stage(name="first", reads=(), config=(), run=lambda job: None)
  if not workdir.is_done(first, cfg):
    workdir.execute(first, cfg)
  workdir.execute(artifacts.Stage(name="second", reads=("first",), config=("seed",), run=run), cfg)
""")


def start(root: pathlib.Path, kill_at: int, seed: int) -> int:
  return subprocess.run([sys.executable, "-c", KILLED, str(root), str(kill_at), str(seed)], timeout=60).returncode


def test_killed_stage_continues_in_its_own_folder(tmp_path: pathlib.Path) -> None:
  workdir = artifacts.Workdir(tmp_path)
  assert start(tmp_path, kill_at=2, seed=0) == -signal.SIGKILL
  first = workdir.manifest("first")
  assert first and workdir.manifest("second") is None
  assert start(tmp_path, kill_at=9, seed=0) == 0
  assert workdir.manifest("first") == first, "what was finished is not made again"
  assert (workdir.folder("second") / "log").read_text() == "0 1 2 3 "


def test_one_run_at_a_time_is_at_a_stage(tmp_path: pathlib.Path) -> None:
  workdir, cfg = artifacts.Workdir(tmp_path), config.Config(name="t")

  def run(job: artifacts.Job) -> None:
    (job.out / "work").write_text("begun")
    with pytest.raises(locks.BusyError, match=rf"{tmp_path}/one: another run is at work"):
      artifacts.Workdir(tmp_path).execute(stage, config.Config(name="t", seed=5))
    assert (job.out / "work").exists(), "nothing of what is being made was swept away"

  stage = artifacts.Stage(name="one", reads=(), config=("seed",), run=run)
  workdir.execute(stage, cfg)
  workdir.execute(artifacts.Stage(name="one", reads=(), config=("seed",), run=lambda job: None), cfg)


def test_killed_stage_of_another_config_is_not_continued(tmp_path: pathlib.Path) -> None:
  """The control: two steps of seed 0 are no part of seed 1's result, and do not stay on the disk."""
  assert start(tmp_path, kill_at=2, seed=0) == -signal.SIGKILL
  assert start(tmp_path, kill_at=3, seed=1) == -signal.SIGKILL
  logs = list(tmp_path.glob(".second-*/log"))
  assert [log.read_text() for log in logs] == ["0 1 2 "]


def test_what_is_removed_of_other_work_is_told(workdir: artifacts.Workdir, cfg: config.Config, caplog) -> None:
  one = Counted()
  one.fail_after = "the loss is nan"
  with pytest.raises(RuntimeError):
    workdir.execute(one.stage, cfg)
  (begun,) = workdir.root.glob(".labels-*")
  (begun / "metrics.jsonl").write_text('{"step": 11}\n{"step": 12}\n')
  (begun / "seconds").write_text("90.2")
  cfg.labels.lists += 1
  one.fail_after = ""
  workdir.execute(one.stage, cfg)
  assert f"labels: {begun.name} is removed, work of 0:01:30, as far as step 12, begun with" in caplog.text
  # Work of the same config, in place of which another workdir's folder is taken: it was begun with no other.
  caplog.clear()
  theirs = artifacts.Workdir(workdir.root.with_name("theirs"))
  cfg.labels.lists += 1
  theirs.execute(one.stage, cfg)
  one.fail_after = "the loss is nan"
  with pytest.raises(RuntimeError):
    workdir.execute(one.stage, cfg)
  one.fail_after = ""
  (begun,) = workdir.root.glob(".labels-*")
  assert workdir.take_over(one.stage, cfg, theirs)
  assert f"{begun.name} is removed, work of 0:00:00, in place of which a finished folder is taken over" in caplog.text
  # The control: what a commit was cut off from sweeping up is no work.
  caplog.clear()
  for left in ("replaced", "taken", workdir.key(one.stage, cfg)):
    (workdir.root / f".labels-{left}").mkdir()
  cfg.labels.lists += 1
  workdir.execute(one.stage, cfg)
  assert not list(workdir.root.glob(".labels-*")) and "is removed" not in caplog.text


def test_killed_between_the_two_renames(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  """The old folder stepped aside and the new one is not in place: the next run makes it and sweeps up."""
  one = Counted()
  workdir.execute(one.stage, cfg)
  workdir.folder("labels").rename(workdir.root / ".labels-replaced")
  assert not workdir.is_done(one.stage, cfg)
  workdir.execute(one.stage, cfg)
  assert {path.name for path in workdir.root.iterdir()} == {"config.json", "labels"}


CUT_OFF = textwrap.dedent("""
  import os, pathlib, signal, sys
  from idistill_jax import config, processes
  from idistill_jax.workdir import artifacts, files

  def run(job):
    hours = job.out / "pieces" / "hours"
    with (job.out.parent / "found").open("a") as log:
      log.write(f"{hours.exists()} ")
    hours.parent.mkdir(exist_ok=True)
    hours.touch()
    (job.out / "text").write_text("made")

  rename, remove, at = pathlib.Path.rename, files._remove, sys.argv[2]

  def renamed(self, target):
    if at == self.name.partition("-")[0]:
      os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)

  def removed(path):
    remove(path)
    if at == path.name:
      os.kill(os.getpid(), signal.SIGTERM)

  pathlib.Path.rename, files._remove = renamed, removed
  with processes.joined(None):
    artifacts.Workdir(sys.argv[1]).execute(
      artifacts.Stage(name="labels", reads=(), config=("seed",), run=run), config.Config(name="x"))
""")


@pytest.mark.parametrize(("at", "code", "earlier"), [
  (".labels", -signal.SIGKILL, False), (".labels", -signal.SIGKILL, True), ("labels", -signal.SIGKILL, True),
  ("pieces", peers.TERMINATED, False)])  # fmt: skip
def test_a_stage_that_is_made_but_for_its_commit_is_not_made_again(workdir, cfg, at: str, code: int, earlier: bool):
  workdir.root.mkdir()
  if earlier:
    cfg.seed = 5
    workdir.execute(artifacts.Stage(name="labels", reads=(), config=("seed",), run=lambda job: None), cfg)
  start = lambda at: subprocess.run([sys.executable, "-c", CUT_OFF, str(workdir.root), at], timeout=60).returncode
  assert start(at) == code and (workdir.manifest("labels") is not None) == (earlier and at == "labels")
  assert start("nowhere") == 0
  assert (workdir.root / "found").read_text() == "False ", "it ran once"
  assert sorted(os.listdir(workdir.folder("labels"))) == ["manifest.json", "text"]
  assert sorted(os.listdir(workdir.root)) == ["config.json", "found", "labels"]
  # The control: what is committed and asked for once more is made once more.
  assert start("nowhere") == 0
  assert (workdir.root / "found").read_text() == "False False "


def test_a_run_that_waited_for_another_takes_what_that_has_made(workdir, cfg, caplog, monkeypatch):
  caplog.set_level("INFO")
  monkeypatch.setattr(locks, "_LOOK_SECONDS", 20.0)
  at_work, runs = threading.Event(), []

  def run(job: artifacts.Job) -> None:
    runs.append(job.cfg.seed)
    at_work.set()
    # The other one has looked, and waits.
    while not waiting:
      time.sleep(0.01)

  waiting, alone = [], workdir._store.alone
  other = artifacts.Workdir(workdir.root)
  monkeypatch.setattr(other._store, "alone", lambda *what: (waiting.append(what), alone(*what))[1])
  stage = artifacts.Stage(name="labels", reads=(), config=(), run=run)
  go = lambda which: cli.Runner(cfg, which, ()).run(stage)
  with concurrent.futures.ThreadPoolExecutor() as threads:
    first = threads.submit(go, workdir)
    assert at_work.wait(20)
    second = threads.submit(go, other)
    assert first.result(20) and not second.result(20)
  assert len(runs) == 1 and "labels: done meanwhile, by another run" in caplog.text
  # The control: where a stage is asked for though it is done, waiting changes nothing.
  assert workdir.execute(stage, cfg) is not None and len(runs) == 2


def test_folder_is_never_seen_half(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  def run(job: artifacts.Job) -> None:
    (job.out / "a").write_text("1")
    assert workdir.manifest("labels") is None and not workdir.folder("labels").exists()
    (job.out / "b").write_text("2")

  workdir.execute(artifacts.Stage(name="labels", reads=(), config=(), run=run), cfg)
  assert sorted(path.name for path in workdir.folder("labels").iterdir()) == ["a", "b", "manifest.json"]


def test_what_a_killed_process_left_unfinished_is_not_committed(workdir, cfg) -> None:
  def run(job: artifacts.Job) -> None:
    (job.out / "lists").mkdir()
    assert "rankings-00000" in killed.in_a_shard(job.out / "lists")
    (job.out / "copy.half").mkdir()
    (job.out / ".kept").touch()

  workdir.execute(artifacts.Stage(name="labels", reads=(), config=(), run=run), cfg)
  committed = {str(path.relative_to(workdir.folder("labels"))) for path in workdir.folder("labels").rglob("*")}
  assert committed == {artifacts.MANIFEST, ".kept", "lists"}


def test_torn_manifest_is_an_error_that_says_what_to_do(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  one = Counted()
  workdir.execute(one.stage, cfg)
  path = workdir.folder("labels") / artifacts.MANIFEST
  path.write_text(path.read_text()[:40])
  with pytest.raises(ValueError, match=r"labels/manifest\.json: not JSON .* delete the folder"):
    workdir.is_done(one.stage, cfg)


def test_take_over_from_another_workdir(tmp_path: pathlib.Path, cfg: config.Config) -> None:
  ours, theirs = artifacts.Workdir(tmp_path / "ours"), artifacts.Workdir(tmp_path / "theirs")
  one = Counted()
  assert not ours.take_over(one.stage, cfg, theirs)
  theirs.execute(one.stage, cfg)
  assert ours.take_over(one.stage, cfg, theirs)
  assert ours.is_done(one.stage, cfg) and one.runs == 1
  assert os.path.samefile(ours.folder("labels") / "text", theirs.folder("labels") / "text")
  # Made again there, it stays what it was here.
  theirs.execute(one.stage, cfg)
  assert (ours.folder("labels") / "text").read_text() == "labels 1;"
  # Another config is not taken over.
  cfg.labels.lists += 1
  assert not ours.take_over(one.stage, cfg, theirs)
  assert json.loads((ours.folder("labels") / artifacts.MANIFEST).read_text())["config"]["labels"]["lists"] == 1000


def test_what_is_made_anew_while_it_is_taken_over_is_not_taken(
    tmp_path: pathlib.Path, cfg: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
  one, ours, theirs = Counted(), artifacts.Workdir(tmp_path / "ours"), artifacts.Workdir(tmp_path / "theirs")
  theirs.execute(one.stage, cfg)
  one.fail_after = "a kill"
  with pytest.raises(RuntimeError):
    ours.execute(one.stage, cfg)
  one.fail_after = ""
  (begun,), folder = ours.root.glob(".labels-*"), theirs.folder

  def anew(name: str) -> pathlib.Path:
    monkeypatch.undo()
    one.outside = "b"
    theirs.execute(one.stage, cfg)
    one.outside = "a"
    return folder(name)

  monkeypatch.setattr(theirs, "folder", anew)
  assert not ours.take_over(one.stage, cfg, theirs) and ours.manifest("labels") is None
  # What a killed run had begun here goes on then.
  assert (begun / "text").exists()


def test_what_no_result_depends_on_is_in_no_key(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  stage = artifacts.Stage(name="labels", reads=(), config=("labels", "seed"), run=lambda job: None)
  key = workdir.key(stage, cfg)
  cfg.labels.max_dollars, cfg.labels.concurrency = 7.0, 99
  assert workdir.key(stage, cfg) == key
  # The control: what is asked is in it.
  cfg.labels.passage_tokens += 1
  assert workdir.key(stage, cfg) != key


@pytest.mark.parametrize("field", [
  "encoder.tokens_per_step", "encoder.remat",
  *(f"{name}.{field}" for name in ("direct", "ranker", "retriever") for field in ("passes", "checkpoint_every")),
])
def test_what_says_only_how_to_compute_is_in_no_key(cfg: config.Config, field: str) -> None:
  """Else a smaller step after an end for lack of memory would make anew, and pay for, all that came before."""
  name, _, field = field.partition(".")
  section = getattr(cfg, name)
  key = config.keyed(section)
  setattr(section, field, "layers" if field == "remat" else getattr(section, field) + 7)
  assert config.keyed(section) == key


@pytest.mark.parametrize("file", ["labels/thesis.txt", "labels", "labels/manifest.json", "labels/chapter/1.txt"])
def test_what_is_not_the_stages_own_is_refused_before_any_work_and_stays(workdir, cfg, file) -> None:
  one, path = Counted(), workdir.root / file
  theirs = artifacts.Workdir(workdir.root.with_name("theirs"))
  theirs.execute(one.stage, cfg)
  path.parent.mkdir(parents=True)
  path.write_text('{"name": "precious"}')
  for attempt in (
    lambda: workdir.refuse_foreign("labels"),
    lambda: workdir.execute(one.stage, cfg),
    lambda: workdir.take_over(one.stage, cfg, theirs),
  ):
    with pytest.raises(FileExistsError, match=r"w/labels: holds files, and no manifest\.json .* move it away"):
      attempt()
  assert path.read_text() == '{"name": "precious"}' and one.runs == 1
  assert not list(workdir.root.glob(".labels-*")) and not (workdir.root / artifacts.CONFIG).exists()
  # The control: away with it, and what is empty is in nobody's way.
  path.unlink()
  if path.parent != workdir.root:
    shutil.rmtree(workdir.root / "labels")
  workdir.folder("labels").mkdir()
  workdir.execute(one.stage, cfg)
  workdir.refuse_foreign("labels")
  assert workdir.is_done(one.stage, cfg)


def test_what_a_kill_leaves_is_not_refused(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  """Every name that a commit's renames, a takeover, and work under this or another key go through."""
  one = Counted()
  workdir.execute(one.stage, cfg)
  before = (workdir.folder("labels") / "text").read_text()
  for left in ("replaced", "taken", "0123", workdir.key(one.stage, cfg)):
    for finished in (True, False):
      shutil.copytree(workdir.folder("labels"), workdir.root / f".labels-{left}")
      if left == workdir.key(one.stage, cfg):
        (workdir.root / f".labels-{left}" / artifacts.MANIFEST).unlink()  # with it, no more is to be done than a commit
      if not finished:
        shutil.rmtree(workdir.folder("labels"))
      workdir.refuse_foreign("labels")
      workdir.execute(one.stage, cfg)
      content = (workdir.folder("labels") / "text").read_text()
      assert content != before and not list(workdir.root.glob(".labels-*"))
      before = content


def test_a_torn_manifest_is_the_stages_own(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  workdir.execute(Counted().stage, cfg)
  (workdir.folder("labels") / artifacts.MANIFEST).write_text('{"stage": "lab')
  workdir.refuse_foreign("labels")


def test_the_config_is_that_of_the_latest_work(workdir: artifacts.Workdir, cfg: config.Config) -> None:
  lists = lambda: json.loads(workdir.read(artifacts.CONFIG) or "{}")["labels"]["lists"]

  def run(job: artifacts.Job) -> None:
    assert lists() == job.cfg.labels.lists, "whoever joins works with the same"
    with pytest.raises(locks.BusyError):
      workdir.execute(stage, config.Config(name="x", labels=config.Labels(lists=2)))

  stage = artifacts.Stage(name="labels", reads=(), config=("labels",), run=run)
  workdir.execute(stage, cfg)
  assert lists() == cfg.labels.lists, "not that of one who was turned away"
  other = artifacts.Workdir(workdir.root.with_name("other"))
  assert other.take_over(stage, cfg, workdir) and other.read(artifacts.CONFIG) == workdir.read(artifacts.CONFIG)
