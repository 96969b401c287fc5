"""Large files: one for the processes of a machine, nothing left of it, and room on the disk before any is begun."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import bucket as bucket_lib
import jobs
import numpy as np
import pytest

from idistill_jax import processes
from idistill_jax.train import copies

READS = """
import json, os, pathlib
import jobs, numpy as np
from idistill_jax import processes
from idistill_jax.train import pieces

args = jobs.parser().parse_args()
pieces.LEAST = 10
launch = processes.Launch(
  coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
reads, read = [], pieces.Pieces._read
pieces.Pieces._read = lambda self, piece: (reads.append(piece.start), read(self, piece))[1]
with processes.joined(launch):
  machine = args.folder / f"machine {min(args.process, 1)}"
  work = pieces.Pieces(os.environ["PIECES"], "test", 40, np.full(1, 7))
  for claimed in work.rounds():
    for piece in claimed:
      work.finish(piece, np.arange(piece.start, piece.stop, dtype=np.float32))
  found = work.whole(machine / "values.npy")
  work.close()
  processes.meet("all have read")
  assert isinstance(found, np.memmap) and found.tolist() == list(range(40))
  print("read", json.dumps(reads))
"""


def test_processes_of_a_machine_read_one_copy_which_goes_with_them(tmp_path, monkeypatch):
  """Two on another machine than the first one's, a folder each; both folders hold what a kill has left."""
  machines = [tmp_path / f"machine {number}" for number in range(2)]
  for machine in machines:
    (machine / "values.npy.of the killed.half").mkdir(parents=True)
    np.save(machine / "values.npy.of the killed.half" / "whole.half", np.zeros(40, np.float32))
    np.save(machine / "values.npy", np.zeros(40, np.float32))
  with bucket_lib.running("gs") as server:
    monkeypatch.setenv("PIECES", f"{server.url}/copies")
    with jobs.started(tmp_path, 3, "-c", READS, str(tmp_path)) as job:
      job.succeed(120)
  reads = [json.loads(job.said(number).partition("read ")[2]) for number in range(3)]
  assert len(reads[0]) == 4, "the first makes its machine's"
  assert sorted(map(len, reads[1:])) == [0, 4], "of the two others, one makes theirs"
  assert [sorted(path.name for path in machine.iterdir()) for machine in machines] == [["values.npy"], []]
  assert np.load(machines[0] / "values.npy").tolist() == list(range(40))


def test_whoever_makes_it_is_waited_for_while_it_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "patience", lambda: 0.5)
  whole = tmp_path / "whole.half"
  (tmp_path / "half").write_text("")
  began = time.monotonic()

  def sleep(seconds: float) -> None:
    if writes and time.monotonic() - began < 1.5:
      os.utime(tmp_path / "half")
    elif writes:
      (tmp_path / "half").rename(whole)
    time.sleep(seconds)

  monkeypatch.setattr(copies, "time", type("Clock", (), {"monotonic": time.monotonic, "sleep": sleep}))
  writes = False
  with pytest.raises(processes.ProcessError, match=r"values: another .*whole\.half, .* nothing within 0\.5 s"):
    copies._wait_for(whole, "values")
  writes, began = True, time.monotonic()
  copies._wait_for(whole, "values")
  assert whole.exists() and time.monotonic() - began > 2 * processes.patience()


RACES = """
import pathlib, shutil, sys
from idistill_jax.train import copies

disk, size = pathlib.Path(sys.argv[1]), 700_000
free = shutil.disk_usage(disk)
# What both have seen before either began.
shutil.disk_usage = lambda folder: free
with open(disk / "one", "wb") as one, open(disk / "other", "wb") as other:
  copies.take_room(one, size, disk, "one")
  try:
    copies.take_room(other, size, disk, "other")
    sys.exit("both got it")
  except OSError as e:
    print(e)
  assert one.write(bytes(size)) == size
"""


def test_of_two_that_find_room_for_one_the_second_is_told(tmp_path):
  """On a disk of a mebibyte, of a file system of its own."""
  small = f"mount -t tmpfs -o size=1m none '{tmp_path}' && exec '{sys.executable}' -c \"$RACES\" '{tmp_path}'"
  if shutil.which("unshare") is None or subprocess.run(
      ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
    pytest.skip("no file system can be mounted here")
  environment = os.environ | {"RACES": RACES, "PYTHONPATH": os.pathsep.join(sys.path)}
  done = subprocess.run(["unshare", "-Urm", "sh", "-c", small], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert f"other: what it gives takes 700,000 bytes, and 1,048,576 are free in {tmp_path}: make room" in done.stdout


def test_a_file_system_that_takes_no_room_is_looked_at_alone(tmp_path, monkeypatch):
  def fallocate(wrong: int):
    def take(*_) -> None:
      raise OSError(wrong, os.strerror(wrong))
    monkeypatch.setattr(os, "posix_fallocate", take, raising=False)

  with (tmp_path / "file").open("wb") as out:
    fallocate(next(iter(copies._UNKNOWN)))
    copies.take_room(out, 10, pathlib.Path(tmp_path), "values")
    with pytest.raises(OSError, match="values: what it gives takes"):
      copies.take_room(out, 1 << 60, tmp_path, "values")
    fallocate(5)
    with pytest.raises(OSError, match=r"\[Errno 5\]"):  # the control: what else is wrong with a disk is said
      copies.take_room(out, 10, tmp_path, "values")
