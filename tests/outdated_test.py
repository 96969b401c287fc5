"""What was made of an earlier stage than the one that is there, told with the commands that mend it."""

import json

from idistill_jax import config
from idistill_jax.workdir import artifacts, outdated

READS = {"collection": (), "train_direct": ("collection",), "train_ranker": ("train_direct",), "index": ("collection",)}


def made(workdir: artifacts.Workdir, stage: str, name: str) -> None:
  stage_of = artifacts.Stage(name=stage, reads=READS[stage], config=("name",), run=lambda job: None)
  workdir.execute(stage_of, config.Config(name=name))


def test_what_is_made_of_what_was_made_anew_is_outdated_until_it_is_too(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  assert outdated.of(workdir, READS) == {}
  for stage in READS:
    made(workdir, stage, "first")
  assert outdated.of(workdir, READS) == {}
  made(workdir, "collection", "second")
  found = outdated.of(workdir, READS)
  assert found == {"train_direct": ["collection"], "train_ranker": ["train_direct"], "index": ["collection"]}
  first, *commands = outdated.told(found, "runs/x").splitlines()
  assert first.startswith("train_direct, train_ranker, index: made before collection was made anew")
  assert commands[1] == "  python -m idistill_jax.stages.train_ranker --config=... --workdir=runs/x"
  # As a shell reads it back.
  assert "--config=... '--workdir=my runs/x'" in outdated.told(found, "my runs/x")
  # What is not asked about may be as old as it likes.
  assert outdated.of(workdir, ("train_direct", "train_ranker")) == {}
  for stage in ("train_direct", "index"):
    made(workdir, stage, "second")
  assert outdated.of(workdir, READS) == {"train_ranker": ["train_direct"]}
  made(workdir, "train_ranker", "second")
  assert outdated.of(workdir, READS) == {}


def test_what_has_grown_by_an_upsert_is_not_made_anew(tmp_path):
  workdir = artifacts.Workdir(tmp_path)
  for stage in READS:
    made(workdir, stage, "first")
  path = workdir.folder("collection") / artifacts.MANIFEST
  grown = json.loads(path.read_text()) | {"key": "grown"}
  path.write_text(json.dumps(grown | {"counts": {"upserted": 2}}))
  assert outdated.of(workdir, READS) == {}
  path.write_text(json.dumps(grown))
  assert outdated.of(workdir, ("collection", "index")) == {"index": ["collection"]}
