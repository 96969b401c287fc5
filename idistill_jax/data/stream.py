"""Passages that need not fit into memory: read anew for every pass over them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from idistill_jax import records
from idistill_jax.data import characters


class Stream:
  """What `read` gives, as often as it is iterated over."""

  def __init__(self, read: Callable[[], Iterable[records.Passage]]):
    self._read = read

  def __iter__(self) -> Iterator[records.Passage]:
    return iter(self._read())


Passages = Sequence[records.Passage] | Stream


def only(passages: Passages, keep: Callable[[records.Passage], bool]) -> Passages:
  """Those that are to be kept: of a stream a stream."""
  if isinstance(passages, Stream):
    return Stream(lambda: filter(keep, passages))
  return tuple(filter(keep, passages))


def each(passages: Passages, change: Callable[[records.Passage], records.Passage]) -> Passages:
  """What `change` makes of each: of a stream a stream."""
  if isinstance(passages, Stream):
    return Stream(lambda: map(change, passages))
  return tuple(map(change, passages))


def usable(passages: Passages) -> Passages:
  """Those with a text, their texts whole."""
  return each(only(passages, lambda passage: bool(passage.full_text.strip())), characters.whole)
