"""Requests -> parsed answers, in the order of the requests: through the cache, several at a time."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures

from absl import logging
from rich import console as rich_console
from rich import progress as rich_progress

from idistill_jax.llm import cache as cache_lib
from idistill_jax.llm import parse, protocol

# So many requests in a row without an answer mean that the endpoint is down, not that a request is odd.
GIVE_UP_AFTER = 10
# Requests under way or waiting for their turn in the output, for each one that runs at once.
_AHEAD = 4
_LOG_EVERY_SECONDS = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
  """A request with its answer.  parsed: the order, or that it is refused.  paid: not from the cache."""

  request: protocol.Request
  answer: protocol.Answer
  parsed: parse.Parsed
  paid: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Unlabelled:
  """A request that nobody answered; `reason` is a name to count by, `message` tells more."""

  request: protocol.Request
  reason: str
  message: str


Outcome = Labelled | Unlabelled
# `show(done, text)` of a progress display.
Show = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Prices:
  """Dollars for a million tokens; None where not known."""

  input_tokens: float | None = None
  output_tokens: float | None = None


@dataclasses.dataclass(slots=True)
class Tally:
  """Running totals.  Tokens stay None until a provider tells some."""

  statuses: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  paid: int = 0
  input_tokens: int | None = None
  output_tokens: int | None = None

  def add(self, outcome: Outcome) -> None:
    if isinstance(outcome, Unlabelled):
      self.statuses["unanswered"] += 1
      return
    self.statuses[outcome.parsed.status] += 1
    self.paid += outcome.paid
    self.input_tokens = _plus(self.input_tokens, outcome.answer.input_tokens)
    self.output_tokens = _plus(self.output_tokens, outcome.answer.output_tokens)

  def dollars(self, prices: Prices) -> float | None:
    """Cost of the tokens counted so far, or None where a price or a count is not known."""
    if None in (prices.input_tokens, prices.output_tokens, self.input_tokens, self.output_tokens):
      return None
    return (self.input_tokens * prices.input_tokens + self.output_tokens * prices.output_tokens) / 1e6  # type: ignore[operator]

  def text(self, prices: Prices) -> str:
    """One line for a progress display."""
    facts = [f"{status} {count}" for status, count in sorted(self.statuses.items())]
    if self.input_tokens is not None and self.output_tokens is not None:
      facts.append(f"{self.input_tokens:,}+{self.output_tokens:,} tokens")
    if (dollars := self.dollars(prices)) is not None:
      facts.append(f"${dollars:.4f}")
    return " · ".join(facts)


def _plus(total: int | None, more: int | None) -> int | None:
  return total if more is None else (total or 0) + more


def label(
  provider: protocol.Provider,
  cache: cache_lib.AnswerCache,
  requests: Sequence[protocol.Request],
  *,
  concurrency: int,
  prices: Prices = Prices(),
) -> Iterator[Outcome]:
  """Outcomes in the order of the requests; every answer is in the cache before it is yielded.

  At most `concurrency` requests are under way.  Raises protocol.Stop as soon as it is known that no request
  can succeed, and where GIVE_UP_AFTER requests in a row stay unanswered; what was answered by then is in the
  cache.
  """
  tally, unanswered = Tally(), 0
  waiting: collections.deque[futures.Future[Outcome]] = collections.deque()
  pool = futures.ThreadPoolExecutor(concurrency, thread_name_prefix="label")
  with _progress(len(requests)) as show:
    try:
      coming = iter(requests)
      for done in range(1, len(requests) + 1):
        while len(waiting) < _AHEAD * concurrency and (request := next(coming, None)) is not None:
          waiting.append(pool.submit(_one, provider, cache, request))
        outcome = waiting.popleft().result()
        tally.add(outcome)
        show(done, tally.text(prices))
        unanswered = unanswered + 1 if _is_fault(outcome) else 0
        if unanswered >= GIVE_UP_AFTER and isinstance(outcome, Unlabelled):
          raise protocol.Stop(
            f"{unanswered} requests in a row got no answer, so the endpoint seems to be down; "
            f"{outcome.message}; "
            "answers so far are kept: run the same command again to continue"
          )
        yield outcome
    finally:
      pool.shutdown(cancel_futures=True)


_FAULT = "unanswered"


def _is_fault(outcome: Outcome) -> bool:
  return isinstance(outcome, Unlabelled) and outcome.reason == _FAULT


def _one(provider: protocol.Provider, cache: cache_lib.AnswerCache, request: protocol.Request) -> Outcome:
  key = cache_lib.key(provider, request.prompt)
  answer = cache.get(key)
  paid = answer is None
  if answer is None:
    try:
      answer = cache.put(key, provider, request, provider.ask(request))
    except protocol.NotRecorded as e:
      return Unlabelled(request, "not recorded", str(e))
    except protocol.Unanswered as e:
      return Unlabelled(request, _FAULT, str(e))
  return Labelled(request, answer, parse.parse(answer.text, len(request.passage_ids)), paid)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Show]:
  """Yields `show(done, text)`: a live bar, or a log line now and then where no terminal watches."""
  console = rich_console.Console(stderr=True)
  if not console.is_terminal:
    yield _log_lines(total)
    return
  columns = (
    rich_progress.TextColumn("{task.description:>16}"),
    rich_progress.BarColumn(),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn("{task.fields[text]}"),
  )
  with rich_progress.Progress(*columns, console=console) as live:
    task, started = live.add_task("labels", total=total, text=""), time.monotonic()

    def show(done: int, text: str) -> None:
      rate = done / max(time.monotonic() - started, 1e-9)
      live.update(task, completed=done, text=f"{rate:,.1f} lists/s · {text}")

    yield show


def _log_lines(total: int) -> Show:
  started = said = time.monotonic()

  def show(done: int, text: str) -> None:
    nonlocal said
    now = time.monotonic()
    if now - said < _LOG_EVERY_SECONDS and done < total:
      return
    said = now
    rate = done / max(now - started, 1e-9)
    logging.info(
      "labels %d/%d  %.1f lists/s  %.0f s left  %s", done, total, rate, (total - done) / rate, text
    )

  return show
