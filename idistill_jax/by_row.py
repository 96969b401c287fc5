"""Sequences whose items are made when they are asked for."""

import abc
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

S = TypeVar("S")
T = TypeVar("T")


class ByRow(Sequence[T]):
  """Of a row its item, of a slice a list of those of its rows."""

  @abc.abstractmethod
  def at(self, row: int) -> T:
    """The item of a row from 0 to the last."""

  @overload
  def __getitem__(self, rows: int) -> T: ...

  @overload
  def __getitem__(self, rows: slice) -> list[T]: ...

  def __getitem__(self, rows: int | slice) -> T | list[T]:
    asked = range(len(self))[rows]
    return [self.at(row) for row in asked] if isinstance(asked, range) else self.at(asked)


class Each(ByRow[T]):
  """What comes of each item of another sequence."""

  def __init__(self, of: Callable[[S], T], items: Sequence[S]):
    self._of, self._items = of, items

  def __len__(self) -> int:
    return len(self._items)

  def at(self, row: int) -> T:
    return self._of(self._items[row])
