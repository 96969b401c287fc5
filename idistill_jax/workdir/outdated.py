"""Stages that were made of what has been made anew since: their results stand beside settings that are not theirs."""

from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from idistill_jax.workdir import artifacts, inputs


def manifests(workdir: artifacts.Workdir, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
  """Of those that are there."""
  found = {stage: workdir.manifest(stage) for stage in stages}
  return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def made_anew(there: Mapping[str, Mapping[str, Any]], stage: str) -> list[str]:
  """Inputs of the stage whose keys are others now than when it was made of them; those that an upsert has changed, and
  with them the key, are what they were but for passages that came or went.  there: as of `manifests`."""
  return [one for one, key in there[stage].get("inputs", {}).items()
          if one in there and there[one]["key"] != key and "upserted" not in there[one]["counts"]]


def of(workdir: artifacts.Workdir, stages: Iterable[str]) -> dict[str, list[str]]:
  """Stage -> its inputs that have been made anew since, or are outdated themselves; only stages that are.

  stages: in pipeline order; what is not among them is not looked at.
  """
  there, found = manifests(workdir, stages), dict[str, list[str]]()
  for stage in there:
    anew = made_anew(there, stage)
    if since := [one for one in there[stage].get("inputs", {}) if one in anew or one in found]:
      found[stage] = since
  return found


def told(found: Mapping[str, list[str]], stated: str = "...") -> str:
  """What `of` found, and the commands that mend it; stated: the workdir as its user writes it."""
  anew = dict.fromkeys(one for since in found.values() for one in since if one not in found)
  commands = (inputs.made_by(stage, stated) for stage in found)
  return "\n".join([f"{', '.join(found)}: made before {', '.join(anew)} was made anew, of an earlier one. To be run "
                    "again, in this order:", *commands])


def warn(workdir: artifacts.Workdir, stages: Iterable[str]) -> None:
  """Says in the log which of them are outdated, where any are."""
  if found := of(workdir, stages):
    logging.warning("%s: %s", workdir.stated, told(found, workdir.stated))
