"""One call -> rates by the clock, and by the CPU time of all threads, which a busy machine changes less."""

import time
from collections.abc import Callable


def rates(call: Callable[[], object], **amounts: float) -> dict[str, float]:
  """`<what>_per_second` of everything that one call does, and its tokens in a second of CPU time."""
  started, busy = time.perf_counter(), time.process_time()
  call()
  seconds, busy = time.perf_counter() - started, time.process_time() - busy
  return {f"{what}_per_second": amount / seconds for what, amount in amounts.items()} | {
    "tokens_per_cpu_second": amounts["tokens"] / busy}
