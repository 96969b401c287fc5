"""The only absl flags: what to run (--config), where (--workdir), and what to take over (--reuse).

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.stages.train_ranker --config=configs/quickstart.py:tiny --workdir=runs/tiny \\
      --config.ranker.optim.peak_lr=3e-5
"""

import dataclasses
import json
import logging as stdlib_logging
import os
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

from absl import app, flags, logging
from ml_collections import config_flags

from idistill_jax import artifacts, processes, validation
from idistill_jax import config as config_lib

CONFIG_SNAPSHOT = "config.json"


class _OrNone(flags.ArgumentParser):
  """Reads `none` as absence and hands everything else on; `validate` refuses it where a field must have a value."""

  def __init__(self, inner: flags.ArgumentParser):
    self._inner = inner

  def parse(self, argument: str) -> Any:
    if isinstance(argument, str) and argument.lower() == "none":
      return None
    return self._inner.parse(argument)

  def flag_type(self) -> str:
    return f"{self._inner.flag_type()} or none"


def _register_parsers() -> None:
  """Teaches config_flags absence, and every `Literal` of the config tree: a wrong choice names the right ones."""
  parsers: dict[type, flags.ArgumentParser] = {
    int: flags.IntegerParser(), float: flags.FloatParser(), str: flags.ArgumentParser(), bool: flags.BooleanParser(),
  }
  for kind, parser in parsers.items():
    config_flags.register_flag_parser_for_type(kind, _OrNone(parser))
  for section in vars(config_lib).values():
    if dataclasses.is_dataclass(section):
      for hint in typing.get_type_hints(section).values():
        if typing.get_origin(hint) is Literal:
          config_flags.register_flag_parser_for_type(hint, flags.EnumParser(list(typing.get_args(hint))))


_register_parsers()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment: a file in configs/, with :variant.", lock_config=False
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder that holds one folder a stage.")
_REUSE = flags.DEFINE_list("reuse", [], "Workdirs whose finished stages are taken over where config and inputs agree.")
_ESTIMATE = flags.DEFINE_bool(
  "estimate", False, "Print what asking the LLM would cost and how long it would take; ask nothing."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0 of several, or `auto` on TPU pods (Google Cloud, GKE), Slurm, Open MPI; "
  "on other Kubernetes where the package `kubernetes` is installed.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the job has; beside --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0; beside --coordinator.")
_PATIENCE = flags.DEFINE_float(
  "patience", 600.0, "Seconds after which a process that is silent, or that others wait for, counts as lost: all end.")


class Steps(flags.ArgumentParser):
  """FIRST:LAST -> range, both ends included."""

  def parse(self, argument: str) -> range:
    first, _, last = argument.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
      raise ValueError("FIRST:LAST is needed, as in --profile=10:15; steps count from 1")
    return range(int(first), int(last) + 1)


_PROFILE = flags.DEFINE(
  Steps(), "profile", None, "FIRST:LAST, steps of each training whose profile is written into its stage's folder."
)


def profiled_steps() -> range | None:
  """What --profile asks for; None without it, or where no flags were parsed."""
  return _PROFILE.value if flags.FLAGS.is_parsed() else None


def main(stage: artifacts.Stage, *, estimate: Callable[["Runner"], None] | None = None) -> None:
  """Entry point of a stage module: runs that one stage, or prints its estimate where --estimate asks for it."""

  run_app(lambda runner: runner.run(stage), estimate=estimate)


def run_app(work: Callable[["Runner"], object], *, estimate: Callable[["Runner"], None] | None = None) -> None:
  """Parses flags, sets up logging and calls `work`, or `estimate` where --estimate asks for it.

  Errors that a user can cause end without a traceback.
  """

  def run(cfg: config_lib.Config) -> None:
    others = [artifacts.Workdir(root) for root in _REUSE.value]
    runner = Runner(cfg, artifacts.Workdir(typing.cast(str, _WORKDIR.value)), others)
    if not _ESTIMATE.value:
      work(runner)
    elif estimate is None:
      raise ValueError("--estimate: only what asks an LLM has one: the pipeline, the stages queries, labels, answer")
    else:
      estimate(runner)

  _start(run, ("config", "workdir"))


def config_app(work: Callable[[config_lib.Config], object]) -> None:
  """As `run_app`, for what reads a config and writes nothing."""
  _start(work, ("config",))


def _start(work: Callable[[config_lib.Config], object], needed: tuple[str, ...]) -> None:
  def start(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments {argv[1:]}")
    for name in needed:
      if flags.FLAGS[name].value is None:
        raise app.UsageError(
          f"--{name} is needed, for example --config=configs/quickstart.py --workdir=runs/quickstart"
        )
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours_or_serious)
    with processes.joined(_launch()):
      if not processes.is_first():
        logging.set_verbosity(logging.WARNING)
      try:
        validation.validate(_CONFIG.value)
        work(_CONFIG.value)
      except USER_ERRORS as e:
        logging.debug("traceback", exc_info=True)
        sys.exit(f"{type(e).__name__}: {e}")

  app.run(start)


def _launch() -> processes.Launch | None:
  if _COORDINATOR.value is None:
    return None
  return processes.Launch(coordinator=_COORDINATOR.value, count=_PROCESSES.value, index=_PROCESS.value,
                          patience=_PATIENCE.value)


def _is_ours_or_serious(entry: stdlib_logging.LogRecord) -> bool:
  """Libraries tell every rename and every thread at level INFO; only their warnings are worth a line."""
  return entry.levelno >= stdlib_logging.WARNING or "idistill_jax" in entry.pathname


# Errors whose message says what to do; anything else is a defect and keeps its traceback.
USER_ERRORS = (artifacts.MissingInputError, config_lib.ConfigError, ValueError, OSError, ImportError)


class Runner:
  """Runs stages of one config in one workdir."""

  def __init__(self, cfg: config_lib.Config, workdir: artifacts.Workdir, reuse: Sequence[artifacts.Workdir]):
    self.cfg, self.workdir, self.reuse = cfg, workdir, reuse

  def run(self, stage: artifacts.Stage) -> bool:
    """Runs the stage unless it is done or another workdir has it; True where it did the work."""
    if processes.once(lambda: self._is_settled(stage)):
      return False
    logging.info("%s: starts", stage.name)
    manifest = self.workdir.execute(stage, self.cfg)
    logging.info("%s: done in %.1f s  %s", stage.name, manifest["seconds"], manifest["counts"])
    return True

  def job(self, stage: artifacts.Stage) -> artifacts.Job:
    """What a look at the stage's inputs needs, beside which nothing is written; raises MissingInputError."""
    workdir = self.workdir
    return artifacts.Job(
      cfg=self.cfg, out=workdir.root, inputs=workdir.inputs(stage, self.cfg), cache=workdir.cache
    )

  def _is_settled(self, stage: artifacts.Stage) -> bool:
    """Whether the stage is done, or could be taken over."""
    save_config(self.cfg, self.workdir)
    if self.workdir.is_done(stage, self.cfg):
      logging.info("%s: done already, nothing changed", stage.name)
      return True
    self.workdir.inputs(stage, self.cfg)
    for other in self.reuse:
      if self.workdir.take_over(stage, self.cfg, other):
        logging.info("%s: taken over from %s", stage.name, other.stated)
        return True
    return False


def save_config(cfg: config_lib.Config, workdir: artifacts.Workdir) -> None:
  """What `load_config` reads: the config that the workdir is run with from now on."""
  workdir.write(CONFIG_SNAPSHOT, json.dumps(config_lib.as_dict(cfg), indent=1) + "\n")


def load_config(workdir: str | os.PathLike[str]) -> config_lib.Config:
  """The config that a workdir was last run with."""
  text = artifacts.Workdir(workdir).read(CONFIG_SNAPSHOT)
  if text is None:
    raise FileNotFoundError(f"{workdir}/{CONFIG_SNAPSHOT}: no run has been started there; "
                            f"python -m idistill_jax.pipeline --config=... --workdir={workdir}")
  return config_lib.from_dict(json.loads(text))
