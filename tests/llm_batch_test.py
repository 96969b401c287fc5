"""Batches: files that the providers take, results in any order and with failures, through the SDKs and by hand."""

import json
from unittest import mock

import pytest
from llm_session_test import lists, paid
from loopback_batch import LoopbackBatch
from loopback_llm import LoopbackLLM, Reply, reversed_order

from idistill_jax import config
from idistill_jax.llm import batch, budget, cache, protocol, ranking, session
from idistill_jax.llm.providers import gemini_batch, openai_batch

KEY = "not-a-real-key-5f1c0a77"
PROVIDERS = ("openai_batch", "gemini_batch")


@pytest.fixture(autouse=True)
def keys(monkeypatch):
  pytest.importorskip("openai")
  pytest.importorskip("google.genai")
  for name in ("OPENAI_API_KEY", "GEMINI_API_KEY"):
    monkeypatch.setenv(name, KEY)


def labels(name, url=None, **fields):
  if url is not None and name.startswith("openai"):
    url += "/v1"
  return config.Labels(provider=name, model="m", base_url=url,
                       **{"attempts": 2, "batch_poll_seconds": 0.01, "timeout_seconds": 10.0, **fields})  # fmt: skip


def label(path, count, cfg):
  with session.Session(cfg, path) as opened:
    return opened.label(lists(count), session.plan(cfg, seed=0))


def orders(outcomes):
  return [isinstance(outcome, ranking.Ranked) and outcome.parsed.order for outcome in outcomes]


@pytest.mark.parametrize("name", PROVIDERS)
def test_submits_polls_and_collects(tmp_path, name):
  with LoopbackBatch() as server:
    outcomes = label(tmp_path, 7, labels(name, server.url))
    assert orders(outcomes) == [(2, 1, 0)] * 7 and all(map(paid, outcomes))
    assert [len(prompts) for prompts in server.batches] == [7]
    outcomes = label(tmp_path, 9, labels(name, server.url))
    assert orders(outcomes) == [(2, 1, 0)] * 9
    assert list(map(paid, outcomes)) == [False] * 7 + [True] * 2, "what the cache had was paid for by another run"
    assert [len(prompts) for prompts in server.batches] == [7, 2], "only what the cache lacks"
  assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", PROVIDERS)
def test_batch_and_live_answers_are_the_same_to_the_cache(tmp_path, name):
  live = name.removesuffix("_batch")
  with LoopbackBatch() as server:
    label(tmp_path, 3, labels(name, server.url))
  with LoopbackLLM() as server:
    assert orders(label(tmp_path, 4, labels(live, server.url))) == [(2, 1, 0)] * 4
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", PROVIDERS)
def test_failed_and_lost_lines_are_asked_for_again_within_bounds(tmp_path, name):
  seen = {}

  def answer(number, prompt):
    seen[prompt] = seen.get(prompt, 0) + 1
    if "query 1\n" in prompt:
      return Reply("busy", status=500)  # never
    if "query 2\n" in prompt and seen[prompt] == 1:
      return None  # lost from the first results
    if "query 3\n" in prompt and seen[prompt] == 1:
      return Reply("busy", status=429)
    return reversed_order(number, prompt)

  with LoopbackBatch(answer) as server:
    outcomes = label(tmp_path, 5, labels(name, server.url))
  assert [len(prompts) for prompts in server.batches] == [5, 3]
  assert orders(outcomes) == [(2, 1, 0), False, (2, 1, 0), (2, 1, 0), (2, 1, 0)]
  assert outcomes[1].reason == "unanswered" and "2 batches" in outcomes[1].message


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_run_that_died_while_waiting_asks_for_nothing_twice(tmp_path, name, monkeypatch):
  with LoopbackBatch() as server:
    monkeypatch.setattr(batch.Batch, "_wait_for", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
      label(tmp_path, 4, labels(name, server.url))
    monkeypatch.undo()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    assert orders(label(tmp_path, 6, labels(name, server.url))) == [(2, 1, 0)] * 6
  assert [len(prompts) for prompts in server.batches] == [4, 2]


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_run_that_died_before_it_had_noted_the_batchs_name_finds_it(tmp_path, name, monkeypatch):
  server_class = {"openai_batch": openai_batch.OpenAIBatch, "gemini_batch": gemini_batch.GeminiBatch}[name]
  submit = server_class.submit
  with LoopbackBatch() as server:
    cfg = labels(name, server.url, max_tokens=100_000)
    for dies_after in (lambda *args: None, submit):
      # Before the batch was there, and after.
      monkeypatch.setattr(server_class, "submit", lambda *args, go=dies_after: dying(go(*args)))
      with pytest.raises(KeyboardInterrupt):
        label(tmp_path, 4, cfg)
    monkeypatch.setattr(server_class, "submit", submit)
    assert orders(label(tmp_path, 4, cfg)) == [(2, 1, 0)] * 4
  assert [len(prompts) for prompts in server.batches] == [4] and spent(tmp_path) == 4 * 18


@pytest.mark.parametrize("dies_in", ["submit", "state"])
def test_a_batch_under_way_at_another_provider_is_left_to_it(tmp_path, dies_in, monkeypatch):
  with LoopbackBatch() as server, LoopbackBatch() as other:
    work = getattr(openai_batch.OpenAIBatch, dies_in)
    monkeypatch.setattr(openai_batch.OpenAIBatch, dies_in, lambda *args: dying(work(*args)))
    with pytest.raises(KeyboardInterrupt):
      label(tmp_path, 4, labels("openai_batch", server.url))
    monkeypatch.setattr(openai_batch.OpenAIBatch, dies_in, work)
    for cfg in (labels("gemini_batch", other.url), labels("openai_batch", server.url)):
      assert orders(label(tmp_path, 4, cfg)) == [(2, 1, 0)] * 4
  assert (len(server.batches), len(other.batches)) == (1, 1)


def dying(_):
  raise KeyboardInterrupt


def spent(path):
  with budget.Budget(path / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    return books.spent()[0]


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_batch_whose_name_is_lost_on_the_way_is_made_once(tmp_path, name):
  """Its server answers with an error when it has taken it: a second try would be a second batch, and paid for."""

  class Lossy(LoopbackBatch):
    def post(self, path, body, headers):
      made = super().post(path, body, headers)
      is_batch = path == "/v1/batches" or path.endswith(":batchGenerateContent")
      return (500, {"error": {"message": "lost", "code": 500}}) if is_batch else made

  with Lossy() as server, session.Session(labels(name, server.url, max_tokens=10**6, attempts=4), tmp_path) as opened:
    outcomes = opened.label(lists(5), session.plan(labels(name), seed=0))
    assert orders(outcomes) == [(2, 1, 0)] * 5
    assert [len(prompts) for prompts in server.batches] == [5]
    assert opened._budget.spent()[0] == 5 * 18


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_batch_that_is_not_taken_costs_nothing(tmp_path, name):
  with LoopbackBatch() as server:
    cfg = labels(name, server.url, max_tokens=100_000)
    server.refusing = True
    for _ in range(2):
      with pytest.raises(protocol.Stop, match="404"):
        label(tmp_path, 3, cfg)
      assert spent(tmp_path) == 0
    server.refusing = False
    assert orders(label(tmp_path, 3, cfg)) == [(2, 1, 0)] * 3
  assert len(list((tmp_path / session.BATCHES).glob("requests-*.jsonl"))) == 1


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_line_that_never_comes_back_is_given_up(tmp_path, name):
  with LoopbackBatch(lambda n, text: None if "query 2\n" in text else reversed_order(n, text)) as server:
    outcomes = label(tmp_path, 4, labels(name, server.url))
    assert orders(outcomes) == [(2, 1, 0), (2, 1, 0), False, (2, 1, 0)]
    assert "2 batches" in outcomes[2].message and "without a word" in outcomes[2].message
    label(tmp_path, 4, labels(name, server.url))
  assert [len(prompts) for prompts in server.batches] == [4, 1]


def test_files_keep_to_lines_and_bytes(tmp_path, monkeypatch):
  monkeypatch.setattr(batch, "MOST_BYTES", 2500)
  with pytest.raises(protocol.Stop):
    label(tmp_path / "w", 8, labels("openai_batch", batch_folder=str(tmp_path)))
  sizes = [path.stat().st_size for path in sorted(tmp_path.glob("requests-*.jsonl"))]
  assert len(sizes) > 2 and max(sizes) <= 2500


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_failures_of_lines_do_not_show_the_key(tmp_path, name):
  with LoopbackBatch(lambda n, text: Reply(f"who is {KEY}?", status=403)) as server:
    outcomes = label(tmp_path, 2, labels(name, server.url))
  assert all("who is ***?" in outcome.message and KEY not in outcome.message for outcome in outcomes)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_batch_that_fails_as_a_whole_is_submitted_anew_by_the_next_run(tmp_path, name):
  with LoopbackBatch(lambda number, prompt: Reply(close=True)) as server:
    cfg = labels(name, server.url, max_tokens=100_000)
    with pytest.raises(protocol.Stop, match=r"ended without results.*submit its requests anew"):
      label(tmp_path, 3, cfg)
    server.answer = reversed_order
    assert orders(label(tmp_path, 3, cfg)) == [(2, 1, 0)] * 3
  with budget.Budget(tmp_path / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    assert books.spent()[0] == 3 * 18


def test_long_lists_take_a_batch_for_each_window(tmp_path):
  cfg = lambda url: labels("openai_batch", url, window=2, stride=1)
  with LoopbackBatch() as server:
    outcomes = label(tmp_path, 3, cfg(server.url))
  assert [len(prompts) for prompts in server.batches] == [3, 3] and all(orders(outcomes))


def test_several_orders_go_into_one_batch(tmp_path):
  with LoopbackBatch() as server:
    outcomes = label(tmp_path, 3, labels("openai_batch", server.url, orders=3))
  assert all(len(prompts) <= 9 for prompts in server.batches) and len(server.batches) == 1
  assert all(len(outcome.answers) == 3 for outcome in outcomes)


@pytest.mark.parametrize("name", PROVIDERS)
def test_by_hand_files_go_out_and_come_in(tmp_path, name, monkeypatch):
  monkeypatch.delenv("OPENAI_API_KEY")
  monkeypatch.delenv("GEMINI_API_KEY")
  folder = tmp_path / "files"
  cfg = labels(name, batch_folder=str(folder))
  with pytest.raises(protocol.Stop, match=r"3 requests wait in .*requests-0000.jsonl.*results\*.jsonl"):
    label(tmp_path / "w", 3, cfg)
  lines = [json.loads(line) for line in (folder / "requests-0000.jsonl").read_text().splitlines()]
  server = LoopbackBatch(lambda number, prompt: None if number == 1 else reversed_order(number, prompt))
  server._run(lines, gemini=name.startswith("gemini"))
  results = server._files[server._results[0][0]]
  foreign = results.splitlines()[0].replace(lines[1].get("key", lines[1].get("custom_id")).encode(), b"else")
  (folder / "results.jsonl").write_bytes(b"not json\n\n" + foreign + b"\n" + results)
  with pytest.raises(protocol.Stop, match="1 requests wait"):
    label(tmp_path / "w", 3, cfg)
  with cache.AnswerCache(tmp_path / "w" / session.CACHE) as opened:
    assert len(opened) == 2


@pytest.mark.parametrize("name", PROVIDERS)
def test_by_hand_nothing_is_written_twice_unless_it_failed(tmp_path, name):
  folder = tmp_path / "files"
  cfg = labels(name, batch_folder=str(folder))

  def run(count):
    with pytest.raises(protocol.Stop) as stopped:
      label(tmp_path / "w", count, cfg)
    return str(stopped.value), {path.name: path.read_bytes() for path in sorted(folder.glob("requests-*.jsonl"))}

  _, first = run(3)
  said, again = run(3)
  assert again == first and "3 requests wait" in said
  # Two more lists: only they are written, and the message names both files.
  said, more = run(5)
  assert more.pop("requests-0000.jsonl") == first["requests-0000.jsonl"]
  assert len(more.pop("requests-0001.jsonl").splitlines()) == 2 and not more
  assert "5 requests wait" in said and "requests-0000" in said and "requests-0001" in said

  # One answer came, one request failed, the third is still out: the failed one alone is written anew, and once.
  answers = {1: reversed_order, 2: lambda number, prompt: Reply("busy", status=500), 3: lambda number, prompt: None}
  server = LoopbackBatch(lambda number, prompt: answers[number](number, prompt))
  server._run([json.loads(line) for line in first["requests-0000.jsonl"].splitlines()], name.startswith("gemini"))
  parts = [server._files[part] for part in server._results[0] if part]
  (folder / "results.jsonl").write_bytes(b"\n".join(parts))
  for _ in range(2):
    said, files = run(5)
    assert "4 requests wait" in said and sorted(files) == [f"requests-000{i}.jsonl" for i in range(3)]
    assert files["requests-0002.jsonl"].strip() == first["requests-0000.jsonl"].splitlines()[1]


def test_by_hand_a_deleted_file_is_written_anew_and_no_other_is_touched(tmp_path):
  cfg = labels("openai_batch", batch_folder=str(tmp_path))
  for count in (3, 5):
    with pytest.raises(protocol.Stop):
      label(tmp_path / "w", count, cfg)
  kept = (tmp_path / "requests-0001.jsonl").read_bytes()
  (tmp_path / "requests-0000.jsonl").unlink()
  with pytest.raises(protocol.Stop, match="5 requests wait"):
    label(tmp_path / "w", 5, cfg)
  assert (tmp_path / "requests-0001.jsonl").read_bytes() == kept
  assert len((tmp_path / "requests-0002.jsonl").read_bytes().splitlines()) == 3


@pytest.mark.parametrize("name", PROVIDERS)
def test_by_hand_answers_are_booked_once(tmp_path, name):
  cfg = labels(name, batch_folder=str(tmp_path), max_tokens=10**6)
  with pytest.raises(protocol.Stop):
    label(tmp_path / "w", 3, cfg)
  server = LoopbackBatch()
  lines = [json.loads(line) for line in (tmp_path / "requests-0000.jsonl").read_text().splitlines()]
  server._run(lines, gemini=name.startswith("gemini"))
  (tmp_path / "results.jsonl").write_bytes(server._files[server._results[0][0]])
  for _ in range(2):
    assert orders(label(tmp_path / "w", 3, cfg)) == [(2, 1, 0)] * 3
    assert spent(tmp_path / "w") == 3 * 18


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_line_that_nobody_expected_takes_no_other_along(tmp_path, name):
  cfg = labels(name, batch_folder=str(tmp_path), max_tokens=10**6, attempts=1)
  with pytest.raises(protocol.Stop):
    label(tmp_path / "w", 3, cfg)
  server = LoopbackBatch()
  lines = [json.loads(line) for line in (tmp_path / "requests-0000.jsonl").read_text().splitlines()]
  server._run(lines, gemini=name.startswith("gemini"))
  first, second, third = server._files[server._results[0][0]].splitlines()
  text = b'"[3] > [2] > [1]"'
  assert text in first and b": 11" in third
  odd = [first.replace(text, b'[{"type": "image"}, 5]'), third.replace(b": 11", b": 1" + 30 * b"0")]
  (tmp_path / "results.jsonl").write_bytes(b"\n".join([b"[" * 100_000, b"null", b"[]", *odd, second]))
  outcomes = label(tmp_path / "w", 3, cfg)
  assert sorted(isinstance(outcome, ranking.Ranked) for outcome in outcomes) == [False, True, True]


def test_by_hand_a_run_that_dies_over_the_booking_has_counted_at_least_what_it_took(tmp_path, monkeypatch):
  cfg = labels("openai_batch", batch_folder=str(tmp_path), max_tokens=10**6)
  with pytest.raises(protocol.Stop):
    label(tmp_path / "w", 3, cfg)
  server = LoopbackBatch()
  lines = [json.loads(line) for line in (tmp_path / "requests-0000.jsonl").read_text().splitlines()]
  server._run(lines, gemini=False)
  (tmp_path / "results.jsonl").write_bytes(server._files[server._results[0][0]])
  with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
    patched.setattr(cache.AnswerCache, "put_rows", mock.Mock(side_effect=KeyboardInterrupt))
    label(tmp_path / "w", 3, cfg)
  assert spent(tmp_path / "w") == 3 * 18
  label(tmp_path / "w", 3, cfg)
  assert spent(tmp_path / "w") >= 3 * 18


def test_the_lines_are_what_the_providers_document(tmp_path):
  for name in PROVIDERS:
    with pytest.raises(protocol.Stop):
      label(tmp_path / name, 1, labels(name, batch_folder=str(tmp_path / name)))
  openai = json.loads((tmp_path / "openai_batch" / "requests-0000.jsonl").read_text())
  assert set(openai) == {"custom_id", "method", "url", "body"} and len(openai["custom_id"]) == 64
  assert (openai["method"], openai["url"]) == ("POST", "/v1/chat/completions")
  assert set(openai["body"]) == {"model", "messages", "max_completion_tokens"}
  gemini = json.loads((tmp_path / "gemini_batch" / "requests-0000.jsonl").read_text())
  assert set(gemini) == {"key", "request"} and set(gemini["request"]) == {"contents", "generation_config"}
  assert gemini["request"]["generation_config"] == {"temperature": 0.0, "max_output_tokens": 1024}


def test_a_batch_holds_what_the_budget_has_room_for_and_the_next_one_what_it_left(tmp_path):
  with LoopbackBatch() as server:
    assert orders(label(tmp_path, 5, labels("openai_batch", server.url, max_tokens=4_000))) == [(2, 1, 0)] * 5
    assert [len(prompts) for prompts in server.batches] == [2, 2, 1]
    with pytest.raises(budget.Exhausted, match="90 tokens"):
      label(tmp_path, 6, labels("openai_batch", server.url, max_tokens=1_000))
    assert len(server.batches) == 3


def test_a_batch_beyond_the_budget_is_not_submitted(tmp_path):
  with LoopbackBatch() as server:
    with pytest.raises(budget.Exhausted):
      label(tmp_path, 5, labels("openai_batch", server.url, max_tokens=1000))
    assert not server.batches
    label(tmp_path, 5, labels("openai_batch", server.url, max_tokens=100_000))
  with budget.Budget(tmp_path / session.SPENT, max_dollars=None, max_tokens=1, prices=budget.Prices()) as books:
    assert books.spent()[0] == 5 * 18, "what it really took, not its bound"
