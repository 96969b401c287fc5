"""A query that is a passage too is nobody's result: as candidates, for the ranker, when measured, in others' runs."""

import json
import pathlib
import types
from collections.abc import Sequence

import numpy as np
import pytest

from idistill_jax import config, flow, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.data.corpora import beir, rankings
from idistill_jax.retrieval import index, itself, runs
from idistill_jax.stages import candidates, evaluate, scores
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

IDS = ["a", "b", "c", "d", "e"]
PASSAGES = tables.Passages(records.Passage(id=one, title="", text=f"argument {one}") for one in IDS)
# "c" is a passage by chance: it is what is right for the query "c".
SPLITS = {"a": "train", "b": "train", "c": "test", "d": "test", "other": "test"}
QUERIES = tables.Queries(records.Query(id=one, text=f"argument {one}", split=split) for one, split in SPLITS.items())
QRELS = {"c": {"c": 1}, "d": {"e": 1, "d": 0}, "other": {"a": 1}}
# Every text is its own vector, and next to that of the following letter.
VECTORS = np.eye(5, dtype=np.float32) + 0.5 * np.eye(5, k=1, dtype=np.float32)


def embedded(texts: Sequence[str], into: pathlib.Path | None = None) -> np.ndarray:
  made = np.stack([VECTORS[IDS.index(text[-1])] if text[-1] in IDS else np.ones(5, np.float32) for text in texts])
  if into is not None:
    np.save(into, made)
  return made


@pytest.fixture
def job(tmp_path, monkeypatch) -> artifacts.Job:
  """Stages that read models find ones without weights."""
  retriever = types.SimpleNamespace(encode_passages=embedded, encode_queries=embedded)
  ranker = types.SimpleNamespace(score_rows=lambda *pairs: pairs[-1])
  monkeypatch.setattr(inference, "load_retriever", lambda *args: retriever)
  monkeypatch.setattr(inference, "load_ranker", lambda *args: ranker)
  cfg = config.Config(name="t", candidates=config.Candidates(depth=3), scores=config.Scores(depth=2),
                      evaluate=config.Evaluate(resamples=50))
  inputs = {name: tmp_path / name for name in flow.STAGES["evaluate"].reads}
  for folder in (*inputs.values(), tmp_path / "out"):
    folder.mkdir()
  example.write_records(inputs["collection"], tables.PASSAGES, PASSAGES)
  example.write_records(inputs["collection"], tables.QUERIES, QUERIES)
  tables.write_qrels(inputs["collection"] / "qrels" / "test.tsv", QRELS)
  for stage in ("candidates", "train_direct"):
    embedded(QUERIES.texts, inputs[stage] / similarity.QUERIES)
    embedded(PASSAGES.texts, inputs[stage] / similarity.PASSAGES)
  ranking = records.RankedList(query_id="a", passage_ids=("b", "c"), status="complete")
  example.write_records(inputs["labels"], artifacts.RANKINGS, [ranking])
  example.write_records(inputs["train_retriever"], artifacts.TEACHER, ())
  index.write(inputs["index"], embedded(PASSAGES.texts), PASSAGES.ids, cfg.index, np.zeros((0, 5), np.float32))
  return artifacts.Job(cfg=cfg, out=tmp_path / "out", inputs=inputs, cache=tmp_path / "cache")


def test_ids_that_coincide_by_chance_are_told_apart_by_judgements():
  assert itself.of(QUERIES, PASSAGES, QRELS) == {"a", "b", "d"}
  assert itself.of(QUERIES, tables.Passages([]), {}) == set()


@pytest.mark.parametrize("query, text, is_one", [
  ("Ban  arms now\n", "ban arms NOW", True),
  ("Ban arms now, for good", "Arms. Ban arms now, for good", True),  # beside a title
  ("Ban arms now, for good", "Ban arms now, for", True),  # cut
  ("ban arms", "Whoever would ban arms has first to say which of them are meant", False),  # words of it
  ("which arms?", "How bread is baked", False),
])
def test_ids_that_coincide_by_chance_are_told_apart_by_texts(query, text, is_one):
  """Where rows of a table are numbered, passage 7 may be what is right for query 7, which nobody has judged."""
  passages = tables.Passages([records.Passage(id="7", title="", text=text)])
  assert itself.of([records.Query(id="7", text=query, split="train")], passages, {}) == ({"7"} if is_one else set())


@pytest.mark.parametrize("query", [
  "A title that is longer than its text", "Short text", "a title that is longer than its text short text",
  "A title that is longer than its text. Short text"])
def test_a_query_may_be_a_title_a_text_or_both(query):
  passage = records.Passage(id="7", title="A title that is longer than its text", text="Short text")
  asked = [records.Query(id="7", text=query, split="train")]
  assert itself.of(asked, tables.Passages([passage]), {}) == {"7"}


def test_a_run_without_them_is_as_deep_as_asked_for():
  found, dropped = {"a": {"a": 9.0, "b": 2.0, "c": 1.0}, "x": {"x": 3.0, "y": 2.0, "z": 1.0}}, []
  kept = {"a": {"b": 2.0, "c": 1.0}, "x": {"x": 3.0, "y": 2.0}}
  assert itself.without(found, frozenset("a"), 2, dropped.append) == kept
  assert dropped == ["a"] and itself.without(found, frozenset(), 1, dropped.append) is found


def test_no_candidate_is_its_query(job, tmp_path):
  candidates.run(job)
  lists = list(example.read_records(job.out, artifacts.CANDIDATES, records.CandidateList))
  assert [(one.query_id, len(one.passage_ids)) for one in lists] == [("a", 3), ("b", 3)]
  assert all(one.query_id not in one.passage_ids for one in lists) and lists[0].passage_ids[0] == "b"
  assert job.drops == {"candidate that is its query": ["a", "b"]}
  runs.write_trec(tmp_path / "bing.trec", {"a": {"a": 2.0, "e": 1.0}}, "bing")
  job.cfg.candidates.run = str(tmp_path / "bing.trec")
  candidates.run(job)
  lists = list(example.read_records(job.out, artifacts.CANDIDATES, records.CandidateList))
  assert [one.passage_ids for one in lists] == [("e",)]


def test_training_queries_without_candidates_are_counted(job, tmp_path):
  """Those that another system's run lacks, and those for which it found nothing but themselves."""
  job.cfg.candidates.run = str(tmp_path / "bing.trec")
  for found, without in ({"a": {"e": 1.0}, "b": {"c": 1.0}}, []), ({"a": {"e": 1.0}}, ["b"]), (
    {"b": {"e": 1.0}, "a": {"a": 1.0}}, ["a"]):
    job.drops.clear()
    runs.write_trec(tmp_path / "bing.trec", found, "bing")
    candidates.run(job)
    assert job.drops.get("training query without candidates", []) == without
    assert job.counts["lists"] == 2 - len(without)


def test_a_collection_in_which_queries_find_but_themselves_is_refused(job):
  for name, its in (tables.PASSAGES, PASSAGES), (tables.QUERIES, QUERIES):
    example.write_records(job.inputs["collection"], name, list(its)[:1])
  with pytest.raises(ValueError, match="none of 1 training queries finds a passage but itself: add passages"):
    candidates.run(job)


def test_the_ranker_scores_no_query_against_itself(job):
  lists = scores.CANDIDATES["direct"](job, {}, QUERIES, PASSAGES)
  found = {one.query_id: [PASSAGES.ids[row] for row in one.passage_rows] for one in lists}
  assert {query_id: len(ids) for query_id, ids in found.items()} == {"a": 2, "b": 2}
  assert all(query_id not in ids for query_id, ids in found.items())


def test_no_system_is_measured_by_it(job, tmp_path):
  (tmp_path / "theirs").mkdir()
  runs.write_trec(tmp_path / "theirs" / "bing.trec", runs.from_order({"d": ["d", "e"], "c": ["c"]}), "bing")
  job.cfg.evaluate.runs = str(tmp_path / "theirs")
  evaluate.run(job)
  for path in (job.out / "runs").iterdir():
    found = runs.read_trec(path)
    assert "d" not in found["d"] and "c" in found["c"], path
  assert job.drops["passage of bing that is its query"] == ["d"] == job.drops["passage of distilled that is its query"]
  # Nor are smaller vectors: those that are not smaller find what the system finds.
  metrics = json.loads((job.out / evaluate.METRICS).read_text())
  whole, *_, smallest = metrics["ann"]["options"]
  measured = lambda of: (of["MRR@10"], of["nDCG@10"])
  assert measured(whole) == pytest.approx(measured(metrics["systems"]["distilled"])) != measured(smallest)


def test_rankings_made_elsewhere_lose_it_too(tmp_path):
  (tmp_path / "qrels").mkdir()
  for name, items in (("corpus", PASSAGES), ("queries", QUERIES)):
    rows = "".join(f'{{"_id": "{one.id}", "text": "{one.text}"}}\n' for one in items)
    (tmp_path / f"{name}.jsonl").write_text(rows)
  tables.write_qrels(tmp_path / "qrels" / "test.tsv", QRELS)
  lines = ['{"qid": "a", "ranking": ["a", "c", "b"]}', '{"qid": "c", "ranking": ["c", "a"]}',
           '{"qid": "b", "candidates": ["c", "b", "a"], "response": "[3] > [2]"}']  # fmt: skip
  (tmp_path / "rankings.jsonl").write_text("\n".join(lines))
  cfg = config.Collection(path=str(tmp_path), rankings=str(tmp_path / "rankings.jsonl"))
  found = rankings.add(beir.load(cfg), cfg)
  assert [(one.query_id, one.passage_ids, one.filled_places, one.permutation) for one in found.rankings] == [
    ("a", ("c", "b"), (), ()), ("c", ("c", "a"), (), ()), ("b", ("a", "c"), (1,), (2, 0))]
  assert [drop.what for drop in found.drops if drop.reason.endswith("LLM ranking that is its query")] == ["a", "b"]
  # By chance: of another text.
  queries = (tmp_path / "queries.jsonl").read_text().replace("argument a", "where is bread baked?")
  (tmp_path / "queries.jsonl").write_text(queries)
  found = rankings.add(beir.load(cfg), cfg)
  assert found.rankings[0].passage_ids == ("a", "c", "b")


def test_passages_of_a_run_that_the_collection_lacks_are_named_in_its_order(job, tmp_path):
  """In every process alike: a set's order is another one in each."""
  lacking = {f"gone{i}": 9.0 - i for i in range(8)}
  runs.write_trec(tmp_path / "bing.trec", {"a": {"e": 10.0, **lacking}}, "bing")
  job.cfg.candidates.run = str(tmp_path / "bing.trec")
  candidates.run(job)
  assert job.drops["passage of candidates.run that the collection lacks"] == [f"a {one}" for one in lacking]
