"""Requests -> answers: through the cache, within budget, pace and deadline, with tries for faults that may pass."""

import asyncio
import dataclasses
from typing import Any

from idistill_jax import processes
from idistill_jax.llm import budget as budget_lib
from idistill_jax.llm import cache as cache_lib
from idistill_jax.llm import pace as pace_lib
from idistill_jax.llm import prompt, protocol

# So many requests in a row without an answer mean that the endpoint is down, not that a request is odd.
GIVE_UP_AFTER = 10
# What a server wraps around a prompt: roles, turns, beginning and end.
_CHAT_TOKENS = 64
# Words of the longest template, and then some.
PROMPT_TOKENS = 300


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
  """An answer, and whether it was paid for just now or lay in the cache."""

  answer: protocol.Answer
  paid: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
  """attempts: tries of one request.  deadline_seconds: of one try, from its start to the last byte.

  first_wait: seconds before the second try, about; later waits grow.  longest_wait: a server that asks to wait longer
  is not waited for.
  """

  attempts: int
  deadline_seconds: float
  max_output_tokens: int
  first_wait: float = 1.0
  longest_wait: float = 120.0


def bound(prompt: str, max_output_tokens: int) -> budget_lib.Usage:
  """The most tokens that a call can take: no tokenizer makes more tokens than there are bytes."""
  return budget_lib.Usage(len(prompt.encode()) + _CHAT_TOKENS, max_output_tokens)


class Asker:
  """Asks one provider for a whole labelling.

  `stopped` is set by the first error that no request can escape; from then on every request raises it, while those
  under way end as they may, so that what they cost is not lost.
  """

  def __init__(
    self, provider: protocol.Provider, cache: cache_lib.AnswerCache, terms: Terms, *,
    budget: budget_lib.Budget | None = None, pace: pace_lib.Pace | None = None,
  ):
    self.provider = provider
    self.stopped: protocol.Stop | None = None
    self._cache, self._terms, self._budget, self._pace = cache, terms, budget, pace
    self._group_commit = cache_lib.GroupCommit(cache)
    self._unanswered = 0
    self._tenacity = protocol.sdk("tenacity", "llm") if provider.remote else None

  async def ask(self, request: protocol.Request) -> Asked:
    """The answer, which is in the cache when this returns; raises protocol.NoAnswer or protocol.Stop."""
    key = cache_lib.key(self.provider, request.prompt)
    if (answer := self._cache.get(key)) is not None:
      return Asked(answer, paid=False)
    if self.stopped is not None:
      raise self.stopped
    try:
      answer = await (self._patiently(request) if self._tenacity else self.provider.ask(request))
    except protocol.Unanswered as e:
      self._unanswered += 1
      if not self.provider.remote or self._unanswered < GIVE_UP_AFTER:
        raise
      self.stopped = protocol.Stop(
        f"{self._unanswered} requests in a row got no answer, so the endpoint seems to be down; {e}; "
        "answers so far are kept: run the same command again to continue"
      )
      raise self.stopped from None
    except protocol.Stop as e:
      self.stopped = self.stopped or e
      raise
    self._unanswered = 0
    return Asked(await self._group_commit.put(key, self.provider, request, answer), paid=True)

  async def _patiently(self, request: protocol.Request) -> protocol.Answer:
    """Tries again after transient faults, with jittered exponential waits, never shorter than the server asks for."""
    tenacity: Any = self._tenacity
    terms = self._terms
    jitter = tenacity.wait_random_exponential(multiplier=terms.first_wait, max=terms.longest_wait / 2)

    def wait(state: Any) -> float:
      asked = state.outcome.exception().retry_after
      # Those that were told to wait equally long must not come back all at once.
      return jitter(state) if asked is None else asked + jitter(state) / 4

    def give_up(state: Any) -> bool:
      asked = state.outcome.exception().retry_after
      return state.attempt_number >= terms.attempts or (asked is not None and asked > terms.longest_wait)

    tries = tenacity.AsyncRetrying(
      retry=tenacity.retry_if_exception_type(protocol.Transient), wait=wait, stop=give_up, reraise=True
    )
    try:
      return await tries(self._once, request)
    except protocol.Transient as e:
      used = tries.statistics["attempt_number"]
      raise protocol.Unanswered(f"no answer after {used} {'try' if used == 1 else 'tries'}, the last: {e}") from None

  async def _once(self, request: protocol.Request) -> protocol.Answer:
    if self.stopped is not None:
      raise self.stopped
    most = bound(request.prompt, self._terms.max_output_tokens)
    if self._budget is None:
      return await self._in_time(request)
    async with self._budget.call(most) as call:
      try:
        answer = await self._in_time(request)
      except (protocol.Transient, protocol.Stop) as e:
        # A server that refuses bills nothing; of an answer that was lost on the way nobody knows.
        if isinstance(e, protocol.Stop) or e.refused:
          call.usage = budget_lib.Usage(0, 0)
        raise
      call.usage = budget_lib.Usage.of(answer) or most
      return answer

  async def _in_time(self, request: protocol.Request) -> protocol.Answer:
    if self._pace is not None:
      await self._pace.turn(prompt.tokens(request.prompt) + self._terms.max_output_tokens)
    processes.moved()
    try:
      # The SDKs' own timeouts start anew with every byte that drips in.
      async with asyncio.timeout(self._terms.deadline_seconds):
        return await self.provider.ask(request)
    except TimeoutError:
      raise protocol.Transient(f"no whole answer within {self._terms.deadline_seconds:g} seconds") from None
