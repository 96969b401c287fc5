"""Whether a finished stage would be made anew is told as a run then has it, and with the reason."""

import dataclasses
import json
import shutil

import pytest

from idistill_jax import config, flow
from idistill_jax.workdir import anew, artifacts


@pytest.fixture
def outside() -> dict[str, str]:
  """What stages read from outside, by their names: a text, or "" where it is not there."""
  return {"collection": "a", "candidates": "a"}


@pytest.fixture
def stages(outside) -> dict[str, artifacts.Stage]:
  def hashed(name: str):
    def fingerprint(cfg: config.Config) -> str:
      if not outside[name]:
        raise FileNotFoundError(f"no file\nof {name}")
      return outside[name]

    return fingerprint

  made = lambda name, *sections, reads=(), **more: artifacts.Stage(
    name=name, reads=reads, config=sections, run=lambda job: None, **more)
  return {stage.name: stage for stage in (
    made("queries", "queries", asked_for=config.writes_queries),
    made("collection", "collection", fingerprint=hashed("collection"), reads_if={"queries": config.writes_queries}),
    made("candidates", "encoder", reads=("collection",), fingerprint=hashed("candidates")),
    made("labels", "labels", "seed", reads=("collection", "candidates")),
    made("export", "name", reads=("labels",)),
  )}  # fmt: skip


@pytest.fixture
def cfg() -> config.Config:
  return config.Config(name="x")


@pytest.fixture
def workdir(tmp_path, stages, cfg) -> artifacts.Workdir:
  made = artifacts.Workdir(tmp_path / "w")
  run(made, stages, cfg)
  return made


def run(workdir: artifacts.Workdir, stages: dict[str, artifacts.Stage], cfg: config.Config) -> dict[str, str]:
  """As a pipeline; stage that was made -> why it took the place of another, as that says of itself."""
  made = {}
  for stage in stages.values():
    if stage.asked_for(cfg) and not workdir.is_done(stage, cfg):
      made[stage.name] = anew.why(workdir, stage, cfg)
      workdir.execute(stage, cfg)
  return made


def looked(workdir: artifacts.Workdir, stages: dict[str, artifacts.Stage], cfg: config.Config) -> dict[str, str]:
  looks = anew.Looks(workdir, cfg, stages.values())
  return {stage.name: str(looks.at(stage.name)) for stage in stages.values() if stage.asked_for(cfg)}


def is_made(said: str) -> bool:
  return said == "to do" or said.startswith("made anew: ")


CHANGES = {
  "nothing": lambda cfg: None,
  "the last one": lambda cfg: setattr(cfg, "name", "y"),
  "in the middle": lambda cfg: setattr(cfg.labels, "lists", 7),
  "a value of no section": lambda cfg: setattr(cfg, "seed", 3),
  "the first": lambda cfg: setattr(cfg.collection, "max_passages", 9),
  "what nothing depends on": lambda cfg: setattr(cfg.encoder, "tokens_per_step", 64),
  "another stage before all": lambda cfg: setattr(cfg.queries, "passages", 9),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_told_is_what_a_run_makes(workdir, stages, cfg, change):
  change(cfg)
  said = looked(workdir, stages, cfg)
  made = run(workdir, stages, cfg)
  assert [name for name, one in said.items() if is_made(one)] == list(made)
  assert bool(made) == (change not in (CHANGES["nothing"], CHANGES["what nothing depends on"]))
  for name, why in made.items():
    # Of an input that is still to be made, or has been.
    assert said[name] == (f"made anew: {why}".replace(" made anew since", " made anew") if why else "to do")
  assert set(looked(workdir, stages, cfg).values()) == {"done"}


def test_the_reason_is_the_field_with_both_values_and_what_is_made_anew_before(workdir, stages, cfg):
  cfg.labels.lists, cfg.seed, cfg.labels.recording = 7, 3, "said.jsonl"
  said = looked(workdir, stages, cfg)
  assert said["candidates"] == "done"
  assert said["labels"] == ("made anew: seed was 0, is 3; labels.recording was none, is said.jsonl; "
                            f"labels.lists was {config.Labels().lists}, is 7")
  assert said["export"] == "made anew: as labels is made anew"


def test_what_was_run_again_by_itself_is_what_others_are_made_anew_for(workdir, stages, cfg):
  cfg.collection.max_passages = 9
  workdir.execute(stages["collection"], cfg)
  assert looked(workdir, stages, cfg) == {
    "collection": "done", "candidates": "made anew: as collection is made anew since",
    "labels": "made anew: as collection is made anew since; as candidates is made anew",
    "export": "made anew: as labels is made anew",
  }  # fmt: skip
  # Back again, what reads it was made of what it becomes.
  cfg.collection.max_passages = None
  said = looked(workdir, stages, cfg)
  assert said["collection"] == "made anew: collection.max_passages was 9, is none"
  assert {said[name] for name in ("candidates", "labels", "export")} == {"done"}
  assert list(run(workdir, stages, cfg)) == ["collection"]


def test_what_is_removed_makes_nothing_else_anew_but_where_it_comes_out_another(workdir, stages, cfg, outside):
  shutil.rmtree(workdir.folder("collection"))
  said = looked(workdir, stages, cfg)
  assert said.pop("collection") == "to do" and set(said.values()) == {"done"}
  outside["collection"] = "b"
  assert looked(workdir, stages, cfg)["candidates"] == "made anew: as collection is made anew"


def test_what_is_read_from_outside_is_a_reason_where_nothing_else_is(workdir, stages, cfg, outside):
  outside["candidates"] = "b"
  said = looked(workdir, stages, cfg)
  assert said["collection"] == "done" and said["labels"] == "made anew: as candidates is made anew"
  assert said["candidates"] == "made anew: what it reads from outside the workdir has changed, or how that is read"


def test_where_a_key_cannot_be_computed_that_is_said_and_what_is_known_all_the_same(workdir, stages, cfg, outside):
  outside["candidates"] = ""
  unknown = "a folder is there; whether it is made anew cannot be told: FileNotFoundError: no file of candidates"
  assert looked(workdir, stages, cfg) == {
    "collection": "done", "candidates": unknown, "labels": unknown, "export": unknown}
  # A field tells as much without it, and so do stages behind.
  cfg.encoder.query_tokens = 9
  said = looked(workdir, stages, cfg)
  assert said["candidates"] == f"made anew: encoder.query_tokens was {config.Encoder().query_tokens}, is 9"
  assert said["labels"] == "made anew: as candidates is made anew"


def test_nothing_outside_is_read_where_nothing_is_there_or_a_field_tells(tmp_path, workdir, stages, cfg, outside):
  outside["collection"] = outside["candidates"] = ""
  assert set(looked(artifacts.Workdir(tmp_path / "new"), stages, cfg).values()) == {"to do"}
  cfg.collection.max_passages = 9
  assert all(is_made(one) for one in looked(workdir, stages, cfg).values())


def test_all_that_a_stage_is_made_of_is_looked_at_in_order(workdir, stages, cfg):
  looks = anew.Looks(workdir, cfg, stages.values())
  assert list(looks.before("export")) == ["collection", "candidates", "labels"] and not looks.before("collection")
  cfg.queries.passages = 9
  assert list(looks.before("candidates")) == ["queries", "collection"]


def test_an_index_tells_of_the_split_that_its_key_has(tmp_path, cfg):
  """Which no section of its own says."""
  stage = dataclasses.replace(flow.STAGES["index"], reads=(), run=lambda job: None)
  workdir = artifacts.Workdir(tmp_path)
  workdir.execute(stage, cfg)
  assert looked(workdir, {"index": stage}, cfg) == {"index": "done"}
  cfg.evaluate.split = "dev"
  assert "made anew: evaluate.split is another one" in looked(workdir, {"index": stage}, cfg)["index"]


def test_folders_of_an_early_version_and_of_an_upsert(workdir, stages, cfg):
  path = workdir.folder("labels") / artifacts.MANIFEST
  manifest = json.loads(path.read_text())
  path.write_text(json.dumps({name: value for name, value in manifest.items() if name != "inputs"}))
  assert looked(workdir, stages, cfg)["labels"] == "done"
  path.write_text(json.dumps(manifest | {"key": "another", "counts": {"upserted": 2}}))
  assert looked(workdir, stages, cfg)["labels"] == "made anew: idistill_jax.upsert made it from another folder"
