"""Numbers of a report -> its drawings, `<svg>` elements for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from idistill_jax.report import gather, svg

OF_SYSTEM = {"initial": svg.INITIAL, "distilled": svg.DISTILLED, "ranker": svg.RANKER}
OF_TRAINING = {"train_ranker": svg.RANKER, "train_retriever": svg.DISTILLED}
# Weight of the past in the smoothed loss.
SMOOTHING = 0.9
# More points than this say nothing on a drawing of that width.
MAX_POINTS = 400
def means(evaluation: gather.Evaluation, measure: str) -> str:
  """Each system's mean with its 95 % interval."""
  dots = [
    _Dot(system, values[measure], evaluation.intervals.get(system, {}).get(measure), OF_SYSTEM.get(system, svg.OTHER))
    for system, values in evaluation.systems.items() if measure in values
  ]
  return _dots(dots, title=measure, longest=len("initial+bm25+ranker"), width=svg.NARROW)


def wins_and_losses(deltas: Sequence[float], measure: str, title: str) -> str:
  """Every query's difference, largest gain first."""
  ordered = sorted(deltas, reverse=True)

  def draw(axes: Any) -> None:
    places = range(len(ordered))
    for colour, keep in ((svg.GOOD, 1.0), (svg.BAD, -1.0)):
      heights = [max(keep * delta, 0.0) * keep for delta in ordered]
      axes.fill_between(places, heights, step="mid", color=colour, linewidth=0, alpha=0.8)
    axes.axhline(0, color=svg.SOFT, linewidth=0.7)
    axes.set_xlim(-0.5, max(len(ordered) - 0.5, 0.5))
    axes.set_xlabel("queries, by difference")
    axes.set_ylabel(f"Δ {measure}")
    _grid(axes, "y")

  return svg.drawn(draw, title=title, height=2.3, width=svg.WIDE)


def training_curve(training: gather.Training, column: str, title: str) -> str:
  """One logged column over steps; a noisy one also smoothed."""
  steps, values = _thinned(training.columns["step"], training.columns[column])
  colour = OF_TRAINING.get(training.name, svg.OTHER)

  def draw(axes: Any) -> None:
    if column == "lr":
      axes.plot(steps, values, color=colour, linewidth=1.6)
    else:
      axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
      axes.plot(steps, _smoothed(values), color=colour, linewidth=1.8)
    if column == "tokens_per_second":
      axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.yaxis.set_major_formatter(_short_number)
    _grid(axes, "y")

  return svg.drawn(draw, title=title, height=1.9)


def recall_and_latency(ann: Mapping[str, Any]) -> str:
  """ScaNN's operating points: recall of exact search over milliseconds of one query; exact search itself as a line."""
  points = [(point["milliseconds"], point["recall"]) for point in ann["curve"]]
  exact = ann.get("exact_milliseconds")
  from matplotlib import ticker

  def draw(axes: Any) -> None:
    axes.plot([time for time, _ in points], [recall for _, recall in points], "o-", color=svg.DISTILLED, markersize=4,
              linewidth=1.4)
    if exact:
      axes.axvline(exact, color=svg.SOFT, linewidth=0.9, linestyle="--")
      axes.annotate("exact", (exact, min(recall for _, recall in points)), xytext=(-4, 0), color=svg.SOFT,
                    textcoords="offset points", ha="right", fontsize=8.5)  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(_short_number)
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("milliseconds of one query")
    axes.set_ylabel("recall of exact search")
    _grid(axes, "y")

  return svg.drawn(draw, title="ScaNN: recall and latency", height=2.4, width=svg.WIDE)


def runs_compared(values: Mapping[str, tuple[float, tuple[float, float] | None]], title: str) -> str:
  """One value with its interval for each run."""
  dots = [_Dot(name, mean, interval, svg.DISTILLED) for name, (mean, interval) in values.items()]
  return _dots(dots, title=title, longest=16, width=svg.NARROW)


class _Dot(NamedTuple):
  """A mean with its 95 % interval, where it has one."""

  name: str
  mean: float
  interval: tuple[float, float] | None
  colour: str


def _dots(dots: Sequence[_Dot], *, title: str, longest: int, width: float) -> str:
  """A line each, names cut to `longest` characters."""
  names = _labels([dot.name for dot in dots], longest)

  def draw(axes: Any) -> None:
    for row, dot in enumerate(dots):
      if dot.interval is not None:
        axes.plot(dot.interval, [row, row], color=dot.colour, linewidth=2.4, alpha=0.45, solid_capstyle="round")
      axes.plot([dot.mean], [row], "o", color=dot.colour, markersize=6.5)
      axes.annotate(
        f"{dot.mean:.3f}", (dot.mean, row), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8.5
      )
    axes.set_yticks(range(len(dots)), names)
    axes.set_ylim(len(dots) - 0.6, -0.8)
    axes.margins(x=0.08)
    _grid(axes, "x")

  return svg.drawn(draw, title=title, height=0.75 + 0.4 * len(dots), width=width)


def _labels(names: Sequence[str], longest: int) -> list[str]:
  """Names cut to what has room: at their end, where that makes two alike at their beginning, or else numbered."""
  ends = [name if len(name) <= longest else "…" + name[1 - longest:] for name in names]
  numbered = [f"{number}: {name}" for number, name in enumerate(names, start=1)]
  choices = [[svg.plain(name, longest) for name in some] for some in (names, ends, numbered)]
  return next((some for some in choices if len(set(some)) == len(some)), choices[-1])


def _grid(axes: Any, across: Literal["x", "y"]) -> None:
  """Lines at the ticks of one axis, and no others."""
  axes.grid(axis=across)
  axes.set_axisbelow(True)
  axes.spines["left"].set_visible(False)
  axes.tick_params(length=0)


def _short_number(number: float, _: Any = None) -> str:
  if abs(number) >= 1000:
    return f"{number / 1000:g}k"
  return f"{number:g}".replace("e-0", "e-")


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
  """Every n-th finite point: at most MAX_POINTS."""
  points = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(s) and math.isfinite(v)]
  kept = points[:: max(1, math.ceil(len(points) / MAX_POINTS))]
  return [s for s, _ in kept], [v for _, v in kept]


def _smoothed(values: Sequence[float]) -> list[float]:
  """Exponential mean, unbiased at the start."""
  out, total, weight = [], 0.0, 0.0
  for one in values:
    total = SMOOTHING * total + (1 - SMOOTHING) * one
    weight = SMOOTHING * weight + (1 - SMOOTHING)
    out.append(total / weight)
  return out


def all_of(report: gather.Report) -> Mapping[str, list[str]]:
  """Section of the page -> its drawings."""
  drawn: dict[str, list[str]] = {"means": [], "wins": [], "training": [], "index": []}
  evaluation = report.evaluation
  if evaluation is not None:
    drawn["means"] = [means(evaluation, measure) for measure in evaluation.measures]
    for system in (gather.AFTER, "ranker"):
      deltas = list(evaluation.deltas(system).values())
      if deltas:
        title = f"{system} against {gather.BEFORE}, query by query"
        drawn["wins"].append(wins_and_losses(deltas, evaluation.main_measure, title))
    curve = evaluation.ann.get("curve", ())
    # Latencies are missing from evaluations of earlier versions.
    if curve and all("milliseconds" in point for point in curve):
      drawn["index"] = [recall_and_latency(evaluation.ann)]
  for training in report.trainings:
    name = training.name.removeprefix("train_").capitalize()
    for column, label in (
      ("loss", "loss"),
      ("lr", "learning rate"),
      ("tokens_per_second", "tokens per second"),
    ):
      if column in training.columns and "step" in training.columns:
        drawn["training"].append(training_curve(training, column, f"{name}: {label}"))
  return drawn
