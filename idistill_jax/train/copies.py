"""Files that are large: one for the processes of a machine, and none begun that its disk has no room for.

Where a workdir is in a bucket each machine has a folder of its own, and nobody knows who else is there.  So whoever can
create a folder in it, of a name that no other run has, makes the machine's copy.  The first process does so before the
others hear the name: those on its machine find the folder, and on another machine one creates it, and makes a copy
meanwhile.

What lies there ends in `.half`, as all that is never sent to a bucket.  What a killed run leaves is removed by whoever
makes the next copy there.
"""

import errno
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable
from typing import IO

import numpy as np

from idistill_jax import processes

_WHOLE = "whole.half"
_POLL_SECONDS = 0.1
# A file system that cannot take room before it is written to.
_UNKNOWN = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS}


def one_a_machine(into: pathlib.Path, make: Callable[[pathlib.Path], object], what: str) -> np.ndarray:
  """The array of a file that `make` writes, mapped; every process of a job calls it.

  The first process's file is `into` in the end.  That of another machine loses its name when all of them have it open:
  its room is free again when they end, however they do.  Raises what `make` raises, and ProcessError where it does not
  get on, by what is written, for as long as processes have patience.
  """
  first = processes.is_first()
  folder = into.with_name(processes.once(lambda: _begun(into), what))
  mine = first or _is_mine(folder, into)
  whole = folder / _WHOLE
  try:
    if not mine:
      _wait_for(whole, what)
    elif not first:
      make(whole)
    processes.once(lambda: make(whole), what)
    found = np.load(whole, mmap_mode="r")
    processes.meet(f"reading {what}")
    if first:
      whole.rename(into)
      found = np.load(into, mmap_mode="r")  # a map says of which file it is
    return found
  finally:
    if mine:
      shutil.rmtree(folder, ignore_errors=True)


def _begun(into: pathlib.Path) -> str:
  """Name of a folder beside it that this run alone has."""
  folder = into.with_name(f"{into.name}.{uuid.uuid4().hex}.half")
  _is_mine(folder, into)
  return folder.name


def _is_mine(folder: pathlib.Path, into: pathlib.Path) -> bool:
  """Whether this process could make it, and not another of its machine; what was there before is removed."""
  try:
    folder.mkdir(parents=True)
  except FileExistsError:
    return False
  into.unlink(missing_ok=True)
  for old in into.parent.glob(f"{into.name}.*.half"):
    if old != folder:
      shutil.rmtree(old, ignore_errors=True)
  return True


def _wait_for(whole: pathlib.Path, what: str) -> None:
  known, since = None, time.monotonic()
  while not whole.exists():
    if (now := _written(whole.parent)) != known:
      known, since = now, time.monotonic()
    elif time.monotonic() - since > processes.patience():
      raise processes.ProcessError(
        f"{what}: another process of this machine makes {whole}, and has written nothing within "
        f"{processes.patience():g} s; see what it is at, or give a longer --patience where its disk or bucket is slow")
    time.sleep(_POLL_SECONDS)


def _written(folder: pathlib.Path) -> list[tuple[str, int]] | None:
  try:
    return [(path.name, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
  except FileNotFoundError:  # renamed meanwhile, as what is whole is
    return None


def take_room(out: IO[bytes], size: int, folder: pathlib.Path, what: str) -> None:
  """Takes the room of an open file of so many bytes from its disk: of two that both find it free, one gets it.

  Raises OSError, naming folder and sizes, where there is none.  Where the file system cannot take it, or Python cannot
  ask for it (macOS), it is looked at alone.
  """
  free, fits = shutil.disk_usage(folder).free, True
  try:
    if size <= free and hasattr(os, "posix_fallocate"):
      os.posix_fallocate(out.fileno(), 0, size)
  except OSError as e:
    if e.errno not in _UNKNOWN | {errno.ENOSPC, errno.EDQUOT}:
      raise
    # Another has taken it since.
    fits, free = e.errno in _UNKNOWN, shutil.disk_usage(folder).free
  if size > free or not fits:
    raise OSError(errno.ENOSPC, f"{what}: what it gives takes {size:,} bytes, and {free:,} are free in {folder}: make "
                  "room there, or have the workdir (one in a bucket: TMPDIR) on a larger disk")
