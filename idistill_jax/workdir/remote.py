"""What speaks to buckets, gs:// and s3://, and where this machine keeps what lies in them."""

import contextlib
import difflib
import errno
import importlib
import os
import pathlib
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
from fsspec.implementations import local

from idistill_jax import extras, processes

# Orbax reads and writes through epath, which prefers TensorFlow, where that can be imported, and it has no S3.  epath
# asks once, at its first path.
os.environ.setdefault("EPATH_USE_TF", "false")
# Scheme -> (package that speaks it, extra that installs the package).
_BACKENDS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# Files: of gigabytes, so many take minutes, and the others' patience is of some.
_AT_ONCE = 16


def is_bucket(url: str) -> bool:
  return scheme(url) in _BACKENDS


def scheme(url: str) -> str:
  """"" for a path on this machine; raises ValueError for a scheme that nothing here speaks.

  Why not take that for a path?  What is kept under gcs:// would lie in a folder `gcs:` and go with the machine.
  """
  if (found := re.match(r"([\w.+-]+):/", url)) is None:
    return ""
  if "::" in url:
    raise ValueError(f"{url}: a name in a bucket may hold no '::', which is read as a chain of urls")
  # memory:// is what this process itself has put into fsspec's.
  if url.startswith(f"{found[1]}://") and (found[1] in _BACKENDS or found[1] == "memory"):
    return found[1]
  near = difflib.get_close_matches(found[1].lower(), _BACKENDS, n=1)
  raise ValueError(f"{url}: is neither a path on this machine, which is written without {found[1]}:/, nor in a bucket, "
                   f"{' or '.join(f'{name}://' for name in _BACKENDS)}"
                   + (f"; did you mean {near[0]}://{url[found.end():].lstrip('/')}?" if near else ""))


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """What speaks to it and tries again what fails for a moment, and the name of `url` there.

  Raises ModuleNotFoundError naming the extra.  What it lists is what is there now: others write there too.
  """
  if is_bucket(url):
    package, extra = _BACKENDS[scheme(url)]
    with extras.needed(url, extra):
      importlib.import_module(package)
  # A path is one, whatever is in it.
  return (fsspec.core.url_to_fs(url, use_listings_cache=False) if scheme(url) else
          (local.LocalFileSystem(), os.path.abspath(url)))


class Asked:
  """A file system whose every request is made within `asked`."""

  def __init__(self, fs: fsspec.AbstractFileSystem, url: str):
    self._fs, self._url = fs, url

  def __getattr__(self, name: str) -> Any:
    request = getattr(self._fs, name)

    def ask(*args: Any, **more: Any) -> Any:
      with asked(self._url):
        return request(*args, **more)

    return ask

  def each(self, request: str, sources: Sequence[str], targets: Sequence[str]) -> None:
    """`get`, `put` or `copy` of files, each to its target, some at a time: processes that wait hear that it gets on."""
    for start in range(0, len(sources), _AT_ONCE):
      some = slice(start, start + _AT_ONCE)
      getattr(self, request)(list(sources[some]), list(targets[some]))
      processes.moved()


@contextlib.contextmanager
def asked(url: str) -> Iterator[None]:
  """Makes an OSError that names the url of whatever a bucket's backend raises, but for FileNotFoundError and
  FileExistsError, which are answers.

  What is refused comes as the cloud's own kinds of errors: gcsfs's HttpError, botocore's NoCredentialsError.
  """
  try:
    yield
  except Exception as e:
    answered = isinstance(e, FileNotFoundError | FileExistsError)
    if answered or getattr(e, "errno", None) == errno.ENOSPC:  # that is this machine's disk
      raise
    # TensorStore adds its whole specification, and a server a page that repeats its number.
    said = " ".join(re.split(r"\[tensorstore_spec|<!DOCTYPE", str(e), flags=re.IGNORECASE)[0].split())
    more = " ".join(f"({note})" for note in getattr(e, "__notes__", ()))
    raise OSError(f"{url}: {said or type(e).__name__}; are there credentials for it? {more}".rstrip()) from e


def reaching(path: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
  """`asked` where the path is one in a bucket; what is wrong with a local file is said with its name as it comes."""
  return asked(os.fspath(path)) if is_bucket(os.fspath(path)) else contextlib.nullcontext()


def tag(info: Mapping[str, Any]) -> str:
  """What changes with a file's content, of what fsspec says about it."""
  said = [info.get(name) for name in ("ETag", "etag")]
  return str([info["size"], *(said if any(said) else [info.get("created")])])


def writing(info: Mapping[str, Any]) -> str:
  """As `tag`, but it outlives a change of what is said about a file, as a rule makes that stores old ones elsewhere:
  in Google's buckets that is another etag, of the same generation."""
  return str([info["size"], info["generation"]]) if info.get("generation") else tag(info)


def files(fs: fsspec.AbstractFileSystem, base: str, say: Callable[[Mapping[str, Any]], str] = tag) -> dict[str, str]:
  """Files under a folder, or the file of this name -> what is to be said of them."""
  found = fs.find(base, detail=True)
  # A store may hold empty objects that stand for folders.
  return {path: say(info) for path, info in found.items() if info["type"] == "file" and not path.endswith("/")}


def kept() -> pathlib.Path:
  """Where this machine keeps what lies elsewhere, for as long as its temporary files last; made where it is not there.

  Others can write beside it: raises OSError where they were there first.
  """
  folder = pathlib.Path(tempfile.gettempdir()) / f"idistill_jax-{os.getuid()}"
  with contextlib.suppress(FileExistsError):
    folder.mkdir(mode=0o700)
  about = folder.lstat()
  if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
    raise OSError(f"{folder}: is no folder of this user's; remove it, or set TMPDIR to a folder of your own")
  return folder
