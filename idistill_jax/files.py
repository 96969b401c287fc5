"""Files that are whole or not there: a full disk or a kill leaves the old one."""

import contextlib
import os
import pathlib
import shutil


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Puts a file in place of what is there, all of it or nothing; raises OSError where there is no room for both."""
  # Two runs may write one file, each its own half.
  half = path.with_name(f".{path.name}.{os.getpid()}.half")
  try:
    with open(half, "w", encoding="utf-8") as out:
      out.write(text)
      out.flush()
      # Some file systems rename at once and write later: after a power cut the new name would hold nothing.
      os.fsync(out.fileno())
    half.replace(path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      half.unlink()


def link(source: str, target: str) -> None:
  """One file under two names, for what is never written again; another file system gets a copy."""
  try:
    os.link(source, target)
  except OSError:
    shutil.copyfile(source, target)
