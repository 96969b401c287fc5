"""What speaks to buckets, gs:// and s3://, and where this machine keeps what lies in them."""

import importlib
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import fsspec

from idistill_jax import extras

# Scheme -> (package that speaks it, extra that installs the package).
_BACKENDS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}


def is_bucket(url: str) -> bool:
  return scheme(url) in _BACKENDS


def scheme(url: str) -> str:
  """"" for a path on this machine."""
  before, found, _ = url.partition("://")
  return before if found else ""


def file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """What speaks to it and tries again what fails for a moment, and the name of `url` there.

  Raises ModuleNotFoundError naming the extra.  What it lists is what is there now: others write there too.
  """
  if is_bucket(url):
    package, extra = _BACKENDS[scheme(url)]
    with extras.needed(url, extra):
      importlib.import_module(package)
  return fsspec.core.url_to_fs(url, use_listings_cache=False)


def files(fs: fsspec.AbstractFileSystem, base: str) -> dict[str, str]:
  """Files under a folder, or the file of this name -> what changes with their content."""
  found = fs.find(base, detail=True)
  # A store may hold empty objects that stand for folders.
  return {path: tag(info) for path, info in found.items() if info["type"] == "file" and not path.endswith("/")}


def tag(info: Mapping[str, Any]) -> str:
  """What changes with a file's content, of what fsspec says about it."""
  said = [info.get(name) for name in ("ETag", "etag")]
  return str([info["size"], *(said if any(said) else [info.get("created")])])


def kept() -> pathlib.Path:
  """Where this machine keeps what lies elsewhere, for as long as its temporary files last."""
  return pathlib.Path(tempfile.gettempdir()) / f"idistill_jax-{os.getuid()}"
