"""Several workdirs in one table: what they differ in, and tests that hold them side by side."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import report_workdir

from idistill_jax import artifacts, records
from idistill_jax.report import compare, gather, page
from idistill_jax.retrieval import significance

PASSAGES = [records.Passage(id=f"p{i}", title="", text=f"text {i}") for i in range(120)]
QUERIES = [records.Query(id=f"q{i}", text=f"question {i}", split="test") for i in range(40)]
QRELS = {query.id: {f"p{i}": 1} for i, query in enumerate(QUERIES)}


def workdir(root: pathlib.Path, lists: int, distilled: float, queries: int = 40) -> artifacts.Workdir:
  some = QUERIES[:queries]
  quality = {**report_workdir.QUALITY, "distilled": distilled}
  made = report_workdir.build(root, PASSAGES, some, {one.id: QRELS[one.id] for one in some}, quality)
  config = json.loads((root / "config.json").read_text())
  config["labels"]["lists"], config["name"] = lists, f"<b>{root.name}"
  (root / "config.json").write_text(json.dumps(config))
  return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[artifacts.Workdir]:
  root = tmp_path_factory.mktemp("runs")
  return [workdir(root / f"lists{lists}", lists, mean) for lists, mean in ((100, 20.0), (300, 8.0), (1000, 3.0))]


def test_settings_in_which_they_differ_and_paired_tests(runs):
  found = compare.gather_runs([run.root for run in runs], resamples=500)
  assert found.settings == ("labels.lists",) and found.main == "MRR@10"
  assert [run.settings["labels.lists"] for run in found.runs] == ["100", "300", "1000"]
  first, _, last = found.runs
  assert first.test is None and last.test is not None
  per_query = [gather.evaluation(run).per_query["distilled"] for run in (runs[2], runs[0])]
  assert last.test == significance.compare(*per_query, resamples=500)
  assert last.test.delta > 0.1 and last.test.p < 0.01
  header, *lines = compare.rows(found)
  assert header[:4] == ["run", "labels.lists", "initial MRR@10", "MRR@10"] and len(lines) == 3
  assert lines[2][:2] == ["lists1000", "1000"] and lines[0][-3:-1] == ["–", "–"]


def test_runs_on_other_queries_are_not_tested_against_each_other(runs, tmp_path):
  other = workdir(tmp_path / "fewer", 100, 5.0, queries=30)
  found = compare.gather_runs([runs[0].root, other.root], resamples=100)
  assert found.runs[1].test is None
  # The control: the same queries are.
  assert compare.gather_runs([runs[0].root, runs[1].root], resamples=100).runs[1].test is not None


def test_a_run_without_measures_is_named(runs, tmp_path):
  with pytest.raises(gather.ReportError, match="nothing: no distilled retriever has been measured there"):
    compare.gather_runs([runs[0].root, tmp_path / "nothing"])


def test_page_names_the_best_and_escapes(runs, tmp_path):
  hostile = workdir(tmp_path / "<img src=x>", 5, 2.0)
  text = page.render_comparison(compare.gather_runs([*(run.root for run in runs), hostile.root], resamples=100))
  assert "<img" not in text and "&lt;img" in text and "has the highest MRR@10" in text
  assert text.count("<tr>") == 5 and "<svg" in text and "<script" not in text


def test_the_command(runs, tmp_path):
  command = [sys.executable, "-m", "idistill_jax.report", *(str(run.root) for run in runs[:2])]
  wide = os.environ | {"COLUMNS": "200"}
  command.append(f"--page={tmp_path / 'c.html'}")
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=wide)
  assert done.returncode == 0, done.stderr
  assert "lists300" in done.stdout and (tmp_path / "c.html").stat().st_size > 5000
  lost = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, timeout=120)
  assert lost.returncode == 1 and "no distilled retriever" in lost.stderr and "Traceback" not in lost.stderr
