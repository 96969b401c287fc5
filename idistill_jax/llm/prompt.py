"""A query and its passages, or a passage alone -> the text that an LLM is asked with.

Templates are files named by version in `templates/`.  Changing the words of one makes a new version: answers
are cached by the rendered text, and recorded ones say which template they answered.
"""

import functools
import hashlib
import importlib.resources
import re
import string
from collections.abc import Sequence

from idistill_jax.llm import quoting

LISTWISE = "listwise_v1"
# Ways in which people search; each is a template of its own.
QUERY_STYLES = ("query_question_v1", "query_keywords_v1", "query_problem_v1")

# About what a byte-pair vocabulary makes one token of: a short word, a piece of a long one, a few digits, a sign.
_PIECE = re.compile(r"[A-Za-z]{1,6}|\d{1,3}|[^\sA-Za-z\d]")
# In pieces.  What goes on for longer without a space is an address, or a language that has none.
_LONGEST_WORD = 20


def render(query: str, passages: Sequence[str], passage_tokens: int) -> str:
  """The prompt for one list, passages numbered from [1] in the order given.

  Each passage is cut at about `passage_tokens` tokens and stands on one line.  Query and passages come out of
  `quoting.quote`, so no passage can close its fence, start a line, or look like a numbered label.  Raises ValueError
  where there is nothing to rank.
  """
  if not passages:
    raise ValueError(f"no passages to rank for the query {query!r}")
  numbered = (f"[{number}] {shown(text, passage_tokens)}" for number, text in enumerate(passages, start=1))
  return string.Template(template(LISTWISE)).substitute(
    query=quoting.quote(query), passages="\n".join(numbered), count=len(passages)
  )


def render_query_writing(style: str, passage: str, passage_tokens: int) -> str:
  """The prompt that asks for a query which the passage answers; `style` is one of QUERY_STYLES."""
  return string.Template(template(style)).substitute(passage=shown(passage, passage_tokens))


# A passage is in many lists, and shown in several orders.
@functools.lru_cache(maxsize=16_384)
def shown(passage: str, most: int) -> str:
  """A passage as a prompt holds it: quoted, and cut at about `most` tokens."""
  return cut(quoting.quote(passage), most)


def tokens(text: str) -> int:
  """About how many tokens a text has; each model has a vocabulary of its own, and black boxes show none."""
  return len(_PIECE.findall(text))


def cut(text: str, most: int) -> str:
  """The beginning of a text, about `most` tokens long, and whole words of it where spaces tell them apart."""
  end = _beginning(most).match(text).end()  # type: ignore[union-attr]
  if not text[end:].strip():
    return text
  kept = text[:end]
  within_a_word = not (kept[-1:].isspace() or text[end].isspace())
  whole = kept.rpartition(" ")[0] if within_a_word else kept
  return (whole if whole and tokens(kept[len(whole):]) <= _LONGEST_WORD else kept).rstrip()


@functools.cache
def _beginning(pieces: int) -> re.Pattern[str]:
  """At most so many pieces from the beginning of a text."""
  return re.compile(rf"(?:\s*(?:{_PIECE.pattern})){{0,{pieces}}}")


def fingerprint(name: str = LISTWISE) -> str:
  """Version and content hash of a template."""
  return f"{name}:{hashlib.sha256(template(name).encode()).hexdigest()[:16]}"


@functools.cache
def template(name: str) -> str:
  return (importlib.resources.files(__package__) / "templates" / f"{name}.txt").read_text(encoding="utf-8")
