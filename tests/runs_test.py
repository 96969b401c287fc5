"""Runs survive their file, are ordered as trec_eval orders them, and a broken line is named."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax.retrieval import hits, runs

pytrec_eval = pytest.importorskip("pytrec_eval", reason="the extra `retrieval` is not installed")

# Few values, so that ties are frequent; two of them differ beyond float32 only.
SCORES = st.sampled_from([0.0, 1.0, 1.0 + 1e-12, 1.0 + 1e-6, -2.5, 1e-30])
RESULTS = st.dictionaries(st.text("abAB1é_.", min_size=1, max_size=3), SCORES, min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(RESULTS)
def test_the_order_is_trec_evals(results):
  """The reciprocal rank that trec_eval gives a passage says where it ranks it."""
  for place, passage_id in enumerate(runs.ranked(results), start=1):
    evaluator = pytrec_eval.RelevanceEvaluator({"q": {passage_id: 1}}, {"recip_rank"})
    assert evaluator.evaluate({"q": results})["q"]["recip_rank"] == pytest.approx(1 / place, abs=1e-12)


def test_scores_that_differ_beyond_float32_are_tied():
  assert runs.ranked({"a": 1.0 + 1e-12, "b": 1.0}) == ["b", "a"]
  assert runs.ranked({"a": 1.0 + 1e-6, "b": 1.0}) == ["a", "b"]


@settings(max_examples=30, deadline=None)
@given(run=st.dictionaries(st.sampled_from(["q1", "q2", "ü"]), RESULTS))
def test_a_run_survives_its_file(run, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "deeper" / "one.trec"
  runs.write_trec(path, run, "tag")
  assert runs.read_trec(path) == run


def test_the_file_is_trecs(tmp_path):
  runs.write_trec(tmp_path / "r", {"q": {"a": 1.0, "b": 2.5, "c": 1.0}}, "me")
  assert (tmp_path / "r").read_text() == "q Q0 b 1 2.5 me\nq Q0 c 2 1.0 me\nq Q0 a 3 1.0 me\n"


GOOD = "q Q0 a 1 2.0 t\n"


@pytest.mark.parametrize(
  ("second", "message"),
  [
    ("q Q0 b 2 1.0\n", r"r:2: expected .* found 5 fields"),
    ("q Q0 b 2 one t\n", r"r:2: the score 'one' is no number"),
    ("q Q0 b 2 nan t\n", r"r:2: the score 'nan' is not finite"),
    ("q Q0 b 2 -inf t\n", r"r:2: the score '-inf' is not finite"),
    ("q Q0 a 2 1.0 t\n", r"r:2: query q lists passage a a second time"),
  ],
)
def test_a_broken_line_is_named(second, message, tmp_path):
  (tmp_path / "r").write_text(GOOD + second)
  with pytest.raises(runs.RunError, match=message):
    runs.read_trec(tmp_path / "r")


def test_a_byte_order_mark_blank_lines_and_gzip_are_read(tmp_path):
  text = "\ufeff" + GOOD + "\r\n\n  \nq Q0 b 2 1.0 t\n\n"
  (tmp_path / "r.txt").write_text(text)
  packed = gzip.compress(text.encode())
  (tmp_path / "r.run.gz").write_bytes(packed)
  assert runs.read_trec(tmp_path / "r.txt") == runs.read_trec(tmp_path / "r.run.gz") == {"q": {"a": 2.0, "b": 1.0}}
  names = {"r.txt": "r", "my.r.run.gz": "my.r", "r.csv": None, "r.gz": None}
  assert {name: runs.system_of(tmp_path / name) for name in names} == names
  for damaged in (packed[:-9], b"no gzip"):
    (tmp_path / "r.run.gz").write_bytes(damaged)
    with pytest.raises(runs.RunError, match=r"r\.run\.gz:\d: cannot be read further: .*; fetch the gzip file again"):
      runs.read_trec(tmp_path / "r.run.gz")
  (tmp_path / "r.txt").write_bytes(GOOD.encode() + b"q Q0 \xff 2 1.0 t\n")
  with pytest.raises(runs.RunError, match=r"r\.txt:2: not UTF-8"):
    runs.read_trec(tmp_path / "r.txt")


@pytest.mark.parametrize(
  ("run", "tag", "message"),
  [
    ({"a query": {"p": 1.0}}, "t", "the query id 'a query'"),
    ({"q": {"p 1": 1.0}}, "t", "query 'q': the passage id 'p 1'"),
    ({"q": {"": 1.0}}, "t", "the passage id ''"),
    ({"q": {"p": 1.0}}, "", "the tag ''"),
    ({"q": {"p": float("nan")}}, "t", "query 'q', passage 'p': the score nan"),
  ],
)
def test_what_trecs_form_cannot_hold_is_refused_and_nothing_written(run, tag, message, tmp_path):
  with pytest.raises(runs.RunError, match=message):
    runs.write_trec(tmp_path / "r", run, tag)
  assert not (tmp_path / "r").exists()


def test_from_hits_leaves_out_what_did_not_match():
  found = hits.Hits(
    rows=np.array([[2, 0], [1, 0]], np.int32),
    scores=np.array([[3, 2], [1, 0]], np.float32),
    found=np.array([2, 0], np.int32),
  )
  assert runs.from_hits(["q1", "q2"], ["a", "b", "c"], found) == {"q1": {"c": 3.0, "a": 2.0}, "q2": {}}
  with pytest.raises(runs.RunError, match="1 query ids for hits of 2"):
    runs.from_hits(["q1"], ["a", "b", "c"], found)
  with pytest.raises(runs.RunError, match="'q1' occurs more than once"):
    runs.from_hits(["q1", "q1"], ["a", "b", "c"], found)


def test_from_order_keeps_the_order():
  order = ["b", "z", "a", "y"]
  assert runs.ranked(runs.from_order({"q": order})["q"]) == order
  with pytest.raises(runs.RunError, match="holds a passage twice"):
    runs.from_order({"q": ["a", "a"]})


def test_fusion_is_the_sum_of_reciprocal_ranks():
  one, other = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}, {"q": {"c": 9.0, "a": 8.0}, "r": {"x": 1.0}}
  fused = runs.fused([one, other], depth=2)
  assert fused["q"] == {"a": pytest.approx(1 / 61 + 1 / 62), "c": pytest.approx(1 / 63 + 1 / 61)}
  assert fused["r"] == {"x": pytest.approx(1 / 61)}
  assert runs.ranked(runs.fused([one], depth=3)["q"]) == ["a", "b", "c"]
