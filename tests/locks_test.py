"""One run at a time, whoever looks on."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Callable

import pytest

from idistill_jax.workdir import locks


def waiting(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
  """What happens while somebody waits for a lock."""
  monkeypatch.setattr(locks.time, "sleep", lambda seconds: meanwhile())


def test_who_looks_keeps_nobody_from_the_work(tmp_path: pathlib.Path, monkeypatch) -> None:
  path = tmp_path / ".labels.lock"
  path.touch()
  with open(path) as look:
    fcntl.flock(look, fcntl.LOCK_SH)
    waiting(monkeypatch, look.close)
    with locks.alone(path, "labels"):
      assert locks.is_held(path)
  assert not locks.is_held(path) and not path.exists()


def test_who_ends_meanwhile_leaves_it_to_the_next(tmp_path: pathlib.Path, monkeypatch) -> None:
  """The name goes with the run before, and so does what was opened under it."""
  path = tmp_path / ".labels.lock"
  with contextlib.ExitStack() as before:
    before.enter_context(locks.alone(path, "labels"))
    waiting(monkeypatch, before.close)
    with locks.alone(path, "labels"):
      assert path.exists() and locks.is_held(path)


def test_who_works_on_keeps_others_out(tmp_path: pathlib.Path) -> None:
  path = tmp_path / ".labels.lock"
  with locks.alone(path, "labels"):
    said = r"labels: another run is at work there, it holds .*\.labels\.lock"
    with pytest.raises(locks.BusyError, match=said), locks.alone(path, "labels"):
      pass
    assert locks.is_held(path), "who was turned away took nothing with it"


def test_where_there_are_no_locks_it_is_said_once(tmp_path: pathlib.Path, monkeypatch, caplog) -> None:
  with locks.alone(tmp_path / ".labels.lock", "labels"):
    pass
  assert not caplog.text, "the control: there are"

  def flock(lock: object, how: int) -> None:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, "flock", flock)
  for stage in ("labels", "scores"):
    with locks.alone(tmp_path / f".{stage}.lock", stage):
      pass
  (said,) = caplog.messages
  assert said.startswith(f"{tmp_path}: ") and "two runs there would not hold each other back" in said
