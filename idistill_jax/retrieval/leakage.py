"""Did training see the test?  Queries of both splits that say the same, and test passages in training's lists.

The first is leakage, and said aloud.  The second is normal where both splits search one corpus, and a number as long
as the result does not rest on it.  A model may have learned a passage, rather than how to find one, where that passage
stood first in a list; so the difference is measured once more over the test queries that have no such passage, and said
aloud where it can be told from chance over all of them, and over those points elsewhere, or cannot and is not half as
large.  Why not held against what chance would list: what is right for one query is found for others more often than a
passage drawn from the corpus.

A query is a near-duplicate of another where their character 5-grams overlap (Jaccard) by `NEAR` or more, where one
is the other with stop words added, or where one of its words alone is spelled a little otherwise; and where both have
the same words but for stop words, in any order, and a right passage or an accepted answer in common.  Accents count for
nothing; each Han character and kana is a word.  Symbols that are no marks of a sentence must be the same: C++ is not
C#.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from idistill_jax import records
from idistill_jax.retrieval import answers, scripts, significance

NEAR = 0.9
GRAM = 5
# Shorter words that differ by a letter are other words: of those with a letter more, and of those with another letter.
_SHORTEST_LONGER, _SHORTEST_CHANGED = 4, 7
# Test queries compared at a time: their overlaps with all training queries are held in memory.
_BLOCK = 256
EXAMPLES = 5
# A word, a character of a script without spaces, or a symbol alone; marks of a sentence say nothing.
_TOKEN = re.compile(
  rf"""[{scripts.HAN_AND_KANA}]|[^\W_{scripts.HAN_AND_KANA}]+|[^\w\s.,;:!?'"`()\[\]{{}}…‘’“”–—-]""")
_IS_CJK = re.compile(f"[{scripts.CJK}]")
_BETWEEN_CHARACTERS = re.compile(f"(?<=[{scripts.HAN_AND_KANA}]) (?=[{scripts.HAN_AND_KANA}])")
_SHORTENED_IS = re.compile(r"['’]s\b")
# Without question words and negations, which turn a question into another.
STOP_WORDS = frozenset(
  "a an the of in on at to for from by with is are was were be been do does did there it its".split()
)


Content = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rest:
  """A difference over test queries, and over the `queries` of them without a right passage that training put first; of
  these delta and p are None where they are fewer than two."""

  of: str
  queries: int
  delta: float | None
  p: float | None
  whole_delta: float
  whole_p: float

  @property
  def is_lost(self) -> bool:
    """Whether what can be told from chance over all queries points elsewhere over these, or cannot be told there and is
    not half as large: fewer queries tell less from chance, also where nothing else has changed.  What is half as large
    and cannot be told is not known to be lost, nor to have held."""
    if self.delta is None or self.p is None:
      return self.whole_p < significance.SIGNIFICANT
    share = self.delta / self.whole_delta if self.whole_delta else 0.0
    held = share >= 0.5 or (share > 0 and self.p < significance.SIGNIFICANT)
    return self.whole_p < significance.SIGNIFICANT and not held


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
  """duplicates: (test query id, training query id, overlap).  trained_on: test queries with a list of their own among
  training's.

  right: passages that are judged right for a test query; None without judgements.  by_answers: whether instead of
  judgements an answer in their text makes them right, of those that are found.  listed: those in a list that
  training learned from, the ones that stand first in some before the others.  first: how many these are.
  familiar: (test query id, one of its right passages that stands first).  rest: what is measured without these queries.
  """

  duplicates: tuple[tuple[str, str, float], ...]
  trained_on: tuple[str, ...]
  test_queries: int
  right: int | None
  listed: tuple[str, ...]
  first: int
  familiar: tuple[tuple[str, str], ...]
  rest: Rest | None = None
  by_answers: bool = False

  def as_json(self) -> dict[str, object]:
    known = self.right is not None
    return {
      "test_queries": self.test_queries,
      "test_queries_trained_on": len(self.trained_on),
      "trained_on_examples": list(self.trained_on[:EXAMPLES]),
      "near_duplicate_queries": len(self.duplicates),
      "examples": [list(one) for one in self.duplicates[:EXAMPLES]],
      "right_passages": self.right,
      "right_by_answers": self.by_answers,
      "right_passages_in_training_lists": len(self.listed) if known else None,
      "right_passages_first_in_training_lists": self.first if known else None,
      "passage_examples": list(self.listed[:EXAMPLES]),
      "familiar_queries": len(self.familiar) if known else None,
      "familiar_examples": [list(one) for one in self.familiar[:EXAMPLES]],
      "rest": self.rest and {**dataclasses.asdict(self.rest), "is_lost": self.rest.is_lost},
    }

  def measured(self, of: str, before: Mapping[str, float], after: Mapping[str, float], resamples: int) -> "Leakage":
    """With what is left of a difference (values of test queries, `of` in words) without the familiar queries."""
    if not self.familiar or len(before) < 2:
      return self
    known = {query_id for query_id, _ in self.familiar}
    others = [query_id for query_id in before if query_id not in known]
    compare = lambda ids: significance.compare(
      {one: after[one] for one in ids}, {one: before[one] for one in ids}, resamples=resamples)
    whole, rest = compare(before), compare(others) if len(others) > 1 else None
    return dataclasses.replace(self, rest=Rest(
      of=of, queries=len(others), delta=None if rest is None else rest.delta, p=None if rest is None else rest.p,
      whole_delta=whole.delta, whole_p=whole.p,
    ))


def rights(
  judgements: Iterable[Mapping[str, Mapping[str, int]]], accepted: Mapping[str, Sequence[str]], relevant_from: int
) -> dict[str, set[str]]:
  """Query id -> what is right for it: ids of passages, and its answers as they are compared."""
  found: dict[str, set[str]] = collections.defaultdict(set)
  for qrels in judgements:
    for query_id, judged in qrels.items():
      found[query_id] |= {one for one, grade in judged.items() if grade >= relevant_from}
  for query_id, said in accepted.items():
    # Ids have no white space, so no answer is one.
    found[query_id] |= {f"answer {one}" for one in map(answers.normalised, said) if one}
  return found


def check(
  test: Sequence[records.Query],
  train: Sequence[records.Query],
  qrels: Mapping[str, Mapping[str, int]],
  lists: Iterable[records.RankedList | records.ScoredList],
  relevant_from: int,
  right_of: Mapping[str, Set[str]],
) -> Leakage:
  """Compares every test query with every training query, and judgements with the lists that training learned from.

  lists: passages best first.  relevant_from: the lowest grade that counts as right.  right_of: of queries of both.
  """
  right = {one for judged in qrels.values() for one, grade in judged.items() if grade >= relevant_from}
  asked = {query.id for query in test}
  trained_on: set[str] = set()
  listed: set[str] = set()
  first: set[str] = set()
  for one in lists:
    trained_on |= asked & {one.query_id}
    listed |= right.intersection(one.passage_ids)
    first |= right.intersection(one.passage_ids[:1])
  put_first = ((one.id, min((passage for passage, grade in qrels.get(one.id, {}).items()
                             if grade >= relevant_from and passage in first), default=None)) for one in test)
  return Leakage(
    duplicates=tuple(_duplicates(test, train, right_of)), trained_on=tuple(sorted(trained_on)), test_queries=len(test),
    right=len(right) if qrels else None, listed=(*sorted(first), *sorted(listed - first)), first=len(first),
    familiar=tuple((query_id, passage) for query_id, passage in put_first if passage is not None),
  )


def _duplicates(
  test: Sequence[records.Query], train: Sequence[records.Query], right_of: Mapping[str, Set[str]]
) -> list[tuple[str, str, float]]:
  """The closest training query of each test query that has a near one, closest first."""
  if not test or not train:
    return []
  known: dict[str, int] = {}
  test_tokens, train_tokens = ([_tokens(query.text) for query in queries] for queries in (test, train))
  by_bag: dict[Content, list[int]] = collections.defaultdict(list)
  for place, tokens in enumerate(train_tokens):
    by_bag[_bag(tokens)].append(place)
  test_QxG, train_TxG = _grams(test_tokens, known), _grams(train_tokens, known)
  test_QxG.resize((len(test), len(known)))
  sizes_Q, sizes_T = (np.asarray(grams.sum(axis=1)).ravel() for grams in (test_QxG, train_TxG))
  spelled = _spelled_otherwise(list(map(_content, test_tokens)), list(map(_content, train_tokens)))
  found = []
  for start in range(0, len(test), _BLOCK):
    shared_QxT = (test_QxG[start : start + _BLOCK] @ train_TxG.T).toarray()
    overlap_QxT = shared_QxT / (sizes_Q[start : start + _BLOCK, None] + sizes_T[None] - shared_QxT)
    for row, overlap_T in enumerate(overlap_QxT):
      mine = test_tokens[start + row]
      near = np.flatnonzero(overlap_T >= NEAR).tolist()
      near = [one for one in near if _symbols(train_tokens[one]) == _symbols(mine)]
      right = right_of.get(test[start + row].id, set())
      near += [one for one in by_bag.get(_bag(mine), ()) if _one_holds_the_other(train_tokens[one], mine)
               or (_content(mine) and not right.isdisjoint(right_of.get(train[one].id, ())))]
      near += spelled[start + row]
      if near:
        closest = max(near, key=overlap_T.__getitem__)
        found.append((test[start + row].id, train[closest].id, round(float(overlap_T[closest]), 4)))
  return sorted(found, key=lambda one: (-one[2], one[0]))


def _tokens(text: str) -> list[str]:
  # Of a query that is nothing but marks, the marks are what it says.
  parts = unicodedata.normalize("NFKD", text.lower())
  # What stands on kana is no accent: it makes another letter.
  kept = (char for before, char in zip(" " + parts, parts, strict=False)
          if not unicodedata.combining(char) or _IS_CJK.match(before))
  letters = unicodedata.normalize("NFC", "".join(kept))
  return _TOKEN.findall(_SHORTENED_IS.sub(" is", letters)) or [text.strip()]


def _symbols(tokens: Sequence[str]) -> list[str]:
  return [token for token in tokens if not token.isalnum()]


def _content(tokens: Sequence[str]) -> Content:
  """What is not a stop word, in order: a list into a string is not a string into a list."""
  return tuple(token for token in tokens if token not in STOP_WORDS)


def _bag(tokens: Sequence[str]) -> Content:
  return tuple(sorted(_content(tokens)))


def _spelled_otherwise(test: Sequence[Content], train: Sequence[Content]) -> dict[int, list[int]]:
  """Test query -> training queries with the same content but for the spelling of one word."""
  by_rest = collections.defaultdict(list)
  for place, words in enumerate(test):
    for i in range(len(words)):
      by_rest[i, words[:i], words[i + 1 :]].append(place)
  found: dict[int, list[int]] = collections.defaultdict(list)
  for place, words in enumerate(train):
    for i, word in enumerate(words):
      for one in by_rest.get((i, words[:i], words[i + 1 :]), ()):
        if _differ_by_a_slip(word, test[one][i]):
          found[one].append(place)
  return found


def _differ_by_a_slip(one: str, other: str) -> bool:
  """colour and color, iterable and iterables, capital and capitol; not pause and parse, nor syllables of Hangul."""
  shorter, longer = sorted((one, other), key=len)
  letters = shorter + longer
  if shorter == longer or shorter[0] != longer[0] or not letters.isalpha() or _IS_CJK.search(letters):
    return False
  if len(shorter) == len(longer):
    return len(shorter) >= _SHORTEST_CHANGED and sum(a != b for a, b in zip(shorter, longer, strict=True)) == 1
  rests = (longer[:i] + longer[i + 1 :] for i in range(len(longer)))
  return len(shorter) >= _SHORTEST_LONGER and shorter in rests


def _one_holds_the_other(one: Sequence[str], other: Sequence[str]) -> bool:
  """Whether the content is the same, in order, and stop words were only added; exchanged, as from for to, they say
  another."""
  ones, others = collections.Counter(one), collections.Counter(other)
  return bool(_content(one)) and _content(one) == _content(other) and (ones <= others or others <= ones)


def _grams(tokenised: Sequence[Sequence[str]], known: dict[str, int]) -> Any:
  """CSR matrix [texts, grams] of 1 where a text holds a 5-gram; `known` numbers them and grows."""
  from scipy import sparse

  columns, ends = [], [0]
  for tokens in tokenised:
    text = _BETWEEN_CHARACTERS.sub("", " ".join(["", *tokens, ""]))
    grams = {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
    columns += [known.setdefault(gram, len(known)) for gram in sorted(grams)]
    ends.append(len(columns))
  ones = np.ones(len(columns), np.float32)
  return sparse.csr_matrix((ones, columns, ends), shape=(len(tokenised), len(known)))
