"""What was measured -> ratios, the targets that were met, tables in Markdown, a picture."""

import dataclasses
import datetime
import pathlib
import subprocess
from collections.abc import Callable, Iterable
from typing import Any

from rich import box, table
from rich import console as rich_console

from idistill_jax import extras

Line = dict[str, Any]

OURS = "idistill_jax"
ROOFLINE = "roofline"


def of_run(packages: Iterable[str], **told: Any) -> Line:
  """The line that a run begins with: when it was, of which commit (None outside a clone), with which versions."""
  try:
    asked = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"], text=True,
                           cwd=pathlib.Path(__file__).parent, capture_output=True)
    commit = asked.stdout.strip() or None
  except OSError:
    commit = None
  return {"date": datetime.date.today().isoformat(), "commit": commit, "versions": extras.versions(packages), **told}


@dataclasses.dataclass(frozen=True)
class Best:
  """The fastest line of each (work, system); of what has no rate, its only line."""

  lines: dict[tuple[str, str], Line]

  @classmethod
  def of(cls, lines: Iterable[Line]) -> "Best":
    best: dict[tuple[str, str], Line] = {}
    for line in lines:
      if "system" in line and "failed" not in line:
        key = line["work"], line["system"]
        if key not in best or line.get("tokens_per_second", 0.0) > best[key].get("tokens_per_second", 0.0):
          best[key] = line
    return cls(best)

  def ours(self, work: str) -> Line | None:
    return self.lines.get((work, OURS))

  def peers(self, work: str) -> list[Line]:
    return [line for (other, system), line in self.lines.items() if other == work and system != OURS]


def share_of_peak(line: Line, own: Line) -> dict[str, float]:
  """Percent of our measured matrix rate, for ours and a peer's line of the same work."""
  if not {"flops_per_token", "tokens_per_second"} <= own.keys() or on_cpu(line) != on_cpu(own):
    return {}
  share = line["tokens_per_second"] * own["flops_per_token"] / own["matrix_flops"]
  return {"percent_of_peak": round(100 * share, 1)}


def on_cpu(line: Line) -> bool:
  return line["device"] == "cpu"


def ratios(own: Line, peers: list[Line]) -> dict[str, Any]:
  """How many times as fast as each peer and as the best; numbers only where both ran on a device of one kind."""
  alike = [peer for peer in peers if on_cpu(peer) == on_cpu(own)]
  if not alike:
    return {"not_compared": f"ours ran on {own['device']}, the peers on {peers[0]['device']}"}
  times = {peer["system"]: round(own["tokens_per_second"] / peer["tokens_per_second"], 2) for peer in alike}
  return {"ratios": times, "ratio_to_the_best_peer": min(times.values())}


# -- Targets -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
  """bound: the least of what is better more, the most of what is better less; reached: None where it is not known."""

  work: str
  said: str
  bound: float
  more_is_better: bool
  reached: Callable[[Best], float | None]

  def met(self, reached: float) -> bool:
    return reached >= self.bound if self.more_is_better else reached <= self.bound


def _times(work: str, bound: float, said: str, *systems: str) -> Target:
  """So many times the best of the named systems."""

  def reached(best: Best) -> float | None:
    own, peers = best.ours(work), [peer for peer in best.peers(work) if peer["system"] in systems]
    return ratios(own, peers).get("ratio_to_the_best_peer") if own and peers else None

  return Target(work=work, said=f"{bound:g} x {said}", bound=bound, more_is_better=True, reached=reached)


def _field(work: str, bound: float, said: str, name: str, *, more_is_better: bool = False, unit: float = 1.0) -> Target:
  """A field of our line, in the unit that the target speaks of."""

  def reached(best: Best) -> float | None:
    own = best.ours(work)
    return own[name] / unit if own and name in own else None

  return Target(work=work, said=said, bound=bound, more_is_better=more_is_better, reached=reached)


def _fed(best: Best) -> float | None:
  step, pipeline = best.ours("retriever step"), best.ours("input pipeline")
  return pipeline["tokens_per_second"] / step["tokens_per_second"] if step and pipeline else None


def _compiled(work: str, seconds: float) -> Target:
  def reached(best: Best) -> float | None:
    own = best.ours(work)
    return own["trace_seconds"] + own["compile_seconds"] if own else None

  return Target(work=work, said=f"traced and compiled in {seconds:g} s", bound=seconds, more_is_better=False,
                reached=reached)


ST, TORCH = "sentence-transformers", ("torch", "torch-sorted")
EVERYWHERE = (
  Target(work="input pipeline", said="2 x what the retriever step consumes", bound=2, more_is_better=True,
         reached=_fed),
  _compiled("first step, cold", 60), _compiled("first step, warm", 10),
)
# By the name of the sizes that they speak of.
TARGETS = {
  "gpu": (
    _times("retriever step", 10, "sentence-transformers' trainer", ST),
    _times("retriever step", 5, "a PyTorch loop", *TORCH),
    _field("retriever step", 45, "45 % of the measured matrix rate", "percent_of_peak", more_is_better=True),
    _times("ranker step", 10, "sentence-transformers' trainer", ST),
    _times("encode", 10, "encode at its best batch size", ST),
    _times("score", 10, "CrossEncoder.predict", ST),
    _field("large batch", 80, "in 80 GB", "peak_memory_bytes", unit=1e9),
    *EVERYWHERE,
  ),
  "cpu": (
    _times("retriever step", 1.5, "sentence-transformers", ST, "plain-loop"),
    _times("ranker step", 1.5, "sentence-transformers", ST, "plain-loop"),
    _times("encode", 1.5, "sentence-transformers", ST),
    *EVERYWHERE,
  ),
}


# -- Tables and picture --------------------------------------------------------------------------------------------


def show(lines: list[Line], sizes: str) -> None:
  """Prints tables that Markdown reads: what was measured, what of the targets was reached, where the step goes."""
  console = rich_console.Console(width=200, highlight=False)
  console.print(measured(lines))
  console.print(against_targets(lines, sizes))
  for line in lines:
    if line.get("work") == ROOFLINE and "parts" in line:
      console.print(roofline(line))


def _table(*columns: str) -> table.Table:
  made = table.Table(box=box.MARKDOWN)
  for number, column in enumerate(columns):
    made.add_column(column, justify="right" if number > 1 else "left", no_wrap=True)
  return made


def measured(lines: list[Line]) -> table.Table:
  made = _table("work", "system", "products", "device", "real tokens/s", "% of peak", "fill", "peak memory, GB")
  for (work, system), line in Best.of(lines).lines.items():
    said = lambda name, form, line=line: form.format(line[name]) if name in line else ""
    batch = f", batch {line['batch_size']}" if "batch_size" in line else ""
    made.add_row(work, system + batch, line["dtype"], line["device"], said("tokens_per_second", "{:,.0f}"),
                 said("percent_of_peak", "{:.1f}"), said("fill", "{:.3f}"),
                 f"{line['peak_memory_bytes'] / 1e9:.1f}")
  return made


def against_targets(lines: list[Line], sizes: str) -> table.Table:
  made, best = _table("work", "target", "reached", "met"), Best.of(lines)
  for target in TARGETS[sizes]:
    reached = target.reached(best)
    if reached is not None:
      made.add_row(target.work, target.said, f"{reached:.2f}", "yes" if target.met(reached) else "no")
    elif target.work in {line.get("work") for line in lines}:
      made.add_row(target.work, target.said, "not measured", "")
  return made


def roofline(line: Line) -> table.Table:
  made = _table("retriever step", "seconds", "share", "GFLOP", "GFLOP/s", "% of peak", "GB", "GB/s", "% of memory's",
                "at least, s")
  fields = ("gflop", "gflops_per_second", "percent_of_peak", "gigabytes", "gigabytes_per_second",
            "percent_of_memory_rate", "at_least")
  for name, part in line["parts"].items():
    made.add_row(name, f"{part['seconds']:.4f}", f"{part['share']:.0%}",
                 *(f"{part[field]:,.4g}" if part.get(field) else "" for field in fields))
  return made


def plot(lines: list[Line], path: str, works: tuple[str, ...]) -> None:
  """Real tokens a second of every work: ours beside the best of each peer."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  rates: dict[str, dict[str, float]] = {}
  for (work, system), line in Best.of(lines).lines.items():
    if work in works:
      rates.setdefault(system, {})[work] = line["tokens_per_second"]
  figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
  width = 0.8 / max(len(rates), 1)
  for place, (system, of_work) in enumerate(rates.items()):
    where = [works.index(work) + (place - (len(rates) - 1) / 2) * width for work in of_work]
    bars = axes.bar(where, list(of_work.values()), width, label=system)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=6)
  axes.set_xticks(range(len(works)), works)
  axes.set(ylabel="real tokens a second", title=next((line["device"] for line in lines if "device" in line), ""))
  axes.legend()
  figure.savefig(path)
