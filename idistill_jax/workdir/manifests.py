"""A stage's manifest: what its folder was made of, by what, and what came of it."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from idistill_jax import extras
from idistill_jax.workdir import files, seconds

FILE = "manifest.json"
EXAMPLES_PER_DROP = 10


def write(path: pathlib.Path, took: seconds.Took, said: Mapping[str, Any], drops: Mapping[str, Sequence[str]]) -> None:
  """What a stage says of itself, and with it what it took, when it ended, and versions and code of what made it.

  drops: reason -> all that was left out, of which it names the first.
  """
  manifest = {
    **said, "drops": {why: {"count": len(what), "examples": what[:EXAMPLES_PER_DROP]} for why, what in drops.items()},
    **dataclasses.asdict(took), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "versions": extras.versions(),
    "code": extras.code(),
  }
  # Whole or not there: so is a working folder that has it.
  files.write_atomically(path, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
  for why, what in drops.items():
    logging.warning("%s dropped %d: %s (for example %s)", said["stage"], len(what), why, what[:3])


def read(text: str, folder: str) -> dict[str, Any]:
  """Raises ValueError, naming the folder, for what is not JSON, or no manifest."""
  try:
    found = json.loads(text)
  except json.JSONDecodeError as e:
    raise ValueError(f"{folder}/{FILE}: not JSON ({e}); delete the folder {folder} and run the stage again") from e
  if not isinstance(found, dict) or "key" not in found:
    raise ValueError(f"{folder}/{FILE}: is of no stage; move {folder} away, or name another folder with --workdir")
  return found
