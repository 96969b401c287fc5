"""What a second process gives: encoding or scoring a collection by one pinned to a core, and by two pinned to two.

    python -m benchmarks.scaling --config=configs/quickstart.py --workdir=runs/scaling --task=encode
    python -m benchmarks.scaling --config=configs/quickstart.py --workdir=runs/scaling --task=score

Runs the stage collection, then what a job does between texts and results, by pieces that its processes claim, with
untrained models; one JSON line for each number of processes, and their ratio.  What is compiled is compiled before the
clock.
"""

import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import ports
from benchmarks.clock import Clock
from idistill_jax import cli, flow, processes
from idistill_jax.data import tables
from idistill_jax.train import inference, pieces, texts
from idistill_jax.workdir import artifacts

# Texts enough for a step of every shape.
COMPILED_WITH = 256

_TASK = flags.DEFINE_enum("task", "encode", ["encode", "score"], "All passages, or queries with passages.")
_PASSAGES = flags.DEFINE_integer("passages_per_query", 10, "That each query of train is scored with.", lower_bound=1)
_CORES = flags.DEFINE_list("cores", None, "Two of this machine's, by number; by default the first two there are.")
_PIECES = flags.DEFINE_string("pieces", None, "For the processes that this starts: where they share their pieces.")


def run(runner: cli.Runner) -> None:
  runner.run(flow.STAGES["collection"])
  cores = _CORES.value or sorted(os.sched_getaffinity(0))[:2]
  if len(cores) != 2:
    raise ValueError(f"--cores: two are needed, this names {cores}")
  print(json.dumps({"benchmark": "scaling", "config": runner.cfg.name, "task": _TASK.value,
                    "python": platform.python_version(), "cpus": os.cpu_count()}), flush=True)
  seconds = []
  for count in (1, 2):
    line = _started([str(core) for core in cores[:count]])
    print(json.dumps(line), flush=True)
    seconds.append(line["seconds"])
  print(json.dumps({"task": _TASK.value, "speedup": round(seconds[0] / seconds[1], 3)}))


def _started(cores: list[str]) -> dict[str, Any]:
  """What the first of as many processes as cores says, each of which has one."""
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    address, running = f"127.0.0.1:{ports.free()}", []
    stack.callback(lambda: [one.kill() for one in running])
    for number, core in enumerate(cores):
      several = [f"--coordinator={address}", f"--processes={len(cores)}", f"--process={number}"]
      running.append(subprocess.Popen(
        ["taskset", "--cpu-list", core, sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:],
         f"--pieces={folder}", *(several if len(cores) > 1 else [])], stdout=subprocess.PIPE, text=True))
    said = [one.communicate()[0] for one in running]
    if any(one.returncode for one in running):
      raise ChildProcessError(f"processes on cores {cores} ended with {[one.returncode for one in running]}; "
                              "what they said stands above")
  return {"cores": cores, **json.loads(said[0].splitlines()[-1])}


def measure(runner: cli.Runner) -> None:
  """In each of the processes; the first says what came of it."""
  folder = runner.workdir.folder("collection")
  passages, queries = tables.load_passages(folder), tables.load_queries(folder)
  out = pathlib.Path(str(_PIECES.value))
  job = artifacts.Job(cfg=runner.cfg, out=out, inputs={}, cache=out)
  forward, made = TASKS[_TASK.value](job, queries, passages, _PASSAGES.value)
  read = made()
  first = range(min(COMPILED_WITH, len(read)))
  for _ in forward._outputs([(first, read.read(first))], read):
    pass
  processes.meet("the start")
  with Clock() as clock:
    # Anew: each process makes the tokens of the same sample before its first piece.
    read = made()
    forward(_TASK.value, read)
    processes.meet("the end")
  if processes.is_first():
    tokens = sum(int(read.read(piece).lengths.sum()) for piece in pieces.cut(len(read)))
    print(json.dumps({
      "task": _TASK.value, "processes": processes.count(), "texts": len(read), "tokens": tokens,
      "seconds": round(clock.seconds, 4), "texts_per_second": round(len(read) / clock.seconds, 1),
      "tokens_per_second": round(tokens / clock.seconds),
    }))


def _encode(job: artifacts.Job, queries: tables.Queries, passages: tables.Passages,
            each: int) -> tuple[inference.Forward, Callable[[], texts.Texts]]:
  del queries, each
  forward = inference.load_retriever(job.cfg, None, job).forward
  table = forward.network.passage_table
  return forward, lambda: texts.Tokenised(passages.texts, lambda some: table(some, job.cfg.encoder.passage_tokens))


def _score(job: artifacts.Job, queries: tables.Queries, passages: tables.Passages,
           each: int) -> tuple[inference.Forward, Callable[[], texts.Texts]]:
  """Each query of train with so many passages drawn for it."""
  ranker, asked = inference.load_ranker(job.cfg, None, job), queries.of_split("train")
  query_of = np.repeat(np.arange(len(asked)), each)
  passage_of = np.random.default_rng(0).integers(0, len(passages), len(query_of))
  asked_texts = [query.text for query in asked]
  return ranker.forward, lambda: ranker.pairs(asked_texts, passages.texts, query_of, passage_of)


TASKS = {"encode": _encode, "score": _score}


if __name__ == "__main__":
  # Twice by one name: as what starts the others, and as each of them.
  cli.run_app(lambda runner: run(runner) if _PIECES.value is None else measure(runner))
