"""A corpus is enough: queries written for sampled passages, filtered, held out, and made a collection of."""

import itertools
import json
import pathlib

import jobs
import numpy as np
import pytest

from idistill_jax import cli, config, flow, records
from idistill_jax.data import collection, corpora, example, tables
from idistill_jax.data.corpora import stdlib
from idistill_jax.llm import estimate, prompt, protocol, query_writing, session
from idistill_jax.stages import queries as stage
from idistill_jax.workdir import artifacts

PASSAGES = 150


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """A corpus file of passages that the quickstart has queries for, and those queries as recorded answers."""
  folder = tmp_path_factory.mktemp("corpus")
  texts = {query["_id"]: query["text"] for line in (stdlib.QUICKSTART / "queries.jsonl").read_text().splitlines()
           for query in [json.loads(line)]}
  sources = tables.read_qrels(stdlib.QUICKSTART / "qrels" / "train_sources.tsv")
  written = {passage_id: texts[query_id] for query_id, judged in sources.items() for passage_id in judged}
  passages = [passage for passage in stdlib.extract()[0] if passage.id in written][:PASSAGES]
  with open(folder / "corpus.jsonl", "w") as out:
    for passage in passages:
      out.write(json.dumps({"_id": passage.id, "title": passage.title, "text": passage.text}) + "\n")
  with open(folder / "answers.jsonl", "w") as out:
    for passage in passages:
      # One style has no answer for the first passage.
      for style in prompt.QUERY_STYLES[passage is passages[0]:]:
        answer = {"query_id": style, "candidates": [passage.id], "response": written[passage.id]}
        out.write(json.dumps(answer) + "\n")
  return folder, {passage.id: written[passage.id] for passage in passages}


def configured(folder: pathlib.Path, weights: str, **fields) -> config.Config:
  return config.Config(
    name="t", collection=config.Collection(source="corpus", path=str(folder / "corpus.jsonl")),
    queries=config.Queries(**{"passages": 60, "round_trip_depth": 30, "clusters": 4, **fields}),
    encoder=config.Encoder(weights=weights, query_tokens=32, passage_tokens=64, row_tokens=128),
    labels=config.Labels(provider="replay", recording=str(folder / "answers.jsonl")),
  )


def test_a_corpus_becomes_a_collection(recorded, minilm_weights, tmp_path):
  folder, written = recorded
  cfg = configured(folder, minilm_weights)
  workdir = artifacts.Workdir(tmp_path)
  manifest = workdir.execute(flow.STAGES["queries"], cfg)
  statuses = json.loads((workdir.folder("queries") / stage.STATUSES).read_text())
  kept = manifest["counts"]["kept"]
  drops = {reason: drop["count"] for reason, drop in manifest["drops"].items()}
  assert statuses["asked"] == 180 and statuses["dropped"] == drops
  assert sum(drops.values()) + kept == 180
  # The same words in three styles: two of the three are dropped.
  assert drops["says what an earlier query says"] > 80 and 40 <= kept <= 60
  workdir.execute(flow.STAGES["collection"], cfg)
  found = workdir.folder("collection")
  queries, passages = tables.load_queries(found), tables.load_passages(found)
  assert len(passages) == PASSAGES and len(queries) == kept
  for query in queries:
    assert query.text == written[query.id.partition("/")[2]]
  judged = {split: tables.load_qrels(found, split) for split in ("dev", "test")}
  assert {query.id for query in queries.of_split("test")} == judged["test"].keys() and judged["test"]
  assert not (found / "qrels" / "train.tsv").exists()
  sources = tables.read_qrels(found / "sources.tsv")
  assert {query.id for query in queries.of_split("train")} == sources.keys()


def test_two_processes_encode_together_and_one_asks(recorded, tiny_weights, tmp_path):
  folder, _ = recorded
  cfg = configured(folder, tiny_weights, round_trip_depth=None)
  flags = {
    "collection.path": cfg.collection.path, "labels.provider": "replay", "labels.recording": cfg.labels.recording,
    "queries.clusters": 4, "encoder.query_tokens": 32, "encoder.passage_tokens": 64, "encoder.row_tokens": 128,
  }
  said = [f"--config.{name}={value}" for name, value in flags.items()]
  command = ("-m", "accelerated", "--config=configs/my_corpus.py:tiny", "--stages=queries", *said)
  with jobs.started(tmp_path, 2, *command, f"--workdir={tmp_path / 'two'}") as job:
    job.succeed()
  # By pieces that either may take, and nobody takes twice.
  logs = artifacts.Workdir(tmp_path / "two").folder("queries").glob("windows-*.jsonl")
  pieces = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
  assert {one["work"] for one in pieces} == {"encode passages", "encode queries"}
  assert len({(one["work"], one["piece"]) for one in pieces}) == len(pieces) == sum(
    next(one["pieces"] for one in pieces if one["work"] == work) for work in ("encode passages", "encode queries"))
  alone = artifacts.Workdir(tmp_path / "alone")
  alone.execute(flow.STAGES["queries"], cfg)
  kept = [list(example.read_records(one.folder("queries"), tables.QUERIES, records.Query))
          for one in (alone, artifacts.Workdir(tmp_path / "two"))]
  assert kept[0] == kept[1] and kept[0]


def test_off_no_queries_are_an_error_that_names_the_knob(recorded, tiny_weights, tmp_path):
  folder, _ = recorded
  cfg = configured(folder, tiny_weights, passages=None)
  assert not flow.STAGES["queries"].asked_for(cfg) and flow.STAGES["queries"].asked_for(configured(folder, "x"))
  with pytest.raises(ValueError, match=r"a corpus without queries.*queries.passages"):
    artifacts.Workdir(tmp_path).execute(flow.STAGES["collection"], cfg)
  with pytest.raises(config.ConfigError, match=r"queries.passages is none"):
    artifacts.Workdir(tmp_path).execute(flow.STAGES["queries"], cfg)


def few(folder: pathlib.Path, weights: str, count: int, **fields) -> config.Config:
  """For a corpus of so many passages."""
  with open(folder / "corpus.jsonl", "w") as out:
    for i in range(count):
      out.write(json.dumps({"_id": f"p{i}", "text": f"a text about {i}"}) + "\n")
  return configured(folder, weights, **fields)


@pytest.mark.parametrize("count, held_out, words", [
  (20, 0.0, r"passages=60 draws 20 of .*held_out=0, none is held out.*raise queries\.passages, queries\.held_out"),
  (1, 0.2, r"draws 1 of .*held_out=0\.2, none is held out for test"),
  (3, 0.999, r"held_out=0\.999, none trains.*lower queries\.held_out"),
  (20, 0.2, None),
])  # fmt: skip
def test_nobody_is_asked_for_queries_that_all_train_or_are_all_held_out(count, held_out, words, tiny_weights, tmp_path):
  cfg = few(tmp_path, tiny_weights, count, held_out=held_out)
  cfg.labels.recording = None
  # The control comes as far as asking.
  with pytest.raises(config.ConfigError, match=words) if words else pytest.raises(protocol.Stop):
    artifacts.Workdir(tmp_path / "w").execute(flow.STAGES["queries"], cfg)


def test_what_a_collection_has_of_its_own_need_not_be_written():
  texts = [records.Passage(id=f"p{i}", title="", text="x") for i in range(4)]
  def whole(split, **judged):
    return collection.assemble(
      title="t", passages=texts, queries=[records.Query(id="q", text="y", split=split)], judgements=judged)
  cfg = config.Config(name="t", queries=config.Queries(passages=4, held_out=0.0))
  with pytest.raises(config.ConfigError, match="is held out for test"):
    stage.check_splits(["p0"], whole("train"), cfg)
  stage.check_splits(["p0"], whole("dl20", dl20={"q": {"p1": 1}}), cfg)
  cfg.queries.held_out = 0.999
  held = next(one.id for one in texts if stage.split_of(one.id, 0.999, 0) == "test")
  stage.check_splits([held], whole("train"), cfg)
  with pytest.raises(config.ConfigError, match="none trains"):
    stage.check_splits([held], whole("dl20", dl20={"q": {"p1": 1}}), cfg)
  # Beside those that people judged, written ones of the split train.
  stage.check_splits([held], whole("test", test={"q": {"p1": 1}}), cfg)


@pytest.mark.parametrize("lines", [[], ['{"_id": "a", "text": ""}\n', '{"_id": "b", "text": " "}\n']])
def test_a_corpus_without_a_text_says_so(lines, tiny_weights, tmp_path):
  (tmp_path / "corpus.jsonl").write_text("".join(lines))
  (tmp_path / "answers.jsonl").touch()
  left_out = "2 x passage without text" if lines else "nothing"
  with pytest.raises(collection.CollectionError, match=f"the collection has no passages; left out: {left_out}"):
    artifacts.Workdir(tmp_path / "w").execute(flow.STAGES["queries"], configured(tmp_path, tiny_weights))


def test_an_estimate_counts_every_style(recorded, tmp_path, capsys):
  folder, _ = recorded
  cfg = configured(folder, "x", passages=60)
  cfg.labels.dollars_per_million_input_tokens, cfg.labels.dollars_per_million_output_tokens = 0.0, 1e6 / 20
  stage.print_estimate(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  said = capsys.readouterr().out
  assert said.startswith("60 passages, 180 calls, 0 of them") and "about $180.00" in said
  cfg.labels.priced_model = "another"
  stage.print_estimate(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  said = capsys.readouterr().out
  assert "$" not in said and f"are of another), and labels.priced_model={cfg.labels.model}" in said
  cfg.labels.priced_model = None
  with session.Session(cfg.labels, tmp_path / "cache") as opened:
    passages = corpora.SOURCES[cfg.collection.source].load(cfg.collection).passages
    chosen = [query_writing.Passage(one.id, one.full_text) for one in itertools.islice(passages, 20)]
    query_writing.write(opened, chosen, cfg.queries.passage_tokens)
    cached = len(opened.cache)
  assert cached
  stage.print_estimate(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  # Which are drawn is not known, unless all are.
  said = capsys.readouterr().out
  assert said.startswith(f"60 passages, 180 calls, between 0 and {cached} of them answered by the cache, as which")
  assert f"about ${180 - cached}.00 to $180.00\n" in said and f"about {(180 - cached) / 4:.0f} s to 45 s at" in said
  cfg.queries.passages = PASSAGES + 1
  stage.print_estimate(cli.Runner(cfg, artifacts.Workdir(tmp_path), []))
  assert capsys.readouterr().out.startswith(f"{PASSAGES} passages, {3 * PASSAGES} calls, {cached} of them answered by")


@pytest.mark.parametrize("drawn, known, looked_up, said", [
  (2, {"a": 3, "b": 1}, 9, "between 0 and 4 of them"),
  (3, {"a": 3, "b": 1}, 9, "between 1 and 4 of them"),
  (4, {"a": 3, "b": 1}, 9, "4 of them"),
  (2, dict.fromkeys("abcd", 3), 9, "6 of them"),
  (2, {}, 9, "0 of them"),
  # Of what is not looked up nothing is known.
  (2, dict.fromkeys("abcd", 3), 3, "between 3 and 6 of them"),
  (4, {"a": 3, "b": 1}, 2, "between 4 and 10 of them"),
])
def test_cached_answers_are_told_from_the_fewest_to_the_most_that_any_draw_has(
    drawn, known, looked_up, said, monkeypatch):
  monkeypatch.setattr(estimate, "_LOOKED_UP", looked_up)

  def knows(request: protocol.Request) -> protocol.Answer | None:
    text = next(one for one in "abcd" if request.prompt == prompt.render_query_writing(request.query_id, one, 9))
    is_known = prompt.QUERY_STYLES.index(request.query_id) < known.get(text, 0)
    return protocol.Answer("said", "stop") if is_known else None

  passages = [query_writing.Passage(one, one) for one in "abcd"]
  told = estimate.of_queries(passages, drawn, 9, config.Labels(), knows)
  assert told.startswith(f"{drawn} passages, {3 * drawn} calls, {said}")


def test_what_is_done_with_the_config_asks_nothing_and_a_longer_corpus_is_not_told_for_cached(
    recorded, tiny_weights, tmp_path, capsys):
  """What is drawn of another corpus, or by other weights, may be passages that nobody was asked about."""
  folder, _ = recorded
  cfg, workdir = configured(folder, tiny_weights, round_trip_depth=None), artifacts.Workdir(tmp_path / "w")
  corpus = tmp_path / "corpus.jsonl"
  corpus.write_text((folder / "corpus.jsonl").read_text())
  cfg.collection.path = str(corpus)
  said = lambda: (stage.print_estimate(cli.Runner(cfg, workdir, [])), capsys.readouterr().out)[1]
  workdir.execute(flow.STAGES["queries"], cfg)
  assert said() == "done with this config: nothing is asked\n"
  with corpus.open("a") as out:
    out.write(json.dumps({"_id": "new", "text": "a text"}) + "\n")
  assert said().startswith("60 passages, 180 calls, between 0 and 1")
  corpus.write_text((folder / "corpus.jsonl").read_text())
  assert said() == "done with this config: nothing is asked\n"
  cfg.encoder.weights = "owner/another"
  assert said().startswith("60 passages, 180 calls, between 0 and 1")


def test_a_query_that_does_not_find_its_passage_is_dropped(recorded, minilm_weights, tmp_path):
  folder, written = recorded
  ids = list(written)
  answers = tmp_path / "shifted.jsonl"
  with open(answers, "w") as out:
    for i, passage_id in enumerate(ids):
      text = written[ids[(i + 70) % len(ids)]] if i % 2 else written[passage_id]
      for style in prompt.QUERY_STYLES:
        out.write(json.dumps({"query_id": style, "candidates": [passage_id], "response": text}) + "\n")
  cfg = configured(folder, minilm_weights, passages=PASSAGES, round_trip_depth=3)
  cfg.labels.recording = str(answers)
  workdir = artifacts.Workdir(tmp_path / "w")
  workdir.execute(flow.STAGES["queries"], cfg)
  kept = list(example.read_records(workdir.folder("queries"), tables.QUERIES, records.Query))
  rows = [ids.index(query.id.partition("/")[2]) for query in kept]
  assert sum(row % 2 == 0 for row in rows) > 10 * sum(row % 2 for row in rows)


@pytest.mark.parametrize(
  ("text", "finish", "query", "dropped"),
  [
    ("how do i merge lists", "stop", "how do i merge lists", None),
    ('  "How do I merge lists?"\n', "stop", "How do I merge lists?", None),
    ("Query: merge lists", "stop", "merge lists", None),
    ("```\nmerge lists\n```", "stop", "merge lists", None),
    ("", "stop", "", "empty"),
    ("?!", "stop", "?!", "empty"),
    ("I'm sorry, I cannot write that.", "stop", None, "refusal"),
    ("I can't help with that.", "stop", None, "refusal"),
    # What a search is for.
    ("I can't open the same file twice", "stop", "I can't open the same file twice", None),
    ("I am unable to fit my model in memory", "stop", "I am unable to fit my model in memory", None),
    ("<think>\n\n</think>\n\nmerge lists", "stop", "merge lists", None),
    ("<think>ok, the user</think>merge lists", "stop", "merge lists", None),
    ("**Query:** merge lists", "stop", "merge lists", None),
    ("**merge lists**", "stop", "merge lists", None),
    ("sum of *args", "stop", "sum of *args", None),
    ("merge lists", "length", "merge lists", "ended by: length"),
    ("merge lists\nsort lists", "stop", "merge lists", "more than one line"),
    ("word " * 61, "stop", None, "too long"),
    ("a fast way to merge many sorted inputs into one", "stop", None, "copies the passage"),
    ("merge many sorted inputs into", "stop", "merge many sorted inputs into", None),
  ],
)
def test_answers(text, finish, query, dropped):
  found, why = query_writing.read(protocol.Answer(text, finish), "heapq.merge: Merge many sorted inputs into one.")
  assert why == dropped and (query is None or found == query)


def test_samples_take_turns_over_strata_and_a_smaller_one_is_a_prefix():
  rng = np.random.default_rng(0)
  centres = np.repeat(np.eye(4, dtype=np.float32), [85, 5, 5, 5], 0)
  vectors = centres + 0.01 * rng.normal(size=(100, 4)).astype(np.float32)
  strata = stage.stratify(vectors, list(rng.integers(1, 300, 100)), clusters=4, seed=0)
  rows = stage.sample(strata, 24, seed=0)
  assert len(set(rows)) == 24 and rows[:7] == stage.sample(strata, 7, seed=0)
  small = sum(row >= 85 for row in rows)
  assert small >= 8, "15 % of the passages, but most of the strata"
  assert sorted(stage.sample(strata, 100, seed=0)) == list(range(100))


def test_near_duplicates_go_and_the_first_stays():
  vectors = np.array([[1, 0], [0, 1], [0.999, 0.04], [0, 1]], np.float32)
  kept = stage.first_of_their_kind(vectors, np.array([True, False, True, True]), 0.95)
  assert kept.tolist() == [True, False, False, True]
  assert stage.first_of_their_kind(vectors, np.ones(4, bool), 2.0).all()


def test_places_count_the_nearer_passages():
  passages = np.eye(3, dtype=np.float32)
  queries = np.array([[3, 2, 1], [1, 2, 3]], np.float32)
  assert stage.places(queries, passages, np.array([0, 0])).tolist() == [0, 2]


def test_a_collection_of_several_blocks_is_counted_and_divided_as_one(monkeypatch):
  rng = np.random.default_rng(0)
  passages = stage.unit(rng.normal(size=(50, 8)).astype(np.float32))
  passages[40] = passages[3]  # a copy, in another block than its original, is as near
  queries, own, words = passages[:20] + 1.5 * passages[20:40], np.arange(20), list(range(50))

  def found():
    return stage.places(queries, passages, own).tolist(), stage.stratify(passages, words, 4, 0).tolist()

  whole = found()
  monkeypatch.setattr(stage, "_BLOCK", 16)
  assert found() == whole and len(set(whole[0])) > 1 and len(set(whole[1])) > 3


def test_splits_hold_passages_apart_and_do_not_move():
  splits = [stage.split_of(f"p{i}", 0.2, 0) for i in range(2000)]
  share = {split: splits.count(split) / 2000 for split in ("train", "dev", "test")}
  assert abs(share["train"] - 0.8) < 0.03 and abs(share["dev"] - 0.1) < 0.03 and abs(share["test"] - 0.1) < 0.03
