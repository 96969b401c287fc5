"""What a model card says of how its model was measured, and what must be said beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from idistill_jax import config as config_lib
from idistill_jax.llm import query_writing

_BASE_SYSTEM = "initial"


def results(own: str, metrics: Mapping[str, Any] | None, caveats: Sequence[str], cfg: config_lib.Config) -> str:
  """Of metrics.json, in Markdown.  own: the system that the model was measured as."""
  if metrics is None:
    return "Not measured."
  measures = metrics["measures"]
  lines = [
    f"{metrics['queries']} queries of the {metrics['split']} split{_relevant(metrics)}; 95 % intervals in brackets "
    "where computed. "
    f"`ranker` puts the first {cfg.evaluate.rerank_depth} passages of `{_BASE_SYSTEM}` in another order."
    + (f" {query_writing.CAUTION}" if metrics.get("written_queries") else ""),
    *(f"\n**{one}**" for one in caveats),
    "",
    "| system | " + " | ".join(measures) + " |",
    "|---|" + "---|" * len(measures),
  ]
  for system, values in metrics["systems"].items():
    shown = f"**{system}** (this model)" if system == own else system
    bounds = metrics["intervals"].get(system, {})
    lines.append(f"| {shown} | " + " | ".join(_cell(values.get(m), bounds.get(m)) for m in measures) + " |")
  pair = f"{own} vs {_BASE_SYSTEM}"
  lines += ["", *(_difference(measure, found, metrics.get("primary") == {"test": pair, "measure": measure})
                  for measure, found in metrics["tests"].get(pair, {}).items())]
  return "\n".join(lines).rstrip()


def _relevant(metrics: Mapping[str, Any]) -> str:
  """From which grade on a passage is relevant, where that is not 1; nDCG counts all grades."""
  least = metrics.get("relevant_from", 1)
  return "" if least == 1 else f", passages relevant from grade {least} on (but for nDCG, which counts all grades)"


def _difference(measure: str, found: Mapping[str, Any], is_primary: bool) -> str:
  """With the p that decides: the primary test's own, any other's corrected for how many there are."""
  p = f"p = {found['p']:.4g}, the primary test" if is_primary else f"p = {found['p_holm']:.4g}, Holm's correction"
  return (f"- {measure}: {found['delta']:+.4f} against {_BASE_SYSTEM} ({p}; {found['wins']} queries better, "
          f"{found['losses']} worse, {found['ties']} equal)")


def _cell(value: float | None, bounds: Any) -> str:
  if value is None:
    return "–"
  return f"{value:.4f}" + (f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "")
