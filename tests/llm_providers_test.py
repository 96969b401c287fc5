"""Providers: the real SDKs against a server on 127.0.0.1, and recorded answers."""

import asyncio
import dataclasses
import datetime
import email.utils
import json
import logging
import pathlib
import subprocess
import sys
import tempfile
import traceback
from typing import Any

import pytest
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import config
from idistill_jax.llm import asking, cache, prompt, protocol, providers
from idistill_jax.llm.providers import replay

KEY = "not-a-real-key-5f1c0a77"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What a provider that asks a server is tried with.

  sdk: the module.  keys: variables of the key.  path: behind the server's address.  thinks: where in a request
  `labels.reasoning=low` stands, and as what; None: it says that it cannot pass that on.  thought: the answer "[1]" to
  11 tokens, of 7 tokens and 900 of thoughts.
  """

  sdk: str
  keys: tuple[str, ...]
  path: str = ""
  thinks: tuple[tuple[str, ...], Any] | None
  thought: dict[str, Any]


# Some tell by itself what was thought, some in the total alone.
OPENAI_THOUGHT = {
  "id": "x", "object": "chat.completion", "created": 0, "model": "m",
  "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "[1]"}}],
  "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 918},
}  # fmt: skip
GEMINI_THOUGHT = {
  "candidates": [{"content": {"role": "model", "parts": [{"text": "[1]"}]}, "finishReason": "STOP", "index": 0}],
  "usageMetadata": {
    "promptTokenCount": 11, "candidatesTokenCount": 7, "thoughtsTokenCount": 900, "totalTokenCount": 918},
}  # fmt: skip
GEMINI_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
CASES = {
  "openai": Case(sdk="openai", keys=("OPENAI_API_KEY",), path="/v1", thinks=(("reasoning_effort",), "low"),
                 thought=OPENAI_THOUGHT),
  "gemini": Case(sdk="google.genai", keys=GEMINI_KEYS, thought=GEMINI_THOUGHT,
                 thinks=(("generationConfig", "thinkingConfig"), {"thinking_level": "LOW"})),
  "gemini_legacy": Case(sdk="google.generativeai", keys=GEMINI_KEYS, thinks=None, thought=GEMINI_THOUGHT),
}
KEYS = sorted({key for case in CASES.values() for key in case.keys})
# Provider -> where it is tried.
ELSEWHERE = {"replay": "TestReplay", "openai_batch": "llm_batch_test.py", "gemini_batch": "llm_batch_test.py"}
every_case = pytest.mark.parametrize("name", CASES)
REQUEST = protocol.Request("q1", ("a", "b", "c"), prompt.render("query", ["x", "y", "z"], 45))


@pytest.fixture(autouse=True)
def keys(monkeypatch):
  for name in KEYS:
    monkeypatch.setenv(name, KEY)
  for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
    monkeypatch.delenv(name, raising=False)


def build(name, server, **fields):
  pytest.importorskip(CASES[name].sdk)
  cfg = config.Labels(
    provider=name, model="m", base_url=server.url + CASES[name].path,
    **{"attempts": 3, "timeout_seconds": 10.0, **fields},
  )  # fmt: skip
  return Asking(providers.build(cfg), cfg.attempts, cfg.timeout_seconds)


class Asking:
  """A provider behind an empty cache, asked as a labelling asks it, with short waits between tries."""

  def __init__(self, provider, attempts, deadline):
    self.provider = provider
    self.terms = asking.Terms(
      concurrency=4, attempts=attempts, deadline_seconds=deadline, max_output_tokens=100, first_wait=0.01
    )

  def ask(self, request):
    async def once():
      with tempfile.TemporaryDirectory() as folder, cache.AnswerCache(pathlib.Path(folder) / "c") as opened:
        try:
          return (await asking.Asker(self.provider, opened, self.terms).ask(request)).answer
        finally:
          await self.provider.close()

    return asyncio.run(once())


@pytest.mark.parametrize("name", providers.PROVIDERS)
def test_every_provider_is_tried(name):
  assert name in CASES or name in ELSEWHERE, f"{name!r} has no case: add one to CASES of {pathlib.Path(__file__).name}"


@every_case
def test_asks_and_reads_text_usage_and_end(name, caplog):
  caplog.set_level(logging.INFO)
  with LoopbackLLM() as server:
    answer = build(name, server).ask(REQUEST)
  assert answer == protocol.Answer("[3] > [2] > [1]", "stop", 11, 7)
  assert server.asked == [REQUEST.prompt]
  assert KEY not in json.dumps(server.bodies)
  chatty = {record.name for record in caplog.records if record.levelno < logging.WARNING}
  assert not chatty, f"{chatty} write a line a request: name them in protocol._CHATTY"


@pytest.mark.parametrize(("name", "reasoning", "where", "sent"), [
  ("gemini", "minimal", ("generationConfig", "thinkingConfig"), {"thinking_level": "MINIMAL"}),
  ("gemini", "none", ("generationConfig", "thinkingConfig"), {"thinking_budget": 0}),
  *((name, "low", *case.thinks) for name, case in CASES.items() if case.thinks),
  *((name, "unset", case.thinks[0], None) for name, case in CASES.items() if case.thinks),
])
def test_how_much_to_think_reaches_the_model(name, reasoning, where, sent):
  with LoopbackLLM() as server:
    build(name, server, reasoning=reasoning).ask(REQUEST)
  found = server.bodies[0]
  for key in where:
    found = found.get(key) if found else None
  assert found == sent


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.thinks is None])
def test_one_that_cannot_pass_it_on_says_so(name):
  with LoopbackLLM() as server, pytest.raises(protocol.Stop, match=r"labels\.reasoning=low"):
    build(name, server, reasoning="low")


@every_case
@pytest.mark.parametrize(("finish", "expected"), [("length", "length"), ("content_filter", "blocked")])
def test_names_how_an_answer_ended(name, finish, expected):
  with LoopbackLLM(lambda number, text: Reply("[3] >", finish=finish)) as server:
    assert build(name, server).ask(REQUEST) == protocol.Answer("[3] >", expected, 11, 7)


@pytest.mark.parametrize("finish", ["eos", "end_turn"])
def test_other_words_for_an_end_are_known(finish):
  with LoopbackLLM(lambda number, text: Reply("[3]", finish=finish)) as server:
    assert build("openai", server).ask(REQUEST).finish_reason == "stop"


def test_a_server_that_names_no_end_has_ended():
  with LoopbackLLM(lambda number, text: Reply("[3] > [1]", finish=None)) as server:
    assert build("openai", server).ask(REQUEST).finish_reason == "stop"


@pytest.mark.parametrize("name", ["gemini", "gemini_legacy"])
def test_a_blocked_prompt_is_an_empty_answer(name):
  body = json.dumps(
    {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 5}}
  ).encode()
  with LoopbackLLM(lambda number, text: Reply(body=body)) as server:
    assert build(name, server).ask(REQUEST) == protocol.Answer("", "blocked", 5, 0)


@every_case
def test_what_a_model_thought_counts_as_output(name):
  body = json.dumps(CASES[name].thought).encode()
  with LoopbackLLM(lambda number, text: Reply(body=body)) as server:
    assert build(name, server).ask(REQUEST) == protocol.Answer("[1]", "stop", 11, 907)


@every_case
def test_a_connection_that_never_came_about_is_known_to_have_cost_nothing(name):
  with LoopbackLLM() as server:
    opened = build(name, server)
  with pytest.raises(protocol.Transient) as error:
    asyncio.run(opened.provider.ask(REQUEST))
  assert error.value.refused
  # An SDK of OpenAI's calls this a timeout, which sends people to the wrong knob.
  assert CASES[name].sdk != "openai" or "Connect" in str(error.value)
  with LoopbackLLM(lambda number, text: Reply(close=True)) as server, pytest.raises(protocol.Transient) as error:
    asyncio.run(build(name, server).provider.ask(REQUEST))
  assert not error.value.refused


@every_case
@pytest.mark.parametrize("status", [429, 500, 503, 507, 524])
def test_a_transient_fault_is_asked_again(name, status):
  with LoopbackLLM(lambda n, text: Reply(status=status) if n == 1 else reversed_order(n, text)) as server:
    assert build(name, server).ask(REQUEST).text == "[3] > [2] > [1]"
  assert len(server.asked) == 2


@every_case
def test_retry_after_is_honoured(name):
  def reply(number, text):
    return Reply(status=429, headers={"Retry-After": "1"}) if number == 1 else reversed_order(number, text)

  with LoopbackLLM(reply) as server:
    build(name, server).ask(REQUEST)
  assert 1.0 <= server.times[1] - server.times[0] < 5


def test_without_retry_after_the_wait_is_short():
  with LoopbackLLM(lambda n, text: Reply(status=429) if n == 1 else reversed_order(n, text)) as server:
    build("openai", server).ask(REQUEST)
  assert server.times[1] - server.times[0] < 0.9


def test_a_wait_longer_than_the_longest_is_not_sat_out():
  with (
    LoopbackLLM(lambda n, text: Reply(status=429, headers={"Retry-After": "86400"})) as server,
    pytest.raises(protocol.Unanswered, match="1 try"),
  ):
    build("openai", server).ask(REQUEST)
  assert len(server.asked) == 1


def test_retry_after_takes_seconds_and_dates():
  when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
  assert protocol.retry_after({"retry-after": "2.5"}) == 2.5
  assert 28 < protocol.retry_after({"retry-after": email.utils.format_datetime(when, usegmt=True)}) <= 30
  assert protocol.retry_after({"retry-after": "soon"}) is None
  assert protocol.retry_after({}) is None
  assert protocol.retry_after(None) is None


@every_case
def test_tries_are_bounded(name):
  with (
    LoopbackLLM(lambda number, text: Reply("busy", status=503)) as server,
    pytest.raises(protocol.Unanswered, match=r"3 tries.*503"),
  ):
    build(name, server).ask(REQUEST)
  assert len(server.asked) == 3


@every_case
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hard_error_stops_at_once_and_hides_the_key(name, status, caplog):
  caplog.set_level(logging.INFO)
  with (
    LoopbackLLM(lambda number, text: Reply(f"invalid key {KEY}", status=status)) as server,
    pytest.raises(protocol.Stop, match=str(status)) as error,
  ):
    build(name, server).ask(REQUEST)
  assert len(server.asked) == 1
  shown = "".join(traceback.format_exception(error.value))
  assert "***" in shown and KEY not in shown and KEY not in repr(error.value) and KEY not in caplog.text


@every_case
def test_a_timeout_is_transient(name):
  with LoopbackLLM(lambda n, text: Reply(delay=2.0) if n == 1 else reversed_order(n, text)) as server:
    assert build(name, server, timeout_seconds=1.0).ask(REQUEST).text == "[3] > [2] > [1]"
  assert len(server.asked) == 2


def test_what_a_gateway_says_within_an_answer_is_told():
  body = json.dumps({"error": {"code": 402, "message": "Insufficient credits"}}).encode()
  with LoopbackLLM(lambda number, text: Reply(body=body)) as server, pytest.raises(
    protocol.Stop, match=r"refused with status 402: .*Insufficient credits"
  ):
    build("openai", server).ask(REQUEST)
  body = json.dumps({"error": {"message": "Upstream is busy"}}).encode()
  with LoopbackLLM(lambda number, text: Reply(body=body)) as server, pytest.raises(
    protocol.Unanswered, match="Upstream is busy"
  ):
    build("openai", server).ask(REQUEST)
  assert len(server.asked) == 3


@pytest.mark.parametrize("said", [{"finish_reason": "error"}, {"error": {"code": 502, "message": "Upstream is gone"}}])
def test_an_answer_that_a_gateway_broke_off_is_asked_for_again(said):
  choice = {"index": 0, "message": {"role": "assistant", "content": "[2] > [1]"}, **said}
  body = json.dumps({"choices": [choice]}).encode()
  with LoopbackLLM(lambda n, text: Reply(body=body) if n == 1 else reversed_order(n, text)) as server:
    assert build("openai", server).ask(REQUEST).text == "[3] > [2] > [1]"
  assert len(server.asked) == 2


@every_case
@pytest.mark.parametrize(
  "broken",
  [
    Reply(close=True),
    Reply(body=b"<html>Bad Gateway</html>", headers={"Content-Type": "text/html"}),
    Reply(body=b'{"choices": [{"mess'),
    Reply(body=b"{}"),
  ],
  ids=["reset", "html", "truncated", "empty object"],
)
def test_an_unreadable_answer_is_transient(name, broken):
  with LoopbackLLM(lambda n, text: broken if n == 1 else reversed_order(n, text)) as server:
    assert build(name, server).ask(REQUEST).text == "[3] > [2] > [1]"
  assert len(server.asked) == 2


@every_case
def test_a_missing_key_names_its_variables(name, monkeypatch):
  for variable in KEYS:
    monkeypatch.delenv(variable)
  with pytest.raises(protocol.Stop, match=f"set the environment variable {' or '.join(CASES[name].keys)};"):
    providers.build(config.Labels(provider=name, model="m"))


def test_a_local_openai_endpoint_needs_no_key(monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY")
  with LoopbackLLM() as server:
    assert build("openai", server).ask(REQUEST).text


def test_a_key_does_not_show_itself():
  key = protocol.secret("OPENAI_API_KEY")
  assert KEY not in f"{key} {key!r} {[key]}" and key.cover(f"<{KEY}>") == "<***>" and key.reveal() == KEY


def test_a_key_is_covered_however_it_is_quoted():
  key = protocol.Secret('a"b\\c')
  for shown in ('a"b\\c', repr('a"b\\c'), json.dumps('a"b\\c')):
    assert "***" in key.cover(shown) and "b\\" not in key.cover(shown)


@pytest.mark.parametrize("name", [*CASES, "openai_batch", "gemini_batch"])
@pytest.mark.parametrize("key", ["sk-abc-111\nsk-def-222", "sk-abc-111 sk-def-222", "ключ-111"])
def test_what_can_be_no_key_is_refused_and_not_shown(name, key, monkeypatch):
  pytest.importorskip("google.generativeai")
  for variable in KEYS:
    monkeypatch.setenv(variable, key)
  with pytest.raises(protocol.Stop, match=f"({'|'.join(KEYS)}) holds") as error:
    providers.build(config.Labels(provider=name, model="m", base_url="http://127.0.0.1:9"))
  assert "111" not in "".join(traceback.format_exception(error.value))


def test_a_missing_sdk_names_its_extra():
  with pytest.raises(protocol.Stop, match=r"source launch/env\.sh llm`"):
    protocol.sdk("no_such_sdk", "llm")


def test_labelling_imports_neither_jax_nor_an_sdk():
  code = (
    "import sys, idistill_jax.llm.session, idistill_jax.llm.estimate\n"
    f"heavy = ('jax', 'flax', 'numpy', 'tenacity', 'aiolimiter', {', '.join(repr(c.sdk) for c in CASES.values())})\n"
    "print([m for m in heavy if m in sys.modules])"
  )
  assert (
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    == "[]"
  )


class TestReplay:
  def write(self, path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return str(path)

  def test_answers_by_query_and_order_shown(self, tmp_path):
    recording = self.write(
      tmp_path / "r.jsonl",
      {"query_id": "q1", "candidates": ["a", "b", "c"], "response": "[2] > [1] > [3]"},
      {"query_id": "q1", "candidates": ["c", "b", "a"], "response": "[1] > [2] > [3]"},
    )
    provider = providers.build(config.Labels(provider="replay", recording=recording))
    assert asyncio.run(provider.ask(REQUEST)) == protocol.Answer("[2] > [1] > [3]", "stop")
    for query_id, ids in (("q1", ("a", "c", "b")), ("q2", ("a", "b", "c")), ("q1", ("a", "b"))):
      with pytest.raises(protocol.NotRecorded, match=query_id):
        asyncio.run(provider.ask(protocol.Request(query_id, ids, "p")))

  @pytest.mark.parametrize(
    ("line", "message"),
    [
      ('{"query_id": "q', "r.jsonl:2: not JSON"),
      ("[1]", "r.jsonl:2: expected"),
      ('{"query_id": 3, "candidates": ["a"], "response": "x"}', "r.jsonl:2: expected"),
      ('{"query_id": "q", "candidates": "a", "response": "x"}', "r.jsonl:2: expected"),
      ('{"query_id": "q", "candidates": ["a"]}', "r.jsonl:2: expected"),
      ("[" * 100_000, "r.jsonl:2: not JSON"),
      ('{"query_id": "q1", "candidates": ["a"], "response": "[2]"}', "r.jsonl:2: another answer .* than in line 1"),
    ],
  )
  def test_a_malformed_line_is_named(self, tmp_path, line, message):
    good = {"query_id": "q1", "candidates": ["a"], "response": "[1]"}
    with pytest.raises(ValueError, match=message):
      replay.Replay(self.write(tmp_path / "r.jsonl", good, line))

  def test_files_inside_the_package(self):
    assert len(replay.Replay("package:quickstart/llm_answers.jsonl")) == 1000
    with pytest.raises(FileNotFoundError, match=r"labels.recording"):
      replay.locate("package:quickstart/none.jsonl")

  def test_fingerprint_follows_the_content(self, tmp_path):
    line = {"query_id": "q1", "candidates": ["a"], "response": "[1]"}
    first = replay.fingerprint(self.write(tmp_path / "a.jsonl", line))
    assert first == replay.fingerprint(self.write(tmp_path / "b.jsonl", line))
    assert first != replay.fingerprint(self.write(tmp_path / "c.jsonl", line, line))

  def test_needs_a_recording(self):
    with pytest.raises(protocol.Stop, match=r"labels.recording"):
      providers.build(config.Labels(provider="replay"))
