"""The workdir: one folder a stage, each with a manifest, committed by one rename.

A stage writes into a hidden working folder whose name carries its key.  When it returns, the manifest is written
last and the folder is renamed into place, so a folder with the stage's name is always whole.  The key hashes the
stage's config sections, its inputs' keys and the fingerprints of what it reads from outside: equal key, nothing to
do; a killed stage finds its own working folder again and continues from what lies there.  A workdir in a bucket is
worked on in a local folder that stands for it; see `store`.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from etils import epath

from idistill_jax import config as config_lib
from idistill_jax import processes
from idistill_jax.workdir import attempt, coded, files, foreign, locks, manifests, remade, seconds
from idistill_jax.workdir import begun as begun_lib
from idistill_jax.workdir import inputs as inputs_lib
from idistill_jax.workdir import store as store_lib

MANIFEST, CONFIG = manifests.FILE, "config.json"
# Record files that one stage writes and others read, as `<folder>/<name>-00000-of-00001.tfrecord`.
CANDIDATES, RANKINGS, SCORES, TEACHER = "candidates", "rankings", "scores", "teacher"
# Raise when the meaning of files inside stage folders changes: old folders are then made anew.
LAYOUT_VERSION = 1
# Training states, and finished pieces of unfinished work: of no use once a stage is done.
CHECKPOINTS, PIECES = "checkpoints", "pieces"
# What stands in the place of a key in the name of a folder that is no work: stepped aside, or being taken over.
_ASIDE, _TAKEN = "replaced", "taken"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
  """One arrow of the pipeline.

  name: folder in the workdir, and the module in `idistill_jax.stages`; `flow` has them all.
  reads: stages whose folders it opens.
  config: config sections (or top-level fields) that its result depends on.
  run: does the work, writing under `job.out`.
  fingerprint: content hash of what it reads from outside the workdir.
  asked_for: whether a config wants it at all; a pipeline leaves it out where not.
  reads_if: further stages whose folders it opens, each where a config asks for it.
  together: whether all processes of a job run it; otherwise the first does, and the others wait.
  shows: whether it tells what others made, with whatever config; otherwise it is held to theirs (`inputs.agree`).
  read_by: stages that open its own folder.
  """

  name: str
  reads: tuple[str, ...]
  config: tuple[str, ...]
  run: Callable[["Job"], None]
  fingerprint: Callable[[config_lib.Config], str | None] | None = None
  asked_for: Callable[[config_lib.Config], bool] = lambda cfg: True
  reads_if: Mapping[str, Callable[[config_lib.Config], bool]] = dataclasses.field(default_factory=dict)
  together: bool = False
  shows: bool = False
  read_by: tuple[str, ...] = ()

  def inputs(self, cfg: config_lib.Config) -> tuple[str, ...]:
    return (*self.reads, *(name for name, wanted in self.reads_if.items() if wanted(cfg)))

  @property
  def command(self) -> str:
    return f"python -m idistill_jax.stages.{self.name}"


class Job:
  """What a running stage is given: its config, its inputs, its folder, its tally.

  out: a local folder.  shared: the same folder where every process of a job sees it, in the bucket if that is where
  the workdir is; what goes straight there need not be sent.  keep: makes a file in `out`, or all of it (""), outlive
  this machine.  publish: writes a file beside the stages' folders.  still_alone: raises leases.LostError where another
  run has taken the stage over from this one.  helps: it makes pieces of another run's stage, and no more of it.
  """

  def __init__(self, *, cfg: config_lib.Config, out: pathlib.Path, inputs: Mapping[str, pathlib.Path],
               cache: pathlib.Path, shared: epath.Path | None = None, keep: Callable[[str], None] = lambda name: None,
               publish: Callable[[str, str], None] | None = None, still_alone: Callable[[], None] = lambda: None,
               helps: bool = False):
    self.cfg, self.out, self.inputs, self.helps = cfg, out, inputs, helps
    self.shared = epath.Path(out) if shared is None else shared
    self.keep, self.still_alone = keep, still_alone
    self.publish = Workdir(out.parent).write if publish is None else publish
    # Content-addressed files that outlive a change of config (LLM answers, compiled programs).
    self.cache = cache
    self.pieces = self.shared / PIECES
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

  def __init__(self, root: str | os.PathLike[str]):
    """root: a local folder, or gs:// or s3://; `stated` is it as its user writes it."""
    self._store = store_lib.at(root)
    self.root = self._store.local
    self.stated = str(root)

  def folder(self, stage: str) -> pathlib.Path:
    """Where a stage's folder is, or would be."""
    return self._store.fetch(stage, last=MANIFEST)

  def read(self, name: str) -> str | None:
    """A file's text, None where it is not there."""
    data = self._store.read(name)
    return None if data is None else data.decode()

  def write(self, name: str, text: str) -> None:
    """Writes a file beside the stages' folders; raises leases.LostError as `execute` does, within it."""
    self._store.still_alone()
    self.root.mkdir(parents=True, exist_ok=True)
    files.write_atomically(self.root / name, text)
    self._store.send(name)

  def refuse_foreign(self, stage: str) -> None:
    """Raises FileExistsError where what lies under the stage's name is not the stage's."""
    foreign.refuse(self._store, self.stated, stage, last=MANIFEST)

  def begun(self, stage: str) -> begun_lib.Begun | None:
    """How far a stage is that is being made; None where it is not."""
    return begun_lib.look(self._store, stage, self._over(stage))

  def _over(self, stage: str) -> set[str]:
    """What stands in the place of a key in the names of working folders that are no begun work."""
    manifest = self.manifest(stage)
    # The manifest's key: it is committed, and whoever did it was killed before he swept up.
    return {_ASIDE, _TAKEN, manifest["key"] if manifest else ""}

  @property
  def cache(self) -> pathlib.Path:
    """Where LLM answers lie, those of other machines among them."""
    self._store.receive("cache")
    return self.root / "cache"

  def manifest(self, stage: str) -> dict[str, Any] | None:
    """The stage's manifest, or None where the stage has not been committed."""
    text = self.read(f"{stage}/{MANIFEST}")
    return None if text is None else manifests.read(text, f"{self.stated}/{stage}")

  def inputs(self, stage: Stage, cfg: config_lib.Config) -> dict[str, pathlib.Path]:
    """Folders that the stage reads; raises as `inputs.there`, `inputs.agree` and `files.whole` do."""
    manifests = inputs_lib.there(stage.name, {name: self.manifest(name) for name in stage.inputs(cfg)}, self.stated)
    if not stage.shows:
      inputs_lib.agree(stage.name, stage.config, cfg, manifests, self.stated)
    # Earlier manifests do not say how long record files are.
    return {name: files.whole(self.folder(name), one.get("records", {})) for name, one in manifests.items()}

  def key(self, stage: Stage, cfg: config_lib.Config) -> str:
    """What the stage's result is a function of, hashed."""
    return self.key_of(stage, cfg, self.input_keys(stage, cfg))

  @staticmethod
  def key_of(stage: Stage, cfg: config_lib.Config, inputs: Mapping[str, str | None]) -> str:
    sections = config_lib.keyed(cfg)
    return config_lib.digest({
      "layout": LAYOUT_VERSION, "stage": stage.name, "config": {name: sections[name] for name in stage.config},
      "inputs": inputs, "outside": stage.fingerprint(cfg) if stage.fingerprint else None,
    })

  def input_keys(self, stage: Stage, cfg: config_lib.Config) -> dict[str, str | None]:
    return {name: (self.manifest(name) or {}).get("key") for name in stage.inputs(cfg)}

  def is_done(self, stage: Stage, cfg: config_lib.Config) -> bool:
    manifest = self.manifest(stage.name)
    inputs = {} if manifest is None else self.input_keys(stage, cfg)
    return manifest is not None and None not in inputs.values() and manifest["key"] == self.key_of(stage, cfg, inputs)

  def take_over(self, stage: Stage, cfg: config_lib.Config, other: "Workdir") -> bool:
    """Whether the stage is done there with the same key, and so its folder linked from there; raises as `execute`."""
    manifest = other.manifest(stage.name)
    if manifest is None or manifest["key"] != self.key(stage, cfg):
      return False
    with self._alone(stage):
      self._leave_to_readers(stage)
      self.refuse_foreign(stage.name)
      aside = self.root / f".{stage.name}-{_TAKEN}"
      shutil.rmtree(aside, ignore_errors=True)
      shutil.copytree(other.folder(stage.name), aside, copy_function=files.link)
      if manifests.read((aside / MANIFEST).read_text(), str(aside))["key"] != manifest["key"]:
        return False  # made anew there meanwhile: what was begun here goes on
      self._store.commit(self._begin(stage.name, _TAKEN, cfg).name, stage.name, last=MANIFEST)
    return True

  def _alone(self, stage: Stage) -> contextlib.AbstractContextManager[None]:
    return self._store.alone(stage.name, f"{self.stated}/{stage.name}")

  def execute(self, stage: Stage, cfg: config_lib.Config, *, again: bool = True) -> dict[str, Any] | None:
    """Runs the stage and commits its folder; returns the manifest.

    again: whether also where it is done, as it may be by now: this may have waited for another run.  Else None.
    Raises locks.BusyError where another run is at it or at what reads it, leases.LostError where one has taken it over
    from this one, inputs.ChangedInputError where one has made anew what it reads.
    """
    with contextlib.ExitStack() as held:
      processes.once(lambda: held.enter_context(self._alone(stage)), f"the lock of {stage.name}")
      if not again and processes.once(lambda: self.is_done(stage, cfg), f"a look at {stage.name}"):
        return None
      processes.once(lambda: self._leave_to_readers(stage), f"a look at what reads {stage.name}")
      return self._execute(stage, cfg)

  def _leave_to_readers(self, stage: Stage) -> None:
    if reader := next(filter(self._store.is_held, stage.read_by), None):
      raise locks.BusyError(f"{self.stated}/{stage.name}: would be made anew, and another run is at {reader}, which "
                            "reads it; wait for that, or stop it first")

  def _execute(self, stage: Stage, cfg: config_lib.Config) -> dict[str, Any]:
    # Before they are opened: whoever makes one anew from here on is found out when all is done.
    read = processes.once(lambda: self.input_keys(stage, cfg), f"the inputs of {stage.name}")
    inputs = self.inputs(stage, cfg)
    key = processes.once(lambda: self.key_of(stage, cfg, read), f"the key of {stage.name}")
    out = self.root / processes.once(lambda: self._begin(stage.name, key, cfg).name)
    out.mkdir(parents=True, exist_ok=True)
    self._store.receive(out.name, leave=(CHECKPOINTS, PIECES))
    if processes.once(lambda: (out / MANIFEST).exists(), f"a look at what there is of {stage.name}"):
      logging.info("%s: was made already, but for its commit", stage.name)
      return processes.once(lambda: self._commit(stage, out), f"the commit of {stage.name}")
    spent = seconds.Spent(out, processes.hardware if stage.together else None)
    keep = functools.partial(self._keep, out.name, spent)
    job = Job(cfg=cfg, out=out, inputs=inputs, cache=self.cache, shared=self._store.path(out.name), keep=keep,
              publish=self.write, still_alone=self._store.still_alone)
    # Answers are paid for, whoever has the stage by now.
    records = attempt.work(stage.name, lambda: stage.run(job), together=stage.together, out=out, spent=spent, keep=keep,
                           always=lambda: self._store.send("cache"))
    return processes.once(lambda: self._finish(stage, job, key, read, spent, records), f"the commit of {stage.name}")

  def _keep(self, working: str, spent: seconds.Spent, name: str) -> None:
    """Sends a file of a working folder, or all (""), and what it took; raises leases.LostError as `execute` does."""
    self._store.still_alone()
    if processes.is_first():
      spent.write()
      self._store.send(f"{working}/{seconds.FILE}")
    self._store.send(f"{working}/{name}".rstrip("/"))

  def names(self) -> list[str]:
    """What lies in the workdir."""
    return self._store.folders("")

  def pieces(self, stage: Stage, cfg: config_lib.Config) -> epath.Path:
    """Where the pieces of a stage lie while it is at any."""
    return self._store.path(f".{stage.name}-{self.key(stage, cfg)}") / PIECES

  def sweep(self, stage: Stage, cfg: config_lib.Config) -> None:
    """Removes what a commit that was cut off left, where the stage is done, or a helper began when it was already."""
    left = self._store.folders(f".{stage.name}-")  # nearly always nothing, and a key takes hashes of all that is read
    if left and self.is_done(stage, cfg):
      over = {f".{stage.name}-{_ASIDE}", f".{stage.name}-{self.key(stage, cfg)}"}
      for name in over.intersection(left):
        with contextlib.suppress(OSError), self._alone(stage):  # whoever is at it sweeps, too
          self._store.remove(name)

  def _finish(self, stage: Stage, job: Job, key: str, read: Mapping[str, str | None], spent: seconds.Spent,
              records: Mapping[str, int]) -> dict[str, Any]:
    try:
      inputs_lib.unchanged(stage.name, read, self.input_keys(stage, job.cfg), self.stated)
    except inputs_lib.ChangedInputError:
      self._store.remove(job.out.name)
      raise
    took = spent.so_far().and_helpers(begun_lib.helped(self._store, job.out.name))
    manifests.write(job.out / MANIFEST, took, drops=job.drops, said={
      "stage": stage.name, "key": key, "inputs": dict(read),
      "config": {name: config_lib.as_dict(job.cfg)[name] for name in stage.config},
      "counts": job.counts, "records": records, "computed_on": spent.on,
    })
    return self._commit(stage, job.out)

  def _commit(self, stage: Stage, out: pathlib.Path) -> dict[str, Any]:
    """Commits a working folder that is whole with its manifest, which it returns."""
    manifest = manifests.read((out / MANIFEST).read_text(), str(out))
    self._store.commit(out.name, stage.name, last=MANIFEST, leave=(seconds.FILE, coded.FILE, CHECKPOINTS, PIECES))
    return manifest

  def _begin(self, stage: str, key: str, cfg: config_lib.Config) -> pathlib.Path:
    """The stage's working folder, all others swept up; from here on the workdir is run with this config."""
    self.refuse_foreign(stage)
    if self.manifest(stage) is None:
      # A commit that was cut off.  Without what is swept up next, it could not be told from another's folder.
      self._store.remove(stage)
    self.write(CONFIG, config_lib.as_json(cfg))
    mine = self.root / f".{stage}-{key}"
    begun_lib.sweep(self._store, stage, mine.name, self._over(stage))
    remade.remove(mine)  # of an attempt that was killed
    return mine
