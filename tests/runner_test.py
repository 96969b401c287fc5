"""What a command does before and beside a stage's work: whose folders it takes, and which config is told of later."""

import dataclasses
import logging

import pytest
import tiny_world

from idistill_jax import cli, config, extras, fingerprints, pipeline, sharding
from idistill_jax.report import gather
from idistill_jax.workdir import artifacts, configs, inputs


def stage(name: str, *sections: str, reads: tuple[str, ...] = ()) -> artifacts.Stage:
  return artifacts.Stage(name=name, reads=reads, config=sections, run=lambda job: None)


LABELS = stage("labels", "labels", "seed")
RANKER = stage("train_ranker", "encoder", "ranker", "seed", reads=("labels",))
EXPORT = stage("export", "name", "encoder", "labels", "ranker", "seed", reads=("train_ranker",))


@pytest.fixture
def cfg() -> config.Config:
  return config.Config(name="x")


@pytest.fixture
def workdir(tmp_path, cfg) -> artifacts.Workdir:
  made = artifacts.Workdir(tmp_path / "w")
  for one in (LABELS, RANKER, EXPORT):
    assert cli.Runner(cfg, made, []).run(one)
  return made


def test_what_does_nothing_changes_nothing(workdir, cfg):
  other = dataclasses.replace(cfg, ranker=config.Ranker(epochs=9))
  before = workdir.read(artifacts.CONFIG)
  assert not cli.Runner(other, workdir, []).run(LABELS)
  assert workdir.read(artifacts.CONFIG) == before
  # The control: what is made anew is made with another config from here on.
  assert cli.Runner(other, workdir, []).run(RANKER)
  assert configs.load(workdir.root).ranker.epochs == 9


def test_each_folder_tells_what_it_was_made_with(workdir, cfg):
  encoder = config.Encoder(query_prompt="banana keyboard ", normalize=False)
  changed = {"encoder": encoder, "labels": config.Labels(lists=5), "index": config.Index(kind="exact")}
  other = dataclasses.replace(cfg, seed=7, **changed)
  cli.Runner(other, workdir, []).run(LABELS)
  assert configs.load(workdir.root) == other
  found = configs.made_with(workdir, "train_ranker")
  assert (found.seed, found.encoder, found.ranker) == (0, cfg.encoder, cfg.ranker)
  # What it does not depend on, and what is not there yet, is as in the latest work.
  assert (found.labels, found.index) == (other.labels, other.index) and configs.made_with(workdir, "index") == other


def test_a_report_tells_of_the_config_that_made_what_it_shows(workdir, cfg):
  before = gather.settings(workdir)
  assert before == gather.flat(config.as_dict(cfg))
  encoder = config.Encoder(query_prompt="banana keyboard ")
  changed = {"encoder": encoder, "ranker": config.Ranker(epochs=9), "index": config.Index(kind="exact")}
  other = dataclasses.replace(cfg, seed=7, **changed)
  workdir.write(artifacts.CONFIG, config.as_json(other))
  # Of the index nothing is there.
  assert gather.settings(workdir) == before | {"index.kind": '"exact"'}
  cli.Runner(dataclasses.replace(other, encoder=cfg.encoder), workdir, []).run(RANKER)
  found = gather.settings(workdir)
  assert found["seed"] == "0, 7", "the lists were drawn with one, the training with the other"
  assert found["ranker.epochs"] == "9", "its own stage tells, and not an older export"


def test_what_other_code_made_is_told_wherever_it_is_taken(workdir, cfg, tmp_path, caplog, monkeypatch):
  """A loss whose formula was changed has the same name in the config, so the same key."""
  caplog.set_level(logging.INFO)
  assert not cli.Runner(cfg, workdir, []).run(RANKER)
  assert "train_ranker: done already, nothing changed" in caplog.messages
  monkeypatch.setattr(extras, "code", lambda: "another")
  said = ("nothing changed but this package's code; where that makes another result, remove "
          f"{workdir.root}/train_ranker first")
  cli.Runner(cfg, workdir, []).run(RANKER)
  assert f"train_ranker: done already, {said}" in caplog.messages
  other = artifacts.Workdir(tmp_path / "other")
  for one in (LABELS, RANKER):
    cli.Runner(cfg, other, [workdir]).run(one)
  assert f"train_ranker: taken over from {workdir.root}, {said}" in caplog.messages


@pytest.mark.parametrize("given, said", [
  ([], "--config=..."),
  (["--config=a.py:tiny", "--config.seed=3", "--workdir=w"], "--config=a.py:tiny --config.seed=3"),
  (["--workdir", "w", "--config", "a b.py", "--config.seed", "3"], "--config 'a b.py' --config.seed 3"),
  (["--config.evaluate.parquet", "--noconfig.export.private", "-config", "a.py", "--config.labels.lists", "-1"],
   "--config.evaluate.parquet --noconfig.export.private -config a.py --config.labels.lists -1"),
])
def test_a_command_that_is_named_has_the_config_that_was_given(given, said, monkeypatch):
  monkeypatch.setattr("sys.argv", ["a command", *given])
  assert inputs.made_by("index", "w") == f"  python -m idistill_jax.stages.index {said} --workdir=w"


def test_why_a_stage_is_not_taken_over_is_said(workdir, cfg, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  other = dataclasses.replace(cfg, labels=config.Labels(lists=5))
  for its_cfg, one, said in (
    (cfg, LABELS, f"labels: taken over from {workdir.root}"),
    (other, LABELS, f"labels: not taken over from {workdir.root}, where it has another key"),
    (cfg, stage("index"), f"index: not taken over from {workdir.root}, where it is not there"),
  ):
    caplog.clear()
    cli.Runner(its_cfg, artifacts.Workdir(tmp_path / "new"), [workdir]).run(one)
    assert said in caplog.text and caplog.text.count("taken over") == 1


def test_what_is_taken_over_in_place_of_a_finished_folder_tells_that(workdir, cfg, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  other, theirs = dataclasses.replace(cfg, seed=7), artifacts.Workdir(tmp_path / "theirs")
  cli.Runner(other, theirs, []).run(LABELS)
  assert "is replaced" not in caplog.text
  cli.Runner(other, workdir, [theirs]).run(LABELS)
  (said,) = (one for one in caplog.messages if "is replaced" in one)
  assert said == (f"labels: its folder in {workdir.root} is replaced: seed was 0, is 7; run with another --workdir to "
                  "keep it")
  assert caplog.messages[-1].startswith(f"labels: taken over from {theirs.root}")


def test_a_page_is_made_where_all_that_it_shows_is_taken_over(workdir, cfg, tmp_path):
  page = dataclasses.replace(stage("report", reads=("labels",)), shows=True,
                             run=lambda job: job.publish("report.html", f"seed {job.cfg.seed}"))
  other, mine = dataclasses.replace(cfg, seed=7), artifacts.Workdir(tmp_path / "mine")
  cli.Runner(cfg, workdir, []).run(page)
  for one in (LABELS, page):
    cli.Runner(other, mine, []).run(one)
  assert mine.read("report.html") == "seed 7"
  assert not cli.Runner(cfg, mine, [workdir]).run(LABELS), "taken over"
  cli.Runner(cfg, mine, [workdir]).run(page)
  assert mine.read("report.html") == "seed 0"


def test_a_pipeline_misses_the_runs_of_other_systems_at_once(cfg, tmp_path):
  cfg.evaluate.runs = str(tmp_path / "runs")
  with pytest.raises(FileNotFoundError, match=f"{tmp_path}/runs: evaluate.runs names no folder with files"):
    pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), []))
  assert not list(tmp_path.rglob("*.tfrecord"))


@pytest.mark.parametrize("name", ["export", "collection"])
def test_a_pipeline_refuses_at_once_what_its_last_stage_would_replace(cfg, tmp_path, name):
  (tmp_path / name).mkdir()
  (tmp_path / name / "thesis.txt").write_text("precious")
  with pytest.raises(FileExistsError, match=f"{tmp_path}/{name}: holds files"):
    pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  assert [path.name for path in tmp_path.rglob("*")] == [name, "thesis.txt"]


@pytest.mark.parametrize("mesh, said", [
  (config.Mesh(tensor=4), "'heads' of size 2 does not divide over mesh axis 'tensor' of size 4"),
  (config.Mesh(data=3), "needs 3 devices, but 8 are here"),
])
def test_a_pipeline_refuses_at_once_a_mesh_that_its_networks_cannot_lie_on(tmp_path, tiny_weights, mesh, said):
  cfg = config.Config(name="x", encoder=tiny_world.encoder(tiny_weights), mesh=mesh)
  runner = cli.Runner(cfg, artifacts.Workdir(tmp_path), [])
  with pytest.raises(sharding.ShardingError, match=said):
    pipeline.run(runner)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("section", ["direct", "ranker", "retriever"])
def test_a_pipeline_refuses_at_once_to_freeze_all_layers(tmp_path, tiny_weights, section):
  cfg = config.Config(name="x", encoder=tiny_world.encoder(tiny_weights))
  getattr(cfg, section).frozen_layers = 2
  with pytest.raises(config.ConfigError, match=r"frozen_layers is 2; .* has 2 layers"):
    pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("section, field", [
  ("collection", "rankings"), ("collection", "rankings_shown"), ("candidates", "run")])
def test_a_file_that_is_not_there_is_named_with_its_field_before_any_stage(cfg, tmp_path, section, field, monkeypatch):
  cfg.collection.source = "stdlib"
  path = tmp_path / "theirs.txt"
  setattr(getattr(cfg, section), field, str(path))
  said = f"^{path}: {section}.{field} names no file$"
  with pytest.raises(FileNotFoundError, match=said):
    pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), []))
  assert not (tmp_path / "w").exists()
  # So does the stage by itself.
  monkeypatch.setattr(fingerprints, "weights", lambda cfg: "")
  read = getattr(fingerprints, section)
  with pytest.raises(FileNotFoundError, match=said):
    read(cfg)
  path.touch()
  assert read(cfg)


def test_a_corpus_that_is_not_there_is_named_with_its_field(cfg, tmp_path):
  for source, words in (("corpus", "names no file"), ("beir", "must name a folder"), ("jsonl", "must name a folder")):
    cfg.collection = config.Collection(source=source, path=str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/gone: collection\.path names nothing that is there"):
      pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), []))
    with pytest.raises(FileNotFoundError, match=rf"^{tmp_path}/gone: .*collection\.path {words}"):
      fingerprints.collection(cfg)
