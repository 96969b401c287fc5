"""The labels stage: recorded and live lists in, ranked lists and their statuses out."""

import json
import pathlib
import re
import shutil
import tracemalloc

import pytest
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import cli, config, flow, records, validation
from idistill_jax.data import example, tables
from idistill_jax.llm import cache, prompt
from idistill_jax.llm.providers import replay
from idistill_jax.stages import labels as stage
from idistill_jax.workdir import artifacts

QUICKSTART = pathlib.Path(stage.__file__).parents[1] / "data" / "quickstart"
RECORDING = "package:quickstart/llm_answers.jsonl"
KEY = "not-a-real-key-5f1c0a77"


def make_workdir(root, passages, queries, lists=None, candidates=()):
  """A workdir whose collection and candidates are committed."""

  def collection(job):
    example.write_records(job.out, tables.PASSAGES, passages)
    example.write_records(job.out, tables.QUERIES, queries)
    if lists is not None:
      example.write_records(job.out, tables.LISTS, lists)

  def found(job):
    example.write_records(job.out, "candidates", candidates)

  workdir = artifacts.Workdir(root)
  cfg = config.Config(name="t")
  workdir.execute(artifacts.Stage(name="collection", reads=(), config=(), run=collection), cfg)
  workdir.execute(artifacts.Stage(name="candidates", reads=("collection",), config=(), run=found), cfg)
  return workdir


def candidate_list(query_id, ids, scores=()):
  return records.CandidateList(query_id=query_id, passage_ids=tuple(ids), scores=tuple(scores))


def small(root, queries=6, passages=12, lists=None):
  """Queries `q0`.. with all passages as candidates, `p0` best."""
  ids = [f"p{i}" for i in range(passages)]
  return make_workdir(
    root,
    [records.Passage(id=i, title="", text=f"text of {i}") for i in ids],
    [records.Query(id=f"q{i}", text=f"query {i}", split="train") for i in range(queries)]
    + [records.Query(id="t0", text="query of the test split", split="test")],
    lists,
    [candidate_list(f"q{i}", ids, [1.0 - j / passages for j in range(passages)]) for i in range(queries)],
  )


def live(server, **fields):
  defaults = dict(
    provider="openai", model="m", base_url=f"{server.url}/v1", list_size=5, concurrency=3, attempts=1
  )
  return config.Config(name="t", labels=config.Labels(**{**defaults, **fields}))


@pytest.fixture
def key(monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.setenv("OPENAI_API_KEY", KEY)


def rankings(workdir):
  return list(example.read_records(workdir.folder("labels"), artifacts.RANKINGS, records.RankedList))


def ranked(query_id, shown, permutation, cfg, **fields):
  """What a replayed answer that puts `shown` in this order is written as."""
  return records.RankedList(
    query_id=query_id, passage_ids=tuple(shown[i] for i in permutation), permutation=permutation,
    template=prompt.fingerprint(), model=replay.fingerprint(cfg.labels.recording), **{"status": "complete", **fields},
  )


def statuses(workdir):
  return json.loads((workdir.folder("labels") / stage.STATUSES).read_text())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
  """The quickstart's recorded answers over stand-in passages."""
  answers = [json.loads(line) for line in (QUICKSTART / "llm_answers.jsonl").read_text().splitlines()]
  ids = sorted({passage_id for answer in answers for passage_id in answer["candidates"]})
  queries = [json.loads(line) for line in (QUICKSTART / "queries.jsonl").read_text().splitlines()]
  workdir = make_workdir(
    tmp_path_factory.mktemp("recorded"),
    [records.Passage(id=i, title=i, text="documentation") for i in ids],
    [records.Query(id=q["_id"], text=q["text"], split=q["metadata"]["split"]) for q in queries],
    [candidate_list(answer["query_id"], answer["candidates"]) for answer in answers],
  )
  cfg = config.Config(name="t", labels=config.Labels(provider="replay", recording=RECORDING))
  return workdir, cfg, workdir.execute(flow.STAGES["labels"], cfg), answers


def test_recorded_answers_become_rankings(recorded):
  workdir, cfg, manifest, answers = recorded
  found = rankings(workdir)
  assert manifest["counts"]["lists"] == len(found) == 1000 and not manifest["drops"]
  for ranking, answer in zip(found, answers, strict=True):
    order = tuple(int(number) - 1 for number in re.findall(r"\d+", answer["response"]))
    assert ranking == ranked(answer["query_id"], answer["candidates"], order, cfg)


def test_statuses_of_recorded_answers(recorded):
  workdir, *_ = recorded
  found = statuses(workdir)
  assert (found["complete"], found["repaired"], found["refused"]) == (1000, 0, {})
  assert abs(found["position_bias"]) < 0.01
  assert found["usage"] == {"answers": 1000, "input_tokens": None, "output_tokens": None, "dollars": None}
  assert found["template"] == prompt.fingerprint()


@pytest.mark.parametrize(("asked", "recorded_as"), [("m", "m"), ("gpt-x", "m"), ("m-latest", "m-latest")])
def test_rankings_say_which_model_answered(tmp_path, key, asked, recorded_as):
  workdir = small(tmp_path, queries=2)
  with LoopbackLLM(reversed_order) as server:
    cfg = live(server, model=asked)
    for _ in range(2):
      shutil.rmtree(workdir.root / "labels", ignore_errors=True)
      workdir.execute(flow.STAGES["labels"], cfg)
      assert {ranking.model for ranking in rankings(workdir)} == {recorded_as}
      assert statuses(workdir)["answered_by"] == {"m": 2}


def test_a_second_recorded_run_is_answered_by_the_cache_and_neither_is_paid_for(recorded, monkeypatch):
  workdir, cfg, manifest, _ = recorded
  assert workdir.is_done(flow.STAGES["labels"], cfg)
  before = rankings(workdir)
  shutil.rmtree(workdir.folder("labels"))
  asked = []
  monkeypatch.setattr(replay.Replay, "ask", lambda self, request: asked.append(request))
  again = workdir.execute(flow.STAGES["labels"], cfg)
  assert (manifest["counts"]["paid"], again["counts"]["paid"]) == (0, 0)
  assert rankings(workdir) == before and not asked


def test_only_the_first_lists_are_used(recorded):
  workdir, _, _, answers = recorded
  fewer = config.Config(name="t", labels=config.Labels(provider="replay", recording=RECORDING, lists=7))
  assert not workdir.is_done(flow.STAGES["labels"], fewer)
  copy = artifacts.Workdir(workdir.root.with_name("fewer"))
  shutil.copytree(workdir.root, copy.root)
  copy.execute(flow.STAGES["labels"], fewer)
  assert [r.query_id for r in rankings(copy)] == [answer["query_id"] for answer in answers[:7]]


def test_of_rankings_made_elsewhere_the_seed_draws_as_many_as_are_wanted(tmp_path):
  workdir = small(tmp_path / "w", queries=40)
  elsewhere = [records.RankedList(query_id=f"q{i}", passage_ids=("p1", "p0"), status="complete") for i in range(40)]
  example.write_records(workdir.folder("collection"), tables.RANKINGS, elsewhere)

  def taken(seed: int = 0, lists: int = 10) -> list[str]:
    workdir.execute(flow.STAGES["labels"], config.Config(name="t", seed=seed, labels=config.Labels(lists=lists)))
    return [one.query_id for one in rankings(workdir)]

  # All of them, as they came.
  whole = [one.query_id for one in elsewhere]
  assert taken(lists=1000) == taken(seed=1, lists=40) == whole
  ten, twenty, other = taken(), taken(lists=20), taken(seed=1)
  assert len(ten) == len(other) == 10 and set(ten) < set(twenty) and set(ten) != set(other)
  # A sample of the file and not its beginning, in the file's order.
  for found in (ten, twenty, other):
    assert found != whole[: len(found)] and sorted(found, key=whole.index) == found
  assert taken() == ten


@pytest.mark.parametrize(("lists", "size", "said"), [
  (4, 2, None), (5, 2, "4 rankings, 0 of them longer than labels.list_size=2, are labels as they are"),
  (4, 1, "4 rankings, 4 of them longer than labels.list_size=1, are labels as they are"),
])
def test_rankings_made_elsewhere_that_are_not_what_the_config_says_are_told(tmp_path, caplog, lists, size, said):
  """Sizes are compared by changing them, and these stay as they are."""
  workdir = small(tmp_path / "w", queries=4)
  elsewhere = [records.RankedList(query_id=f"q{i}", passage_ids=("p1", "p0"), status="complete") for i in range(4)]
  example.write_records(workdir.folder("collection"), tables.RANKINGS, elsewhere)
  cfg = config.Config(name="t", labels=config.Labels(lists=lists, list_size=size))
  workdir.execute(flow.STAGES["labels"], cfg)
  assert any("are labels as they are" in one for one in caplog.messages) == (said is not None)
  assert said is None or any(said in one for one in caplog.messages)


def test_rankings_made_elsewhere_say_how_they_depend_on_the_place_where_an_order_was_shown(tmp_path):
  workdir = small(tmp_path / "w", queries=3)
  said = lambda **of: records.RankedList(passage_ids=("p2", "p1", "p0"), **of)

  def taken(*elsewhere) -> dict:
    example.write_records(workdir.folder("collection"), tables.RANKINGS, elsewhere)
    shutil.rmtree(workdir.root / "labels", ignore_errors=True)
    counts = workdir.execute(flow.STAGES["labels"], config.Config(name="t"))["counts"]
    assert "position_bias" not in counts and counts["complete"] + counts["repaired"] == len(elsewhere)
    return statuses(workdir)

  unknown = said(query_id="q0", status="complete")
  assert taken(unknown) == {"complete": 1, "repaired": 0, "repairs": {}, "position_bias": None}
  backwards = said(query_id="q1", status="complete", permutation=(2, 1, 0))
  assert taken(unknown, backwards)["position_bias"] == -1.0
  # Of three passages it named two, in the order shown.
  repaired = said(query_id="q2", status="repaired", permutation=(0, 2, 1), filled_places=(2,), repairs=("missing",))
  assert taken(unknown, backwards, repaired) == {
    "complete": 2, "repaired": 1, "repairs": {"missing": 1}, "position_bias": 0.0}


def test_what_cannot_be_used_is_dropped_by_name(tmp_path):
  recording = tmp_path / "r.jsonl"
  shown = ["p1", "p0", "p2", "p3"]
  answers = {
    "q0": "[2] > [1] > [4] > [3]",
    "q1": "[2] > [1] > [4]",
    "q2": "I cannot rank these.",
    "q3": "[2] > [1] > [4] > [3]",
  }
  recording.write_text(
    "".join(
      json.dumps({"query_id": q, "candidates": shown, "response": text}) + "\n" for q, text in answers.items()
    )
  )
  workdir = small(
    tmp_path / "w",
    lists=[
      candidate_list("q0", shown),
      candidate_list("q1", shown),
      candidate_list("q2", shown),
      candidate_list("q3", shown[::-1]),
      candidate_list("nobody", shown),
      candidate_list("t0", shown),
      candidate_list("q4", ["p1", "gone"]),
      candidate_list("q4", ["p1", "p1", "p2"]),
      candidate_list("q5", ["p1"]),
    ],
  )
  cfg = config.Config(name="t", labels=config.Labels(provider="replay", recording=str(recording)))
  manifest = workdir.execute(flow.STAGES["labels"], cfg)
  assert rankings(workdir) == [
    ranked("q0", shown, (1, 0, 3, 2), cfg),
    ranked("q1", shown, (1, 0, 3, 2), cfg, status="repaired", filled_places=(3,), repairs=("missing",)),
  ]
  assert {reason: drop["examples"] for reason, drop in manifest["drops"].items()} == {
    "refused: refusal": ["q2"],
    "not recorded": ["q3"],
    "list of a query that the collection lacks": ["nobody"],
    "list of a query outside the training split": ["t0"],
    "list with a passage that the collection lacks": ["q4"],
    "list that shows a passage twice": ["q4"],
    "list of fewer than two passages": ["q5"],
  }
  found = statuses(workdir)
  assert (found["complete"], found["repaired"], found["refused"]) == (1, 1, {"refusal": 1})
  assert found["unanswered"] == {"not recorded": 1} and found["repairs"] == {"missing": 1}


def test_every_dropped_list_is_listed_with_its_answer(tmp_path, key):
  workdir = small(tmp_path, queries=14, lists=[candidate_list(f"q{i}", ["p0", "p1", "p2"]) for i in range(14)]
                  + [candidate_list("q3", ["p1"])])
  answer = Reply("I cannot say, 難しい" + "." * 900)
  refusing = lambda number, text: reversed_order(number, text) if "query 13\n" in text else answer
  with LoopbackLLM(refusing) as server:
    manifest = workdir.execute(flow.STAGES["labels"], live(server, refused_retries=0))
  rows = [json.loads(line) for line in (workdir.folder("labels") / stage.DROPPED).read_text("utf-8").splitlines()]
  assert rows[0] == {"query_id": "q3", "reason": "list of fewer than two passages"}
  assert [row["query_id"] for row in rows[1:]] == [f"q{i}" for i in range(13)]
  assert {(row["reason"], row["model"]) for row in rows[1:]} == {("refused: refusal", "m")}
  assert all(row["answer"].startswith("I cannot say, 難しい") and len(row["answer"]) == 500 for row in rows[1:])
  counts = manifest["counts"]
  assert (counts["lists"], counts["dropped"], counts["dropped_listed_in"]) == (1, 14, stage.DROPPED)
  assert manifest["drops"]["refused: refusal"]["count"] == 13


def test_live_lists_are_the_best_candidates_shuffled(tmp_path, key):
  workdir = small(tmp_path)
  with LoopbackLLM() as server:
    workdir.execute(
      flow.STAGES["labels"], live(server, dollars_per_million_input_tokens=1.0, dollars_per_million_output_tokens=10.0)
    )
  shown = {r.query_id: r.passage_ids[::-1] for r in rankings(workdir)}  # the server ranks the last first
  assert len(shown) == 6
  assert all(sorted(ids) == [f"p{i}" for i in range(5)] for ids in shown.values())
  assert len(set(shown.values())) > 3 and tuple(f"p{i}" for i in range(5)) not in list(shown.values())[:1]
  assert statuses(workdir)["position_bias"] == -1.0
  assert statuses(workdir)["usage"] == {
    "answers": 6,
    "input_tokens": 66,
    "output_tokens": 42,
    "dollars": pytest.approx((66 + 420) / 1e6),
  }


def test_the_seed_chooses_and_shuffles_and_fewer_lists_are_the_first_of_more():
  candidates = [candidate_list(f"q{i}", [f"p{j}" for j in range(30)]) for i in range(50)]
  first = stage.sampled(candidates, size=20, window=20, seed=0)
  assert first == stage.sampled(candidates[::-1], size=20, window=20, seed=0)
  other = stage.sampled(candidates, size=20, window=20, seed=1)
  assert [s.query_id for s in first] != [s.query_id for s in other]
  by_id = {s.query_id: s for s in other}
  assert all(s.passage_ids != by_id[s.query_id].passage_ids for s in first)
  ranks = [[int(i[1:]) for i in s.passage_ids] for s in first]
  bias = stage.position_bias((r, ()) for r in ranks)
  assert abs(bias) < 0.1


def test_of_deep_candidates_only_the_best_are_held():
  deep = (records.CandidateList(query_id=f"q{i}", passage_ids=tuple(f"q{i}/p{n}" for n in range(500)), scores=())
          for i in range(200))
  tracemalloc.start()
  try:
    found = stage.sampled(deep, size=2, window=20, seed=0)
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # All of them would be 100,000 ids, of more than fifty bytes each.
  assert len(found) == 200 and most < 10**6


def test_killed_and_run_again_only_the_rest_is_paid(tmp_path, key):
  workdir = small(tmp_path)
  with LoopbackLLM(
    lambda n, text: reversed_order(n, text) if n <= 3 else Reply("bad key", status=401)
  ) as server:
    with pytest.raises(ValueError, match="401"):
      workdir.execute(flow.STAGES["labels"], live(server, concurrency=1))
    answered = len(server.answered)
    server.reply = reversed_order
    manifest = workdir.execute(flow.STAGES["labels"], live(server, concurrency=1))
  assert answered == 3
  assert manifest["counts"]["paid"] == 3 and manifest["counts"]["lists"] == 6


def test_several_orders_agree_or_not_and_weigh(tmp_path, key):
  """The server puts the passages of q0 in one order whatever it is shown, and all others as they are shown."""

  def reply(number, text):
    shown = re.findall(r"^\[\d+\] text of p(\d+)$", text, re.MULTILINE)
    places = range(len(shown))
    if "query 0\n" in text:
      places = sorted(places, key=lambda i: int(shown[i]))
    return Reply(" > ".join(f"[{i + 1}]" for i in places))

  workdir = small(tmp_path)
  with LoopbackLLM(reply) as server:
    workdir.execute(flow.STAGES["labels"], live(server, orders=3, weigh_by_agreement=True))
    found = {one.query_id: one for one in rankings(workdir)}
    assert len(server.asked) == 18
    assert found["q0"].passage_ids == ("p0", "p1", "p2", "p3", "p4")
    assert (found["q0"].agreement, found["q0"].weight) == (1.0, 1.0)
    others = [one for query_id, one in found.items() if query_id != "q0"]
    assert all(one.agreement < 1 and one.weight == max(0.0, one.agreement) for one in others)
    said = statuses(workdir)
    assert 0.3 < said["position_bias"] < 1 and -0.4 < said["agreement"] < 0.8
    workdir.execute(flow.STAGES["labels"], live(server, orders=3))
    assert len(server.asked) == 18
  assert all(one.weight == 1.0 for one in rankings(workdir))


def test_a_query_that_a_log_repeats_is_paid_for_once(tmp_path, key):
  passages = [records.Passage(id=f"p{i}", title="", text=f"text of {i}") for i in range(6)]
  texts = ["how to merge", "How to  merge", "sort", "how to merge", "split"]
  queries = [records.Query(id=f"q{i}", text=text, split="train") for i, text in enumerate(texts)]
  ids = [passage.id for passage in passages]
  workdir = make_workdir(tmp_path / "w", passages, queries, None,
                         [candidate_list(query.id, ids, [1.0 - i / 6 for i in range(6)]) for query in queries])
  with LoopbackLLM() as server:
    manifest = workdir.execute(flow.STAGES["labels"], live(server))
    assert len(server.bodies) == 3
  assert manifest["drops"]["list of a query that repeats another's text"]["count"] == 2
  by_text = {texts[int(one.query_id[1:])].lower() for one in rankings(workdir)}
  assert len(rankings(workdir)) == 3 and {"sort", "split"} < by_text


def test_long_lists_are_asked_about_in_windows(tmp_path, key):
  def reply(number, text):
    shown = re.findall(r"^\[\d+\] text of p(\d+)$", text, re.MULTILINE)
    return Reply(" > ".join(f"[{i + 1}]" for i in sorted(range(len(shown)), key=lambda i: -int(shown[i]))))

  workdir = small(tmp_path)
  with LoopbackLLM(reply) as server:
    workdir.execute(flow.STAGES["labels"], live(server, list_size=12, window=5, stride=2))
  assert len(server.asked) == 6 * 5
  for one in rankings(workdir):
    assert one.passage_ids[:3] == ("p11", "p10", "p9") and sorted(one.permutation) == list(range(12))


def test_a_refused_answer_is_asked_for_again_within_bounds(tmp_path, key):
  workdir = small(tmp_path)
  refusing = lambda number, text: Reply("I cannot.") if "query 1\n" in text else reversed_order(number, text)
  with LoopbackLLM(refusing) as server:
    manifest = workdir.execute(flow.STAGES["labels"], live(server, refused_retries=2))
  again = [text for text in server.asked if "query 1\n" in text]
  assert len(again) == len(set(again)) == 3, "each time in another order"
  assert manifest["drops"] == {"refused: refusal": {"count": 1, "examples": ["q1"]}}
  assert statuses(workdir)["refused_answers"] == {"refusal": 3}
  first = again[0]
  with LoopbackLLM(lambda n, text: Reply("no") if text == first else reversed_order(n, text)) as server:
    other = small(tmp_path / "other")
    assert other.execute(flow.STAGES["labels"], live(server))["counts"]["lists"] == 6


def test_an_estimate_asks_nothing_and_is_near(tmp_path, key, capsys, monkeypatch):
  workdir = small(tmp_path)
  with LoopbackLLM() as server:
    cfg = live(server, dollars_per_million_input_tokens=1e6, dollars_per_million_output_tokens=0.0)
    runner = cli.Runner(cfg, workdir, [])
    stage.print_estimate(runner)
    said = capsys.readouterr().out
    assert not server.asked
    assert "6 lists, 6 calls, 0 of them answered by the cache" in said
    workdir.execute(flow.STAGES["labels"], cfg)
    real = sum(prompt.tokens(text) for text in server.asked)
    assert float(re.search(r"about \$([\d.]+)", said)[1]) == pytest.approx(real, rel=0.02)
    stage.print_estimate(runner)
  assert "6 calls, 6 of them answered by the cache" in capsys.readouterr().out
  cfg.labels.provider, cfg.labels.model = "openai_batch", "other"
  stage.print_estimate(runner)
  halved = capsys.readouterr().out
  assert float(re.search(r"about \$([\d.]+)", halved)[1]) == pytest.approx(real / 2, rel=0.02)
  assert "within a day, as a batch" in halved
  cfg.labels.provider = "openai"
  monkeypatch.delenv("OPENAI_API_KEY")
  cfg.labels.base_url = None
  stage.print_estimate(cli.Runner(cfg, workdir, []))
  assert re.search(r"6 calls.*\nthe cache was not looked into: no API key", capsys.readouterr().out, re.DOTALL)


@pytest.mark.parametrize("fields", [{"orders": 3}, {"list_size": 10, "window": 4, "stride": 2}])
def test_an_estimate_knows_the_answers_to_every_order_and_window(tmp_path, key, capsys, fields):
  workdir = small(tmp_path)
  with LoopbackLLM() as server:
    workdir.execute(flow.STAGES["labels"], live(server, lists=3, **fields))
    stage.print_estimate(cli.Runner(live(server, **fields), workdir, []))
    asked = len(server.asked)
  assert f"6 lists, {2 * asked} calls, {asked} of them answered by the cache" in capsys.readouterr().out


def test_no_usable_answer_is_an_error_that_says_how_to_ask_again(tmp_path, key):
  workdir = small(tmp_path)
  labels, mended = flow.STAGES["labels"], []
  with LoopbackLLM(lambda n, text: reversed_order(n, text) if mended else Reply("", finish="content_filter")) as server:
    cfg = live(server)
    said = r"none of 6 lists.*6: refused: empty \(ended by: blocked\).*dropped.jsonl"
    with pytest.raises(ValueError, match=said) as e:
      workdir.execute(labels, cfg)
    *_, command, path, dropped = str(e.value).split()
    assert len(pathlib.Path(dropped).read_text().splitlines()) == 6
    mended.append(True)
    with pytest.raises(ValueError, match=said):  # answers are kept, whatever they say
      workdir.execute(labels, cfg)
    cache.main([command, path, dropped])
    assert workdir.execute(labels, cfg)["counts"]["lists"] == 6


def test_what_one_model_refused_another_is_not_asked_for_anew(tmp_path, key):
  workdir = small(tmp_path)
  later = lambda number, text: Reply("") if "query 3\n" in text else reversed_order(number, text)
  with LoopbackLLM(lambda number, text: (later if number >= 6 else reversed_order)(number, text)) as server:
    workdir.execute(flow.STAGES["labels"], live(server))
    other = live(server, model="other", refused_retries=0)
    assert workdir.execute(flow.STAGES["labels"], other)["counts"]["lists"] == 5
    cache.main(["forget", str(workdir.cache / "llm.sqlite"), str(workdir.folder("labels") / stage.DROPPED)])
    assert workdir.execute(flow.STAGES["labels"], live(server))["counts"]["paid"] == 0


def test_no_lists_is_an_error(tmp_path, key):
  workdir = small(tmp_path, lists=[candidate_list("t0", ["p1", "p2"])])
  with (
    LoopbackLLM() as server,
    pytest.raises(ValueError, match=r"no list to ask about.*outside the training split"),
  ):
    workdir.execute(flow.STAGES["labels"], live(server))


def test_the_key_is_in_no_file_of_the_workdir(tmp_path, key):
  workdir = small(tmp_path)
  with LoopbackLLM() as server:
    workdir.execute(flow.STAGES["labels"], live(server))
  files = [path for path in workdir.root.rglob("*") if path.is_file()]
  assert len(files) > 5
  assert all(KEY.encode() not in path.read_bytes() for path in files)


@pytest.mark.parametrize(
  "field", [{"list_size": 1}, {"lists": 0}, {"passage_tokens": 0}, {"concurrency": 0}, {"attempts": 0},
            {"window": 1}, {"stride": 0}, {"stride": 21}, {"orders": 0}, {"refused_retries": -1}, {"max_dollars": 1.0},
            {"weigh_by_agreement": True}, {"requests_per_minute": 0.0}, {"timeout_seconds": 0.0}],
)
def test_a_config_that_asks_for_nothing_is_refused(field):
  validation.validate(config.Config(name="t"))
  with pytest.raises(config.ConfigError, match=next(iter(field))):
    validation.validate(config.Config(name="t", labels=config.Labels(**field)))


def test_position_bias_is_spearman_over_named_passages():
  answer = lambda order, filled=(): (order, filled)
  assert stage.position_bias([answer([0, 1, 2, 3])]) == 1.0
  assert stage.position_bias([answer([3, 2, 1, 0])]) == -1.0
  assert stage.position_bias([answer([1, 0, 2])]) == 0.5  # 1 - 6 * 2 / (3 * 8)
  assert stage.position_bias([answer([0, 1, 2]), answer([2, 1, 0])]) == 0.0
  assert stage.position_bias([answer([3, 1, 0, 2], filled=[2, 3])]) == -1.0  # only 3 > 1 was said
  assert stage.position_bias([answer([])]) is None


def test_a_changed_recording_makes_the_stage_run_again(tmp_path):
  recording = tmp_path / "r.jsonl"
  line = json.dumps({"query_id": "q0", "candidates": ["p0", "p1"], "response": "[2] > [1]"}) + "\n"
  recording.write_text(line)
  workdir = small(tmp_path / "w", lists=[candidate_list("q0", ["p0", "p1"])])
  cfg = config.Config(name="t", labels=config.Labels(provider="replay", recording=str(recording)))
  workdir.execute(flow.STAGES["labels"], cfg)
  assert workdir.is_done(flow.STAGES["labels"], cfg) and rankings(workdir)[0].passage_ids == ("p1", "p0")
  recording.write_text(line.replace("[2] > [1]", "[1] > [2]"))
  assert not workdir.is_done(flow.STAGES["labels"], cfg)
  workdir.execute(flow.STAGES["labels"], cfg)
  assert rankings(workdir)[0].passage_ids == ("p0", "p1")
