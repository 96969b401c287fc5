"""Files of a working folder that the next attempt makes again of what is kept already, as vectors of their pieces.

An attempt that ends before its commit takes them away: they would be sent beside their pieces, as many bytes again, by
a machine that is about to go.  One that is killed cannot, so they are noted on the disk before they are there, and the
next attempt takes them away before all else.
"""

import pathlib

# The ending keeps it from being sent, and out of the commit, of which the files themselves are part.
_NOTE = "remade.half"


def note(path: pathlib.Path) -> None:
  """To be called before the file is there."""
  with (path.parent / _NOTE).open("a", encoding="utf-8") as out:
    out.write(f"{path.name}\n")


def remove(folder: pathlib.Path) -> None:
  """All that were noted there."""
  noted = folder / _NOTE
  for name in noted.read_text(encoding="utf-8").splitlines() if noted.exists() else ():
    (folder / name).unlink(missing_ok=True)
  noted.unlink(missing_ok=True)
