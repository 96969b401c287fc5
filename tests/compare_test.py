"""Several workdirs in one table: what they differ in, and tests that hold them side by side."""

import html
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import browser
import numpy as np
import pytest
import report_workdir
from rich import console as rich_console

from idistill_jax import records
from idistill_jax.data import example, tables
from idistill_jax.report import __main__ as report_main
from idistill_jax.report import compare, files, gather, page
from idistill_jax.retrieval import significance
from idistill_jax.workdir import artifacts

PASSAGES = [records.Passage(id=f"p{i}", title="", text=f"text {i}") for i in range(120)]
QUERIES = [records.Query(id=f"q{i}", text=f"question {i}", split="test") for i in range(40)]
QRELS = {query.id: {f"p{i}": 1} for i, query in enumerate(QUERIES)}


def renamed(run: artifacts.Workdir, root: pathlib.Path, **names: str) -> artifacts.Workdir:
  """A copy of the run that measured the same under other names ("mrr" for MRR@10, "ndcg" for nDCG@10)."""
  made = artifacts.Workdir(shutil.copytree(run.root, root))
  for file in ("metrics.json", "per_query.csv"):
    path = made.folder("evaluate") / file
    text = path.read_text()
    for old, new in names.items():
      text = text.replace({"mrr": "MRR@10", "ndcg": "nDCG@10"}[old], new)
    path.write_text(text)
  return made


def workdir(root: pathlib.Path, lists: int, distilled: float, queries: int = 40, seed: int = 0) -> artifacts.Workdir:
  some = QUERIES[:queries]
  quality = {**report_workdir.QUALITY, "distilled": distilled}
  made = report_workdir.build(root, PASSAGES, some, {one.id: QRELS[one.id] for one in some}, quality)
  config = json.loads((root / "config.json").read_text())
  config["labels"]["lists"], config["name"], config["seed"] = lists, f"<b>{root.name}", seed
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
  # Tests stand beside what they test: the table is wider than most screens.
  tested = ["initial MRR@10", "ranker MRR@10", "MRR@10", "against lists100", "p", "p, corrected"]
  assert header[:8] == ["run", "labels.lists", *tested] and len(lines) == 3
  assert lines[2][:2] == ["lists1000", "1000"] and lines[0][5:8] == ["–", "–", "–"]
  assert not compare.notes(found)
  tested = found.runs[1:]
  assert [run.p_holm for run in tested] == significance.holm([run.test.p for run in tested])
  assert any(run.p_holm > run.test.p for run in tested)


def test_runs_that_differ_in_their_seed_alone_get_a_line_with_mean_and_deviation(runs, tmp_path):
  seeds = [workdir(tmp_path / f"seed{seed}", 100, mean, seed=seed) for seed, mean in ((1, 15.0), (2, 12.0))]
  # Another seed of other lists, and of other queries: nobody's twin.
  strangers = [workdir(tmp_path / "other", 300, 9.0, seed=3), workdir(tmp_path / "fewer", 100, 5.0, 30, seed=4)]
  # One of their seeds once more, which is no draw of its own.
  again = workdir(tmp_path / "again", 100, 3.0, seed=1)
  found = compare.gather_runs([run.root for run in (runs[0], *seeds, again, *strangers)], resamples=100)
  assert found.settings == ("labels.lists", "seed")
  header, *lines = compare.rows(found)
  assert [line[0] for line in lines] == ["lists100", "seed1", "seed2", "again", "other", "fewer", "mean of 3"]
  of_three = dict(zip(header, lines[-1], strict=True))
  assert (of_three["labels.lists"], of_three["seed"]) == ("100", "0, 1, 2")
  values = [run.evaluation.systems["distilled"]["MRR@10"] for run in found.runs[:3]]
  mean, deviation = np.mean(values), np.std(values, ddof=1)
  assert of_three["MRR@10"] == f"{mean:.3f} ± {deviation:.3f}" and deviation > 0.001
  assert of_three["p"] == "–" and "±" in of_three["initial MRR@10"]
  assert f"{mean:.3f} ± {deviation:.3f}" in page.render_comparison(found)
  # The control: where the seed is all alike, or not all that differs, there is no such line.
  for chosen in (runs, (runs[0], strangers[0]), (seeds[0], again)):
    apart = compare.gather_runs([run.root for run in chosen], resamples=100)
    assert not compare.of_seeds(apart) and len(compare.rows(apart)) == 1 + len(chosen)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_terminal_shows_every_name_and_number_whole(runs, tmp_path, width):
  names = ("seed1", "seed2", "retriever_of_a_folder_with_a_long_name", "[b]x[/b]")
  others = [workdir(tmp_path / name, 300, 6.0 + place, seed=place) for place, name in enumerate(names, start=1)]
  for place, run in enumerate(others):
    config = json.loads((run.root / "config.json").read_text())
    config["encoder"]["weights"], config["retriever"]["epochs"] = f"a/path/of/many/folders/to/model{place}", place
    (run.root / "config.json").write_text(json.dumps(config))
  found = compare.gather_runs([run.root for run in (runs[0], *others)], resamples=100)
  assert len(found.settings) == 4
  file = io.StringIO()
  tables_of = list(report_main.terminal_tables(found, width))
  for one in tables_of:
    rich_console.Console(file=file, width=width).print(one)
  lines = file.getvalue().splitlines()
  assert "…" not in file.getvalue() and max(map(len, lines)) <= width
  # As many runs side by side as there is room for, and each once.
  assert len(tables_of) == {40: 5, 80: 2, 200: 1}[width]
  assert sum(len(one.columns) - 1 for one in tables_of) == 5
  # What is longer than a column is broken into lines, and nothing of it is lost.
  header, *rows = compare.rows(found)
  pieces = [cell[start : start + 18] for row in rows for cell in row for start in range(0, len(cell), 18)]
  for piece in (*header, *pieces):
    assert any(piece in line for line in lines), piece


def test_runs_on_other_queries_are_not_tested_against_each_other(runs, tmp_path):
  other = workdir(tmp_path / "fewer", 100, 5.0, queries=30)
  found = compare.gather_runs([runs[0].root, other.root], resamples=100)
  assert found.runs[1].test is None
  # The control: the same queries are.
  assert compare.gather_runs([runs[0].root, runs[1].root], resamples=100).runs[1].test is not None


def test_runs_of_other_code_are_told(runs, tmp_path):
  """Two losses under one name are one setting."""
  notes = lambda root: compare.notes(compare.gather_runs([runs[0].root, root], resamples=100))
  assert notes(runs[1].root) == []
  shutil.copytree(runs[1].root, tmp_path / "later")
  path = tmp_path / "later" / "train_ranker" / "manifest.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"code": "another"}))
  first = pathlib.Path(runs[0].root).name
  assert notes(tmp_path / "later") == [f"later: other code of this package than {first}'s made train_ranker."]


def test_equal_query_ids_of_another_collection_are_no_pairs(runs, tmp_path):
  other = artifacts.Workdir(shutil.copytree(runs[1].root, tmp_path / "other"))
  asked = [records.Query(id=one.id, text=f"what is {one.text}", split=one.split) for one in QUERIES]
  example.write_records(other.folder("collection"), tables.QUERIES, asked)
  graded = artifacts.Workdir(shutil.copytree(runs[1].root, tmp_path / "graded"))
  path = graded.folder("evaluate") / "metrics.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"relevant_from": 2, "split": "dev"}))
  found = compare.gather_runs([runs[0].root, other.root, graded.root, runs[2].root], resamples=100)
  assert [run.test is None for run in found.runs] == [True, True, True, False]
  assert compare.notes(found) == [
    "other is not tested against lists100: other judgements.",
    "graded is not tested against lists100: other split, lowest relevant grade, judgements.",
  ]
  assert "other is not tested against lists100" in page.render_comparison(found)


def test_what_scann_found_is_not_tested_against_what_exact_search_did(runs, tmp_path):
  def by_scann(name: str, systems: tuple[str, ...] = ()) -> artifacts.Workdir:
    made = artifacts.Workdir(shutil.copytree(runs[1].root, tmp_path / name))
    path = made.folder("evaluate") / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["ann"]["index"] = "scann"
    metrics["systems"] |= dict.fromkeys(systems, metrics["systems"]["distilled"])
    path.write_text(json.dumps(metrics))
    return made

  # As evaluate wrote it when distilled was what the index finds, and as it does now.
  old, new = by_scann("old"), by_scann("new", ("distilled+scann",))
  found = compare.gather_runs([runs[0].root, old.root, new.root], resamples=100)
  assert [run.test is None for run in found.runs] == [True, True, False]
  assert compare.notes(found) == ["old is not tested against lists100: other kind of search (ScaNN or exact)."]
  # Two old ones were searched alike.
  twice = compare.gather_runs([old.root, by_scann("older").root], resamples=100)
  assert twice.runs[1].test is not None and not compare.notes(twice)


def test_a_collection_that_differs_in_what_taught_alone_is_paired(runs, tmp_path):
  taught = artifacts.Workdir(shutil.copytree(runs[1].root, tmp_path / "taught"))
  folder = taught.folder("collection")
  path = folder / artifacts.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "with rankings of another LLM"}))
  more = records.Query(id="t0", text="a training query", split="train")
  example.write_records(folder, tables.QUERIES, [*QUERIES, more])
  found = compare.gather_runs([runs[0].root, taught.root], resamples=100)
  assert found.runs[1].test is not None and not compare.notes(found)


def test_what_all_runs_have_measured_is_compared(runs, tmp_path):
  both = renamed(runs[0], tmp_path / "both", ndcg="answer@20")
  answers = renamed(runs[1], tmp_path / "answers", ndcg="answer@20", mrr="answer@1")
  found = compare.gather_runs([both.root, answers.root], resamples=100)
  assert found.main == "answer@20" and found.runs[1].test is not None
  means = [run.evaluation.systems["distilled"]["answer@20"] for run in found.runs]
  assert found.runs[1].test.delta == pytest.approx(means[1] - means[0])
  assert "answer@20" in page.render_comparison(found)
  # A reader's F1 is measured by another stage, and not compared.
  said = r"none of MRR@10, answer@1, answer@20 was measured in every run \(lists100: MRR@10.*; answers: answer@1"
  with pytest.raises(files.ReportError, match=said):
    compare.gather_runs([runs[0].root, answers.root])


def test_runs_are_compared_on_what_the_first_is_about(runs, tmp_path):
  made = artifacts.Workdir(shutil.copytree(runs[0].root, tmp_path / "made"))
  path = made.folder("evaluate") / "metrics.json"
  metrics = json.loads(path.read_text())
  metrics["primary"]["measure"] = "nDCG@10"
  path.write_text(json.dumps(metrics))
  assert compare.gather_runs([made.root, runs[1].root], resamples=100).main == "nDCG@10"
  assert compare.gather_runs([runs[1].root, made.root], resamples=100).main == "MRR@10"


def test_a_run_without_measures_is_named(runs, tmp_path):
  with pytest.raises(files.ReportError, match="nothing: no distilled retriever has been measured there"):
    compare.gather_runs([runs[0].root, tmp_path / "nothing"])


def test_a_run_whose_numbers_are_of_an_earlier_model_is_refused_with_what_mends_it(runs, tmp_path):
  later = artifacts.Workdir(shutil.copytree(runs[1].root, tmp_path / "later"))
  report_workdir.train_anew(later)
  said = "later: index, evaluate: made before train_retriever was made anew, of an earlier one."
  with pytest.raises(files.ReportError, match=said) as error:
    compare.gather_runs([runs[0].root, later.root])
  command = "python -m idistill_jax.stages.evaluate --config=... --workdir="
  assert str(error.value).splitlines()[-1] == f"  {command}{later.root}"


def headline(*means: float, p: tuple[float | None, ...] = (), differs: tuple[str, ...] = ()) -> str:
  """Of runs called a, b, c ..., of which those without a p are not tested against the first, as its last differs."""
  of = lambda mean: gather.Evaluation(
    split="test", queries=9, dropped_queries=0, measures=("MRR@10",), main_measure="MRR@10", intervals={}, tests={},
    systems={"distilled": {"MRR@10": mean}}, values={}, ann={}, leakage={}, relevant_from=1,
  )  # fmt: skip
  runs = tuple(
    compare.Compared(name=name, settings={}, seconds=1.0, differs=differs if name != "a" else (), test=None, p_holm=one,
                     evaluation=of(mean), by_other_code=())
    for name, mean, one in zip("abcd", means, (None, *p), strict=False)
  )
  return compare.headline(compare.Comparison(runs=runs, measures=("MRR@10",), main="MRR@10"))


def test_no_more_is_said_of_the_best_run_than_its_test_allows():
  highest = "has the highest MRR@10: 0.500"
  chance = "cannot be told from chance (p = 0.291, corrected)"
  nbsp = lambda text: text.replace("p = ", "p\u00a0=\u00a0")
  assert headline(0.4, 0.5, p=(0.291,)) == nbsp(f"b {highest}, but its difference from a {chance}")
  assert headline(0.5, 0.4, p=(0.291,)) == nbsp(f"a {highest}, but its difference from b {chance}")
  assert headline(0.4, 0.45, 0.5, p=(0.3, 0.01)) == nbsp(f"c {highest}, against 0.400 of a (p = 0.010, corrected)")
  assert headline(0.5, 0.45, 0.4, p=(0.02, 0.01)) == nbsp(f"a {highest}, against 0.450 of b (p = 0.020, corrected)")
  # Of other queries, so in no order with the first.
  assert headline(0.4, 0.9, 0.5, p=(None, 0.01)).startswith(f"c {highest}, against 0.400 of a")
  assert headline(0.4, 0.9, p=(None,), differs=("split",)) == "a has MRR@10 0.400; no other run was measured as it was"
  assert headline(0.4, 0.9, p=(None,)) == "a has MRR@10 0.400", "one query, of which there is no test"
  assert headline(0.4) == "a has MRR@10 0.400"


def test_runs_that_found_the_same_are_called_equal(runs, tmp_path):
  twins = [artifacts.Workdir(shutil.copytree(runs[0].root, tmp_path / name)) for name in ("one", "two")]
  mean = gather.evaluation(runs[0]).systems["distilled"]["MRR@10"]
  said = f"one, two, lists100 are equal: MRR@10 {mean:.3f}, the same for each query"
  folders = [*(run.root for run in twins), runs[0].root]
  assert compare.headline(compare.gather_runs(folders, resamples=100)) == said
  assert "has the highest" in compare.headline(compare.gather_runs([*folders, runs[1].root], resamples=100))


def test_what_ranker_and_direct_retriever_came_to_stands_beside(runs, tmp_path):
  quality = {**report_workdir.QUALITY, "direct": 6.0}
  direct = report_workdir.build(tmp_path / "direct", PASSAGES, QUERIES, QRELS, quality)
  header, first, second = compare.rows(compare.gather_runs([runs[0].root, direct.root], resamples=100))
  columns = [header.index(f"{system} MRR@10") for system in ("initial", "ranker", "direct")]
  systems = gather.evaluation(direct).systems
  assert [second[one] for one in columns] == [f"{systems[name]['MRR@10']:.3f}" for name in compare.BESIDE]
  assert first[columns[-1]] == "–"


def test_page_states_the_headline_and_escapes(runs, tmp_path):
  hostile = workdir(tmp_path / "<img src=x>", 5, 2.0)
  compared = compare.gather_runs([*(run.root for run in runs), hostile.root], resamples=100)
  text = page.render_comparison(compared)
  assert f"<h1>{html.escape(compare.headline(compared))}</h1>" in text
  assert "<img" not in text and "&lt;img" in text
  assert text.count("<tr>") == 5 and "<svg" in text and "<script" not in text


def test_the_page_fits_screens_in_light_and_dark(runs, tmp_path):
  # A name without a space is as long as a folder's may be.
  names = ("<img src=x onerror=window.evil=1>", "retriever_" + "x" * 100)
  others = [workdir(tmp_path / name, lists, 2.0) for name, lists in zip(names, (5, 6), strict=True)]
  fewer = workdir(tmp_path / "fewer", 100, 5.0, queries=30)
  compared = compare.gather_runs([one.root for one in (*runs, *others, fewer)], resamples=100)
  (tmp_path / "page.html").write_text(page.render_comparison(compared), encoding="utf-8")
  with browser.page() as tab:
    for width, height, dark in ((1280, 900, False), (1280, 900, True), (320, 844, False), (320, 844, True)):
      tab.look(width=width, height=height, dark=dark)
      # Told apart from the page before it, which looks the same.
      look = f"?{width}-{dark}"
      tab.open(f"{(tmp_path / 'page.html').as_uri()}{look}",
               f"document.readyState === 'complete' && location.search === '{look}'")
      # The table alone scrolls sideways, and a run's name, which stays in sight, leaves room for what is scrolled.
      assert tab.run("document.documentElement.scrollWidth") <= width
      assert tab.run("document.querySelector('tbody th').getBoundingClientRect().width") < 0.55 * width
      assert 0.3 < tab.picture(tmp_path / f"{width}-{'dark' if dark else 'light'}.png") < 0.97
    assert tab.run("document.querySelectorAll('tbody tr').length") == 6
    assert tab.run("document.querySelectorAll('img, script').length") == 0
    assert not tab.run("window.evil") and not tab.errors


def test_the_command(runs, tmp_path):
  command = [sys.executable, "-m", "idistill_jax.report", *(str(run.root) for run in runs[:2])]
  wide = os.environ | {"COLUMNS": "200"}
  command.append(f"--page={tmp_path / 'c.html'}")
  done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=wide)
  assert done.returncode == 0, done.stderr
  assert "lists300" in done.stdout and (tmp_path / "c.html").stat().st_size > 5000
  lost = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, timeout=120)
  assert lost.returncode == 1 and "no distilled retriever" in lost.stderr and "Traceback" not in lost.stderr
