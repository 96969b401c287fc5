"""A folder in a bucket, gs:// or s3://, and the local one that stands for it.

What stages read is fetched before, what they wrote is sent after; gcsfs and s3fs try again what fails for a moment.  A
bucket cannot rename a folder: one is committed by its last file, of which the old one is deleted first and the new one
sent last.

A run that was paused, or cut off, for longer than a lease lasts finds out (`still_alone`) before it claims a piece,
sends a working folder, a checkpoint or a page, or commits, and ends.  It looks and then writes.  Stopped between the
two within a commit, again for so long, it still does the one request that it was about to make, and this may

  delete the last file of what the run that took over has committed: the stage is not done, and made again;
  delete files of the other's whose last file stays, as their names are those of files that it found before;
  copy nothing, as the other has swept it up, or what the other has sent to the working folder of both;
  create its last file, which is never replaced, among files of the other, which is at work on its own commit;
  send its version of a file, whole and of the same key, to the working folder, from where the other commits it.

The second and fourth would be half a commit that looks like a whole one.  So the last file says what belongs to it
(`sealed`), as found while the run was alone, and `fetch` refuses what differs.  The run that was stopped sweeps nothing
up before a last look: the working folder may be the one that the other is still at work in.

What changed here alone since it was sent (`sent`) is sent, what changed there alone is fetched.  Where both did,
databases are put together, and of other files the bucket's counts.
"""

import contextlib
import fcntl
import glob
import hashlib
import pathlib
import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from absl import logging
from etils import epath

from idistill_jax.workdir import databases, files, leases, locks, remote, sealed
from idistill_jax.workdir import sent as sent_lib

_LOCKS = ".locks"


class Bucket:
  """A folder in a bucket, and the local one (under TMPDIR) that always stands for it."""

  local: pathlib.Path

  def __init__(self, url: str):
    url = url.rstrip("/")
    self._url = url
    fs, self._base = remote.file_system(url)
    self._fs = remote.Asked(fs, url)
    self.local = remote.kept() / _digest(url.encode()) / url.rpartition("/")[2]
    self.local.mkdir(parents=True, exist_ok=True)
    self._held: tuple[leases.Leases, str] | None = None  # what `alone` keeps to this run

  @contextlib.contextmanager
  def alone(self, name: str, what: str) -> Iterator[None]:
    """A lock on this machine, and a lease in the bucket: that of a machine that is gone is void after a while."""
    with locks.alone(self.local / f".{name}.lock", what), contextlib.closing(leases.Leases(self.path(_LOCKS))) as held:
      until = time.monotonic() + 1.5 * leases.LEASE_SECONDS
      while not held.take(name, None, held.names()):
        if time.monotonic() > until:
          raise locks.BusyError(
            f"{what}: another run is at work there (machine and process: {held.holder(name)}); wait, or stop it first"
          )
        time.sleep(leases.LEASE_SECONDS / 20)
      self._held = held, name
      try:
        yield
      finally:
        self._held = None

  def is_held(self, name: str) -> bool:
    lease = leases.Leases(self.path(_LOCKS)).standing(name)
    return lease is not None and time.time() - self.written(_LOCKS).get(lease, 0.0) < leases.LEASE_SECONDS

  def still_alone(self) -> None:
    if self._held is not None:
      held, name = self._held
      held.hold(name)

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
    return {path.removeprefix(top).lstrip("/"): when.timestamp()
            for path, info in self._fs.find(top, detail=True).items()
            for tag in ("LastModified", "mtime") if (when := info.get(tag)) is not None}  # fmt: skip

  # -- Folders ---------------------------------------------------------------------------------------------------------

  def folders(self, prefix: str) -> list[str]:
    try:
      names = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._base, detail=False)]
    except FileNotFoundError:
      return []
    return sorted({name for name in names if name.startswith(prefix)})

  def remove(self, name: str) -> None:
    there = self._find(name)
    self._delete(there)
    shutil.rmtree(self.local / name, ignore_errors=True)
    with self._alone():
      sent_lib.note(self.local, {}, gone=[path for path in sent_lib.read(self.local) if path.startswith(f"{name}/")])

  def receive(self, name: str, *, leave: Collection[str] = ()) -> None:
    with self._alone():
      left = tuple(f"{name}/{folder}/" for folder in leave)
      there = {path: tag for path, tag in self._find(name).items()
               if not (f"{path}/".startswith(left) or databases.is_beside(path))}  # fmt: skip
      here, sent = self._here(name), sent_lib.read(self.local)
      news = [path for path, tag in there.items() if path not in here or sent.get(path, {}).get("there") != tag]
      both = {path for path in news if path in here and not sent_lib.is_same(sent, path, here[path])}
      merged = {path for path in both if databases.is_one(path)}
      for path in both - merged:
        self._step_aside(path)
      for path in merged:
        self._merge(path)
      self._get({path: self.local / path for path in news if path not in merged})
      gone = [path for path, stamp in here.items() if path in sent and path not in there
              and sent_lib.is_same(sent, path, stamp) and not f"{path}/".startswith(left)]  # fmt: skip
      for path in gone:
        # A database that is gone there is sent once more: it may have been paid for.
        if not databases.is_one(path):
          (self.local / path).unlink()
      same = {path: {"here": None if path in merged else sent_lib.stamp(self.local / path), "there": there[path]}
              for path in news}  # fmt: skip
      sent_lib.note(self.local, same, gone=gone)

  def send(self, name: str) -> None:
    with self._alone():
      here, sent = self._here(name), sent_lib.read(self.local)
      changed = [path for path, stamp in here.items() if not sent_lib.is_same(sent, path, stamp)]
      # Where even the folder is gone, somebody cleaned this machine up.
      gone = [path for path in sent if (self.local / name).is_dir()
              and path.startswith(f"{name}/") and path not in here and not databases.is_one(path)]  # fmt: skip
      if not changed and not gone:
        return
      there = self._find(name)
      for path in changed:
        if databases.is_one(path) and there.get(path) not in (None, sent.get(path, {}).get("there")):
          self._merge(path)
          here[path] = sent_lib.stamp(self.local / path)
      # What another machine has written since is no longer what was deleted here.
      self._delete(path for path in gone if there.get(path) == sent[path]["there"])
      self._put(changed)
      there = self._find(name) if changed else {}
      sent_lib.note(self.local, {path: {"here": here[path], "there": there[path]} for path in changed}, gone=gone)

  def is_torn(self, name: str) -> bool:
    return bool(self.folders(f".{name}-"))  # what it is copied from goes last

  def commit(self, working: str, final: str, *, last: str, leave: Collection[str] = ()) -> None:
    end = (self.local / working / last).read_bytes()
    self.send(working)
    sent = [path.removeprefix(f"{working}/") for path in self._find(working)]
    # Only now, as sending takes a while, and what follows takes a finished stage away.  Whoever is stopped right here
    # finds nothing to copy: the run that took over has swept it up.
    self.still_alone()
    if self.read(f"{final}/{last}") is not None:
      self._fs.rm_file(f"{self._base}/{final}/{last}")
    self._delete(self._find(final))
    kept = [file for file in sent if file != last and file.partition("/")[0] not in leave]
    try:
      self._fs.each("copy", [f"{self._base}/{working}/{file}" for file in kept],
                    [f"{self._base}/{final}/{file}" for file in kept])  # fmt: skip
    except FileNotFoundError as e:
      raise leases.LostError(f"{self._url}/{working}: was swept up by another run while it was committed") from e
    there = self._beside(final, last)
    self.still_alone()  # else what was copied may be half of this run's and half of the other's
    end = sealed.say(end, f"{self._url}/{final}", there)
    (self.local / working / last).write_bytes(end)
    try:
      self._fs.pipe_file(f"{self._base}/{final}/{last}", end, mode="create")
    except FileExistsError as e:
      if self.read(f"{final}/{last}") != end:  # else it was sent, and the answer was lost
        raise leases.LostError(f"{self._url}/{final}: another run has committed meanwhile, what is its stays") from e
    self.still_alone()
    # Here it is what a fetch begins with: what went straight into the bucket is fetched when it is asked for.
    files.strip(self.local / working, leave)
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
      if not (folder / last).exists() or (folder / last).read_bytes() != end or not sealed.is_whole(end, folder):
        parts = self._parts(name, end)
        parts.mkdir(parents=True, exist_ok=True)
        there = self._beside(name, last)
        sealed.check(end, f"{self._url}/{name}", there)
        self._get({f"{name}/{file}": parts / file for file in there if not (parts / file).exists()})
        if self._beside(name, last) != there:
          raise OSError(f"{self._url}/{name}: was changed while it was fetched; run the same command again")
        (parts / last).write_bytes(end)
        shutil.rmtree(folder, ignore_errors=True)
        parts.rename(folder)
        for older in parts.parent.glob(f"{name}-*"):  # whose fetch was cut off
          shutil.rmtree(older, ignore_errors=True)
    return folder

  def _delete(self, names: Iterable[str]) -> None:
    """Files, by their names below the top.  A name like `q[1].trec` would be taken for a pattern among others."""
    paths = [f"{self._base}/{name}" for name in names]
    if plain := [path for path in paths if not glob.has_magic(path)]:
      self._fs.rm(plain)
    for path in filter(glob.has_magic, paths):
      self._fs.rm_file(path)

  @contextlib.contextmanager
  def _alone(self) -> Iterator[None]:
    """Processes of one machine share the local folder: one of them fetches, and the others find it there."""
    with open(self.local / ".lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      yield

  def _get(self, targets: Mapping[str, pathlib.Path]) -> None:
    """Fetches files, each to its target; one that a kill leaves half has another name."""
    halves = {path: target.with_name(f"{target.name}{files.HALF}") for path, target in targets.items()}
    for half in halves.values():
      half.parent.mkdir(parents=True, exist_ok=True)
    self._fs.each("get", [f"{self._base}/{path}" for path in halves], [str(half) for half in halves.values()])
    for path, half in halves.items():
      half.rename(targets[path])

  def _put(self, paths: Sequence[str]) -> None:
    """Sends files; of a database a copy, as a process may be writing to it."""
    with self._scratch() as scratch:
      sources = {path: self.local / path for path in paths}
      for number, path in enumerate(paths):
        if databases.is_one(path):
          sources[path] = scratch / f"{number}"
          databases.copy(self.local / path, sources[path])
      self._fs.each("put", [str(source) for source in sources.values()], [f"{self._base}/{path}" for path in sources])

  def _merge(self, path: str) -> None:
    """Takes what a database in the bucket has into the one here."""
    with self._scratch() as scratch:
      self._get({path: scratch / "other"})
      databases.merge(scratch / "other", self.local / path)

  def _step_aside(self, path: str) -> None:
    kept = self.local / ".replaced" / path
    kept.parent.mkdir(parents=True, exist_ok=True)
    (self.local / path).replace(kept)
    logging.warning("%s was changed here and in %s; the bucket's counts, what was here is %s",
                    self.local / path, self._url, kept)  # fmt: skip

  @contextlib.contextmanager
  def _scratch(self) -> Iterator[pathlib.Path]:
    """An empty folder: what a kill left there before would be taken for a log of the database."""
    parts = self.local / ".parts"
    parts.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parts) as made:
      yield pathlib.Path(made)

  def _parts(self, name: str, end: bytes) -> pathlib.Path:
    """Where a folder gathers until it is whole; another one of the same name gathers elsewhere."""
    return self.local / ".parts" / f"{name}-{_digest(end)}"

  def _beside(self, folder: str, last: str) -> dict[str, str]:
    """File, by its name in the folder -> what tells of its writing, but for the last."""
    top = f"{self._base}/{folder}/"
    found = remote.files(self._fs, top.rstrip("/"), remote.writing)
    return {path.removeprefix(top): written for path, written in found.items() if path != f"{top}{last}"}

  def _find(self, name: str) -> dict[str, str]:
    """Files in the bucket under a folder, or the file of this name -> what changes with their content."""
    try:
      found = remote.files(self._fs, f"{self._base}/{name}")
    except FileNotFoundError as e:  # a folder without files is no error
      raise FileNotFoundError(f"{self._url}: no such bucket ({e}); make it first, or name another") from e
    return {path.removeprefix(f"{self._base}/"): tag for path, tag in found.items()}

  def _here(self, name: str) -> dict[str, sent_lib.Stamp]:
    """Files in the local folder, or the file of this name, as they are now."""
    top = self.local / name
    found = {str(path.relative_to(self.local)): path for path in (top, *top.rglob("*")) if path.is_file()}
    return {name: sent_lib.stamp(path) for name, path in found.items()
            if not name.endswith(files.HALF) and not databases.is_beside(name)}  # fmt: skip


def _digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]
