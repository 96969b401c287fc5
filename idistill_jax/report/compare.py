"""Several workdirs -> one table: what their configs differ in, what came of it, and whether that is chance."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from idistill_jax import artifacts
from idistill_jax.report import claims, figures, gather
from idistill_jax.retrieval import significance

# Fields that say where things lie or what the run is called, not what it did.
NOT_A_DIFFERENCE = ("name", "export.")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
  """One run.  settings: the config fields in which the runs differ.  test: its distilled retriever against the
  first run's, None for the first and where other queries were measured."""

  name: str
  settings: Mapping[str, str]
  evaluation: gather.Evaluation
  seconds: float
  test: significance.Comparison | None


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
  """measures: those that all runs have; main: the one that is tested."""

  runs: tuple[Compared, ...]
  measures: tuple[str, ...]
  main: str

  @property
  def settings(self) -> tuple[str, ...]:
    return tuple(self.runs[0].settings)


def gather_runs(folders: Sequence[str | os.PathLike[str]], resamples: int = significance.RESAMPLES) -> Comparison:
  """Reads every workdir.  Raises ReportError naming the first that has measured no distilled retriever."""
  workdirs = [artifacts.Workdir(os.fspath(folder)) for folder in folders]
  evaluations = [_evaluated(workdir) for workdir in workdirs]
  configs = [gather.settings(workdir) for workdir in workdirs]
  differing = sorted(
    path
    for path in {path for config in configs for path in config}
    if not path.startswith(NOT_A_DIFFERENCE) and len({config.get(path) for config in configs}) > 1
  )
  main = evaluations[0].main_measure
  runs = tuple(
    Compared(
      name=name,
      settings={path: config.get(path, "–") for path in differing},
      evaluation=evaluation,
      seconds=sum(stage.seconds for stage in gather.stage_runs(workdir)),
      test=_tested(evaluation, evaluations[0], main, resamples) if place else None,
    )
    for place, (name, workdir, evaluation, config) in enumerate(
      zip(_names(workdirs), workdirs, evaluations, configs, strict=True)
    )
  )
  measures = tuple(name for name in evaluations[0].measures if all(name in one.measures for one in evaluations))
  return Comparison(runs=runs, measures=measures, main=main)


def _names(workdirs: Sequence[artifacts.Workdir]) -> list[str]:
  """Last folders, whole paths where two are called the same."""
  short = [pathlib.Path(workdir.root).resolve().name for workdir in workdirs]
  return [
    name if short.count(name) == 1 else str(workdir.root) for name, workdir in zip(short, workdirs, strict=True)
  ]


def _evaluated(workdir: artifacts.Workdir) -> gather.Evaluation:
  found = gather.evaluation(workdir)
  if found is None or gather.AFTER not in found.systems:
    raise gather.ReportError(
      f"{workdir.root}: no distilled retriever has been measured there; run "
      f"python -m idistill_jax.pipeline --config=... --workdir={workdir.root}"
    )
  return found


def _tested(
  one: gather.Evaluation, first: gather.Evaluation, main: str, resamples: int
) -> significance.Comparison | None:
  mine, theirs = one.per_query.get(gather.AFTER, {}), first.per_query.get(gather.AFTER, {})
  if one.main_measure != main or mine.keys() != theirs.keys() or len(mine) < 2:
    return None
  return significance.compare(mine, theirs, resamples=resamples)


def figure(compared: Comparison) -> str:
  """The distilled retrievers' main measure with its intervals."""
  values = {
    run.name: (
      run.evaluation.systems[gather.AFTER][compared.main],
      run.evaluation.intervals.get(gather.AFTER, {}).get(compared.main),
    )
    for run in compared.runs
  }
  return figures.runs_compared(values, f"distilled: {compared.main}")


def rows(compared: Comparison) -> list[list[str]]:
  """A header, then a line a run: settings, initial and distilled main measure, other measures, test, time."""
  others = [name for name in compared.measures if name != compared.main]
  header = ["run", *compared.settings, f"initial {compared.main}", compared.main, *others,
            f"against {compared.runs[0].name}", "p", "time"]  # fmt: skip
  lines = [header]
  for run in compared.runs:
    after = run.evaluation.systems[gather.AFTER]
    before = run.evaluation.systems.get(gather.BEFORE, {}).get(compared.main)
    test = ["–", "–"] if run.test is None else [claims.signed(run.test.delta), claims.p_number(run.test.p)]
    lines.append([
      run.name, *run.settings.values(), "–" if before is None else f"{before:.3f}", f"{after[compared.main]:.3f}",
      *(f"{after[name]:.3f}" for name in others), *test, claims.duration(run.seconds),
    ])  # fmt: skip
  return lines
