"""Flags of all commands: what to run (--config), where (--workdir), and what to take over (--reuse).

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.stages.train_ranker --config=configs/quickstart.py:tiny --workdir=runs/tiny \\
      --config.ranker.optim.peak_lr=3e-5
"""

import contextlib
import dataclasses
import itertools
import logging as stdlib_logging
import math
import os
import pathlib
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from absl import app, flags, logging
from ml_collections import config_flags

from idistill_jax import config as config_lib
from idistill_jax import experiments, extras, processes, validation
from idistill_jax.workdir import anew, artifacts, databases, shared


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


def define_new_folder(name: str, what: str) -> flags.FlagHolder[str | None]:
  """A flag for a folder that may be made, which a name that no shell has expanded never is."""
  made = flags.DEFINE_string(name, None, what)
  flags.register_validator(made, lambda path: not (path or "").startswith("~"),
                           message="the shell leaves ~ behind a = as it is, which would make a folder of that name; "
                           "write $HOME or ./~")
  return made


WORKDIR = define_new_folder("workdir", "Folder that holds one folder a stage.")
_REUSE = flags.DEFINE_list("reuse", [], "Workdirs whose finished stages are taken over where config and inputs agree.")
_ESTIMATE = flags.DEFINE_bool(
  "estimate", False, "Print what asking the LLM would cost and how long it would take; ask nothing."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0 of several, or `auto` on TPU pods (Google Cloud, GKE), Slurm, Open MPI; "
  "on other Kubernetes where the package `kubernetes` is installed.")
_PROCESSES = flags.DEFINE_integer("processes", None, "How many processes the job has; beside --coordinator.")
_PROCESS = flags.DEFINE_integer("process", None, "Which of them this is, from 0; beside --coordinator.")
PATIENCE = flags.DEFINE_float(
  "patience", processes.PATIENCE_SECONDS, "Seconds after which a process of a job that is silent, or that others wait "
  "for, counts as lost and all end; or a helper (idistill_jax.join) whose piece does not get on.")
flags.register_validator(PATIENCE, lambda seconds: 0 < seconds < math.inf, message="a number of seconds above 0")


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
    runner = Runner(cfg, artifacts.Workdir(typing.cast(str, WORKDIR.value)), _others())
    if not _ESTIMATE.value:
      work(runner)
    elif estimate is None:
      raise ValueError("--estimate: only what asks an LLM has one: the pipeline, the stages queries, labels, answer")
    else:
      estimate(runner)

  _start(run)


def _others() -> list[artifacts.Workdir]:
  """What --reuse names; raises FileNotFoundError where nothing has been run: all would be made, and paid for, again."""
  others = [artifacts.Workdir(root) for root in _REUSE.value]
  for other in others:
    if other.read(artifacts.CONFIG) is None and not any(
        other.read(f"{name}/{artifacts.MANIFEST}") for name in other.names()):
      raise FileNotFoundError(f"--reuse={other.stated}: no {artifacts.CONFIG} there, and no folder of a stage with its "
                              f"{artifacts.MANIFEST}; name a workdir of the pipeline")
  return others


def _start(work: Callable[[config_lib.Config], object]) -> None:
  def start(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f"unexpected arguments {argv[1:]}")
    for name in ("config", "workdir"):
      if not flags.FLAGS[name].value:
        raise app.UsageError(
          f"--{name} is needed, for example --config=configs/quickstart.py --workdir=runs/quickstart"
        )
    if flags.FLAGS["reuse"].present and not (_REUSE.value and all(_REUSE.value)):
      raise app.UsageError("--reuse names nothing; name workdirs, with commas between, or leave it out")
    logging.set_verbosity(logging.INFO)
    quiet_libraries()
    # Twice: what goes wrong at the start ends in words, too; what does within is told to the other processes first.
    with ending_in_words(), processes.joined(_launch(), PATIENCE.value):
      if not processes.is_first():
        logging.set_verbosity(logging.WARNING)
      with ending_in_words():
        validation.validate(_CONFIG.value)
        _compare(_CONFIG.value)
        work(_CONFIG.value)

  app.run(start, flags_parser=_parse)


def _compare(cfg: config_lib.Config) -> None:
  """Raises ConfigError in all processes where one has another config or other code: they would train together."""
  if processes.count() == 1:
    return
  of_code = "".join(f"{name}: {version}\n" for name, version in extras.identity().items())
  said = processes.told("a look at the configs", config_lib.render(cfg) + of_code)
  for process, its in said.items():
    if its != said[0]:
      differ = [", ".join(sorted(set(one.splitlines()) - set(other.splitlines()))) or "no such field"
                for one, other in ((its, said[0]), (said[0], its))]  # fmt: skip
      raise config_lib.ConfigError(f"process {process} has {differ[0]}; process 0 has {differ[1]}: all processes of a "
                                   "job are started with the same command, of the same code")


def _parse(argv: list[str]) -> list[str]:
  """As absl does it, but for mistakes in a config, which config_flags ends with a traceback for."""
  args = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
  try:
    for arg, following in itertools.pairwise([*args, ""]):
      if found := re.fullmatch(r"--?config(=(.*))?", arg):
        experiments.check(following if found[1] is None else found[2])
      elif found := re.match(r"--?(?:no)?config\.([^=]+)", arg):
        experiments.check_field(found[1])
  except config_lib.ConfigError as e:
    sys.exit(f"{type(e).__name__}: {e}")
  return app.parse_flags_with_usage(argv)


def _launch() -> processes.Launch | None:
  if _COORDINATOR.value is None:
    if _PROCESSES.present or _PROCESS.present:
      raise app.UsageError("--processes and --process need --coordinator: without it each would do the whole job")
    return None
  return processes.Launch(coordinator=_COORDINATOR.value, count=_PROCESSES.value, index=_PROCESS.value,
                          patience=PATIENCE.value)


def quiet_libraries() -> None:
  """For every command that loads a model."""
  logging.get_absl_handler().addFilter(_is_ours_or_serious)


def _is_ours_or_serious(entry: stdlib_logging.LogRecord) -> bool:
  """Libraries tell every rename and every thread at level INFO; only their warnings are worth a line."""
  return entry.levelno >= stdlib_logging.WARNING or entry.pathname.startswith(_OURS)


# A name alone is that of a clone, too, and of all that is installed in its .venv.
_OURS = f"{pathlib.Path(__file__).parent}{os.sep}"
# Errors whose message says what to do; anything else is a defect and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError)


@contextlib.contextmanager
def ending_in_words() -> Iterator[None]:
  """Ends the command with the message of an error that says what to do, in place of a traceback."""
  try:
    yield
  except USER_ERRORS as e:
    logging.debug("traceback", exc_info=True)
    sys.exit(f"{type(e).__name__}: {e}")


class Runner:
  """Runs stages of one config in one workdir."""

  def __init__(self, cfg: config_lib.Config, workdir: artifacts.Workdir, reuse: Sequence[artifacts.Workdir]):
    self.cfg, self.workdir, self.reuse = cfg, workdir, reuse
    self._not_read = list(reuse)

  def run(self, stage: artifacts.Stage) -> bool:
    """Runs the stage unless it is done or another workdir has it; True where it did the work.

    Raises as `shared.check` and `Workdir.execute`.
    """
    if processes.once(lambda: self._is_settled(stage)):
      return False
    # Not as soon as all have started: what only looks ahead, or finds all done, writes nothing.
    shared.check(self.workdir.stated)
    logging.info("%s: starts", stage.name)
    processes.once(self._take_answers)
    manifest = self.workdir.execute(stage, self.cfg, again=False)
    if manifest is None:
      logging.info("%s: done meanwhile, by another run", stage.name)
      return False
    logging.info("%s: done in %.1f s  %s", stage.name, manifest["seconds"], manifest["counts"])
    return True

  def _take_answers(self) -> None:
    """What other workdirs have paid for, once, also where their stages are not taken over."""
    while self._not_read:
      databases.take_over(*(each.cache / databases.ANSWERS for each in (self._not_read.pop(), self.workdir)))

  def job(self, stage: artifacts.Stage) -> artifacts.Job:
    """What a look at the stage's inputs needs, beside which nothing is written; raises MissingInputError."""
    workdir = self.workdir
    return artifacts.Job(
      cfg=self.cfg, out=workdir.root, inputs=workdir.inputs(stage, self.cfg), cache=workdir.cache
    )

  def others(self, stage: artifacts.Stage) -> Sequence[artifacts.Workdir]:
    """From where it may be taken over: a page is made, as what is published at the root is no part of its folder."""
    return () if stage.shows else self.reuse

  def _is_settled(self, stage: artifacts.Stage) -> bool:
    """Whether the stage is done, or could be taken over."""
    self.workdir.refuse_foreign(stage.name)
    if self.workdir.is_done(stage, self.cfg):
      self.workdir.sweep(stage, self.cfg)
      logging.info("%s: done already, %s", stage.name, self._unchanged(self.workdir, stage))
      return True
    self.workdir.inputs(stage, self.cfg)
    if why := anew.why(self.workdir, stage, self.cfg):
      logging.info("%s: its folder in %s is replaced: %s; run with another --workdir to keep it", stage.name,
                   self.workdir.stated, why)
    for other in self.others(stage):
      if self.workdir.take_over(stage, self.cfg, other):
        logging.info("%s: taken over from %s, %s", stage.name, other.stated, self._unchanged(other, stage))
        return True
      why = "is not there" if other.manifest(stage.name) is None else "has another key: of other config, inputs or data"
      logging.info("%s: not taken over from %s, where it %s", stage.name, other.stated, why)
    return False

  @staticmethod
  def _unchanged(workdir: artifacts.Workdir, stage: artifacts.Stage) -> str:
    """What is the same as where a stage is done: no key counts code, as most of its changes make no other result."""
    by = (workdir.manifest(stage.name) or {}).get("code", extras.code())
    if by == extras.code():
      return "nothing changed"
    return ("nothing changed but this package's code; where that makes another result, remove "
            f"{workdir.stated}/{stage.name} first")
