"""The answer stage: the reader is asked through the providers, once for equal passages; what it says is scored."""

import importlib.util
import json
import pathlib
from collections.abc import Sequence

import pytest
from loopback_llm import LoopbackLLM, Reply

from idistill_jax import cli, config, fingerprints, flow, records, validation
from idistill_jax.data import example, tables
from idistill_jax.llm import budget, session
from idistill_jax.report import bills, gather
from idistill_jax.retrieval import runs, summary
from idistill_jax.stages import answer as stage
from idistill_jax.workdir import artifacts

PASSAGES = {"p1": "Paris is the capital of France.", "p2": "Rome is old.", "p3": "Oslo is cold.", "p4": "Bern."}
TITLES = {"p2": "Rome"}
QUESTIONS = {"q1": ("capital of France?", ("Paris",)), "q2": ("cold city?", ("Oslo",)), "q3": ("which?", ("Bern",))}
# q3 gets the same passages from both.
RUNS = {
  "initial": {"q1": ["p2", "p3"], "q2": ["p3", "p1"], "q3": ["p4", "p1"]},
  "distilled": {"q1": ["p1", "p2"], "q2": ["p1", "p3"], "q3": ["p4", "p1"]},
}


def workdir(root: pathlib.Path, measured: Sequence[str] = tuple(QUESTIONS)) -> artifacts.Workdir:
  found = artifacts.Workdir(root)

  def collection(job: artifacts.Job) -> None:
    passages = [records.Passage(id=one, title=TITLES.get(one, ""), text=text) for one, text in PASSAGES.items()]
    queries = [records.Query(id=one, text=text, split="test") for one, (text, _) in QUESTIONS.items()]
    queries.append(records.Query(id="q4", text="nobody knows", split="test"))
    example.write_records(job.out, tables.PASSAGES, passages)
    example.write_records(job.out, tables.QUERIES, queries)
    accepted = [records.Answers(query_id=one, answers=answers) for one, (_, answers) in QUESTIONS.items()]
    example.write_records(job.out, tables.ANSWERS, accepted)

  def evaluate(job: artifacts.Job) -> None:
    for system, orders in RUNS.items():
      runs.write_trec(job.out / "runs" / f"{system}.trec", runs.from_order(orders), system)
    summary.write_per_query(job.out / stage.PER_QUERY,
                            {system: {"answer@20": dict.fromkeys(measured, 0.0)} for system in RUNS})

  for name, run in (("collection", collection), ("evaluate", evaluate)):
    found.execute(artifacts.Stage(name=name, reads=(), config=("name",), run=run), config.Config(name="t"))
  return found


def configured(recording: pathlib.Path | None = None, **labels) -> config.Config:
  cfg = config.Config(name="t", labels=config.Labels(provider="replay", **labels))
  cfg.answer = config.Answer(systems="before_after", passages=2, recording=recording and str(recording))
  cfg.evaluate.resamples = 200
  return cfg


def recorded(path: pathlib.Path, said: dict[tuple[str, str], str]) -> pathlib.Path:
  lines = [
    {"query_id": query_id, "candidates": RUNS[system][query_id], "response": text}
    for (query_id, system), text in said.items()
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


SAID = {
  ("q1", "initial"): "Rome", ("q1", "distilled"): "Answer: Paris\nbecause it says so", ("q2", "initial"): "Oslo",
  ("q2", "distilled"): "the city of Oslo", ("q3", "initial"): "Bern",
}  # fmt: skip


def test_recorded_answers_are_scored_before_and_after(tmp_path):
  done = workdir(tmp_path / "w")
  cfg = configured(recorded(tmp_path / "said.jsonl", SAID))
  cfg.evaluate.parquet = importlib.util.find_spec("pyarrow") is not None
  manifest = done.execute(flow.STAGES["answer"], cfg)
  assert (done.folder("answer") / stage.PARQUET).exists() == cfg.evaluate.parquet
  metrics = json.loads((done.folder("answer") / "metrics.json").read_text())
  assert metrics["questions"] == 3 and metrics["measures"] == ["EM", "F1", "answer in context"]
  assert metrics["systems"]["initial"] == pytest.approx({"EM": 2 / 3, "F1": 2 / 3, "answer in context": 2 / 3})
  # "city of oslo" and "oslo" share one word of three and one.
  assert metrics["systems"]["distilled"] == pytest.approx({"EM": 2 / 3, "F1": 2.5 / 3, "answer in context": 1.0})
  test = metrics["tests"]["distilled vs initial"]["EM"]
  assert (test["wins"], test["losses"], test["ties"]) == (1, 1, 1)
  said = [json.loads(line) for line in (done.folder("answer") / "answers.jsonl").read_text().splitlines()]
  assert [one["said"] for one in said if one["query_id"] == "q1"] == ["Rome", "Paris"]
  assert manifest["counts"]["questions"] == 3 and not manifest["drops"]


def test_what_stands_in_context_is_what_the_reader_was_shown():
  """Title and text, and no more of them than the prompt holds."""
  passages = tables.Passages([records.Passage(id="p1", title="Oslo", text="It is cold there, and far from Bern.")])
  measure = lambda right, most: stage.score(
    ["initial"], [stage.Reply(query_id="q", system="initial", passage_ids=("p1",), said="x")], {"q": [right]},
    passages, most)["initial"]["answer in context"]["q"]
  assert measure("Oslo", 5) == 1.0 and measure("Bern", 30) == 1.0 and measure("Bern", 5) == 0.0


def test_a_question_that_evaluate_left_out_says_so_and_takes_no_place(tmp_path):
  cfg = configured(recorded(tmp_path / "said.jsonl", SAID))
  cfg.answer.questions = 2
  manifest = workdir(tmp_path / "w", ["q2", "q3"]).execute(flow.STAGES["answer"], cfg)
  assert manifest["counts"]["questions"] == 2
  assert {reason: one["examples"] for reason, one in manifest["drops"].items()} == {
    "question that evaluate left out": ["q1"]}


def test_one_answered_question_has_means_and_no_tests(tmp_path):
  said = {key: text for key, text in SAID.items() if key[0] == "q3"}
  done = workdir(tmp_path / "w")
  done.execute(flow.STAGES["answer"], configured(recorded(tmp_path / "said.jsonl", said)))
  metrics = json.loads((done.folder("answer") / "metrics.json").read_text())
  assert metrics["questions"] == 1 and metrics["systems"]["initial"]["EM"] == 1.0 and metrics["tests"] == {}
  assert gather.evaluation(done, "answer").main_measure == "F1"


def test_a_system_that_found_nothing_for_a_question_has_it_wrong(tmp_path, monkeypatch):
  cfg = configured(recorded(tmp_path / "said.jsonl", SAID))
  monkeypatch.setitem(RUNS, "distilled", {one: order for one, order in RUNS["distilled"].items() if one != "q1"})
  done = workdir(tmp_path / "w")
  manifest = done.execute(flow.STAGES["answer"], cfg)
  metrics = json.loads((done.folder("answer") / "metrics.json").read_text())
  # Before, Paris was right (see above).
  assert metrics["questions"] == 3 and metrics["systems"]["distilled"]["EM"] == pytest.approx(1 / 3)
  assert metrics["systems"]["distilled"]["answer in context"] == pytest.approx(2 / 3)
  assert manifest["drops"]["question for which distilled found nothing (counts as wrong)"]["examples"] == ["q1"]


def test_a_question_for_which_no_system_found_anything_is_wrong_for_all(tmp_path, monkeypatch):
  cfg = configured(recorded(tmp_path / "said.jsonl", SAID))
  for system, orders in RUNS.items():
    monkeypatch.setitem(RUNS, system, {one: order for one, order in orders.items() if one != "q1"})
  done = workdir(tmp_path / "w")
  manifest = done.execute(flow.STAGES["answer"], cfg)
  metrics = json.loads((done.folder("answer") / "metrics.json").read_text())
  assert metrics["questions"] == 3
  # Before, Rome was wrong and Paris right (see above).
  assert [metrics["systems"][system]["EM"] for system in RUNS] == pytest.approx([2 / 3, 1 / 3])
  assert [metrics["systems"][system]["answer in context"] for system in RUNS] == pytest.approx([2 / 3, 2 / 3])
  assert {reason: one["examples"] for reason, one in manifest["drops"].items()} == {
    f"question for which {system} found nothing (counts as wrong)": ["q1"] for system in RUNS}


def test_a_question_without_an_answer_of_both_is_dropped(tmp_path):
  said = {key: text for key, text in SAID.items() if key != ("q2", "distilled")}
  manifest = workdir(tmp_path / "w").execute(flow.STAGES["answer"], configured(recorded(tmp_path / "said.jsonl", said)))
  assert manifest["counts"]["questions"] == 2
  assert manifest["drops"]["not recorded"]["examples"] == ["q2"]
  assert manifest["drops"]["question answered for some systems only"]["examples"] == ["q2"]
  with pytest.raises(ValueError, match="answered none of 3 questions for all of initial, distilled"):
    workdir(tmp_path / "v").execute(flow.STAGES["answer"], configured(recorded(tmp_path / "none.jsonl", {})))


@pytest.fixture
def openai_sdk(monkeypatch) -> None:
  """The real SDK, with a key for the loopback server."""
  pytest.importorskip("openai")
  monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")


def live(server, **labels) -> config.Config:
  """A reader of its own behind the loopback server, which says 11 tokens in and 7 out."""
  cfg = configured(base_url=f"{server.url}/v1", **labels)
  cfg.labels.provider, cfg.answer.model = "openai", "reader"
  return cfg


@pytest.mark.usefixtures("openai_sdk")
def test_a_live_reader_is_asked_once_and_then_the_cache(tmp_path, capsys):
  done = workdir(tmp_path / "w")
  with LoopbackLLM(lambda number, prompt: Reply("Paris" if "capital of France" in prompt else "?")) as server:
    cfg = live(server)
    stage.print_estimate(cli.Runner(cfg, done, []))
    assert not server.asked and "2 systems, 5 calls, 0 of them answered" in capsys.readouterr().out
    done.execute(flow.STAGES["answer"], cfg)
    stage.print_estimate(cli.Runner(cfg, done, []))
    assert "5 calls, 5 of them answered" in capsys.readouterr().out
    # Six pairs of question and system, two of them equal.
    assert len(server.asked) == 5 and {body["model"] for body in server.bodies} == {"reader"}
    cfg.evaluate.resamples = 300
    done.execute(flow.STAGES["answer"], cfg)
    assert len(server.asked) == 5


def test_nobody_is_asked_where_the_config_says_none(tmp_path):
  cfg = config.Config(name="t")
  manifest = workdir(tmp_path).execute(flow.STAGES["answer"], cfg)
  assert manifest["counts"] == {"questions": 0}
  assert fingerprints.answer(cfg) != fingerprints.answer(configured(recorded(tmp_path / "said.jsonl", SAID)))


@pytest.mark.usefixtures("openai_sdk")
def test_the_reader_has_prices_of_its_own_and_its_cost_is_counted(tmp_path):
  done = workdir(tmp_path / "w")
  with LoopbackLLM(lambda number, prompt: Reply("Paris")) as server:
    cfg = live(server, dollars_per_million_input_tokens=1e6, dollars_per_million_output_tokens=1e6)
    # Another model than the labelling's: its prices are not the labelling's.
    assert done.execute(flow.STAGES["answer"], cfg)["counts"]["dollars"] is None
    cfg.answer.dollars_per_million_input_tokens, cfg.answer.dollars_per_million_output_tokens = 2.0, 10.0
    counts = done.execute(flow.STAGES["answer"], cfg)["counts"]
    cfg.answer.model, cfg.answer.dollars_per_million_input_tokens = None, None
    assert session.of_reader(cfg).dollars_per_million_input_tokens == 1e6
  assert (counts["answers"], counts["input_tokens"], counts["output_tokens"]) == (5, 55, 35)
  assert counts["dollars"] == pytest.approx((55 * 2.0 + 35 * 10.0) / 1e6)
  assert json.loads((done.folder("answer") / "metrics.json").read_text())["usage"]["dollars"] == counts["dollars"]
  shown = next(one for one in gather.stage_runs(done) if one.name == "answer")
  assert (bills.tokens(shown), bills.dollars(shown)) == (90, counts["dollars"])
  assert bills.total([shown]) == counts["dollars"] and "dollars" not in bills.other_counts(shown)


@pytest.mark.usefixtures("openai_sdk")
def test_the_budget_holds_for_the_reader_too(tmp_path):
  done = workdir(tmp_path / "w")
  with LoopbackLLM(lambda number, prompt: Reply("Paris")) as server:
    # A call is bound by its bytes and 1,024 tokens, and takes 18: there is room for some, and not for all.
    cfg = live(server, max_tokens=1510, concurrency=1)
    with pytest.raises(budget.Exhausted, match=r"report without a reader's answers: --config\.answer\.systems=none"):
      done.execute(flow.STAGES["answer"], cfg)
    asked = len(server.asked)
    cfg.labels.max_tokens = 100_000
    done.execute(flow.STAGES["answer"], cfg)
    assert len(server.asked) == 5, "what was answered within the budget is not paid for again"
  assert 0 < asked < 5


def test_the_readers_prices_are_those_of_the_model_that_reads():
  listed = dict(dollars_per_million_input_tokens=1.0, dollars_per_million_output_tokens=2.0, priced_model="labeller")
  cfg = configured(model="labeller", **listed)
  cfg.answer.model = None
  prices = lambda: session.prices(session.of_reader(cfg))
  assert prices() == budget.Prices(1.0, 2.0)
  cfg.labels.model = "other"
  assert prices() == budget.Prices(), "they are the labeller's"
  cfg.answer.dollars_per_million_input_tokens, cfg.answer.dollars_per_million_output_tokens = 3.0, 4.0
  assert prices() == budget.Prices(3.0, 4.0), "the reader's own are of whoever reads"
  cfg.answer.model = "reader"
  assert prices() == budget.Prices(3.0, 4.0)


def test_a_budget_in_dollars_needs_the_readers_prices():
  cfg = configured(max_dollars=1.0, dollars_per_million_input_tokens=1.0, dollars_per_million_output_tokens=1.0)
  validation.validate(cfg)
  cfg.answer.model = "reader"
  with pytest.raises(config.ConfigError, match=r"holds for the reader too"):
    validation.validate(cfg)
  cfg.answer.dollars_per_million_input_tokens = 1.0
  with pytest.raises(config.ConfigError, match="go together"):
    validation.validate(cfg)
