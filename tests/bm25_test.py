"""BM25: its numbers on a public collection, ties, and what matches nothing."""

import gzip
import json
import math
import os
import pathlib
import sys

import numpy as np
import pytest

from idistill_jax.data import tables
from idistill_jax.retrieval import bm25, measures, runs

pytest.importorskip("bm25s", reason="the extra `retrieval` is not installed")

TEXTS = ["merge two sorted lists", "sorting a list of numbers", "open a file for reading", "the and of"]
IDS = ["a", "b", "c", "d"]


def test_stems_and_stop_words():
  found = bm25.Bm25(TEXTS, IDS).search(["the sorted listing"], 4)
  assert found.found.tolist() == [2]
  assert {IDS[row] for row in found.rows[0, :2]} == {"a", "b"}


def test_scores_are_lucenes_formula():
  """ln(1 + (N - df + 0.5) / (df + 0.5)) tf / (tf + k1 (1 - b + b length / mean length))."""
  texts = ["apple pear", "apple apple plum quince", "grape"]
  found = bm25.Bm25(texts, ["a", "b", "c"]).search(["apple"], 3)
  idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
  expected = {
    row: idf * tf / (tf + bm25.K1 * (1 - bm25.B + bm25.B * length / (7 / 3)))
    for row, tf, length in ((0, 1, 2), (1, 2, 4))
  }
  assert found.found.tolist() == [2]
  for row, score in zip(found.rows[0, :2].tolist(), found.scores[0, :2].tolist(), strict=True):
    assert score == pytest.approx(expected[row], rel=1e-5)


def test_ties_follow_the_ids_also_at_the_cut():
  texts, ids = ["zebra"] * 6 + ["other words"], ["c", "f", "a", "e", "b", "d", "g"]
  found = bm25.Bm25(texts, ids).search(["zebra", "zebra"], 3)
  assert [[ids[row] for row in rows] for rows in found.rows] == [["f", "e", "d"]] * 2


def test_what_matches_nothing_is_not_in_the_run():
  found = bm25.Bm25(TEXTS, IDS).search(["xylophone", "the", "", "file"], 3)
  assert found.found.tolist() == [0, 0, 0, 1]
  assert found.rows.shape == (4, 3)
  run = runs.from_hits(["q1", "q2", "q3", "q4"], IDS, found)
  assert [list(results) for results in run.values()] == [[], [], [], ["c"]]


def test_deeper_than_the_corpus_and_no_queries():
  index = bm25.Bm25(TEXTS, IDS)
  assert index.search(["file"], 10).rows.shape == (1, 4)
  assert index.search([], 2).rows.shape == (0, 2)


@pytest.mark.parametrize(
  ("texts", "ids", "message"),
  [
    ([], [], "no passages"),
    (["a text"], ["a", "b"], "1 passage texts but 2"),
    (["the", "of"], ["a", "b"], "stop word"),
    (["one text", "another"], ["a", "a"], "'a' occurs"),
  ],
)
def test_a_corpus_that_cannot_be_searched(texts, ids, message):
  with pytest.raises(ValueError, match=message):
    bm25.Bm25(texts, ids)


def test_k_of_zero():
  with pytest.raises(ValueError, match="k must be"):
    bm25.Bm25(TEXTS, IDS).search(["file"], 0)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "Stemmer", None)
  with pytest.raises(bm25.Bm25UnavailableError, match=r"Stemmer.*source launch/env\.sh retrieval"):
    bm25.Bm25(TEXTS, IDS)


def test_scifact_as_published():
  """Published BM25 numbers on SciFact lie between 0.665 and 0.679 nDCG@10."""
  root = os.environ.get("IDISTILL_DATA")
  if not root:
    pytest.skip("IDISTILL_DATA does not name a folder of collections")
  folder = pathlib.Path(root) / "scifact"
  with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
    corpus = [json.loads(line) for line in lines]
  with gzip.open(folder / "queries.jsonl.gz", "rt", encoding="utf-8") as lines:
    queries = {one["_id"]: one["text"] for one in map(json.loads, lines)}
  qrels = tables.read_qrels(folder / "qrels" / "test.tsv")
  ids = [one["_id"] for one in corpus]
  index = bm25.Bm25([f"{one['title']} {one['text']}" for one in corpus], ids)
  found = index.search([queries[query_id] for query_id in qrels], 100)
  values = measures.per_query(qrels, runs.from_hits(list(qrels), ids, found))
  assert len(values["nDCG@10"]) == 300
  assert 0.665 <= measures.mean(values["nDCG@10"]) <= 0.679
  assert np.isfinite(found.scores).all()
