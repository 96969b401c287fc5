"""Databases of several machines, put together: what one of them has is in none of them lost or counted twice."""

import asyncio
import contextlib
import pathlib
import shutil
import sqlite3

import pytest

from idistill_jax.llm import budget, cache
from idistill_jax.workdir import databases


def rows(*names: str) -> list[cache.Row]:
  return [(name, "openai", "m", "{}", "q", "[]", "text", "stop", 1, 1, 0.0, None) for name in names]


def answer(path: pathlib.Path, *names: str) -> None:
  with cache.AnswerCache(path) as opened:
    opened.put_rows(rows(*names))


def answers(path: pathlib.Path) -> set[str]:
  with contextlib.closing(sqlite3.connect(path)) as db:
    return {name for (name,) in db.execute("SELECT key FROM answers")}


def books(path: pathlib.Path) -> budget.Budget:
  return budget.Budget(path, max_dollars=None, max_tokens=None, prices=budget.Prices(1.0, 1.0))


def spent(path: pathlib.Path) -> int:
  with books(path) as opened:
    return opened.spent()[0]


def spend(path: pathlib.Path, *tokens: int) -> None:
  with books(path) as opened:
    for one in tokens:
      opened.book(None, budget.Usage(one, 0))


def test_what_a_kill_left_beside_is_in_a_copy(tmp_path):
  path, killed = tmp_path / "a.sqlite", tmp_path / "killed.sqlite"
  with cache.AnswerCache(path) as opened:
    opened.put_rows(rows("one"))
    databases.copy(path, tmp_path / "copied.sqlite")
    for beside in ("", "-wal", "-shm"):
      shutil.copyfile(f"{path}{beside}", f"{killed}{beside}")
    assert not databases.settle(path), "it is open"
  assert answers(tmp_path / "copied.sqlite") == {"one"}
  assert databases.settle(killed) and [one.name for one in tmp_path.glob("killed*")] == ["killed.sqlite"]
  assert answers(killed) == {"one"}


def test_answers_of_both_and_of_an_earlier_version(tmp_path):
  ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
  answer(ours, "both", "ours")
  answer(theirs, "both", "theirs")
  with contextlib.closing(sqlite3.connect(theirs)) as db:
    db.execute("ALTER TABLE answers DROP COLUMN served")
    db.execute("PRAGMA user_version = 1")
  databases.merge(theirs, ours)
  assert answers(ours) == {"both", "ours", "theirs"} and answers(theirs) == {"both", "theirs"}
  (tmp_path / "torn.sqlite").write_text("no database, and long enough to be read as one" * 100)
  for other, into in ((tmp_path / "torn.sqlite", ours), (ours, tmp_path / "torn.sqlite")):
    with pytest.raises(OSError, match=f"{into}.*move it away"):
      databases.merge(other, into)


def test_a_workdir_that_is_told_to_reuse_itself_takes_nothing_over(tmp_path, monkeypatch):
  """As in a loop over seeds that names the first of them for all."""
  monkeypatch.setattr(databases, "_BUSY_SECONDS", 0.1)
  answer(tmp_path / "one.sqlite", "a")
  (tmp_path / "link").symlink_to(tmp_path)
  for path in (tmp_path, tmp_path / "link"):
    databases.take_over(path / "one.sqlite", tmp_path / "one.sqlite")
  assert answers(tmp_path / "one.sqlite") == {"a"}
  # The control: of another file its answers are taken.
  answer(tmp_path / "two.sqlite", "b")
  databases.take_over(tmp_path / "two.sqlite", tmp_path / "one.sqlite")
  assert answers(tmp_path / "one.sqlite") == {"a", "b"}


def test_what_was_spent_on_either_machine_was_spent_once(tmp_path):
  ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
  spend(ours, 100)
  databases.copy(ours, theirs)
  spend(ours, 10)
  spend(theirs, 1)
  for _ in range(2):
    databases.merge(theirs, ours)
    databases.merge(ours, theirs)
  assert spent(ours) == spent(theirs) == 111


def test_a_batch_that_one_machine_booked_is_reserved_on_none(tmp_path):
  ours, theirs = tmp_path / "ours.sqlite", tmp_path / "theirs.sqlite"
  with books(ours) as opened:
    batch = asyncio.run(opened.reserve(budget.Usage(1000, 0)))
  databases.copy(ours, theirs)
  with books(theirs) as opened:
    asyncio.run(opened.reserve(budget.Usage(500, 0)))
  with books(ours) as opened:
    opened.book(batch, budget.Usage(70, 0))
  databases.merge(theirs, ours)
  assert spent(ours) == 570
  databases.merge(ours, theirs)
  assert spent(theirs) == 570


def test_what_an_earlier_version_spent_is_taken_over(tmp_path):
  path = tmp_path / "spent.sqlite"
  with contextlib.closing(sqlite3.connect(path)) as db:
    db.execute("CREATE TABLE spent (id INTEGER PRIMARY KEY CHECK (id = 1), tokens INTEGER, dollars REAL)")
    db.execute("INSERT INTO spent VALUES (1, 42, 0.5)")
    db.commit()
  for _ in range(2):
    assert spent(path) == 42
