"""Settings for collections that are not on this machine, on a slice of our own: every stage of nq and msmarco, and
where trivia_qa is another.

Real: config, stages, provider, cache, training, ScaNN, measures.  Made up: passages, questions, the LLM's words.
"""

import dataclasses
import importlib.util
import json
import pathlib
import random
import types
from typing import Any

import config_test
import numpy as np
import pytest
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import cli, flow, pipeline, records, search, suited, upsert
from idistill_jax.data import example, similarity, tables
from idistill_jax.data.corpora import tfds
from idistill_jax.report import gather
from idistill_jax.retrieval import ann_shards, hits, systems
from idistill_jax.workdir import artifacts

pytestmark = pytest.mark.usefixtures("one_device")

PLACES = [f"{first}{last}" for first in ("North", "South", "Old", "New", "Upper") for last in
          ("burg", "ford", "ham", "port", "ville", "stead", "wick", "dale")]  # fmt: skip


def passages(path: pathlib.Path) -> None:
  """In the form of psgs_w100.tsv: what is made in each place, and fillers."""
  lines = ["id\ttext\ttitle"]
  for number, place in enumerate(PLACES):
    lines.append(f'{number + 1}\t"The town of {place} is known for its ""thing{number}"" made by hand."\t{place}')
  lines += [f"{number}\tWords about nothing much, number {number}.\tFiller" for number in range(100, 160)]
  path.write_text("\n".join(lines) + "\n")


# What each data set keeps under `answer`.
ANSWERS = {
  "nq:slice": lambda thing: [thing],
  "trivia_qa:slice": lambda thing: {"value": thing, "aliases": [thing, b"nothing of the kind"]},
}


def questions(monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
  """Stands in for a data set that is not on this machine; tests of `tfds` read a real builder."""
  rows = [{"question": f"what is {place} known for".encode(), "answer": ANSWERS[setting](f"thing{n}".encode())}
          for n, place in enumerate(PLACES)]  # fmt: skip
  random.Random(0).shuffle(rows)
  parts = {"train": rows[:24], "validation": rows[24:]}
  builder = types.SimpleNamespace(
    info=types.SimpleNamespace(splits=parts, features=rows[0]), version="1.0.0", download_and_prepare=lambda: None,
    as_dataset=lambda split, decoders: parts[split],
  )  # fmt: skip
  decode = types.SimpleNamespace(PartialDecoding=dict)
  package = types.SimpleNamespace(builder=lambda name: builder, as_numpy=iter, decode=decode)
  monkeypatch.setattr(tfds, "_package", lambda: package)


def reply(number: int, prompt: str) -> Reply:
  """Ranks lists, and reads out the first thing that it is shown."""
  if "Answer the question" not in prompt:
    return reversed_order(number, prompt)
  _, found, rest = prompt.partition("thing")
  return Reply(f"thing{rest.partition(' ')[0]}".replace('"', "") if found else "nothing")


def backwards(shards: ann_shards.Sharded, queries_QxE: np.ndarray, k: int, of=ann_shards.Sharded.search) -> hits.Hits:
  found = of(shards, queries_QxE, k)
  return dataclasses.replace(found, rows=found.rows[:, ::-1])


def runner(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, weights: str, setting: str) -> cli.Runner:
  """Of a setting as its config is, over what is made up here, and small."""
  passages(folder / "psgs_w100.tsv")
  questions(monkeypatch, setting)
  cfg = config_test.load(setting)
  cfg.collection.path = str(folder / "psgs_w100.tsv")
  cfg.encoder.weights, cfg.encoder.row_tokens, cfg.encoder.tokens_per_step = weights, 256, 2048
  cfg.labels.provider, cfg.labels.list_size, cfg.ranker.epochs = "openai", 6, 1
  cfg.ranker.passages_per_list = cfg.retriever.passages_per_list = 6
  cfg.candidates.depth, cfg.scores.depth, cfg.evaluate.rerank_depth, cfg.evaluate.resamples = 20, 6, 5, 200
  return cli.Runner(cfg, artifacts.Workdir(folder / "w"), ())


def assert_keep_their_lengths(*files: pathlib.Path) -> None:
  """Embeddings are compared by inner products, as Contriever was published."""
  for file in files:
    lengths = np.linalg.norm(np.load(file), axis=1)
    assert lengths.min() > 1.1 and np.ptp(lengths) > 0.01


def ran(of: cli.Runner, monkeypatch) -> dict[str, Any]:
  """All stages, over a loopback LLM: what evaluate has measured."""
  pytest.importorskip("openai")
  if importlib.util.find_spec("scann") is None:
    pytest.skip("the extra `retrieval` is not installed")
  monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
  of.cfg.index.tuned_depth = 10  # of a hundred passages anybody finds a hundred
  with LoopbackLLM(reply) as server:
    of.cfg.labels.base_url = f"{server.url}/v1"
    pipeline.run(of)
  return json.loads((of.workdir.folder("evaluate") / "metrics.json").read_text())


def test_trivia_qa_is_nq_with_other_questions(tmp_path, monkeypatch, tiny_weights):
  """What its questions are told by; the stages behind are those of the one recipe, which run below."""
  nq, its = (config_test.load(f"{name}:slice") for name in ("nq", "trivia_qa"))
  assert nq.collection.questions != its.collection.questions and nq.name != its.name
  nq.collection.questions, nq.name = its.collection.questions, its.name
  assert nq == its
  of_trivia_qa = runner(tmp_path, monkeypatch, tiny_weights, "trivia_qa:slice")
  workdir = of_trivia_qa.workdir
  of_trivia_qa.run(flow.STAGES["collection"])
  suited.check(workdir, of_trivia_qa.cfg)
  known = tables.load_answers(workdir.folder("collection"))
  asked = list(tables.load_queries(workdir.folder("collection")))
  assert len(asked) == len(PLACES)
  for question in asked:
    thing = f"thing{PLACES.index(question.text.split()[2])}"
    assert list(known[question.id]) == [thing, "nothing of the kind"]


@pytest.mark.slow
@pytest.mark.scann
def test_nq_runs_on_a_slice(tmp_path, monkeypatch, tiny_weights):
  of_nq = runner(tmp_path, monkeypatch, tiny_weights, "nq:slice")
  cfg, workdir, metrics = of_nq.cfg, of_nq.workdir, ran(of_nq, monkeypatch)
  assert metrics["queries"] == 16 and metrics["measures"] == ["answer@1", "answer@5", "answer@20", "answer@100"]
  assert set(metrics["systems"]) >= {"initial", "bm25", "distilled", "hybrid", "ranker", "hybrid+ranker"}
  # Every place is in its passage's title.
  assert metrics["systems"]["bm25"]["answer@1"] == 1.0 > metrics["systems"]["initial"]["answer@1"]
  assert metrics["ann"]["index"] == "scann" and metrics["leakage"]["test_queries"] == 16
  assert "distilled+scann vs distilled" in metrics["tests"]
  answered = json.loads((workdir.folder("answer") / "metrics.json").read_text())
  assert answered["questions"] == 16 and np.isfinite(answered["systems"]["distilled"]["EM"])
  # By inner products from the first search to the exported folder.
  folder = workdir.folder("candidates")
  assert_keep_their_lengths(folder / "passages.npy", folder / "queries.npy", workdir.folder("index") / "passages.npy")
  exported = workdir.folder("export") / "retriever"
  assert json.loads((exported / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "dot"
  embedded = similarity.load(workdir.folder("candidates"))
  passages_of = tables.load_passages(workdir.folder("collection"))
  question = tables.load_queries(workdir.folder("collection"))
  for one in example.read_records(workdir.folder("candidates"), artifacts.CANDIDATES, records.CandidateList):
    products_P = embedded.passages_PxE @ embedded.queries_QxE[question.row(one.query_id)]
    np.testing.assert_allclose(one.scores, np.sort(products_P)[::-1][: len(one.scores)], rtol=1e-4)
  # The index was tuned on what was held out, and on what taught as there is little of it.
  held_out = question.of_split("dev")
  assert workdir.manifest("index")["counts"]["tuned on"] == {
    "dev": len(held_out), "used train": len(question.of_split("train"))}
  assert 0 < len(held_out) < 10
  # What is found in the finished workdir, and after a passage has come to it, is so as well.
  asked = question.of_split("train")[0]
  found = search.Searcher(workdir.root).search(asked.text, 3)
  of_asked_P = embedded.passages_PxE @ embedded.queries_QxE[question.row(asked.id)]
  assert found["initial"].passages[0].id == passages_of.ids[int(of_asked_P.argmax())]
  assert {name: one.by for name, one in found.items()} == {
    "initial": "exact search", "distilled": "ScaNN", "ranker": "exact search"}
  (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "new", "text": asked.text}) + "\n")
  counts = upsert.upsert(workdir.root, tmp_path / "more.jsonl", tmp_path / "grown")
  assert counts["added"] == 1 and 0.9 < counts["recall@10"] <= 1
  counted = artifacts.Workdir(tmp_path / "grown").manifest("index")["counts"]
  assert counted["recall@10 since"] == counts["recall@10"]
  # And once more, into what has grown.
  (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "newer", "text": "Of nothing in particular."}) + "\n")
  assert "recall@10" in upsert.upsert(tmp_path / "grown", tmp_path / "more.jsonl", tmp_path / "grown twice")
  # Out again, and ScaNN's other passages are found as before.
  (tmp_path / "gone.txt").write_text("new\n")
  removed = upsert.upsert(tmp_path / "grown twice", None, tmp_path / "less", tmp_path / "gone.txt")
  assert removed["removed"] == 1 and 0.9 < removed["recall@10"] <= 1
  found = search.Searcher(tmp_path / "less").search(asked.text, len(passages_of) + 1)
  assert all(sorted(one.id for one in answer.passages) == sorted([*passages_of.ids, "newer"])
             for answer in found.values())
  grown = np.load(tmp_path / "grown" / "index" / "passages.npy")
  assert len(grown) == len(passages_of) + 1 and np.linalg.norm(grown[-1]) > 1.1
  report = gather.gather(workdir)
  assert report.evaluation.main_measure == "answer@20" and report.reader.main_measure == "F1"
  assert report.shown.queries[0].answers and report.shown.queries[0].said
  assert "Answers of a reader" in (workdir.root / "report.html").read_text()
  # Before and after are searched alike: were ScaNN to find everything the wrong way round, only its own system would.
  of = lambda system: (workdir.folder("evaluate") / "runs" / f"{system}.trec").read_text()
  before, cfg.evaluate.rerank = {name: of(name) for name in systems.OURS}, "initial"
  monkeypatch.setattr(ann_shards.Sharded, "search", backwards)
  workdir.execute(flow.STAGES["evaluate"], cfg)
  again = ("initial", "bm25", "direct", "distilled", "distilled+scann", "initial+bm25", "hybrid", "ranker")
  assert [name for name in again if of(name) != before[name]] == ["distilled+scann"]


@pytest.mark.slow
def test_ms_marco_learns_from_rankings_made_elsewhere(tmp_path, monkeypatch, tiny_weights):
  ir_datasets = pytest.importorskip("ir_datasets", reason="the extra `datasets` is not installed")
  places = random.Random(0).sample(PLACES, len(PLACES))
  docs = (f"{place}\tThe town of {place} is known for its mills.\n" for place in places)
  (tmp_path / "docs.tsv").write_text("".join(docs))
  train, test = "msmarco-passage/train/judged", "msmarco-passage/trec-dl-2020/judged"
  for name, asked, grade in ((train, places[:24], 1), (test, places[24:], 3)):
    queries, qrels = tmp_path / f"{grade}.tsv", tmp_path / f"{grade}.qrels"
    queries.write_text("".join(f"q-{place}\twhat is {place} known for\n" for place in asked))
    qrels.write_text("".join(f"q-{place} 0 {place} {grade}\nq-{place} 0 {places[0]} 0\n" for place in asked[1:]))
    dataset = ir_datasets.create_dataset(
      docs_tsv=str(tmp_path / "docs.tsv"), queries_tsv=str(queries), qrels_trec=str(qrels)
    )
    monkeypatch.setitem(ir_datasets.registry._registered, name, dataset)
  # RankGPT's two files: the right passage is shown last, and the LLM puts it first.
  shown = [
    {"query_id": f"q-{place}", "query": f"what is {place} known for", "retrieved_passages": [
      {"docid": one} for one in (*random.Random(place).sample(places[24:], 9), place)]} for place in places[:24]
  ]
  (tmp_path / "shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in shown))
  (tmp_path / "said.json").write_text(json.dumps([" > ".join(f"[{i}]" for i in (10, *range(1, 10)))] * len(shown)))
  cfg = config_test.load("msmarco")
  cfg.collection.rankings, cfg.collection.rankings_shown = str(tmp_path / "said.json"), str(tmp_path / "shown.jsonl")
  cfg.encoder.weights, cfg.encoder.tokens_per_step, cfg.ranker.epochs = tiny_weights, 2048, 1
  cfg.ranker.passages_per_list = cfg.retriever.passages_per_list = 6
  cfg.candidates.depth, cfg.scores.depth, cfg.evaluate.rerank_depth, cfg.evaluate.resamples = 20, 6, 5, 200
  workdir = artifacts.Workdir(tmp_path / "w")
  pipeline.run(cli.Runner(cfg, workdir, ()))
  assert workdir.manifest("labels")["counts"]["made_elsewhere"] == 24
  learned = example.read_records(workdir.folder("labels"), artifacts.RANKINGS, records.RankedList)
  assert all(one.query_id == f"q-{one.passage_ids[0]}" and one.status == "complete" for one in learned)
  metrics = json.loads((workdir.folder("evaluate") / "metrics.json").read_text())
  assert metrics["queries"] == len(places) - 24 - 1 and metrics["relevant_from"] == 2
  assert metrics["systems"]["bm25"]["MRR@10"] == 1.0 > metrics["systems"]["initial"]["MRR@10"]
