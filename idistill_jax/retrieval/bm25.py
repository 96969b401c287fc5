"""BM25 over texts (bm25s): texts and queries -> hits, like vector search.

Lucene's variant, whose idf is positive: a passage scores above 0 exactly where it shares a term with the
query.  Terms are a language's words, stemmed, without its stop words where bm25s has them; of Chinese, Japanese and
Korean pairs of characters, as Lucene's are.
"""

import sys
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from idistill_jax import extras
from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.retrieval import scripts

# Anserini's, under which the published BM25 results were made.
K1 = 0.9
B = 0.4
# Languages whose stop words bm25s has, of those that are stemmed.
_STOP_WORDS = frozenset(
  "danish dutch english french german italian norwegian portuguese russian spanish swedish turkish".split()
)
_CJK = scripts.CJK
# Two neighbours, or one that stands alone; of other letters whole words.
_PAIRS = rf"(?=([{_CJK}]{{2}}|(?<![{_CJK}])[{_CJK}](?![{_CJK}])|(?<![^\W{_CJK}])[^\W{_CJK}]{{2,}}))"


class Bm25UnavailableError(ImportError):
  """bm25s or PyStemmer is not installed."""


class Bm25:
  """An inverted index over all passages."""

  def __init__(self, texts: Sequence[str], ids: Sequence[str], language: str):
    """language: as `evaluate.bm25_language`.

    Raises ValueError where there are no passages, no term in any of them, or an id is repeated.
    """
    if len(texts) != len(ids):
      raise ValueError(f"{len(texts)} passage texts but {len(ids)} passage ids")
    if not len(texts):
      raise ValueError("there are no passages to search; is the corpus empty?")
    self._order_P = hits_lib.tie_order(ids)
    # Place of each row in the tie order.
    self._place_P = np.empty_like(self._order_P)
    self._place_P[self._order_P] = np.arange(len(ids), dtype=np.int32)
    self._bm25s, stemmers = packages()
    self._language, self._how = language, _how(language, stemmers)
    terms = self._terms(texts)
    if not any(terms):
      raise ValueError(f"none of {len(texts)} passages holds a term that is not a stop word")
    self._model = self._bm25s.BM25(method="lucene", k1=K1, b=B)
    self._model.index(terms, show_progress=False)

  def __len__(self) -> int:
    return len(self._order_P)

  def search(self, queries: Sequence[str], k: int) -> hits_lib.Hits:
    """The min(k, P) best passages of each query text; `found` counts those that share a term with it."""
    hits_lib.check_k(k)
    k = min(k, len(self))
    rows_QxK = np.empty((len(queries), k), np.int32)
    scores_QxK = np.empty((len(queries), k), np.float32)
    found_Q = np.empty(len(queries), np.int32)
    for query, terms in enumerate(self._terms(queries)):
      scores_P = self._scores(terms)
      # The k-th best score decides who may enter; all its ties are sorted, so none is left out by chance.
      bound = np.partition(scores_P, len(self) - k)[len(self) - k]
      rows = np.flatnonzero(scores_P >= bound)
      rows = rows[np.lexsort((self._place_P[rows], -scores_P[rows]))][:k]
      rows_QxK[query], scores_QxK[query] = rows, scores_P[rows]
      found_Q[query] = np.count_nonzero(scores_P[rows] > 0)
    return hits_lib.Hits(rows=rows_QxK, scores=scores_QxK, found=found_Q)

  def _scores(self, terms: list[str]) -> np.ndarray:
    known = [term for term in terms if term in self._model.vocab_dict]
    if not known:
      return np.zeros(len(self), np.float32)
    return np.asarray(self._model.get_scores(known), np.float32)

  def _terms(self, texts: Sequence[str]) -> list[list[str]]:
    if not len(texts):
      return []
    if self._language != "english":
      # One text in several forms is one; English was measured as it is, and published so.
      texts = [unicodedata.normalize("NFKC", text) for text in texts]
    return self._bm25s.tokenize(texts, return_ids=False, show_progress=False, **self._how)


def _how(language: str, stemmers: Any) -> dict[str, Any]:
  """What bm25s' tokenizer is told of a language."""
  if language == "cjk":
    return {"stopwords": None, "token_pattern": _PAIRS}
  how: dict[str, Any] = {"stopwords": language if language in _STOP_WORDS else None}
  if language != "words":
    how["stemmer"] = stemmers.Stemmer(language)
  if language != "english":
    how["token_pattern"] = rf"[\w{_marks()}]{{2,}}"
  return how


def _marks() -> str:
  """All that stands on letters or beside them, as vowels do in Hindi: by Python's \\w words would end there."""
  return "".join(one for one in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(one).startswith("M"))


def packages() -> tuple[Any, Any]:
  """bm25s and Stemmer; raises Bm25UnavailableError without them."""
  with extras.needed("BM25", "retrieval", Bm25UnavailableError):
    import bm25s
    import Stemmer
  return bm25s, Stemmer
