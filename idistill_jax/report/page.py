"""A `Report` -> one self-contained HTML page: styles, drawings, data and script inline, nothing fetched.

Texts of the workdir (queries, passages, ids, an LLM's words) may be hostile.  They pass Jinja's escaping, or
enter as JSON that cannot end its element and that the script turns into text nodes; a content security policy
lets no script run but the page's own.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from idistill_jax import extras
from idistill_jax.report import bills, claims, compare, figures, gather, queries, svg
from idistill_jax.retrieval import significance

CHANGED_QUERIES = 5
# Beside the main measure, what a reader knows without explanation.
TILE_MEASURES = ("hit@1", "hit@10", "recall@20")
STATUSES = ("complete", "repaired", "refused", "unanswered")
_REASONS = {
  "refused": "Refused, by reason",
  "unanswered": "Unanswered, by reason",
  "repairs": "Repaired, by reason",
}
_ANN_NAMES = {
  "index": "index used",
  "exact_queries_per_second": "exact search, queries a second",
  "scann_queries_per_second": "ScaNN, queries a second",
  "exact_milliseconds": "exact search, milliseconds of one query",
  "scann_milliseconds": "ScaNN, milliseconds of one query",
}


# Section of the page -> its drawings.
Drawings = Mapping[str, list[str]]


class ReportUnavailableError(ImportError):
  """A package that draws the page is not installed."""


def draw(report: gather.Report) -> Drawings:
  """The page's drawings.  Raises ReportUnavailableError naming the extra to install."""
  packages()
  return figures.all_of(report)


def render(report: gather.Report, drawings: Drawings) -> str:
  """The page, with what `draw` made.  Raises as it does."""
  environment = _environment()
  script = _source(environment, "report.js")
  return environment.get_template("report.html.j2").render(
    **_context(report),
    drawn={section: list(map(_safe, drawn)) for section, drawn in drawings.items()},
    # Ours, not the workdir's: the only texts that enter unescaped, with the drawings and the escaped JSON.
    script=_safe(script),
    style=_style(environment),
    data=_safe(embedded_json(_browser_data(report))),
    script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
  )


def render_comparison(compared: compare.Comparison) -> str:
  """The page that shows several runs.  Raises as `draw` does."""
  environment = _environment()
  return environment.get_template("comparison.html.j2").render(
    names=[run.name for run in compared.runs],
    rows=compare.rows(compared),
    notes=compare.notes(compared),
    main=compared.main,
    beside=compared.beside,
    headline=compare.headline(compared),
    figure=_safe(compare.figure(compared)),
    style=_style(environment),
  )


def files(drawings: Drawings) -> dict[str, str]:
  """File name -> a drawing as an SVG of its own."""
  css = _source(_environment(), "colours.css")
  return {
    f"{section}-{svg.slug(one)}.svg": svg.standalone(one, css) for section, drawn in drawings.items() for one in drawn
  }


def _source(environment: Any, name: str) -> str:
  """Ours, not the workdir's."""
  return environment.loader.get_source(environment, name)[0]


def _style(environment: Any) -> Any:
  return _safe(_source(environment, "colours.css") + _source(environment, "report.css"))


def _environment() -> Any:
  jinja2 = packages()
  return jinja2.Environment(
    loader=jinja2.PackageLoader("idistill_jax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=False,
    keep_trailing_newline=True,
  )


def embedded_json(found: Any) -> str:
  """ASCII JSON that stays inside its `<script>` element, whatever strings it holds."""
  text = json.dumps(found, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
  return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packages() -> Any:
  """jinja2; raises ReportUnavailableError without it, or what draws."""
  with extras.needed("the report", "report", ReportUnavailableError):
    import jinja2
    import matplotlib  # noqa: F401  (drawings need it; better to say so before anything is drawn)
  return jinja2


def _safe(text: str) -> Any:
  import markupsafe

  return markupsafe.Markup(text)


def _context(report: gather.Report) -> dict[str, Any]:
  labels = _labels(report.labels)
  changed = sorted(
    (query for query in report.shown.queries if query.delta),
    key=lambda query: (-(query.delta or 0), query.id),
  )
  evaluation = report.evaluation
  leak = claims.leak(evaluation.leakage) if evaluation else None
  return {
    "report": report,
    "evaluation": evaluation,
    "claim": claims.claim(evaluation, report.labels, report.config),
    "finished": max((stage.finished for stage in report.stages), default="")[:16].replace("T", " "),
    "tiles": _tiles(evaluation) if evaluation else (),
    "systems": _systems(report),
    "evidence": report.shown.evidence,
    "known_systems": tuple(figures.OF_SYSTEM),
    "after": gather.AFTER,
    "primary": gather.PRIMARY,
    "significant": significance.SIGNIFICANT,
    "shown_results": queries.SHOWN_RESULTS,
    "helped": [query for query in changed if (query.delta or 0) > 0][:CHANGED_QUERIES],
    "hurt": [query for query in changed[::-1] if (query.delta or 0) < 0][:CHANGED_QUERIES],
    "labels": labels,
    "made_elsewhere": any("made_elsewhere" in stage.counts for stage in report.stages),
    "longest": max((stage.seconds for stage in report.stages), default=0.0) or 1.0,
    "ann": _ann(evaluation.ann) if evaluation else {},
    "options": list(evaluation.ann.get("options", ())) if evaluation else [],
    "measured_on": claims.measured_on(evaluation.ann) if evaluation else "",
    "tuned": claims.tuned(report.stages),
    "alarms": [said for said in (claims.older(report.outdated), leak) if said is not None],
    "seen": claims.seen(evaluation.leakage) if evaluation else None,
    "bm25": claims.bm25(evaluation, report.config) if evaluation else "",
    "reader": report.reader,
    "bills": bills,
    **{
      name: getattr(claims, name)
      for name in ("about", "count", "duration", "p_number", "plain", "relative", "signed", "verdict")
    },
  }


def _systems(report: gather.Report) -> tuple[str, ...]:
  return tuple(report.shown.queries[0].results) if report.shown.queries else ()


def _tiles(evaluation: gather.Evaluation) -> list[dict[str, Any]]:
  """Before and after on a few measures."""
  wanted = dict.fromkeys((evaluation.main_measure, *TILE_MEASURES))
  tests = evaluation.test(gather.AFTER)
  return [
    {
      "measure": measure,
      "before": evaluation.systems[gather.BEFORE][measure],
      "after": evaluation.systems[gather.AFTER][measure],
      "change": claims.relative(tests[measure].relative),
      "verdict": claims.verdict(tests[measure]),
    }
    for measure in wanted
    if measure in tests
  ]


def _labels(statuses: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """parts: status -> lists.  tables: title -> name -> fact, no empty ones.  bias: of position, or None."""
  if statuses is None:
    return None
  parts = {status: _total(statuses.get(status)) for status in STATUSES}
  rest = {
    name: found
    for name, found in statuses.items()
    if name not in (*STATUSES, *_REASONS, "position_bias", "usage")
  }
  tables = {
    **{title: statuses.get(name) or {} for name, title in _REASONS.items()},
    "Usage": statuses.get("usage") or {},
    "More": rest,
  }
  return {
    "parts": parts,
    "total": sum(parts.values()),
    "bias": statuses.get("position_bias"),
    "tables": {
      title: {name: claims.plain(found) for name, found in _spread(facts).items()}
      for title, facts in tables.items()
      if facts
    },
  }


def _total(found: Any) -> int:
  """A count, or the sum of counts by reason."""
  return sum(map(int, found.values())) if isinstance(found, Mapping) else int(found or 0)


def _spread(found: Any, prefix: str = "") -> dict[str, Any]:
  """Nested names joined, so that every fact has a line of its own."""
  if not isinstance(found, Mapping):
    return {prefix: found}
  lines: dict[str, Any] = {}
  for name, one in found.items():
    lines.update(_spread(one, f"{prefix}, {name}".removeprefix(", ").replace("_", " ")))
  return lines


def _ann(found: Mapping[str, Any]) -> dict[str, str]:
  return {
    _ANN_NAMES.get(name, name.replace("_", " ")): claims.plain(one)
    for name, one in found.items()
    if name not in ("curve", "options", "options_against", "options_passages", "whole_dimensions")
  }


def _browser_data(report: gather.Report) -> dict[str, Any]:
  return {
    "systems": _systems(report),
    "evidence": dataclasses.asdict(report.shown.evidence),
    "passages": {passage_id: [one.title, one.text] for passage_id, one in report.shown.passages.items()},
    "queries": [
      {
        "id": query.id,
        "text": query.text,
        "delta": query.delta,
        "relevant": query.relevant,
        "ranks": query.relevant_ranks,
        "answers": query.answers,
        "said": query.said,
        "results": {system: [one.passage_id for one in found] for system, found in query.results.items()},
      }
      for query in report.shown.queries
    ],
  }
