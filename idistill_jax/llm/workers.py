"""Pieces of work that ask -> their results, in order: several at a time, with what is known so far on display."""

import asyncio
import collections
import dataclasses
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from idistill_jax import progress
from idistill_jax.llm import budget, protocol

# Characters of an answer that was no use, where it is written down.
LONGEST_EXCERPT = 500
In = TypeVar("In")
Out = TypeVar("Out")


def _sum(one: budget.Usage | None, other: budget.Usage | None) -> budget.Usage | None:
  """Of what is known."""
  return one + other if one is not None and other is not None else one if other is None else other


@dataclasses.dataclass(slots=True)
class Tally:
  """Running totals.  spent: by this run; saved: by the cache; None until a provider tells some."""

  statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  answers: int = 0
  paid: int = 0
  spent: budget.Usage | None = None
  saved: budget.Usage | None = None

  @property
  def usage(self) -> budget.Usage | None:
    """Of all answers."""
    return _sum(self.spent, self.saved)

  def add(self, status: str, answers: Iterable[tuple[protocol.Answer, bool]]) -> None:
    """One finished piece of work: see Summary."""
    self.statuses[status] += 1
    for answer, paid in answers:
      self.answers += 1
      self.paid += paid
      usage = budget.Usage.of(answer)
      if paid:
        self.spent = _sum(self.spent, usage)
      else:
        self.saved = _sum(self.saved, usage)

  def bill(self, prices: budget.Prices) -> dict[str, Any]:
    """For a file: of all answers, since what they say is a function of them; None for what no provider told."""
    return {
      "answers": self.answers,
      "input_tokens": self.usage and self.usage.input_tokens,
      "output_tokens": self.usage and self.usage.output_tokens,
      "dollars": prices.dollars(self.usage),
    }

  def facts(self, prices: budget.Prices, seconds: float) -> dict[str, float | str]:
    """For a progress display."""
    shown: dict[str, float | str] = {"answers/s": self.answers / max(seconds, 1e-9)}
    shown |= {status: count for status, count in sorted(self.statuses.items())}
    if self.spent is not None:
      shown["tokens"] = f"{self.spent.input_tokens:,}+{self.spent.output_tokens:,} tokens"
    if (dollars := prices.dollars(self.spent)) is not None:
      shown["dollars"] = f"${dollars:.4f}"
    if (saved := prices.dollars(self.saved)) is not None:
      shown["saved"] = f"${saved:.4f} saved by the cache"
    return shown


# What became of one piece of work: a status, and its answers, each with whether it was paid for just now.
Summary = tuple[str, list[tuple[protocol.Answer, bool]]]


async def run(
  work: Callable[[In], Awaitable[Out]], items: Sequence[In], summary: Callable[[Out], Summary], *,
  name: str, at_once: int, prices: budget.Prices,
) -> list[Out | None]:
  """`work` on every item, at most `at_once` at a time, results in the order of the items.

  None for an item that waits for a batch.  The first error, a protocol.Stop or one that nobody expected, ends it once
  the calls under way have come back: they are paid for.
  """
  results: list[Out | None] = [None] * len(items)
  coming = iter(enumerate(items))
  stops: list[Exception] = []
  tally, started, done = Tally(), time.monotonic(), 0
  with progress.bar(name, total=len(items)) as bar:

    async def worker() -> None:
      nonlocal done
      for place, item in coming:
        try:
          results[place] = result = await work(item)
        except protocol.Pending:
          continue
        except Exception as e:
          stops.append(e)
        if stops:
          return
        done += 1
        tally.add(*summary(result))
        bar.update(done, **tally.facts(prices, time.monotonic() - started))

    await asyncio.gather(*(worker() for _ in range(min(at_once, len(items)))))
  if stops:
    raise stops[0]
  return results


def told(drops: Mapping[str, Sequence[str]]) -> str:
  """What was left out, by reason, in a few words."""
  return "; ".join(f"{len(what)}: {reason}" for reason, what in drops.items()) or "none was found"
