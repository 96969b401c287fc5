"""A limit on what is spent, in dollars and in tokens, that calls under way keep as well.

    bound of a call ─► room for it? ─► reserved ─► asked ─► its real cost in place of the bound

The sums lie in a file beside the cache: a killed run's reservations count as spent, and processes on one cache share
one budget: they wait for each other's calls, where the system tells which of them still run (Linux).  (In the cache's
own file, every call would wait for the disk as answers do.)  Machines that share a bucket each have a copy of the file,
and `databases` puts two of them together: so each run has a sum of its own, and a reservation an id of its own.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import secrets
import sqlite3
from collections.abc import AsyncIterator
from typing import Self

from idistill_jax import machine
from idistill_jax.llm import cache, protocol

_BUSY_SECONDS = 60.0
# Between two looks at what other processes have given back.
_LOOK_SECONDS = 0.2
# Two totals that are compared with a limit are sums of floats.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Prices:
  """Dollars for a million tokens; None where not known."""

  input_tokens: float | None = None
  output_tokens: float | None = None

  def dollars(self, usage: "Usage | None") -> float | None:
    """The cost of the tokens, or None where a price or a count is not known."""
    if self.input_tokens is None or self.output_tokens is None or usage is None:
      return None
    return (usage.input_tokens * self.input_tokens + usage.output_tokens * self.output_tokens) / 1e6


@dataclasses.dataclass(frozen=True, slots=True)
class Usage:
  """Tokens of one or more calls."""

  input_tokens: int
  output_tokens: int

  @classmethod
  def of(cls, answer: protocol.Answer) -> Self | None:
    """None where the provider tells no count."""
    if answer.input_tokens is None or answer.output_tokens is None:
      return None
    return cls(answer.input_tokens, answer.output_tokens)

  def __add__(self, other: "Usage") -> "Usage":
    return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)

  @property
  def tokens(self) -> int:
    return self.input_tokens + self.output_tokens


class Exhausted(protocol.Stop):
  """The next call might exceed the budget."""


class Call:
  """One reservation.  What is not told otherwise costs its bound."""

  def __init__(self, usage: Usage):
    self.usage = usage


class Budget:
  """max_dollars, max_tokens: None sets no limit.  Raises ValueError for dollars without prices, protocol.Stop where the
  file is none of its own."""

  def __init__(
    self, path: pathlib.Path, *, max_dollars: float | None, max_tokens: int | None, prices: Prices
  ):
    if max_dollars is not None and prices.dollars(Usage(0, 0)) is None:
      raise ValueError("a budget in dollars needs both prices: labels.dollars_per_million_{input,output}_tokens")
    self._max_dollars, self._max_tokens, self._prices = max_dollars, max_tokens, prices
    self._under_way, self._process = 0, machine.process(os.getpid())
    self._run = secrets.token_hex(8)
    self._settled = asyncio.Condition()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      self._open(path)
    except sqlite3.DatabaseError as e:
      raise protocol.Stop(
        f"{path}: no usable account of what was spent ({e}); where it is broken, move it away to begin anew, which "
        "counts from zero"
      ) from e

  def _open(self, path: pathlib.Path) -> None:
    self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    # Reservations need to survive the process, not the machine; answers are another connection's business.
    cache.patiently(self._db, "PRAGMA journal_mode = WAL")
    self._db.execute("PRAGMA synchronous = NORMAL")
    for table in (
      "reserved (id INTEGER PRIMARY KEY, tokens INTEGER, dollars REAL)",
      # Whose call under way it is; none for a batch, which outlives its process.
      "owners (id INTEGER PRIMARY KEY, process TEXT)",
      # Batches whose reservation is over, whatever an older copy of the file says.
      "booked (id INTEGER PRIMARY KEY)",
      "costs (run TEXT PRIMARY KEY, tokens INTEGER, dollars REAL)",
    ):
      self._db.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    self._take_over_earlier_version()

  def _take_over_earlier_version(self) -> None:
    """One sum for all runs it had."""
    self._db.execute("BEGIN IMMEDIATE")
    if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'spent'").fetchone():
      self._db.execute("INSERT OR IGNORE INTO costs SELECT 'earlier', tokens, dollars FROM spent")
      self._db.execute("DROP TABLE spent")
    self._db.execute("COMMIT")

  def close(self) -> None:
    self._db.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exc: object) -> None:
    self.close()

  @contextlib.asynccontextmanager
  async def call(self, bound: Usage) -> AsyncIterator[Call]:
    """Reserves the bound while the block runs, and books `call.usage` when it ends.

    Waits where only calls under way stand in the way, here or in other processes; raises Exhausted where the budget
    has no room even without them.
    """
    row = await self.reserve(bound, self._process)
    one = Call(bound)
    self._under_way += 1
    try:
      yield one
    finally:
      self.book(row, one.usage)
      self._under_way -= 1
      async with self._settled:
        self._settled.notify_all()

  def spent(self) -> tuple[int, float]:
    """Tokens and dollars, reservations included."""
    tokens, dollars = self._db.execute(
      "SELECT TOTAL(tokens), TOTAL(dollars) FROM (SELECT tokens, dollars FROM costs UNION ALL "
      "SELECT tokens, dollars FROM reserved)"
    ).fetchone()
    return int(tokens), float(dollars)

  def has_room(self, bound: Usage) -> bool:
    """Whether that much could be reserved now."""
    tokens, dollars = self.spent()
    if self._max_tokens is not None and tokens + bound.tokens > self._max_tokens:
      return False
    return self._max_dollars is None or dollars + self._cost(bound) <= self._max_dollars + _ROUNDING

  def _cost(self, usage: Usage) -> float:
    return self._prices.dollars(usage) or 0.0

  async def reserve(self, bound: Usage, owner: str | None = None) -> int:
    """A reservation that lasts, in this run and later ones, until `book` is called with it; raises as `call`.

    owner: the process that will book it.
    """
    async with self._settled:
      while (row := self._try_to_reserve(bound, owner)) is None:
        if not self._under_way and self._others_at_work():
          await asyncio.sleep(_LOOK_SECONDS)
          continue
        if not self._under_way:
          tokens, dollars = self.spent()
          raise Exhausted(
            f"the budget is used up: {tokens:,} tokens (${dollars:.4f}) are spent or reserved, and the next call "
            f"may take {bound.tokens:,}; answers so far are kept: raise labels.max_dollars or labels.max_tokens, "
            "or ask for fewer labels.lists, and run the same command again"
          )
        await self._settled.wait()
      return row

  def _others_at_work(self) -> bool:
    """Whether another process that runs has calls under way."""
    owners = {row[0] for row in self._db.execute("SELECT process FROM owners JOIN reserved USING (id)")}
    return any(machine.process(int(owner.split()[1])) == owner for owner in owners)

  def _try_to_reserve(self, bound: Usage, owner: str | None) -> int | None:
    """One transaction, so that two processes never reserve the same room."""
    self._db.execute("BEGIN IMMEDIATE")
    try:
      if not self.has_room(bound):
        return None
      row = secrets.randbits(62)
      self._db.execute("INSERT INTO reserved VALUES (?, ?, ?)", (row, bound.tokens, self._cost(bound)))
      if owner is not None:
        self._db.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (row, owner))
      return row
    finally:
      self._db.execute("COMMIT")

  def book(self, row: int | None, usage: Usage) -> None:
    """Puts the real cost in place of a reservation, once; None: nothing was reserved."""
    self._db.execute("BEGIN IMMEDIATE")
    owned = self._db.execute("DELETE FROM owners WHERE id = ?", (row,)).rowcount
    if row is None or self._db.execute("DELETE FROM reserved WHERE id = ?", (row,)).rowcount:
      self._db.execute(
        "INSERT INTO costs VALUES (?, ?, ?) ON CONFLICT DO UPDATE "
        "SET tokens = tokens + excluded.tokens, dollars = dollars + excluded.dollars",
        (self._run, usage.tokens, self._cost(usage)),
      )
      if not owned and row is not None:
        self._db.execute("INSERT INTO booked VALUES (?)", (row,))
    self._db.execute("COMMIT")
