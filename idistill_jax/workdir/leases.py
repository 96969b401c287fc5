"""Which of the workers that see one folder is at which piece of work, and who goes on with the pieces of a lost one.

`<piece>.<number>.lease` is a file that one worker alone could create, and that it writes anew for as long as it lives.
One that stays the same for LEASE_SECONDS, by the clock of whoever looks, is void: the next number is created, once more
by one worker alone, however many saw it.  (A void file that was deleted instead could be another's new one by then.)

Whoever held a void one may come back, as a machine does that was paused or cut off.  `hold` tells it: there is a lease
of a higher number, which stays, marked, when it is given back.

What it says ends with how much of the piece is done: of a worker that lives, that alone tells whether it gets on.
"""

import contextlib
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging
from etils import epath
from fsspec.implementations import local

from idistill_jax import machine, peers
from idistill_jax.workdir import remote

LEASE_SECONDS = 60.0
_BEATS = 6
# What a lease says that was given back, and was not the first of its piece.
_OVER = b"over"


class LostError(peers.ProcessError):
  """Another worker has taken over what this one held, or made it and swept up."""


class Leases:
  """One worker's view of a folder, which may be in a bucket.  `close` gives back what it holds."""

  def __init__(self, folder: epath.PathLike):
    # epath can neither create exclusively nor list past the cache of its file systems.
    fs, self._base = remote.file_system(os.fspath(folder))
    self._fs: Any = remote.Asked(fs, os.fspath(folder)) if remote.is_bucket(os.fspath(folder)) else fs
    self.worker = uuid.uuid4().hex
    self._held: dict[str, str] = {}
    # Piece -> how much of it is done.
    self._done: dict[str, int] = {}
    self._beat = 0
    # Lease -> what it said, and since when it has said nothing else.
    self._seen: dict[str, tuple[bytes, float]] = {}
    # Lease -> how much of its piece it has told to be done, at most.
    self._told: dict[str, int] = {}
    self._writing, self._closed = threading.Lock(), threading.Event()
    self._writer: threading.Thread | None = None

  def names(self) -> set[str]:
    """What lies in the folder."""
    try:
      return {path.rpartition("/")[2] for path in self._fs.ls(self._base, detail=False)}
    except FileNotFoundError:
      return set()

  def take(self, piece: str, made: str | None, names: Collection[str]) -> bool:
    """Whether the piece is this worker's from now on.

    made: the file it becomes, None where it becomes none; names: what lies in the folder.
    """
    numbers = _numbers(piece, names)
    if piece in self._held or (numbers and self._is_alive(f"{self._base}/{piece}.{max(numbers)}.lease")):
      return False
    path = f"{self._base}/{piece}.{max(numbers) + 1 if numbers else 0}.lease"
    self._done[piece] = 0
    try:
      self._create(path, self._text(piece))
    except FileExistsError:
      return False
    self._held[piece] = path
    if self._writer is None:
      self._writer = threading.Thread(target=self._keep_writing, daemon=True)
      self._writer.start()
    # Another may have finished it, and given it back, since the folder was looked at.
    if made is not None and self._fs.exists(f"{self._base}/{made}"):
      self.give_back(piece)
      return False
    return True

  def hold(self, piece: str) -> None:
    """Raises LostError where another worker has taken over, since, what this one has taken; so also if that one ended.

    The lease is written first.  Whoever looks afterwards waits for LEASE_SECONDS once more, and so long what follows is
    this worker's own, but for two cases: it is stopped right here again, or another found the lease void as it was
    before, and the new one of that is still on its way.
    """
    with self._writing:
      self._fs.pipe_file(self._held[piece], self._text(piece))
    if max(_numbers(piece, self.names())) > _number(self._held[piece]):
      raise LostError(
        f"{self._held[piece]}: this process was stopped or cut off for longer than {LEASE_SECONDS:g} s, and another "
        "has taken over meanwhile; this one writes nothing more there.  The same command goes on where the other ends")

  def is_made(self, piece: str, made: str) -> bool:
    """Whether another worker has made the file that a held piece becomes; raises LostError where all was swept up."""
    names = self.names()
    if made not in names and self._held[piece].rpartition("/")[2] not in names:
      raise LostError(f"{self._base}: is gone, with this process's own lease in it: another one has finished the work, "
                      "while this one was stopped or cut off, and it was swept up")
    return made in names

  def standing(self, piece: str) -> str | None:
    """The last lease of a piece; None where there is none, it was given back, or its process is known to be gone."""
    numbers = _numbers(piece, self.names())
    lease = f"{piece}.{max(numbers, default=0)}.lease"
    try:
      return None if _is_gone(self._fs.cat_file(f"{self._base}/{lease}")) else lease
    except FileNotFoundError:
      return None

  def holder(self, piece: str) -> str:
    """Machine and process that hold a piece, as `take` last saw its lease; "" where it saw none."""
    numbers = _numbers(piece, [path.rpartition("/")[2] for path in self._seen])
    said, _ = self._seen[f"{self._base}/{piece}.{max(numbers)}.lease"] if numbers else (b"", 0.0)
    return " ".join(said.decode(errors="replace").split()[:2])

  def tell(self, piece: str, done: int) -> None:
    """How much of a piece that it holds this worker has done; the others read it when the lease is next written."""
    self._done[piece] = done

  def told(self) -> Mapping[str, int]:
    """Lease of another -> how much its worker has done of the piece, where that is anything, as last seen by `take`."""
    return {path: done for path, done in self._told.items() if done}

  def _create(self, path: str, text: bytes) -> None:
    """Raises FileExistsError for all workers but one."""
    if isinstance(self._fs, local.LocalFileSystem):
      # fsspec looks whether the file is there, and then opens it: two workers may both find it is not.
      with open(path, "xb") as lease:
        lease.write(text)
      return
    try:
      self._fs.pipe_file(path, text, mode="create")
    except FileExistsError:
      # It may be this worker's own: sent, and the answer was lost.
      with contextlib.suppress(FileNotFoundError):
        if self._fs.cat_file(path) == text:
          return
      raise

  def give_back(self, piece: str) -> None:
    with self._writing:
      path = self._held.pop(piece)
      # Where it was swept up with its folder, there is nothing to give back, and a bucket would begin the folder anew.
      with contextlib.suppress(FileNotFoundError):
        if _number(path) == 0:
          self._fs.rm_file(path)
        elif self._fs.exists(path):
          self._fs.pipe_file(path, _OVER)

  def close(self) -> None:
    self._closed.set()
    if self._writer is not None:
      self._writer.join()
    for piece in list(self._held):
      self.give_back(piece)

  def _is_alive(self, path: str) -> bool:
    try:
      said = self._fs.cat_file(path)
    except FileNotFoundError:
      return False
    if _is_gone(said):
      return False
    # Not its last word: it may be read half written.
    if done := re.search(rb" (\d+) done$", said):
      self._told[path] = max(self._told.get(path, 0), int(done[1]))
    now = time.monotonic()
    before, since = self._seen.get(path, (None, now))
    # Empty while it is written anew: whoever is killed right then has said its last word before.
    if said != before and (said or before is None):
      since = now
      self._seen[path] = said, now
    return now - since < LEASE_SECONDS

  def _text(self, piece: str) -> bytes:
    return self._said() + f" {self._done[piece]} done".encode()

  def _said(self) -> bytes:
    self._beat += 1
    return f"{socket.gethostname()} {os.getpid()} {machine.identity()} {self.worker} {self._beat}".encode()

  def _keep_writing(self) -> None:
    while not self._closed.wait(LEASE_SECONDS / _BEATS):
      with self._writing:
        # A list: meanwhile others are taken.
        for piece, path in list(self._held.items()):
          try:
            # A folder that was swept up meanwhile is not begun anew.
            if self._fs.exists(path):
              self._fs.pipe_file(path, self._text(piece))
          except Exception as e:  # each file system has its own; the next time may do, and what is lost is a lease
            logging.warning("%s could not be written (%s)", path, e)


def _numbers(piece: str, names: Collection[str]) -> list[int]:
  """Of the leases of a piece, those given back among them."""
  return [int(found[1]) for name in names if (found := re.fullmatch(rf"{re.escape(piece)}\.(\d+)\.lease", name))]


def _number(path: str) -> int:
  return int(path.split(".")[-2])


def _is_gone(said: bytes) -> bool:
  """Whether a lease was given back, or is of a process of this machine that is no more: a new job need not wait."""
  if said == _OVER:
    return True
  words = said.decode().split()
  # With what follows the three words that count, as the last of what is read may be half a word.
  if len(words) < 4 or words[2] != machine.identity():
    return False
  try:
    os.kill(int(words[1]), 0)
  except ProcessLookupError:
    return True
  except PermissionError:
    pass
  return False
