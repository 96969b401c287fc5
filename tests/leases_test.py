"""Leases: of workers that all found a piece free, one has it; the others wait for as long as it gets on."""

import concurrent.futures
import os
import re
import shutil
import socket
import subprocess
import time

import fsspec
import numpy as np
import pytest

from idistill_jax import machine, processes
from idistill_jax.train import pieces
from idistill_jax.workdir import leases


def test_of_many_workers_with_the_same_old_view_one_takes_a_piece(tmp_path, monkeypatch):
  workers = [leases.Leases(tmp_path) for _ in range(8)]
  # As each of them would see it that looked before any of the others wrote.
  monkeypatch.setattr(type(workers[0]._fs), "exists", lambda self, path: False)
  with concurrent.futures.ThreadPoolExecutor(len(workers)) as threads:
    for piece in map(str, range(20)):
      taken = list(threads.map(lambda one, piece=piece: one.take(piece, f"{piece}.npy", ()), workers))
      assert sum(taken) == 1
  for one in workers:
    one.close()
  assert not list(tmp_path.iterdir())


def silent(worker: leases.Leases, monkeypatch: pytest.MonkeyPatch) -> leases.Leases:
  """As one whose process is stopped."""
  monkeypatch.setattr(worker, "_keep_writing", lambda: None)
  return worker


def test_who_was_lost_learns_it_also_from_what_was_given_back(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
  lost, other, third = silent(leases.Leases(tmp_path), monkeypatch), leases.Leases(tmp_path), leases.Leases(tmp_path)
  assert lost.take("stage", None, lost.names())
  time.sleep(2 * leases.LEASE_SECONDS)
  lost.hold("stage")  # the control: void, and nobody came
  assert not other.take("stage", None, other.names())
  time.sleep(2 * leases.LEASE_SECONDS)
  assert other.take("stage", None, other.names())
  other.hold("stage")
  with pytest.raises(leases.LostError, match=r"stage\.0\.lease.*another has taken over"):
    lost.hold("stage")
  other.close()
  with pytest.raises(leases.LostError):
    lost.hold("stage")
  # What was given back holds nobody up.
  assert third.take("stage", None, third.names())
  third.hold("stage")
  for one in (lost, third):
    one.close()


def test_a_lease_that_is_seen_while_it_is_written_still_names_its_holder(tmp_path, monkeypatch):
  monkeypatch.setattr(leases, "LEASE_SECONDS", 1.0)
  one, other = silent(leases.Leases(tmp_path), monkeypatch), leases.Leases(tmp_path)
  assert one.take("stage", None, one.names()) and not other.take("stage", None, other.names())
  (tmp_path / "stage.0.lease").write_bytes(b"")
  assert not other.take("stage", None, other.names())
  assert other.holder("stage") == f"{socket.gethostname()} {os.getpid()}"
  # Whoever was killed in that moment holds nobody up.
  time.sleep(2 * leases.LEASE_SECONDS)
  assert other.take("stage", None, other.names())
  for worker in (one, other):
    worker.close()


def test_numbers_of_processes_tell_nothing_of_another_machine_though_it_has_the_same_name(tmp_path):
  ended = subprocess.Popen(["true"])
  ended.wait()
  one = leases.Leases(tmp_path)
  for number, (whose, is_void) in enumerate([("another", False), (machine.identity(), True)]):
    piece = str(number)
    (tmp_path / f"{piece}.0.lease").write_text(f"{socket.gethostname()} {ended.pid} {whose} worker 1 0 done")
    assert one.take(piece, None, one.names()) == is_void
  # Half read: this may be the beginning of another's number.
  (tmp_path / "2.0.lease").write_text(f"{socket.gethostname()} {ended.pid} {machine.identity()}")
  assert not one.take("2", None, one.names())
  one.close()


def test_giving_back_in_a_bucket_begins_no_swept_folder_anew(monkeypatch):
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
  files = fsspec.filesystem("memory")
  lost, other = (silent(leases.Leases("memory://swept"), monkeypatch) for _ in range(2))
  assert lost.take("0", "0.npy", lost.names()) and not other.take("0", "0.npy", other.names())
  time.sleep(2 * leases.LEASE_SECONDS)
  assert other.take("0", "0.npy", other.names())
  assert files.find("/swept") == ["/swept/0.0.lease", "/swept/0.1.lease"]
  files.rm("/swept", recursive=True)
  for one in (lost, other):
    one.close()
  assert not files.exists("/swept")


def test_a_piece_that_was_made_meanwhile_stays(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
  lost, other = (pieces.Pieces(tmp_path, "test", 10, np.full(1, 7)) for _ in range(2))
  silent(lost._leases, monkeypatch)
  held = next(next(lost.rounds()))
  for claimed in other.rounds():
    for piece in claimed:
      other.finish(piece, np.ones(10))
  lost.finish(held, np.zeros(10))
  assert other.whole().tolist() == lost.whole().tolist() == 10 * [1.0]
  # Once all is swept up, whoever comes back begins nothing anew.
  again = pieces.Pieces(tmp_path / "swept", "test", 10, np.full(1, 7))
  silent(again._leases, monkeypatch)
  held = next(next(again.rounds()))
  shutil.rmtree(tmp_path / "swept")
  with pytest.raises(leases.LostError, match="swept up"):
    again.finish(held, np.zeros(10))
  for one in (lost, other, again):
    one.close()
  assert not (tmp_path / "swept").exists()


def test_a_lost_workers_piece_is_waited_for_until_it_is_free_however_short_the_patience(tmp_path, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(pieces, "_POLL_SECONDS", 0.02)
  monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
  monkeypatch.setattr(processes, "patience", lambda: 0.1)
  lost, other = (pieces.Pieces(tmp_path, "test", 20, np.full(1, 7)) for _ in range(2))
  silent(lost._leases, monkeypatch)
  next(next(lost.rounds()))
  for claimed in other.rounds():
    for piece in claimed:
      other.finish(piece, np.ones(10))
  assert other.whole().tolist() == 20 * [1.0]
  for one in (lost, other):
    one.close()


@pytest.mark.parametrize("gets_on", [True, False])
def test_a_piece_is_waited_for_while_its_texts_are_done_and_not_while_its_worker_merely_lives(
    tmp_path, monkeypatch, gets_on):
  monkeypatch.setattr(pieces, "LEAST", 10)
  monkeypatch.setattr(pieces, "_POLL_SECONDS", 0.02)
  monkeypatch.setattr(pieces, "_LOST_SECONDS", 0.0)
  monkeypatch.setattr(leases, "_BEATS", leases.LEASE_SECONDS / 0.05)
  monkeypatch.setattr(processes, "patience", lambda: 1.0)
  slow, other = (pieces.Pieces(tmp_path, "test", 20, np.full(1, 7)) for _ in range(2))
  held, began = next(next(slow.rounds())), time.monotonic()

  def wait() -> None:
    for claimed in other.rounds():
      for piece in claimed:
        other.finish(piece, np.zeros(10))
      done = int((time.monotonic() - began) / 0.3)
      if gets_on and done < 10:
        slow.tell(held, done)
      elif gets_on and slow.left() == 20:
        slow.finish(held, np.ones(10))

  if gets_on:
    wait()
    assert time.monotonic() - began > 2 * processes.patience()
    assert other.whole().tolist() == 10 * [1.0] + 10 * [0.0]
  else:
    who = rf"machine and process: {re.escape(socket.gethostname())} {os.getpid()}\)"
    said = rf"no text of .* within 1 s; .*{who} that may hang: end that process .*longer --patience"
    with pytest.raises(processes.ProcessError, match=said):
      wait()
  for one in (slow, other):
    one.close()
