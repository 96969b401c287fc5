"""Packages: optional ones, imported where they are used (what is missing is named with what installs it); versions."""

import contextlib
import functools
import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def needed(what: str, extra: str, error: type[ImportError] = ModuleNotFoundError) -> Iterator[None]:
  """Imports in its block raise `error` saying that `what` needs the missing package, and which extra has it."""
  try:
    yield
  except ModuleNotFoundError as e:
    raise error(f"{what} needs {e.name}: {install(extra)}", name=e.name) from e


def install(extra: str) -> str:
  """What installs an extra from a clone: the package is on no index."""
  return (
    f"in the clone, run `source launch/env.sh {extra}` (in an environment of your own: "
    f"python -m pip install -c constraints.txt -e '.[{extra}]')"
  )


# Those that a result may depend on.
_CORE = ("idistill-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "scann")


def versions(packages: Iterable[str] = _CORE) -> dict[str, str]:
  """Of Python, and of those packages that are here."""
  found = {"python": platform.python_version()}
  for name in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def identity() -> dict[str, str]:
  """What all processes that make one result have in common: `versions`, and their code."""
  return versions() | {"code": code()}


@functools.cache
def code() -> str:
  """Hash of this package's modules: a clone has one version through many commits."""
  found = hashlib.sha256()
  top = pathlib.Path(__file__).parent
  for path in sorted(top.rglob("*.py")):
    found.update(f"{path.relative_to(top)}\n".encode() + path.read_bytes())
  return found.hexdigest()[:16]
