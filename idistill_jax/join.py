"""One more worker at what a running pipeline encodes or scores, on this machine or on another that sees the workdir.

    python -m idistill_jax.join --workdir=runs/nq

Where a stage is cut into pieces, it claims some by leases, as the processes of a job do, and those of a worker that is
gone; all else of the stage, and its commit, is left to the run that began it.  It may come and go at any time, and ends
when no stage is left that it could join.
"""

import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags, logging

from idistill_jax import artifacts, cli, processes
from idistill_jax.stages import candidates, index, scores

# Those that are little but pieces.  A training's embeddings come after it, and evaluation searches first.
JOINED = {stage.name: stage for stage in (candidates.STAGE, scores.STAGE, index.STAGE)}
_POLL_SECONDS = 2.0

_STAGE = flags.DEFINE_enum("stage", None, list(JOINED), "Join this one alone, once; it must be under way.")


def watch(home: artifacts.Workdir) -> None:
  """Joins every stage of JOINED that is being made, until all are done."""
  while left := _left(home):
    cfg = cli.load_config(home.stated)
    under_way = [stage for stage in left if home.helped(stage, cfg, home.root) is not None]
    if under_way:
      _help(home, under_way[0])
    time.sleep(_POLL_SECONDS)


def work(home: artifacts.Workdir, stage: artifacts.Stage) -> None:
  """The stage's pieces, as far as others leave them; what the stage makes of them is thrown away.

  Raises ValueError where the stage is not being made.
  """
  with tempfile.TemporaryDirectory() as made:
    job = home.helped(stage, cli.load_config(home.stated), pathlib.Path(made))
    if job is None:
      raise ValueError(f"{home.stated}: the stage {stage.name} is not under way, so there is nothing to join")
    stage.run(job)


def _left(home: artifacts.Workdir) -> list[artifacts.Stage]:
  cfg = cli.load_config(home.stated)
  return [stage for stage in JOINED.values() if not home.is_done(stage, cfg)]


def _help(home: artifacts.Workdir, stage: artifacts.Stage) -> None:
  """Works in a process of its own, which is ended when the stage is done: it may be anywhere in it by then."""
  logging.info("%s: joins", stage.name)
  command = [sys.executable, "-m", "idistill_jax.join", f"--workdir={home.stated}", f"--stage={stage.name}"]
  with subprocess.Popen(command) as child:
    try:
      while child.poll() is None and stage in _left(home):
        time.sleep(_POLL_SECONDS)
    finally:
      child.terminate()
  if child.returncode > 0 and stage in _left(home):
    raise ChildProcessError(f"{stage.name}: the helper ended with {child.returncode}; what it said stands above")
  while stage in _left(home):  # its pieces are done; what follows is for the run that began it
    time.sleep(_POLL_SECONDS)
  home.sweep(stage, cli.load_config(home.stated))


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1 or flags.FLAGS.workdir is None:
    raise app.UsageError("--workdir is needed: python -m idistill_jax.join --workdir=runs/quickstart")
  logging.set_verbosity(logging.INFO)
  home = artifacts.Workdir(flags.FLAGS.workdir)
  try:
    with processes.joined(None):
      if _STAGE.value is None:
        watch(home)
      else:
        work(home, JOINED[_STAGE.value])
  except cli.USER_ERRORS as e:
    sys.exit(f"{type(e).__name__}: {e}")


if __name__ == "__main__":
  app.run(main)
