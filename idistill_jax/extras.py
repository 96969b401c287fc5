"""Packages of optional extras, imported where they are used: what is missing is named with what installs it."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needed(what: str, extra: str, error: type[ImportError] = ModuleNotFoundError) -> Iterator[None]:
  """Imports in its block raise `error` saying that `what` needs the missing package, and which extra has it."""
  try:
    yield
  except ModuleNotFoundError as e:
    raise error(f"{what} needs {e.name}: pip install 'idistill-jax[{extra}]'", name=e.name) from e
