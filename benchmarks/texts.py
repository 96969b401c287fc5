"""Synthetic lists of passages whose lengths are those of a passage collection.

Passages are log-normal around 70 words, queries around 9; every word is one token of the model's vocabulary, so that
lengths in words are lengths in tokens for every system.
"""

import dataclasses
import json
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lists:
  """Q queries with N passages each.

  lengths count tokens, with the two special ones.  scores: float32 [Q, N], a teacher's.
  """

  queries: list[str]
  passages: list[str]
  query_lengths: np.ndarray
  passage_lengths: np.ndarray
  scores: np.ndarray

  @property
  def width(self) -> int:
    return self.scores.shape[1]

  def tokens(self, work: str) -> np.ndarray:
    """Of each list, int [Q]: its query read with each passage for "ranker step" and "score", each text by itself for
    others."""
    passages_QxN = self.passage_lengths.reshape(-1, self.width)
    if work in ("ranker step", "score"):
      return (self.query_lengths[:, None] + passages_QxN - 1).sum(1)
    return self.query_lengths + passages_QxN.sum(1)


def draw(folder: pathlib.Path, *, queries: int, width: int, max_tokens: int, seed: int = 0) -> Lists:
  """Lists in the vocabulary of the model in `folder`; passages are at most `max_tokens` long."""
  rng = np.random.default_rng(seed)
  words = whole_words(folder)
  query_texts, query_lengths = _texts(rng, words, queries, mean=9, sigma=0.4, low=3, high=30)
  passage_texts, passage_lengths = _texts(rng, words, queries * width, mean=70, sigma=0.45, low=10, high=max_tokens - 2)
  scores = rng.normal(size=(queries, width)).astype(np.float32)
  return Lists(queries=query_texts, passages=passage_texts, query_lengths=query_lengths,
               passage_lengths=passage_lengths, scores=scores)


def write_corpus(path: pathlib.Path, lists: Lists) -> None:
  """The passages as JSON lines, as BEIR has them."""
  with path.open("w", encoding="utf-8") as out:
    out.writelines(json.dumps({"_id": f"p{i}", "title": "", "text": text}) + "\n"
                   for i, text in enumerate(lists.passages))


def whole_words(folder: pathlib.Path) -> list[str]:
  vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
  return sorted(word for word in vocabulary if word.isascii() and word.isalpha() and word.islower() and len(word) > 2)


def _texts(rng: np.random.Generator, words: list[str], count: int, *, mean: int, sigma: float, low: int,
           high: int) -> tuple[list[str], np.ndarray]:
  lengths = np.clip(np.exp(rng.normal(np.log(mean), sigma, count)).astype(int), low, high)
  texts = [" ".join(words[i] for i in rng.integers(0, len(words), n)) for n in lengths]
  return texts, lengths + 2
