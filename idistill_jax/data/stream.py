"""Passages that need not fit into memory: read anew for every pass over them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from idistill_jax import records


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


def has_text(passage: records.Passage) -> bool:
  return bool(passage.full_text.strip())
