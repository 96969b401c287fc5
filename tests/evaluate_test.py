"""The evaluate stage without its models: other systems' runs, answers of some queries, one query, what is counted."""

import json
import pathlib

import pytest

from idistill_jax import config, records
from idistill_jax.data import example, tables
from idistill_jax.report import claims, gather
from idistill_jax.retrieval import runs, summary, systems
from idistill_jax.stages import evaluate as stage
from idistill_jax.workdir import artifacts

PASSAGES = tables.Passages(
  records.Passage(id=f"p{i}", title=f"Title{i}", text=f"text {i} of Paris" if i == 1 else f"text {i}")
  for i in range(120)
)
QUERIES = tables.Queries(records.Query(id=f"q{i}", text=f"question {i}", split="test") for i in range(3))
QRELS = {"q0": {"p1": 1}, "q1": {"p2": 1}}


def prepared(root: pathlib.Path) -> artifacts.Job:
  """Labels of nothing."""
  cfg = config.Config(name="t", evaluate=config.Evaluate(resamples=50))
  for folder in ("out", "collection", "labels", "train_retriever"):
    (root / folder).mkdir()
  ranking = records.RankedList(query_id="other", passage_ids=("p5", "p6"), status="complete")
  example.write_records(root / "labels", artifacts.RANKINGS, [ranking])
  taught = records.ScoredList(query_id="another", passage_ids=("p7", "p2"), scores=(2.0, 1.0))
  example.write_records(root / "train_retriever", artifacts.TEACHER, [taught])
  inputs = {name: root / name for name in ("collection", "labels", "train_retriever")}
  return artifacts.Job(cfg=cfg, out=root / "out", inputs=inputs, cache=root / "cache")


def task(job: artifacts.Job, qrels: tables.Qrels | None, accepted: dict[str, list[str]],
         table: tables.Queries = QUERIES) -> stage.Task:
  """Of the queries that are judged, or have answers where none is."""
  queries = stage.measurable(job, table, accepted if qrels is None else qrels)
  return stage.Task(passages=PASSAGES, table=table, queries=queries, qrels=qrels, accepted=accepted)


def written(job: artifacts.Job, theirs: dict[str, runs.Run], qrels: tables.Qrels, **accepted: list[str]) -> dict:
  """metrics.json of runs that hold nothing, and of `theirs`."""
  asked = task(job, qrels, accepted)
  ours = {name: {query_id: {"p9": 1.0} for query_id in asked.ids} for name in ("initial", "distilled")}
  stage.write(job, asked, ours, theirs, ann={})
  return json.loads((job.out / stage.METRICS).read_text())


def test_leakage_knows_what_is_right_for_training_queries(tmp_path):
  job, values = prepared(tmp_path), {"MRR@10": {"q0": 1.0}}
  table = tables.Queries([*QUERIES.items, records.Query(id="t", text="0, a question", split="train")])
  check = lambda **accepted: stage.leaked(job, task(job, QRELS, accepted, table),
                                          {"initial": values, "distilled": values}, "MRR@10")["near_duplicate_queries"]
  assert check() == check(q0=["Paris"]) == 0 and check(q0=["Paris"], t=["paris"]) == 1
  tables.write_qrels(tmp_path / "collection" / "qrels" / "train.tsv", {"t": {"p1": 1}})
  assert check() == 1


@pytest.mark.parametrize(("taught", "first"), [("p1", 1), ("p3", 0)], ids=["seen", "control"])
def test_without_judgements_an_answer_tells_which_passages_training_put_first(tmp_path, taught, first):
  job = prepared(tmp_path)
  example.write_records(tmp_path / "train_retriever", artifacts.TEACHER, [
    records.ScoredList(query_id="another", passage_ids=(taught, "p2"), scores=(2.0, 1.0))])
  # Of q2 nobody finds an answer, so that nothing is known of its passages.
  accepted = {"q0": ["Paris"], "q1": ["text 2"], "q2": ["Rome"]}
  ours = {"initial": runs.from_order({"q0": ["p9"], "q1": ["p2"], "q2": ["p3"]}),
          "distilled": runs.from_order({"q0": ["p9", "p1"], "q1": ["p2"], "q2": ["p4"]})}
  stage.write(job, task(job, None, accepted), ours, {}, ann={})
  metrics = json.loads((job.out / stage.METRICS).read_text())
  found = metrics["leakage"]
  assert found["right_by_answers"] and found["right_passages"] == 2, "p1 and p2, which were found"
  assert found["right_passages_first_in_training_lists"] == found["familiar_queries"] == first
  said = f"Of 2 passages that hold an answer to a test question that finds them, {1 + first} stand in a list"
  assert claims.seen(found).startswith(said)
  # Without and with the familiar one, of the two of which something is known.
  assert metrics["tests"]["distilled vs initial"]["answer@20"]["delta"] == pytest.approx(1 / 3)
  rest = found["rest"] or {"queries": None, "whole_delta": None, "of": ""}
  assert (rest["queries"], rest["whole_delta"]) == ((1, 0.5) if first else (None, None))
  assert ("over the 2 queries for which either found an answer" in rest["of"]) == bool(first)


def test_another_systems_run_is_measured_as_it_is(tmp_path):
  job = prepared(tmp_path)
  theirs = {"bing": runs.from_order({"q0": ["stranger", "p1"], "elsewhere": ["p2"]})}
  found = written(job, theirs, QRELS, q0=["Paris"])
  # Without the stranger, p1 would come first.
  assert found["systems"]["bing"]["MRR@10"] == 0.5 / 2
  assert (found["systems"]["bing"]["answer@1"], found["systems"]["bing"]["answer@5"]) == (0.0, 1.0)
  assert runs.read_trec(job.out / "runs" / "bing.trec") == {"q0": theirs["bing"]["q0"]}
  # Of what is left out by name, only q2 was a query.
  assert job.drops == {
    "query without judgements": ["q2"],
    "passage of bing that the collection lacks (counts as wrong)": ["stranger"],
    "query that bing has no results for (counts as 0)": ["q1"],
    "query without answers, which answer@k leaves out": ["q1"],
  }
  assert found["dropped_queries"] == 1
  assert set(found["tests"]) == {"distilled vs initial", "bing vs initial", "distilled vs bing"}
  assert "answer@1" not in found["tests"]["distilled vs initial"]


def test_a_run_of_other_queries_is_refused(tmp_path):
  """Before anything is searched: of what there is to search in nothing is there."""
  theirs = {"bing": runs.from_order({"Q0": ["p1"], "Q1": ["p2"]})}
  (tmp_path / "theirs").mkdir()
  runs.write_trec(tmp_path / "theirs" / "bing.trec", theirs["bing"], "bing")
  example.write_records(tmp_path, tables.PASSAGES, [records.Passage(id="p1", title="", text="x")])
  example.write_records(tmp_path, tables.QUERIES, QUERIES.items[:2])
  tables.write_qrels(tmp_path / "qrels" / "test.tsv", {"q0": {"p1": 1}, "q1": {"p1": 1}})
  cfg = config.Config(name="t", evaluate=config.Evaluate(runs=str(tmp_path / "theirs")))
  job = artifacts.Job(cfg=cfg, out=tmp_path / "out", inputs={"collection": tmp_path}, cache=tmp_path / "cache")
  with pytest.raises(runs.RunError, match=r"bing has no results for any of the 2 measured queries, such as 'q0'.*'Q0'"):
    stage.run(job)
  systems.refuse_runs_of_other_queries(theirs, ["q0", "Q1"])


def test_both_retrievers_are_fused_with_bm25():
  """What distilling changes in a hybrid is seen beside the hybrid that there was before."""
  one = lambda *order: {"q": runs.from_order({"q": order})["q"]}
  single = {"initial": one("a", "b"), "bm25": one("b", "c"), "distilled": one("c", "a")}
  found = stage.fused(single, depth=2)
  assert {name: runs.ranked(run["q"])[0] for name, run in found.items()} == {"hybrid": "c", "initial+bm25": "b"}
  assert ("hybrid", "initial+bm25") in systems.TESTS
  # What ScaNN loses is not counted among what distilling gives.
  assert [pair for pair in systems.TESTS if "distilled+scann" in pair] == [("distilled+scann", "distilled")]
  assert {*single, *found, "direct", "ranker"} <= set(systems.OURS)


def test_lists_of_the_llm_and_of_the_retrievers_teacher_are_looked_through(tmp_path):
  found = written(prepared(tmp_path), {}, {"q0": {"p6": 1, "p7": 1}, "q1": {"p2": 1, "p8": 1}})["leakage"]
  assert (found["right_passages"], found["right_passages_in_training_lists"]) == (4, 3)
  assert found["right_passages_first_in_training_lists"] == 1 and found["passage_examples"] == ["p7", "p2", "p6"]


def test_what_is_measured_without_known_passages_is_written(tmp_path):
  found = written(prepared(tmp_path), {}, {"q0": {"p6": 1, "p7": 1}, "q1": {"p2": 1, "p8": 1}})["leakage"]
  assert (found["familiar_queries"], found["familiar_examples"]) == (1, [["q0", "p7"]])
  assert found["rest"]["of"] == "distilled against initial in MRR@10" and found["rest"]["queries"] == 1
  assert found["rest"]["delta"] is None and not found["rest"]["is_lost"]


def test_the_stated_main_measure_is_what_the_run_is_about(tmp_path):
  job = prepared(tmp_path)
  job.cfg.evaluate.main_measure = "nDCG@10"
  found = written(job, {}, {"q0": {"p6": 1, "p7": 1}, "q1": {"p2": 1, "p8": 1}})
  assert found["primary"] == {"test": "distilled vs initial", "measure": "nDCG@10"}
  assert found["leakage"]["rest"]["of"] == "distilled against initial in nDCG@10"
  assert "distilled nDCG@10" in job.counts
  job.out.rename(tmp_path / "evaluate")
  assert gather.evaluation(artifacts.Workdir(tmp_path)).main_measure == "nDCG@10"


def test_a_main_measure_that_is_none_is_refused_with_those_that_are():
  assert summary.main_measure(("MRR@10", "nDCG@10", "answer@20"), None) == "MRR@10"
  assert summary.main_measure(("answer@1", "answer@20"), None) == "answer@20"
  with pytest.raises(config.ConfigError, match=r"main_measure is 'nDCG@20'; what is measured here is MRR@10, nDCG@10"):
    summary.main_measure(("MRR@10", "nDCG@10"), "nDCG@20")


def test_the_ranker_reorders_first_stages_and_hybrids_where_asked_for_all():
  assert set(systems.RERANKED["all"]) == {"initial", "bm25", "initial+bm25", "distilled", "hybrid"}
  assert set(systems.RERANKED["all"]) <= {"initial", "bm25", "direct", "distilled", *systems.FUSED}
  assert {one for pair in systems.TESTS for one in pair} <= set(systems.OURS)


def test_one_query_has_means_and_no_tests(tmp_path):
  found = written(prepared(tmp_path), {}, {"q0": {"p9": 1}})
  assert found["systems"]["distilled"]["MRR@10"] == 1.0
  assert found["tests"] == {} and found["intervals"] == {"initial": {}, "distilled": {}}


def test_answers_are_looked_for_in_texts_alone_where_there_are_some():
  run = {"found": runs.from_order({"q0": ["p3", "p1"], "q1": ["p3"]})}
  asked = lambda accepted: stage.Task(passages=PASSAGES, table=QUERIES, queries=QUERIES.items[:2], qrels=QRELS,
                                      accepted=accepted)
  measure = lambda accepted: asked(accepted).measure(run, 1)["found"]
  assert measure({"q0": ["Paris"]})["answer@5"] == {"q0": 1.0}
  assert measure({"q0": ["Title3"]})["answer@5"] == {"q0": 0.0}
  assert "answer@5" not in measure({})


@pytest.mark.parametrize(
  ("name", "said"),
  [("my run.trec", r"my run.trec: rename the file.* 'my run' is empty or holds white space"),
   ("bm25.run", r"bm25.run: another system is called 'bm25' already"),
   ("distilled.trec.gz", r"distilled.trec.gz: another system is called 'distilled' already"),
   ("good.run", r"good.run:1: expected `query Q0")],
)
def test_a_run_file_is_refused_before_anything_is_searched(tmp_path, name, said):
  """The stage has no inputs here: it reads run files before those."""
  (tmp_path / name).write_text("not a run\n")
  cfg = config.Config(name="t", evaluate=config.Evaluate(runs=str(tmp_path)))
  job = artifacts.Job(cfg=cfg, out=tmp_path / "out", inputs={}, cache=tmp_path / "cache")
  with pytest.raises(runs.RunError, match=said):
    stage.run(job)


