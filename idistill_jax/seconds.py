"""What the attempts at a stage took, kept beside their work until it is committed."""

import pathlib

from absl import logging

from idistill_jax import files

FILE = "seconds"


def read(folder: pathlib.Path) -> float:
  """0 where no attempt has ended there."""
  path = folder / FILE
  return float(path.read_text() or 0) if path.exists() else 0.0


def write(folder: pathlib.Path, seconds: float) -> None:
  """A full disk costs the number: as an error it would hide why the stage ended, and keep its answers from a bucket."""
  try:
    if folder.exists():
      files.write_atomically(folder / FILE, str(seconds))
  except OSError as e:
    logging.warning("%s/%s: not written (%s)", folder, FILE, e)
