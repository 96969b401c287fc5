"""A stage is run with the settings of what it reads: a model that is read with others is another model."""

import shlex
from collections.abc import Container, Mapping
from typing import Any

from idistill_jax import config as config_lib


def check(stage: str, sections: Container[str], cfg: config_lib.Config, manifests: Mapping[str, Mapping[str, Any]],
          stated: str) -> None:
  """Raises ConfigError where an input was made with another value of a field on which the stage's result depends, too.

  sections: of the config, that the stage depends on.  manifests: of its inputs, by name.  stated: the workdir as its
  user writes it.  In a pipeline none differ: what was made with others is made anew before.
  """
  for name, manifest in manifests.items():
    made = {section: value for section, value in manifest.get("config", {}).items() if section in sections}
    differ = list(config_lib.differences(cfg, config_lib.as_dict(cfg) | made))
    if differ:
      flags = [f"{field}={_stated(its)}" for field, its, _ in differ]
      raise config_lib.ConfigError(
        f"{stage} reads {stated}/{name}, which was made with {', '.join(flags)}; here it would be "
        f"{', '.join(_stated(own) for *_, own in differ)}.  Give "
        f"{shlex.join(f'--config.{one}' for one in flags)}  or make {name}, and what follows it, anew:\n"
        f"  python -m idistill_jax.stages.{name} --config=... --workdir={stated}")


def _stated(value: Any) -> str:
  """As a flag says it."""
  return str(value).lower() if value is None or isinstance(value, bool) else str(value)
