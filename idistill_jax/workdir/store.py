"""Where a workdir lies: a folder of this machine, or one in a bucket, gs:// or s3://.

Stages read and write local files, as their libraries want them (SQLite, ScaNN, memory maps).  For a bucket, what they
read is fetched before and what they wrote is sent after, see `bucket`.  A folder is committed whole, here by a rename.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Collection, Mapping
from typing import Protocol

from etils import epath

from idistill_jax.workdir import bucket, files, locks, remote


class Store(Protocol):
  """Names are relative to the top.  local: the folder on this machine in which work is done."""

  local: pathlib.Path

  def alone(self, name: str, what: str) -> contextlib.AbstractContextManager[None]:
    """Keeps other runs from the name meanwhile; raises locks.BusyError, naming `what`, where one has it."""
    ...

  def is_held(self, name: str) -> bool | None:
    """Whether a run is `alone` with the name; None where one was and nothing shows whether it still is."""
    ...

  def still_alone(self) -> None:
    """Raises leases.LostError where another run has taken over what this one keeps to itself."""
    ...

  def path(self, name: str) -> epath.Path:
    """For what reads and writes at the place itself."""
    ...

  def read(self, name: str) -> bytes | None:
    """A file's content, None where it is not there."""
    ...

  def written(self, name: str) -> Mapping[str, float]:
    """What lies in a folder -> when it was last written, in seconds since the epoch."""
    ...

  def folders(self, prefix: str) -> list[str]:
    """Names of what lies at the top and begins with `prefix`."""
    ...

  def remove(self, name: str) -> None:
    """Deletes a folder, where it is there."""
    ...

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    """Makes the local folder hold what was sent of it, but the folders of `leave`."""
    ...

  def send(self, name: str) -> None:
    """Makes what lies in a local folder, or file, outlive this machine."""
    ...

  def is_torn(self, name: str) -> bool:
    """Whether a commit of the folder may have been cut off, and have left a part of it."""
    ...

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    """Makes the local folder `working` the folder `final`; `leave` is no part of it.  Raises as `still_alone` does."""
    ...

  def fetch(self, name: str, *, last: str) -> pathlib.Path:
    """The local folder that holds a committed one."""
    ...


def at(root: str | os.PathLike[str]) -> Store:
  """Raises ValueError as `remote.scheme` does."""
  return bucket.Bucket(str(root)) if remote.scheme(str(root)) else Folder(pathlib.Path(root))


class Folder:
  """A folder of this machine, or of a file system that machines share."""

  def __init__(self, root: pathlib.Path):
    """Raises NotADirectoryError where a file has that name."""
    if root.is_file():
      raise NotADirectoryError(f"{root}: is a file; a workdir is a folder")
    self.local = root

  def alone(self, name: str, what: str) -> contextlib.AbstractContextManager[None]:
    return locks.alone(self.local / f".{name}.lock", what)

  def is_held(self, name: str) -> bool | None:
    return locks.is_held(self.local / f".{name}.lock")

  def still_alone(self) -> None:
    """A lock goes with its process and with nothing else."""

  def path(self, name: str) -> epath.Path:
    return epath.Path(self.local / name)

  def read(self, name: str) -> bytes | None:
    try:  # not after a look whether it is there: another run may commit in between
      return (self.local / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
      return None

  def written(self, name: str) -> Mapping[str, float]:
    top = self.local / name
    # Not rglob, which does not bear that a folder goes meanwhile.
    found = (pathlib.Path(folder, one) for folder, folders, inside in os.walk(top) for one in (*folders, *inside))
    return {str(path.relative_to(top)): _written(path) for path in found}

  def folders(self, prefix: str) -> list[str]:
    return sorted(path.name for path in self.local.glob(f"{prefix}*"))

  def remove(self, name: str) -> None:
    _remove(self.local / name)

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    pass

  def send(self, name: str) -> None:
    pass

  def is_torn(self, name: str) -> bool:
    return False  # renamed as a whole

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    files.strip(self.local / working, leave)
    if (self.local / final).exists():
      # A folder cannot be renamed over another; the old one steps aside first, under a name that the next
      # sweep of working folders removes should we die right here.
      aside = self.local / f".{final}-replaced"
      _remove(aside)
      (self.local / final).rename(aside)
      (self.local / working).rename(self.local / final)
      _remove(aside)
    else:
      (self.local / working).rename(self.local / final)

  def fetch(self, name: str, *, last: str) -> pathlib.Path:
    return self.local / name


def _remove(path: pathlib.Path) -> None:
  """A folder, where it is there; of one that a user has moved to another disk, and linked, the link."""
  if path.is_symlink():
    path.unlink()
  elif path.exists():
    shutil.rmtree(path)


def _written(path: pathlib.Path) -> float:
  """A checkpoint's temporary files may be gone by the time they are looked at."""
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return 0.0
