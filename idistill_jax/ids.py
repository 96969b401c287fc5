"""Ids -> rows and back, without a string or an entry of a dict for each: of millions, these are gigabytes.

Bytes of UTF-8 sort as the characters do of which they are made, and numpy sorts and finds them where they lie, in
memory or in a file that is mapped.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from absl import logging

from idistill_jax import by_row

# Strings from elsewhere may hold halves of characters: they sort and are found, or are not, like others.
_HALVES = "surrogatepass"
# Bytes that are worth a word, where they are so many times what the ids themselves have.
_MUCH, _WASTEFUL = 10**9, 8


class Ids(by_row.ByRow[str]):
  """Ids in the order of a collection, found by row.

  utf8_P: bytes, as wide as the longest.  ascending_P: int64, the rows in ascending order of their ids.
  """

  def __init__(self, utf8_P: np.ndarray, ascending_P: np.ndarray):
    # Elements of a view are asked for in a tenth of the time that those of a memmap take.
    self.utf8_P, self.ascending_P = utf8_P.view(np.ndarray), ascending_P.view(np.ndarray)

  def __len__(self) -> int:
    return len(self.utf8_P)

  def at(self, row: int) -> str:
    found: bytes = self.utf8_P[row]
    return found.decode(errors=_HALVES)

  def __iter__(self) -> Iterator[str]:
    return map(self.at, range(len(self)))

  def __contains__(self, one: object) -> bool:
    return isinstance(one, str) and self.row(one) is not None

  def row(self, one: str) -> int | None:
    """Where an id is; None where it is not."""
    # As wide as the others, or numpy would widen all of them.
    asked = np.array(one.encode(errors=_HALVES), self.utf8_P.dtype)
    place = np.searchsorted(self.utf8_P, asked, sorter=self.ascending_P)
    row = int(self.ascending_P[place]) if place < len(self) else None
    return row if row is not None and self[row] == one else None


def of(ids: Iterable[str]) -> Ids:
  """The ids as they are found; raises ValueError as `packed` and `of_packed` do."""
  return ids if isinstance(ids, Ids) else of_packed(packed([one.encode(errors=_HALVES) for one in ids]))


def packed(ids: Sequence[bytes]) -> np.ndarray:
  """Bytes as wide as the longest; raises ValueError for an id that ends as what makes it as wide does.

  Why not end to end, with where each begins?  numpy finds ids among those of one width alone.  What a few long ones
  cost then is said.
  """
  for one in ids:
    if one.endswith(b"\0"):
      raise ValueError(f"the id {one.decode(errors=_HALVES)!r} ends with a NUL character, which no id may")
  longest = max(ids, key=len, default=b"")
  if (taken := len(longest) * len(ids)) > max(_MUCH, _WASTEFUL * sum(map(len, ids))):
    logging.warning("%d ids take %.1f GB, in memory and on the disk, as each is kept as wide as the longest, %.100r of "
                    "%d bytes: number the passages, or shorten that", len(ids), taken / 1e9,
                    longest.decode(errors=_HALVES), len(longest))
  return np.array(ids, bytes)


def of_packed(utf8_P: np.ndarray) -> Ids:
  """What is packed, sorted; raises ValueError where an id is repeated."""
  found = Ids(utf8_P, np.argsort(utf8_P, kind="stable"))
  in_order = utf8_P[found.ascending_P]
  same = np.flatnonzero(in_order[1:] == in_order[:-1])
  if len(same):
    first, again = found.ascending_P[same[0]:same[0] + 2].tolist()
    raise ValueError(f"the id {found[first]!r} occurs at rows {first} and {again}; ids must be unique")
  return found
