"""What a config names from outside the workdir, on this machine or in a bucket: corpora, rankings, runs, weights.

Readers take both alike, as streams: of a corpus in a bucket nothing is kept here.  A folder that libraries want as
files is fetched, once a machine and again when something changes there.
"""

import codecs
import contextlib
import dataclasses
import fcntl
import fnmatch
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

from idistill_jax.workdir import files, remote

# Of what is read as a stream: asked for at once, and handed on.
_AHEAD_BYTES, _BUFFER_BYTES = 8 << 20, 1 << 20


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Object(os.PathLike[str]):
  """A file in a bucket, or a folder of them, with what readers use of pathlib.Path."""

  url: str

  def __str__(self) -> str:
    return self.url

  def __fspath__(self) -> str:
    return self.url

  def __truediv__(self, name: str) -> "Object":
    return Object(f"{self.url}/{name}")

  @property
  def name(self) -> str:
    return pathlib.PurePosixPath(self.url).name

  @property
  def stem(self) -> str:
    return pathlib.PurePosixPath(self.url).stem

  @property
  def suffix(self) -> str:
    return pathlib.PurePosixPath(self.url).suffix

  def relative_to(self, folder: "Path") -> pathlib.PurePosixPath:
    return pathlib.PurePosixPath(self.url).relative_to(pathlib.PurePosixPath(str(folder)))

  def resolve(self) -> "Object":
    return self

  def exists(self) -> bool:
    return self._type() is not None

  def is_file(self) -> bool:
    return self._type() == "file"

  def _type(self) -> str | None:
    # Not fsspec's own `exists`, for which what may not be read is not there.
    fs, base = remote.file_system(self.url)
    try:
      with remote.asked(self.url):
        return fs.info(base)["type"]
    except FileNotFoundError:
      return None

  def tag(self) -> str:
    """What changes with its content; raises FileNotFoundError."""
    fs, base = remote.file_system(self.url)
    try:
      with remote.asked(self.url):
        return remote.tag(fs.info(base))
    except FileNotFoundError as e:
      raise FileNotFoundError(f"{self.url}: no such file") from e

  def glob(self, pattern: str) -> Iterator["Object"]:
    """What lies in the folder itself."""
    fs, base = remote.file_system(self.url)
    try:
      with remote.asked(self.url):
        paths = [path.rstrip("/") for path in fs.ls(base, detail=False)]
    except FileNotFoundError:
      paths = []
    # In a file lies that file itself, as fsspec has it, and in a folder the empty object that stands for it.
    names = [path.rpartition("/")[2] for path in paths if path.strip("/") != base.strip("/")]
    return (self / name for name in fnmatch.filter(names, pattern))

  def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
    fs, base = remote.file_system(self.url)
    try:
      with remote.asked(self.url):
        return io.BufferedReader(_Stream(self.url, fs.open(base, mode, block_size=_AHEAD_BYTES)), _BUFFER_BYTES)
    except FileNotFoundError as e:
      raise FileNotFoundError(f"{self.url}: no such file") from e

  def read_bytes(self) -> bytes:
    with self.open() as file:
      return file.read()


class _Stream(io.RawIOBase):
  """A file in a bucket; what is wrong while it is read is said with its url."""

  def __init__(self, url: str, file: io.BufferedIOBase):
    super().__init__()
    self._url, self._file = url, file

  def readable(self) -> bool:
    return True

  def readinto(self, into: Any) -> int:
    with remote.asked(self._url):
      return self._file.readinto(into)

  def close(self) -> None:
    self._file.close()
    super().close()


Path = pathlib.Path | Object


def at(path: str | os.PathLike[str]) -> Path:
  """An object where the path is one in a bucket, otherwise a path on this machine; raises as `remote.scheme` does."""
  path = os.fspath(path)
  return Object(path.rstrip("/")) if remote.scheme(path) else pathlib.Path(path)


def file(path: str | os.PathLike[str], named_by: str) -> Path:
  """As `at`; raises FileNotFoundError, with the field or flag that names it, where no file is there."""
  found = at(path)
  if not found.is_file():
    raise FileNotFoundError(f"{path}: {named_by} names no file")
  return found


def plain_name(path: str | os.PathLike[str]) -> pathlib.PurePath:
  """The file's name as it would be without gzip: its ending says what is in it."""
  return pathlib.PurePath(pathlib.PurePath(path).name.removesuffix(".gz"))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[io.BufferedIOBase]:
  """A file's bytes as a stream, gunzipped where its name ends in .gz."""
  with path.open("rb") as file:
    if path.suffix != ".gz":
      yield file
      return
    with gzip.GzipFile(fileobj=file) as unzipped:
      yield unzipped


def lines(path: Path, error: type[ValueError]) -> Iterator[tuple[int, bytes]]:
  """(number, line) of a file, from 1, gunzipped where its name ends in .gz.

  Raises `error`, naming file and line, where it cannot be read further, as a gzip file that ends early, and for UTF-16,
  which PowerShell's > writes.
  """
  number = 0
  with reading(path) as file:
    try:
      for number, line in enumerate(file, start=1):
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
          raise error(f"{path}: is UTF-16; convert it to UTF-8")
        yield number, line
    except (EOFError, OSError, zlib.error) as e:
      again = "; fetch the gzip file again" if path.suffix == ".gz" else ""
      raise error(f"{path}:{number + 1}: cannot be read further: {e}{again}") from e


def text_lines(path: Path, error: type[ValueError]) -> Iterator[tuple[int, str]]:
  """As `lines`, as text without a byte order mark; raises `error` for bytes that are not UTF-8, too.

  Not as a text file: that decodes many lines at once, and would not know which one is wrong.
  """
  for number, line in lines(path, error):
    try:
      yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
      raise error(f"{path}:{number}: not UTF-8: {e}; convert the file") from e


def sha256(path: str | os.PathLike[str]) -> str:
  """Hash of a file's bytes, wherever it lies.

  Every command asks for it, so of an object this machine remembers it for as long as the object does not change.
  """
  path = at(path)
  tag = path.tag() if isinstance(path, Object) else None
  remembered = None if tag is None else remote.kept() / "sha256" / _digest(str(path), tag)
  if remembered is not None and remembered.exists():
    return remembered.read_text()
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  # What changed while it was read is not what either tag stands for.
  if remembered is not None and isinstance(path, Object) and path.tag() == tag:
    remembered.parent.mkdir(exist_ok=True)
    files.write_atomically(remembered, found)
  return found


def fetched(url: str, wanted: Callable[[Collection[str]], Collection[str]]) -> pathlib.Path:
  """The local folder that holds what a folder in a bucket holds now, fetched once a machine until that changes.

  wanted: names in the folder -> those to fetch.  Raises FileNotFoundError where there are none, OSError where they
  change meanwhile or lead out of the folder.  The local folder's name ends as the url does: what is wrong with a file
  is said with its name.  What was fetched before a change is removed.
  """
  url = url.rstrip("/")
  fs, base = remote.file_system(url)

  def look() -> dict[str, str]:
    with remote.asked(url):
      found = remote.files(fs, base)
    there = {path.removeprefix(base).lstrip("/"): tag for path, tag in found.items()}
    return {name: there[name] for name in sorted(wanted(there))}

  there = look()
  if not there:
    raise FileNotFoundError(f"{url}: nothing that could be read lies there")
  if leading_out := [name for name in there if ".." in name.split("/")]:
    raise OSError(f"{url}: {leading_out[0]!r} would be written outside of its folder; give the object another name")
  versions = remote.kept() / "inputs" / _digest(url)
  top = versions / _digest(json.dumps(there))
  found = top / remote.scheme(url) / base.strip("/")
  versions.mkdir(parents=True, exist_ok=True)
  # Processes of one machine: the first fetches, and the others find it there.
  with open(f"{versions}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    # A cleaner of temporary files takes some, and leaves the folder.
    if not all((found / name).exists() for name in there):
      for old in versions.iterdir():
        shutil.rmtree(old)
      with tempfile.TemporaryDirectory(dir=versions) as half:
        whole = pathlib.Path(half) / "whole"
        targets = [whole / found.relative_to(top) / name for name in there]
        for target in targets:
          target.parent.mkdir(parents=True, exist_ok=True)
        with remote.asked(url):
          fs.get([f"{base}/{name}" for name in there], [str(target) for target in targets])
        if look() != there:
          raise OSError(f"{url}: was changed while it was read; run the same command again")
        whole.rename(top)
  return found


def _digest(*words: str) -> str:
  return hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
