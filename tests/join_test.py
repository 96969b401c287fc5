"""Workers that join a stage under way: they make its pieces and nothing else, and go when it is done."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import bucket
import jobs
import numpy as np
import pytest

from idistill_jax import config as config_lib
from idistill_jax import extras, flow, join, machine, processes, records, sharding, status
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import networks
from idistill_jax.retrieval import exact
from idistill_jax.train import checkpoint, inference, pieces
from idistill_jax.workdir import artifacts, coded, configs

pytestmark = pytest.mark.usefixtures("one_device")

PASSAGES = [records.Passage(id=f"p{i}", title="", text=f"how to {word} number {i}")
            for i, word in enumerate(["merge", "sort", "open", "close"] * 10)]  # fmt: skip
QUERIES = [records.Query(id="q0", text="merge two lists", split="train")]


@pytest.fixture
def home(tmp_path, tiny_weights) -> artifacts.Workdir:
  """A workdir whose candidates are to be made."""
  encoder = config_lib.Encoder(weights=tiny_weights, query_tokens=16, passage_tokens=16, row_tokens=32,
                               tokens_per_step=256)  # fmt: skip
  made = artifacts.Workdir(tmp_path / "run")
  cfg = config_lib.Config(name="joined", encoder=encoder)

  def collection(job: artifacts.Job) -> None:
    example.write_records(job.out, tables.PASSAGES, PASSAGES)
    example.write_records(job.out, tables.QUERIES, QUERIES)

  made.execute(artifacts.Stage(name="collection", reads=(), config=(), run=collection), cfg)
  return made


def under_way(home: artifacts.Workdir) -> pathlib.Path:
  """What a run leaves that was killed when it had begun to encode."""
  key = home.key(flow.STAGES["candidates"], configs.load(home.root))
  made = home.root / f".candidates-{key}" / artifacts.PIECES
  made.mkdir(parents=True)
  return made


def finished(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  return pieces.finished({str(path): path.stat().st_mtime for path in folder.rglob("*")})


def test_what_a_helper_made_is_not_made_again_and_it_commits_nothing(home, monkeypatch):
  cfg = configs.load(home.root)
  folder = under_way(home)
  # Nor does it hold what all make together, or search it.
  for owner, name in ((pieces.Pieces, "whole"), (exact, "Exact")):
    monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("a helper goes on after the pieces"))
  monkeypatch.setattr(processes, "hardware", lambda: {"processes": 1, "devices": 4, "kind": "v5e"})
  join.work(home, flow.STAGES["candidates"])
  monkeypatch.undo()
  assert finished(folder) == {"encode passages": (1, 1), "encode queries": (1, 1)}
  assert home.manifest("candidates") is None
  # Beside the pieces, how fast it was, under another name than the run's own.
  log = folder.parent / f"windows-00000-{machine.own_name()}.jsonl"
  assert {path.name for path in folder.parent.iterdir()} == {artifacts.PIECES, log.name}
  # What its devices took is shown while the stage is under way, and no less when it is done.
  took = sum(json.loads(line)["device_seconds"]["v5e"] for line in log.read_text().splitlines())
  with log.open("a") as file:
    file.write('{"process": 0, "dev')  # by a kill
  hours = lambda: next(one for one in status.states(home) if one.stage == "candidates").device_hours
  assert took > 0 and hours() == {"v5e": pytest.approx(took / 3600)}
  # The run that goes on computes nothing.
  monkeypatch.setattr(inference.Forward, "_outputs", lambda *_: pytest.fail("a piece is made again"))
  home.execute(flow.STAGES["candidates"], cfg)
  monkeypatch.undo()
  assert hours() == {"v5e": pytest.approx(took / 3600, abs=1e-5)}
  found = similarity.load(home.folder("candidates")).passages_PxE
  np.testing.assert_array_equal(found, inference.load_retriever(cfg, None).encode_passages(
    [passage.full_text for passage in PASSAGES]))  # fmt: skip


def test_a_helper_need_not_have_the_devices_of_the_run(home, monkeypatch):
  cfg = configs.load(home.root)
  cfg.mesh = config_lib.Mesh(data=3, fsdp=16, tensor=2)
  with pytest.raises(sharding.ShardingError):  # control: what is here does not carry it
    sharding.make_mesh(cfg.mesh)
  monkeypatch.setattr(configs, "load", lambda _: cfg)
  folder = under_way(home)
  join.work(home, flow.STAGES["candidates"])
  assert finished(folder) == {"encode passages": (1, 1), "encode queries": (1, 1)}


def test_a_helper_is_of_the_code_of_the_run(home, monkeypatch):
  folder = under_way(home)
  with monkeypatch.context() as patched:
    patched.setattr(extras, "code", lambda: "another")
    coded.note(folder.parent, "candidates")
  with pytest.raises(config_lib.ConfigError, match=r"by other code \(code another there, .* here"):
    join.work(home, flow.STAGES["candidates"])
  assert not finished(folder)
  coded.note(folder.parent, "candidates")
  join.work(home, flow.STAGES["candidates"])
  assert finished(folder)


def test_that_a_stage_is_made_with_another_key_is_said(home, monkeypatch, caplog):
  """As of other weights: it is looked for under a name that never comes."""
  stage = dataclasses.replace(flow.STAGES["candidates"], fingerprint=lambda cfg: "other")
  monkeypatch.setattr(join, "time", Clock({60: end}))

  def meanwhile(job: artifacts.Job) -> None:
    with pytest.raises(Ended):
      join.watch(artifacts.Workdir(home.root))

  home.execute(dataclasses.replace(stage, run=meanwhile), configs.load(home.root))
  assert caplog.text.count("candidates: is being made with another key than it has here") == 1


class Ended(Exception):
  """In place of a kill, or of a test's time being up."""


def end(*_: object) -> None:
  raise Ended


def test_a_trainings_embeddings_are_joined_when_its_model_is_whole_which_then_stays(home, monkeypatch):
  cfg, stage = configs.load(home.root), flow.STAGES["train_direct"]
  cfg.direct = config_lib.Distillation(trainings=2, lists_per_batch=1, passages_per_list=4)
  ranked = records.RankedList(query_id="q0", passage_ids=tuple(one.id for one in PASSAGES[:6]), status="complete")
  write = lambda job: example.write_records(job.out, artifacts.RANKINGS, [ranked])
  home.execute(flow.STAGES["candidates"], cfg)
  home.execute(artifacts.Stage(name="labels", reads=(), config=(), run=write), cfg)
  begun, save, saved = pathlib.Path(home.pieces(stage, cfg)).parent, checkpoint.save_model, []

  def saving(folder, params) -> None:
    save(folder, params)
    saved.append(str(pathlib.Path(folder).relative_to(begun)))
    with pytest.raises(ValueError, match="the stage train_direct is not under way"):
      join.work(home, stage)
    if saved[-1] == inference.MODEL:
      raise Ended

  # Killed when the model was saved, and again within the first piece.
  monkeypatch.setattr(checkpoint, "save_model", saving)
  with pytest.raises(Ended):
    home.execute(stage, cfg)
  with monkeypatch.context() as patched, pytest.raises(Ended):
    patched.setattr(pieces.Pieces, "finish", end)
    home.execute(stage, cfg)
  assert saved == ["checkpoints/trained/0/model", "checkpoints/trained/1/model", inference.MODEL]

  # Who helps fetches no more than it reads.
  folder, fetched = artifacts.Workdir.folder, []
  with monkeypatch.context() as patched:
    patched.setattr(artifacts.Workdir, "folder", lambda home, name: (fetched.append(name), folder(home, name))[1])
    join.work(home, stage)
  assert fetched == ["collection"]
  assert finished(begun / artifacts.PIECES) == {"encode passages": (1, 1), "encode queries": (1, 1)}

  # The run that goes on encodes nothing, and what it commits is as if it had made all of it.
  monkeypatch.setattr(inference.Forward, "_outputs", lambda *_: pytest.fail("a piece is made again"))
  counts = home.execute(stage, cfg)["counts"]
  monkeypatch.undo()
  assert counts["lists"] == 1 and counts["passages cut"]["of"] > 0
  made = home.folder("train_direct")
  assert not {artifacts.PIECES, artifacts.CHECKPOINTS} & {path.name for path in made.iterdir()}
  encode = lambda folder: inference.load_retriever(cfg, folder).encode_passages([one.full_text for one in PASSAGES])
  np.testing.assert_array_equal(similarity.load(made).passages_PxE, encode(made))
  assert not np.allclose(encode(made), encode(None), atol=1e-4), "by the trained model"


def test_scores_are_joined(home, monkeypatch):
  cfg, stage = configs.load(home.root), flow.STAGES["scores"]
  cfg.ranker.start, cfg.scores.candidates = "weights", "initial"
  ranked = records.RankedList(query_id="q0", passage_ids=tuple(one.id for one in PASSAGES[:6]), status="complete")
  network = networks.ranker(cfg.encoder, cfg.ranker.head)
  made = {"labels": lambda job: example.write_records(job.out, artifacts.RANKINGS, [ranked]),
          "train_direct": lambda job: None,  # not looked at by this config
          "train_ranker": lambda job: checkpoint.save_model(job.shared / inference.MODEL, network.initial(0))}
  home.execute(flow.STAGES["candidates"], cfg)
  for name, run in made.items():
    home.execute(artifacts.Stage(name=name, reads=(), config=(), run=run), cfg)
  with monkeypatch.context() as patched, pytest.raises(Ended):
    patched.setattr(pieces.Pieces, "finish", end)
    home.execute(stage, cfg)
  join.work(home, stage)
  assert finished(pathlib.Path(home.pieces(stage, cfg))) == {"score pairs": (1, 1)}

  monkeypatch.setattr(inference.Forward, "_outputs", lambda *_: pytest.fail("a piece is made again"))
  home.execute(stage, cfg)
  monkeypatch.undo()
  (found,) = example.read_records(home.folder("scores"), artifacts.SCORES, records.ScoredList)
  text_of = {one.id: one.full_text for one in PASSAGES}
  similar = similarity.load(home.folder("candidates"))
  rows = np.array([int(one.removeprefix("p")) for one in found.passage_ids])
  scores = inference.load_ranker(cfg, home.folder("train_ranker")).score(
    [QUERIES[0].text] * len(rows), [text_of[one] for one in found.passage_ids], similar(0, rows))
  np.testing.assert_allclose(found.scores, scores, atol=1e-5)
  assert len(rows) > 6 and list(found.scores) == sorted(found.scores, reverse=True)


def test_nothing_is_joined_that_is_not_under_way(home):
  with pytest.raises(ValueError, match="the stage candidates is not under way"):
    join.work(home, flow.STAGES["candidates"])
  home.execute(flow.STAGES["candidates"], configs.load(home.root))
  with pytest.raises(ValueError, match="the stage candidates is not under way"):
    join.work(home, flow.STAGES["candidates"])


def test_what_was_begun_after_the_commit_is_swept(home):
  cfg = configs.load(home.root)
  under_way(home)
  home.sweep(flow.STAGES["candidates"], cfg)
  assert list(home.root.glob(".candidates-*")), "the stage was not done, so its pieces stay"
  home.execute(flow.STAGES["candidates"], cfg)
  under_way(home)
  home.sweep(flow.STAGES["candidates"], cfg)
  assert not list(home.root.glob(".candidates-*"))


class Clock:
  """In place of `time`: nobody waits, and things happen at their seconds."""

  def __init__(self, events: dict[float, Callable[[], None]]):
    self.now, self._events = 0.0, events

  def monotonic(self) -> float:
    return self.now

  def sleep(self, seconds: float) -> None:
    self.now += seconds
    for when in sorted(when for when in self._events if when <= self.now):
      self._events.pop(when)()


def test_while_nothing_is_to_do_a_bucket_is_asked_rarely_and_what_begins_is_seen_soon(
    tmp_path, tiny_weights, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  with bucket.running("gs") as server:
    home = artifacts.Workdir(f"{server.url}/run")
    cfg = config_lib.Config(name="joined", encoder=config_lib.Encoder(weights=tiny_weights))
    home.execute(artifacts.Stage(name="collection", reads=(), config=(), run=lambda job: None), cfg)
    before = server.requests
    monkeypatch.setattr(join, "time", Clock({600: end}))
    with pytest.raises(Ended):
      join.watch(home)
    # Of ten minutes; a look at everything each two seconds took 6,600.
    assert server.requests - before < 100

    pieces_of = home.pieces(flow.STAGES["candidates"], cfg)
    begins = lambda: (pieces_of.parent / "log").write_text("begun")
    at_pieces = lambda: (pieces_of / "0 encode passages" / "0.lease").write_text("at work")
    helped = []
    clock = Clock({400: begins, 500: at_pieces, 600: end})
    monkeypatch.setattr(join, "time", clock)
    monkeypatch.setattr(join, "_help", lambda home, stage, *_: (helped.append((stage.name, clock.now)), end()))
    with pytest.raises(Ended):
      join.watch(home)
    ((name, when),) = helped
    assert name == "candidates" and 500 <= when < 520


def test_it_watches_for_stages_to_join_until_it_is_told_to_end(home):
  watching = subprocess.Popen([sys.executable, "-m", "idistill_jax.join", f"--workdir={home.root}"],
                              env=os.environ | jobs.ONE_DEVICE, stderr=subprocess.PIPE, text=True)  # fmt: skip
  try:
    folder = under_way(home)
    until = time.monotonic() + 120
    while finished(folder).get("encode queries") != (1, 1):
      assert watching.poll() is None and time.monotonic() < until
      time.sleep(0.2)
    # Scores and index are still to come.
    home.execute(flow.STAGES["candidates"], configs.load(home.root))
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(60) == processes.TERMINATED
  finally:
    watching.kill()
  assert "candidates: joins" in watching.stderr.read()
