"""The answer cache: what is one request, threads and processes on one file, and files that are no cache."""

import asyncio
import concurrent.futures
import dataclasses
import json
import sqlite3
import subprocess
import sys
import time
import types

import pytest

from idistill_jax.llm import cache, group_commit, protocol, session
from idistill_jax.workdir import databases


def provider(family="openai", model="m", **params):
  return types.SimpleNamespace(family=family, model=model, params=params)


def request(prompt, query_id="q1", passage_ids=("a", "b")):
  return protocol.Request(query_id, passage_ids, prompt)


REQUEST = request("prompt")
ANSWER = protocol.Answer("[2] > [1]", "stop", 3, None)


def test_an_answer_comes_back_after_reopening(tmp_path):
  path = tmp_path / "deep" / "llm.sqlite"
  key = cache.key(provider(), request("prompt"))
  with cache.AnswerCache(path) as opened:
    assert opened.get(key) is None
    assert opened.put(key, provider(), REQUEST, ANSWER) == ANSWER
  with cache.AnswerCache(path) as opened:
    assert opened.get(key) == ANSWER and len(opened) == 1


def test_the_key_holds_family_model_params_and_prompt():
  keys = [
    cache.key(provider(), request("p")),
    cache.key(provider(), request("p2")),
    cache.key(provider(family="gemini"), request("p")),
    cache.key(provider(model="m2"), request("p")),
    cache.key(provider(temperature=0.0), request("p")),
    cache.key(provider(temperature=1.0), request("p")),
  ]
  assert len(set(keys)) == len(keys)
  assert cache.key(provider(a=1, b=2), request("p")) == cache.key(provider(b=2, a=1), request("p", "q2", ("c",)))


def test_the_first_answer_counts(tmp_path):
  with cache.AnswerCache(tmp_path / "c") as first, cache.AnswerCache(tmp_path / "c") as second:
    first.put("k", provider(), REQUEST, ANSWER)
    assert second.put("k", provider(), REQUEST, protocol.Answer("other", "stop")) == ANSWER


class SlowDisk(cache.AnswerCache):
  """Counts commits, each of which takes a while; the first `failing` of them fail."""

  commits, failing = 0, 0

  def put_rows(self, rows):
    self.commits += 1
    time.sleep(0.02)
    if self.commits <= self.failing:
      raise sqlite3.OperationalError("disk is full")
    super().put_rows(rows)


def test_answers_that_come_in_while_the_disk_is_busy_share_a_commit(tmp_path):
  async def all_at_once(disk):
    group = group_commit.GroupCommit(disk)

    async def one(i):
      answer = protocol.Answer(f"answer {i}", "stop")
      assert await group.put(f"k{i}", provider(), REQUEST, answer) == answer
      with cache.AnswerCache(tmp_path / "c") as other:
        assert other.get(f"k{i}") == answer, "counted before it is on the disk"

    await asyncio.gather(*(one(i) for i in range(40)))

  with SlowDisk(tmp_path / "c") as disk:
    asyncio.run(all_at_once(disk))
    assert disk.commits < 20 and len(disk) == 40


def test_an_answer_whose_commit_failed_is_not_counted_and_not_lost_to_the_next(tmp_path):
  async def three(disk):
    group = group_commit.GroupCommit(disk)
    put = lambda i: group.put(f"k{i}", provider(), REQUEST, protocol.Answer(f"answer {i}", "stop"))
    return await asyncio.gather(*(put(i) for i in range(3)), return_exceptions=True)

  with SlowDisk(tmp_path / "c") as disk:
    disk.failing = 1
    found = asyncio.run(three(disk))
    assert isinstance(found[0], sqlite3.OperationalError)
    assert [answer.text for answer in found[1:]] == ["answer 1", "answer 2"]
    assert len(disk) == 3 and disk.commits == 2


def test_an_answer_that_cannot_be_stored_takes_no_other_along(tmp_path):
  """Half of an emoji is kept as far as UTF-8 goes; a count beyond SQLite's integers is refused, by itself."""

  async def three(disk):
    group = group_commit.GroupCommit(disk)
    answers = [("[2] \ud83d", None), ("b", 10**30), ("c", 5)]
    puts = (
      group.put(f"k{i}", provider(), REQUEST, protocol.Answer(text, "stop", tokens))
      for i, (text, tokens) in enumerate(answers)
    )
    return await asyncio.gather(*puts, return_exceptions=True)

  with SlowDisk(tmp_path / "c") as disk:
    found = asyncio.run(three(disk))
    assert (found[0].text, found[2].text, len(disk)) == ("[2] ?", "c", 2)
    assert isinstance(found[1], protocol.Unanswered) and "OverflowError" in str(found[1])


def test_threads_share_one(tmp_path):
  with cache.AnswerCache(tmp_path / "c") as opened, concurrent.futures.ThreadPoolExecutor(8) as pool:

    def put(i):
      return opened.put(f"k{i % 50}", provider(), REQUEST, protocol.Answer(f"answer {i % 50}", "stop"))

    assert [answer.text for answer in pool.map(put, range(200))] == [f"answer {i % 50}" for i in range(200)]
    assert len(opened) == 50


WRITER = """
import pathlib, sys, types
from idistill_jax.llm import cache, protocol
provider = types.SimpleNamespace(family="f", model="m", params={})
request = protocol.Request("q", ("a",), "p")
with cache.AnswerCache(pathlib.Path(sys.argv[1])) as opened:
  for i in range(100):
    opened.put(f"shared {i}", provider, request, protocol.Answer(f"text {i}", "stop"))
    opened.put(f"{sys.argv[2]} {i}", provider, request, protocol.Answer("x" * 2000, "stop"))
"""


def test_processes_share_one_file(tmp_path):
  path = tmp_path / "llm.sqlite"
  writers = [
    subprocess.Popen([sys.executable, "-c", WRITER, path, name], stderr=subprocess.PIPE) for name in "abc"
  ]
  for writer in writers:
    _, errors = writer.communicate(timeout=60)
    assert writer.returncode == 0, errors
  with cache.AnswerCache(path) as opened:
    assert len(opened) == 400
    assert all(opened.get(f"shared {i}") == protocol.Answer(f"text {i}", "stop") for i in range(100))
  db = sqlite3.connect(path)
  assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
  assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
  db.close()


def test_a_file_that_is_no_cache_is_named(tmp_path):
  path = tmp_path / "llm.sqlite"
  path.write_text("not a database, but long enough to look at " * 100)
  with pytest.raises(cache.CacheError, match=r"llm.sqlite.*move it away"):
    cache.AnswerCache(path)
  with pytest.raises(cache.CacheError, match="unable to open"):
    cache.AnswerCache(tmp_path)


def test_a_cache_of_before_models_were_noted_goes_on(tmp_path):
  with cache.AnswerCache(tmp_path / "c") as opened:
    opened.put("k", provider(), REQUEST, ANSWER)
    opened.export(tmp_path / "answers.jsonl")
  lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
  (tmp_path / "old.jsonl").write_text("".join(
    json.dumps({name: value for name, value in line.items() if name != "served"}) + "\n" for line in lines
  ))
  db = sqlite3.connect(tmp_path / "c")
  db.execute("ALTER TABLE answers DROP COLUMN served")
  db.execute("PRAGMA user_version = 1")
  db.close()
  for _ in range(2):
    with cache.AnswerCache(tmp_path / "c") as opened:
      assert opened.get("k") == ANSWER and opened.get("k").model is None
      opened.put("l", provider(), REQUEST, dataclasses.replace(ANSWER, model="another"))
      assert opened.get("l").model == "another"
  with cache.AnswerCache(tmp_path / "d") as opened:
    assert opened.take_in(tmp_path / "old.jsonl") == 1 and opened.get("k") == ANSWER


def test_another_version_is_refused(tmp_path):
  path = tmp_path / "llm.sqlite"
  db = sqlite3.connect(path)
  db.execute("PRAGMA user_version = 99")
  db.close()
  with pytest.raises(cache.CacheError, match="version 99"):
    cache.AnswerCache(path)


def filled(path, count=5):
  path.parent.mkdir(exist_ok=True)
  with cache.AnswerCache(path) as opened:
    for i in range(count):
      opened.put(f"k{i}", provider(), REQUEST, protocol.Answer(f"answer {i} ü", "stop", i, None))
  return path


def test_exported_answers_come_back_elsewhere(tmp_path):
  for what, path in (("export", filled(tmp_path / "a")), ("import", tmp_path / "b"), ("import", tmp_path / "b")):
    cache.main([what, str(path), str(tmp_path / "shared.jsonl")])
  with cache.AnswerCache(tmp_path / "b") as opened:
    assert len(opened) == 5 and opened.get("k3") == protocol.Answer("answer 3 ü", "stop", 3, None)
    opened.export(tmp_path / "again.jsonl")
  assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "shared.jsonl").read_bytes()


def test_an_import_changes_no_answer_and_counts_the_new(tmp_path):
  with cache.AnswerCache(filled(tmp_path / "a")) as opened:
    opened.export(tmp_path / "shared.jsonl")
  with cache.AnswerCache(tmp_path / "b") as opened:
    opened.put("k3", provider(), REQUEST, protocol.Answer("my own", "stop"))
    assert opened.take_in(tmp_path / "shared.jsonl") == 4
    assert opened.get("k3").text == "my own"


@pytest.mark.parametrize("bad", ["{", "[]", '{"key": "k"}', "5", '{"key": 5}'])
def test_a_bad_line_is_named_and_nothing_is_taken(tmp_path, bad):
  with cache.AnswerCache(filled(tmp_path / "a")) as opened:
    opened.export(tmp_path / "shared.jsonl")
  with open(tmp_path / "shared.jsonl", "a") as out:
    out.write(bad + "\n")
  with cache.AnswerCache(tmp_path / "b") as opened:
    with pytest.raises(cache.CacheError, match=r"shared.jsonl:6: not an exported answer"):
      opened.take_in(tmp_path / "shared.jsonl")
    assert len(opened) == 0
    opened.put("k", provider(), REQUEST, ANSWER)
    assert len(opened) == 1


@pytest.mark.parametrize("odd", [{"text": "\ud83d"}, {"input_tokens": 2**70}])
def test_a_line_that_sqlite_cannot_hold_is_named(tmp_path, odd):
  with cache.AnswerCache(filled(tmp_path / "a")) as opened:
    opened.export(tmp_path / "shared.jsonl")
  first, *_ = (tmp_path / "shared.jsonl").read_text().splitlines()
  (tmp_path / "shared.jsonl").write_text(json.dumps(json.loads(first) | odd) + "\n")
  with cache.AnswerCache(tmp_path / "b") as opened, pytest.raises(
    cache.CacheError, match=r"shared.jsonl:1: an answer that no cache can hold"
  ):
    opened.take_in(tmp_path / "shared.jsonl")


def test_answers_that_were_no_use_are_asked_for_anew(tmp_path):
  """A query's are all that were said of its lists; a passage's, those in one style."""
  of = lambda query_id, *passage_ids: protocol.Request(query_id, passage_ids, "p")
  with cache.AnswerCache(tmp_path / "c") as opened:
    for key, about in {"a": of("q1", "p1", "p2"), "b": of("q1", "p3"), "c": of("q2"), "d": of("style", "p1"),
                       "e": of("style", "p2")}.items():  # fmt: skip
      opened.put(key, provider(), about, ANSWER)
  rows = [{"query_id": "q1", "reason": "refusal"}, {"query_id": "style", "passage_ids": ["p2"]}, {"query_id": "gone"}]
  (tmp_path / "dropped.jsonl").write_text("".join(json.dumps(row | {"answer": "no"}) + "\n" for row in rows))
  cache.main(["forget", str(tmp_path / "c"), str(tmp_path / "dropped.jsonl")])
  with cache.AnswerCache(tmp_path / "c") as opened:
    assert [key for key in "abcde" if opened.get(key)] == ["c", "d"]
    (tmp_path / "dropped.jsonl").write_text('{"query_id": "q2"}\n{"query": 1}\n')
    with pytest.raises(cache.CacheError, match=r"dropped.jsonl:2: nothing that was dropped; expected .* query_id"):
      opened.forget(tmp_path / "dropped.jsonl")
    assert opened.get("c")


def test_what_another_model_said_and_what_nobody_was_asked_about_is_not_forgotten(tmp_path):
  with cache.AnswerCache(tmp_path / "c") as opened:
    for model in ("m", "other"):
      for query_id in ("q1", "q2"):
        opened.put(model + query_id, provider(model=model), protocol.Request(query_id, (), "p"), ANSWER)
    rows = [{"query_id": "q1", "model": "m", "answer": ""}, {"query_id": "q2", "reason": "repeats another's text"}]
    (tmp_path / "dropped.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert opened.forget(tmp_path / "dropped.jsonl") == 1
    assert opened.get("mq1") is None and opened.get("otherq1") and opened.get("mq2")


def test_what_another_workdir_paid_for_is_taken_over(tmp_path):
  filled(tmp_path / "a" / session.CACHE)
  filled(tmp_path / "b" / session.CACHE, 2)
  with cache.AnswerCache(tmp_path / "b" / session.CACHE) as opened:
    opened.put("own", provider(), REQUEST, ANSWER)
  for into in ("b", "new"):
    databases.take_over(tmp_path / "a" / session.CACHE, tmp_path / into / session.CACHE)
    databases.take_over(tmp_path / "nothing there" / session.CACHE, tmp_path / into / session.CACHE)
    with cache.AnswerCache(tmp_path / into / session.CACHE) as opened:
      assert len(opened) == {"b": 6, "new": 5}[into] and opened.get("k3").text == "answer 3 ü"
  with cache.AnswerCache(tmp_path / "a" / session.CACHE) as opened:
    assert len(opened) == 5 and not (tmp_path / "nothing there").exists()


def test_a_wrong_command_says_how(tmp_path):
  (tmp_path / "swapped").write_text("{}\n")
  for arguments in ([], ["exprot", "a", "b"], ["export", str(tmp_path / "none"), "x"],
                    ["import", str(tmp_path / "swapped"), str(tmp_path / "c")]):  # fmt: skip
    with pytest.raises(SystemExit, match=r"usage|no such cache|swapped: no usable answer cache"):
      cache.main(arguments)
