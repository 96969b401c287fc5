"""Did training see the test?  Queries of both splits that say the same, and test passages that training knew.

A query is a near-duplicate of another where their character 5-grams overlap (Jaccard) by `NEAR` or more.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from idistill_jax import records

NEAR = 0.9
GRAM = 5
# Test queries compared at a time: their overlaps with all training queries are held in memory.
_BLOCK = 256
EXAMPLES = 5
_WORD = re.compile(r"[^\W_]+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
  """duplicates: (test query id, training query id, overlap).  passages: judged right for a test query, and
  ranked first by the LLM for a training one."""

  duplicates: tuple[tuple[str, str, float], ...]
  passages: tuple[str, ...]
  test_queries: int

  def as_json(self) -> dict[str, object]:
    return {
      "test_queries": self.test_queries,
      "near_duplicate_queries": len(self.duplicates),
      "examples": [list(one) for one in self.duplicates[:EXAMPLES]],
      "test_passages_ranked_first_in_training": len(self.passages),
      "passage_examples": list(self.passages[:EXAMPLES]),
    }

  @property
  def warning(self) -> str | None:
    """What to say aloud: a query of the test was trained on.  None where all is well."""
    if not self.duplicates:
      return None
    test, train, overlap = self.duplicates[0]
    return (
      f"LEAKAGE: {len(self.duplicates)} of {self.test_queries} test queries have a near-duplicate among the "
      f"training queries (for example {test} and {train}, overlap {overlap:.2f}): what is measured on "
      "them is no evidence"
    )


def check(
  test: Sequence[records.Query],
  train: Sequence[records.Query],
  qrels: Mapping[str, Mapping[str, int]],
  rankings: Iterable[records.RankedList],
  relevant_from: int,
) -> Leakage:
  """Compares every test query with every training query, and judgements with the LLM's first places.

  relevant_from: the lowest grade that counts as right.
  """
  right = {one for judged in qrels.values() for one, grade in judged.items() if grade >= relevant_from}
  first = {ranking.passage_ids[0] for ranking in rankings}
  return Leakage(
    duplicates=tuple(_duplicates(test, train)), passages=tuple(sorted(right & first)), test_queries=len(test)
  )


def _duplicates(test: Sequence[records.Query], train: Sequence[records.Query]) -> list[tuple[str, str, float]]:
  """The closest training query of each test query that has a near one, closest first."""
  if not test or not train:
    return []
  known: dict[str, int] = {}
  test_QxG, train_TxG = _grams(test, known), _grams(train, known)
  test_QxG.resize((len(test), len(known)))
  sizes_Q, sizes_T = (np.asarray(grams.sum(axis=1)).ravel() for grams in (test_QxG, train_TxG))
  found = []
  for start in range(0, len(test), _BLOCK):
    shared_QxT = (test_QxG[start : start + _BLOCK] @ train_TxG.T).toarray()
    overlap_QxT = shared_QxT / (sizes_Q[start : start + _BLOCK, None] + sizes_T[None] - shared_QxT)
    for row, closest in enumerate(overlap_QxT.argmax(axis=1)):
      if overlap_QxT[row, closest] >= NEAR:
        found.append((test[start + row].id, train[closest].id, round(float(overlap_QxT[row, closest]), 4)))
  return sorted(found, key=lambda one: (-one[2], one[0]))


def _grams(queries: Sequence[records.Query], known: dict[str, int]) -> Any:
  """CSR matrix [queries, grams] of 1 where a query holds a 5-gram; `known` numbers them and grows."""
  from scipy import sparse

  columns, ends = [], [0]
  for query in queries:
    text = " ".join(["", *_WORD.findall(query.text.lower()), ""])
    grams = {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}
    columns += [known.setdefault(gram, len(known)) for gram in sorted(grams)]
    ends.append(len(columns))
  ones = np.ones(len(columns), np.float32)
  return sparse.csr_matrix((ones, columns, ends), shape=(len(queries), len(known)))
