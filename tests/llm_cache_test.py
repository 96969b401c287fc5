"""The answer cache: what is one request, threads and processes on one file, and files that are no cache."""

import concurrent.futures
import sqlite3
import subprocess
import sys
import types

import pytest

from idistill_jax.llm import cache, protocol


def provider(family="openai", model="m", **params):
  return types.SimpleNamespace(family=family, model=model, params=params)


REQUEST = protocol.Request("q1", ("a", "b"), "prompt")
ANSWER = protocol.Answer("[2] > [1]", "stop", 3, None)


def test_an_answer_comes_back_after_reopening(tmp_path):
  path = tmp_path / "deep" / "llm.sqlite"
  key = cache.key(provider(), "prompt")
  with cache.AnswerCache(path) as opened:
    assert opened.get(key) is None
    assert opened.put(key, provider(), REQUEST, ANSWER) == ANSWER
  with cache.AnswerCache(path) as opened:
    assert opened.get(key) == ANSWER and len(opened) == 1


def test_the_key_holds_family_model_params_and_prompt():
  keys = [
    cache.key(provider(), "p"),
    cache.key(provider(), "p2"),
    cache.key(provider(family="gemini"), "p"),
    cache.key(provider(model="m2"), "p"),
    cache.key(provider(temperature=0.0), "p"),
    cache.key(provider(temperature=1.0), "p"),
  ]
  assert len(set(keys)) == len(keys)
  assert cache.key(provider(a=1, b=2), "p") == cache.key(provider(b=2, a=1), "p")


def test_the_first_answer_counts(tmp_path):
  with cache.AnswerCache(tmp_path / "c") as first, cache.AnswerCache(tmp_path / "c") as second:
    first.put("k", provider(), REQUEST, ANSWER)
    assert second.put("k", provider(), REQUEST, protocol.Answer("other", "stop")) == ANSWER


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


def test_another_version_is_refused(tmp_path):
  path = tmp_path / "llm.sqlite"
  db = sqlite3.connect(path)
  db.execute("PRAGMA user_version = 99")
  db.close()
  with pytest.raises(cache.CacheError, match="version 99"):
    cache.AnswerCache(path)
