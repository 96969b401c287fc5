"""What breaks around a stage: the disk is full, the workdir cannot be written, an input is gone.

Each ends with an error that names what it was, and whatever was finished stays as it was.
"""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import jobs
import pytest

from idistill_jax import config, processes, records
from idistill_jax.data import example, tfrecord
from idistill_jax.train import windows
from idistill_jax.workdir import artifacts, begun, coded, configs, files, seconds


@pytest.fixture
def cfg() -> config.Config:
  return config.Config(name="x")


@pytest.fixture
def open_folder() -> Iterator[pathlib.Path]:
  """A folder that other users may enter, as pytest's own are not."""
  with tempfile.TemporaryDirectory() as made:
    os.chmod(made, 0o755)
    yield pathlib.Path(made)


def content(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_queries(job: artifacts.Job) -> None:
  queries = (records.Query(id=f"q{i}", text="x" * 100, split="test") for i in range(99))
  example.write_records(job.out, "queries", queries)


WRITES = artifacts.Stage(name="collection", reads=(), config=("labels",), run=write_queries)
READS = artifacts.Stage(
  name="scores", reads=("collection",), config=("labels",),
  run=lambda job: (job.out / "ids").write_text(
    " ".join(one.id for one in example.read_records(job.inputs["collection"], "queries", records.Query))) and None,
)


@contextlib.contextmanager
def full_disk(left: int = 4096) -> Iterator[None]:
  """No test can fill a disk; here files cannot grow, which is an OSError of a neighbouring number.

  left: bytes that a file may have.  With none, no file can be written at all, however small.
  """
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("left", [4096, 0])
def test_a_full_disk_ends_a_stage_and_leaves_what_was_there(tmp_path, cfg, left):
  workdir = artifacts.Workdir(tmp_path)
  workdir.execute(WRITES, cfg)
  before = content(workdir.folder("collection"))
  cfg.labels.lists += 1
  with full_disk(left), pytest.raises(OSError, match=r"too large|No space left"):
    workdir.execute(WRITES, cfg)
  assert content(workdir.folder("collection")) == before
  assert not workdir.is_done(WRITES, cfg)
  # With room again, the same command makes it.
  workdir.execute(WRITES, cfg)
  assert workdir.is_done(WRITES, cfg) and {path.name for path in tmp_path.iterdir()} == {artifacts.CONFIG, "collection"}


def test_a_full_disk_leaves_the_files_that_are_written_again(tmp_path, cfg):
  workdir, log, steps = artifacts.Workdir(tmp_path), tmp_path / begun.METRICS, range(1, 501)
  workdir.write(artifacts.CONFIG, config.as_json(cfg))
  log.write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))
  before = content(tmp_path)
  cfg.labels.lists += 1
  for write in (lambda: workdir.write(artifacts.CONFIG, config.as_json(cfg)), lambda: windows.drop_after(400, log)):
    with full_disk(0), pytest.raises(OSError, match=r"too large|No space left"):
      write()
    assert content(tmp_path) == before
  # The control: with room they do write.
  workdir.write(artifacts.CONFIG, config.as_json(cfg))
  windows.drop_after(400, log)
  assert configs.load(tmp_path).labels.lists == cfg.labels.lists
  assert len(log.read_text().splitlines()) == 400 and len(content(tmp_path)) == 2


def test_seconds_that_could_not_be_written_are_none(tmp_path, cfg):
  """What an attempt took is told, and not worth a stage: it neither hides the reason nor blocks the next attempt."""
  disk = contextlib.ExitStack()

  def lost(job: artifacts.Job) -> None:
    disk.enter_context(full_disk(0))
    raise RuntimeError("the reason")

  workdir, stage = artifacts.Workdir(tmp_path), functools.partial(artifacts.Stage, name="labels", reads=(), config=())
  with disk, pytest.raises(RuntimeError, match="the reason"):
    workdir.execute(stage(run=lost), cfg)
  # As earlier versions left it.
  (working,) = tmp_path.glob(".labels-*")
  (working / "seconds").write_text("")
  assert workdir.begun("labels").took.seconds == 0
  assert workdir.execute(stage(run=lambda job: None), cfg)["seconds"] >= 0


TRAINS = """
import pathlib, resource, sys
import tiny_world
from idistill_jax import config, sharding
from idistill_jax.workdir import artifacts
from idistill_jax.train import loop

lists, root = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
tiny_world.write_lists(lists)

def run(job):
  import dataclasses
  training = tiny_world.training(lists, {weights!r}, sharding.make_mesh(config.Mesh()), pairs=False, checkpoint_every=2)
  loop.train(dataclasses.replace(training, folder=job.out, checkpoints=job.shared / "checkpoints"))

cfg, workdir = config.Config(name="x"), artifacts.Workdir(root)
workdir.execute(artifacts.Stage(name="collection", reads=(), config=(), run=lambda job: None), cfg)
if len(sys.argv) > 3:
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
  workdir.execute(artifacts.Stage(name="train_ranker", reads=("collection",), config=(), run=run), cfg)
except Exception as e:
  sys.exit(f"{{type(e).__name__}}: {{e}}")
"""


def test_a_disk_that_fills_up_during_training_is_an_error_and_not_a_model(tmp_path, tiny_weights):
  lists, root = tmp_path / "lists", tmp_path / "run"
  lists.mkdir()
  code = TRAINS.format(weights=tiny_weights)
  start = lambda name, *limit: jobs.started(tmp_path / name, 1, "-c", code, str(lists), str(root), *limit)
  # A megabyte holds the metrics, and no checkpoint.
  with start("full", "1000000") as job:
    assert job.wait(200) == [1], job.said()
  assert "too large" in job.said() or "No space left" in job.said()
  assert sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".") == ["collection"]
  with start("emptied") as job:
    job.succeed(200)
  assert (root / "train_ranker" / artifacts.MANIFEST).exists()


ANSWERS = """
import os, signal, sys
from idistill_jax import config, processes
from idistill_jax.workdir import artifacts

# A shell starts what runs in the background deaf to Ctrl-C, and this with it.
signal.signal(signal.SIGINT, signal.default_int_handler)

def run(job):
  (job.out / "answers").write_text("paid for")
  os.kill(os.getpid(), int(sys.argv[2]))

with processes.joined(None):
  artifacts.Workdir(sys.argv[1]).execute(
    artifacts.Stage(name="labels", reads=(), config=(), run=run), config.Config(name="x"))
"""


@pytest.mark.parametrize(("told", "code"), [
  (signal.SIGTERM, processes.TERMINATED),
  (signal.SIGINT, -signal.SIGINT),  # of which a shell's loop ends, too
])
def test_a_stage_that_is_asked_to_end_is_ended_in_order(tmp_path, told, code):
  done = subprocess.run([sys.executable, "-c", ANSWERS, str(tmp_path), str(int(told))], timeout=100,
                        stderr=subprocess.PIPE, text=True)
  assert done.returncode == code
  assert ("ended by Ctrl-C" in done.stderr) == (told == signal.SIGINT) and "Traceback" not in done.stderr
  (working,) = tmp_path.glob(".labels-*")
  assert sorted(path.name for path in working.iterdir()) == ["answers", coded.FILE, seconds.FILE]


def test_a_workdir_that_cannot_be_written(open_folder, cfg):
  workdir = artifacts.Workdir(open_folder)
  workdir.execute(WRITES, cfg)
  before = content(open_folder)
  # Who may write everywhere must be somebody else for a while; anybody else takes the permission away.
  (open_folder).chmod(0o555)
  root = os.geteuid() == 0
  if root:
    os.seteuid(65534)
  try:
    with pytest.raises(PermissionError, match=str(open_folder)):
      workdir.execute(READS, cfg)
    assert workdir.is_done(WRITES, cfg)
  finally:
    if root:
      os.seteuid(0)
    open_folder.chmod(0o755)
  assert content(open_folder) == before
  workdir.execute(READS, cfg)


@pytest.mark.parametrize("lost", ["queries-00000-of-00001.tfrecord", artifacts.MANIFEST])
def test_an_input_that_was_deleted_is_named(tmp_path, cfg, lost):
  workdir = artifacts.Workdir(tmp_path)
  for stage in (WRITES, READS):
    workdir.execute(stage, cfg)
  before = content(workdir.folder("scores"))
  (workdir.folder("collection") / lost).unlink()
  with pytest.raises(FileNotFoundError, match=f"{workdir.folder('collection')}"):
    workdir.execute(READS, cfg)
  assert content(workdir.folder("scores")) == before


@pytest.mark.parametrize("left", [5, 0])
def test_an_input_that_was_cut_where_a_record_ends_is_named(tmp_path, cfg, left):
  workdir = artifacts.Workdir(tmp_path)
  workdir.execute(WRITES, cfg)
  (path,) = tfrecord.shard_paths(workdir.folder("collection"), "queries")
  written, cut = path.read_bytes(), b"".join(map(tfrecord.framed, itertools.islice(tfrecord.read(path), left)))
  path.write_bytes(cut)
  said = f"{path}: {len(cut):,} bytes are there, {len(written):,} were written; delete the folder {path.parent}"
  with pytest.raises(files.CutError, match=re.escape(said)):
    workdir.execute(READS, cfg)
  # Whole again, it is read; and where an earlier manifest does not know better, so is what is left.
  path.write_bytes(written)
  workdir.execute(READS, cfg)
  assert len((workdir.folder("scores") / "ids").read_text().split()) == 99
  manifest = workdir.manifest("collection")
  del manifest["records"]
  workdir.write(f"collection/{artifacts.MANIFEST}", json.dumps(manifest))
  path.write_bytes(cut)
  workdir.execute(READS, cfg)
  assert len((workdir.folder("scores") / "ids").read_text().split()) == left


def test_the_command_says_it_in_a_line(tmp_path):
  command = [sys.executable, "-m", "idistill_jax.stages.collection", "--config=configs/quickstart.py:tiny"]
  gone = f"{tmp_path}/gone"
  for said, flags in {
    "/proc/no": ["--workdir=/proc/no"],
    gone: [f"--workdir={tmp_path}", "--config.collection.source=jsonl", f"--config.collection.path={gone}"],
  }.items():
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr, done.stderr
  assert not list(tmp_path.glob("*/manifest.json"))
