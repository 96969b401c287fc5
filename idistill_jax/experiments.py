"""Mistakes in an experiment's file, and in flags for fields of its config, told with the place and what is right."""

import dataclasses
import difflib
import pathlib
import re
import runpy
import traceback
import typing
from typing import Any

from idistill_jax import config as config_lib


def check(stated: str) -> None:
  """Raises ConfigError, naming file and line, where a `--config`, path or path:variant, gives no config.

  Runs the file, as whoever takes the config from it will once more.
  """
  path, colon, variant = stated.partition(":")
  try:
    if pathlib.Path(path).is_dir():  # which Python would run
      raise IsADirectoryError("is a folder; name one of the files in it")
    found = runpy.run_path(path)["get_config"](*[variant] * bool(colon))
  except Exception as e:  # whatever its own code raises
    raise config_lib.ConfigError(f"{_place(path, e)}: {_said(e)}") from e
  if not isinstance(found, config_lib.Config):
    raise config_lib.ConfigError(f"{path}: get_config() gives {found!r}; it must return an idistill_jax.config.Config")


def _place(path: str, e: Exception) -> str:
  lines = [frame.lineno for frame in traceback.extract_tb(e.__traceback__) if frame.filename == path]
  line = e.lineno if isinstance(e, SyntaxError) else lines[-1] if lines else None
  return path if line is None else f"{path}:{line}"


def _said(e: Exception) -> str:
  # Of what is assigned Python says no more than its message.
  if isinstance(e, AttributeError) and (found := re.match(r"'(\w+)' object has no attribute '(\w+)'", str(e))):
    section = getattr(config_lib, found[1], None)
    if dataclasses.is_dataclass(section):
      fields = [field.name for field in dataclasses.fields(section)]
      return f"{found[1]} has no field {found[2]!r}{_instead(found[2], fields)}"
  if isinstance(e, KeyError) and e.args == ("get_config",):
    return "has no function get_config()"
  if isinstance(e, FileNotFoundError):
    return "there is no such file; those of the project are in configs/"
  return str(e) or type(e).__name__


def check_field(path: str) -> None:
  """Raises ConfigError where a config has no field of that dotted name, naming those that it has."""
  section: Any = config_lib.Config
  above = "config"
  for name in path.split("."):
    fields = typing.get_type_hints(section) if dataclasses.is_dataclass(section) else {}
    if name not in fields:
      raise config_lib.ConfigError(f"--config.{path}: {above} has no field {name!r}{_instead(name, list(fields))}")
    section, above = fields[name], name


def _instead(name: str, fields: list[str]) -> str:
  near = difflib.get_close_matches(name, fields, n=1)
  return (f"; did you mean {near[0]!r}?" if near else "") + f"  It has: {', '.join(fields) or 'none, as it is a value'}"
