"""What a stage reads: that it is there, made with the stage's own settings, and the same when the stage is done.

Why held to the settings?  A model that is read with others is another model.  In a pipeline none differ: what was made
with others is made anew before.
"""

import itertools
import re
import shlex
import sys
from collections.abc import Container, Mapping, Sequence
from typing import Any

from idistill_jax import config as config_lib

Manifests = Mapping[str, Mapping[str, Any]]


class MissingInputError(FileNotFoundError):
  """A stage's input is not there; the message names the command that makes it."""


class OtherSettingsError(config_lib.ConfigError):
  """A stage's input was made with other settings than the stage is run with."""


class ChangedInputError(OSError):
  """A stage's input was made anew while the stage was at work."""


def there(stage: str, found: Mapping[str, dict[str, Any] | None], stated: str) -> dict[str, dict[str, Any]]:
  """Manifests of a stage's inputs, by name; raises MissingInputError for the first that has none.

  stated: the workdir as its user writes it.
  """
  manifests = {}
  for name, manifest in found.items():
    if manifest is None:
      raise MissingInputError(
        f"{stage} reads {stated}/{name}, which is not there yet.  It is made by:\n{made_by(name, stated)}")
    manifests[name] = manifest
  return manifests


def agree(stage: str, sections: Container[str], cfg: config_lib.Config, manifests: Manifests, stated: str) -> None:
  """Raises OtherSettingsError where an input was made with another value of a field on which the stage depends, too.

  sections: of the config, that the stage depends on.  Fields of no section, as the seed, tell how an input was drawn,
  not how it is read.
  """
  for name, manifest in manifests.items():
    made = {section: value for section, value in manifest.get("config", {}).items() if section in sections
            and isinstance(value, dict)}  # fmt: skip
    differ = list(config_lib.differences(cfg, config_lib.as_dict(cfg) | made))
    if differ:
      flags = [f"{field}={as_flag(its)}" for field, its, _ in differ]
      raise OtherSettingsError(
        f"{stage} reads {stated}/{name}, which was made with {', '.join(flags)}; here it would be "
        f"{', '.join(as_flag(own) for *_, own in differ)}.  Give "
        f"{shlex.join(f'--config.{one}' for one in flags)}  or make {name}, and what follows it, anew:\n"
        f"{made_by(name, stated)}")


def unchanged(stage: str, before: Mapping[str, str | None], now: Mapping[str, str | None], stated: str) -> None:
  """Raises ChangedInputError where an input's key is another now: of some files the stage may have read the old, of
  others the new."""
  if changed := [name for name, key in now.items() if key != before[name]]:
    raise ChangedInputError(
      f"{stated}: another run has made {', '.join(changed)} anew while {stage} was at work, which reads that; its work "
      "is of both and so thrown away.  Run the same command again, and one at a time")


def made_by(name: str, stated: str) -> str:
  """The command that makes a stage, on a line of its own; stated: as in `there`."""
  return f"  {command(f'stages.{name}', stated)}"


def command(module: str, stated: str) -> str:
  """What runs a module of the package for a workdir, with the config that this command was given, if any."""
  config = _of_config(sys.argv[1:]) or "--config=..."
  return f"python -m idistill_jax.{module} {config} {shlex.quote(f'--workdir={stated}')}"


def _of_config(args: Sequence[str]) -> str:
  """Those flags that say a config, each with its value, also where that is a word of its own (--config FILE)."""
  said = []
  for arg, following in itertools.pairwise([*args, "--"]):
    if re.match(r"--?(no)?config([.=]|$)", arg):
      said += [arg] if "=" in arg or re.match("--|-[a-z]", following) else [arg, following]
  return shlex.join(said)


def as_flag(value: Any) -> str:
  """A config's value as a flag says it."""
  return str(value).lower() if value is None or isinstance(value, bool) else str(value)
