"""The table of contents: corpus and queries in, a better ranker and retriever out.

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --dry_run
    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --compile_only=v5e:4x4
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart --estimate

`flow` has the stages, in order.  Each reads folders of earlier ones and writes its own; finished stages are skipped, a
killed run continues.
"""

import shlex
from collections.abc import Sequence

from absl import flags

from idistill_jax import amounts, cli, config, dry_run, flow, processes, suited
from idistill_jax.llm import session
from idistill_jax.report import terminal
from idistill_jax.retrieval import measures, systems
from idistill_jax.workdir import anew, artifacts, inputs, outside, remote

_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what the stages would read, write, ask and take; do nothing.")
_COMPILE_ONLY = flags.DEFINE_string(
  "compile_only", None, "A TPU slice, as v5e:4x4, or GPUs, h100 or h100:8, which need not be here: compile the "
  "training steps and the encoding for it, print what they need, end with an error where one does not fit; do nothing.")


def run(runner: cli.Runner) -> None:
  """Runs every stage that is asked for and not done, then prints what came out."""
  stages = [stage for stage in flow.STAGES.values() if stage.asked_for(runner.cfg)]
  processes.once(lambda: _check_paths(runner, stages))
  done = processes.once(lambda: all(runner.workdir.is_done(stage, runner.cfg) for stage in stages), "a look at all")
  if not done:
    # Not above: it imports JAX, seconds that a run with nothing to do, or a misspelt flag, need not wait for.
    from idistill_jax import ahead

    ahead.check(runner)
  for stage in stages:
    runner.run(stage)
    if stage.name == "collection":
      processes.once(lambda: suited.check(runner.workdir, runner.cfg), "a look at the collection")
      if not done:
        processes.once(lambda: suited.warn_of_leakage(runner.workdir, runner.cfg), "a look at its queries")
        ahead.check_index(runner)
  processes.once(lambda: terminal.print_summary(runner.workdir))


def _check_paths(runner: cli.Runner, stages: Sequence[artifacts.Stage]) -> None:
  """What a stage would only come to after hours: raises FileExistsError for a folder of another's, FileNotFoundError
  for a file that is not there, and RunError for the files of `evaluate.runs`."""
  for stage in stages:
    runner.workdir.refuse_foreign(stage.name)
  systems.run_files(runner.cfg)
  read = runner.cfg.collection
  if read.path is not None and read.source not in ("stdlib", "ir_datasets") and not outside.at(read.path).exists():
    raise FileNotFoundError(f"{read.path}: collection.path names nothing that is there")
  for field, path in (("collection.rankings", read.rankings), ("collection.rankings_shown", read.rankings_shown),
                      ("candidates.run", runner.cfg.candidates.run)):
    if path is not None:
      outside.file(path, field)


def estimate(runner: cli.Runner) -> None:
  """Prints what asking would cost, counted where what a stage reads is done, else at most and what must run first."""
  looks = anew.Looks(runner.workdir, runner.cfg, flow.STAGES.values(), runner.others)
  for stage in flow.STAGES.values():
    if stage.name not in session.ASKING or not stage.asked_for(runner.cfg):
      continue
    print(f"\n{stage.name}:")
    if not session.asks(stage.name, runner.cfg):
      print("\n".join(amounts.of(stage, runner, looks)) or "nobody is asked")
      continue
    first = {name: look for name, look in looks.before(stage.name).items() if look.state == "to do" or look.replaced}
    if not first or looks.at(stage.name).ready:
      flow.module(stage.name).print_estimate(runner)
      continue
    commands = (f"{name}: {look}\n{inputs.made_by(name, runner.workdir.stated)}"
                + f" {shlex.quote(f'--reuse={look.why}')}" * (look.state == "taken") for name, look in first.items())
    most = amounts.of(stage, runner, looks) or ["how much is asked is not known yet"]
    print("\n".join([*most, "to count it, there come first:", *commands]))


def print_refusal(runner: cli.Runner) -> None:
  """What a run would end with once it comes to the collection, where that is done already."""
  # Why not of a bucket's: its passages would be fetched, all of them, by a command that only looks ahead.
  if remote.scheme(runner.workdir.stated) or not runner.workdir.is_done(flow.STAGES["collection"], runner.cfg):
    return
  try:
    suited.check(runner.workdir, runner.cfg)
  except (config.ConfigError, measures.MeasureError) as e:
    print(f"\nREFUSED: a run ends after the stage collection: {e}")


def _estimate_and_refusal(runner: cli.Runner) -> None:
  estimate(runner)
  print_refusal(runner)


def asked_for(runner: cli.Runner) -> None:
  """What the flags ask for: a look ahead, or the work."""
  if _DRY_RUN.value:
    dry_run.show(runner, flow.STAGES.values())
    print_refusal(runner)
  elif _COMPILE_ONLY.value is not None:
    from idistill_jax import compile_for  # not above, as `ahead` is not

    compile_for.check(runner.cfg, _COMPILE_ONLY.value)
  else:
    run(runner)


if __name__ == "__main__":
  cli.run_app(asked_for, estimate=_estimate_and_refusal)
