"""Answers by the content of their requests, in one SQLite file that processes share; out and in as JSON lines.

    python -m idistill_jax.llm.cache export runs/mine/cache/llm.sqlite answers.jsonl
    python -m idistill_jax.llm.cache import runs/other/cache/llm.sqlite answers.jsonl
    python -m idistill_jax.llm.cache forget runs/mine/cache/llm.sqlite runs/mine/labels/dropped.jsonl

An answer is written, and the write committed, before anybody counts it: a labelling that is killed and
started again pays for no answered request twice.
"""

import contextlib
import hashlib
import json
import pathlib
import sqlite3
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from idistill_jax.llm import protocol

SCHEMA_VERSION = 2
_BUSY_SECONDS = 60.0
_CREATE = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY,
  family TEXT NOT NULL,
  model TEXT NOT NULL,
  params TEXT NOT NULL,
  query_id TEXT NOT NULL,
  passage_ids TEXT NOT NULL,
  text TEXT NOT NULL,
  finish_reason TEXT NOT NULL,
  input_tokens INTEGER,
  output_tokens INTEGER,
  created REAL NOT NULL,
  served TEXT
)
"""
# Version 1 did not say which model answers in the name of the one that is asked.
_FROM_VERSION_1 = "ALTER TABLE answers ADD COLUMN served TEXT"
# Of `answers`, in its order, with the types that a JSON line must have.
_COLUMNS: dict[str, Any] = {
  "key": str, "family": str, "model": str, "params": str, "query_id": str, "passage_ids": str, "text": str,
  "finish_reason": str, "input_tokens": (int, types.NoneType), "output_tokens": (int, types.NoneType),
  "created": (int, float), "served": (str, types.NoneType),
}
_FINISH = list(_COLUMNS).index("finish_reason")
_INSERT = f"INSERT OR IGNORE INTO answers VALUES ({', '.join('?' * len(_COLUMNS))})"
Row = tuple[Any, ...]


def key(provider: protocol.Provider, request: protocol.Request) -> str:
  """Hash of all that an answer depends on: who is asked, with which parameters, in which words.

  Neither the address nor the API key is part of it: the same model elsewhere gives an answer of the same
  worth.  A recording answers equal words about different passages differently: of one, their ids are part of it.
  """
  parts = [provider.family, provider.model, dict(provider.params), request.prompt]
  if provider.family == protocol.RECORDED:
    parts += [request.query_id, request.passage_ids]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CacheError(ValueError):
  """The file is no answer cache, or one of another version."""


class AnswerCache:
  """Threads may share one; processes may open the same file."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._lock = threading.Lock()
    path.parent.mkdir(parents=True, exist_ok=True)
    self._reading = threading.Lock()
    try:
      # Reads have a connection of their own: the other one may be waiting for the disk.
      self._db, self._reader = self._connect(), self._connect()
      with contextlib.ExitStack() as undo:
        undo.callback(self.close)
        self._open()
        undo.pop_all()
    except sqlite3.DatabaseError as e:
      raise CacheError(f"{path}: no usable answer cache ({e}); where it is broken, move it away to begin anew") from e

  def _connect(self) -> sqlite3.Connection:
    return sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  def close(self) -> None:
    self._reader.close()
    self._db.close()

  def __len__(self) -> int:
    with self._reading:
      return int(self._reader.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

  def get(self, key: str) -> protocol.Answer | None:
    """The answer stored under the key, or None."""
    with self._reading:
      row = self._reader.execute(
        "SELECT text, finish_reason, input_tokens, output_tokens, served FROM answers WHERE key = ?", (key,)
      ).fetchone()
    return row and protocol.Answer(*row)

  def holds_any_of(self, provider: protocol.Provider) -> bool:
    """Whether this model has ever answered with these parameters."""
    who = provider.family, provider.model, _params(provider)
    with self._reading:
      found = self._reader.execute("SELECT 1 FROM answers WHERE family = ? AND model = ? AND params = ? LIMIT 1", who)
      return found.fetchone() is not None

  def put(
    self, key: str, provider: protocol.Provider, request: protocol.Request, answer: protocol.Answer
  ) -> protocol.Answer:
    """Stores an answer and returns the one that counts: the first under its key, whoever wrote it."""
    self.put_rows([row_of(key, provider, request, answer)])
    return self.get(key) or answer

  def put_rows(self, rows: Sequence[Row]) -> None:
    """Stores rows of `row_of` in one commit; what is there under their keys stays."""
    with self._one_commit():
      self._db.executemany(_INSERT, rows)

  @contextlib.contextmanager
  def _one_commit(self) -> Iterator[None]:
    """What is written in its block, all of it or nothing."""
    with self._lock:
      self._db.execute("BEGIN IMMEDIATE")
      try:
        yield
      except BaseException:
        self._db.execute("ROLLBACK")
        raise
      self._db.execute("COMMIT")

  def _of_lines(self, path: pathlib.Path, work: Callable[[str, bytes], int]) -> int:
    """The sum of what `work` counts of each line of a file and where it stands, in one commit."""
    with open(path, "rb") as lines, self._one_commit():
      return sum(work(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())

  def export(self, path: pathlib.Path) -> int:
    """Writes one JSON object an answer, in the order of their keys; returns how many."""
    with self._reading, open(path, "w", encoding="utf-8") as out:
      rows = self._reader.execute(f"SELECT {', '.join(_COLUMNS)} FROM answers ORDER BY key")
      count = 0
      for row in rows:
        count += 1
        out.write(json.dumps(dict(zip(_COLUMNS, row, strict=True)), ensure_ascii=False) + "\n")
    return count

  def take_in(self, path: pathlib.Path) -> int:
    """Reads what `export` wrote; returns how many answers were new.  What is here already stays as it is.

    All or nothing: raises CacheError naming file and line for a line of another form.
    """
    return self._of_lines(path, self._take_in)

  def forget(self, path: pathlib.Path) -> int:
    """Takes out what the model that was asked said about what a stage's `dropped.jsonl` names, so that it is asked for
    anew; returns how many answers there were.  What was dropped before anybody was asked has none of its own: those
    that other configs paid for stay.  All or nothing: raises CacheError naming file and line for a line of another
    form."""
    return self._of_lines(path, self._forget)

  def _forget(self, where: str, line: bytes) -> int:
    try:
      row = json.loads(line)
      about = {"query_id": row["query_id"]} | {name: row[name] for name in ("model", "passage_ids") if name in row}
    except (ValueError, KeyError, TypeError):
      raise CacheError(f"{where}: nothing that was dropped; expected an object with query_id") from None
    if "answer" not in row:
      return 0
    values = [value if isinstance(value, str) else json.dumps(value) for value in about.values()]
    which = " AND ".join(f"{name} = ?" for name in about)
    return self._db.execute(f"DELETE FROM answers WHERE {which}", values).rowcount

  def _take_in(self, where: str, line: bytes) -> int:
    try:
      values = {"served": None} | json.loads(line)
      row = [values[name] for name in _COLUMNS]
      right = all(isinstance(value, kinds) for value, kinds in zip(row, _COLUMNS.values(), strict=True))
    except (ValueError, KeyError, TypeError):
      right = False
    if not right or row[_FINISH] not in typing.get_args(protocol.FinishReason):
      raise CacheError(f"{where}: not an exported answer; expected an object with {', '.join(_COLUMNS)}")
    try:
      return self._db.execute(_INSERT, row).rowcount
    except (OverflowError, UnicodeEncodeError) as e:
      raise CacheError(f"{where}: an answer that no cache can hold ({e}); take the line out") from None

  def _open(self) -> None:
    patiently(self._db, "PRAGMA journal_mode = WAL")
    # A commit is on the disk when it returns: answers are paid for.
    self._db.execute("PRAGMA synchronous = FULL")
    if (version := self._version()) not in (0, 1, SCHEMA_VERSION):
      raise CacheError(f"{self._path}: an answer cache of version {version}, known is {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
      self._db.execute("BEGIN IMMEDIATE")
      # Another process may have done it meanwhile.
      if self._version() == 1:
        self._db.execute(_FROM_VERSION_1)
      self._db.execute(_CREATE)
      self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
      self._db.execute("COMMIT")

  def _version(self) -> int:
    return int(self._db.execute("PRAGMA user_version").fetchone()[0])


def _params(provider: protocol.Provider) -> str:
  """As the cache's column has them."""
  return json.dumps(dict(provider.params), sort_keys=True)


def row_of(key: str, provider: protocol.Provider, request: protocol.Request, answer: protocol.Answer) -> Row:
  return (
    key, provider.family, provider.model, _params(provider), request.query_id,
    json.dumps(request.passage_ids), _storable(answer.text), answer.finish_reason, answer.input_tokens,
    answer.output_tokens, time.time(), answer.model and _storable(answer.model),
  )


def _storable(text: str) -> str:
  """A model that is cut off within an emoji answers with half of a surrogate pair, which no UTF-8 can hold."""
  return text.encode("utf-8", "replace").decode()


def given_by(model: str, path: pathlib.Path) -> tuple[int, int, int]:
  """Answers of a model in a cache that others may be writing to, and their input and output tokens."""
  if not path.exists():
    return 0, 0, 0
  reading = f"{path.absolute().as_uri()}?mode=ro"
  with contextlib.closing(sqlite3.connect(reading, uri=True, timeout=_BUSY_SECONDS)) as db:
    return db.execute(
      "SELECT COUNT(*), CAST(TOTAL(input_tokens) AS INTEGER), CAST(TOTAL(output_tokens) AS INTEGER) FROM answers "
      "WHERE model = ?", (model,),
    ).fetchone()


def patiently(db: sqlite3.Connection, statement: str) -> None:
  """Executes what two processes that open a new file may both do; changing the journal mode ignores timeouts."""
  deadline = time.monotonic() + _BUSY_SECONDS
  while True:
    try:
      db.execute(statement)
      return
    except sqlite3.OperationalError as e:
      if "locked" not in str(e) or time.monotonic() > deadline:
        raise
      time.sleep(0.02)


def main(arguments: list[str]) -> None:
  """`export`, `import` or `forget`, then CACHE FILE; ends the process with a message for anything else."""
  works = {"export": (AnswerCache.export, "written"), "import": (AnswerCache.take_in, "new"),
           "forget": (AnswerCache.forget, "taken out")}
  match arguments:
    case [what, path, file] if what in works:
      if what != "import" and not pathlib.Path(path).exists():
        sys.exit(f"{path}: no such cache")
      work, done = works[what]
      try:
        with AnswerCache(pathlib.Path(path)) as cache:
          count = work(cache, pathlib.Path(file))
      except (CacheError, OSError) as e:
        sys.exit(f"{type(e).__name__}: {e}")
      print(f"{count:,} answers {done}")
    case _:
      sys.exit(f"usage: python -m idistill_jax.llm.cache {'|'.join(works)} CACHE FILE")


if __name__ == "__main__":
  main(sys.argv[1:])
