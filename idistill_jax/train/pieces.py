"""Work over many texts, cut into pieces that workers claim one by one and keep as files once they are done.

The cut is a function of the amount of work alone.  So whoever comes later, as another process of a job, as one by
itself or after all others have died, finds the finished pieces, whoever made them, and claims what is left.

A worker that was lost and comes back may finish a piece that was made meanwhile: it keeps the one that is there.  Where
two finish one in the same moment, the last one stays: each is written as a whole, from the same texts by the same
weights, and on machines of one kind with the same bytes.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import operator
import pathlib
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import IO

import numpy as np
from etils import epath

from idistill_jax import processes
from idistill_jax.data import tokenize
from idistill_jax.train import copies
from idistill_jax.workdir import files, remote
from idistill_jax.workdir import leases as leases_lib

# Texts of a piece: enough for full rows, few enough to lose; a small corpus is cut into MOST of them, as far as that.
LEAST, LARGEST, MOST = 2048, 8192, 16
_POLL_SECONDS = 0.5
# However short the patience: the lease of a machine that is gone is void by then, and its piece another's.
_LOST_SECONDS = 1.5 * leases_lib.LEASE_SECONDS
# Raise when what is kept of a piece changes: those of an earlier version are then made again.
_FORM = 2
_NUMBERS = np.zeros(0, np.float32)


def cut(total: int) -> list[range]:
  """Runs of nearly equal length that cover `total` texts."""
  size = min(max(-(-total // MOST), LEAST), LARGEST)
  count = -(-total // size)
  return [range(i * total // count, (i + 1) * total // count) for i in range(count)]


def finished(written: Mapping[str, float]) -> dict[str, tuple[int, int]]:
  """Work -> how many of its pieces are finished, and how many there are, by the files around them and when each was
  written: of work that was begun with other texts or weights before, what is left lies beside it."""
  done, last = collections.Counter[str](), dict[str, tuple[str, int]]()
  for file in sorted(written, key=lambda file: (written[file], file)):
    if match := re.search(r"(\d+_([^/]+)-[0-9a-f]{8}-of-(\d+))/(\d{9}-\d{9}\.npy$)?", file):
      done[match[1]] += bool(match[4])
      last[match[2].replace("_", " ")] = match[1], int(match[3])
  return {name: (done[folder], count) for name, (folder, count) in sorted(last.items(), key=operator.itemgetter(1))}


def numbers(what: bytes) -> np.ndarray:
  """int64 numbers, few, that are others of other bytes: for `whose`, where it would be too long as it is."""
  return np.frombuffer(hashlib.sha256(what).digest(), np.int64)


class Pieces:
  """The pieces of one piece of work, made by all workers that have the same folder; `close` gives back what is claimed.

  folder: where finished ones lie; None keeps them in memory, for one process.  total: how many texts there are.
  whose: numbers by which work on others is another's, as lengths of some.  still_alone: raises leases.LostError where
  the stage is another run's by now; it is asked with every piece that is claimed.  none: the output of no texts.
  """

  def __init__(self, folder: epath.PathLike | None, name: str, total: int, whose: np.ndarray,
               still_alone: Callable[[], None] = lambda: None, none: np.ndarray = _NUMBERS):
    self._name, self._still_alone = name, still_alone
    self._all = cut(total)
    # Without a folder: names of what is finished, and all of it, in order.
    self._made, self._outputs = set[str](), none
    self._cuts: list[Sequence[tokenize.Cut]] = []
    self._folder = None
    if folder is not None:
      # Other work under the same name would be the work of another program.
      digest = hashlib.sha256(np.asarray([_FORM, total, *whose], np.int64).tobytes()).hexdigest()[:8]
      self._folder = epath.Path(folder) / f"{name.replace(' ', '_')}-{digest}-of-{len(self._all)}"
      with remote.reaching(self._folder):
        self._folder.mkdir(parents=True, exist_ok=True)
      self._leases = leases_lib.Leases(self._folder)
    self._look()

  def rounds(self) -> Iterator[Iterator[range]]:
    """Pieces for this worker to finish, each claimed when it is asked for; a round ends when others are at the rest.

    Rounds come until all is finished, by whomever.  Raises ProcessError where others do no text of what they are at for
    as long as processes have patience, and a lost one's piece would be this worker's.
    """
    patience = max(processes.patience(), _LOST_SECONDS)
    known, since = None, time.monotonic()
    while missing := self._missing():
      # A piece may take longer than there is patience; that its lease is written says only that its worker lives.
      now = len(missing), {} if self._folder is None else self._leases.told()
      if now != known:
        known, since = now, time.monotonic()
      elif time.monotonic() - since > patience:
        raise processes.ProcessError(
          f"{self._name}: others are at {len(missing)} of {len(self._all)} pieces, and no text of these was done "
          f"within {patience:g} s; the first is {self._path(missing[0])}, held by a worker (machine and "
          f"process: {self._leases.holder(_stem(missing[0]))}) that may hang: end that process and run the same "
          "command again, or give a longer --patience where a step takes so long")
      else:
        time.sleep(_POLL_SECONDS)
      yield self._claims()

  def left(self) -> int:
    """How many texts were in nobody's finished pieces when the folder was last looked at, as it is for every claim."""
    return self._left

  def _look(self) -> Collection[str]:
    """Names of what is finished, and in a folder of what is claimed."""
    there = self._made if self._folder is None else self._leases.names()
    self._left = sum(len(piece) for piece in self._all if _file(piece) not in there)
    return there

  def _missing(self) -> list[range]:
    there = self._look()
    return [piece for piece in self._all if _file(piece) not in there]

  def _claims(self) -> Iterator[range]:
    if self._folder is None:
      yield from self._missing()
      return
    while (piece := self._claim()) is not None:
      yield piece

  def _claim(self) -> range | None:
    there = self._look()
    # Those who begin together begin apart.
    first = processes.index() * len(self._all) // processes.count()
    for piece in self._all[first:] + self._all[:first]:
      if _file(piece) not in there and self._leases.take(_stem(piece), _file(piece), there):
        # A machine that was paused may come back after all was swept up: in a bucket its lease has begun the folder
        # anew, whose pieces nobody would ever read.
        self._still_alone()
        return piece
    return None

  def place(self, piece: range) -> tuple[int, int]:
    """Which of the pieces it is, from 1, and how many there are."""
    return self._all.index(piece) + 1, len(self._all)

  def tell(self, piece: range, texts: int) -> None:
    """Says to those who wait for the piece how many of its texts are done."""
    if self._folder is not None:
      self._leases.tell(_stem(piece), texts)

  def finish(self, piece: range, values: np.ndarray, cuts: Sequence[tokenize.Cut] = ()) -> None:
    """Keeps the output [len(piece), ...] of a piece, and how its texts of each kind were cut.

    Raises leases.LostError where all was finished and swept up.
    """
    self._left -= len(piece)
    if self._folder is None:
      if not self._made:
        self._outputs = self._empty(values)
      self._outputs[piece.start:piece.stop] = values
      self._made.add(_file(piece))
      self._cuts.append(cuts)
      return
    if self._leases.is_made(_stem(piece), _file(piece)):
      self._leases.give_back(_stem(piece))
      return
    if cuts:
      # Before the output, by which others know that the piece is finished.
      self._put(self._cuts_path(piece), json.dumps([dataclasses.asdict(cut) for cut in cuts]).encode())
    made = io.BytesIO()
    np.save(made, values)
    self._put(self._path(piece), made.getbuffer())
    self._leases.give_back(_stem(piece))

  def _put(self, path: epath.Path, content: bytes | memoryview) -> None:
    # An object in a bucket is there as a whole or not at all, and cannot be renamed but by a copy.
    if remote.is_bucket(str(path)):
      with remote.reaching(path):
        path.write_bytes(content)
      return
    working = path.with_name(f".{path.stem}.{self._leases.worker}{path.suffix}")
    try:
      working.write_bytes(content)
      working.replace(path)
    finally:
      working.unlink(missing_ok=True)  # of a disk that is full it would keep the rest, under a name that nobody reads

  def cuts(self) -> list[tokenize.Cut]:
    """How the texts of each kind were cut in all pieces, once there are no more rounds."""
    of_pieces = self._cuts if self._folder is None else map(self._read_cuts, self._all)
    return [functools.reduce(operator.add, of_kind) for of_kind in zip(*of_pieces, strict=True)]

  def whole(self, into: pathlib.Path | None = None) -> np.ndarray:
    """The output of all pieces, in order, once there are no more rounds.

    into: a file that the first process of a job writes it to, piece by piece, when all ask for it.  Those that see the
    file read it there, mapped: one copy for a machine, in memory that is given back where others need it.  Where the
    folder is in a bucket, one of each other machine fetches it into such a file there.  Raises OSError where the disk
    has no room for it.
    """
    if into is None:
      return self._read_all()
    what = f"{into.name} of {self._name}"
    # A workdir in a bucket has a folder on each machine: nobody waits there until the first has filled its own.
    if self._all and self._folder is not None and remote.is_bucket(str(self._folder)):
      return copies.one_a_machine(into, self._write, what)
    written = processes.once(lambda: self._write(into), what)
    # A file system may show others an older file, or none.
    return np.load(into, mmap_mode="r") if self._all and _version(into) == written else self._read_all()

  def _read_all(self) -> np.ndarray:
    if self._folder is None or not self._all:
      return self._outputs
    first = self._read(self._all[0])
    outputs = self._empty(first)
    for piece in self._all:
      outputs[piece.start:piece.stop] = first if piece.start == 0 else self._read(piece)
    return outputs

  def _write(self, into: pathlib.Path) -> list[int] | None:
    """Not by a map of the file: a full disk would end the process without an error.  Returns the file's version."""
    into.unlink(missing_ok=True)  # of a run that was killed: beside the pieces, there is room for one
    files.remove_halves(into)
    with files.replacing(into) as out:
      if self._folder is None or not self._all:
        np.save(out, self._outputs)
      else:
        self._put_together(out, into.parent)
    return _version(into)

  def _put_together(self, out: IO[bytes], folder: pathlib.Path) -> None:
    """The outputs of all pieces into an open file of a folder, as np.save writes them; raises as `take_room` does."""
    first = self._read(self._all[0])
    header = np.lib.format.header_data_from_array_1_0(first)
    np.lib.format.write_array_header_1_0(out, header | {"shape": self._shape(first)})
    out.flush()
    size = out.tell() + first.nbytes // len(first) * self._all[-1].stop
    copies.take_room(out, size, folder, self._name)
    for piece in self._all:
      (first if piece.start == 0 else self._read(piece)).tofile(out)
      processes.moved()

  def _shape(self, like: np.ndarray) -> tuple[int, ...]:
    """Of the outputs of all pieces, of which one has these."""
    return self._all[-1].stop, *like.shape[1:]

  def _empty(self, like: np.ndarray) -> np.ndarray:
    """For the outputs of all pieces, of which one has these."""
    return np.empty(self._shape(like), like.dtype)

  def close(self) -> None:
    if self._folder is not None:
      self._leases.close()

  def _read(self, piece: range) -> np.ndarray:
    with remote.reaching(self._path(piece)), self._path(piece).open("rb") as found:
      return np.load(found)

  def _read_cuts(self, piece: range) -> list[tokenize.Cut]:
    with remote.reaching(self._cuts_path(piece)):
      return [tokenize.Cut(**one) for one in json.loads(self._cuts_path(piece).read_text())]

  def _cuts_path(self, piece: range) -> epath.Path:
    return self._path(piece).with_suffix(".json")

  def _path(self, piece: range) -> epath.Path:
    assert self._folder is not None
    return self._folder / _file(piece)


def _version(file: pathlib.Path) -> list[int] | None:
  """What no other file has in its place, also as another machine sees it; None where there is no file."""
  if not file.exists():
    return None
  state = file.stat()
  return [state.st_ino, state.st_size, state.st_mtime_ns]


def _stem(piece: range) -> str:
  return f"{piece.start:09d}-{piece.stop:09d}"


def _file(piece: range) -> str:
  return f"{_stem(piece)}.npy"
