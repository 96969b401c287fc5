"""Requests and tokens a minute: calls wait for their turn, evenly spread, so that no server sees a burst."""

from idistill_jax.llm import protocol


class Pace:
  """requests_per_minute, tokens_per_minute: None sets no limit.

  largest: so many tokens may go at once; a call of more, as a reader's may be, waits for the rest of its own.
  """

  def __init__(self, *, requests_per_minute: float | None, tokens_per_minute: float | None, largest: int):
    self._requests = self._tokens = None
    self._largest = largest
    aiolimiter = protocol.sdk("aiolimiter", "llm")
    if requests_per_minute is not None:
      # A bucket of one: a larger one would let a minute's requests go at once, and the next minute's soon after.
      self._requests = aiolimiter.AsyncLimiter(1, 60 / requests_per_minute)
    if tokens_per_minute is not None:
      self._tokens = aiolimiter.AsyncLimiter(largest, 60 * largest / tokens_per_minute)

  async def turn(self, tokens: int) -> None:
    """Returns when a call of so many tokens may start."""
    if self._requests is not None:
      await self._requests.acquire()
    while self._tokens is not None and tokens > 0:
      await self._tokens.acquire(min(tokens, self._largest))
      tokens -= self._largest
