"""A workdir -> two terminal tables: systems and measures with their tests, stages with times and drops.

Needs neither Jinja nor Matplotlib, and shows what is there of a run that is not finished.
"""

from rich import box, table
from rich import console as rich_console
from rich.text import Text

from idistill_jax.report import claims, gather
from idistill_jax.workdir import artifacts, outdated

_STYLES = {"better": "green", "worse": "red", "undecided": "dim"}


def print_summary(workdir: artifacts.Workdir, console: rich_console.Console | None = None) -> None:
  """Prints what came out of the run."""
  console = console or rich_console.Console()
  evaluation = gather.evaluation(workdir)
  console.print(stage_table(gather.stage_runs(workdir)))
  if evaluation is None:
    console.print(Text("Nothing has been measured yet: the evaluate stage has not run.", style="yellow"))
    return
  console.print(summary_table(evaluation, console.width))
  if (older := claims.older(outdated.of(workdir, gather.SHOWN))) is not None:
    console.print(Text(older, style="bold white on red"))
  if (leak := claims.leak(evaluation.leakage)) is not None:
    console.print(Text(leak, style="bold white on red"))
  if (seen := claims.seen(evaluation.leakage)) is not None:
    console.print(Text(seen, style="dim"))
  claim = claims.claim(evaluation, gather.labels(workdir), gather.settings(workdir))
  console.print(Text(claim.headline, style=f"bold {_STYLES[claim.verdict]}"))
  console.print(Text(claim.detail))
  if "report.html" in workdir.names():
    console.print(Text(f"Report: {workdir.stated}/report.html"))


def summary_table(evaluation: gather.Evaluation, width: int) -> table.Table:
  """Systems down, measures across: mean, and change against the initial retriever; p on the main measure.

  width: of the terminal, in characters; measures beyond it are named below the table.
  """
  main = evaluation.main_measure
  shown, others = _fitting(evaluation, width)
  made = table.Table(
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,
    title_justify="left",
    title_style="",
    caption_justify="left",
    title=Text(f"{claims.about(evaluation)}; changes against {gather.BEFORE}, p on {main} (corrected, Holm, but for "
               f"{gather.PRIMARY}, the primary test)"),
  )
  made.add_column("system", no_wrap=True)
  for measure in shown:
    made.add_column(Text(measure), justify="right", no_wrap=True)
  made.add_column("p", justify="right", no_wrap=True)
  for system, means in evaluation.systems.items():
    tests = evaluation.test(system)
    cells = [_mean(means.get(measure), tests.get(measure)) for measure in shown]
    p = Text("–", style="dim")
    if main in tests:
      p = Text(claims.p_number(tests[main].p_holm), style=_STYLES[claims.verdict(tests[main])])
    made.add_row(Text(system, style="bold" if system == gather.AFTER else ""), *cells, p)
  if others:
    made.caption = Text(f"no room for {', '.join(others)}: see evaluate/metrics.json", style="dim")
  return made


def _fitting(evaluation: gather.Evaluation, width: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Measures whose columns fit, in the evaluation's order, and those that do not; the main one always does."""
  left = width - max(len(system) for system in evaluation.systems) - len("  < 0.001") - _column(evaluation.main_measure)
  shown = {evaluation.main_measure}
  for measure in evaluation.measures:
    if measure not in shown and (left := left - _column(measure)) >= 0:
      shown.add(measure)
  return (tuple(one for one in evaluation.measures if one in shown),
          tuple(one for one in evaluation.measures if one not in shown))


def _column(measure: str) -> int:
  """Characters of its column, with the gap before it; a change is as long as "+21.7%"."""
  return 2 + max(len(measure), len("+21.7%"))


def _mean(mean: float | None, test: gather.Comparison | None) -> Text:
  if mean is None:
    return Text("–", style="dim")
  text = Text(f"{mean:.3f}")
  if test is not None and test.relative is not None:
    text.append(
      "\n" + claims.relative(test.relative).replace("\u00a0", ""), style=_STYLES[claims.verdict(test)]
    )
  return text


def stage_table(stages: tuple[gather.StageRun, ...]) -> table.Table:
  """Stages down: time, what they counted, what they dropped and why."""
  made = table.Table(box=box.SIMPLE_HEAD)
  made.add_column("stage", no_wrap=True)
  made.add_column("time", justify="right", no_wrap=True)
  made.add_column("counts")
  made.add_column("dropped")
  for stage in stages:
    counts = ", ".join(f"{name} {claims.plain(found)}" for name, found in stage.counts.items())
    drops = ", ".join(f"{claims.count(number)} {reason}" for reason, (number, _) in stage.drops.items())
    made.add_row(
      Text(stage.name),
      Text(claims.duration(stage.seconds)),
      Text(counts),
      Text(drops or "nothing", style="yellow" if drops else "dim"),
    )
  made.add_section()
  made.add_row(Text("all"), Text(claims.duration(sum(stage.seconds for stage in stages))))
  return made
