"""One call -> rates by the clock, and by the CPU time of all threads, which a busy machine changes less."""

import time
from collections.abc import Callable
from typing import Self


class Clock:
  """`with Clock() as clock:`; then `clock.seconds` are those of the wall, `clock.busy` those of this process's CPU."""

  def __enter__(self) -> Self:
    self._started, self._busy = time.perf_counter(), time.process_time()
    return self

  def __exit__(self, *exc: object) -> None:
    self.seconds, self.busy = time.perf_counter() - self._started, time.process_time() - self._busy


def rates(call: Callable[[], object], **amounts: float) -> dict[str, float]:
  """`<what>_per_second` of everything that one call does, and its tokens in a second of CPU time."""
  with Clock() as clock:
    call()
  return {f"{what}_per_second": amount / clock.seconds for what, amount in amounts.items()} | {
    "tokens_per_cpu_second": amounts["tokens"] / clock.busy}
