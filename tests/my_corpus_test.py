"""A corpus is enough, end to end: a JSONL file in, a retriever and its report out, an LLM on 127.0.0.1 for all."""

import gzip
import json
import os
import pathlib
import re
import subprocess
import sys

import jobs
import pytest
from loopback_llm import LoopbackLLM, Reply

from idistill_jax import config
from idistill_jax.data import tables
from idistill_jax.data.corpora import stdlib
from idistill_jax.llm import parse
from idistill_jax.llm import prompt as prompt_lib
from idistill_jax.stages import collection
from idistill_jax.workdir import artifacts

ANSWERS = pathlib.Path(__file__).resolve().parents[1] / "configs" / "my_corpus_answers.jsonl"


@pytest.mark.slow
def test_file_in_better_search_model_out(tmp_path, tiny_weights):
  pytest.importorskip("openai")
  texts = [json.loads(line) for line in (stdlib.QUICKSTART / "queries.jsonl").read_text().splitlines()]
  said = {query["_id"]: query["text"] for query in texts}
  sources = tables.read_qrels(stdlib.QUICKSTART / "qrels" / "train_sources.tsv")
  written = {passage_id: said[query_id] for query_id, judged in sources.items() for passage_id in judged}
  passages = [passage for passage in stdlib.extract()[0] if passage.id in written][:200]
  with open(tmp_path / "corpus.jsonl", "w") as out:
    for one in passages:
      out.write(json.dumps({"_id": one.id, "title": one.title, "text": one.text}) + "\n")

  def reply(number: int, prompt: str) -> Reply:
    """The recorded query of the passage shown, or the passages by words shared with the query."""
    if (asked := re.search(r"<query>\n(.*)\n</query>", prompt)) is None:
      shown = re.search(r"<passage>\n(.*)\n</passage>", prompt)[1]
      found = next(one for one in passages if shown.startswith(one.title))
      return Reply(written[found.id])
    words = set(asked[1].lower().split())
    inside = prompt.partition("\n<passages>\n")[2].partition("\n</passages>")[0]
    shown = re.findall(r"^\[(\d+)\] (.*)$", inside, re.MULTILINE)
    order = sorted(shown, key=lambda one: -len(words & set(one[1].lower().split())))
    return Reply(" > ".join(f"[{number}]" for number, _ in order))

  with LoopbackLLM(reply) as server:
    command = [
      sys.executable, "-m", "idistill_jax.pipeline", "--config=configs/my_corpus.py:tiny",
      f"--workdir={tmp_path / 'w'}", f"--config.collection.path={tmp_path / 'corpus.jsonl'}",
      "--config.labels.provider=openai", f"--config.labels.base_url={server.url}/v1", "--config.labels.lists=60",
      "--config.queries.held_out=0.4",
    ]  # fmt: skip
    done = subprocess.run(command, env=os.environ | jobs.ONE_DEVICE, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
  workdir = artifacts.Workdir(tmp_path / "w")
  assert workdir.manifest("queries")["counts"]["kept"] > 40
  assert workdir.manifest("labels")["counts"]["complete"] > 20
  # The ranker scores the list of every training query, labelled or not.
  assert workdir.manifest("scores")["counts"]["lists"] >= workdir.manifest("labels")["counts"]["lists"] > 20
  metrics = json.loads((workdir.folder("evaluate") / "metrics.json").read_text())
  assert metrics["queries"] > 3 and "distilled" in metrics["systems"]
  assert (tmp_path / "w" / "report.html").exists() and (workdir.folder("export") / "retriever").is_dir()


def test_the_recording_answers_what_is_asked_of_scifacts_abstracts(data_folder):
  with gzip.open(data_folder / "scifact" / "corpus.jsonl.gz") as file:
    ids = {json.loads(line)["_id"] for line in file}
  said = [json.loads(line) for line in ANSWERS.read_text().splitlines()]
  assert {one for answer in said for one in answer["candidates"]} <= ids
  queries = [answer for answer in said if answer["query_id"] in prompt_lib.QUERY_STYLES]
  written = {(answer["query_id"], *answer["candidates"]) for answer in queries}
  assert len(written) == len(queries) == 2100 and len({passage for _, passage in written}) == 700
  lists = [answer for answer in said if answer["query_id"] not in prompt_lib.QUERY_STYLES]
  first, shown_first = 0, 0
  for answer in lists:
    own, read = answer["query_id"].partition("/")[2], parse.parse(answer["response"], 20)
    assert read.status == "complete"
    first += answer["candidates"][read.order[0]] == own
    shown_first += answer["candidates"][0] == own
  # Which passage a query was written for is not told: whoever answered has read.
  assert len(lists) == 1000 and first > 950 and shown_first < 70


@pytest.mark.parametrize("queries", [{}, {"dev": 1}, {"dev": 1, "test": 2}])
def test_written_queries_that_are_all_held_out_are_not_answered_with_what_cannot_help(queries):
  said = collection.no_training_queries(queries, config.Config(name="x", queries=config.Queries(passages=700)))
  assert "queries/statuses.json" in said and "raise --config.queries.passages" in said
  assert "train_fraction" not in said and "add more" not in said
