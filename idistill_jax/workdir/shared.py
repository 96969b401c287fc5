"""Whether the processes of a job, which may be on several hosts, have one workdir."""

import contextlib
import pathlib
import socket
import time
import uuid
from collections.abc import Iterator

from idistill_jax import processes
from idistill_jax.workdir import remote

# A file system of several hosts may take a while to show one of them what another has written.
_LATE_SECONDS = 10.0


def check(workdir: str) -> None:
  """Raises FileNotFoundError in all processes where one does not see what the first writes to its workdir.

  Else what the first has made would be missing there, as if it had not been made.
  """
  if processes.count() == 1:
    return
  place = workdir if remote.is_bucket(workdir) else f"{socket.gethostname()}:{pathlib.Path(workdir).absolute()}"
  with contextlib.ExitStack() as left:
    mark = lambda: None if remote.is_bucket(workdir) else left.enter_context(_marked(pathlib.Path(workdir)))
    first, name = processes.once(lambda: (place, mark()), "a mark in the workdir")
    # A host's name and a path do not tell: containers may have one name, and a folder that is seen two paths.
    sees = place == first if name is None else _comes(pathlib.Path(workdir) / name)
    told = processes.told("a look at the workdir", "" if sees else place)
  if others := ", ".join(f"process {process} ({its})" for process, its in told.items() if its):
    raise FileNotFoundError(
      f"--workdir: what process 0 writes to {first} is not seen by {others}; all processes of a job work in one "
      "folder: name one of a file system that all hosts see, or one in a bucket, gs:// or s3://")


@contextlib.contextmanager
def _marked(folder: pathlib.Path) -> Iterator[str]:
  """The name of a file that lies in the folder meanwhile; drawn, as a host may remember what it has not found."""
  mark = folder / f".seen-{uuid.uuid4().hex}"
  folder.mkdir(parents=True, exist_ok=True)
  try:
    mark.touch()
    yield mark.name
  finally:
    mark.unlink(missing_ok=True)


def _comes(path: pathlib.Path) -> bool:
  until = time.monotonic() + _LATE_SECONDS
  while not (found := path.exists()) and time.monotonic() < until:
    time.sleep(0.2)
  return found
