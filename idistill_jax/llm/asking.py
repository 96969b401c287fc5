"""Requests -> answers: through the cache, within budget, pace and deadline, with tries for faults that may pass."""

import asyncio
import dataclasses
import re
from collections.abc import Container
from typing import Any

from absl import logging

from idistill_jax import processes
from idistill_jax.llm import budget as budget_lib
from idistill_jax.llm import cache as cache_lib
from idistill_jax.llm import group_commit, prompt, protocol
from idistill_jax.llm import pace as pace_lib

# So many requests in a row without an answer mean that the endpoint is down, not that a request is odd.
GIVE_UP_AFTER = 10
# So many rejected, where none was ever answered, mean that a parameter is wrong.
REJECTED_AT_FIRST = 3
# What a provider puts after the name that was asked for: a date, a revision, a tag.
_SNAPSHOT = re.compile(r"(-preview)?(-\d[\d-]*|[:@].*)?")
# What a server wraps around a prompt: roles, turns, beginning and end.
_CHAT_TOKENS = 64
# Words of the longest template, and then some.
PROMPT_TOKENS = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """An answer, and whether this run paid for it: it lay neither in a recording nor, before this run, in the cache."""

  answer: protocol.Answer
  paid: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
  """concurrency: calls at once.  attempts: tries of one request.

  deadline_seconds: of one try, from its start to the last byte.

  first_wait: seconds before the second try, about; later waits grow.  longest_wait: a server that asks to wait longer
  is not waited for.
  """

  concurrency: int
  attempts: int
  deadline_seconds: float
  max_output_tokens: int
  first_wait: float = 1.0
  longest_wait: float = 120.0


def bound(prompt: str, max_output_tokens: int) -> budget_lib.Usage:
  """The most tokens that a call can take: no tokenizer makes more tokens than there are bytes."""
  return budget_lib.Usage(len(prompt.encode()) + _CHAT_TOKENS, max_output_tokens)


def is_model(asked: str, served: str) -> bool:
  """Whether who answered is who was asked, or a snapshot of it."""
  short, found = (name.lower().rpartition("/")[2] for name in (asked, served))
  short = short.removesuffix("-latest")
  return found.startswith(short) and _SNAPSHOT.fullmatch(found, len(short)) is not None


class Asker:
  """Asks one provider for a whole labelling.

  The first call goes alone: were the key wrong, all that went beside it would fail as well.  Of equal requests that
  are under way at once one is asked.  `stopped` is set by the first error that no request can escape; from then on
  every request raises it, while those under way end as they may, so that what they cost is not lost.
  """

  def __init__(
    self, provider: protocol.Provider, cache: cache_lib.AnswerCache, terms: Terms, *,
    budget: budget_lib.Budget | None = None, pace: pace_lib.Pace | None = None, delivered: Container[str] = (),
  ):
    """delivered: keys of what batches of this run brought into the cache."""
    self.provider = provider
    self.stopped: protocol.Stop | None = None
    self._cache, self._terms, self._budget, self._pace = cache, terms, budget, pace
    self._group_commit, self._delivered = group_commit.GroupCommit(cache), delivered
    self._under_way: dict[str, asyncio.Task[protocol.Answer]] = {}
    self._first, self._reached, self._answered = asyncio.Lock(), False, False
    # Of the server alone: prompts are made, and answers stored, beside calls and not in their place.
    self._lines = asyncio.Semaphore(terms.concurrency)
    self._unanswered = 0
    self._others: set[str] = set()
    self._tenacity = protocol.sdk("tenacity", "llm") if provider.remote else None

  async def ask(self, request: protocol.Request) -> Asked:
    """The answer, which is in the cache when this returns; raises protocol.NoAnswer or protocol.Stop."""
    key = cache_lib.key(self.provider, request)
    if (answer := self._cache.get(key)) is not None:
      self._warn_of_another_model(answer)
      return Asked(answer, paid=key in self._delivered)
    if not self.provider.remote:
      # Recordings cost nothing.
      return Asked(await self._anew(key, request), paid=False)
    task, first = self._under_way.get(key), key not in self._under_way
    if task is None:
      task = self._under_way[key] = asyncio.create_task(self._anew(key, request))
      task.add_done_callback(lambda _: self._under_way.pop(key))
    return Asked(await asyncio.shield(task), paid=first)

  async def _anew(self, key: str, request: protocol.Request) -> protocol.Answer:
    if self.stopped is not None:
      raise self.stopped
    try:
      answer = await (self._patiently(request) if self._tenacity else self.provider.ask(request))
    except protocol.Unanswered as e:
      if self.provider.remote:
        self._count(e)
      raise
    except protocol.Stop as e:
      self.stopped = self.stopped or e
      raise
    self._unanswered, self._answered = 0, True
    self._warn_of_another_model(answer)
    return await self._group_commit.put(key, self.provider, request, answer)

  def _count(self, e: protocol.Unanswered) -> None:
    """Raises Stop where so many in a row are no accident."""
    self._unanswered += 1
    unheard = isinstance(e, protocol.Rejected) and not self._answered and not self._cache.holds_any_of(self.provider)
    if self._unanswered >= (REJECTED_AT_FIRST if unheard else GIVE_UP_AFTER):
      self.stopped = protocol.Stop(
        f"{self._unanswered} requests in a row got no answer, so no other is asked; {e}; "
        "answers so far are kept: run the same command again to continue"
      )
      raise self.stopped from None

  def _warn_of_another_model(self, answer: protocol.Answer) -> None:
    if answer.model and not is_model(self.provider.model, answer.model) and answer.model not in self._others:
      self._others.add(answer.model)
      logging.warning("%s was asked and %s answers, in the former's name", self.provider.model, answer.model)

  async def _patiently(self, request: protocol.Request) -> protocol.Answer:
    try:
      return await self._once(request)
    except protocol.Transient as e:
      return await self._again(request, e)

  async def _again(self, request: protocol.Request, failed: protocol.Transient) -> protocol.Answer:
    """Tries again after transient faults, with jittered exponential waits, never shorter than the server asks for.

    failed: how the first try ended.  It is made outside, as tenacity's machinery takes a tenth of a call's time and
    nearly all succeed at once.
    """
    tenacity: Any = self._tenacity
    terms, past = self._terms, [failed]
    jitter = tenacity.wait_random_exponential(multiplier=terms.first_wait, max=terms.longest_wait / 2)

    def wait(state: Any) -> float:
      asked = state.outcome.exception().retry_after
      # Those that were told to wait equally long must not come back all at once.
      return jitter(state) if asked is None else asked + jitter(state) / 4

    def give_up(state: Any) -> bool:
      asked = state.outcome.exception().retry_after
      return state.attempt_number >= terms.attempts or (asked is not None and asked > terms.longest_wait)

    async def attempt() -> protocol.Answer:
      if past:
        raise past.pop()
      return await self._once(request)

    tries = tenacity.AsyncRetrying(
      retry=tenacity.retry_if_exception_type(protocol.Transient), wait=wait, stop=give_up, reraise=True
    )
    try:
      return await tries(attempt)
    except protocol.Transient as e:
      used = tries.statistics["attempt_number"]
      raise protocol.Unanswered(f"no answer after {used} {'try' if used == 1 else 'tries'}, the last: {e}") from None

  async def _once(self, request: protocol.Request) -> protocol.Answer:
    if not self._reached:
      async with self._first:
        if not self._reached:
          try:
            answer = await self._within_budget(request)
          except protocol.Transient:
            self._reached = True
            raise
          self._reached = True
          return answer
    return await self._within_budget(request)

  async def _within_budget(self, request: protocol.Request) -> protocol.Answer:
    if self.stopped is not None:
      raise self.stopped
    most = bound(request.prompt, self._terms.max_output_tokens)
    if self._budget is None:
      return await self._in_time(request)
    async with self._budget.call(most) as call:
      try:
        answer = await self._in_time(request)
      except (protocol.Transient, protocol.Rejected, protocol.Stop) as e:
        # A server that refuses bills nothing; of an answer that was lost on the way nobody knows.
        if not isinstance(e, protocol.Transient) or e.refused:
          call.usage = budget_lib.Usage(0, 0)
        raise
      call.usage = budget_lib.Usage.of(answer) or most
      if call.usage.input_tokens > most.input_tokens or call.usage.output_tokens > most.output_tokens:
        self.stopped = self.stopped or protocol.Stop(
          f"a call took {call.usage.input_tokens:,}+{call.usage.output_tokens:,} tokens, and its bound was "
          f"{most.input_tokens:,}+{most.output_tokens:,}: who does not keep to labels.max_output_tokens cannot be held "
          "to a budget; answers so far are kept: raise it to what answers take, or set neither labels.max_dollars nor "
          "labels.max_tokens"
        )
      return answer

  async def _in_time(self, request: protocol.Request) -> protocol.Answer:
    try:
      async with self._lines:
        # A turn that is waited for without a line would be kept, and used in a burst when many lines come free.
        if self._pace is not None:
          await self._pace.turn(prompt.tokens(request.prompt) + self._terms.max_output_tokens)
        if self.stopped is not None:
          raise self.stopped
        processes.moved()
        # The SDKs' own timeouts start anew with every byte that drips in.
        async with asyncio.timeout(self._terms.deadline_seconds):
          return await self.provider.ask(request)
    except TimeoutError:
      raise protocol.Transient(f"no whole answer within {self._terms.deadline_seconds:g} seconds") from None
