"""A workdir -> one frozen `Report`: all that page and terminal show, nothing drawn yet.

Stages that have not run leave their part empty; files that are there but unreadable raise `files.ReportError`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from idistill_jax import flow
from idistill_jax.report import files, queries
from idistill_jax.retrieval import significance, summary
from idistill_jax.workdir import artifacts, begun, outdated

# All that the page shows: not itself, which may be of an earlier run.
SHOWN = tuple(flow.SHOWN)
# Section of a config -> the stage that is its own.
_OF_A_STAGE = {stage.removeprefix("train_"): stage for stage in SHOWN} | {"name": "export"}
# What is talked about of what a reader answered.
OF_A_READER = "F1"
BEFORE, AFTER = "initial", "distilled"
# On the main measure, the test that stands by its own p.
PRIMARY = summary.label((AFTER, BEFORE))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison(significance.Comparison):
  """One system against another on one measure; p_holm: p, corrected for the number of tests, but of the primary one."""

  p_holm: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
  """Systems measured and compared on one split.

  systems: system -> measure -> mean.  intervals: the same -> 95 % interval.  tests: "a vs b" -> measure ->
  comparison.  values: measure -> system -> query id -> value.  ann: the index against exact search.
  leakage: what training saw of the test.  relevant_from: the lowest grade that counts as relevant.  written_queries:
  how many of the queries an LLM wrote.
  """

  split: str
  queries: int
  dropped_queries: int
  measures: tuple[str, ...]
  main_measure: str
  systems: Mapping[str, Mapping[str, float]]
  intervals: Mapping[str, Mapping[str, tuple[float, float]]]
  tests: Mapping[str, Mapping[str, Comparison]]
  values: Mapping[str, Mapping[str, Mapping[str, float]]]
  ann: Mapping[str, Any]
  leakage: Mapping[str, Any]
  relevant_from: int
  written_queries: int = 0

  @property
  def per_query(self) -> Mapping[str, Mapping[str, float]]:
    """System -> query id -> value of `main_measure`."""
    return self.values.get(self.main_measure, {})

  @property
  def is_by_scann(self) -> bool:
    """Whether `distilled` is what ScaNN found, as it was wherever the index is ScaNN before that was a system of its
    own."""
    return self.ann.get("index") == "scann" and f"{AFTER}+scann" not in self.systems

  def known(self, measure: str) -> int:
    """Number of queries that the measure says something of: one of answers, those that have some."""
    of_systems = self.values.get(measure, {}).values()
    return len(set().union(*of_systems)) if of_systems else self.queries

  def test(self, system: str) -> Mapping[str, Comparison]:
    """Against the initial retriever."""
    return self.tests.get(f"{system} vs {BEFORE}", {})

  def deltas(self, system: str) -> dict[str, float]:
    """Query id -> what the main measure differs by from the initial retriever's, for queries that both have it of."""
    base, other = self.per_query.get(BEFORE, {}), self.per_query.get(system, {})
    return {query_id: other[query_id] - base[query_id] for query_id in base if query_id in other}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StageRun:
  """One stage's manifest; drops: reason -> (count, examples)."""

  name: str
  seconds: float
  finished: str
  counts: Mapping[str, Any]
  drops: Mapping[str, tuple[int, tuple[str, ...]]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Training:
  """Logged steps of one training: column -> values, one a step, NaN where a step has none."""

  name: str
  columns: Mapping[str, tuple[float, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
  """All that is shown.  `stages` holds the committed ones in pipeline order; outdated: which of them were made of what
  has been made anew since, as `outdated.of` says."""

  name: str
  config: Mapping[str, str]
  stages: tuple[StageRun, ...]
  outdated: Mapping[str, list[str]]
  versions: Mapping[str, str]
  evaluation: Evaluation | None
  reader: Evaluation | None
  trainings: tuple[Training, ...]
  labels: Mapping[str, Any] | None
  shown: queries.Shown

  @property
  def seconds(self) -> float:
    return sum(stage.seconds for stage in self.stages)


def gather(workdir: artifacts.Workdir) -> Report:
  """Reads everything; raises files.ReportError, or what the record readers raise for a corrupt file."""
  metrics = evaluation(workdir)
  shown = queries.NOTHING
  if metrics is not None:
    deltas = metrics.deltas(AFTER)
    shown = queries.gather(workdir, metrics.split, tuple(metrics.systems), deltas, metrics.relevant_from)
  config = settings(workdir)
  return Report(
    name=json.loads(config["name"]) if "name" in config else workdir.root.name,
    config=config,
    stages=stage_runs(workdir),
    outdated=outdated.of(workdir, SHOWN),
    versions=_versions(workdir),
    evaluation=metrics,
    reader=evaluation(workdir, "answer"),
    trainings=tuple(filter(None, (_training(workdir, name) for name in flow.TRAININGS))),
    labels=labels(workdir),
    shown=shown,
  )


def evaluation(workdir: artifacts.Workdir, stage: str = "evaluate") -> Evaluation | None:
  """What the evaluate stage measured, or the answer stage; None where it has not run or had nothing to measure."""
  path = workdir.folder(stage) / "metrics.json"
  found = files.read_object(path)
  if found is None:
    return None
  try:
    measures = tuple(str(name) for name in found["measures"])
    # Before there was a primary test, its p was corrected as all others were.
    stated = found["primary"]["measure"] if "primary" in found else OF_A_READER if OF_A_READER in measures else None
    main = summary.main_measure(measures, stated)
    primary = (PRIMARY, main) if stage == "evaluate" else None
    return Evaluation(
      split=str(found.get("split", "")),
      queries=int(found["queries" if "queries" in found else "questions"]),
      dropped_queries=int(found.get("dropped_queries", 0)),
      measures=measures,
      main_measure=main,
      systems={
        system: {name: float(mean) for name, mean in means.items()}
        for system, means in found["systems"].items()
      },
      intervals={
        system: {name: (float(low), float(high)) for name, (low, high) in of.items()}
        for system, of in found.get("intervals", {}).items()
      },
      tests={
        pair: {
          name: _comparison(one, one["p"] if (pair, name) == primary else one["p_holm"]) for name, one in of.items()
        }
        for pair, of in found["tests"].items()
      },
      values=files.read_per_query(path.with_name("per_query.csv"), measures),
      ann=found.get("ann") or {},
      leakage=found.get("leakage") or {},
      relevant_from=int(found.get("relevant_from", 1)),
      written_queries=int(found.get("written_queries", 0)),
    )
  except (KeyError, TypeError, IndexError, AttributeError) as e:
    raise files.ReportError(
      f"{path}: not what the {stage} stage writes ({type(e).__name__}: {e}); run {stage} again"
    ) from e


def labels(workdir: artifacts.Workdir) -> dict[str, Any] | None:
  """Statuses of the LLM's answers as the labels stage counted them, or None where it has not run."""
  return files.read_object(workdir.folder("labels") / "statuses.json")


def _comparison(found: Mapping[str, Any], p_holm: float) -> Comparison:
  low, high = found["ci95"]
  return Comparison(**dict(found) | {"ci95": (low, high), "p_holm": p_holm})


def stage_runs(workdir: artifacts.Workdir) -> tuple[StageRun, ...]:
  """Committed stages in pipeline order, from their manifests."""
  manifests = [(name, workdir.manifest(name)) for name in SHOWN]
  return tuple(
    StageRun(
      name=name,
      seconds=float(manifest["seconds"]),
      finished=str(manifest.get("finished", "")),
      counts=manifest["counts"],
      drops={
        reason: (int(drop["count"]), tuple(map(str, drop["examples"])))
        for reason, drop in manifest["drops"].items()
      },
    )
    for name, manifest in manifests
    if manifest is not None
  )


def _versions(workdir: artifacts.Workdir) -> dict[str, str]:
  """Package -> version; all of them where stages ran under different ones."""
  found: dict[str, dict[str, None]] = {}
  for name in SHOWN:
    for package, version in ((workdir.manifest(name) or {}).get("versions") or {}).items():
      found.setdefault(package, {})[str(version)] = None
  return {package: ", ".join(versions) for package, versions in sorted(found.items())}


def settings(workdir: artifacts.Workdir) -> dict[str, str]:
  """Path -> JSON of every field of the config that made what is there; all values where stages were made with several.

  A section that has a stage of its own is as that stage's manifest says, though others depend on it: they may be older.
  What no manifest tells of is as the workdir was last run with.
  """
  snapshot = workdir.read(artifacts.CONFIG)
  last = {} if snapshot is None else files.parse_object(snapshot, f"{workdir.stated}/{artifacts.CONFIG}")
  made: dict[str, dict[str, None]] = {}
  for stage in SHOWN:
    sections = (workdir.manifest(stage) or {}).get("config") or {}
    own = {name: section for name, section in sections.items() if _OF_A_STAGE.get(name, stage) == stage}
    for path, value in flat(own).items():
      made.setdefault(path, {})[value] = None
  return flat(last) | {path: ", ".join(values) for path, values in made.items()}


def flat(found: Any, prefix: str = "") -> dict[str, str]:
  """Path -> JSON of every leaf of a config's sections."""
  if not isinstance(found, dict):
    return {prefix: json.dumps(found, ensure_ascii=False)}
  lines: dict[str, str] = {}
  for key in sorted(found):
    lines.update(flat(found[key], f"{prefix}.{key}" if prefix else str(key)))
  return lines


def _training(workdir: artifacts.Workdir, name: str) -> Training | None:
  path = workdir.folder(name) / begun.METRICS
  if not path.exists():
    return None
  rows = []
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
    try:
      rows.append({key: float(number) for key, number in json.loads(line).items()})
    except (ValueError, TypeError, AttributeError) as e:
      raise files.ReportError(f"{path}:{number}: not an object of numbers ({e}); run {name} again") from e
  if not rows:
    return None
  names = dict.fromkeys(key for row in rows for key in row)
  return Training(name=name, columns={key: tuple(row.get(key, math.nan) for row in rows) for key in names})
