"""Questions with answers: is one of them in a passage, and does a reader's answer say the same?

Answer-in-context as DPR measures it (Karpukhin et al., 2020: `has_answer` with its SimpleTokenizer, case folded);
exact match and F1 as evaluate-v2.0.py, SQuAD 2's script, scores them (Rajpurkar et al., 2018).
"""

import collections
import functools
import re
import string
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from idistill_jax import extras

# Answer-in-context: share of questions with a passage among the first k that holds an answer.
DEPTHS = (1, 5, 20, 100)
NAMES = tuple(f"answer@{depth}" for depth in DEPTHS)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# DPR's SimpleTokenizer: a run of letters, digits and marks, or any other visible character alone.
_TOKEN = r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]"


def normalised(text: str) -> str:
  """Lower case, without punctuation and articles, white space as single spaces."""
  return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(said: str, answers: Sequence[str]) -> float:
  """1 where a normalised answer equals what was said, else 0."""
  return float(normalised(said) in _accepted(answers))


def f1(said: str, answers: Sequence[str]) -> float:
  """Best F1 of normalised words over the answers."""
  return max(_f1(normalised(said).split(), answer.split()) for answer in _accepted(answers))


def _accepted(answers: Sequence[str]) -> list[str]:
  """Normalised, without those of which nothing is left, such as "The": a reader that says nothing would be right.
  Where nothing is left of any, nothing is what must be said."""
  return [left for left in map(normalised, answers) if left] or [""]


def _f1(said: list[str], answer: list[str]) -> float:
  if not said or not answer:
    # As in the script of SQuAD 2: nothing equals nothing alone.
    return float(said == answer)
  shared = sum((collections.Counter(said) & collections.Counter(answer)).values())
  return 2 * shared / (len(said) + len(answer))


def tokens(text: str) -> tuple[str, ...]:
  """Lower-case tokens of DPR's tokenizer."""
  # Each by itself, as there: a capital sigma in lower case depends on what stands around it.
  return tuple(map(str.lower, _pattern().findall(unicodedata.normalize("NFD", text))))


def has_answer(text_tokens: Sequence[str], answers: Sequence[Sequence[str]]) -> bool:
  """Whether the tokens of one of the answers stand in the text, one after the other; those of an answer without any, as
  of a blank, do not, where DPR finds them in every text."""
  # With a separator that no token holds, a run of tokens is a substring.
  text = f"\n{chr(10).join(text_tokens)}\n"
  return any(answer and f"\n{chr(10).join(answer)}\n" in text for answer in answers)


@functools.cache
def _pattern() -> Any:
  with extras.needed("answer-in-context", "retrieval"):
    import regex
  return regex.compile(_TOKEN)


class InContext:
  """Answer-in-context of any number of systems over one corpus; every passage is tokenised once."""

  def __init__(self, answers: Mapping[str, Sequence[str]], text: Callable[[str], str]):
    """answers: query id -> accepted answers, of `query_ids`; text: passage id -> what is searched for them."""
    self._answers = {query_id: [tokens(one) for one in accepted] for query_id, accepted in answers.items()}
    self.query_ids, self._text = tuple(answers), text
    self._tokens = functools.cache(lambda passage_id: tokens(text(passage_id)))

  def first_rank(self, query_id: str, order: Sequence[str]) -> int | None:
    """Rank (from 1) of the first passage that holds an answer, None where none does."""
    answers = self._answers[query_id]
    return next((rank for rank, one in enumerate(order, 1) if has_answer(self._tokens(one), answers)), None)

  def holders(self, query_id: str, passage_ids: Iterable[str]) -> list[str]:
    """Those of the passages that hold an answer; of many questions' passages, no tokens are kept."""
    answers = self._answers[query_id]
    return [one for one in passage_ids if has_answer(tokens(self._text(one)), answers)]

  def measure(self, orders: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """measure -> query id -> 1 or 0, for every question; orders: query id -> passage ids, best first."""
    ranks = {one: self.first_rank(one, orders.get(one, ())[: max(DEPTHS)]) for one in self._answers}
    return {
      name: {one: float(rank is not None and rank <= depth) for one, rank in ranks.items()}
      for name, depth in zip(NAMES, DEPTHS, strict=True)
    }
