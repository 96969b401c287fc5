"""Asking: order, concurrency, cache, kill and restart, and when to stop."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import config
from idistill_jax.llm import asking, budget, cache, protocol, ranking, session, workers

KEY = "not-a-real-key-5f1c0a77"


@pytest.fixture(autouse=True)
def key(monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.setenv("OPENAI_API_KEY", KEY)


def lists(count):
  return [ranking.Unordered(f"q{i}", ("a", "b", "c"), f"query {i}", ("x", "y", "z")) for i in range(count)]


def ask_all(server, path, count, concurrency=4, **fields):
  cfg = config.Labels(
    model="m", concurrency=concurrency,
    **{"provider": "openai", "base_url": f"{server.url}/v1", "attempts": 2, "timeout_seconds": 10.0, **fields},
  )
  with session.Session(cfg, path) as opened:
    return opened.label(lists(count), session.plan(cfg, seed=0))


def paid(outcome):
  return isinstance(outcome, ranking.Ranked) and all(labelled.paid for labelled in outcome.answers)


def test_outcomes_come_in_the_order_of_requests_whoever_is_first(tmp_path):
  def reply(number, text):
    answer = reversed_order(number, text)
    return Reply(answer.text, delay=0.3 if "query 0\n" in text else 0.02 * (number % 3))

  with LoopbackLLM(reply) as server:
    outcomes = ask_all(server, tmp_path / "c", 24)
  assert [outcome.unordered.query_id for outcome in outcomes] == [f"q{i}" for i in range(24)]
  assert all(outcome.parsed.order == (2, 1, 0) and paid(outcome) for outcome in outcomes)
  assert 2 <= server.most_at_once <= 4


def test_a_second_run_pays_for_nothing(tmp_path):
  with LoopbackLLM() as server:
    first = ask_all(server, tmp_path / "c", 6)
    second = ask_all(server, tmp_path / "c", 8)
  assert len(server.asked) == 8
  assert [o.parsed for o in first] == [o.parsed for o in second[:6]]
  assert [paid(o) for o in second] == [False] * 6 + [True] * 2


def test_equal_lists_of_two_queries_have_each_its_recorded_answer(tmp_path):
  said = {"q1": "[1] > [2]", "q2": "[2] > [1]"}
  (tmp_path / "said.jsonl").write_text("".join(
    json.dumps({"query_id": one, "candidates": [f"{one} a", f"{one} b"], "response": text}) + "\n"
    for one, text in said.items()))
  cfg = config.Labels(provider="replay", recording=str(tmp_path / "said.jsonl"))
  twins = [ranking.Unordered(one, (f"{one} a", f"{one} b"), "query", ("x", "y")) for one in said]
  for _ in range(2):
    with session.Session(cfg, tmp_path / "c") as opened:
      assert [one.parsed.order for one in opened.label(twins, session.plan(cfg, seed=0))] == [(0, 1), (1, 0)]


def test_the_cache_holds_no_key(tmp_path):
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "c", 3)
  assert all(KEY.encode() not in file.read_bytes() for file in (tmp_path / "c").iterdir())


def test_a_request_without_answer_is_named_and_the_others_go_on(tmp_path):
  def reply(number, text):
    return Reply(status=400 + 29) if "query 2\n" in text else reversed_order(number, text)

  with LoopbackLLM(reply) as server:
    outcomes = ask_all(server, tmp_path / "c", 5, attempts=1)
    lost = [outcome for outcome in outcomes if isinstance(outcome, ranking.Unranked)]
    assert [(o.unordered.query_id, o.reason) for o in lost] == [("q2", "unanswered")] and "429" in lost[
      0
    ].message
    server.reply = reversed_order
    again = ask_all(server, tmp_path / "c", 5, attempts=1)
  assert [paid(o) for o in again] == [False, False, True, False, False]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_request_is_named_and_the_others_go_on_in_every_run(tmp_path, status):
  odd = lambda n, text: Reply("too long", status=status) if "query 0\n" in text else reversed_order(n, text)
  with LoopbackLLM(odd) as server:
    for count in (5, 7):
      outcomes = ask_all(server, tmp_path / "c", count, max_tokens=10**6)
      lost = [(o.unordered.query_id, o.reason) for o in outcomes if isinstance(o, ranking.Unranked)]
      assert lost == [("q0", "rejected")] and "too long" in outcomes[0].message
    assert len(server.asked) == 5 + 1 + 2, "each run asks about it once"
  with budget.Budget(tmp_path / "c" / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    assert books.spent()[0] == 6 * 18, "a rejection is not billed"


def test_nothing_but_rejections_stop_the_run(tmp_path):
  rejecting = lambda number, text: Reply("unknown parameter", status=400)
  with LoopbackLLM(rejecting) as server, pytest.raises(protocol.Stop, match=r"3 requests in a row.*unknown parameter"):
    ask_all(server, tmp_path / "c", 200, concurrency=16)
  assert len(server.asked) == asking.REJECTED_AT_FIRST
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "c", 1)
    server.reply = rejecting
    with pytest.raises(protocol.Stop, match="10 requests in a row"):
      ask_all(server, tmp_path / "c", 200, concurrency=1)
  assert len(server.asked) == 1 + asking.GIVE_UP_AFTER


@pytest.mark.parametrize(("status", "said"), [(401, "bad key"), (400, "API key not valid. Pass a valid API key.")])
def test_a_wrong_key_stops_the_run_after_one_call(tmp_path, status, said):
  with (
    LoopbackLLM(lambda number, text: Reply(said, status=status, delay=0.05)) as server,
    pytest.raises(protocol.Stop, match=rf"{status}.*is the API key right"),
  ):
    ask_all(server, tmp_path / "c", 200, concurrency=64)
  assert len(server.asked) == 1


def test_the_first_call_goes_alone_and_all_others_at_once(tmp_path):
  with LoopbackLLM(lambda n, text: Reply(reversed_order(n, text).text, delay=0.3)) as server:
    ask_all(server, tmp_path / "c", 9, concurrency=8)
  assert server.times[1] - server.times[0] >= 0.3 and server.most_at_once > 3


def test_equal_prompts_under_way_are_asked_once(tmp_path):
  equal = [ranking.Unordered(f"q{i}", ("a", "b"), "same", ("x", "y")) for i in range(4)]
  with LoopbackLLM(lambda n, text: Reply(reversed_order(n, text).text, delay=0.1)) as server:
    cfg = config.Labels(provider="openai", model="m", base_url=f"{server.url}/v1", concurrency=4)
    with session.Session(cfg, tmp_path) as opened:
      outcomes = opened.label(equal, session.plan(cfg, seed=0))
  assert len(server.asked) == 1 and sorted(map(paid, outcomes)) == [False] * 3 + [True]


@pytest.mark.parametrize(("asked", "served", "same"), [
  ("gpt-x", "gpt-x-2026-01-01", True), ("gpt-x", "gpt-x", True), ("gpt-x", "gpt-x-mini", False),
  ("gpt-4", "gpt-4.1", False),
  ("Qwen/Qwen3-8B", "qwen3-8b", True), ("llama3", "llama3:8b", True), ("gpt-x", "other", False),
  ("gemini-9-flash", "models/gemini-9-flash-preview-09-2026", True), ("gemini-flash-latest", "gemini-flash", True),
])
def test_a_snapshot_of_a_model_is_that_model(asked, served, same):
  assert asking.is_model(asked, served) == same


def test_another_model_than_the_one_asked_is_said_once(tmp_path, caplog):
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "c", 3)
    assert "answers" not in caplog.text
    cfg = config.Labels(provider="openai", model="gpt-x", base_url=f"{server.url}/v1")
    with session.Session(cfg, tmp_path) as opened:
      opened.label(lists(3), session.plan(cfg, seed=0))
    assert caplog.text.count("gpt-x was asked and m answers") == 1
    # Another day, from the cache.
    with session.Session(cfg, tmp_path) as opened:
      outcomes = opened.label(lists(3), session.plan(cfg, seed=0))
  assert caplog.text.count("gpt-x was asked and m answers") == 2
  assert {labelled.answer.model for outcome in outcomes for labelled in outcome.answers} == {"m"}


def test_an_endpoint_that_is_down_stops_the_run_and_keeps_what_was_answered(tmp_path):
  def reply(number, text):
    return reversed_order(number, text) if number <= 5 else Reply(status=503)

  with (
    LoopbackLLM(reply) as server,
    pytest.raises(protocol.Stop, match=r"10 requests in a row.*run the same command again"),
  ):
    ask_all(server, tmp_path / "c", 60, attempts=1)
  with cache.AnswerCache(tmp_path / "c" / session.CACHE) as opened:
    assert len(opened) == 5


RUN = """
import pathlib, sys
sys.path.insert(0, sys.argv[3])
import llm_session_test as t
import types
outcomes = t.ask_all(types.SimpleNamespace(url=sys.argv[1]), pathlib.Path(sys.argv[2]), 40)
print(sum(map(t.paid, outcomes)))
"""


def test_killed_and_started_again_no_answered_call_is_paid_twice(tmp_path):
  def reply(number, text):
    return Reply(reversed_order(number, text).text, delay=0.05)

  with LoopbackLLM(reply) as server:
    command = [sys.executable, "-c", RUN, server.url, str(tmp_path / "c"), os.path.dirname(__file__)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while len(server.asked) < 15 and time.monotonic() < deadline:
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.3)  # what it had sent by then arrives
    asked_before = len(server.asked)
    assert 15 <= asked_before < 40
    paid = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
  counts = collections.Counter(server.asked)
  assert len(counts) == 40
  twice = [text for text, count in counts.items() if count > 1]
  # Calls in flight when it died, and answers on their way to the disk.
  assert len(twice) <= 2 * 4 and max(counts.values()) <= 2
  assert paid == 40 - asked_before + len(twice)


def test_half_the_price_counts_by_batch():
  listed = dict(dollars_per_million_input_tokens=0.5, dollars_per_million_output_tokens=2.0)
  assert session.prices(config.Labels(provider="gemini", **listed)) == budget.Prices(0.5, 2.0)
  for name in ("gemini_batch", "openai_batch"):
    assert session.prices(config.Labels(provider=name, **listed)) == budget.Prices(0.25, 1.0)
    assert session.prices(config.Labels(provider=name)) == budget.Prices()


def test_tally_counts_statuses_tokens_and_dollars():
  tally, prices = workers.Tally(), budget.Prices(0.5, 2.0)
  assert prices.dollars(tally.usage) is None
  for status in ("complete", "repaired", "refused"):
    tally.add(status, [(protocol.Answer("text", "stop", 1000, 100), True)])
  tally.add("not recorded", [])
  assert tally.statuses == {"complete": 1, "repaired": 1, "refused": 1, "not recorded": 1}
  assert (tally.answers, tally.paid) == (3, 3)
  assert prices.dollars(tally.usage) == pytest.approx((3000 * 0.5 + 300 * 2.0) / 1e6)
  assert budget.Prices(0.5, None).dollars(tally.usage) is None
  tally.add("complete", [(protocol.Answer("text", "stop", 2000, 500), False)])
  assert tally.bill(prices)["dollars"] == pytest.approx((5000 * 0.5 + 800 * 2.0) / 1e6), "what all answers cost"
  shown = tally.facts(prices, seconds=2.0)
  assert shown["tokens"] == "3,000+300 tokens" and shown["dollars"] == "$0.0021" and shown["answers/s"] == 2.0
  assert shown["saved"] == "$0.0020 saved by the cache"
