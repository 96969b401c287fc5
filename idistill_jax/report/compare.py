"""Several workdirs -> one table: what their configs differ in, what came of it, and whether that is chance."""

import dataclasses
import hashlib
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from idistill_jax.data import tables
from idistill_jax.report import claims, figures, files, gather
from idistill_jax.retrieval import significance, summary
from idistill_jax.workdir import artifacts, inputs, outdated

# Fields that say where things lie or what the run is called, not what it did.
NOT_A_DIFFERENCE = ("name", "export.")
# Systems whose main measure stands beside the distilled retriever's, where any run has measured them.
BESIDE = (gather.BEFORE, "ranker", "direct")
# The field whose value means nothing: what changes with it is chance.
SEED = "seed"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
  """One run.  settings: the config fields in which the runs differ.  test: its distilled retriever against the
  first run's, None for the first and where `differs` says what keeps their queries from being pairs.
  p_holm: its p, corrected for the number of tests.  by_other_code: stages that other code than the first run's made."""

  name: str
  settings: Mapping[str, str]
  evaluation: gather.Evaluation
  seconds: float
  differs: tuple[str, ...]
  test: significance.Comparison | None
  p_holm: float | None
  by_other_code: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
  """measures: those that all runs have; main: the one that is tested, see `_main`."""

  runs: tuple[Compared, ...]
  measures: tuple[str, ...]
  main: str

  @property
  def settings(self) -> tuple[str, ...]:
    return tuple(self.runs[0].settings)

  @property
  def beside(self) -> tuple[str, ...]:
    return tuple(one for one in BESIDE if any(one in run.evaluation.systems for run in self.runs))


def gather_runs(folders: Sequence[str | os.PathLike[str]], resamples: int = significance.RESAMPLES) -> Comparison:
  """Reads every workdir.  Raises ReportError naming the first that has measured no distilled retriever, or one that is
  there no more, or what each has measured where no main measure is common to all."""
  workdirs = [artifacts.Workdir(os.fspath(folder)) for folder in folders]
  names = _names(workdirs)
  evaluations = [_evaluated(workdir) for workdir in workdirs]
  main = _main(dict(zip(names, evaluations, strict=True)))
  evaluations = [dataclasses.replace(one, main_measure=main) for one in evaluations]
  configs = [gather.settings(workdir) for workdir in workdirs]
  differing = sorted(
    path
    for path in {path for config in configs for path in config}
    if not path.startswith(NOT_A_DIFFERENCE) and len({config.get(path) for config in configs}) > 1
  )
  bases = [_basis(workdir, one) for workdir, one in zip(workdirs, evaluations, strict=True)]
  differs = [tuple(what for what in base if base[what] != bases[0][what]) for base in bases]
  tests = _tests(evaluations, differs, resamples)
  corrected = dict(zip(tests, significance.holm([test.p for test in tests.values()]), strict=True))
  runs = tuple(
    Compared(
      name=name,
      settings={path: config.get(path, "–") for path in differing},
      evaluation=evaluation,
      seconds=sum(stage.seconds for stage in gather.stage_runs(workdir)),
      differs=differs[place],
      test=tests.get(place),
      p_holm=corrected.get(place),
      by_other_code=_by_other_code(workdir, workdirs[0]),
    )
    for place, (name, workdir, evaluation, config) in enumerate(
      zip(names, workdirs, evaluations, configs, strict=True)
    )
  )
  measures = tuple(name for name in evaluations[0].measures if all(name in one.measures for one in evaluations))
  return Comparison(runs=runs, measures=measures, main=main)


def _by_other_code(workdir: artifacts.Workdir, first: artifacts.Workdir) -> tuple[str, ...]:
  """Stages, of those that both say it of."""
  code = lambda of, stage: (of.manifest(stage) or {}).get("code")
  found = {stage: (code(workdir, stage), code(first, stage)) for stage in gather.SHOWN}
  return tuple(stage for stage, (mine, its) in found.items() if mine and its and mine != its)


def _names(workdirs: Sequence[artifacts.Workdir]) -> list[str]:
  """Last folders, whole paths where two are called the same."""
  short = [pathlib.Path(workdir.root).resolve().name for workdir in workdirs]
  return [
    name if short.count(name) == 1 else workdir.stated for name, workdir in zip(short, workdirs, strict=True)
  ]


def _evaluated(workdir: artifacts.Workdir) -> gather.Evaluation:
  found = gather.evaluation(workdir)
  if found is None or gather.AFTER not in found.systems:
    raise files.ReportError(
      f"{workdir.stated}: no distilled retriever has been measured there; run "
      + inputs.command("pipeline", workdir.stated)
    )
  older = outdated.of(workdir, gather.SHOWN)
  if "evaluate" in older:
    raise files.ReportError(f"{workdir.stated}: {outdated.told(older, workdir.stated)}")
  return found


def _main(evaluations: Mapping[str, gather.Evaluation]) -> str:
  """The first run's main measure, or that of the next, or what is one where no config says: of those that all have."""
  wanted = dict.fromkeys((*(one.main_measure for one in evaluations.values()), *summary.MAIN_MEASURES))
  for name in wanted:
    if all(name in one.measures for one in evaluations.values()):
      return name
  measured = "; ".join(f"{run}: {', '.join(one.measures)}" for run, one in evaluations.items())
  raise files.ReportError(
    f"none of {', '.join(wanted)} was measured in every run ({measured}); compare runs whose collections "
    "are judged alike"
  )


def _basis(workdir: artifacts.Workdir, evaluation: gather.Evaluation) -> dict[str, object]:
  """What runs must share for their queries to be pairs, whose differences come of the settings: ids alone are equal by
  chance (q0, q1, ...), and ScaNN misses what exact search finds."""
  return {
    "split": evaluation.split,
    "lowest relevant grade": evaluation.relevant_from,
    "judgements": _judged(workdir, evaluation.split),
    "queries": evaluation.per_query.get(gather.AFTER, {}).keys(),
    "kind of search (ScaNN or exact)": evaluation.is_by_scann,
  }


def _judged(workdir: artifacts.Workdir, split: str) -> str:
  """Content hash of what the split is measured by: queries, judgements, accepted answers, number of passages.

  Why not the collection's key: other training queries, and LLM rankings that came with it, are what runs differ in.
  """
  folder = workdir.folder("collection")
  queries = tables.load_queries(folder).of_split(split)
  accepted = tables.load_answers(folder)
  judgements = folder / "qrels" / f"{split}.tsv"
  found = (
    [(query.id, query.text, accepted.get(query.id)) for query in queries],
    judgements.read_text(encoding="utf-8") if judgements.exists() else None,
    ((workdir.manifest("collection") or {}).get("counts") or {}).get("passages"),
  )
  return hashlib.sha256(repr(found).encode()).hexdigest()


def _tests(
  evaluations: Sequence[gather.Evaluation], differs: Sequence[tuple[str, ...]], resamples: int
) -> dict[int, significance.Comparison]:
  """Place of a run -> its test against the first one, where their queries are pairs."""
  first, *others = (one.per_query.get(gather.AFTER, {}) for one in evaluations)
  return {
    place: significance.compare(mine, first, resamples=resamples)
    for place, mine in enumerate(others, start=1)
    if not differs[place] and len(mine) > 1
  }


def headline(compared: Comparison) -> str:
  """Which run has the highest main measure, as strongly as its test allows.

  Of the first run and those that are tested against it: means over other queries stand in no order with these.
  """
  main, first = compared.main, compared.runs[0]
  mean = lambda run: run.evaluation.systems[gather.AFTER][main]
  tested = [(run, run.p_holm) for run in compared.runs if run.p_holm is not None]
  if not tested:
    others = "; no other run was measured as it was" if any(run.differs for run in compared.runs) else ""
    return f"{first.name} has {main} {mean(first):.3f}{others}"
  # The best of the others has been tested against the first alone.
  challenger, p = max(tested, key=lambda pair: mean(pair[0]))
  equal = [run for run, _ in tested if run.test is not None and not run.test.wins + run.test.losses]
  if challenger in equal:
    names, lower = ", ".join(run.name for run in (first, *equal)), "; no other run is higher"
    return f"{names} are equal: {main} {mean(first):.3f}, the same for each query{lower * (len(equal) < len(tested))}"
  other, best = sorted((challenger, first), key=mean)
  found, said = f"{best.name} has the highest {main}: {mean(best):.3f}", f"({claims.p_value(p)}, corrected)"
  if p >= significance.SIGNIFICANT:
    return f"{found}, but its difference from {other.name} cannot be told from chance {said}"
  return f"{found}, against {mean(other):.3f} of {other.name} {said}"


def notes(compared: Comparison) -> list[str]:
  """A sentence for each run whose difference is not tested, saying why."""
  return [
    f"{run.name} is not tested against {compared.runs[0].name}: other {', '.join(run.differs)}."
    for run in compared.runs if run.differs
  ] + [
    f"{run.name} is not tested against {compared.runs[0].name}: one query allows no test."
    for run in compared.runs[1:] if run.test is None and not run.differs
  ] + [
    f"{run.name}: other code of this package than {compared.runs[0].name}'s made {', '.join(run.by_other_code)}."
    for run in compared.runs if run.by_other_code
  ]


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
  """A header, then a line a run: settings, main measure of other systems and of distilled, its test, other measures,
  time; then one for runs that differ in their seed alone."""
  others = [name for name in compared.measures if name != compared.main]
  header = ["run", *compared.settings, *(f"{one} {compared.main}" for one in compared.beside), compared.main,
            f"against {compared.runs[0].name}", "p", "p, corrected", *others, "time"]  # fmt: skip
  lines = [header]
  for run in compared.runs:
    after = run.evaluation.systems[gather.AFTER]
    beside = [run.evaluation.systems.get(one, {}).get(compared.main) for one in compared.beside]
    test = ["–"] * 3
    if run.test is not None and run.p_holm is not None:
      test = [claims.signed(run.test.delta), claims.p_number(run.test.p), claims.p_number(run.p_holm)]
    lines.append([
      run.name, *run.settings.values(), *("–" if one is None else f"{one:.3f}" for one in beside),
      f"{after[compared.main]:.3f}", *test, *(f"{after[name]:.3f}" for name in others), claims.duration(run.seconds),
    ])  # fmt: skip
  return lines + [_over_seeds(compared, runs, others) for runs in of_seeds(compared)]


def of_seeds(compared: Comparison) -> list[list[Compared]]:
  """Runs that differ in nothing but their seed, together, where there are several: of those measured as the first
  was.  Of two of one seed the first counts: the other may be its copy, and one run is not two draws."""
  groups: dict[tuple[tuple[str, str], ...], dict[str | None, Compared]] = {}
  for run in compared.runs:
    if not run.differs:
      of_seed = groups.setdefault(tuple(one for one in run.settings.items() if one[0] != SEED), {})
      of_seed.setdefault(run.settings.get(SEED), run)
  return [list(of_seed.values()) for of_seed in groups.values() if len(of_seed) > 1]


def _over_seeds(compared: Comparison, runs: Sequence[Compared], others: Sequence[str]) -> list[str]:
  """A line as of a run: means, and standard deviations with n - 1."""

  def over(system: str, measure: str) -> str:
    values = [run.evaluation.systems.get(system, {}).get(measure) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(runs):
      return "–"
    return f"{statistics.mean(known):.3f} ± {statistics.stdev(known):.3f}"

  settings = {**runs[0].settings, SEED: ", ".join(run.settings[SEED] for run in runs)}
  return [
    f"mean of {len(runs)}", *settings.values(), *(over(one, compared.main) for one in compared.beside),
    over(gather.AFTER, compared.main), *["–"] * 3, *(over(gather.AFTER, name) for name in others),
    claims.duration(statistics.mean(run.seconds for run in runs)),
  ]  # fmt: skip
