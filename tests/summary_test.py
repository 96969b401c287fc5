"""What metrics.json and per_query.csv say is what was measured."""

import csv
import json

import pytest

from idistill_jax.retrieval import measures, significance, summary

MEASURED = {
  "before": {"MRR@10": {"q1": 0.5, "q2": 0.0, "q3": 1.0}, "hit@1": {"q1": 0.0, "q2": 0.0, "q3": 1.0}},
  "after": {"MRR@10": {"q1": 1.0, "q2": 0.25, "q3": 1.0}, "hit@1": {"q1": 1.0, "q2": 0.0, "q3": 1.0}},
}


def test_summary_holds_means_intervals_and_tests():
  said = json.loads(json.dumps(summary.summarise(MEASURED, [("after", "before")], resamples=200)))
  assert said["measures"] == ["MRR@10", "hit@1"]
  assert said["systems"]["after"]["MRR@10"] == pytest.approx(0.75)
  for system, values in MEASURED.items():
    low, high = said["intervals"][system]["MRR@10"]
    assert low <= measures.mean(values["MRR@10"]) <= high
  assert set(said["tests"]) == {"after vs before"}
  expected = significance.compare(MEASURED["after"]["hit@1"], MEASURED["before"]["hit@1"], resamples=200)
  assert said["tests"]["after vs before"]["hit@1"] == {**expected.as_json(), "p_holm": expected.p}
  assert said["tests"]["after vs before"]["MRR@10"]["delta"] == pytest.approx(0.25)


def test_per_query_has_a_line_for_each_query_and_system(tmp_path):
  summary.write_per_query(tmp_path / "x.csv", MEASURED)
  with open(tmp_path / "x.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [(row["query_id"], row["system"]) for row in rows] == [
    (query, system) for query in ("q1", "q2", "q3") for system in ("before", "after")
  ]
  assert {(row["query_id"], row["system"]): float(row["MRR@10"]) for row in rows} == {
    (query, system): value for system, values in MEASURED.items() for query, value in values["MRR@10"].items()
  }
  assert summary.read_query_ids(tmp_path / "x.csv") == {"q1", "q2", "q3"}


def test_each_measure_is_corrected_for_the_number_of_pairs():
  measured = {**MEASURED, "other": MEASURED["before"]}
  said = summary.summarise(measured, [("after", "before"), ("other", "before")], resamples=200)
  alone, both = (
    tests["after vs before"]["MRR@10"]
    for tests in (summary.summarise(MEASURED, [("after", "before")], resamples=200)["tests"], said["tests"])
  )
  assert both["p"] == alone["p"] and both["p_holm"] == min(1.0, 2 * alone["p"])


def test_the_primary_test_stands_by_its_own_p_however_many_others_there_are():
  measured = {**MEASURED, "other": MEASURED["before"], "one more": MEASURED["before"]}
  pairs = [("after", "before"), ("other", "before"), ("after", "one more")]
  said = summary.summarise(measured, pairs, 200, (pairs[0], "MRR@10"))
  assert said["primary"] == {"test": "after vs before", "measure": "MRR@10"}
  p, p_holm = ({pair: of["MRR@10"][name] for pair, of in said["tests"].items()} for name in ("p", "p_holm"))
  assert p_holm["after vs before"] == p["after vs before"]
  others = ["other vs before", "after vs one more"]
  assert [p_holm[one] for one in others] == significance.holm([p[one] for one in others])
  # On other measures it is one of many.
  assert {of["hit@1"]["p_holm"] for of in said["tests"].values()} == {1.0}


def test_parquet_holds_the_same(tmp_path):
  parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `datasets` is not installed")
  summary.write_parquet(tmp_path / "x.parquet", MEASURED)
  assert parquet.read_table(tmp_path / "x.parquet").to_pylist() == list(summary.rows(MEASURED))
