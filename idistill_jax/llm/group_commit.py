"""Answers that come in while the disk is busy share the next commit."""

import asyncio
import sqlite3
from collections.abc import Sequence

from idistill_jax.llm import cache as cache_lib
from idistill_jax.llm import protocol


class GroupCommit:
  """`AnswerCache.put` for one event loop: answers that come in while the disk is busy share the next commit.

  A commit waits for the disk, which takes milliseconds; one for each answer would set the rate of a labelling.
  """

  def __init__(self, cache: cache_lib.AnswerCache):
    self._cache = cache
    self._committing = asyncio.Lock()
    self._waiting: list[cache_lib.Row] = []
    self._unstorable: dict[str, str] = {}

  async def put(
    self, key: str, provider: protocol.Provider, request: protocol.Request, answer: protocol.Answer
  ) -> protocol.Answer:
    """As `AnswerCache.put`: the answer is on the disk when this returns; raises Unanswered for one that cannot be."""
    self._waiting.append(cache_lib.row_of(key, provider, request, answer))
    async with self._committing:
      rows, self._waiting = self._waiting, []
      # None are left where whoever held the lock before took this answer along.
      if rows:
        try:
          await asyncio.to_thread(self._commit, rows)
        except BaseException:
          self._waiting = rows + self._waiting
          raise
    if (why := self._unstorable.pop(key, None)) is not None:
      raise protocol.Unanswered(f"the answer cannot be stored: {why}")
    return self._cache.get(key) or answer

  def _commit(self, rows: Sequence[cache_lib.Row]) -> None:
    """Rows that SQLite does not take as they are must not take the others along; a disk that is full is no row's."""
    try:
      self._cache.put_rows(rows)
    except sqlite3.OperationalError:
      raise
    except Exception as e:
      if len(rows) == 1:
        self._unstorable[rows[0][0]] = f"{type(e).__name__}: {e}"
      else:
        for row in rows:
          self._commit([row])
