"""Where a workdir lies: a folder of this machine, or one in a bucket, gs:// or s3://.

Stages read and write local files, as their libraries want them (SQLite, ScaNN, memory maps).  For a bucket, what they
read is fetched before and what they wrote is sent after; gcsfs and s3fs try again what fails for a moment.  A folder
is committed whole: by a rename here; in a bucket, which cannot rename one, by its last file, of which the old one is
deleted first and the new one sent last.
"""

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import fsspec
from etils import epath

from idistill_jax import extras

# Scheme -> (package that speaks it, extra that installs the package).
_BACKENDS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_SENT = ".sent.json"
# Orbax reads and writes through epath, which prefers TensorFlow, where that can be imported, and it has no S3.  epath
# asks once, at its first path.
os.environ.setdefault("EPATH_USE_TF", "false")


class Store(Protocol):
  """Names are relative to the top.  local: the folder on this machine in which work is done."""

  local: pathlib.Path

  def path(self, name: str) -> epath.Path:
    """For what reads and writes at the place itself."""
    ...

  def read(self, name: str) -> bytes | None:
    """A file's content, None where it is not there."""
    ...

  def written(self, name: str) -> Mapping[str, float]:
    """What lies in a folder -> when it was last written, in seconds since the epoch."""
    ...

  def folders(self, prefix: str) -> list[str]:
    """Names of the folders at the top that begin with `prefix`."""
    ...

  def remove(self, name: str) -> None:
    """Deletes a folder, where it is there."""
    ...

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    """Makes the local folder hold what was sent of it, but the folders of `leave`."""
    ...

  def send(self, name: str) -> None:
    """Makes what lies in a local folder, or file, outlive this machine."""
    ...

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    """Makes the local folder `working` the folder `final`; `leave` is no part of it."""
    ...

  def fetch(self, name: str, *, last: str) -> pathlib.Path:
    """The local folder that holds a committed one."""
    ...


def at(root: str | os.PathLike[str]) -> Store:
  return Bucket(str(root)) if str(root).partition("://")[0] in _BACKENDS else Folder(pathlib.Path(root))


class Folder:
  """A folder of this machine, or of a file system that machines share."""

  def __init__(self, root: pathlib.Path):
    self.local = root

  def path(self, name: str) -> epath.Path:
    return epath.Path(self.local / name)

  def read(self, name: str) -> bytes | None:
    path = self.local / name
    return path.read_bytes() if path.exists() else None

  def written(self, name: str) -> Mapping[str, float]:
    top = self.local / name
    return {str(path.relative_to(top)): _written(path) for path in (top, *top.rglob("*"))}

  def folders(self, prefix: str) -> list[str]:
    return sorted(path.name for path in self.local.glob(f"{prefix}*"))

  def remove(self, name: str) -> None:
    if (self.local / name).exists():
      shutil.rmtree(self.local / name)

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    pass

  def send(self, name: str) -> None:
    pass

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    for name in leave:
      shutil.rmtree(self.local / working / name, ignore_errors=True)
    if (self.local / final).exists():
      # A folder cannot be renamed over another; the old one steps aside first, under a name that the next
      # sweep of working folders removes should we die right here.
      aside = self.local / f".{final}-replaced"
      shutil.rmtree(aside, ignore_errors=True)
      (self.local / final).rename(aside)
      (self.local / working).rename(self.local / final)
      shutil.rmtree(aside)
    else:
      (self.local / working).rename(self.local / final)

  def fetch(self, name: str, *, last: str) -> pathlib.Path:
    return self.local / name


class Bucket:
  """A folder in a bucket, and the local one (under TMPDIR) that always stands for it."""

  local: pathlib.Path

  def __init__(self, url: str):
    url = url.rstrip("/")
    scheme, _, path = url.partition("://")
    package, extra = _BACKENDS[scheme]
    with extras.needed(url, extra):
      importlib.import_module(package)
    self._url = url
    self._fs, self._base = fsspec.core.url_to_fs(url, use_listings_cache=False)
    mirrors = pathlib.Path(tempfile.gettempdir()) / f"idistill_jax-{os.getuid()}"
    self.local = mirrors / _digest(url.encode()) / path.rpartition("/")[2]
    self.local.mkdir(parents=True, exist_ok=True)

  def path(self, name: str) -> epath.Path:
    return epath.Path(self._url) / name

  # -- Files -----------------------------------------------------------------------------------------------------------

  def read(self, name: str) -> bytes | None:
    try:
      return self._fs.cat_file(f"{self._base}/{name}")
    except FileNotFoundError:
      return None

  def written(self, name: str) -> Mapping[str, float]:
    top = f"{self._base}/{name}"
    return {path.removeprefix(top).lstrip("/"): time.timestamp()
            for path, info in self._fs.find(top, detail=True).items()
            for tag in ("LastModified", "mtime") if (time := info.get(tag)) is not None}  # fmt: skip

  # -- Folders ---------------------------------------------------------------------------------------------------------

  def folders(self, prefix: str) -> list[str]:
    try:
      names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._base, detail=False)]
    except FileNotFoundError:
      return []
    return sorted({name for name in names if name.startswith(prefix)})

  def remove(self, name: str) -> None:
    there = self._find(name)
    if there:
      self._fs.rm([f"{self._base}/{name}/{file}" for file in there])
    shutil.rmtree(self.local / name, ignore_errors=True)

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    with self._alone():
      # What was written here and not sent, as by a process that was killed, stays as it is.
      settled = {*self._changed(name), *(f"{name}/{file}" for file in leave)}
      there = {file: tag for file, tag in self._find(name).items()
               if not {f"{name}/{file}", f"{name}/{file.partition('/')[0]}"} & settled}  # fmt: skip
      sent = self._sent()
      self._get(name, self.local / name, [
        file for file, tag in there.items()
        if not (self.local / name / file).exists() or sent[f"{name}/{file}"]["there"] != tag
      ])
      self._note(name, there)

  def send(self, name: str) -> None:
    with self._alone():
      changed = self._changed(name)
      if changed:
        self._fs.put([str(self.local / path) for path in changed], [f"{self._base}/{path}" for path in changed])
        there = self._find(name)
        self._note(name, {file: there[file] for file in (path.removeprefix(name).lstrip("/") for path in changed)})

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    end = (self.local / working / last).read_bytes()
    self.send(working)
    if self.read(f"{final}/{last}") is not None:
      self._fs.rm_file(f"{self._base}/{final}/{last}")
    if earlier := self._find(final):
      self._fs.rm([f"{self._base}/{final}/{file}" for file in earlier])
    kept = [file for file in self._find(working) if file != last and file.partition("/")[0] not in leave]
    if kept:
      self._fs.copy([f"{self._base}/{working}/{file}" for file in kept],
                    [f"{self._base}/{final}/{file}" for file in kept])  # fmt: skip
    self._fs.pipe_file(f"{self._base}/{final}/{last}", end)
    # Here it is what a fetch begins with: what went straight into the bucket is fetched when it is asked for.
    parts = self._parts(final, end)
    shutil.rmtree(parts, ignore_errors=True)
    parts.parent.mkdir(exist_ok=True)
    (self.local / working).rename(parts)
    self.remove(working)

  def fetch(self, name: str, *, last: str) -> pathlib.Path:
    end, folder = self.read(f"{name}/{last}"), self.local / name
    if end is None:
      return folder
    with self._alone():
      if not (folder / last).exists() or (folder / last).read_bytes() != end:
        parts = self._parts(name, end)
        parts.mkdir(parents=True, exist_ok=True)
        self._get(name, parts, [file for file in self._find(name) if file != last and not (parts / file).exists()])
        (parts / last).write_bytes(end)
        shutil.rmtree(folder, ignore_errors=True)
        parts.rename(folder)
    return folder

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    """Processes of one machine share the local folder: one of them fetches, and the others find it there."""
    with open(self.local / ".lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      yield

  def _get(self, name: str, into: pathlib.Path, files: Sequence[str]) -> None:
    """Fetches files of a folder; one that a kill leaves half has another name."""
    halves = [into / f"{file}.half" for file in files]
    for half in halves:
      half.parent.mkdir(parents=True, exist_ok=True)
    if files:
      self._fs.get([f"{self._base}/{name}/{file}" for file in files], [str(half) for half in halves])
    for half in halves:
      half.rename(half.with_name(half.name.removesuffix(".half")))

  def _parts(self, name: str, end: bytes) -> pathlib.Path:
    """Where a folder gathers until it is whole; another one of the same name gathers elsewhere."""
    return self.local / ".parts" / f"{name}-{_digest(end)}"

  def _find(self, name: str) -> dict[str, str]:
    """Files under a folder in the bucket, or the file itself as "" -> what changes with their content."""
    top = f"{self._base}/{name}"
    found = self._fs.find(top, detail=True)
    # A store may hold empty objects that stand for folders.
    return {path.removeprefix(top).lstrip("/"): str([info["size"], *(info.get(tag) for tag in ("ETag", "etag"))])
            for path, info in found.items() if info["type"] == "file" and not path.endswith("/")}  # fmt: skip

  # -- What has been sent ----------------------------------------------------------------------------------------------

  def _sent(self) -> dict[str, dict[str, Any]]:
    """File -> what it was like here and there when both were the same."""
    path = self.local / _SENT
    return json.loads(path.read_text()) if path.exists() else {}

  def _changed(self, name: str) -> set[str]:
    """Local files under a folder, or the file itself, that are not as they were sent or received."""
    sent, top = self._sent(), self.local / name
    files = [str(path.relative_to(self.local)) for path in (top, *top.rglob("*")) if path.is_file()]
    return {file for file in files if sent.get(file, {}).get("here") != _stamp(self.local / file)}

  def _note(self, name: str, there: Mapping[str, str]) -> None:
    same = {}
    for file, tag in there.items():
      path = f"{name}/{file}".rstrip("/")
      same[path] = {"here": _stamp(self.local / path), "there": tag}
    working = self.local / f"{_SENT}.{os.getpid()}"
    working.write_text(json.dumps(self._sent() | same))
    working.replace(self.local / _SENT)


def _written(path: pathlib.Path) -> float:
  """A checkpoint's temporary files may be gone by the time they are looked at."""
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return 0.0


def _stamp(path: pathlib.Path) -> list[int]:
  """Size in bytes, and time of the last writing in ns."""
  state = path.stat()
  return [state.st_size, state.st_mtime_ns]


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]
