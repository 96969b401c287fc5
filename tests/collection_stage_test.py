"""The collection stage: the folder that every later stage reads, and who may read the generated pairs."""

import json
import pathlib
import re
import shutil
import tracemalloc

import pytest

from idistill_jax import cli, config, flow, pipeline, records, suited
from idistill_jax.data import example, tables
from idistill_jax.data.corpora import beir, stdlib
from idistill_jax.stages import collection as stage
from idistill_jax.workdir import artifacts, manifests

ROOT = pathlib.Path(__file__).parents[1]


def stdlib_config(**limits: int) -> config.Config:
  return config.Config(name="test", collection=config.Collection(source="stdlib", **limits))


def execute(root: pathlib.Path, cfg: config.Config) -> tuple[pathlib.Path, dict]:
  workdir = artifacts.Workdir(root)
  return workdir.folder("collection"), workdir.execute(flow.STAGES["collection"], cfg)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.name != artifacts.MANIFEST
  }


def test_the_folder_holds_what_later_stages_read(tmp_path):
  folder, manifest = execute(tmp_path, stdlib_config())
  passages, queries, lists = (
    load(folder) for load in (tables.load_passages, tables.load_queries, tables.load_lists)
  )
  assert "heapq.merge" in passages and len(queries) == 2408
  for split in ("dev", "test"):
    judged = tables.load_qrels(folder, split)
    assert {query.id for query in queries.of_split(split)} == judged.keys()
    assert all(passage_id in passages for grades in judged.values() for passage_id in grades)
  assert not (folder / "qrels" / "train.tsv").exists()
  assert all(one.scores == () and queries.by_id(one.query_id).split == "train" for one in lists)
  facts = json.loads((folder / stage.STATISTICS).read_text())
  assert facts == manifest["counts"]
  assert facts["passages"] == len(passages) and facts["lists"] == len(lists)
  assert facts["queries"] == {"dev": 155, "test": 397, "train": 1856}
  assert facts["mean_words"] == round(sum(len(text.split()) for text in passages.texts) / len(passages), 1)


def test_running_twice_gives_the_same_bytes(tmp_path):
  cfg = stdlib_config(max_passages=200, max_queries_per_split=8)
  first, _ = execute(tmp_path / "a", cfg)
  second, _ = execute(tmp_path / "b", cfg)
  assert contents(first) == contents(second)
  other, _ = execute(tmp_path / "c", stdlib_config(max_passages=201, max_queries_per_split=8))
  assert contents(first) != contents(other)


def test_limits_are_kept_and_what_they_cost_is_counted(tmp_path):
  folder, manifest = execute(tmp_path, stdlib_config(max_passages=200, max_queries_per_split=8))
  passages, queries, lists = (
    load(folder) for load in (tables.load_passages, tables.load_queries, tables.load_lists)
  )
  assert len(passages) == 200
  assert [len(queries.of_split(split)) for split in ("train", "dev", "test")] == [8, 8, 8]
  assert lists and all(passage_id in passages for one in lists for passage_id in one.passage_ids)
  assert manifest["drops"]["query beyond collection.max_queries_per_split"]["count"] == 2408 - 24
  beyond = manifest["drops"]["passage beyond collection.max_passages"]
  assert beyond["count"] > 3000 and len(beyond["examples"]) == manifests.EXAMPLES_PER_DROP


def test_a_folder_without_lists_and_pairs_has_no_such_files(tmp_path):
  data = tmp_path / "data"
  data.mkdir()
  (data / "corpus.jsonl").write_text('{"_id": "p", "text": "x"}\n')
  (data / "queries.jsonl").write_text('{"_id": "q", "text": "y"}\n')
  cfg = config.Config(name="test", collection=config.Collection(source="beir", path=str(data)))
  folder, _ = execute(tmp_path / "run", cfg)
  assert sorted(contents(folder)) == [
    "collection.json",
    "passages-00000-of-00001.tfrecord",
    *sorted(tables.PLACES),
    "queries-00000-of-00001.tfrecord",
  ]
  assert tables.load_lists(folder) is None
  with pytest.raises(FileNotFoundError, match="some for: none"):
    tables.load_qrels(folder, "test")


def with_written(
  root: pathlib.Path, own: tables.Qrels, own_split: str, metadata: str = "{}", **fields
) -> pathlib.Path:
  """A collection of queries judged in one split, and of three written ones, `w0` to train, `w1` for dev, `w2` for
  test; metadata: of the former.  fields: of `config.Collection`."""
  data = root / "data"
  (data / "qrels").mkdir(parents=True)
  (data / "corpus.jsonl").write_text("".join(f'{{"_id": "p{i}", "text": "text {i}"}}\n' for i in range(4)))
  (data / "queries.jsonl").write_text("".join(
    f'{{"_id": "{one}", "text": "asked {one}", "metadata": {metadata}}}\n' for one in own))
  tables.write_qrels(data / "qrels" / f"{own_split}.tsv", {one: judged for one, judged in own.items() if judged})
  cfg = config.Config(name="test", queries=config.Queries(passages=3),
                      collection=config.Collection(source="beir", path=str(data), **fields))

  def write(job: artifacts.Job) -> None:
    made = {"w0": "train", "w1": "dev", "w2": "test"}
    example.write_records(job.out, tables.QUERIES, [
      records.Query(id=one, text=f"written {one}", split=split) for one, split in made.items()])
    (job.out / "qrels").mkdir()
    for place, (one, split) in enumerate(made.items()):
      tables.write_qrels(job.out / "qrels" / f"{split}.tsv", {one: {f"p{place}": 1}})

  workdir = artifacts.Workdir(root / "w")
  workdir.execute(artifacts.Stage(name="queries", reads=(), config=("queries",), run=write), cfg)
  workdir.execute(flow.STAGES["collection"], cfg)
  return workdir.folder("collection")


@pytest.mark.parametrize("own_split, splits", [
  ("test", {"h": "test", "w0": "train", "w1": "dev", "w2": "train"}),
  ("dev", {"h": "dev", "w0": "train", "w1": "train", "w2": "test"}),
])
def test_no_written_query_is_measured_beside_those_that_people_judged(tmp_path, own_split, splits):
  found = with_written(tmp_path, {"h": {"p3": 1}}, own_split)
  assert {query.id: query.split for query in tables.load_queries(found)} == splits
  # What one was written for is what is right for it where it is measured, and a pair to learn from where it trains.
  assert tables.load_qrels(found, own_split) == {"h": {"p3": 1}}
  assert tables.read_qrels(found / tables.SOURCES).keys() == {one for one, split in splits.items() if split == "train"}
  other = next(split for split in ("dev", "test") if split != own_split)
  assert tables.load_qrels(found, other).keys() == {one for one, split in splits.items() if split == other}


def test_no_written_query_is_measured_in_place_of_those_that_have_answers_alone(tmp_path):
  found = with_written(tmp_path, {"h": {}}, "train", '{"split": "test", "answers": ["a"]}')
  splits = {query.id: query.split for query in tables.load_queries(found)}
  assert splits == {"h": "test", "w0": "train", "w1": "dev", "w2": "train"}
  assert tables.load_some_qrels(found, "test") == {} and tables.load_answers(found) == {"h": ("a",)}


def test_of_queries_that_only_test_a_share_trains_beside_written_ones(tmp_path):
  own = {f"h{i}": {"p3": 1} for i in range(8)}
  found = with_written(tmp_path, own, "test", train_fraction=0.5)
  splits = {query.id: query.split for query in tables.load_queries(found)}
  assert (splits["w0"], splits["w1"], splits["w2"]) == ("train", "dev", "train")
  measured = {one for one in own if splits[one] == "test"}
  assert 0 < len(measured) < 8 and tables.load_qrels(found, "test").keys() == measured


QRELS = "query-id\tcorpus-id\tscore\n"


def judged(root: pathlib.Path, tiny_weights: str, answers: str = "", **qrels: str) -> cli.Runner:
  """A pipeline over a folder of two passages, two queries and these judgements; the stage has not run."""
  (root / "data" / "qrels").mkdir(parents=True)
  (root / "data" / "corpus.jsonl").write_text('{"_id": "p", "text": "x"}\n{"_id": "p2", "text": "y"}\n')
  (root / "data" / "queries.jsonl").write_text(
    f'{{"_id": "q3", "text": "y", "metadata": {{"split": "train"{answers}}}}}\n{{"_id": "q2", "text": "z"}}\n')
  for split, lines in qrels.items():
    (root / "data" / "qrels" / f"{split}.tsv").write_text(QRELS + lines)
  cfg = config.Config(name="test", collection=config.Collection(source="beir", path=str(root / "data")))
  cfg.encoder.weights = tiny_weights
  cfg.labels.provider, cfg.labels.recording = "replay", str(root / "recorded.jsonl")
  (root / "recorded.jsonl").touch()
  return cli.Runner(cfg, artifacts.Workdir(root / "w"), ())


@pytest.mark.parametrize("qrels", [{"dev": "q2\tp\t1\n"}, {"dev": "q2\tp\t1\n", "test": ""}])
def test_a_split_without_judgements_is_found_before_anything_is_encoded(tmp_path, tiny_weights, qrels):
  runner = judged(tmp_path, tiny_weights, **qrels)
  with pytest.raises(config.ConfigError, match=r"no query of the split 'test' has judgements or answers.*for: dev; .*"
                                               r"--config\.evaluate\.split"):
    pipeline.run(runner)
  assert runner.workdir.manifest("collection") is not None and runner.workdir.begun("candidates") is None
  runner.cfg.evaluate.split = "dev"
  suited.check(runner.workdir, runner.cfg)
  runner.cfg.evaluate.main_measure = "answer@20"
  with pytest.raises(config.ConfigError, match="main_measure is 'answer@20'; what is measured here is MRR@10"):
    suited.check(runner.workdir, runner.cfg)


@pytest.mark.parametrize("qrels, words, not_said", [
  ({}, r"; add qrels/test\.tsv in .*/data, or have the LLM write queries to measure by.*queries\.passages=700, or "
       r"--config=configs/my_corpus\.py --config\.collection\.source=beir$", "left out"),
  ({"test": "q2\tgone\t1\nq9\tp\t1\nq9\tp2\t1\n"},
   r"1 x judgement in test of an unknown passage, as 'q2 gone'; 2 x judgement in test of an unknown query, as 'q9",
   "swapped|add qrels"),
  ({"test": "p\tq2\t1\np2\tq3\t1\n"},
   r"2 x judgement in test of an unknown query, as 'p q2' \(the columns look swapped", "add qrels"),
  ({"test": "p\tq2\t1\n", "dev": "q2\tp\t1\n"}, r"look swapped.*it has judgements for: dev; name one", "add more"),
])  # fmt: skip
def test_what_is_lacking_to_measure_by_is_told_with_what_was_read(tmp_path, tiny_weights, qrels, words, not_said):
  runner = judged(tmp_path, tiny_weights, **qrels)
  queries = tmp_path / "data" / "queries.jsonl"
  queries.write_text(queries.read_text() + '{"_id": "q4", "text": "another that trains"}\n')
  runner.run(flow.STAGES["collection"])
  with pytest.raises(config.ConfigError, match=words) as found:
    suited.check(runner.workdir, runner.cfg)
  assert not re.search(not_said, str(found.value))


def test_judgements_beside_the_folder_of_judgements_are_named(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights)
  (tmp_path / "data" / "qrels.tsv").write_text(QRELS + "q2\tp\t1\n")
  runner.run(flow.STAGES["collection"])
  with pytest.raises(config.ConfigError, match=r"beside the corpus lies qrels\.tsv, which is not read: move it to "
                                               r"qrels/test\.tsv"):
    suited.check(runner.workdir, runner.cfg)
  (tmp_path / "data" / "qrels.tsv").rename(tmp_path / "data" / "qrels" / "test.tsv")
  runner.run(flow.STAGES["collection"])
  suited.check(runner.workdir, runner.cfg)


def test_one_query_is_not_to_be_divided(tmp_path, tiny_weights, caplog):
  runner = judged(tmp_path, tiny_weights, test="q2\tp\t1\n")
  queries = tmp_path / "data" / "queries.jsonl"
  both = queries.read_text()
  queries.write_text(both.splitlines(keepends=True)[1])
  with pytest.raises(config.ConfigError, match=r"no training queries.*one cannot be both trained on and measured"):
    pipeline.run(runner)
  assert "train_fraction" not in caplog.text
  # Nor is one that trains, whatever draws it.
  (tmp_path / "data" / "qrels" / "test.tsv").unlink()
  runner.run(flow.STAGES["collection"])
  with pytest.raises(config.ConfigError, match=r"nothing could be measured; there is one query"):
    suited.check(runner.workdir, runner.cfg)


@pytest.mark.parametrize("share, words", [(0.001, r"train_fraction=0\.001 draws none of 2; raise it"),
                                          (0.999, r"train_fraction=0\.999 took all 2 to train on: lower it")])
def test_a_share_that_leaves_nothing_is_named(tmp_path, tiny_weights, share, words):
  runner = judged(tmp_path, tiny_weights, test="q3\tp\t1\nq2\tp2\t1\n")
  queries = tmp_path / "data" / "queries.jsonl"
  queries.write_text(queries.read_text().replace("train", "test"))
  runner.cfg.collection.train_fraction = share
  runner.run(flow.STAGES["collection"])
  with pytest.raises(config.ConfigError, match=words):
    suited.check(runner.workdir, runner.cfg)


def test_written_queries_of_which_none_is_left_to_measure_by(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights)
  runner.cfg.queries.passages = 2

  def write(job: artifacts.Job) -> None:
    example.write_records(job.out, tables.QUERIES, [records.Query(id="w", text="written", split="train")])
    tables.write_qrels(job.out / "qrels" / "train.tsv", {"w": {"p": 1}})

  runner.workdir.execute(artifacts.Stage(name="queries", reads=(), config=("queries",), run=write), runner.cfg)
  runner.workdir.execute(flow.STAGES["collection"], runner.cfg)
  with pytest.raises(config.ConfigError, match=r"it has queries for: train, and of those that were written for 'test' "
                                               r"none was kept: raise --config\.queries\.passages"):
    suited.check(runner.workdir, runner.cfg)


def test_grades_that_cannot_be_relevant_are_found_before_anything_is_encoded(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights, test="q2\tp\t2\n")
  runner.cfg.evaluate.relevant_from = 3
  with pytest.raises(ValueError, match=r"relevant_from is 3, and the highest grade of the judgements is 2, so nothing"):
    pipeline.run(runner)
  assert runner.workdir.manifest("collection") is not None and runner.workdir.begun("candidates") is None
  runner.cfg.evaluate.relevant_from = 2
  suited.check(runner.workdir, runner.cfg)


def test_pairs_to_learn_from_are_looked_for_before_anything_is_encoded(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights, test="q2\tp\t1\n")
  runner.cfg.retriever.teacher = "pairs"
  with pytest.raises(config.ConfigError, match=r"retriever\.teacher is 'pairs', and no query there comes with"):
    pipeline.run(runner)
  assert runner.workdir.manifest("collection") is not None and runner.workdir.begun("candidates") is None
  (runner.workdir.folder("collection") / tables.SOURCES).write_text(QRELS + "q3\tp\t1\n")
  suited.check(runner.workdir, runner.cfg)


def test_answers_of_the_split_are_as_good_as_judgements(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights, answers=', "answers": ["x"]')
  runner.run(flow.STAGES["collection"])
  for split in ("test", "train"):
    runner.cfg.evaluate.split = split
    if split == "test":
      with pytest.raises(config.ConfigError, match="no query of the split 'test'"):
        suited.check(runner.workdir, runner.cfg)
    else:
      suited.check(runner.workdir, runner.cfg)


def test_a_reader_needs_answers_and_is_told_before_anything_is_encoded(tmp_path, tiny_weights):
  runner = judged(tmp_path, tiny_weights, answers=', "answers": ["x"]', test="q2\tp\t1\n")
  runner.cfg.answer.systems = "before_after"
  with pytest.raises(config.ConfigError, match=r"split 'test' that is measured has answers.*answer\.systems=none"):
    pipeline.run(runner)
  assert runner.workdir.manifest("collection") is not None and runner.workdir.begun("candidates") is None
  queries = tmp_path / "data" / "queries.jsonl"
  queries.write_text(queries.read_text().replace('"text": "z"', '"text": "z", "metadata": {"answers": ["y"]}'))
  runner.run(flow.STAGES["collection"])
  suited.check(runner.workdir, runner.cfg)


def test_a_collection_that_only_tests_says_how_to_train(tmp_path, tiny_weights, caplog):
  runner = judged(tmp_path, tiny_weights, test="q3\tp\t1\nq2\tp2\t1\n")
  queries = tmp_path / "data" / "queries.jsonl"
  queries.write_text(queries.read_text().replace("train", "test"))
  with pytest.raises(config.ConfigError, match=r"no training queries.*--config\.collection\.train_fraction=0\.5"):
    pipeline.run(runner)
  assert "collection.train_fraction" in caplog.text, "the stage by itself says it too"
  runner.cfg.collection.train_fraction = 0.5
  runner.run(flow.STAGES["collection"])
  suited.check(runner.workdir, runner.cfg)


def test_a_changed_input_makes_the_stage_stale(tmp_path):
  data = tmp_path / "data"
  data.mkdir()
  (data / "corpus.jsonl").write_text('{"_id": "p", "text": "x"}\n')
  (data / "queries.jsonl").write_text('{"_id": "q", "text": "y"}\n')
  cfg = config.Config(name="test", collection=config.Collection(source="beir", path=str(data)))
  execute(tmp_path / "run", cfg)
  workdir = artifacts.Workdir(tmp_path / "run")
  assert workdir.is_done(flow.STAGES["collection"], cfg)
  (data / "corpus.jsonl").write_text('{"_id": "p", "text": "changed"}\n')
  assert not workdir.is_done(flow.STAGES["collection"], cfg)


# `train_sources.tsv` says which passage each train query was generated from.  It exists for the baseline of
# training on those pairs directly, and the method must know nothing of it.

PAIR_FILES = {
  # The packaged file: read by the source that packages it.
  r"train_sources": {"idistill_jax/data/corpora/stdlib.py"},
  # Its copy in the workdir: written by the collection stage, read where teacher "pairs" trains the retriever; a
  # pipeline asks whether it is there.
  r"(?<!train_)sources\.tsv": {"idistill_jax/stages/collection.py", "idistill_jax/data/tables.py"},
  r"tables\.SOURCES": {
    "idistill_jax/stages/collection.py", "idistill_jax/stages/train_retriever.py", "idistill_jax/suited.py"},
}


@pytest.mark.parametrize("pattern", PAIR_FILES)
def test_only_the_contrastive_baseline_names_the_generated_pairs(pattern):
  sources = [path for folder in ("idistill_jax", "configs", "launch") for path in (ROOT / folder).rglob("*")]
  naming = {
    path.relative_to(ROOT).as_posix()
    for path in sources
    if path.suffix in (".py", ".sh", ".html", ".j2", ".toml") and re.search(pattern, path.read_text())
  }
  assert naming <= PAIR_FILES[pattern]
  assert naming


def test_the_generated_pairs_reach_nothing_but_their_own_file(tmp_path, monkeypatch):
  cfg = stdlib_config(max_passages=200, max_queries_per_split=8)
  with_pairs, _ = execute(tmp_path / "with", cfg)
  changed = tmp_path / "quickstart"
  shutil.copytree(stdlib.QUICKSTART, changed)
  pairs = tables.read_qrels(changed / "qrels" / "train_sources.tsv")
  turned = dict(zip(pairs, list(pairs.values())[1:] + list(pairs.values())[:1], strict=True))
  tables.write_qrels(changed / "qrels" / "train_sources.tsv", turned)
  monkeypatch.setattr(stdlib, "QUICKSTART", changed)
  with_others, _ = execute(tmp_path / "others", cfg)
  before, after = contents(with_pairs), contents(with_others)
  assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {
    "sources.tsv"
  }


def test_a_corpus_larger_than_memory_passes_through(tmp_path, monkeypatch):
  """24 MB of passages, in several shards, never take a fifth of that; all at once they do."""
  monkeypatch.setattr(stage, "_RECORDS_PER_SHARD", 1000)
  folder = tmp_path / "corpus"
  (folder / "qrels").mkdir(parents=True)
  with open(folder / "corpus.jsonl", "w") as out:
    for i in range(6000):
      out.write(json.dumps({"_id": f"p{i}", "title": "", "text": f"word{i} " * 500}) + "\n")
  (folder / "queries.jsonl").write_text('{"_id": "q", "text": "which?"}\n')
  (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp5999\t1\nq\tgone\t1\n")

  def peak(work) -> float:
    tracemalloc.start()
    try:
      work()
      return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
      tracemalloc.stop()

  cfg = config.Config(name="test", collection=config.Collection(source="beir", path=str(folder)))
  assert peak(lambda: execute(tmp_path / "w", cfg)) < 5
  assert peak(lambda: list(beir.load(cfg.collection).passages)) > 20
  manifest = artifacts.Workdir(tmp_path / "w").manifest("collection")
  assert manifest["counts"]["passages"] == 6000 and manifest["counts"]["judgements"] == {"test": 1}
  assert len(list((tmp_path / "w" / "collection").glob("passages-*-of-00006.tfrecord"))) == 6
  cfg.collection.max_passages = 2
  assert peak(lambda: execute(tmp_path / "w", cfg)) < 5
  manifest = artifacts.Workdir(tmp_path / "w").manifest("collection")
  assert [passage.id for passage in tables.load_passages(tmp_path / "w" / "collection")] == ["p0", "p5999"]
  assert manifest["drops"]["passage beyond collection.max_passages"]["count"] == 5998
