"""The page and the terminal tables over workdirs that real pieces wrote, friendly and hostile."""

import dataclasses
import html.parser
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import browser
import labels_stage_test
import pytest
import report_workdir
from loopback_llm import LoopbackLLM, Reply, reversed_order
from rich import console as rich_console

from idistill_jax import config as config_lib
from idistill_jax import flow, records
from idistill_jax.data import example, tables
from idistill_jax.llm import query_writing
from idistill_jax.report import claims, figures, files, gather, page, queries, terminal
from idistill_jax.stages import report as report_stage
from idistill_jax.workdir import artifacts, inputs

PASSAGES = [
  records.Passage(id=f"lib.call{i}", title=f"lib.call{i}", text=f"Does the thing number {i}. " * 20)
  for i in range(150)
]
QUERIES = [records.Query(id=f"q{i}", text=f"how do i do thing {i}", split="test") for i in range(60)]
QRELS = {query.id: {f"lib.call{i * 2}": 1} for i, query in enumerate(QUERIES)}
HOSTILE = (
  "</script><script>window.evil=1</script><img src=x onerror=window.evil=1>"
  "{{ 7*7 }}&amp;\"'<!--\u2028$\\frac{$"
)


def rendered(report: gather.Report) -> str:
  return page.render(report, page.draw(report))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> artifacts.Workdir:
  return report_workdir.build(tmp_path_factory.mktemp("report") / "w", PASSAGES, QUERIES, QRELS)


@pytest.fixture(scope="module")
def report(workdir) -> gather.Report:
  return gather.gather(workdir)


@pytest.fixture(scope="module")
def text(report) -> str:
  return rendered(report)


@pytest.mark.parametrize(("language", "said"), [
  (None, "stems of English words"), ("french", "stems of French words"), ("words", "words as they are"),
  ("cjk", "pairs of characters of Chinese, Japanese and Korean"),
])
def test_what_bm25_matches_is_said(report, text, language, said):
  settings = {} if language is None else gather.flat({"evaluate": {"bm25_language": language}})
  assert claims.bm25(report.evaluation, settings) == f"BM25 matches {said}."
  assert "BM25 matches stems of English words." in text
  without = dataclasses.replace(report.evaluation, systems={"initial": {}})
  assert claims.bm25(without, settings) == ""


@pytest.fixture(scope="module")
def answered(workdir, tmp_path_factory) -> gather.Report:
  """The same run without judgements: answers stand in the judged passages and nowhere else."""
  without = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path_factory.mktemp("answered") / "w"))
  folder = without.folder("collection")
  (folder / "qrels" / "test.tsv").unlink()
  for path in folder.glob("answers-*"):
    path.unlink()
  answers = [records.Answers(query_id=one.id, answers=(f"thing number {2 * i}",)) for i, one in enumerate(QUERIES)]
  example.write_records(folder, tables.ANSWERS, answers)
  return gather.gather(without)


@pytest.fixture(scope="module")
def answered_text(answered) -> str:
  return rendered(answered)


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> str:
  """The page of a workdir in which every text that a stranger may choose attacks it."""
  passages = [
    records.Passage(id="".join(f"p{i}{HOSTILE}".split()), title=HOSTILE, text=HOSTILE) for i in range(30)
  ]
  queries = [records.Query(id=f"q{i}</script>", text=f"{HOSTILE} {i}", split="test") for i in range(6)]
  qrels = {query.id: {passages[i].id: 1} for i, query in enumerate(queries)}
  workdir = report_workdir.build(tmp_path_factory.mktemp("hostile") / "w", passages, queries, qrels)
  found = gather.gather(workdir)
  assert found.evaluation is not None
  evaluation = dataclasses.replace(
    found.evaluation,
    systems={**found.evaluation.systems, HOSTILE: {"MRR@10": 0.5}},
    tests={**found.evaluation.tests, HOSTILE: found.evaluation.tests["ranker vs initial"]},
  )
  stages = (
    dataclasses.replace(found.stages[0], drops={HOSTILE: (1, (HOSTILE,))}, counts={HOSTILE: HOSTILE}),
  )
  return rendered(
    dataclasses.replace(
      found,
      name=HOSTILE,
      evaluation=evaluation,
      stages=stages,
      config={HOSTILE: HOSTILE},
      versions={HOSTILE: HOSTILE},
      labels={"complete": 1, "refused": {HOSTILE: 2}, "position_bias": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
    )
  )


def test_no_file_of_a_labelled_and_reported_workdir_holds_the_key(tmp_path, monkeypatch, caplog):
  """Nor does the log, though the server repeats it."""
  pytest.importorskip("openai")
  monkeypatch.setenv("OPENAI_API_KEY", labels_stage_test.KEY)
  odd = lambda n, text: Reply(f"who is {labels_stage_test.KEY}?", status=422)
  labelled = labels_stage_test.small(tmp_path / "labelled")
  with LoopbackLLM(lambda n, text: (odd if "query 2\n" in text else reversed_order)(n, text)) as server:
    cfg = labels_stage_test.live(server)
    assert labelled.execute(flow.STAGES["labels"], cfg)["drops"]["rejected"]["examples"] == ["q2"]
  workdir = report_workdir.build(tmp_path / "w", PASSAGES, QUERIES, QRELS, but=("labels",))
  for folder in ("labels", "cache"):
    shutil.copytree(labelled.root / folder, workdir.root / folder)
  workdir.execute(flow.STAGES["report"], cfg)
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert len(files) > 20 and any(path.name == report_stage.PAGE for path in files)
  assert all(labels_stage_test.KEY.encode() not in path.read_bytes() for path in files)
  assert labels_stage_test.KEY not in caplog.text


class Elements(html.parser.HTMLParser):
  """Tags with their attributes, and what each script holds."""

  def __init__(self, text: str):
    super().__init__()
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.scripts: list[str] = []
    self._in_script = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag == "script":
      self.scripts.append("")
      self._in_script = True

  def handle_endtag(self, tag):
    self._in_script = self._in_script and tag != "script"

  def handle_data(self, data):
    if self._in_script:
      self.scripts[-1] += data


def comparison(**changes) -> gather.Comparison:
  return dataclasses.replace(
    gather.Comparison(
      delta=0.085, relative=0.226, effect=0.31, p=0.0002, p_holm=0.0008, ci95=(0.06, 0.11),
      wins=120, losses=60, ties=217,
    ),
    **changes,
  )


def evaluation(**tests: gather.Comparison) -> gather.Evaluation:
  """An evaluation with the given comparisons of distilled against initial, by measure without its @."""
  found = {{"mrr": "MRR@10", "hit": "hit@1"}[name]: test for name, test in tests.items()}
  return gather.Evaluation(
    split="test",
    queries=397,
    dropped_queries=0,
    measures=tuple(found),
    main_measure="MRR@10",
    intervals={},
    values={},
    systems={"initial": {"MRR@10": 0.376, "hit@1": 0.25}, "distilled": {"MRR@10": 0.461, "hit@1": 0.33}},
    tests={"distilled vs initial": found},
    ann={},
    leakage={},
    relevant_from=1,
  )


def test_gather_agrees_with_the_files(workdir, report):
  metrics = json.loads((workdir.folder("evaluate") / "metrics.json").read_text())
  deltas = report.evaluation.deltas("distilled")
  assert sum(deltas.values()) / len(deltas) == pytest.approx(
    metrics["tests"]["distilled vs initial"]["MRR@10"]["delta"]
  )
  assert [query.id for query in report.shown.queries] == [query.id for query in QUERIES]
  for query in report.shown.queries:
    rank = query.relevant_ranks["distilled"]
    expected = 1 / rank if rank is not None and rank <= 10 else 0.0
    assert report.evaluation.per_query["distilled"][query.id] == pytest.approx(expected)
    assert [result.relevant for result in query.results["distilled"]] == [
      rank == place for place in range(1, 6)
    ]
  assert report.stages[1].drops == {"judged passage that this Python lacks": (1, ("q0815 nntplib.NNTP",))}
  assert [stage.name for stage in report.stages] == list(gather.SHOWN)
  assert len(report.trainings[0].columns["loss"]) == 250


def test_every_measured_system_is_shown_beside_the_others(tmp_path):
  quality = {"other.lab": 7.0, "bm25": 12.0, "distilled": 4.0, "direct": 5.0, "initial": 9.0, "distilled+ranker": 3}
  built = report_workdir.build(tmp_path / "w", PASSAGES, QUERIES[:4], {one.id: QRELS[one.id] for one in QUERIES[:4]},
                               quality)  # fmt: skip
  found = gather.gather(built)
  first = found.shown.queries[0]
  assert list(first.results) == ["initial", "distilled", "other.lab", "bm25", "direct", "distilled+ranker"]
  assert ">distilled+ranker<" in figures.means(found.evaluation, "MRR@10")
  assert all(len(found) == queries.SHOWN_RESULTS for found in first.results.values())


def test_many_queries_are_cut_to_those_that_changed_most(workdir, monkeypatch):
  monkeypatch.setattr(queries, "MAX_QUERIES", 10)
  cut = gather.gather(workdir)
  assert len(cut.shown.queries) == 10 and cut.shown.left_out == 50
  deltas = sorted((abs(delta) for delta in cut.evaluation.deltas("distilled").values()), reverse=True)
  assert sorted((abs(query.delta) for query in cut.shown.queries), reverse=True) == pytest.approx(deltas[:10])
  assert "50 others are in evaluate/runs" in rendered(cut)


def test_where_only_answers_are_known_a_passage_that_holds_one_is_right(report, text, answered, answered_text):
  """Answers mark what judgements marked."""
  marks = lambda shown: [
    [one.relevant for one in of_system] for query in shown.queries for of_system in query.results.values()
  ]
  assert marks(answered.shown) == marks(report.shown) and any(map(any, marks(answered.shown)))
  ranks = {query.id: query.relevant_ranks["distilled"] for query in report.shown.queries}
  assert {query.id: query.relevant_ranks["distilled"] for query in answered.shown.queries} == {
    one: rank if rank is not None and rank <= queries.SHOWN_RESULTS else None for one, rank in ranks.items()
  }
  said = answered_text.replace("\u00a0", " ")
  assert "holds an answer" in said and "not in the first 5" in said
  assert "judged passage" not in said.replace("judged passage that this Python lacks", "")
  assert "judged passage: " in text and "holds an answer" not in text


def test_a_query_that_a_measure_does_not_know_has_no_value(workdir, tmp_path):
  shutil.copytree(workdir.root, tmp_path / "w")
  path = tmp_path / "w" / "evaluate" / "per_query.csv"
  others = gather.evaluation(artifacts.Workdir(tmp_path / "w")).measures[1:]
  filled = ",0" * len(others)
  path.write_text(
    f"query_id,system,MRR@10,{','.join(others)}\nq1,distilled,0.5{filled}\nq2,distilled,{filled}\n"
  )
  assert gather.evaluation(artifacts.Workdir(tmp_path / "w")).per_query == {"distilled": {"q1": 0.5}}


def test_measures_of_fewer_queries_say_how_many(workdir, report, text, tmp_path):
  assert "Means over 60 test queries with" in text
  shutil.copytree(workdir.root, tmp_path / "w")
  path = tmp_path / "w" / "evaluate" / "per_query.csv"
  header, *lines = path.read_text().splitlines()
  # As of queries without accepted answers.
  cut = [line if line.startswith("q1") else line.rpartition(",")[0] + "," for line in lines]
  path.write_text("\n".join([header, *cut]) + "\n")
  found = gather.evaluation(artifacts.Workdir(tmp_path / "w"))
  said = "60 test queries (recall@100 over 11 of them)"
  assert f"Means over {said} with" in rendered(dataclasses.replace(report, evaluation=found))
  assert f"{said}; changes" in printed(tmp_path / "w", width=200)
  assert ", 60 test queries)" in claims.claim(found, None, {}).detail
  graded = dataclasses.replace(found, relevant_from=2)
  assert claims.about(graded) == said.replace(
    "(", "(passages relevant from grade 2 on, but for nDCG, which counts all grades; ")
  # Where only answers are known, no grade counts.
  assert "grade" not in claims.about(dataclasses.replace(graded, measures=("answer@20",), main_measure="answer@20"))
  mainly = dataclasses.replace(found, main_measure="recall@100")
  assert ", 11 of 60 test queries)" in claims.claim(mainly, None, {}).detail


def test_where_only_answers_are_known_what_the_collection_lacks_holds_none(workdir, tmp_path):
  without = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  (without.folder("collection") / "qrels" / "test.tsv").unlink()
  example.write_records(without.folder("collection"), tables.ANSWERS, [
    records.Answers(query_id=one.id, answers=("thing number 2",)) for one in QUERIES
  ])
  run = without.folder("evaluate") / "runs" / "distilled.trec"
  first = run.read_text().split()
  run.write_text(f"{first[0]} Q0 stranger 1 99 x\n" + run.read_text())
  found = gather.gather(without)
  assert any(one.passage_id == "stranger" for query in found.shown.queries for one in query.results["distilled"])
  assert "stranger" in rendered(found)


@pytest.mark.parametrize(("retriever", "said"), [
  ({"teacher": "pairs", "direct_share": None}, False), ({"teacher": "pairs", "direct_share": 0.5}, True),
  ({"teacher": "ranker", "direct_share": None}, True),
])
def test_lists_are_claimed_only_where_they_taught(retriever, said):
  settings = gather.flat({"retriever": retriever})
  claim = claims.claim(evaluation(mrr=comparison()), {"complete": 962}, settings)
  assert ("LLM-ranked lists" in claim.headline) is said


@pytest.mark.parametrize(
  ("file", "content", "named"),
  [
    ("evaluate/metrics.json", "{", "not JSON"),
    ("evaluate/metrics.json", "[]", "an object is needed"),
    ("evaluate/metrics.json", '{"split": "test"}', "run evaluate again"),
    ("evaluate/per_query.csv", "query_id,system\n", "MRR@10, hit@1"),
    ("evaluate/per_query.csv", "query_id,system,MRR@10,nDCG@10,hit@1,hit@10,recall@20,recall@100\nq1,initial,x\n",
     "per_query.csv:2"),
    ("train_ranker/metrics.jsonl", '{"step": 1}\n{"step"', "metrics.jsonl:2"),
    ("labels/statuses.json", "nope", "statuses.json"),
  ],
)
def test_unreadable_files_are_named(workdir, tmp_path, file, content, named):
  shutil.copytree(workdir.root, tmp_path / "w")
  (tmp_path / "w" / file).write_text(content)
  with pytest.raises(files.ReportError, match=re.escape(named)) as error:
    gather.gather(artifacts.Workdir(tmp_path / "w"))
  assert file in str(error.value)


def test_the_verdict_depends_on_no_other_comparison(workdir, report, text, tmp_path):
  """Also where metrics.json was written before one was primary: its p was corrected as all others were."""
  earlier = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  path = earlier.folder("evaluate") / "metrics.json"
  metrics = json.loads(path.read_text())
  del metrics["primary"]
  for pair in metrics["tests"].values():
    pair["MRR@10"] |= {"p": 0.02, "p_holm": 0.31, "ci95": [0.001, 0.018]}
  path.write_text(json.dumps(metrics))
  found = gather.evaluation(earlier)
  assert claims.claim(found, None, {}).verdict == "better"
  # The others are corrected for their number.
  assert {name: claims.verdict(of["MRR@10"]) for name, of in found.tests.items()} == {
    "distilled vs initial": "better", "ranker vs initial": "undecided", "distilled vs bm25": "undecided"}
  assert "distilled vs initial is the primary test" in text and text.count("> primary</span>") == 1
  said = " ".join(printed(workdir.root).split())
  assert "p on MRR@10 (corrected, Holm, but for distilled vs initial, the primary test)" in said


def test_claim_is_as_strong_as_its_test():
  better = claims.claim(
    evaluation(mrr=comparison(), hit=comparison(relative=0.32, ci95=(0.04, 0.13))), {"complete": 990, "repaired": 10},
    {},
  )
  assert better.headline == (
    "After learning from 1,000 LLM-ranked lists, the retriever puts the right passage first "
    "32\u00a0% more often (hit@1 +0.085, 95\u00a0% interval +0.040 to +0.130)."
  )
  for said in (
    "0.376 → 0.461",
    "+22.6\u00a0%",
    "+0.060 to +0.110",
    "p\u00a0<\u00a00.001",
    "p\u00a0<\u00a00.001, the primary test and so not corrected for others, 397 test queries",
  ):
    assert said in better.detail
  # Not even the share of first places is claimed where its own test does not carry it.
  modest = claims.claim(evaluation(mrr=comparison(), hit=comparison(p_holm=0.2)), None, {})
  assert modest.headline == (
    "After distillation, the retriever ranks the right passage higher "
    "(MRR@10 +0.085, 95\u00a0% interval +0.060 to +0.110)."
  )
  # Nor where the run is about another measure.
  other = dataclasses.replace(evaluation(mrr=comparison(), hit=comparison()), main_measure="nDCG@10")
  other = dataclasses.replace(other, tests={"distilled vs initial": {"nDCG@10": comparison(), "hit@1": comparison()}},
                              systems={system: {"nDCG@10": 0.4} for system in ("initial", "distilled")})
  assert "ranks the right passage higher (nDCG@10 +0.085" in claims.claim(other, None, {}).headline
  # What only counts what is found says nothing of how high that stands.
  for measure, said in (("answer@20", "an answer in its top 20"), ("recall@100", "right passages in its top 100"),
                        ("hit@10", "a right passage in its top 10")):
    for test, often in (comparison(), "more often"), (comparison(delta=-0.08), "less often than before"):
      counted = dataclasses.replace(other, main_measure=measure, tests={"distilled vs initial": {measure: test}},
                                    systems={system: {measure: 0.4} for system in ("initial", "distilled")})
      assert f"the retriever finds {said} {often} ({measure} " in claims.claim(counted, None, {}).headline
  worse = claims.claim(evaluation(mrr=comparison(delta=-0.08, relative=-0.2)), None, {})
  assert "lower than before" in worse.headline and worse.verdict == "worse"
  chance = claims.claim(evaluation(mrr=comparison(p=0.31, p_holm=0.31), hit=comparison()), None, {})
  assert "told from chance" in chance.headline and chance.verdict == "undecided"
  assert claims.claim(None, None, {}).verdict == "undecided"


def test_page_holds_what_it_promises(text):
  for section in ("results", "queries", "browse", "training", "labels", "stages", "index", "config"):
    assert f'id="{section}"' in text
  for said in (
    "LLM-ranked lists, the retriever",
    "Most helped",
    "Most hurt",
    "judged right",
    "20,312",
    "0.9987",
    "no ranking in the answer",
    "0.1184",
    "1,412,311",
    "judged passage that this Python lacks",
    "ranker.loss: &#34;listmle&#34;",
  ):
    assert said in text
  assert text.count("<svg") == 6 + 2 + 6 + 1
  data = json.loads(Elements(text).scripts[0])
  assert [query["id"] for query in data["queries"]] == [query.id for query in QUERIES]
  assert all(found in data["passages"] for query in data["queries"] for found in query["results"]["ranker"])


def test_tokens_and_cost_stand_in_the_row_of_the_stage_that_asked(text):
  table = text.partition('id="stages"')[2].partition("</table>")[0]
  rows = {row.partition("</th>")[0]: re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr><th>")[1:]}
  # Time, its bar, tokens, cost, counts, drops.
  assert rows["labels"][2:5] == ["1,511,434", "$0.6715", "lists 993"]
  others = {name: cells[2:4] for name, cells in rows.items() if name not in ("stage", "labels")}
  assert len(others) == len(gather.SHOWN) - 1 and set(map(tuple, others.values())) == {("–", "–")}
  assert "and $0.67 for an LLM's answers" in html.unescape(text)


def test_what_the_index_was_tuned_and_measured_on_is_said_as_it_is(report):
  index = next(stage for stage in report.stages if stage.name == "index")
  tuned = lambda **counts: claims.tuned([dataclasses.replace(index, counts=counts)])
  taught = tuned(**{"tuned on": {"dev": 1, "used train": 99}})
  assert "1 of dev, 99 of train; training learned from the last, so it may find less for others." in taught
  assert "learned" not in claims.tuned(report.stages)
  assert tuned() == tuned(**{"tuned on": {}}) == claims.tuned([]) == ""
  assert claims.measured_on({"options_passages": [3743, 3743]}) == "all 3,743 passages"
  assert claims.measured_on({"options_passages": [7, 9], "options": [{}]}) == "7 of 9 passages, drawn at random"
  # Older metrics do not say, and told of the first ones.
  assert claims.measured_on({}) == "the index's passages (of more than 100,000, the first 100,000)"


@pytest.mark.parametrize(("index", "systems", "settings", "said"), [
  ("scann", (), {}, "by ScaNN,"),
  ("exact", (), {"dimensions": 192}, "with smaller vectors (index.dimensions 192),"),
  ("scann", ("distilled+scann",), {"precision": "int8"}, "with smaller vectors (index.precision int8),"),
  ("scann", (), {"dimensions": 9, "precision": "int8"},
   "with smaller vectors (index.dimensions 9, index.precision int8) and by ScaNN,"),
  # As many dimensions as the model has are no smaller vectors.
  ("exact", (), {"dimensions": 384}, None),
  ("exact", (), {"dimensions": 384, "precision": "int8"}, "with smaller vectors (index.precision int8),"),
  ("scann", ("distilled+scann",), {}, None),
  ("exact", (), {}, None),
])
def test_a_difference_that_is_not_distillations_alone_is_said_beside_it(index, systems, settings, said):
  found = evaluation(mrr=comparison())
  found = dataclasses.replace(found, ann={"index": index, "whole_dimensions": 384},
                              systems={**found.systems, **{name: {} for name in systems}})
  whole = {"dimensions": None, "precision": "float32"}
  detail = claims.claim(found, None, gather.flat({"index": whole | settings})).detail
  assert (f"Distilled was searched {said}" in detail) if said else ("was searched" not in detail)


@pytest.mark.parametrize(("written", "said"), [(7, True), (0, False)])
def test_that_an_llm_wrote_the_test_queries_is_said_beside_what_they_show(written, said):
  """Of those that were measured: where people asked those, an LLM may have written the ones that trained."""
  measured = dataclasses.replace(evaluation(mrr=comparison()), written_queries=written)
  found = claims.claim(measured, None, gather.flat({"queries": {"passages": 700}}))
  assert (query_writing.CAUTION in found.detail) is said


def test_one_query_shows_its_numbers_and_tells_nothing():
  one = dataclasses.replace(evaluation(mrr=comparison()), tests={}, values={}, queries=1)
  found = claims.claim(one, None, {})
  assert found.headline == "1 query is too few to tell anything." and found.verdict == "undecided"
  assert "→" in found.detail and "two queries at least" in found.detail


def test_page_and_terminal_tell_of_smaller_vectors(workdir, text, tmp_path):
  smaller = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  cfg = json.loads((smaller.root / "config.json").read_text())
  cfg["index"]["dimensions"] = 192
  (smaller.root / "config.json").write_text(json.dumps(cfg))
  said = "smaller vectors (index.dimensions 192)"
  lead = lambda page_text: page_text.partition("</header>")[0]
  assert said in lead(rendered(gather.gather(smaller))) and "smaller vectors" not in lead(text)
  assert said in printed(smaller.root, width=400) and "smaller vectors" not in printed(workdir.root, width=400)


def test_page_asks_nobody_for_anything(text):
  """No element that fetches, and no address in any attribute or style."""
  elements = Elements(text)
  assert not {"link", "img", "iframe", "object", "embed", "image", "base", "form"} & {
    tag for tag, _ in elements.tags
  }
  fetching = [
    (tag, name, value)
    for tag, attributes in elements.tags
    for name, value in attributes.items()
    if name in ("src", "srcset", "action", "data") or (name.endswith("href") and not value.startswith("#"))
  ]
  assert fetching == []
  assert not re.search(r"@import|url\((?!#)", text)


def test_drawings_follow_light_and_dark_and_share_no_ids(text):
  drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
  assert all("var(--soft)" in drawing for drawing in drawings)
  # A colour of its own would stay dark on dark.
  assert not [
    colour for drawing in drawings for colour in re.findall(r"(?:fill|stroke): (#\w+|black)", drawing)
  ]
  ids = re.findall(r'\bid="([^"]+)"', text)
  assert len(ids) == len(set(ids))
  used = set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text))
  assert used <= set(ids)


def test_page_is_the_same_every_time(report, text):
  assert rendered(report) == text


def test_hostile_texts_stay_texts(hostile_page):
  elements = Elements(hostile_page)
  assert [attributes.get("type") for tag, attributes in elements.tags if tag == "script"] == [
    "application/json",
    None,
  ]
  assert not [tag for tag, attributes in elements.tags if "onerror" in attributes or tag == "img"]
  assert "{{ 7*7 }}" in hostile_page
  data = json.loads(elements.scripts[0])
  assert data["queries"][0]["text"] == f"{HOSTILE} 0"
  assert "innerHTML" not in elements.scripts[1]


def test_embedded_json_cannot_end_its_element():
  assert json.loads(page.embedded_json([HOSTILE])) == [HOSTILE]
  assert "<" not in page.embedded_json([HOSTILE]) and "<" in json.dumps([HOSTILE])


def test_drawings_take_any_name():
  found = evaluation(mrr=comparison())
  drawn = figures.means(
    dataclasses.replace(found, systems={"<script>\x00": {"MRR@10": 0.4}, "$\\frac{$": {"MRR@10": 0.3}}),
    "MRR@10",
  )
  assert "<script" not in drawn and "&lt;script" in drawn and "\x00" not in drawn and "$\\frac{$" in drawn


@pytest.mark.parametrize(("number", "said"), [
  (1.5e-4, "0.00015"), (2e-4, "0.0002"), (2.5e-5, "2.5e-5"), (0.0, "0"), (0.25, "0.25"), (12_500, "12.5k"),
])
def test_labels_of_an_axis_are_the_numbers_that_they_stand_at(number, said):
  assert figures._short_number(number) == said


@pytest.mark.parametrize(("names", "shown"), [
  (["seed0", "a_name_that_is_too_long"], ["seed0", "a_name_that_is_…"]),
  (["wiki_qa_recorded_s1", "wiki_qa_recorded_s2"], ["…_qa_recorded_s1", "…_qa_recorded_s2"]),
  (["a_long_beginning_x_and_its_long_end", "a_long_beginning_y_and_its_long_end"],
   ["1: a_long_begin…", "2: a_long_begin…"])])
def test_runs_that_are_drawn_are_told_apart(names, shown):
  assert figures._labels(names, 16) == shown
  compared = figures.runs_compared({name: (0.4, None) for name in names}, "MRR@10")
  assert all(f">{label}<" in compared for label in shown)


def test_stage_writes_the_page_twice(workdir, tmp_path):
  shutil.copytree(workdir.root, tmp_path / "w")
  other = artifacts.Workdir(tmp_path / "w")
  cfg = config_lib.Config(name="quickstart")
  manifest = other.execute(flow.STAGES["report"], cfg)
  assert (other.root / "report.html").read_text() == (other.folder("report") / "report.html").read_text()
  assert manifest["counts"]["queries"] == 60
  assert other.is_done(flow.STAGES["report"], cfg)
  cfg.retriever.epochs = 7
  assert not other.is_done(flow.STAGES["report"], cfg)


def test_drawings_are_files_that_need_no_page(workdir, report, tmp_path):
  """Slides and papers know neither the page's variables nor its font."""
  shutil.copytree(workdir.root, tmp_path / "w")
  other = artifacts.Workdir(tmp_path / "w")
  other.execute(flow.STAGES["report"], config_lib.Config(name="quickstart"))
  written = {path.name: path.read_text() for path in (other.folder("report") / "figures").iterdir()}
  assert len(written) == sum(map(len, page.draw(report).values())) and "means-mrr-10.svg" in written
  assert "var(--" in figures.means(report.evaluation, "MRR@10")
  for name, drawing in written.items():
    root = ElementTree.fromstring(drawing)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and int(root.attrib["width"]) >= 300, name
    assert "var(" not in drawing and "#0f766e" in written["means-mrr-10.svg"]


def test_stage_names_the_command_of_a_missing_input(tmp_path):
  other = report_workdir.build(tmp_path / "w", PASSAGES, QUERIES, QRELS, but=("export",))
  with pytest.raises(inputs.MissingInputError, match=r"idistill_jax\.stages\.export"):
    other.execute(flow.STAGES["report"], config_lib.Config(name="quickstart"))


def printed(folder: pathlib.Path, width: int = 80) -> str:
  out = io.StringIO()
  terminal.print_summary(artifacts.Workdir(folder), rich_console.Console(file=out, width=width))
  return out.getvalue()


def test_terminal_shows_means_changes_and_drops_in_80_columns(workdir, report):
  text = printed(workdir.root)
  assert "…" not in text
  assert f"{report.evaluation.systems['distilled']['MRR@10']:.3f}" in text
  assert claims.relative(report.evaluation.test("distilled")["MRR@10"].relative).replace("\u00a0", "") in text
  for said in ("collection", "3 things", "this Python lacks", "recall@100"):
    assert said.replace("3 things", "things 3") in text
  assert "LLM-ranked lists, the retriever" in " ".join(text.split())
  for system in ("distilled", "ranker"):
    test = report.evaluation.test(system)["MRR@10"]
    assert re.search(rf"{system} .* {re.escape(claims.p_number(test.p_holm))} *\n", text)


def test_measures_for_which_a_terminal_has_no_room_are_named_below(report):
  more = ("answer@1", "answer@5", "answer@20")
  evaluation = dataclasses.replace(report.evaluation, measures=(*report.evaluation.measures, *more))
  console = rich_console.Console(file=io.StringIO(), width=80)
  console.print(terminal.summary_table(evaluation, console.width))
  text = console.file.getvalue()
  assert "…" not in text and all(measure in text for measure in evaluation.measures)
  assert "no room for answer@" in text and "MRR@10" not in text.partition("no room for")[2]


def test_terminal_shows_an_unfinished_run(tmp_path):
  but = ("train_ranker", "scores", "train_retriever", "index", "evaluate", "export")
  text = printed(report_workdir.build(tmp_path / "w", PASSAGES, QUERIES, QRELS, but=but).root)
  assert "evaluate stage has not run" in text and "candidates" in text


def test_terminal_takes_no_markup_from_the_workdir(workdir, tmp_path):
  shutil.copytree(workdir.root, tmp_path / "w")
  path = tmp_path / "w" / "collection" / "manifest.json"
  manifest = json.loads(path.read_text())
  manifest["counts"] = {"[red]": "[/]"}
  path.write_text(json.dumps(manifest))
  assert "[red] [/]" in printed(tmp_path / "w")


def test_terminal_and_stage_need_no_report_extra(workdir):
  """With Jinja and Matplotlib gone, the tables print, the stage imports, and the page names the extra."""
  program = f"""
import sys
from xml.etree import ElementTree
sys.modules.update(dict.fromkeys(("jinja2", "matplotlib", "markupsafe")))
from idistill_jax.stages import report as stage
from idistill_jax.report import gather, page, terminal
workdir = gather.artifacts.Workdir({str(workdir.root)!r})
terminal.print_summary(workdir)
try:
  report = gather.gather(workdir)
  page.render(report, page.draw(report))
except page.ReportUnavailableError as e:
  print("SAID", e)
"""
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1]
  )
  assert done.returncode == 0, done.stderr
  assert (
    "MRR@10" in done.stdout
    and "SAID the report needs jinja2: in the clone, run `source launch/env.sh report`" in done.stdout
  )


def test_a_hostile_page_leaves_the_console_empty(hostile_page, tmp_path):
  (tmp_path / "page.html").write_text(hostile_page)
  with browser.page() as tab:
    tab.open((tmp_path / "page.html").as_uri(), "document.documentElement?.dataset.ready === '6'")
    tab.run("list.querySelectorAll('details').forEach(one => { one.open = true; })")
    tab.wait("list.querySelectorAll('li').length > 0")
    assert not tab.run("window.evil") and not tab.errors
    assert tab.run("document.documentElement.dataset.error") is None
    assert tab.run("document.querySelectorAll('details.query').length") >= 6
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert tab.picture(tmp_path / "hostile.png") < 0.97
    # Names without a space make no page wider than a phone.
    tab.look(width=320, height=844)
    assert tab.run("document.documentElement.scrollWidth") == 320


def test_browser_filters_opens_queries_and_tells_of_a_broken_page(text, tmp_path):
  typing = """<script>
    filter.value = "q59"; filter.dispatchEvent(new Event("input"));
    list.querySelector("details:not([hidden])").open = true;
  </script></body>"""
  # The page's policy would stop this test's script as it stops a stranger's: it is taken out for it.
  unlocked = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
  path = tmp_path / "page.html"
  with browser.page() as tab:
    for content, visible, items in ((unlocked, 1, 25), (text, 20, 0)):
      path.write_text(content.replace("</body>", typing))
      tab.open(path.as_uri(), "document.documentElement?.dataset.ready === '60'")
      tab.wait(f"list.querySelectorAll('li').length === {items}")
      assert tab.run("list.querySelectorAll('details:not([hidden])').length") == visible
      assert tab.run("shown.textContent") == f"{visible if items else 60} of 60 queries"
    path.write_text(text.replace('"queries":[', '"queries":[{},', 1))
    tab.open(path.as_uri(), "Boolean(document.documentElement?.dataset.error)")
    assert tab.run("document.documentElement.dataset.ready") is None


def test_leakage_is_said_before_anything_else(report, text):
  assert report.evaluation is not None and claims.leak(report.evaluation.leakage) is None
  leaky = dataclasses.replace(
    report.evaluation,
    leakage={"near_duplicate_queries": 2, "test_queries": 60, "examples": [["q1", "<b>t1", 1.0], ["q2", "t2", 0.9]]},
  )
  shown = rendered(dataclasses.replace(report, evaluation=leaky))
  said = "Leakage. Of 60 test queries 2 have a near-duplicate among the training queries (q1 ~ &lt;b&gt;t1, q2 ~ t2)"
  assert said in shown and shown.index(said) < shown.index("<h1>")
  assert "Leakage" not in text


def test_results_of_an_earlier_model_are_said_before_anything_else(workdir, report, text, tmp_path):
  later = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  report_workdir.train_anew(later)
  later.execute(flow.STAGES["report"], config_lib.Config(name="quickstart"))
  shown = (later.root / report_stage.PAGE).read_text()
  said = "Outdated. index, evaluate: made before train_retriever was made anew, of an earlier one."
  assert said in shown and shown.index(said) < shown.index("<h1>")
  assert said in " ".join(printed(later.root, width=200).split())
  assert "Outdated." not in text and "Outdated." not in printed(workdir.root) and report.outdated == {}


def test_passages_of_the_test_that_training_knew_are_said(workdir, report, text, tmp_path):
  said = "Of 2,000 passages that are right for a test query, 1,234 stand in a list that training learned from, 45 of"
  known = {"right_passages": 2000, "right_passages_in_training_lists": 1234,
           "right_passages_first_in_training_lists": 45, "test_queries": 60}  # fmt: skip
  shown = dataclasses.replace(report, evaluation=dataclasses.replace(report.evaluation, leakage=known))
  assert said in rendered(shown) and said not in text
  shutil.copytree(workdir.root, tmp_path / "w")
  path = tmp_path / "w" / "evaluate" / "metrics.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"leakage": known}))
  assert said in printed(tmp_path / "w", width=300) and said not in printed(workdir.root, width=300)
  # Nothing of it is shouted; a test query that was trained on is.
  assert claims.leak(known) is None
  assert "1 have a list that training learned from (q7)" in claims.leak(
    known | {"test_queries_trained_on": 1, "trained_on_examples": ["q7"]})


def test_a_result_that_rests_on_known_passages_is_said_first_and_one_that_does_not_in_passing(report):
  rest = {"of": "distilled against initial in MRR@10", "queries": 40, "delta": 0.061, "p": 0.004, "whole_delta": 0.09,
          "whole_p": 0.0001, "is_lost": False}  # fmt: skip
  known = {"right_passages": 60, "right_passages_in_training_lists": 50, "right_passages_first_in_training_lists": 20,
           "test_queries": 60, "familiar_queries": 20, "familiar_examples": [["q1", "<b>p1"]],
           "rest": rest}
  said = "does not rest on the 20 test queries whose right passage stood first: distilled against initial in MRR@10 is"
  assert said in claims.seen(known) and "+0.061 (p\u00a0=\u00a00.004) over the other 40" in claims.seen(known)
  assert claims.leak(known) is None
  # As much of it is left, and of too few to tell it from chance: neither is claimed.
  unsure = known | {"rest": rest | {"delta": 0.06, "p": 0.4}}
  said = "Whether the result rests on the 20 test queries whose right passage stood first cannot be told: distilled"
  assert said in claims.seen(unsure) and "does not rest" not in claims.seen(unsure) and claims.leak(unsure) is None
  lost = known | {"rest": rest | {"delta": 0.01, "p": 0.4, "is_lost": True}}
  shown = rendered(dataclasses.replace(report, evaluation=dataclasses.replace(report.evaluation, leakage=lost)))
  loud = "Leakage. 20 of 60 test queries have a right passage that stands first in a list that training learned from"
  assert f"{loud} (q1: &lt;b&gt;p1), and the result rests on them" in shown and shown.index(loud) < shown.index("<h1>")
  assert "rest on" not in claims.seen(lost)
  # Nothing measured without them, and no difference to begin with.
  assert "cannot be measured over the other 1" in claims.leak(known | {
    "rest": rest | {"delta": None, "p": None, "queries": 1, "is_lost": True}})
  assert "rest on" not in claims.seen(known | {"rest": rest | {"whole_p": 0.3}})


def test_of_rankings_made_elsewhere_the_page_does_not_say_that_an_llm_was_asked(report, text):
  assert "1,000 lists were put to the LLM." in text and "made elsewhere" not in text
  # Not all of them left out any: numbers that stood twice, ties and ranges are repaired, too.
  assert "A repaired answer was not quite as asked, for the reasons below" in text
  stages = tuple(
    dataclasses.replace(stage, counts={"lists": 993, "made_elsewhere": 993}) if stage.name == "labels" else stage
    for stage in report.stages
  )
  shown = rendered(dataclasses.replace(report, stages=stages))
  assert "1,000 rankings were made elsewhere: the run asked nobody." in shown and "put to the LLM" not in shown


def test_readers_tests_show_what_is_corrected(text):
  """In the reader's table, p and p corrected stand below each change."""
  assert re.search(r">p [<\d.&lt;]+, corrected [<\d.&lt;]+</span>", text)


def test_index_reader_and_corrected_tests_are_shown(text):
  assert "ScaNN: recall and latency" in text and "milliseconds of one query" in text and "Smaller vectors" in text
  assert "first results of the whole vectors" in text and "bytes a passage" in text
  assert "exactly over 100,000 of 21,015,324 passages, the judged ones and others drawn at random" in text
  assert "nDCG@10</th>" in text.partition("Smaller vectors")[2].partition("</thead>")[0]
  assert "Queries that ScaNN was tuned on: 155 of dev, 345 of train that taught nothing." in text
  assert "Answers of a reader" in text and "p, corrected" in text and "effect size" in text
  assert "read from distilled: thing 0" in text or '"said":{"initial":"nothing","distilled":"thing 0"}' in text


def test_page_fits_screens_in_light_and_dark(text, answered_text, tmp_path):
  judged, only_answers = tmp_path / "judged.html", tmp_path / "answers.html"
  judged.write_text(text)
  only_answers.write_text(answered_text)
  ready = "document.documentElement?.dataset.ready === '60'"
  with browser.page() as tab:
    # Nothing but tables scrolls sideways.
    widths = lambda: {tab.look(width=one, height=844) or one: tab.run("document.documentElement.scrollWidth")
                      for one in (320, 360, 390)}  # fmt: skip
    tab.look(width=320, height=844)
    tab.open(only_answers.as_uri(), ready)
    assert widths() == {320: 320, 360: 360, 390: 390}
    assert "not\u00a0in\u00a0the\u00a0first\u00a05" in tab.run("document.querySelector('#list .ranks').textContent")
    backgrounds = set()
    for width, height, dark in ((1280, 900, False), (390, 844, True), (390, 844, False)):
      tab.look(width=width, height=height, dark=dark)
      tab.open(judged.as_uri(), ready)
      assert tab.run("document.documentElement.scrollWidth") <= width
      backgrounds.add(tab.run("getComputedStyle(document.body).backgroundColor"))
      # Text and drawings on a ground, not a ground alone.
      assert 0.3 < tab.picture(tmp_path / f"{width}-{'dark' if dark else 'light'}.png") < 0.97
    assert len(backgrounds) == 2 and widths() == {320: 320, 360: 360, 390: 390}
    # However long the names are that stay while a table scrolls, the rest can be read beside them.
    tab.run("names = Array.from(document.querySelectorAll('.scroll tbody th'))")
    tab.run("names.forEach(one => one.append(' reordered by the ranker, fused'))")
    for width in (320, 360, 390):
      tab.look(width=width, height=844)
      assert 0 < tab.run("Math.max(...names.map(one => one.offsetWidth))") < 0.55 * width
    tab.run("filter.value = 'q59'; filter.dispatchEvent(new Event('input'))")
    assert tab.run("list.querySelectorAll('details:not([hidden])').length") == 1
    tab.run("filter.value = ''; change.value = 'hurt'; change.dispatchEvent(new Event('change'))")
    deltas = "Array.from(list.querySelectorAll('details:not([hidden]) .delta')).every(one => one.matches('.worse'))"
    assert tab.run(deltas) and not tab.errors
    # Control: an error of the page is noticed.
    tab.run("setTimeout(() => nothing.here, 0)")
    tab.wait("document.documentElement.dataset.error !== undefined")
    assert tab.errors
