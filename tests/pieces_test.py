"""What pieces become once they are all finished: one array, in memory or in a file, never both a second time."""

import errno
import itertools
import os
import pathlib
import shutil
import time
import tracemalloc
from collections.abc import Callable
from unittest import mock

import bucket as bucket_lib
import numpy as np
import pytest
from etils import epath

from idistill_jax import processes
from idistill_jax.train import pieces

TEXTS, WIDTH = 4_000, 64
VALUES = np.random.default_rng(0).standard_normal((TEXTS, WIDTH)).astype(np.float32)


@pytest.fixture(params=["memory", "folder"])
def work(request, tmp_path, monkeypatch) -> pieces.Pieces:
  return finished(tmp_path / "pieces" if request.param == "folder" else None, monkeypatch)


@pytest.fixture(scope="module")
def bucket():
  with bucket_lib.running("gs") as found:
    yield found


def finished(folder: pathlib.Path | str | None, monkeypatch: pytest.MonkeyPatch) -> pieces.Pieces:
  """In 16 pieces."""
  monkeypatch.setattr(pieces, "LEAST", TEXTS // 16)
  made = pieces.Pieces(folder, "test", TEXTS, np.full(1, 7))
  for claimed in made.rounds():
    for piece in claimed:
      made.finish(piece, VALUES[piece.start:piece.stop])
  made.close()
  return made


def peak(do: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
  """What it gives, and how much memory it took, as a share of all values."""
  tracemalloc.start()
  try:
    return do(), tracemalloc.get_traced_memory()[1] / VALUES.nbytes
  finally:
    tracemalloc.stop()


def test_outputs_are_held_once(work):
  found, taken = peak(work.whole)
  np.testing.assert_array_equal(found, VALUES)
  assert taken < 1.2
  # Control: put end to end they are there twice.
  assert work._folder is None or peak(lambda: np.concatenate([work._read(piece) for piece in work._all]))[1] > 1.9


def test_outputs_in_a_file_are_mapped_and_what_numpy_writes(work, tmp_path):
  found, taken = peak(lambda: work.whole(tmp_path / "values.npy"))
  np.testing.assert_array_equal(found, VALUES)
  assert isinstance(found, np.memmap) and taken < 0.2
  np.save(tmp_path / "saved.npy", VALUES)
  assert (tmp_path / "values.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()
  assert not list(tmp_path.glob("*.half"))


@pytest.mark.parametrize("there", [None, "older"])
def test_a_file_that_the_first_did_not_write_is_not_read(work, tmp_path, monkeypatch, there):
  """As on another machine than the first one's, whose folder is not this one."""
  file = tmp_path / "values.npy"
  if there is not None:
    np.save(file, np.zeros_like(VALUES))

  def elsewhere(write: Callable[[], object], what: str) -> object:
    made = work._write(pathlib.Path(tmp_path / "elsewhere.npy"))
    assert made is not None and what == "values.npy of test"
    return made

  monkeypatch.setattr(processes, "once", elsewhere)
  found = work.whole(file)
  np.testing.assert_array_equal(found, VALUES)
  assert not isinstance(found, np.memmap) and file.exists() == (there is not None)


@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_a_disk_without_room_for_all_is_an_error_before_it_is_full(bucket, tmp_path, monkeypatch, where):
  work = finished(tmp_path / "pieces" if where == "disk" else f"{bucket.url}/no room", monkeypatch)
  (tmp_path / "made").mkdir()
  room = lambda free: monkeypatch.setattr(shutil, "disk_usage", lambda folder: mock.Mock(free=free))
  size = VALUES.nbytes + 128  # of np.save's header
  room(size - 1)
  both = rf"test: .* {size:,} bytes, and {size - 1:,} are free in {tmp_path}"
  with pytest.raises(OSError, match=both):
    work.whole(tmp_path / "made" / "values.npy")
  assert not list((tmp_path / "made").iterdir())
  if where == "disk":  # of a run that was killed as it wrote; with a bucket it lies in a folder that is removed whole
    (tmp_path / "made" / ".values.npy.7.half").write_bytes(b"0123")
  room(size)
  np.testing.assert_array_equal(work.whole(tmp_path / "made" / "values.npy"), VALUES)
  assert [path.name for path in (tmp_path / "made").iterdir()] == ["values.npy"]


def test_its_room_is_taken_before_what_follows_is_read(work, tmp_path, monkeypatch):
  if work._folder is None or not hasattr(os, "posix_fallocate"):
    pytest.skip("what is in memory is written at once")
  taken, read = [], work._read

  def look(piece: range) -> np.ndarray:
    taken.extend(512 * path.stat().st_blocks for path in tmp_path.glob(".values.npy.*.half"))
    return read(piece)

  monkeypatch.setattr(work, "_read", look)
  work.whole(tmp_path / "values.npy")
  assert taken[0] == 0 and len(taken) == 16 and min(taken[1:]) >= VALUES.nbytes


def test_nothing_is_written_as_nothing(tmp_path):
  for each in ((), (WIDTH,)):
    none = pieces.Pieces(tmp_path / "pieces", "test", 0, np.zeros(0, int), none=np.zeros((0, *each), np.float32))
    assert none.whole(tmp_path / "none.npy").shape == np.load(tmp_path / "none.npy").shape == (0, *each)


def test_a_piece_that_the_disk_has_no_room_for_keeps_none_of_it(tmp_path, monkeypatch):
  made = pieces.Pieces(tmp_path, "test", TEXTS, np.full(1, 7))
  piece = next(next(made.rounds()))

  def full(path, content) -> None:
    with open(path, "wb") as file:
      file.write(content[:9])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))

  with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
    patched.setattr(type(epath.Path(tmp_path)), "write_bytes", full)
    made.finish(piece, np.zeros(len(piece), np.float32))
  assert not list(tmp_path.rglob("*.npy"))
  made.finish(piece, np.zeros(len(piece), np.float32))
  assert len(list(tmp_path.rglob("*.npy"))) == 1
  made.close()


def test_work_that_was_begun_with_other_weights_is_not_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  for whose, count in (1, 3), (2, 2):
    time.sleep(0.02)  # the times of files are of some milliseconds
    work = pieces.Pieces(tmp_path, "0 encode passages", 40, np.array([whose]))
    for made in list(itertools.islice(next(work.rounds()), count)):
      work.finish(made, np.zeros(len(made), np.float32))
    work.close()
    written = {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert pieces.finished(written) == {"encode passages": (count, 4)}
