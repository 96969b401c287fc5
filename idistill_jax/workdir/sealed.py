"""What a committed folder in a bucket holds, said in its last file: nobody takes a part of it, or a mixture, for it.

A bucket neither deletes nor copies on condition that nobody else is at it.  A run that was stopped within its commit
may go on with it when another has taken over: it deletes, or has its last file created among, what is the other's.  Who
reads compares what is there with what the last file says, which its run has seen there while it was alone.
"""

import json
import pathlib
from collections.abc import Mapping

_HOLDS = "holds"


def say(last: bytes, url: str, files: Mapping[str, str]) -> bytes:
  """The last file, a JSON object, with url of the folder, and file -> what tells of its writing, of all beside it."""
  said = json.loads(last) | {_HOLDS: {"at": url, "files": dict(files)}}
  return (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode()


def is_whole(last: bytes, folder: pathlib.Path) -> bool:
  """Whether a local copy has all files that the last one names: something that cleans machines up may have been there.
  """
  said = json.loads(last).get(_HOLDS)
  return said is None or all((folder / name).exists() for name in said["files"])


def check(last: bytes, url: str, files: Mapping[str, str]) -> None:
  """Raises OSError where the folder's last file says that it holds other files.

  One from an earlier version says nothing, and one that was copied hither speaks of another place.
  """
  said = json.loads(last).get(_HOLDS)
  if said is None or said["at"] != url or said["files"] == files:
    return
  wrong = sorted(name for name, _ in said["files"].items() ^ files.items())
  raise OSError(
    f"{url}: {wrong[0]} is not what was committed there: two runs have written it at once, or it was changed since; "
    f"delete that folder and run its stage again, or take {_HOLDS!r} out of its last file where the change is wanted")
