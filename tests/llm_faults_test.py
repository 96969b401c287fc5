"""Faults that a whole labelling has to live with: deadlines, limits, budgets, all through the real SDKs."""

import asyncio
import json
import time

import pytest
from llm_providers_test import CASES, KEYS
from llm_session_test import ask_all, lists
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import config
from idistill_jax.llm import asking, budget, cache, pace, prompt, protocol, providers, ranking, session

KEY = "not-a-real-key-5f1c0a77"


@pytest.fixture(autouse=True)
def keys(monkeypatch):
  pytest.importorskip("openai")
  for name in KEYS:
    monkeypatch.setenv(name, KEY)


@pytest.mark.parametrize("provider", CASES)
def test_an_answer_that_drips_past_the_deadline_is_cut_off(tmp_path, provider):
  """Every byte comes well within the SDKs' own timeouts; all of them together do not."""
  reply = lambda n, text: Reply(reversed_order(n, text).text, drip=0.1) if n == 1 else reversed_order(n, text)
  with LoopbackLLM(reply) as server:
    url = server.url + CASES[provider].path
    fields = dict(provider=provider, base_url=url, timeout_seconds=2.0)
    providers.build(config.Labels(model="m", **fields))  # importing some SDKs takes longer than asking
    started = time.monotonic()
    outcomes = ask_all(server, tmp_path / "c", 1, concurrency=1, **fields)
  assert isinstance(outcomes[0], ranking.Ranked) and len(server.asked) == 2
  assert time.monotonic() - started < 15


def test_requests_per_minute_are_kept(tmp_path):
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "c", 8, concurrency=8, requests_per_minute=1200)
  gaps = [later - earlier for earlier, later in zip(server.times, server.times[4:], strict=False)]
  assert min(gaps) > 4 * 0.05 * 0.6, "four more requests need four more turns of 50 ms, but for jitter on the way"
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "d", 8, concurrency=8)
  assert server.times[-1] - server.times[0] < 2


def test_a_server_that_was_slow_for_a_while_sees_no_burst_afterwards(tmp_path):
  reply = lambda n, text: Reply(reversed_order(n, text).text, delay=1.0 if 1 < n < 8 else 0.0)
  with LoopbackLLM(reply) as server:
    ask_all(server, tmp_path / "c", 30, concurrency=6, requests_per_minute=1200)
  most = max(sum(start <= at < start + 0.4 for at in server.times) for start in server.times)
  assert most <= 8 + 3, "turns of 50 ms: eight in 0.4 s, but for jitter on the way"


def test_tokens_per_minute_are_kept(tmp_path):
  one = prompt.tokens(ranking.to_request(lists(1)[0], range(3), session.plan(config.Labels(), 0)).prompt) + 50
  with LoopbackLLM() as server:
    ask_all(server, tmp_path / "c", 12, concurrency=12, tokens_per_minute=one * 60 * 10, max_output_tokens=50)
  # Ten a second, after a first bucket that holds one call of the largest size.
  bucket = (50 + asking.PROMPT_TOKENS + 21 * 64) / one
  assert server.times[-1] - server.times[0] > (12 - bucket) / 10 * 0.7


def test_a_call_of_more_tokens_than_may_go_at_once_waits_for_all_of_them():
  slow = pace.Pace(requests_per_minute=None, tokens_per_minute=60_000, largest=100)

  async def turns():
    started = time.monotonic()
    for _ in range(2):
      await slow.turn(300)
    return time.monotonic() - started

  assert asyncio.run(turns()) > 0.4, "600 tokens at 1,000 a second, 100 of them at once"


def test_a_budget_in_tokens_is_not_exceeded_by_calls_in_flight(tmp_path):
  reply = lambda n, text: Reply(reversed_order(n, text).text, delay=0.05)
  longest = max(len(ranking.to_request(one, range(3), session.plan(config.Labels(), 0)).prompt) for one in lists(40))
  limit = 3 * (longest + 64 + 20)
  with LoopbackLLM(reply) as server:
    with pytest.raises(budget.Exhausted, match=r"budget is used up.*max_tokens.*same command again"):
      ask_all(server, tmp_path / "c", 2000, concurrency=16, max_tokens=limit, max_output_tokens=20)
    assert server.most_at_once <= 3, "the bounds of three calls fit into it"
    assert 0.5 * limit < len(server.answered) * 18 <= limit
    with cache.AnswerCache(tmp_path / "c" / session.CACHE) as opened:
      assert len(opened) == len(server.answered)
    # Started again, there is no new budget; with a larger one it goes on.
    before = len(server.asked)
    with pytest.raises(budget.Exhausted):
      ask_all(server, tmp_path / "c", 2000, concurrency=16, max_tokens=limit, max_output_tokens=20)
    assert len(server.asked) == before
    ask_all(server, tmp_path / "c", before + 5, concurrency=16, max_tokens=10 * limit, max_output_tokens=20)
    assert before + 5 <= len(server.asked) == len(set(server.asked))


def test_a_budget_in_dollars_stops_before_it_is_exceeded(tmp_path):
  prices = dict(dollars_per_million_input_tokens=1.0, dollars_per_million_output_tokens=10.0)
  with LoopbackLLM() as server, pytest.raises(budget.Exhausted):
    ask_all(server, tmp_path / "c", 500, concurrency=4, max_dollars=0.01, max_output_tokens=50, **prices)
  spent = len(server.answered) * (11 * 1.0 + 7 * 10.0) / 1e6
  assert 0.007 < spent <= 0.01


def test_a_refusal_of_the_server_costs_nothing_and_a_lost_answer_its_bound(tmp_path):
  fields = dict(attempts=1, max_tokens=10**9, max_output_tokens=50)

  def spent():
    books = budget.Budget(tmp_path / "c" / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices())
    with books:
      return books.spent()[0]

  with LoopbackLLM(lambda n, text: Reply(status=429)) as server:
    ask_all(server, tmp_path / "c", 2, **fields)
    assert spent() == 0
    server.reply = lambda n, text: Reply(close=True)
    ask_all(server, tmp_path / "c", 2, **fields)
  assert spent() > 2 * 500


def test_a_gateway_that_gave_up_may_have_billed_and_a_port_that_is_closed_has_not(tmp_path):
  fields = dict(attempts=1, max_tokens=10**9, max_output_tokens=50)
  with LoopbackLLM(lambda n, text: Reply(status=504)) as server:
    ask_all(server, tmp_path / "c", 2, **fields)
  with budget.Budget(tmp_path / "c" / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    before = books.spent()[0]
  assert before > 2 * 500
  ask_all(server, tmp_path / "c", 2, **fields)  # it is closed
  with budget.Budget(tmp_path / "c" / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    assert books.spent()[0] == before


def test_a_server_that_keeps_to_no_limit_is_left_after_one_answer(tmp_path):
  """`max_output_tokens` is what a budget is kept by."""
  with LoopbackLLM() as server:
    with pytest.raises(protocol.Stop, match=r"took 11\+7 tokens.*max_output_tokens"):
      ask_all(server, tmp_path / "c", 20, concurrency=8, max_tokens=10**6, max_output_tokens=5)
    assert len(server.asked) == 1
    with cache.AnswerCache(tmp_path / "c" / session.CACHE) as opened:
      assert len(opened) == 1
    ask_all(server, tmp_path / "c", 20, concurrency=8, max_output_tokens=5)


def test_empty_choices_and_null_texts_are_named(tmp_path):
  body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [],
          "usage": {"prompt_tokens": 1, "completion_tokens": 0, "total_tokens": 1}}  # fmt: skip
  with LoopbackLLM(lambda n, text: Reply(body=json.dumps(body).encode())) as server:
    assert [o.reason for o in ask_all(server, tmp_path / "c", 1, attempts=1)] == ["unanswered"]
    null = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
    server.reply = lambda n, text: Reply(body=json.dumps(body | {"choices": [null]}).encode())
    assert [o.reason for o in ask_all(server, tmp_path / "c", 1, refused_retries=0)] == ["refused: empty"]


def odd(text, content="[3] > [2] > [1]", usage=None, **fields):
  """Replies that are not quite of OpenAI's protocol to prompts with that text, and all right to others."""
  choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
  body = {"model": "m", "choices": [choice], "usage": usage or {"prompt_tokens": 11, "completion_tokens": 7}, **fields}

  def reply(number, prompt):
    return Reply(body=json.dumps(body).encode()) if text in prompt else reversed_order(number, prompt)

  return reply


@pytest.mark.parametrize("content", [7, {"text": "[1]"}, ["[3] > [2] > [1]"], True])
def test_an_answer_that_is_no_text_takes_no_other_along(tmp_path, content):
  with LoopbackLLM(odd("query 3\n", content)) as server:
    outcomes = ask_all(server, tmp_path / "c", 8, concurrency=4, attempts=1)
    assert [outcome.unordered.query_id for outcome in outcomes if isinstance(outcome, ranking.Unranked)] == ["q3"]
    assert outcomes[3].reason == "unanswered" and len(server.asked) == 8
    ask_all(server, tmp_path / "c", 8, attempts=1)
    assert len(server.asked) == 9


def test_an_answer_in_parts_is_their_text(tmp_path):
  parts = [{"type": "text", "text": "[3] > [2]"}, {"type": "thinking"}, {"type": "text", "text": " > [1]"}]
  with LoopbackLLM(odd("query", parts, model=["m"])) as server:
    assert ask_all(server, tmp_path / "c", 1)[0].parsed.order == (2, 1, 0)


@pytest.mark.parametrize("count", [float("nan"), -1000, 10**30, "11", None, float("inf")])
def test_a_count_that_can_be_none_costs_the_bound(tmp_path, count):
  usage = {"prompt_tokens": count, "completion_tokens": count}
  with LoopbackLLM(odd("query", usage=usage)) as server:
    with pytest.raises(budget.Exhausted):
      ask_all(server, tmp_path / "c", 50, max_tokens=3000, max_output_tokens=20)
    assert 2 <= len(server.asked) <= 6
    outcomes = ask_all(server, tmp_path / "d", 2)
  assert all(paid.answer.input_tokens is None for outcome in outcomes for paid in outcome.answers)


def test_a_key_that_a_server_gives_back_is_not_kept(tmp_path, caplog):
  with LoopbackLLM(odd("query", f"[3] > [2] > [1], Bearer {KEY}", model=KEY)) as server:
    outcomes = ask_all(server, tmp_path / "c", 2)
  assert KEY not in str(outcomes) + caplog.text and "***" in outcomes[0].answers[0].answer.text
  assert not any(KEY.encode() in path.read_bytes() for path in (tmp_path / "c").iterdir())


def test_a_wrong_key_waits_for_no_turn(tmp_path):
  started = time.monotonic()
  with LoopbackLLM(lambda n, text: Reply("no", status=401)) as server, pytest.raises(protocol.Stop):
    ask_all(server, tmp_path / "c", 20, concurrency=8, requests_per_minute=20, max_tokens=10**6)
  assert len(server.asked) == 1 and time.monotonic() - started < 3


@pytest.mark.parametrize(("status", "hint"), [(401, "is the API key right"), (404, "is there such a model")])
def test_a_wrong_key_or_model_fails_once_for_the_whole_labelling(tmp_path, status, hint):
  with (
    LoopbackLLM(lambda n, text: Reply(f"bad {KEY}", status=status)) as server,
    pytest.raises(protocol.Stop, match=hint) as error,
  ):
    ask_all(server, tmp_path / "c", 200, concurrency=1)
  assert len(server.asked) == 1 and KEY not in str(error.value)
