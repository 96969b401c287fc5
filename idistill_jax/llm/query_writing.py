"""Passages -> queries that they answer, written by the LLM in several styles.

Sources: Bonifacio et al. (2022), "InPars"; Wang et al. (2022), "GPL".
"""

import dataclasses
import re
from collections.abc import Sequence

from absl import logging

from idistill_jax.llm import asking, parse, prompt, protocol, session, workers

# A query that has so many of the passage's words in a row was copied from it.
COPIED_WORDS = 6
_LONGEST_QUERY = 60
# What is said beside whatever was measured by such queries.
CAUTION = (
  "An LLM wrote these queries: what is won for them need not be won for what people ask, so measure that before this "
  "model takes another's place."
)
_LABEL = re.compile(r"^(?:(?:search )?(?:query|question|keywords|problem)\s*:)\s*", re.IGNORECASE)
# People who search say what they cannot do as well; who refuses speaks of what was asked for.
_REFUSAL = re.compile(
  r"\bi(?:['’]m| am) sorry\b[,.]|\bas an ai\b"
  r"|\bi (?:can(?:no|['’])t|am (?:unable|not able) to) (?:\w+ )?(?:write|provide|create|generate|help|assist|comply)\b",
  re.IGNORECASE,
)
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
  id: str
  text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
  """A query and the passage it was written for; `dropped`: why it is none, or None."""

  passage_id: str
  style: str
  text: str
  dropped: str | None
  answer: asking.Asked | None


def write(
  opened: session.Session, passages: Sequence[Passage], passage_tokens: int
) -> list[Written]:
  """A query in each style for each passage, in that order; raises protocol.Stop."""

  async def one(asker: asking.Asker, item: tuple[Passage, str]) -> Written:
    passage, style = item
    try:
      asked = await asker.ask(to_request(passage, style, passage_tokens))
    except protocol.NotRecorded:
      return Written(passage.id, style, "", "not recorded", None)
    except protocol.Unanswered as e:
      logging.log_first_n(logging.WARNING, "a query for %s: %s", 5, passage.id, e)
      return Written(passage.id, style, "", e.reason, None)
    query, dropped = read(asked.answer, passage.text)
    return Written(passage.id, style, query, dropped, asked)

  def summary(written: Written) -> workers.Summary:
    answers = [] if written.answer is None else [(written.answer.answer, written.answer.paid)]
    return ("written" if written.dropped is None else "dropped"), answers

  items = [(passage, style) for passage in passages for style in prompt.QUERY_STYLES]
  return opened.each("queries", items, one, summary)


def to_request(passage: Passage, style: str, passage_tokens: int) -> protocol.Request:
  """For one query in one of `prompt.QUERY_STYLES`."""
  return protocol.Request(style, (passage.id,), prompt.render_query_writing(style, passage.text, passage_tokens))


def read(answer: protocol.Answer, passage: str) -> tuple[str, str | None]:
  """(query, why it is none or None)."""
  text = parse.without_thoughts(answer.text)
  lines = [line.strip() for line in text.strip().strip("`").splitlines() if line.strip()]
  if not lines:
    return "", "empty"
  query = _LABEL.sub("", lines[0].strip("* ")).strip("* ").strip("\"'“”").strip()
  if _REFUSAL.search(text):
    return query, "refusal"
  if answer.finish_reason != "stop":
    return query, f"ended by: {answer.finish_reason}"
  if len(lines) > 1:
    return query, "more than one line"
  words = _WORD.findall(query.lower())
  if not words:
    return query, "empty"
  if len(words) > _LONGEST_QUERY:
    return query, "too long"
  if copied(words, _WORD.findall(passage.lower())):
    return query, "copies the passage"
  return query, None


def copied(query: Sequence[str], passage: Sequence[str]) -> bool:
  """Whether COPIED_WORDS words stand in a row in both."""
  n = COPIED_WORDS
  runs = {tuple(passage[i : i + n]) for i in range(len(passage) - n + 1)}
  return any(tuple(query[i : i + n]) in runs for i in range(len(query) - n + 1))
