"""Workdirs in a bucket: the same as on a disk, from any machine, and no less whole when something is killed."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from unittest import mock

import bucket as bucket_lib
import databases_test
import encoded
import jax
import jobs
import killed
import numpy as np
import pytest
import tiny_world

from idistill_jax import cli, config, dry_run, peers, processes, sharding
from idistill_jax.llm import cache, session
from idistill_jax.models import table
from idistill_jax.train import checkpoint, inference, loop, pieces, windows
from idistill_jax.workdir import artifacts, inputs, leases, locks, remote, store
from idistill_jax.workdir import begun as begun_lib


@pytest.fixture(scope="module", params=bucket_lib.SERVERS)
def server(request):
  with bucket_lib.running(request.param) as found:
    yield found


@pytest.fixture(scope="module")
def google():
  with bucket_lib.running("gs") as found:
    yield found


class Ended(Exception):
  pass


def _end(*args, **kwargs) -> None:
  raise Ended


class Machines:
  """Machines with nothing but a bucket in common: each has another folder for temporary files."""

  def __init__(self, url: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    self.url, self._folder, self._monkeypatch = url, folder, monkeypatch

  def workdir(self, machine: str) -> artifacts.Workdir:
    (self._folder / machine).mkdir(exist_ok=True)
    self._monkeypatch.setattr("tempfile.tempdir", str(self._folder / machine))
    return artifacts.Workdir(self.url)


@pytest.fixture
def machines(server, tmp_path, monkeypatch) -> Machines:
  return Machines(f"{server.url}/{tmp_path.name}/run", tmp_path, monkeypatch)


@pytest.fixture
def cfg() -> config.Config:
  return config.Config(name="x")


def writes(text: str, name: str = "labels", **more) -> artifacts.Stage:
  def run(job: artifacts.Job) -> None:
    (job.out / "parts").mkdir(exist_ok=True)
    (job.out / "parts" / "text").write_text(text)
    job.cache.mkdir(exist_ok=True)
    (job.cache / "answers").write_text(text)
    job.publish("page.html", text)

  return artifacts.Stage(**{"name": name, "reads": (), "config": ("labels",), "run": run, **more})


def test_two_machines_are_not_at_one_stage_and_a_lost_one_holds_back_for_a_while_alone(machines, cfg, monkeypatch):
  monkeypatch.setattr(leases, "LEASE_SECONDS", 2.0)
  began = []

  def meanwhile(job: artifacts.Job) -> None:
    began.append(job.out)
    if len(began) == 1:
      with pytest.raises(locks.BusyError, match=rf"labels: .*process: {socket.gethostname()} {os.getpid()}"):
        machines.workdir("b").execute(stage, cfg)

  stage = artifacts.Stage(name="labels", reads=(), config=(), run=meanwhile)
  machines.workdir("a").execute(stage, cfg)
  assert len(began) == 1
  # What a machine leaves that is gone with its lease: nobody writes it any more.
  lost = leases.Leases(machines.workdir("c")._store.path(".locks"))
  lost.worker, lost._said = "lost", lambda: b"elsewhere 7 lost 1"
  monkeypatch.setattr(lost, "_keep_writing", lambda: None)
  assert lost.take("labels", None, lost.names())
  waited = time.monotonic()
  machines.workdir("b").execute(stage, cfg)
  assert len(began) == 2 and time.monotonic() - waited > leases.LEASE_SECONDS


def test_whether_a_run_is_at_a_stage_shows_elsewhere(machines, cfg, monkeypatch):
  seen, is_held = [], lambda: machines.workdir("b")._store.is_held("labels")
  stage = artifacts.Stage(name="labels", reads=(), config=(), run=lambda job: seen.append(is_held()))
  machines.workdir("a").execute(stage, cfg)
  assert seen == [True] and not is_held()
  # Nobody writes the lease of a machine that is gone: it is void in the end.
  lost = leases.Leases(machines.workdir("c")._store.path(".locks"))
  lost.worker, lost._said = "lost", lambda: b"elsewhere 7 lost 1"
  monkeypatch.setattr(lost, "_keep_writing", lambda: None)
  assert lost.take("labels", None, lost.names()) and is_held()
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.0)
  assert not is_held()


PAUSED = """
import sys
from idistill_jax import config, processes
from idistill_jax.workdir import artifacts, leases
leases.LEASE_SECONDS = 1.0

def run(job):
  (job.out / "parts").mkdir()
  (job.out / "parts" / "text").write_text("of the paused")
  job.cache.mkdir(exist_ok=True)
  (job.cache / "paid").write_text("of the paused")
  print("begun", flush=True)
  sys.stdin.readline()

with processes.joined(None):
  artifacts.Workdir(sys.argv[1]).execute(
    artifacts.Stage(name="labels", reads=(), config=("labels",), run=run), config.Config(name="x"))
"""


@pytest.mark.parametrize("another_takes_over", [True, False])
def test_a_machine_that_was_paused_while_another_took_over_commits_nothing(
    machines, server, cfg, tmp_path, monkeypatch, another_takes_over):
  monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
  (tmp_path / "paused").mkdir()
  paused = subprocess.Popen(
    [sys.executable, "-c", PAUSED, machines.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True, env=os.environ | server.environment | {"TMPDIR": str(tmp_path / "paused")})
  try:
    assert paused.stdout.readline() == "begun\n"
    paused.send_signal(signal.SIGSTOP)
    other = machines.workdir("b")
    if another_takes_over:
      other.execute(writes("of the other"), cfg)
    else:
      time.sleep(2 * leases.LEASE_SECONDS)
    before = {name: tag for name, tag in other._store._find("").items() if ".locks/" not in name}
    paused.send_signal(signal.SIGCONT)
    said = paused.communicate("\n", timeout=60)[1]
  finally:
    paused.kill()
  if another_takes_over:
    assert paused.returncode == peers.LOST, said
    assert "another has taken over" in said and "Traceback" not in said
    # What was paid for is sent all the same, and nothing else.
    after = {name: tag for name, tag in other._store._find("").items() if ".locks/" not in name}
    assert after.pop("cache/paid") and after == before
    # Nobody waits for what both left: a lease that is alive would hold up for longer than a busy machine does.
    monkeypatch.setattr(leases, "LEASE_SECONDS", 60.0)
    waited = time.monotonic()
    machines.workdir("c").execute(writes("of a third", name="labels", config=("scores",)), cfg)
    assert time.monotonic() - waited < leases.LEASE_SECONDS / 2
  else:
    assert paused.returncode == 0, said
    assert (other.folder("labels") / "parts" / "text").read_text() == "of the paused"


@pytest.mark.parametrize("before", ["send", "rm_file", "rm", "copy", "pipe_file"])
def test_of_two_that_commit_at_once_one_does(machines, cfg, monkeypatch, before):
  """Wherever in a commit another one comes, the first ends: what is there afterwards is whole, or not done."""
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
  monkeypatch.setattr(leases.Leases, "_keep_writing", lambda self: None)
  first, slow, quick = (machines.workdir(name) for name in "zab")

  def commit(one: artifacts.Workdir, name: str) -> None:
    (one.root / name).mkdir()
    for file in (artifacts.MANIFEST, "text"):
      (one.root / name / file).write_text(json.dumps({"key": name}))
    one._store.commit(name, "labels", last=artifacts.MANIFEST)

  def meanwhile(*args, **more):
    if ".lease" in str(args[0]):  # written all the time
      return request(*args, **more)
    undone.undo()
    with quick._store.alone("labels", "labels"):
      quick._store.remove("mine")  # as whoever takes over does
      commit(quick, "other")
    return request(*args, **more)

  commit(first, "first")
  with slow._store.alone("labels", "labels"), pytest.MonkeyPatch.context() as undone:
    where = slow._store if before == "send" else slow._store._fs
    request = getattr(where, before)
    undone.setattr(where, before, meanwhile)
    with pytest.raises(leases.LostError):
      commit(slow, "mine")
  found = machines.workdir("c")
  assert (found.manifest("labels") or {}).get("key") == (None if before == "rm_file" else "other")
  if before == "rm":
    # What the other has committed under a name that was there before is gone, and its manifest is not.
    with pytest.raises(OSError, match=f"^{machines.url}/labels: text is not what was committed there.* run its stage"):
      found.folder("labels")
  elif before != "rm_file":
    assert (found.folder("labels") / "text").read_text() == '{"key": "other"}'


@pytest.mark.parametrize(("before", "at"), [
  ("rm_file", "mine"), ("copy", "mine"), ("pipe_file", "mine"), ("pipe_file", "labels"),
])
def test_what_a_run_that_took_over_is_still_at_work_on_stays(machines, monkeypatch, before, at):
  """Both use one working folder: the first, woken within its commit, neither commits a mixture nor sweeps up.

  at: where the other is at work, `labels` where it is within its own commit.
  """
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
  monkeypatch.setattr(leases.Leases, "_keep_writing", lambda self: None)
  slow, quick = machines.workdir("a"), machines.workdir("b")
  with contextlib.ExitStack() as at_work, pytest.MonkeyPatch.context() as undone:
    request = getattr(slow._store._fs, before)

    def meanwhile(*args, **more):
      if ".lease" in str(args[0]):
        return request(*args, **more)
      undone.undo()
      at_work.enter_context(quick._store.alone("labels", "labels"))
      quick._store._fs.pipe_file(f"{quick._store._base}/{at}/text", b"of the other, half")
      return request(*args, **more)

    for name in ("labels", "mine"):
      (slow.root / name).mkdir()
      for file in (artifacts.MANIFEST, "text"):
        (slow.root / name / file).write_text(json.dumps({"key": name}))
    slow._store.send("labels")
    with slow._store.alone("labels", "labels"):
      undone.setattr(slow._store._fs, before, meanwhile)
      with pytest.raises(leases.LostError):
        slow._store.commit("mine", "labels", last=artifacts.MANIFEST)
    assert quick._store.read(f"{at}/text") == b"of the other, half"
    # Only what was copied before the other took over is whole, and what was changed since is not taken for it.
    assert (quick.manifest("labels") is not None) == (before == "pipe_file")
    if at == "labels":
      with pytest.raises(OSError, match="labels: text is not what was committed there"):
        quick.folder("labels")
    elif before == "pipe_file":
      assert (quick.folder("labels") / "text").read_text() == '{"key": "mine"}'


def test_what_one_machine_did_another_finds(machines, cfg):
  stage = writes("first")
  machines.workdir("a").execute(stage, cfg)
  other = machines.workdir("b")
  assert other.is_done(stage, cfg)
  assert (other.folder("labels") / "parts" / "text").read_text() == "first"
  assert (other.cache / "answers").read_text() == "first"
  assert other.read("page.html") == "first"
  assert other.manifest("labels") == json.loads((other.folder("labels") / artifacts.MANIFEST).read_text())
  # Made again there, it is another one here as well.
  cfg.labels.lists += 1
  assert not other.is_done(stage, cfg)
  other.execute(writes("second"), cfg)
  assert (machines.workdir("a").folder("labels") / "parts" / "text").read_text() == "second"


def test_what_something_removed_here_of_a_committed_folder_is_fetched_again(machines, cfg):
  machines.workdir("a").execute(writes("first"), cfg)
  home = machines.workdir("b")
  folder = home.folder("labels")
  (folder / "parts" / "text").unlink()
  assert (home.folder("labels") / "parts" / "text").read_text() == "first"
  # The control: what is whole is not fetched once more.
  (folder / "mark").touch()
  assert (home.folder("labels") / "mark").exists()


def test_names_that_look_like_patterns_are_those_files_and_no_others(server, tmp_path, monkeypatch, cfg):
  odd, plain = (Machines(f"{server.url}/{tmp_path.name}/{name}", tmp_path, monkeypatch) for name in ("r[u]n", "run"))
  plain.workdir("a").execute(writes("stays"), cfg)

  def named(job: artifacts.Job) -> None:
    for name in "q[1].trec", "q1.trec", "what?", "a*b":
      (job.out / name).write_text(name)

  for lists in 1, 2:
    cfg.labels.lists = lists
    odd.workdir("a").execute(writes("", run=named), cfg)
    assert {path.name for path in odd.workdir("b").folder("labels").iterdir()} == {
      "q[1].trec", "q1.trec", "what?", "a*b", artifacts.MANIFEST}
  assert odd.workdir("a").names() == ["config.json", "labels"] or ".locks" in odd.workdir("a").names()
  assert not any(name.startswith(".labels-") for name in odd.workdir("a").names())
  assert (plain.workdir("c").folder("labels") / "parts" / "text").read_text() == "stays"
  with pytest.raises(ValueError, match="may hold no '::'"):
    artifacts.Workdir(f"{server.url}/a::b")


def test_what_was_fetched_in_part_of_an_older_folder_goes(machines, cfg, monkeypatch):
  for text in "first", "second":
    cfg.labels.lists += 1
    machines.workdir("a").execute(writes(text), cfg)
    home = machines.workdir("b")
    if text == "first":
      with monkeypatch.context() as patched, pytest.raises(Ended):
        patched.setattr(home._store, "_get", _end)
        home.folder("labels")
  assert (home.folder("labels") / "parts" / "text").read_text() == "second"
  assert not list((home.root / ".parts").iterdir())


def test_inputs_are_fetched_and_missing_ones_named(machines, cfg):
  def run(job: artifacts.Job) -> None:
    (job.out / "copy").write_text((job.inputs["labels"] / "parts" / "text").read_text())

  reader = artifacts.Stage(name="scores", reads=("labels",), config=(), run=run)
  with pytest.raises(inputs.MissingInputError, match=rf"stages\.labels --config=\.\.\. --workdir={machines.url}"):
    machines.workdir("a").execute(reader, cfg)
  machines.workdir("a").execute(writes("first"), cfg)
  machines.workdir("b").execute(reader, cfg)
  assert (machines.workdir("a").folder("scores") / "copy").read_text() == "first"


def test_what_is_committed_is_what_its_manifest_holds(machines, cfg):
  """Wherever it is copied to; there, and by earlier versions, nothing is said of it."""
  home = machines.workdir("a")
  home.execute(writes("first"), cfg)
  fs, base = home._store._fs, home._store._base
  fs.copy([f"{base}/labels/{name}" for name in ("parts/text", artifacts.MANIFEST)],
          [f"{base}/copied/labels/{name}" for name in ("parts/text", artifacts.MANIFEST)])  # fmt: skip
  copied = Machines(f"{machines.url}/copied", machines._folder, machines._monkeypatch)
  assert (copied.workdir("b").folder("labels") / "parts" / "text").read_text() == "first"
  assert (machines.workdir("a").folder("labels") / "parts" / "text").exists()
  for change in (lambda: fs.pipe_file(f"{base}/labels/more", b"1"), lambda: fs.rm_file(f"{base}/labels/parts/text")):
    change()
    with pytest.raises(OSError, match=r"labels: .* is not what was committed there"):
      machines.workdir("c").folder("labels")
  # Who has fetched it before has it as it was.
  assert (machines.workdir("a").folder("labels") / "parts" / "text").exists()
  # What only says more of a file, as a rule does that moves old ones elsewhere, writes nothing.
  said = {"size": 1, "generation": "7", "etag": "a"}
  assert remote.writing(said) == remote.writing(said | {"etag": "b"}) != remote.writing(said | {"generation": "8"})


def test_who_waits_hears_of_each_few_files_that_are_sent_copied_and_fetched(machines, tmp_path, monkeypatch):
  moved = []
  monkeypatch.setattr(remote, "_AT_ONCE", 2)
  monkeypatch.setattr(processes, "moved", lambda: moved.append(1))

  def run(job: artifacts.Job) -> None:
    for name in "abcde":
      (job.out / name).write_text(name)

  machines.workdir("a").execute(artifacts.Stage(name="labels", reads=(), config=(), run=run), config.Config(name="x"))
  assert len(moved) >= 3 + 3  # sent by twos, and copied
  moved.clear()
  folder = machines.workdir("b").folder("labels")
  assert len(moved) == 3 and "".join((folder / name).read_text() for name in "abcde") == "abcde"


def test_a_folder_is_no_result_before_its_manifest(machines, cfg, monkeypatch):
  """Killed at any request of a commit: the stage is as it was, or not done, and the next run makes it whole."""
  machines.workdir("a").execute(writes("first"), cfg)
  cfg.labels.lists += 1
  for killed_at in ("rm_file", "rm", "copy", "pipe_file"):
    workdir = machines.workdir("a")
    request = getattr(workdir._store._fs, killed_at)
    # Leases are written all the time, and are no part of it.
    end = lambda path, *rest, request=request, **more: (
      request(path, *rest, **more) if ".lease" in str(path) else _end())
    with monkeypatch.context() as patched, pytest.raises(Ended):
      patched.setattr(workdir._store._fs, killed_at, end)
      workdir.execute(writes("second"), cfg)
    other = machines.workdir("b")
    assert not other.is_done(writes("second"), cfg)
    if other.manifest("labels") is not None:
      assert (other.folder("labels") / "parts" / "text").read_text() == "first"
  machines.workdir("a").execute(writes("second"), cfg)
  other = machines.workdir("b")
  assert other.is_done(writes("second"), cfg)
  assert (other.folder("labels") / "parts" / "text").read_text() == "second"
  assert other._store.folders(".labels-") == []


def test_in_a_bucket_too_another_ones_folder_is_refused_and_what_a_kill_left_is_not(machines, cfg, monkeypatch):
  workdir = machines.workdir("a")
  theirs = f"{workdir._store._base}/labels/thesis.txt"
  workdir._store._fs.pipe_file(theirs, b"precious")
  with pytest.raises(FileExistsError, match=f"{machines.url}/labels: holds files"):
    workdir.execute(writes("first"), cfg)
  assert workdir._store._fs.cat_file(theirs) == b"precious"
  workdir._store._fs.rm_file(theirs)

  # Killed in a commit, then with another config in the sweep before its own folder is there: none is beside the half.
  with monkeypatch.context() as patched, pytest.raises(Ended):
    patched.setattr(workdir._store._fs, "pipe_file", lambda path, *rest, request=workdir._store._fs.pipe_file, **more: (
      request(path, *rest, **more) if ".lease" in str(path) else _end()))
    workdir.execute(writes("first"), cfg)
  other = machines.workdir("b")
  assert other._store.written("labels") and other.manifest("labels") is None
  other.refuse_foreign("labels")
  cfg.labels.lists += 1
  with monkeypatch.context() as patched, pytest.raises(Ended):
    patched.setattr(other._store, "receive", lambda *_, **__: _end())
    other.execute(writes("second"), cfg)
  assert other._store.folders(".labels-") == []
  other.execute(writes("second"), cfg)
  assert (machines.workdir("a").folder("labels") / "parts" / "text").read_text() == "second"


def test_a_stage_goes_on_where_another_machine_left_it(machines, cfg):
  def run(job: artifacts.Job) -> None:
    log = job.out / "log"
    steps = len(log.read_text().split()) if log.exists() else 0
    with log.open("a") as out:
      out.write(f"{steps} ")
    if steps < 2:
      raise RuntimeError("ended")

  stage = artifacts.Stage(name="scores", reads=(), config=(), run=run)
  for machine in ("a", "b"):
    with pytest.raises(RuntimeError, match="ended"):
      machines.workdir(machine).execute(stage, cfg)
  machines.workdir("a").execute(stage, cfg)
  assert (machines.workdir("c").folder("scores") / "log").read_text() == "0 1 2 "


def test_answers_that_were_not_sent_are_not_lost(machines, cfg):
  machines.workdir("a").execute(writes("first"), cfg)
  # A process was killed after this was written and before it was sent.
  (machines.workdir("a").cache / "answers").write_text("first and more")
  assert (machines.workdir("b").cache / "answers").read_text() == "first"
  assert (machines.workdir("a").cache / "answers").read_text() == "first and more"
  machines.workdir("a").execute(artifacts.Stage(name="scores", reads=(), config=(), run=lambda job: None), cfg)
  assert (machines.workdir("b").cache / "answers").read_text() == "first and more"


def test_what_changed_here_and_there_is_put_together_or_the_buckets(machines, cfg, caplog):
  """Machines a, b, a in turn: what was killed on the first had not sent all it paid for."""
  def asks(*names: str) -> artifacts.Stage:
    def run(job: artifacts.Job) -> None:
      databases_test.answer(job.cache / session.CACHE, *names)
      databases_test.spend(job.cache / session.SPENT, *(1 for _ in names))
      (job.cache / "note").write_text(" ".join(names))

    return artifacts.Stage(name="labels", reads=(), config=(), run=run)

  machines.workdir("a").execute(asks("one"), cfg)
  asks("of a", "of a too").run(artifacts.Job(
    cfg=cfg, out=machines.workdir("a").root, inputs={}, cache=machines.workdir("a").cache))
  machines.workdir("b").execute(asks("of b"), cfg)
  nothing = artifacts.Stage(name="scores", reads=(), config=(), run=lambda job: None)
  machines.workdir("a").execute(nothing, cfg)
  for machine in ("a", "b", "c"):
    found = machines.workdir(machine).cache
    assert databases_test.answers(found / session.CACHE) == {"one", "of a", "of a too", "of b"}, machine
    assert databases_test.spent(found / session.SPENT) == 4
    assert (found / "note").read_text() == "of b"
  assert "note was changed here" in caplog.text
  assert (machines.workdir("a").root / ".replaced" / "cache" / "note").read_text() == "of a of a too"


def test_a_database_is_sent_whole_and_without_what_a_kill_left_beside_it(machines, cfg):
  path = machines.workdir("a").cache / session.CACHE
  with cache.AnswerCache(path) as live:
    live.put_rows(databases_test.rows("of the killed"))
    killed = {beside: pathlib.Path(f"{path}{beside}").read_bytes() for beside in ("", "-wal", "-shm")}
  for beside, state in killed.items():
    pathlib.Path(f"{path}{beside}").write_bytes(state)
  nothing = artifacts.Stage(name="scores", reads=(), config=(), run=lambda job: None)
  machines.workdir("a").execute(nothing, cfg)

  def more(job: artifacts.Job) -> None:
    databases_test.answer(job.cache / session.CACHE, *(f"later {i}" for i in range(1000)))

  machines.workdir("a").execute(artifacts.Stage(name="labels", reads=(), config=(), run=more), cfg)
  other = machines.workdir("b")
  assert list(other._store.written("cache")) == [session.CACHE]
  assert len(databases_test.answers(other.cache / session.CACHE)) == 1001
  # While a process has it open, what it committed is sent as well.
  with cache.AnswerCache(path) as live:
    live.put_rows(databases_test.rows("of the living"))
    machines.workdir("a").execute(writes("x", name="scores"), cfg)
    assert "of the living" in databases_test.answers(machines.workdir("c").cache / session.CACHE)


def test_what_is_deleted_here_is_deleted_there(machines, cfg):
  machines.workdir("a").execute(writes("first"), cfg)
  assert (machines.workdir("b").cache / "answers").exists()

  def drops(job: artifacts.Job) -> None:
    (job.cache / "answers").unlink()

  machines.workdir("a").execute(artifacts.Stage(name="scores", reads=(), config=(), run=drops), cfg)
  assert not (machines.workdir("b").cache / "answers").exists()
  # The control: what another machine wrote and this one never saw stays.
  other = machines.workdir("b")
  (other.cache / "of b").write_text("1")
  other._store.send("cache")
  (machines.workdir("a").root / "cache" / "of a").write_text("1")
  machines.workdir("a")._store.send("cache")
  assert {path.name for path in machines.workdir("c").cache.iterdir()} == {"of a", "of b"}


def test_processes_of_one_machine_receive_a_folder_together(machines, cfg):
  def run(job: artifacts.Job) -> None:
    for i in range(12):
      (job.out / f"part{i}").write_text(f"{i}")
    raise Ended

  stage = artifacts.Stage(name="scores", reads=(), config=(), run=run)
  with pytest.raises(Ended):
    machines.workdir("a").execute(stage, cfg)
  (working,) = machines.workdir("b")._store.folders(".scores-")
  stores = [machines.workdir("b")._store for _ in range(3)]
  together = threading.Barrier(len(stores))
  with concurrent.futures.ThreadPoolExecutor() as threads:
    list(threads.map(lambda one: (together.wait(), one.receive(working)), stores))
  assert {path.name for path in (stores[0].local / working).glob("part*")} == {f"part{i}" for i in range(12)}


def test_pieces_in_a_bucket_are_claimed_as_on_a_disk(server, tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
  folder = f"{server.url}/{tmp_path.name}/pieces"
  lost, alive = (pieces.Pieces(folder, "test", 30, np.full(1, 7)) for _ in range(2))
  held = next(next(lost.rounds()))
  for claimed in alive.rounds():
    for piece in claimed:
      alive.finish(piece, np.full(10, piece.start))
    if alive.left() == 10:
      # Of another machine, whence nothing more will come.
      monkeypatch.setattr(lost._leases, "_said", lambda: b"elsewhere 1 x 1")
  assert held == range(10) and alive.whole().tolist() == [float(i // 10 * 10) for i in range(30)]
  for one in (lost, alive):
    one.close()


def test_vectors_whose_pieces_are_sent_are_sent_with_the_commit_alone(google, cfg, tmp_path, tiny_weights, monkeypatch):
  machines, ends = Machines(f"{google.url}/vectors/run", tmp_path, monkeypatch), [processes.TERMINATED]
  cfg.encoder = tiny_world.encoder(tiny_weights)

  def run(job: artifacts.Job) -> None:
    inference.load_retriever(job.cfg, None, job).encode_passages(encoded.TEXTS, into=job.out / "passages.npy")
    assert (job.out / "passages.npy").exists()
    (job.out / "of no piece").write_text("kept")
    if ends:
      sys.exit(ends.pop())

  stage = artifacts.Stage(name="candidates", reads=(), config=("encoder",), run=run)
  with pytest.raises(SystemExit):
    machines.workdir("a").execute(stage, cfg)
  written = machines.workdir("b").begun("candidates").written
  assert "of no piece" in written and "passages.npy" not in written
  assert pieces.finished(written) == {"encode passages": (1, 1)}
  # On another machine it goes on with the pieces, and what is committed is whole.
  monkeypatch.setattr(inference.Forward, "_outputs", lambda *_: pytest.fail("a piece is made again"))
  machines.workdir("b").execute(stage, cfg)
  assert len(np.load(machines.workdir("c").folder("candidates") / "passages.npy")) == len(encoded.TEXTS)


KILLED = """
import os, signal, sys
import encoded, tiny_world
from idistill_jax import config
from idistill_jax.workdir import artifacts
from idistill_jax.train import inference

def run(job):
  inference.load_retriever(job.cfg, None, job).encode_passages(encoded.TEXTS, into=job.out / "passages.npy")
  assert (job.out / "passages.npy").exists()
  os.kill(os.getpid(), signal.SIGKILL)

root, weights = sys.argv[1:]
artifacts.Workdir(root).execute(artifacts.Stage(name="candidates", reads=(), config=("encoder",), run=run),
                                config.Config(name="x", encoder=tiny_world.encoder(weights)))
"""


def test_vectors_that_a_kill_left_are_not_sent_by_an_attempt_that_comes_to_none(
    google, cfg, tmp_path, tiny_weights, monkeypatch):
  """As a training that goes on after it, and sends all it has with every window."""
  machines = Machines(f"{google.url}/killed/run", tmp_path, monkeypatch)
  cfg.encoder = tiny_world.encoder(tiny_weights)
  local = machines.workdir("a").root
  monkeypatch.setenv("TMPDIR", str(tmp_path / "a"))
  with jobs.started(tmp_path / "logs", 1, "-c", KILLED, machines.url, tiny_weights) as job:
    assert job.wait(120) == [-signal.SIGKILL], job.said()
  assert list(local.glob(".candidates-*/passages.npy"))

  def run(job: artifacts.Job) -> None:
    (job.out / "metrics").write_text("of a window")
    job.keep("")
    # Here already: at its end it would take away what it had sent.
    written = machines.workdir("b").begun("candidates").written
    assert "metrics" in written and pieces.finished(written) == {"encode passages": (1, 1)}
    assert "passages.npy" not in written
    raise Ended

  with pytest.raises(Ended):
    machines.workdir("a").execute(artifacts.Stage(name="candidates", reads=(), config=("encoder",), run=run), cfg)


def test_what_a_killed_process_left_unfinished_is_neither_sent_nor_committed(machines, cfg):
  def run(job: artifacts.Job) -> None:
    assert "rankings-00000" in killed.in_a_shard(job.out)
    (job.out / ".kept").write_text("hidden, and whole")
    job.keep("")
    written = machines.workdir("b").begun("labels").written
    assert ".kept" in written and not any("rankings" in name for name in written)

  machines.workdir("a").execute(artifacts.Stage(name="labels", reads=(), config=(), run=run), cfg)
  for machine in ("a", "b"):
    folder = machines.workdir(machine).folder("labels")
    assert {path.name for path in folder.iterdir()} == {artifacts.MANIFEST, ".kept"}


def test_a_claim_is_its_workers_although_the_answer_to_it_was_lost(server, tmp_path):
  """Asked for again, as a client does, it is refused: the lease is there already."""
  one, other = (leases.Leases(f"{server.url}/{tmp_path.name}") for _ in range(2))
  server.lost = 1
  assert one.take("0", None, one.names()) and server.lost == 0
  one.hold("0")
  # The control: what another one has claimed is refused for good, and what is given back holds nobody up.
  assert not other.take("0", None, set())
  one.close()
  assert other.take("0", None, other.names())
  other.close()


def test_every_process_keeps_its_own_windows(machines, cfg, monkeypatch):
  def run(job: artifacts.Job) -> None:
    for number in range(2):
      windows.path(job.out, number).write_text(f"{number}")
    job.keep(windows.path(job.out, 1).name)
    raise Ended

  stage = artifacts.Stage(name="scores", reads=(), config=(), run=run)
  monkeypatch.setattr(processes, "is_first", lambda: False)
  with pytest.raises(Ended):
    machines.workdir("a").execute(stage, cfg)
  other = machines.workdir("b")
  (working,) = other._store.folders(".scores-")
  assert [name for name in other._store.written(working)] == ["windows-00001.jsonl"]


def test_what_fails_for_a_moment_is_tried_again(machines, cfg, server):
  server.busy = 3
  machines.workdir("a").execute(writes("first"), cfg)
  server.busy = 2
  assert (machines.workdir("b").folder("labels") / "parts" / "text").read_text() == "first"
  assert server.busy == 0


# What TensorStore sends, whose client is another than that of the rest: an array's part, whose name it draws.
ARRAYS = r"^(POST|PUT) .*ocdbt\.process_0(/|%2F)d(/|%2F)[0-9a-f]{32}\b"


@pytest.mark.parametrize("status", [503, None], ids=["busy", "broken off"])
def test_arrays_that_fail_to_be_sent_for_a_moment_are_sent_again(server, tmp_path, monkeypatch, status):
  for name, value in {"status": status, "busy": 3, "busy_with": ARRAYS}.items():
    monkeypatch.setattr(server, name, value)
  state = {"weights": jax.numpy.arange(8.0)}
  checkpoint.save_model(f"{server.url}/{tmp_path.name}", state)
  assert server.busy == 0
  found = checkpoint.load_model(f"{server.url}/{tmp_path.name}", state)
  np.testing.assert_array_equal(found["weights"], state["weights"])


def test_what_is_wrong_with_the_bucket_is_said_with_the_workdirs_name(server, tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  url = f"{server.url}/{tmp_path.name}"
  save = lambda url: artifacts.Workdir(url).write("x", f"of {url}")
  read = lambda url: artifacts.Workdir(url).read("x")
  monkeypatch.setattr(server, "status", 403)
  for touch in (save, read, lambda url: artifacts.Workdir(url).names()):
    monkeypatch.setattr(server, "busy", 99)
    with pytest.raises(OSError, match=f"(?s)^{url}: .*; are there credentials for it"):
      touch(url)
  # Those that claim pieces and write them, and what writes and reads models.
  piece = lambda url: pieces.Pieces(url, "test", 30, np.full(1, 7))
  lease = lambda url: leases.Leases(url).take("0", None, leases.Leases(url).names())
  state = {"weights": jax.numpy.arange(8.0)}
  for touch, what in (
      (piece, "test"), (lease, "leases"), (lambda url: checkpoint.save_model(url, state), "model"),
      (lambda url: checkpoint.load_model(url, state), "model"), (checkpoint.Checkpoints, "checkpoints")):
    with pytest.raises(OSError, match=f"(?s)^{url}/{what}.*; are there credentials for it") as raised:
      touch(f"{url}/{what}" if touch is not piece else url)
    assert "\n" not in str(raised.value)
  server.busy = 0
  save(url)  # the control
  nowhere = url.replace(bucket_lib.NAME, "nowhere")
  with pytest.raises(FileNotFoundError, match=f"^{nowhere}: no such bucket"):
    save(nowhere)


def test_taken_over_between_a_disk_and_a_bucket(machines, cfg, tmp_path):
  stage, disk = writes("first"), artifacts.Workdir(tmp_path / "disk")
  disk.execute(stage, cfg)
  assert machines.workdir("a").take_over(stage, cfg, disk)
  again = artifacts.Workdir(tmp_path / "again")
  assert again.take_over(stage, cfg, machines.workdir("b"))
  assert (again.folder("labels") / "parts" / "text").read_text() == "first"


TRAINS = """
import dataclasses, pathlib, sys, time
import tiny_world
from absl import logging
from idistill_jax import config, processes, sharding
from idistill_jax.workdir import artifacts
from idistill_jax.train import checkpoint, loop

lists, weights, root, pause = sys.argv[1:]
logging.set_verbosity(logging.INFO)
settle = loop.settle
loop.settle = lambda *of: (time.sleep(float(pause)), settle(*of))[1]

def run(job):
  training = tiny_world.training(pathlib.Path(lists), weights, sharding.make_mesh(config.Mesh()), pairs=True)
  params = loop.train(dataclasses.replace(
    training, folder=job.out, checkpoints=job.shared / artifacts.CHECKPOINTS, checkpoint_every=2, keep=job.keep))
  checkpoint.save_model(job.shared / "model", params)

with processes.joined(None):
  artifacts.Workdir(root).execute(
    artifacts.Stage(name="train_ranker", reads=(), config=(), run=run), config.Config(name="x"))
"""


@dataclasses.dataclass(frozen=True)
class Trainings:
  """The same eight steps of the tiny ranker, on any machine and in any workdir."""

  folder: pathlib.Path
  weights: str

  @contextlib.contextmanager
  def start(self, machine: str, root: str, pause: float = 0.0) -> Iterator[jobs.Job]:
    """pause: seconds after each step, so that it can be ended between two."""
    (self.folder / machine).mkdir()
    what = ("-c", TRAINS, str(self.folder), self.weights, root, str(pause))
    mine = {"TMPDIR": str(self.folder / machine)}
    with mock.patch.dict(os.environ, mine), jobs.started(self.folder / machine, 1, *what) as job:
      yield job

  def end(self, machine: str, root: str, how: signal.Signals, steps: int) -> int:
    """Starts one and ends it after so many steps, and when a checkpoint is there -> its exit code."""
    watching = artifacts.Workdir(root)
    with self.start(machine, root, pause=0.5) as job:
      metrics = lambda: next((self.folder / machine).glob(f"*/*/run/.train_ranker-*/{begun_lib.METRICS}"), None)
      while metrics() is None:
        assert job.processes[0].poll() is None, job.said()
        time.sleep(0.05)
      job.until(metrics(), lines=steps)
      whole = re.compile(r"checkpoints/\d+/commit_success\.txt")
      while not any(map(whole.fullmatch, watching.begun("train_ranker").written)):
        assert job.processes[0].poll() is None, job.said()
        time.sleep(0.1)
      job.processes[0].send_signal(how)
      return job.wait()[0]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory, tiny_weights) -> Trainings:
  made = Trainings(tmp_path_factory.mktemp("trainings"), tiny_weights)
  tiny_world.write_lists(made.folder)
  with made.start("undisturbed", str(made.folder / "disk")) as job:
    job.succeed()
  return made


@pytest.mark.parametrize(("scheme", "ends"), [("gs", [signal.SIGKILL]), ("s3", [signal.SIGTERM, signal.SIGKILL])])
def test_a_training_goes_on_from_the_checkpoints_in_the_bucket(trainings, tmp_path, monkeypatch, scheme, ends):
  with bucket_lib.running(scheme) as found:
    root = f"{found.url}/training/run"
    found.busy, found.busy_with = 3, ARRAYS
    for number, how in enumerate(ends):
      code = trainings.end(f"{scheme} {number}", root, how, steps=3 + 2 * number)
      assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: processes.TERMINATED}[how]
    assert found.busy == 0
    machines = Machines(root, tmp_path, monkeypatch)
    begun = machines.workdir("watching").begun("train_ranker")
    assert len(begun.metrics) >= 2 and min(begun.written.values()) > 0
    with trainings.start(f"{scheme} last", root) as job:
      job.succeed()
    assert re.search(r"continues at step [2-7] of 8", job.said()), job.said()
    done = machines.workdir("afterwards")
    there = done.folder("train_ranker")
    assert [json.loads(line)["step"] for line in (there / begun_lib.METRICS).read_text().splitlines()] == [*range(1, 9)]
    assert not (there / artifacts.CHECKPOINTS).exists()
    network = tiny_world.training(trainings.folder, trainings.weights, one_device(), pairs=True).network
    of = lambda folder: table.flatten(inference.load_params(network, folder, one_device(), 0))
    expected = of(trainings.folder / "disk" / "train_ranker")
    for path, leaf in of(there).items():
      np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def one_device() -> jax.sharding.Mesh:
  return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


def test_a_training_that_was_taken_over_saves_no_checkpoint(google, cfg, tmp_path, tiny_weights, monkeypatch):
  machines = Machines(f"{google.url}/taken/run", tmp_path, monkeypatch)
  home = machines.workdir("a")
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
  monkeypatch.setattr(leases.Leases, "_keep_writing", lambda self: None)
  another = leases.Leases(home._store.path(".locks"))
  checkpoints = []

  def run(job: artifacts.Job) -> None:
    loop.train(dataclasses.replace(
      tiny_world.training(tmp_path, tiny_weights, one_device(), pairs=True), folder=job.out,
      checkpoints=job.shared / artifacts.CHECKPOINTS,
      keep=lambda name: (take_over(another, "train_ranker"), job.keep(name))[1]))

  save = loop.save
  monkeypatch.setattr(loop, "save", lambda *of: checkpoints.append(of[1]) or save(*of))
  with pytest.raises(leases.LostError):
    home.execute(artifacts.Stage(name="train_ranker", reads=(), config=(), run=run), cfg)
  assert not checkpoints
  another.close()


def take_over(another: leases.Leases, stage: str) -> None:
  assert not another.take(stage, None, another.names())
  time.sleep(2 * leases.LEASE_SECONDS)
  assert another.take(stage, None, another.names())


def test_a_run_that_was_taken_over_publishes_no_page_and_claims_no_piece(machines, cfg, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
  monkeypatch.setattr(leases.Leases, "_keep_writing", lambda self: None)
  home = machines.workdir("a")
  another, claimed = leases.Leases(home._store.path(".locks")), []

  def run(job: artifacts.Job) -> None:
    work = pieces.Pieces(job.pieces, "test", 30, np.full(1, 7), job.still_alone)
    with contextlib.closing(work):
      claims = next(work.rounds())
      claimed.append(next(claims))
      work.finish(claimed[0], np.zeros(10))
      job.publish("page.html", "first")
      take_over(another, "scores")
      home._store.remove(job.out.name)
      with contextlib.suppress(leases.LostError):
        claimed.append(next(claims))
    job.publish("page.html", "second")

  with pytest.raises(leases.LostError):
    home.execute(artifacts.Stage(name="scores", reads=(), config=(), run=run), cfg)
  other = machines.workdir("b")
  assert other.read("page.html") == "first" and claimed == [range(10)]
  # Nor is what was swept up begun anew: `status` would show a stage that nobody is at.
  assert other._store.folders(".scores-") == []
  another.close()


def test_a_dry_run_names_the_bucket_and_fetches_nothing(machines, cfg):
  machines.workdir("a").execute(writes("first"), cfg)
  other = machines.workdir("b")
  (said,) = dry_run.described(cli.Runner(cfg, other, ()), [writes("first")])
  assert f"writes  {machines.url}/labels/" in said and said.startswith("labels: done\n")
  assert not list(other.root.glob("labels*"))


def test_the_commands_take_a_bucket_where_they_take_a_folder(google, tmp_path, monkeypatch):
  url = f"{google.url}/commands/run"
  environment = os.environ | jobs.ONE_DEVICE | google.environment | {"TMPDIR": str(tmp_path)}
  run = lambda *words: subprocess.run([sys.executable, "-m", *words, f"--workdir={url}"], env=environment,
                                      capture_output=True, text=True, timeout=200)  # fmt: skip
  done = run("idistill_jax.stages.collection", "--config=configs/quickstart.py:tiny")
  assert done.returncode == 0, done.stderr
  told = run("idistill_jax.status")
  assert told.returncode == 0, told.stderr
  assert "1 of 12" in told.stdout and "collection" in told.stdout
  # The control: without the package that speaks the protocol it says which extra has it.
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(ModuleNotFoundError, match=r"source launch/env\.sh gcs"):
    store.at(url)
  assert isinstance(store.at(tmp_path), store.Folder)
