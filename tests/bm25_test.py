"""BM25: its numbers on a public collection, ties, and what matches nothing."""

import gzip
import json
import math
import os
import pathlib
import sys
import typing
import unicodedata

import numpy as np
import pytest

from idistill_jax import config
from idistill_jax.data import tables
from idistill_jax.retrieval import bm25, measures, runs

pytest.importorskip("bm25s", reason="the extra `retrieval` is not installed")

TEXTS = ["merge two sorted lists", "sorting a list of numbers", "open a file for reading", "the and of"]
IDS = ["a", "b", "c", "d"]


def test_stems_and_stop_words():
  found = bm25.Bm25(TEXTS, IDS, "english").search(["the sorted listing"], 4)
  assert found.found.tolist() == [2]
  assert {IDS[row] for row in found.rows[0, :2]} == {"a", "b"}


def found_of(language: str, passages: list[str], query: str) -> list[int]:
  """Rows of the passages that share a term with the query, best first."""
  found = bm25.Bm25(passages, [str(row) for row in range(len(passages))], language).search([query], len(passages))
  return found.rows[0, : found.found[0]].tolist()


@pytest.mark.parametrize(("language", "passages", "query", "english", "rows"), [
  ("cjk", ["北京是中国的首都。", "猫喜欢吃鱼。", "iPhone15手机很贵"], "中国首都", [], [0]),
  ("cjk", ["東京タワーの高さは333mです", "ﾊﾟﾝを焼く", "京都"], "東京タワー", [], [0]),
  ("cjk", ["한국의 수도는 서울이다", "빵을 굽다"], "서울은 어디", [], [0]),
  ("cjk", ["iPhone15手机很贵", "a phone"], "iphone15", [], [0]),
  ("cjk", ["パン を焼く", "x"], "ﾊﾟﾝ", [], [0]),
  ("french", ["Des chevaux mangeaient dans l'herbe", "La capitale"], "un cheval", [], [0]),
  ("french", ["Des chevaux mangeaient dans l'herbe", "La capitale"], "dans", [0], []),
  ("german", ["Die Häuser der Stadt", "Ein Buch"], "das Haus", [], [0]),
  ("hindi", ["लड़कियाँ किताबें पढ़ती हैं", "दिल्ली भारत की राजधानी है"], "किताब", [], [0]),
  ("words", ["Hà Nội là thủ đô", "bánh mì"], unicodedata.normalize("NFD", "thủ đô"), [], [0]),
])
def test_other_languages_are_read_as_their_own(language, passages, query, english, rows):
  """The control: as English they find nothing, or what shares a stop word."""
  assert found_of("english", passages, query) == english
  assert found_of(language, passages, query) == rows


def test_every_language_of_the_config_can_be_read():
  for language in typing.get_args(typing.get_type_hints(config.Evaluate)["bm25_language"]):
    assert found_of(language, ["abcdef xyz", "123 456"], "abcdef") == [0]


def test_scores_are_lucenes_formula():
  """ln(1 + (N - df + 0.5) / (df + 0.5)) tf / (tf + k1 (1 - b + b length / mean length))."""
  texts = ["apple pear", "apple apple plum quince", "grape"]
  found = bm25.Bm25(texts, ["a", "b", "c"], "english").search(["apple"], 3)
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
  found = bm25.Bm25(texts, ids, "english").search(["zebra", "zebra"], 3)
  assert [[ids[row] for row in rows] for rows in found.rows] == [["f", "e", "d"]] * 2


def test_what_matches_nothing_is_not_in_the_run():
  found = bm25.Bm25(TEXTS, IDS, "english").search(["xylophone", "the", "", "file"], 3)
  assert found.found.tolist() == [0, 0, 0, 1]
  assert found.rows.shape == (4, 3)
  run = runs.from_hits(["q1", "q2", "q3", "q4"], IDS, found)
  assert [list(results) for results in run.values()] == [[], [], [], ["c"]]


def test_deeper_than_the_corpus_and_no_queries():
  index = bm25.Bm25(TEXTS, IDS, "english")
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
    bm25.Bm25(texts, ids, "english")


def test_k_of_zero():
  with pytest.raises(ValueError, match="k must be"):
    bm25.Bm25(TEXTS, IDS, "english").search(["file"], 0)


def test_a_missing_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "Stemmer", None)
  with pytest.raises(bm25.Bm25UnavailableError, match=r"Stemmer.*source launch/env\.sh retrieval"):
    bm25.Bm25(TEXTS, IDS, "english")


def test_scifact_as_published():
  """Published BM25 numbers on SciFact lie between 0.665 and 0.679 nDCG@10; BUILD.md has this one."""
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
  index = bm25.Bm25([f"{one['title']} {one['text']}" for one in corpus], ids, "english")
  found = index.search([queries[query_id] for query_id in qrels], 100)
  values = measures.per_query(qrels, runs.from_hits(list(qrels), ids, found))
  assert len(values["nDCG@10"]) == 300
  assert measures.mean(values["nDCG@10"]) == pytest.approx(0.6762, abs=5e-5)
  assert np.isfinite(found.scores).all()
