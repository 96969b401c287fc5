"""Of which code a stage's work is, told in its working folder: who helps with it is of the same."""

import json
import pathlib

from absl import logging

from idistill_jax import extras
from idistill_jax.workdir import files

FILE = "code.json"


def note(folder: pathlib.Path, stage: str) -> None:
  """Writes it; what another code had begun goes on, as after a mend, which is said."""
  path = folder / FILE
  if path.exists() and (other := differing(path.read_text(encoding="utf-8"))):
    logging.warning("%s: goes on with what was begun by other code (%s)", stage, other)
  files.write_atomically(path, json.dumps(extras.identity(), indent=1) + "\n")


def differing(text: str) -> str:
  """What differs from this process's code, of what a file of this name says; "" for nothing."""
  there, here = json.loads(text), extras.identity()
  return ", ".join(f"{name} {there.get(name)} there, {here.get(name)} here"
                   for name in dict.fromkeys([*there, *here]) if there.get(name) != here.get(name))
