"""One more worker at what a running pipeline encodes or scores, on this machine or on another that sees the workdir.

    python -m idistill_jax.join --workdir=runs/nq

Where a stage is cut into pieces, it claims some by leases, as the processes of a job do, and those of a worker that is
gone; all else of the stage, and its commit, is left to the run that began it.  It may come and go at any time, and ends
when no stage is left that it could join.
"""

import dataclasses
import functools
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence

from absl import app, flags, logging
from etils import epath

from idistill_jax import cli, flow, processes, sharding
from idistill_jax import config as config_lib
from idistill_jax.stages import index, scores
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts, begun, coded, configs

# Those whose pieces need no more than their inputs, or in train_direct the model, which is whole before there are any.
# Evaluation searches first.
JOINED = {name: flow.STAGES[name] for name in ("candidates", "train_direct", "scores", "index")}
# What makes these pieces; all else of the stage comes before them, or needs what they make together.
PIECES: dict[str, Callable[[artifacts.Job], object]] = {
  "candidates": lambda job: inference.embed_collection(job, None),
  "train_direct": lambda job: inference.embed_collection(job, job.shared),
  "scores": scores.score, "index": index.encode,
}
# What these read, where it is not all that the stage does: of a bucket it is fetched, candidates with embeddings.
READ = {"train_direct": ("collection",)}
# A look at a bucket is paid for: the longer nothing is new, the rarer it is, from the first to the second.
_POLL_SECONDS, _LONGEST_POLL_SECONDS = 2.0, 15.0
# So often everything is looked at, also where no name has changed.
_WHOLE_LOOK_SECONDS = 300.0

_STAGE = flags.DEFINE_enum("stage", None, list(JOINED), "Join this one alone, once; it must be under way.")


def watch(home: artifacts.Workdir) -> None:
  """Joins every stage of JOINED that is being made, until all are done."""
  while True:
    # Before all else: what comes later is news.
    names = home.names()
    cfg = configs.load(home.stated)
    left = [stage for stage in JOINED.values() if not home.is_done(stage, cfg)]
    if not left:
      return
    folders = {stage.name: home.pieces(stage, cfg) for stage in left
               if any(name.startswith(f".{stage.name}-") for name in names)}  # fmt: skip
    under_way = [name for name, pieces in folders.items() if pieces.exists()]
    for name in folders.keys() - under_way:
      _tell_of_other_keys(home, name, names, folders[name].parent.name)
    if under_way:
      _help(home, JOINED[under_way[0]], cfg, folders[under_way[0]].parent.name)
    else:
      _wait(functools.partial(_is_nothing_new, home, names, folders.values()), _WHOLE_LOOK_SECONDS)


@functools.cache
def _say(why: str) -> None:
  """Once."""
  logging.warning("%s", why)


def _tell_of_other_keys(home: artifacts.Workdir, stage: str, names: Sequence[str], own: str) -> None:
  """Says so where the stage is being made of what is not here: it would be waited for without an end."""
  if own not in names and (begun := home.begun(stage)) is not None and begun.is_held:
    _say(f"{stage}: is being made with another key than it has here, so it cannot be joined: weights, files that the "
         "config names, or Python are others on this machine")


def work(home: artifacts.Workdir, stage: artifacts.Stage) -> None:
  """The stage's pieces, as far as others leave them.

  Raises ValueError where the stage is not being made, and ConfigError where it is by other code.
  """
  cfg = configs.load(home.stated)
  pieces = home.pieces(stage, cfg)
  if not pieces.exists():
    raise ValueError(f"{home.stated}: the stage {stage.name} is not under way, so there is nothing to join")
  code = pieces.parent / coded.FILE
  if code.exists() and (other := coded.differing(code.read_text())):
    raise config_lib.ConfigError(f"{home.stated}: {stage.name} is being made by other code ({other}), and pieces of "
                                 "both would be one result; join with the code of the run")
  inputs = home.inputs(dataclasses.replace(stage, reads=READ.get(stage.name, stage.reads)), cfg)
  with tempfile.TemporaryDirectory() as made:
    out = pathlib.Path(made)

    def keep(name: str) -> None:
      (pieces.parent / begun.of_helper(name)).write_bytes((out / name).read_bytes())

    PIECES[stage.name](artifacts.Job(
      cfg=sharding.fitted(cfg), out=out, inputs=inputs, cache=out, shared=pieces.parent, keep=keep, helps=True))


def _is_nothing_new(home: artifacts.Workdir, names: Sequence[str], pieces: Iterable[epath.Path]) -> bool:
  return home.names() == names and not any(path.exists() for path in pieces)


def _help(home: artifacts.Workdir, stage: artifacts.Stage, cfg: config_lib.Config, working: str) -> None:
  """Works in a process of its own, which is ended when the stage is done: it may be anywhere in it by then.

  working: the stage's folder until its commit takes it away.
  """
  logging.info("%s: joins", stage.name)
  command = [sys.executable, "-m", "idistill_jax.join", f"--workdir={home.stated}", f"--stage={stage.name}",
             f"--patience={cli.PATIENCE.value}"]
  is_made = functools.partial(_is_made, home, stage, working)
  with subprocess.Popen(command) as child:
    try:
      _wait(lambda: child.poll() is None and is_made())
    finally:
      child.terminate()
  if child.returncode > 0 and is_made():
    raise ChildProcessError(f"{stage.name}: the helper ended with {child.returncode}; what it said stands above")
  _wait(is_made)  # its pieces are done; what follows is for the run that began it
  home.sweep(stage, cfg)


def _is_made(home: artifacts.Workdir, stage: artifacts.Stage, working: str) -> bool:
  """Whether its folder is there, and no leftover: what a helper writes in the moment of the commit comes after it."""
  manifest = home.manifest(stage.name)
  return working in home.names() and (manifest is None or not working.endswith(manifest["key"]))


def _wait(while_: Callable[[], bool], at_most: float = float("inf")) -> None:
  """Looks more and more rarely whether something still is as it was."""
  pause, until = _POLL_SECONDS, time.monotonic() + at_most
  while time.monotonic() < until and while_():
    time.sleep(pause)
    pause = min(1.5 * pause, _LONGEST_POLL_SECONDS)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or not cli.WORKDIR.value:
    raise app.UsageError("--workdir is needed: python -m idistill_jax.join --workdir=runs/quickstart")
  logging.set_verbosity(logging.INFO)
  home = artifacts.Workdir(cli.WORKDIR.value)
  with cli.ending_in_words(), processes.joined(None, cli.PATIENCE.value):
    if _STAGE.value is None:
      watch(home)
    else:
      work(home, JOINED[_STAGE.value])


if __name__ == "__main__":
  app.run(main)
