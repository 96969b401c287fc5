"""Whether a finished stage would be made anew, and why: told before that is done.

A key follows from the config, the inputs' keys and what is read from outside.  So those of stages that are still to be
made are known beforehand, and with them what becomes of all that reads them.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

from idistill_jax import config as config_lib
from idistill_jax.workdir import artifacts, inputs

# Keys that hash another thing than what is read from outside the workdir.
_BESIDE_CONFIG = {"index": "evaluate.split is another one, and ScaNN may not be tuned on what is measured"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Look:
  """What a pipeline would find of a stage; why: it makes it anew, or that cannot be told, or from where it is taken."""

  state: Literal["to do", "done", "anew", "not known", "taken"]
  why: str = ""

  @property
  def ready(self) -> bool:
    """Whether nothing is left to make: it is done, here or where it is taken from."""
    return self.state in ("done", "taken")

  @property
  def replaced(self) -> bool:
    """Whether another folder takes the place of the one that is there, if one is."""
    return self.state in ("anew", "taken")

  def __str__(self) -> str:
    match self.state:
      case "anew":
        return f"made anew: {self.why}"
      case "taken":
        return f"taken over from {self.why}"
      case "not known":
        return f"a folder is there; whether it is made anew cannot be told: {self.why}"
      case _:
        return self.state


class Looks:
  """At the stages of a workdir with a config, each once and when it is asked for; nothing is written."""

  def __init__(self, workdir: artifacts.Workdir, cfg: config_lib.Config, stages: Iterable[artifacts.Stage],
               others: Callable[[artifacts.Stage], Sequence[artifacts.Workdir]] = lambda stage: ()):
    """stages: in pipeline order, with all that they read.  others: from where each may be taken over."""
    self._workdir, self._cfg, self._others = workdir, cfg, others
    self._stages = {stage.name: stage for stage in stages}
    self._manifests: dict[str, dict[str, Any] | None] = {}
    self._keys: dict[str, tuple[str | None, str]] = {}
    self._found: dict[str, Look] = {}

  def at(self, name: str) -> Look:
    if name not in self._found:
      found = self._look(self._stages[name])
      self._found[name] = found if found.state == "done" else self._taken(self._stages[name]) or found
    return self._found[name]

  def _taken(self, stage: artifacts.Stage) -> Look | None:
    for other in self._others(stage):
      if (manifest := other.manifest(stage.name)) is not None and manifest["key"] == self._key(stage.name)[0]:
        return Look(state="taken", why=other.stated)
    return None

  def before(self, name: str) -> dict[str, Look]:
    """At all that a stage is made of, in pipeline order."""
    wanted, todo = set[str](), [name]
    while todo:
      new = set(self._stages[todo.pop()].inputs(self._cfg)) - wanted
      wanted |= new
      todo += new
    return {one: self.at(one) for one in self._stages if one in wanted}

  def _look(self, stage: artifacts.Stage) -> Look:
    manifest = self._manifest(stage.name)
    if manifest is None:
      return Look(state="to do")
    made = manifest.get("inputs")  # which an early version did not say
    others = [] if made is None else [one for one in stage.inputs(self._cfg) if self._is_other(one, made.get(one))]
    coming = [name for name in others if self.at(name).state != "done"]
    if said := _differ(stage, self._cfg, manifest, others, coming):
      return Look(state="anew", why=said)
    key, error = self._key(stage.name)
    if key is None:
      return Look(state="not known", why=error)
    return Look(state="done") if key == manifest["key"] else Look(state="anew", why=_beside(stage))

  def _is_other(self, name: str, key: str | None) -> bool:
    """Whether an input will have another key than that one, as far as it can be told; computed where it must be alone,
    as it may take weights from the Hub."""
    manifest, look = self._manifest(name), self.at(name)
    if manifest is not None and (manifest["key"] == key or look.state == "done"):
      return manifest["key"] != key or look.replaced
    will, _ = self._key(name)
    return will is not None and will != key

  def _key(self, name: str) -> tuple[str | None, str]:
    """What a stage's key will be; None, and why, where it cannot be computed here."""
    if name not in self._keys:
      self._keys[name] = self._compute(self._stages[name])
    return self._keys[name]

  def _compute(self, stage: artifacts.Stage) -> tuple[str | None, str]:
    keys = {}
    for name in stage.inputs(self._cfg):
      keys[name], error = self._key(name)
      if error:
        return None, error
    try:
      return self._workdir.key_of(stage, self._cfg, keys), ""
    except (ImportError, OSError, ValueError) as e:  # files that are not here, the Hub out of reach
      return None, " ".join(f"{type(e).__name__}: {e}".split())

  def _manifest(self, name: str) -> dict[str, Any] | None:
    if name not in self._manifests:
      self._manifests[name] = self._workdir.manifest(name)
    return self._manifests[name]


def why(workdir: artifacts.Workdir, stage: artifacts.Stage, cfg: config_lib.Config) -> str:
  """Why a stage that is not done, and whose inputs are, takes the place of the folder that is there; "" for none."""
  manifest = workdir.manifest(stage.name)
  if manifest is None:
    return ""
  made = manifest.get("inputs", {})
  others = [name for name, key in workdir.input_keys(stage, cfg).items() if key != made.get(name)]
  return _differ(stage, cfg, manifest, others, ()) or _beside(stage)


def _differ(stage: artifacts.Stage, cfg: config_lib.Config, manifest: Mapping[str, Any], others: Collection[str],
            coming: Collection[str]) -> str:
  """What is another now than a folder was made of, in words; "" where config and inputs are the same.

  others: inputs with other keys than it was made of; coming: those of them that are still to be made.
  """
  if "upserted" in manifest["counts"]:
    return f"idistill_jax.upsert made it from {manifest.get('upserted_from', 'another folder')}"
  made = config_lib.as_dict(cfg) | manifest.get("config", {})
  said = [f"{field} was {inputs.as_flag(its)}, is {inputs.as_flag(own)}"
          for field, its, own in config_lib.differences(cfg, made)]  # fmt: skip
  before = [name for name in others if name not in coming]
  for names, when in ((before, "made anew since"), (coming, "made anew")):
    if names:
      said.append(f"as {', '.join(names)} {'is' if len(names) == 1 else 'are'} {when}")
  if gone := manifest.get("inputs", {}).keys() - set(stage.inputs(cfg)):
    said.append(f"as {', '.join(sorted(gone))} is read no more")
  return "; ".join(said)


def _beside(stage: artifacts.Stage) -> str:
  """Why a key is another where config and inputs are the same."""
  return _BESIDE_CONFIG.get(stage.name, "what it reads from outside the workdir has changed, or how that is read"
                            if stage.fingerprint else "this version makes it otherwise")
