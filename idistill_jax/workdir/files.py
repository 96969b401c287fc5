"""Files that are whole or not there: a full disk or a kill leaves the old one, and what was cut later is told."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from idistill_jax import processes

# What the name ends in of a file, or a folder, that is not finished, and so neither sent to a bucket nor committed.
HALF = ".half"


class CutError(ValueError):
  """A file that is not as long as it was when it was written; the message names it."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """What is written in the block comes in place of what is there at its end, all of it or nothing; raises OSError where
  there is no room for both."""
  # Two runs may write one file, each its own half.
  half = path.with_name(f".{path.name}.{os.getpid()}{HALF}")
  try:
    with half.open("wb") as out:
      yield out
      out.flush()
      # Some file systems rename at once and write later: after a power cut the new name would hold nothing.
      os.fsync(out.fileno())
    half.replace(path)
  finally:
    half.unlink(missing_ok=True)  # of a disk that is full it would keep the rest


def remove_halves(path: pathlib.Path) -> None:
  """Removes what killed runs have left of a file that nobody writes now; large ones would fill the disk."""
  for half in path.parent.glob(f".{path.name}.*{HALF}"):
    half.unlink(missing_ok=True)


def write_atomically(path: pathlib.Path, text: str) -> None:
  """`replacing` by a text."""
  with replacing(path) as out:
    out.write(text.encode())


def strip(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Removes files and folders of these names, where they are there, and what a killed process left unfinished."""
  for name in names:
    _remove(folder / name)
  for half in list(folder.rglob(f"*{HALF}")):
    _remove(half)


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    # A helper may be at work in it: what it writes meanwhile is of no use to anybody.
    shutil.rmtree(path, ignore_errors=True)
  else:
    path.unlink(missing_ok=True)


def link(source: str, target: str) -> None:
  """One file under two names, for what is never written again; another file system gets a copy."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)


def sizes(folder: pathlib.Path) -> dict[str, int]:
  """Name -> bytes of the record files in a folder."""
  return {path.name: path.stat().st_size for path in sorted(folder.glob("*.tfrecord"))}


def sizes_of_all(folder: pathlib.Path, what: str) -> dict[str, int]:
  """The `sizes` in the folders of all processes of a job, one a machine where the workdir is in a bucket; each calls
  it, and waits for the others."""
  told = processes.told(what, json.dumps(sizes(folder)))
  return dict(sorted(item for said in told.values() for item in json.loads(said).items()))


def whole(folder: pathlib.Path, expected: Mapping[str, int]) -> pathlib.Path:
  """The folder, where its files have their `sizes`: one that was cut where a record ends, or emptied, reads to its end.

  Raises CutError, or FileNotFoundError, for the first that has not.
  """
  for name, size in expected.items():
    path, again = folder / name, f"delete the folder {folder} and make it again"
    if not path.exists():
      raise FileNotFoundError(f"{path}: is gone; {again}")
    if (found := path.stat().st_size) != size:
      raise CutError(f"{path}: {found:,} bytes are there, {size:,} were written; {again}")
  return folder
