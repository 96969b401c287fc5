"""A list longer than one prompt holds -> the stretches of it that are asked about, from the end to the beginning."""

from collections.abc import Iterator


def spans(n: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
  """(start, stop) of each window over `n` places: the last places first, then `stride` places further up.

  A list no longer than a window is one span.  Every place is in some window, and the first window is as full as
  the others, whatever `n` is.  Neighbours share at least `window - stride` places, so that many passages can come
  up from the very end to the very top; the order behind them is only as good as the one they came in.

  Source: Sun et al. (2023), "Is ChatGPT Good at Search?  Investigating Large Language Models as Re-Ranking
  Agents".  Raises ValueError where the windows would leave places out.
  """
  if n < 1 or not 1 <= stride <= window:
    raise ValueError(f"no windows of {window} places and stride {stride} cover {n} places")
  stop = n
  while stop > window:
    yield stop - window, stop
    stop -= stride
  yield 0, min(window, n)
