"""Requests that wait for a batch.  They lie on the disk: a million prompts fill more memory than there is."""

import json
import sqlite3
from collections.abc import Iterator

from idistill_jax.llm import protocol


class Waiting:
  """Requests by their keys in the order in which they were noted, in a temporary file that goes with the process."""

  def __init__(self) -> None:
    # SQLite's name for such a file: it is made where memory for its pages ends.
    self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    self._db.execute("CREATE TABLE requests (key TEXT UNIQUE, query_id TEXT, passage_ids TEXT, prompt TEXT)")

  def note(self, key: str, request: protocol.Request) -> None:
    row = key, request.query_id, json.dumps(request.passage_ids), request.prompt
    self._db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?, ?, ?)", row)

  def get(self, key: str) -> protocol.Request | None:
    row = self._db.execute("SELECT query_id, passage_ids, prompt FROM requests WHERE key = ?", (key,)).fetchone()
    return row and protocol.Request(row[0], tuple(json.loads(row[1])), row[2])

  def __iter__(self) -> Iterator[str]:
    return (row[0] for row in self._db.execute("SELECT key FROM requests ORDER BY rowid"))

  def forget(self) -> None:
    """All of them."""
    self._db.execute("DELETE FROM requests")

  def close(self) -> None:
    self._db.close()

  def __bool__(self) -> bool:
    return self._db.execute("SELECT 1 FROM requests LIMIT 1").fetchone() is not None
