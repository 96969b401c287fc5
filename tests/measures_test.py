"""Measures are trec_eval's, on real runs, with ties and with queries that found nothing."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from idistill_jax.data import tables
from idistill_jax.retrieval import bm25, measures, runs

pytrec_eval = pytest.importorskip("pytrec_eval", reason="the extra `retrieval` is not installed")

TREC_NAMES = {
  "nDCG@10": "ndcg_cut_10",
  "hit@1": "success_1",
  "hit@10": "success_10",
  "recall@20": "recall_20",
  "recall@100": "recall_100",
}


def folder(name: str) -> pathlib.Path:
  root = os.environ.get("IDISTILL_DATA")
  if not root:
    pytest.skip("IDISTILL_DATA does not name a folder of collections")
  return pathlib.Path(root) / name


def json_lines(path: pathlib.Path) -> list[dict]:
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def assert_equals_trec_eval(qrels, run, relevant_from=1):
  ours = measures.per_query(qrels, run, relevant_from=relevant_from)
  evaluator = pytrec_eval.RelevanceEvaluator(
    qrels, {*TREC_NAMES.values(), "recip_rank"}, relevance_level=relevant_from
  )
  theirs = evaluator.evaluate(run)
  for query_id in qrels:
    values = theirs.get(query_id)
    for name, trec_name in TREC_NAMES.items():
      assert ours[name][query_id] == (values[trec_name] if values else 0.0), (name, query_id)
    # Reciprocal rank cut at ten, written as arithmetic on the uncut one.
    whole = values["recip_rank"] if values else 0.0
    assert ours["MRR@10"][query_id] == (whole if whole >= 0.1 else 0.0), query_id
  assert all(list(values) == list(qrels) for values in ours.values())
  return ours


def test_scifact_with_ties_and_missing_queries():
  root = folder("scifact")
  corpus = json_lines(root / "corpus.jsonl.gz")
  queries = {one["_id"]: one["text"] for one in json_lines(root / "queries.jsonl.gz")}
  qrels = tables.read_qrels(root / "qrels" / "test.tsv")
  ids = [one["_id"] for one in corpus]
  found = bm25.Bm25([one["title"] for one in corpus], ids, "english").search([queries[one] for one in qrels], 100)
  run = runs.from_hits(list(qrels), ids, found)
  # Scores rounded to whole numbers tie by the dozen, and the first twenty queries are gone.
  rounded = {
    query_id: {one: float(round(score)) for one, score in results.items()}
    for query_id, results in run.items()
  }
  kept = dict(list(rounded.items())[20:])
  whole = assert_equals_trec_eval(qrels, run)
  coarse = assert_equals_trec_eval(qrels, rounded)
  part = assert_equals_trec_eval(qrels, kept)
  assert coarse["MRR@10"] != whole["MRR@10"]
  assert 0 < measures.mean(part["nDCG@10"]) < measures.mean(coarse["nDCG@10"])


def test_graded_judgements_of_trec_dl():
  root = folder("trec-dl")
  qrels = tables.read_qrels(root / "qrels" / "dl20.tsv")
  rankings = {one["qid"]: one["ranking"] for one in json_lines(root / "llm_rankings.jsonl.gz")}
  run = runs.from_order(rankings)
  lenient = assert_equals_trec_eval(qrels, run)
  strict = assert_equals_trec_eval(qrels, run, relevant_from=2)
  assert measures.mean(strict["MRR@10"]) < measures.mean(lenient["MRR@10"])
  assert strict["nDCG@10"] == lenient["nDCG@10"]
  # Scores that tie by threes, and the first ten queries are gone.
  tied = {query_id: {one: float(score // 3) for one, score in results.items()} for query_id, results in run.items()}
  coarse = assert_equals_trec_eval(qrels, tied)
  assert coarse["nDCG@10"] != lenient["nDCG@10"]
  part = assert_equals_trec_eval(qrels, dict(list(tied.items())[10:]))
  assert 0 < measures.mean(part["nDCG@10"]) < measures.mean(coarse["nDCG@10"])
  # Reversed lists are worse: the numbers depend on the order.
  backwards = measures.per_query(
    qrels, runs.from_order({one: order[::-1] for one, order in rankings.items()})
  )
  assert measures.mean(backwards["nDCG@10"]) < measures.mean(lenient["nDCG@10"]) - 0.1


def test_values_by_hand():
  qrels = {"q": {"b": 1, "z": 1}}
  found = measures.per_query(qrels, {"q": {"a": 3.0, "b": 2.0, "c": 1.0}})
  ideal = 1 + 1 / np.log2(3)
  assert {name: values["q"] for name, values in found.items()} == pytest.approx(
    {
      "MRR@10": 0.5,
      "nDCG@10": 1 / np.log2(3) / ideal,
      "hit@1": 0,
      "hit@10": 1,
      "recall@20": 0.5,
      "recall@100": 0.5,
    }
  )


def test_nothing_found_counts_as_zero():
  qrels = {"found": {"a": 1}, "empty": {"a": 1}, "missing": {"a": 1}, "nothing relevant": {"a": 0}}
  run = {"found": {"a": 1.0}, "empty": {}, "nothing relevant": {"a": 1.0}, "unjudged": {"a": 1.0}}
  for values in measures.per_query(qrels, run).values():
    assert values == {"found": 1.0, "empty": 0.0, "missing": 0.0, "nothing relevant": 0.0}
    assert measures.mean(values) == 0.25
  nothing = measures.per_query(qrels, {})
  assert all(set(values.values()) == {0.0} for values in nothing.values())


def test_ties_at_the_cut_off_of_mrr():
  """Twelve passages tie: trec_eval ranks the greatest id first, and "b" eleventh."""
  run = {"q": {letter: 1.0 for letter in "abcdefghijkl"}}
  assert measures.per_query({"q": {"l": 1}}, run)["MRR@10"] == {"q": 1.0}
  assert measures.per_query({"q": {"c": 1}}, run)["MRR@10"]["q"] == pytest.approx(0.1)
  assert measures.per_query({"q": {"b": 1}}, run)["MRR@10"] == {"q": 0.0}


def test_several_cut_offs_of_one_measure():
  run, qrels = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"c": 1}}
  found = measures.per_query(qrels, run, ["MRR@2", "MRR@3", "hit@2", "hit@3"])
  assert [values["q"] for values in found.values()] == pytest.approx([0, 1 / 3, 0, 1])


@pytest.mark.parametrize("grades, said", [
  ({"a": 1, "b": 2}, r"the highest grade .* is 2, .*: set --config.evaluate.relevant_from=2"),
  ({"a": 0, "b": -1}, r"the highest grade .* is 0, .*: take judgements that call anything relevant")])
def test_grades_of_which_none_counts_as_relevant(grades, said):
  measures.check_grades({"q": {"a": 3}, "r": grades}, 3)
  with pytest.raises(measures.MeasureError, match=said):
    measures.check_grades({"q": grades}, 3)


JUNK = """
import random
from idistill_jax.retrieval import measures
rng, docs = random.Random(1), [f"d{i}" for i in range(30)]
some = lambda grades, most: {one: rng.choice(grades) for one in rng.sample(docs, rng.randint(1, most))}
for _ in range(300):
  qrels = {"a": some((0, 1, 2), 12), "junk": some((-2, -3), 12), "z": some((-2, 0, 1), 12)}
  found = measures.per_query(qrels, {one: some((0.1, 0.5, 0.9), 25) for one in qrels})
  assert all(of["junk"] == 0 for of in found.values())
print("measured")
"""


def test_a_query_of_which_only_junk_was_judged_measures_as_zero():
  """In a process of its own: trec_eval's code would write beyond its memory, and end it or not."""
  done = subprocess.run([sys.executable, "-c", JUNK], capture_output=True, text=True)
  assert done.stdout == "measured\n", done.stderr[-2000:]


@pytest.mark.parametrize("name", ["mrr@10", "MRR@0", "MRR", "nDCG@ten", "AP"])
def test_an_unknown_measure(name):
  with pytest.raises(measures.MeasureError, match="unknown measure"):
    measures.per_query({"q": {"a": 1}}, {}, [name])


def test_bad_input():
  with pytest.raises(measures.MeasureError, match="no judgements"):
    measures.per_query({}, {"q": {"a": 1.0}})
  with pytest.raises(runs.RunError, match="query 'q', passage 'a': the score nan"):
    measures.per_query({"q": {"a": 1}}, {"q": {"a": float("nan")}})
  with pytest.raises(measures.MeasureError, match="no queries"):
    measures.mean({})
