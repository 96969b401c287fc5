"""Which lists the ranker scores: the LLM's order in front, deeper ones, and those of queries that no LLM saw."""

import numpy as np
import pytest

from idistill_jax import config, records
from idistill_jax.data import example, tables
from idistill_jax.stages import scores, train_retriever
from idistill_jax.workdir import artifacts

PASSAGES = tables.Passages(records.Passage(id=f"p{i}", title="", text="") for i in range(6))
QUERIES = tables.Queries(records.Query(id=f"q{i}", text="", split="train") for i in range(5))


@pytest.fixture
def job(tmp_path):
  """The initial retriever finds p0, p1, p2, p3 for every query but q2; the LLM put lists of q1 and q4 in order."""
  example.write_records(tmp_path, artifacts.CANDIDATES, (
    records.CandidateList(query_id=f"q{i}", passage_ids=("p0", "p1", "p2", "p3"), scores=(4.0, 3.0, 2.0, 1.0))
    for i in (0, 1, 3, 4)))
  example.write_records(tmp_path, artifacts.RANKINGS, [
    records.RankedList(query_id="q1", passage_ids=("p5", "p1"), status="complete"),
    records.RankedList(query_id="q4", passage_ids=("p3", "p0"), status="complete")])
  cfg = config.Config(name="test", scores=config.Scores(candidates="initial", depth=3))
  return artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={"candidates": tmp_path, "labels": tmp_path,
                                                                      "scores": tmp_path})


def named(job) -> dict[str, str]:
  return {one.query_id: " ".join(PASSAGES.ids[row] for row in one.passage_rows)
          for one in scores.to_score(job, QUERIES, PASSAGES)}


def test_what_the_llm_ordered_stands_in_front_and_none_is_there_twice(job):
  assert named(job) == {"q0": "p0 p1 p2", "q1": "p5 p1 p0 p2", "q3": "p0 p1 p2", "q4": "p3 p0 p1 p2"}


def test_more_than_was_found_is_told(job, caplog):
  named(job)
  assert not caplog.text
  job.cfg.scores.depth = 100
  named(job)
  assert "not scores.depth=" in caplog.text


@pytest.mark.parametrize("depths, most", [((1, 3), None), ((1, 2), 2), ((3, 1), None)])
def test_more_than_was_found_is_told_by_the_deepest_list(job, caplog, depths, most):
  """As of another system's run."""
  example.write_records(job.out, artifacts.CANDIDATES, (
    records.CandidateList(query_id=f"q{i}", passage_ids=("p0", "p1", "p2")[:depth], scores=(3.0, 2.0, 1.0)[:depth])
    for i, depth in enumerate(depths)))
  named(job)
  assert (f"the first {most} passages" in caplog.text) if most else not caplog.text


def test_equal_scores_stand_in_the_order_of_searches():
  found = scores._best_first("q0", ["p0", "p2", "p1"], np.float32([0.5, 0.5, 0.7]))
  assert list(zip(found.passage_ids, found.scores, strict=True)) == [("p1", np.float32(0.7)), ("p2", 0.5), ("p0", 0.5)]


@pytest.mark.parametrize("lists, most, wanted", [
  ("all", 1, ["q0", "q1", "q4"]), ("all", 0, ["q1", "q4"]), ("unlabelled", None, ["q0", "q3"]),
  ("unlabelled", 1, ["q0"]), ("unlabelled", 0, [])])
def test_a_config_says_whose_lists_are_scored(job, lists, most, wanted):
  job.cfg.scores.lists, job.cfg.scores.unlabelled_queries = lists, most
  assert list(named(job)) == wanted


def test_both_teachers_have_one_list_a_query_the_llms_where_it_has_one(job):
  example.write_records(job.out, artifacts.SCORES, (
    records.ScoredList(query_id=f"q{i}", passage_ids=("p0", "p1"), scores=(8.0, 2.0)) for i in range(5)))
  job.cfg.retriever.order_temperature, job.cfg.retriever.teacher_temperature = 0.5, 4.0
  found = [one for one in train_retriever.TEACHERS["both"](job) if one is not None]
  assert [(one.query_id, one.passage_ids, one.scores) for one in found] == [
    ("q1", ("p5", "p1"), (0.0, -2.0)), ("q4", ("p3", "p0"), (0.0, -2.0)),
    *((query_id, ("p0", "p1"), (2.0, 0.5)) for query_id in ("q0", "q2", "q3"))]
