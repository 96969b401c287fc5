"""What a stage took counts, however its attempts ended."""

import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable

import bucket
import pytest

from idistill_jax import config
from idistill_jax.workdir import artifacts, seconds

# Of no pieces and no checkpoints: nothing is kept between its beginning and its end.
LONG = """
import sys, time, types
from idistill_jax import config
from idistill_jax.workdir import artifacts, seconds

seconds.WRITTEN_SECONDS = 0.05

def run(job):
  now = time.monotonic()
  seconds.time = types.SimpleNamespace(monotonic=lambda: now + 8)
  time.sleep(600)

artifacts.Workdir(sys.argv[1]).execute(artifacts.Stage(name="labels", reads=(), config=(), run=run),
                                       config.Config(name="x"))
"""


def labels(run: Callable[[artifacts.Job], None] = lambda job: None) -> artifacts.Stage:
  return artifacts.Stage(name="labels", reads=(), config=(), run=run)


def until(is_so: Callable[[], object]) -> None:
  deadline = time.monotonic() + 60
  while not is_so():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def so_far(workdir: artifacts.Workdir) -> float:
  begun = workdir.begun("labels")
  return 0.0 if begun is None else begun.took.seconds


def test_what_a_killed_attempt_took_is_counted(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  run = subprocess.Popen([sys.executable, "-c", LONG, str(tmp_path)])
  try:
    until(lambda: so_far(workdir) > 7)
  finally:
    run.kill()
    run.wait()
  assert workdir.execute(labels(), config.Config(name="x"))["seconds"] > 7


def test_devices_count_for_as_long_as_each_attempt_had_them(tmp_path, monkeypatch):
  now = 1000.0
  monkeypatch.setattr(seconds, "time", types.SimpleNamespace(monotonic=lambda: now))
  # Of an earlier version, which did not say on what.
  (tmp_path / seconds.FILE).write_text("90.5")
  for devices, kind, took in ((8, "v5e", 10), (4, "v5e", 5), (1, "H100", 2)):
    def hardware(devices: int = devices, kind: str = kind) -> dict[str, object]:
      nonlocal now
      now += 1  # until they are there
      return {"processes": 2, "devices": devices, "kind": kind}

    spent = seconds.Spent(tmp_path, hardware)
    now += took - 1
    spent.write()
  seconds.Spent(tmp_path).write()
  assert seconds.read((tmp_path / seconds.FILE).read_text()) == seconds.Took(
    seconds=107.5, device_seconds={"v5e": 100, "H100": 2})


def test_it_is_sent_more_rarely_and_nothing_is_written_after_the_end(tmp_path, monkeypatch):
  monkeypatch.setattr(seconds, "WRITTEN_SECONDS", 0.01)
  monkeypatch.setattr(seconds, "SENT_SECONDS", 0.3)
  sent = []

  def send() -> None:
    sent.append(time.monotonic())
    raise OSError("the bucket does not answer")

  spent, file, threads = seconds.Spent(tmp_path), tmp_path / seconds.FILE, threading.active_count()
  with pytest.raises(KeyError), spent.kept(send):
    until(file.exists)
    assert not sent
    until(lambda: len(sent) == 2)
    raise KeyError
  assert sent[1] - sent[0] > 0.3 and threading.active_count() == threads
  # Its last word is the end.
  assert spent.so_far().seconds - seconds.read(file.read_text()).seconds < 0.3
  file.unlink()
  time.sleep(0.1)
  assert not list(tmp_path.iterdir())


def test_another_machine_sees_in_the_bucket_what_a_stage_takes(tmp_path, monkeypatch):
  monkeypatch.setattr(seconds, "WRITTEN_SECONDS", 0.01)
  monkeypatch.setattr(seconds, "SENT_SECONDS", 0.1)
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  with bucket.running("gs") as server:
    workdir = artifacts.Workdir(f"{server.url}/run")
    workdir.execute(labels(lambda job: until(lambda: so_far(workdir) > 0.1)), config.Config(name="x"))
    assert workdir.manifest("labels")["seconds"] > 0.1
    assert not [name for name in workdir._store.written("labels") if name != artifacts.MANIFEST]
