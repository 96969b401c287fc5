"""TFRecord files: payloads -> atomically written shards -> payloads, CRC-checked.

TensorFlow reads what is written here and the other way round; TensorFlow itself is not needed.  A record is,
little-endian,

    uint64 length | uint32 masked crc32c(length) | length bytes | uint32 masked crc32c(bytes)

and the shards of `name` are `name-00000-of-00002.tfrecord`, ...; put one after the other they give the
payloads in the order in which they were written.
"""

import bisect
import functools
import itertools
import os
import pathlib
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import google_crc32c
import numpy as np

from idistill_jax.workdir import files

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _FOOTER.size
# Files that are kept open to read from here and there: a process may often have no more than 1,024.
_OPEN = 256


class CorruptRecord(ValueError):
  """A record that is not what was written.

  path: the file.  offset: byte at which the record starts.  record: its number in that file, from 0.  found:
  what is wrong with it.
  """

  def __init__(self, path: str | os.PathLike[str], offset: int, record: int, found: str):
    super().__init__(os.fspath(path), offset, record, found)
    self.path = pathlib.Path(path)
    self.offset = offset
    self.record = record
    self.found = found

  def __str__(self) -> str:
    return (
      f"{self.path}: record {self.record} at byte {self.offset}: {self.found}; "
      f"delete the folder {self.path.parent} and make it again"
    )


class MissingShard(FileNotFoundError):
  """Not every shard of a name is in the folder; the message names the folder and the shards."""


def masked_crc(data: bytes) -> int:
  """crc32c, rotated and offset as the TFRecord format asks: CRCs of data that hold CRCs stay independent."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(payload: bytes) -> bytes:
  """A payload as a record."""
  length = struct.pack("<Q", len(payload))
  return length + _FOOTER.pack(masked_crc(length)) + payload + _FOOTER.pack(masked_crc(payload))


def shard_name(name: str, shard: int, shards: int) -> str:
  return f"{name}-{shard:05d}-of-{shards:05d}.tfrecord"


def write(
  folder: str | os.PathLike[str], name: str, payloads: Iterable[bytes], shards: int = 1, count: int | None = None
) -> list[pathlib.Path]:
  """Writes the payloads as `shards` files of nearly equal counts, replacing earlier shards of that name.

  Every shard is written under a hidden name, synced, and renamed when it is complete: a reader never sees half a
  shard, nor does a bucket, as the name ends in `.half`.  One shard takes the payloads as a stream, and so do
  several where their count is told; else they are held in memory to cut them into even runs.  Raises
  ValueError where the count is not theirs.
  """
  if shards < 1:
    raise ValueError(f"{name}: at least one shard is needed, not {shards}")
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  finals = [folder / shard_name(name, i, shards) for i in range(shards)]
  for path, run in zip(finals, _runs(payloads, shards, count), strict=True):
    _write_file(path, run)
  remove_others(folder, name, shards)
  return finals


def _runs(payloads: Iterable[bytes], shards: int, count: int | None) -> Iterator[Iterable[bytes]]:
  if shards == 1:
    yield payloads
    return
  if count is None:
    payloads = list(payloads)
    count = len(payloads)
  seen = 0

  def counted() -> Iterator[bytes]:
    nonlocal seen
    for payload in payloads:
      seen += 1
      yield payload

  coming = counted()
  for i in range(shards):
    yield itertools.islice(coming, (i + 1) * count // shards - i * count // shards)
  next(coming, None)
  if seen != count:
    raise ValueError(f"{count} payloads were told, {'more' if seen > count else seen} came")


def write_shard(
  folder: str | os.PathLike[str], name: str, payloads: Iterable[bytes], shard: int, shards: int
) -> pathlib.Path:
  """Writes one of `shards` files of a name, in place of an earlier one; the others are written by somebody else."""
  final = pathlib.Path(folder) / shard_name(name, shard, shards)
  _write_file(final, payloads)
  return final


def remove_others(folder: str | os.PathLike[str], name: str, shards: int) -> bool:
  """Removes shards of a name that are not of so many, as an earlier writing may have left; whether any were there."""
  mine = {shard_name(name, i, shards) for i in range(shards)}
  others = [path for path in _find(pathlib.Path(folder), name) if path.name not in mine]
  for path in others:
    path.unlink(missing_ok=True)  # another process of the job may remove it, too
  return bool(others)


def _write_file(path: pathlib.Path, payloads: Iterable[bytes]) -> None:
  with files.replacing(path) as out:
    for payload in payloads:
      out.write(framed(payload))


def read(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """Payloads of one file in order; raises CorruptRecord at the first record that fails a check.

  What precedes that record has been yielded by then: nothing else is lost.
  """
  with open(path, "rb") as file:
    for record, offset, length in _headers(path, file):
      yield _payload(path, offset, record, file.read(length), file.read(_FOOTER.size))


def payloads(folder: str | os.PathLike[str], name: str) -> "Payloads":
  """Those of all shards of a name, of which nothing but headers is read yet; raises CorruptRecord for one of these, and
  MissingShard."""
  paths, lengths = shard_paths(folder, name), list[int]()
  for path in paths:
    with open(path, "rb") as file:
      lengths += [length for _, _, length in _headers(path, file)]
  return Payloads(paths, starts(lengths))


def _headers(path: str | os.PathLike[str], file: BinaryIO) -> Iterator[tuple[int, int, int]]:
  """Number, offset and payload's length of each record of an open file, which then stands at the payload."""
  size, offset = os.stat(path).st_size, 0
  for record in itertools.count():
    if offset == size:
      return
    file.seek(offset)
    length = _length(path, offset, record, file.read(_HEADER.size), size)
    yield record, offset, length
    offset += length + _OVERHEAD


def starts(lengths: Sequence[int]) -> np.ndarray:
  """Lengths of payloads -> int64 [N + 1]: where each record begins and the last ends, if all files lay end to end."""
  return np.append(0, np.cumsum(np.asarray(lengths, np.int64) + _OVERHEAD))


class Payloads:
  """Payloads of several files, each read when it is asked for.

  Not mapped: a file that is cut while it is read would end the process without a word.
  """

  def __init__(self, paths: Sequence[pathlib.Path], starts: np.ndarray):
    """starts: of all files, as above.  Raises ValueError where they are not those of these files."""
    begin = np.cumsum([0, *(path.stat().st_size for path in paths)])
    first = np.searchsorted(starts, begin)
    if not np.array_equal(starts.take(first, mode="clip"), begin):
      raise ValueError(f"{paths[0]} and those behind it do not begin and end where records are said to")
    self._paths, self._starts = paths, starts.view(np.ndarray)
    self._first = first.tolist()
    self._open = functools.lru_cache(_OPEN)(lambda path: _Open(os.open(path, os.O_RDONLY)))

  def __len__(self) -> int:
    return len(self._starts) - 1

  def place(self, row: int) -> tuple[pathlib.Path, int]:
    """The file of a record, and its number there."""
    file = bisect.bisect_right(self._first, row) - 1
    return self._paths[file], row - self._first[file]

  def read(self, row: int) -> bytes:
    """Raises CorruptRecord where it fails a check."""
    path, record = self.place(row)
    start, end = self._starts[row:row + 2].tolist()
    offset = start - int(self._starts[row - record])
    # Held here, as another thread's file may take its place.
    file = self._open(path)
    data = os.pread(file.descriptor, end - start, offset)
    length = _length(path, offset, record, data[:_HEADER.size], offset + len(data))
    payload, footer = data[_HEADER.size:_HEADER.size + length], data[_HEADER.size + length:length + _OVERHEAD]
    return _payload(path, offset, record, payload, footer)


class _Open:
  """A file's descriptor, open as long as this is held."""

  def __init__(self, descriptor: int):
    self.descriptor = descriptor

  # Bound here: at the interpreter's end a module's names are gone before what is open.
  def __del__(self, close: Callable[[int], None] = os.close) -> None:
    close(self.descriptor)


def _length(path: str | os.PathLike[str], offset: int, record: int, header: bytes, size: int) -> int:
  """Payload length that a header tells, once its CRC holds and the file is long enough for it."""
  if len(header) < _HEADER.size:
    raise CorruptRecord(path, offset, record, f"truncated: {len(header)} of {_HEADER.size} header bytes")
  length, crc = _HEADER.unpack(header)
  if masked_crc(header[:8]) != crc:
    raise CorruptRecord(path, offset, record, f"bad length crc: {length} does not match {crc:#010x}")
  if offset + length + _OVERHEAD > size:
    raise CorruptRecord(
      path, offset, record, f"truncated: {size - offset} of {length + _OVERHEAD} bytes are there"
    )
  return length


def _payload(path: str | os.PathLike[str], offset: int, record: int, payload: bytes, footer: bytes) -> bytes:
  (crc,) = _FOOTER.unpack(footer)
  actual = masked_crc(payload)
  if actual != crc:
    raise CorruptRecord(
      path, offset, record, f"bad data crc: {len(payload)} bytes give {actual:#010x}, recorded is {crc:#010x}"
    )
  return payload


def _find(folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  pattern = re.compile(re.escape(name) + r"-\d{5}-of-\d{5}\.tfrecord")
  if not folder.is_dir():
    return []
  return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def exists(folder: str | os.PathLike[str], name: str) -> bool:
  """Whether the folder holds any shard of that name."""
  return bool(_find(pathlib.Path(folder), name))


def shard_paths(folder: str | os.PathLike[str], name: str) -> list[pathlib.Path]:
  """All shards of a name in order; raises MissingShard unless exactly one complete set is there."""
  folder = pathlib.Path(folder)
  found = _find(folder, name)
  if not found:
    raise MissingShard(f"{folder}: no file {name}-*-of-*.tfrecord")
  counts = sorted({int(path.stem.rsplit("-", 1)[1]) for path in found})
  if len(counts) > 1:
    raise MissingShard(
      f"{folder}: shards of {name} from different writings lie side by side "
      f"(of {', of '.join(map(str, counts))}); delete the folder and make it again"
    )
  expected = [folder / shard_name(name, i, counts[0]) for i in range(counts[0])]
  missing = [path.name for path in expected if path not in found]
  if missing:
    raise MissingShard(
      f"{folder}: {len(missing)} of {counts[0]} shards of {name} are missing: "
      f"{', '.join(missing[:5])}; delete the folder and make it again"
    )
  return expected
