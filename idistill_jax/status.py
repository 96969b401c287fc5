"""What every stage of a workdir has done, is doing and has cost.

    python -m idistill_jax.status --workdir=runs/quickstart
"""

import collections
import dataclasses
import datetime
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import app
from rich import box, table
from rich import console as rich_console
from rich.text import Text

from idistill_jax import cli, config, flow
from idistill_jax.llm import budget, cache, session
from idistill_jax.report import claims
from idistill_jax.train import pieces
from idistill_jax.workdir import artifacts, configs
from idistill_jax.workdir import begun as begun_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class State:
  """state: "running" while a run holds a stage, "stopped" where it is begun and none does.  seconds: of computing, as
  last written.  dollars: what its answers cost, cached ones included; of one that is begun, all of its model's that are
  no other stage's.  device_hours: by kind, where it was computed on accelerators.  note: counts, or how far it is.
  """

  stage: str
  state: Literal["done", "running", "stopped", "to do"]
  seconds: float | None
  dollars: float | None
  note: str
  device_hours: Mapping[str, float] = dataclasses.field(default_factory=dict)


def states(workdir: artifacts.Workdir) -> list[State]:
  """Of the stages asked for, in pipeline order; raises FileNotFoundError where nothing has been run in the folder."""
  cfg = configs.load(workdir.stated)
  found = [_state(workdir, stage.name, cfg) for stage in flow.STAGES.values() if stage.asked_for(cfg)]
  asking = [one for one in found if one.dollars is not None and one.stage in session.ASKING]
  if all(one.state == "done" for one in asking):
    return found
  apart = _apart(workdir, cfg, asking)
  return [dataclasses.replace(one, dollars=apart.get(one.stage, one.dollars)) for one in found]


def origin(workdir: artifacts.Workdir) -> str | None:
  """What the folder is where `upsert` made it, and no pipeline has been run there since; else None."""
  manifest = workdir.manifest("index") or {}
  if "upserted_from" not in manifest:
    return None
  counts = manifest["counts"]
  removed = f", {counts['removed']:,} removed" if "removed" in counts else ""
  return (f"{workdir.stated}: made by upsert from {manifest['upserted_from']}, to be searched: {counts['passages']:,} "
          f"passages, {counts['upserted']:,} added or replaced{removed}; what it does not need is not there; a "
          "pipeline run here makes that, and anew what holds passages, of the config's collection")


def _apart(workdir: artifacts.Workdir, cfg: config.Config, asking: Sequence[State]) -> dict[str, float]:
  """Stage -> dollars: what a begun one's model has answered, less what others have of it: none is in the sum twice."""
  made_with = lambda one: configs.made_with(workdir, one.stage) if one.state == "done" else cfg
  models = {one.stage: session.ASKING[one.stage](made_with(one)).model for one in asking}
  # Those that are done know their own.
  apart = {one.stage: one.dollars or 0.0 for one in asking if one.state == "done"}
  for one in asking:
    if one.state != "done":
      of_others = sum(dollars for stage, dollars in apart.items() if models[stage] == models[one.stage])
      apart[one.stage] = max(0.0, (one.dollars or 0.0) - of_others)
  return apart


def _state(workdir: artifacts.Workdir, stage: str, cfg: config.Config) -> State:
  # A finished stage that is being made anew has both folders: what it is doing is the news.
  begun = workdir.begun(stage)
  if begun is not None:
    answers, dollars = _asked(workdir, session.ASKING[stage](cfg)) if stage in session.ASKING else (0, None)
    said = [f"{answers:,} answers of its model so far"] if answers else []
    return State(stage=stage, state="running" if begun.is_held else "stopped", seconds=begun.took.seconds or None,
                 dollars=dollars, note="; ".join(said + _progress(begun)),
                 device_hours=_hours_of(begun.took.device_seconds))
  manifest = workdir.manifest(stage)
  if manifest is None:
    return State(stage=stage, state="to do", seconds=None, dollars=None, note="")
  counts = dict(manifest["counts"])
  dollars = counts.pop("dollars", None)
  dropped = sum(drop["count"] for drop in manifest["drops"].values())
  said = [f"{name} {claims.plain(value)}" for name, value in counts.items()]
  return State(stage=stage, state="done", seconds=manifest["seconds"], dollars=dollars,
               note=", ".join(said + ([f"dropped {dropped}"] if dropped else [])), device_hours=_device_hours(manifest))


def _device_hours(manifest: Mapping[str, Any]) -> dict[str, float]:
  if "device_seconds" in manifest:
    return _hours_of(manifest["device_seconds"])
  # Older versions said it of the last attempt, which stands for all of them, or not at all.
  on = manifest.get("computed_on")
  return {} if on is None else _hours_of({on["kind"]: on["devices"] * manifest["seconds"]})


def _hours_of(device_seconds: Mapping[str, float]) -> dict[str, float]:
  """By kind; a CPU's cores are not counted."""
  return {kind: spent / 3600 for kind, spent in device_seconds.items() if kind != "cpu"}


def _asked(workdir: artifacts.Workdir, cfg: config.Labels) -> tuple[int, float | None]:
  """How many answers a stage's model has given, those to other stages and earlier runs included, and what all of them
  cost; None where no prices are known, or there are none."""
  count, *tokens = cache.given_by(str(cfg.model), workdir.cache / session.CACHE)
  return count, session.prices(cfg).dollars(budget.Usage(*tokens)) if count else None


def _progress(begun: begun_lib.Begun) -> list[str]:
  """The last step of a training, the pieces of other work and who makes them, and when anything was last written."""
  made = pieces.finished(begun.written)
  said = [f"{name} {done} of {count} pieces" for name, (done, count) in made.items()]
  said += _workers(begun, [name for name, (done, count) in made.items() if done < count])
  if (last := begun.last_step) is not None:
    said.append(f"step {last['step']}, loss {last['loss']:.4g}, {last['tokens_per_second']:,} tokens/s")
  if begun.last_written is not None:
    said.append(f"last written {datetime.timedelta(seconds=round(time.time() - begun.last_written))} ago")
  return said


def _workers(begun: begun_lib.Begun, works: Sequence[str]) -> list[str]:
  """Rates of every process, at the last piece that it finished, where that is of work which is not done."""
  said = []
  for file, lines in begun.windows.items():
    try:
      last = json.loads(lines[-1])
      if last.get("work") in works:
        worker = file.removeprefix("windows-").removesuffix(".jsonl")
        said.append(f"{worker}: {last['texts_per_second']:,} texts/s, {last['tokens_per_second']:,} tokens/s")
    except (IndexError, ValueError, KeyError):  # none yet, or a line that a kill tore
      pass
  return said


def show(found: Sequence[State]) -> table.Table:
  made = table.Table(box=box.SIMPLE_HEAD)
  for column in ("stage", "state", "time", "dollars", ""):
    made.add_column(column)
  for one in found:
    spent = "" if one.seconds is None else claims.duration(one.seconds)
    # Titles, models and hosts are in the note: Text is no markup, whatever brackets they have.
    note = Text("; ".join(part for part in (_hours(one.device_hours), one.note) if part))
    made.add_row(one.stage, one.state, spent, "" if one.dollars is None else f"{one.dollars:.2f}", note)
  seconds = sum(one.seconds or 0.0 for one in found)
  made.add_row("all", f"{sum(one.state == 'done' for one in found)} of {len(found)}", claims.duration(seconds),
               f"{sum(one.dollars or 0.0 for one in found):.2f}",
               Text(_hours(sum((collections.Counter(one.device_hours) for one in found), collections.Counter()))))
  return made


def _hours(by_kind: Mapping[str, float]) -> str:
  return ", ".join(f"{hours:,.2f} device-hours of {kind}" for kind, hours in sorted(by_kind.items()))


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or not cli.WORKDIR.value:
    raise app.UsageError("--workdir is needed: python -m idistill_jax.status --workdir=runs/quickstart")
  with cli.ending_in_words():
    workdir = artifacts.Workdir(cli.WORKDIR.value)
    found, console = states(workdir), rich_console.Console()
    if (said := origin(workdir)) is not None:
      console.print(Text(said))
    console.print(show(found))


if __name__ == "__main__":
  app.run(main)
