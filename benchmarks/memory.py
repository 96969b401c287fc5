"""Host memory that a process needs for each passage of a collection: to read it, its token ids, BM25's index of it.

    python -m benchmarks.memory --drawn=100000

Passages have the form of DPR's, a title and a hundred words, whole words of the tokenizer's own vocabulary, drawn as
often as Zipf's law has them.  One JSON line for each, from a process of its own: bytes by which its memory grew at
most, divided by the passages; how long opening the collection takes, and reading one passage, in microseconds of a
core; and how fast token ids are made.  Vectors are not measured: float32 are four bytes a dimension, in a file that is
mapped.
"""

import itertools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import app, flags

from benchmarks import alone
from idistill_jax import config, records
from idistill_jax.data import example, tables, tokenize
from idistill_jax.hf import folders
from idistill_jax.retrieval import bm25

_DRAWN = flags.DEFINE_integer("drawn", 100_000, "Passages of the collection.", lower_bound=1000)
_TOKENIZER = flags.DEFINE_string("tokenizer", config.Encoder().weights, "Whose it is, as encoder.weights.")

TITLE_WORDS, WORDS, MOST_TOKENS = 2, 100, 256


def draw(passages: int, words: Sequence[str], seed: int = 0) -> Iterator[records.Passage]:
  rng = np.random.default_rng(seed)
  share = 1 / np.arange(1, len(words) + 1)
  bounds = np.cumsum(share / share.sum())
  for number in range(passages):
    places = np.minimum(np.searchsorted(bounds, rng.random(TITLE_WORDS + WORDS)), len(words) - 1)
    title, text = (" ".join(words[place] for place in some) for some in np.split(places, [TITLE_WORDS]))
    yield records.Passage(id=str(number), title=title, text=text)


def vocabulary(folder: pathlib.Path, seed: int = 1) -> list[str]:
  """Words that are one token each, in a drawn order: that of the file is the alphabet's, or how often each occurs."""
  entries = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
  words = sorted(one for one in entries if one.isascii() and one.isalpha() and len(one) > 2)
  return [words[place] for place in np.random.default_rng(seed).permutation(len(words))]


# -- What is measured, beside the texts of which it is made --------------------------------------------------------


def reading(passages: tables.Passages, folder: pathlib.Path) -> dict[str, float]:
  del folder
  texts, count = passages.texts, len(passages)
  orders = {"in_order": range(count), "at_random": np.random.default_rng(0).permutation(count).tolist()}
  found = {}
  for name, rows in orders.items():
    began = time.process_time()
    for row in rows:
      texts[row]
    found[f"microseconds_{name}"] = round(1e6 * (time.process_time() - began) / count, 2)
  return found


def tokens(passages: tables.Passages, folder: pathlib.Path) -> dict[str, float]:
  tokenizer, began = tokenize.Tokenizer(folder), time.process_time()
  table = tokenizer.table(passages.texts, MOST_TOKENS)
  core_seconds = time.process_time() - began
  return {"tokens": float(table.lengths.mean()), "tokens_per_core_second": round(len(table.flat) / core_seconds)}


def terms(passages: tables.Passages, folder: pathlib.Path) -> dict[str, float]:
  bm25.Bm25(passages.texts, passages.ids, "english")
  return {}


BESIDE_TEXTS: dict[str, Callable[[tables.Passages, pathlib.Path], dict[str, float]]] = {
  "reading": reading, "tokens": tokens, "bm25": terms,
}


def measure(collection: pathlib.Path, folder: pathlib.Path, what: str) -> dict[str, float | str]:
  # Packages, tokenizer and the first block of texts are no more for more passages.
  some = itertools.islice(example.read_records(collection, tables.PASSAGES, records.Passage), tokenize.BLOCK)
  BESIDE_TEXTS[what](tables.Passages(some), folder)
  before = alone.most()
  began = time.process_time()
  passages = tables.load_passages(collection)
  opened, with_texts = time.process_time() - began, alone.most()
  said = BESIDE_TEXTS[what](passages, folder)
  count = len(passages)
  return {"what": what, "bytes_of_texts": round((with_texts - before) / count),
          "bytes_beside_texts": round((alone.most() - with_texts) / count),
          "microseconds_to_open": round(1e6 * opened / count, 2), **said}


def main(argv: Sequence[str]) -> None:
  folder = pathlib.Path(folders.resolve(_TOKENIZER.value))
  with tempfile.TemporaryDirectory() as name:
    collection = pathlib.Path(name)
    example.write_records(collection, tables.PASSAGES, draw(_DRAWN.value, vocabulary(folder)))
    tables.note_places(collection)
    for what in BESIDE_TEXTS:
      print(json.dumps(alone.call(measure, collection, folder, what)), flush=True)


if __name__ == "__main__":
  app.run(main)
