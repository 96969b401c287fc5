"""SciFact and wiki-qa as their configs are, variant `tiny`, with an LLM on 127.0.0.1: what one is read and labelled,
and every stage of the other."""

import json
import os
import pathlib
import re
import subprocess
import sys

import config_test
import jobs
import numpy as np
import pytest
from loopback_llm import LoopbackLLM, Reply

from idistill_jax import cli, config, flow, suited
from idistill_jax.data import tables
from idistill_jax.data.corpora import beir
from idistill_jax.hf import networks
from idistill_jax.llm.providers import replay
from idistill_jax.report import gather
from idistill_jax.retrieval import bm25, runs
from idistill_jax.workdir import artifacts

SYSTEMS = {"initial", "bm25", "direct", "distilled", "hybrid", "initial+bm25", "ranker", "bm25+ranker",
           "initial+bm25+ranker", "distilled+ranker", "hybrid+ranker"}  # fmt: skip


def by_shared_words(prompt: str) -> Reply:
  """Passages in the order of how many words of the query they have."""
  words = set(re.search(r"<query>\n(.*)\n</query>", prompt)[1].lower().split())
  inside = prompt.partition("\n<passages>\n")[2].partition("\n</passages>")[0]
  shown = re.findall(r"^\[(\d+)\] (.*)$", inside, re.MULTILINE)
  order = sorted(shown, key=lambda one: -len(words & set(one[1].lower().split())))
  return Reply(" > ".join(f"[{number}]" for number, _ in order))


def finished(name: str, root: pathlib.Path, reply) -> artifacts.Workdir:
  """The pipeline as a user starts it; the LLM is asked through the real client."""
  with LoopbackLLM(lambda number, prompt: reply(prompt)) as server:
    command = [
      sys.executable, "-m", "idistill_jax.pipeline", f"--config=configs/{name}.py:tiny", f"--workdir={root}",
      "--config.labels.provider=openai", f"--config.labels.base_url={server.url}/v1", "--config.evaluate.resamples=200",
    ]  # fmt: skip
    environment = os.environ | jobs.ONE_DEVICE | {"OPENAI_API_KEY": "not-a-real-key"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr[-3000:]
  return artifacts.Workdir(root)


def checked(workdir: artifacts.Workdir) -> gather.Evaluation:
  """What holds of any collection with answers: stages, lists, one table, a page, folders that load."""
  assert [name for name in flow.STAGES if workdir.manifest(name) is None] == ["queries"]
  labelled = workdir.manifest("labels")["counts"]
  assert labelled["complete"] == labelled["lists"] == 20
  assert workdir.manifest("scores")["counts"]["lists"] == 20
  found = gather.evaluation(workdir)
  assert found.queries == 20 and set(found.systems) == SYSTEMS
  kinds = {measure.partition("@")[0] for measure in found.measures}
  assert kinds == {"MRR", "nDCG", "hit", "recall", "answer"}
  assert all(0 <= value <= 1 for means in found.systems.values() for value in means.values())
  # 300 passages, BERT-tiny: words find what it does not, and reordering the first 20 loses none of them.
  assert found.systems["bm25"]["MRR@10"] > 0.6 and found.systems["bm25"]["MRR@10"] > found.systems["initial"]["MRR@10"]
  for system in ("bm25", "hybrid", "initial+bm25", "distilled"):
    first, reordered = (runs.read_trec(workdir.folder("evaluate") / "runs" / f"{name}.trec")
                        for name in (system, f"{system}+ranker"))
    assert all({*runs.ranked(first[one])[:20]} == {*runs.ranked(reordered[one])[:20]} for one in first)
    assert any(runs.ranked(first[one]) != runs.ranked(reordered[one]) for one in first)
  page = (workdir.root / "report.html").read_text()
  assert all(f">{system}<" in page for system in SYSTEMS)
  for name in ("retriever", "ranker/similarity"):
    networks.retriever(config.Encoder(weights=str(workdir.folder("export") / name))).initial(0)
  networks.ranker(config.Encoder(weights=str(workdir.folder("export") / "ranker")), "pair_cosine").initial(0)
  return found


@pytest.mark.slow
@pytest.mark.usefixtures("data_folder", "tiny_weights")
def test_scifact_is_read_and_labelled(tmp_path, monkeypatch):
  """What it has of its own; what is behind runs below, and without answers in my_corpus_test and pipeline_test."""
  pytest.importorskip("openai")
  monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
  cfg, workdir = config_test.load("scifact:tiny"), artifacts.Workdir(tmp_path / "w")
  cfg.labels.provider = "openai"
  with LoopbackLLM(lambda number, prompt: by_shared_words(prompt)) as server:
    cfg.labels.base_url = f"{server.url}/v1"
    one = cli.Runner(cfg, workdir, ())
    one.run(flow.STAGES["collection"])
    suited.check(one.workdir, one.cfg)
    one.run(flow.STAGES["candidates"])
    one.run(flow.STAGES["labels"])
  counts = workdir.manifest("collection")["counts"]
  assert counts["passages"] == 300 and counts["queries"] == {"train": 20, "test": 20}
  assert not tables.load_answers(workdir.folder("collection"))
  labelled = workdir.manifest("labels")["counts"]
  assert labelled["complete"] == labelled["lists"] == 20
  # Abstracts of a claim: 300 of them, and words find most that are right.
  passages, queries = (load(workdir.folder("collection")) for load in (tables.load_passages, tables.load_queries))
  asked = queries.of_split("test")
  found = bm25.Bm25(passages.texts, passages.ids, "english").search([one.text for one in asked], 10)
  judged = tables.load_qrels(workdir.folder("collection"), "test")
  hits = [any(passages.ids[row] in judged[one.id] for row in rows) for one, rows in zip(asked, found.rows, strict=True)]
  assert np.mean(hits) > 0.6


def test_the_recorded_readers_answers_are_about_wiki_qas_test_questions(data_folder):
  """Each of them with five passages, as the config has it, in one or two orders: before, and after."""
  whole, cfg = beir.load(config.Collection(path=str(data_folder / "wiki-qa"))), config_test.load("wiki_qa:answered")
  said = replay.Replay(str(config_test.ROOT / cfg.answer.recording)).answers
  asked = [query.id for query in whole.queries if query.split == "test" and query.id in whole.answers]
  assert sorted({query_id for query_id, _ in said}) == sorted(asked) and len(asked) == 805
  passages = {passage.id for passage in whole.passages}
  assert all(len(shown) == cfg.answer.passages and passages.issuperset(shown) for _, shown in said)
  assert len(asked) < len(said) <= 2 * len(asked)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_weights")
def test_wiki_qa_goes_through_every_stage_and_is_answered(tmp_path, data_folder):
  pytest.importorskip("openai")
  whole = beir.load(config.Collection(path=str(data_folder / "wiki-qa")))
  accepted = {query.text: whole.answers[query.id] for query in whole.queries if query.id in whole.answers}

  def reply(prompt: str) -> Reply:
    """Says an accepted answer where a passage that it is shown has it."""
    if "Answer the question" not in prompt:
      return by_shared_words(prompt)
    question = next(one for one in sorted(accepted, key=len, reverse=True) if one in prompt)
    return Reply(next((one for one in accepted[question] if one in prompt.replace(question, "")), "nobody knows"))

  workdir = finished("wiki_qa", tmp_path / "w", reply)
  found = checked(workdir)
  assert found.systems["bm25"]["answer@20"] > 0.8
  answered = json.loads((workdir.folder("answer") / "metrics.json").read_text())
  known = tables.load_answers(workdir.folder("collection"))
  asked = [one.id for one in tables.load_queries(workdir.folder("collection")).of_split("test") if one.id in known]
  assert answered["questions"] == len(asked) > 10 and set(answered["systems"]) == {"initial", "distilled"}
  for means in answered["systems"].values():
    # It reads what stands there, and makes up nothing.
    assert means["answer in context"] == pytest.approx(means["EM"], abs=0.11) and means["F1"] >= means["EM"]
  assert "Answers of a reader" in (workdir.root / "report.html").read_text()
