"""A query and its passages -> the text that a listwise LLM is asked with.

Templates are files named by version in `templates/`.  Changing the words of one makes a new version: answers
are cached by the rendered text, and recorded ones say which template they answered.
"""

import hashlib
import importlib.resources
import re
import string
import unicodedata
from collections.abc import Sequence

LISTWISE = "listwise_v1"

_OPENING, _CLOSING = r"[\[［【〔⟦]", r"[\]］】〕⟧]"
# A number in brackets, or several of them, as an answer would write it.
_LABEL = re.compile(rf"{_OPENING}(\s*\d[\d\s,;:>.–—-]*){_CLOSING}")
_FENCE = re.compile(r"<\s*(/?)\s*(query|passages)\s*>", re.IGNORECASE)


def render(query: str, passages: Sequence[str], passage_words: int) -> str:
  """The prompt for one list, passages numbered from [1] in the order given.

  Each passage is cut at `passage_words` white-space separated words and stands on one line.  Query and
  passages come out of `quote`, so no passage can close its fence, start a line, or look like a numbered
  label.  Raises ValueError where there is nothing to rank.
  """
  if not passages:
    raise ValueError(f"no passages to rank for the query {query!r}")
  numbered = (
    f"[{number}] {cut(quote(text), passage_words)}" for number, text in enumerate(passages, start=1)
  )
  return string.Template(_template()).substitute(
    query=quote(query), passages="\n".join(numbered), count=len(passages)
  )


def cut(text: str, words: int) -> str:
  """The first `words` white-space separated words."""
  return " ".join(text.split()[:words])


def quote(text: str) -> str:
  """One line without invisible characters, in which neither the fences nor bracketed numbers occur.

  `[3]` becomes `(3)` and `</passages>` becomes `(/passages)`: the words stay, the form goes.
  """
  visible = "".join(map(_visible, text))
  line = " ".join(visible.split())
  return _FENCE.sub(r"(\1\2)", _LABEL.sub(r"(\1)", line))


def _visible(char: str) -> str:
  category = unicodedata.category(char)
  if category == "Cc":
    return " "
  # Format characters hide or reorder text; a lone surrogate cannot be sent at all.
  return "" if category in ("Cf", "Cs") else char


def fingerprint() -> str:
  """Version and content hash of the template in use."""
  return f"{LISTWISE}:{hashlib.sha256(_template().encode()).hexdigest()[:16]}"


def _template() -> str:
  return (importlib.resources.files(__package__) / "templates" / f"{LISTWISE}.txt").read_text(
    encoding="utf-8"
  )
