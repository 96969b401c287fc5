"""Which queries ScaNN is tuned on: those that were held out as long as there are some, and never those of test."""

import dataclasses
import importlib.util
import json
import logging
import pathlib

import numpy as np
import pytest

from idistill_jax import config, flow, records
from idistill_jax.data import example, tables
from idistill_jax.stages import index as stage
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

DEV, TRAIN, TEST = ([f"{split}{i}" for i in range(count)] for split, count in (("d", 30), ("t", 150), ("x", 40)))
# The teacher scored the first lists of train; the LLM put these in order, and others.
SCORED, ORDERED = TRAIN[:90], TRAIN[60:110]


def prepared(root: pathlib.Path, tuning_queries: int = 500, dev: int = 30, scored: int = 90) -> artifacts.Job:
  cfg = config.Config(name="t", index=config.Index(kind="scann", tuning_queries=tuning_queries, tuned_depth=5))
  for folder in ("collection", "labels", "train_retriever", "out"):
    (root / folder).mkdir(parents=True)
  example.write_records(root / "collection", tables.PASSAGES, (
    records.Passage(id=f"p{i}", title="", text=f"text {i}") for i in range(60)))
  example.write_records(root / "collection", tables.QUERIES, (
    records.Query(id=one, text=f"asks {one}", split=split)
    for split, ids in (("test", TEST), ("train", TRAIN), ("dev", DEV[:dev])) for one in ids))
  example.write_records(root / "train_retriever", artifacts.TEACHER, (
    records.ScoredList(query_id=one, passage_ids=("p1", "p2"), scores=(1.0, 0.0)) for one in TRAIN[:scored]))
  example.write_records(root / "labels", artifacts.RANKINGS, (
    records.RankedList(query_id=one, passage_ids=("p1", "p2"), status="complete") for one in ORDERED))
  inputs = {name: root / name for name in ("collection", "labels", "train_retriever")}
  return artifacts.Job(cfg=cfg, out=root / "out", inputs=inputs, cache=root / "cache")


def tuned(job: artifacts.Job) -> dict[str, list[str]]:
  return {what: [one.id for one in queries] for what, queries in stage.tuned_on(job.cfg, job.inputs).items()}


def test_queries_that_were_held_out_come_first(tmp_path):
  found = tuned(prepared(tmp_path))
  # Of what taught, as many as make a hundred of them all; none of test.
  assert {what: len(ids) for what, ids in found.items()} == {"dev": 30, "unused train": 40, "used train": 30}
  assert set(found["dev"]) == set(DEV) and set(found["unused train"]) == set(TRAIN[110:])
  assert set(found["used train"]) < set(TRAIN[:110])


@pytest.mark.parametrize("what, expected", [
  ({"tuning_queries": 20}, {"dev": 20}), ({"tuning_queries": 50}, {"dev": 30, "unused train": 20}),
  ({"tuning_queries": 80}, {"dev": 30, "unused train": 40, "used train": 10}),
  ({"scored": 0, "dev": 10}, {"dev": 10, "unused train": 100}),
  ({"scored": 150, "dev": 0}, {"used train": 100}),
])
def test_no_more_are_taken_than_are_wanted(tmp_path, what, expected):
  assert {name: len(ids) for name, ids in tuned(prepared(tmp_path, **what)).items()} == expected


def test_fewer_are_drawn_not_the_first_and_are_part_of_more(tmp_path):
  few, more = (tuned(prepared(tmp_path / str(most), most))["dev"] for most in (10, 20))
  assert more[:10] == few and set(few) != set(DEV[:10])


@pytest.mark.parametrize("split, expected", [
  ("test", {"dev": 30, "unused train": 40, "used train": 30}), ("dev", {"unused train": 40, "used train": 60}),
  ("train", {"dev": 30}),
])
def test_none_is_of_the_split_that_is_measured(tmp_path, split, expected):
  job = prepared(tmp_path)
  job.cfg.evaluate.split = split
  assert {what: len(ids) for what, ids in tuned(job).items()} == expected
  none = prepared(tmp_path / "without dev", dev=0)
  none.cfg.evaluate.split = "train"
  assert tuned(none) == {}


def test_the_measured_split_is_in_the_key_where_it_changes_what_is_tuned_on(tmp_path):
  workdir = artifacts.Workdir(tmp_path)

  def key(split: str, kind: str = "auto", of: artifacts.Stage = flow.STAGES["index"]) -> str:
    cfg = config.Config(name="t", index=config.Index(kind=kind), evaluate=config.Evaluate(split=split))
    return workdir.key(of, cfg)

  assert len({key("test"), key("dev"), key("train")}) == 3
  # Folders that were made before it was so stay valid.
  before = dataclasses.replace(flow.STAGES["index"], fingerprint=None)
  assert key("test") == key("dl20") == key("test", of=before)
  assert key("dev", "exact") == key("test", "exact") == key("dev", "exact", of=before)


class Retriever:
  """Embeds texts by chance, and notes them."""

  def __init__(self):
    self.asked: list[str] = []

  def encode_queries(self, texts):
    self.asked = list(texts)
    return np.random.default_rng(1).normal(size=(len(texts), 8)).astype(np.float32)

  def encode_passages(self, texts, into):
    made = np.random.default_rng(0).normal(size=(len(texts), 8)).astype(np.float32)
    np.save(into, made)
    return np.load(into, mmap_mode="r")


@pytest.mark.scann
def test_the_stage_tunes_on_them_counts_them_and_warns_of_those_that_taught(tmp_path, monkeypatch, caplog):
  if importlib.util.find_spec("scann") is None:
    pytest.skip("the extra `retrieval` is not installed")
  retriever = Retriever()
  monkeypatch.setattr(inference, "load_retriever", lambda *of: retriever)
  job = prepared(tmp_path / "few")
  with caplog.at_level(logging.WARNING):
    stage.run(job)
  assert job.counts["tuned on"] == {"dev": 30, "unused train": 40, "used train": 30} and job.counts["index"] == "scann"
  assert retriever.asked == [f"asks {one}" for ids in tuned(job).values() for one in ids]
  assert json.loads((job.out / stage.TUNING).read_text()) == tuned(job)
  assert "30 queries that training learned from, as no more than 70 were held out" in caplog.text
  # Enough of dev, and nothing to tune: no warning.
  caplog.clear()
  for folder, kind in (("dev", "scann"), ("exact", "exact")):
    job = prepared(tmp_path / folder, tuning_queries=25)
    job.cfg.index.kind = kind
    stage.run(job)
    assert job.counts.get("tuned on") == {"scann": {"dev": 25}, "exact": None}[kind]
    assert len(retriever.asked) == {"scann": 25, "exact": 0}[kind]
  assert "learned from" not in caplog.text
