"""What files were like here and in a bucket when both were the same, so that a machine knows who changed one since."""

import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from idistill_jax.workdir import databases, files

_FILE = ".sent.json"
# Size in bytes, and time of the last writing in ns; None: as nothing else.
Stamp = list[int] | None


def read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """File -> what it was like "here" and "there"."""
  path = folder / _FILE
  return json.loads(path.read_text()) if path.exists() else {}


def note(folder: pathlib.Path, same: Mapping[str, dict[str, Any]], *, gone: Iterable[str] = ()) -> None:
  noted = {path: how for path, how in (read(folder) | dict(same)).items() if path not in set(gone)}
  files.write_atomically(folder / _FILE, json.dumps(noted))


def is_same(noted: Mapping[str, dict[str, Any]], path: str, now: Stamp) -> bool:
  """Whether a local file is as it was sent or received."""
  return now is not None and noted.get(path, {}).get("here") == now


def stamp(path: pathlib.Path) -> Stamp:
  if databases.is_one(path.name) and not databases.settle(path):
    return None
  state = path.stat()
  return [state.st_size, state.st_mtime_ns]
