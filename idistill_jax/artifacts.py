"""The workdir: one folder a stage, each with a manifest, committed by one rename.

A stage writes into a hidden working folder whose name carries its key.  When it returns, the manifest is written
last and the folder is renamed into place, so a folder with the stage's name is always whole.  The key hashes the
stage's config sections, its inputs' keys and the fingerprints of what it reads from outside: equal key, nothing to
do; a killed stage finds its own working folder again and continues from what lies there.
"""

import collections
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from idistill_jax import config as config_lib
from idistill_jax import processes

MANIFEST = "manifest.json"
# Record files that one stage writes and others read, as `<folder>/<name>-00000-of-00001.tfrecord`.
CANDIDATES, RANKINGS, SCORES, TEACHER = "candidates", "rankings", "scores", "teacher"
# Raise when the meaning of files inside stage folders changes: old folders are then made anew.
LAYOUT_VERSION = 1
EXAMPLES_PER_DROP = 10


class MissingInputError(FileNotFoundError):
  """A stage's input is not there; the message names the command that makes it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
  """One arrow of the pipeline.

  name: folder in the workdir, and the module in `idistill_jax.stages`.
  reads: stages whose folders it opens.
  config: config sections (or top-level fields) that its result depends on.
  run: does the work, writing under `job.out`.
  fingerprint: content hash of what it reads from outside the workdir.
  asked_for: whether a config wants it at all; a pipeline leaves it out where not.
  reads_if: further stages whose folders it opens, each where a config asks for it.
  together: whether all processes of a job run it; otherwise the first does, and the others wait.
  """

  name: str
  reads: tuple[str, ...]
  config: tuple[str, ...]
  run: Callable[["Job"], None]
  fingerprint: Callable[[config_lib.Config], str] | None = None
  asked_for: Callable[[config_lib.Config], bool] = lambda cfg: True
  reads_if: Mapping[str, Callable[[config_lib.Config], bool]] = dataclasses.field(default_factory=dict)
  together: bool = False

  def inputs(self, cfg: config_lib.Config) -> tuple[str, ...]:
    return (*self.reads, *(name for name, wanted in self.reads_if.items() if wanted(cfg)))

  @property
  def command(self) -> str:
    return f"python -m idistill_jax.stages.{self.name}"


class Job:
  """What a running stage is given: its config, its inputs, its folder, its tally."""

  def __init__(self, *, cfg: config_lib.Config, out: pathlib.Path, inputs: Mapping[str, pathlib.Path],
               cache: pathlib.Path):
    self.cfg = cfg
    self.out = out
    self.inputs = inputs
    # Content-addressed files that outlive a change of config (LLM answers, compiled programs).
    self.cache = cache
    # Finished pieces of unfinished work, gone when the stage is committed.
    self.pieces = out / "pieces"
    self.counts: dict[str, Any] = {}
    self.drops: dict[str, list[str]] = collections.defaultdict(list)

  def count(self, **values: Any) -> None:
    """Records facts for the manifest: `job.count(passages=3743)`."""
    self.counts.update(values)

  def drop(self, reason: str, what: str) -> None:
    """Counts one thing that was left out, and keeps its name as an example."""
    self.drops[reason].append(what)


class Workdir:
  """The folder of one experiment."""

  def __init__(self, root: str | pathlib.Path):
    self.root = pathlib.Path(root)

  def folder(self, stage: str) -> pathlib.Path:
    return self.root / stage

  @property
  def cache(self) -> pathlib.Path:
    return self.root / "cache"

  def manifest(self, stage: str) -> dict[str, Any] | None:
    """The stage's manifest, or None where the stage has not been committed."""
    path = self.folder(stage) / MANIFEST
    if not path.exists():
      return None
    try:
      return json.loads(path.read_text())
    except json.JSONDecodeError as e:
      raise ValueError(f"{path}: not JSON ({e}); delete the folder {path.parent} and run the stage again") from e

  def inputs(self, stage: Stage, cfg: config_lib.Config) -> dict[str, pathlib.Path]:
    """Folders that the stage reads; raises MissingInputError for the first that is absent."""
    for name in stage.inputs(cfg):
      if self.manifest(name) is None:
        raise MissingInputError(
          f"{stage.name} reads {self.folder(name)}, which is not there yet.  It is made by:\n"
          f"  python -m idistill_jax.stages.{name} --config=... --workdir={self.root}"
        )
    return {name: self.folder(name) for name in stage.inputs(cfg)}

  def key(self, stage: Stage, cfg: config_lib.Config) -> str:
    """What the stage's result is a function of, hashed."""
    sections = config_lib.keyed(cfg)
    return config_lib.digest({
      "layout": LAYOUT_VERSION,
      "stage": stage.name,
      "config": {name: sections[name] for name in stage.config},
      "inputs": self._input_keys(stage, cfg),
      "outside": stage.fingerprint(cfg) if stage.fingerprint else None,
    })

  def _input_keys(self, stage: Stage, cfg: config_lib.Config) -> dict[str, str | None]:
    manifests = {name: self.manifest(name) for name in stage.inputs(cfg)}
    return {name: None if manifest is None else manifest["key"] for name, manifest in manifests.items()}

  def is_done(self, stage: Stage, cfg: config_lib.Config) -> bool:
    manifest = self.manifest(stage.name)
    if manifest is None or any(self.manifest(name) is None for name in stage.inputs(cfg)):
      return False
    return manifest["key"] == self.key(stage, cfg)

  def take_over(self, stage: Stage, cfg: config_lib.Config, other: "Workdir") -> bool:
    """Links the stage's folder from another workdir where it is done with the same key; True where it was."""
    manifest = other.manifest(stage.name)
    if manifest is None or manifest["key"] != self.key(stage, cfg):
      return False
    aside = self._working_folder(stage.name, "taken")
    shutil.rmtree(aside)
    # Hard links: committed folders are never written again, only replaced.
    shutil.copytree(other.folder(stage.name), aside, copy_function=os.link)
    self._rename(stage.name, aside)
    return True

  def execute(self, stage: Stage, cfg: config_lib.Config) -> dict[str, Any]:
    """Runs the stage and commits its folder; returns the manifest."""
    inputs = self.inputs(stage, cfg)
    key = processes.once(lambda: self.key(stage, cfg))
    out = pathlib.Path(processes.once(lambda: self._working_folder(stage.name, key)))
    job = Job(cfg=cfg, out=out, inputs=inputs, cache=self.cache)
    started = time.time()
    spent_before = _read_seconds(out)
    try:
      if stage.together:
        stage.run(job)
        processes.meet(f"the end of {stage.name}")
      else:
        processes.once(lambda: stage.run(job))
    finally:
      seconds = spent_before + time.time() - started
      if out.exists() and processes.is_first():
        (out / "seconds").write_text(str(seconds))
    return processes.once(lambda: self._finish(stage, cfg, job, key, seconds))

  def _finish(self, stage: Stage, cfg: config_lib.Config, job: Job, key: str, seconds: float) -> dict[str, Any]:
    manifest = {
      "stage": stage.name,
      "key": key,
      "inputs": self._input_keys(stage, cfg),
      "config": {name: config_lib.as_dict(cfg)[name] for name in stage.config},
      "counts": job.counts,
      "drops": {
        reason: {"count": len(what), "examples": what[:EXAMPLES_PER_DROP]} for reason, what in job.drops.items()
      },
      "seconds": round(seconds, 2),
      "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
      "versions": _versions(),
    }
    shutil.rmtree(job.pieces, ignore_errors=True)
    self._commit(stage.name, job.out, manifest)
    return manifest

  def _working_folder(self, stage: str, key: str) -> pathlib.Path:
    mine = self.root / f".{stage}-{key}"
    for other in self.root.glob(f".{stage}-*"):
      if other != mine:
        shutil.rmtree(other)
    mine.mkdir(parents=True, exist_ok=True)
    return mine

  def _commit(self, stage: str, out: pathlib.Path, manifest: dict[str, Any]) -> None:
    (out / "seconds").unlink()
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    self._rename(stage, out)
    for reason, dropped in manifest["drops"].items():
      logging.warning("%s dropped %d: %s (for example %s)", stage, dropped["count"], reason, dropped["examples"][:3])

  def _rename(self, stage: str, out: pathlib.Path) -> None:
    final = self.folder(stage)
    if final.exists():
      # A folder cannot be renamed over another; the old one steps aside first, under a name that the next
      # working-folder sweep removes should we die right here.
      aside = self.root / f".{stage}-replaced"
      shutil.rmtree(aside, ignore_errors=True)
      final.rename(aside)
      out.rename(final)
      shutil.rmtree(aside)
    else:
      out.rename(final)


def _read_seconds(out: pathlib.Path) -> float:
  path = out / "seconds"
  return float(path.read_text()) if path.exists() else 0.0


def _versions() -> dict[str, str]:
  names = ("idistill-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "scann")
  found = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
