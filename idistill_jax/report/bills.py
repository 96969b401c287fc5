"""What stages that ask an LLM count in their manifests -> tokens and dollars, and all that else is counted."""

from collections.abc import Iterable
from typing import Any

from idistill_jax.report import gather

_TOKENS, _DOLLARS = ("input_tokens", "output_tokens"), "dollars"


def tokens(stage: gather.StageRun) -> int | None:
  """Of all answers, cached ones included; None for a stage that asks nobody, or where no provider told."""
  found = [stage.counts[name] for name in _TOKENS if stage.counts.get(name) is not None]
  return sum(found) if len(found) == len(_TOKENS) else None


def dollars(stage: gather.StageRun) -> float | None:
  """What those cost; None where a price is not known."""
  return stage.counts.get(_DOLLARS)


def total(stages: Iterable[gather.StageRun]) -> float:
  """Dollars of all stages whose cost is known."""
  return sum(dollars(stage) or 0.0 for stage in stages)


def other_counts(stage: gather.StageRun) -> dict[str, Any]:
  return {name: found for name, found in stage.counts.items() if name not in (*_TOKENS, _DOLLARS)}
