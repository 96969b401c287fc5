"""What a workdir, and each of its folders, was made with."""

import json
import os
from typing import Any

from idistill_jax import config as config_lib
from idistill_jax.workdir import artifacts, inputs

_AGAIN = "run the pipeline there with a --config, which writes the file anew"


def load(workdir: str | os.PathLike[str]) -> config_lib.Config:
  """The config that a workdir was last run with: of its latest work, which need not be what made older folders.

  Raises ConfigError for a file that this version cannot read.
  """
  text = artifacts.Workdir(workdir).read(artifacts.CONFIG)
  if text is None:
    raise FileNotFoundError(f"{workdir}/{artifacts.CONFIG}: no run has been started there; "
                            + inputs.command("pipeline", str(workdir)))
  try:
    found = json.loads(text)
  except json.JSONDecodeError as e:
    raise config_lib.ConfigError(f"{workdir}/{artifacts.CONFIG}: not JSON ({e}), as of a full disk; {_AGAIN}") from e
  return _of_this_version(found, f"{workdir}/{artifacts.CONFIG}")


def made_with(workdir: artifacts.Workdir, stage: str) -> config_lib.Config:
  """The config that a stage's folder was made with: sections on which it depends are of its manifest, and all others,
  or all where it is not there, as the workdir was last run with.  Raises as `load` does."""
  made = (workdir.manifest(stage) or {}).get("config", {})
  return _of_this_version(config_lib.as_dict(load(workdir.stated)) | made,
                          f"{workdir.stated}/{stage}/{artifacts.MANIFEST}")


def _of_this_version(found: dict[str, Any], file: str) -> config_lib.Config:
  try:
    return config_lib.from_dict(found)
  except config_lib.ConfigError as e:
    raise config_lib.ConfigError(
      f"{file}: {e}; another version of idistill_jax wrote it: use that one, or {_AGAIN}") from e
