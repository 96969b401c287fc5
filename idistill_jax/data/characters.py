"""Texts that were cut within a character: JSON can write half of a surrogate pair, UTF-8 cannot.

Half an emoji at the end of a tweet costs no more than that: U+FFFD takes its place, and who reads texts counts them.
"""

import dataclasses
import re
from typing import Any, TypeVar

Record = TypeVar("Record")
_HALF = re.compile("[\ud800-\udfff]")


def is_whole(text: str) -> bool:
  """Whether UTF-8 can hold it."""
  return text.isascii() or _HALF.search(text) is None


def repaired(text: str) -> str:
  return _HALF.sub("\ufffd", text)


def whole(record: Record) -> Record:
  """The record with all its texts repaired; the same one where there is nothing to do."""
  of: Any = record
  texts = ((field.name, getattr(record, field.name)) for field in dataclasses.fields(of))
  broken = {name: repaired(text) for name, text in texts if isinstance(text, str) and not is_whole(text)}
  return dataclasses.replace(of, **broken) if broken else record
