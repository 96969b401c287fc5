"""SQLite files that several machines write, each a copy of its own: whole copies of them, and two put together.

What they hold (`llm/cache.py`, `llm/budget.py`) allows it.  A row has a key that no other machine gives to anything
else, so each file takes in the rows that it lacks.  Of `costs`, sums that only grow, the larger is the later one.  What
is `booked` in one of them is `reserved` in none.
"""

import contextlib
import pathlib
import sqlite3

_SUFFIX = ".sqlite"
# Of a workdir's cache: what an LLM answered, which another workdir may take over.
ANSWERS = "llm.sqlite"
_BUSY_SECONDS = 60.0


def is_one(path: str) -> bool:
  return path.endswith(_SUFFIX)


def is_beside(path: str) -> bool:
  """Whether it is what SQLite keeps beside a file: worth nothing, or worse, beside another state of that file."""
  return path.endswith(tuple(f"{_SUFFIX}-{kind}" for kind in ("wal", "shm", "journal")))


def settle(path: pathlib.Path) -> bool:
  """Takes what a killed process left beside a file into it; False where others have the file open, or it is broken."""
  log = path.with_name(f"{path.name}-wal")
  if log.exists():
    # The last one to close it does it; whoever uses a broken one says so.
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_opened(path)) as db:
      db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
  return not log.exists()


def copy(path: pathlib.Path, into: pathlib.Path) -> None:
  """As of one moment, whoever writes meanwhile; raises OSError for what is no database, or does not fit on the disk."""
  try:
    with contextlib.closing(_opened(path)) as db, contextlib.closing(sqlite3.connect(into)) as copied:
      db.backup(copied)
  except sqlite3.Error as e:
    raise OSError(f"{path}: cannot be copied ({e}); where it is broken, move it away") from e


def take_over(other: pathlib.Path, into: pathlib.Path) -> None:
  """`merge`, where there is anything, and that is another file; raises OSError as it does."""
  if other.exists() and into.exists():
    if not other.samefile(into):  # which would wait for itself
      merge(other, into)
  elif other.exists():
    into.parent.mkdir(parents=True, exist_ok=True)
    copy(other, into)


def merge(other: pathlib.Path, into: pathlib.Path) -> None:
  """Takes in what `into` lacks; raises OSError where one of the two is no database."""
  try:
    with contextlib.closing(_opened(into)) as db:
      db.execute("ATTACH ? AS other", (str(other),))
      db.execute("BEGIN IMMEDIATE")
      for table, made in _tables(db, "other").items():
        if table not in _tables(db, "main"):
          db.execute(made)
        _take_in(db, table)
      if {"reserved", "booked"} <= set(_tables(db, "main")):
        db.execute("DELETE FROM reserved WHERE id IN (SELECT id FROM booked)")
      db.execute("COMMIT")
  except sqlite3.Error as e:
    raise OSError(f"{into}: cannot take in what another machine wrote ({e}); where it is broken, move it away") from e


def _take_in(db: sqlite3.Connection, table: str) -> None:
  # An older version has fewer columns.
  columns = ", ".join(name for name in _columns(db, "other", table) if name in _columns(db, "main", table))
  if table == "costs":
    db.execute(f"INSERT INTO main.costs ({columns}) SELECT {columns} FROM other.costs WHERE TRUE ON CONFLICT DO UPDATE "
               "SET tokens = MAX(tokens, excluded.tokens), dollars = MAX(dollars, excluded.dollars)")
  else:
    db.execute(f"INSERT OR IGNORE INTO main.{table} ({columns}) SELECT {columns} FROM other.{table}")


def _tables(db: sqlite3.Connection, schema: str) -> dict[str, str]:
  """Name -> statement that makes it."""
  own = "type = 'table' AND name NOT LIKE 'sqlite%'"
  return dict(db.execute(f"SELECT name, sql FROM {schema}.sqlite_master WHERE {own}"))


def _columns(db: sqlite3.Connection, schema: str, table: str) -> list[str]:
  return [name for _, name, *_ in db.execute(f"PRAGMA {schema}.table_info({table})")]


def _opened(path: pathlib.Path) -> sqlite3.Connection:
  return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
