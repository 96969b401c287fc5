"""Texts -> token ids, each text once.  Pairs are joined from the two texts' tokens, never tokenised again."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import tokenizers


class TokenizerError(ValueError):
  """A model folder without a usable tokenizer.json."""


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """Token ids of many texts, end to end; text i is `flat[offsets[i]:offsets[i + 1]]`, with its special tokens."""

  flat: np.ndarray
  offsets: np.ndarray

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    return self.flat[self.offsets[i]:self.offsets[i + 1]]

  @property
  def lengths(self) -> np.ndarray:
    return np.diff(self.offsets)


class Tokenizer:
  """A fast tokenizer read from `tokenizer.json`."""

  def __init__(self, folder: pathlib.Path):
    path = folder / "tokenizer.json"
    if not path.exists():
      raise TokenizerError(f"{path} is missing; save the tokenizer as a fast one (AutoTokenizer.save_pretrained)")
    self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    self._tokenizer.no_padding()
    framed = self._tokenizer.encode("a")
    # Whatever the two are called; `pair` leaves out the passage's first.
    if framed.special_tokens_mask != [1, *[0] * (len(framed.ids) - 2), 1]:
      raise TokenizerError(
        f"{path}: its post_processor makes {framed.tokens} of 'a'; a text must stand between two special tokens, as in "
        "[CLS] a [SEP]: save the tokenizer with them (AutoTokenizer.save_pretrained)"
      )

  @property
  def ids(self) -> int:
    """One more than the largest id that it gives."""
    return 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())

  def table(self, texts: Sequence[str], max_tokens: int) -> TokenTable:
    """Token ids of each text cut at `max_tokens`, special tokens included."""
    self._tokenizer.enable_truncation(max_tokens)
    ids = [np.asarray(e.ids, np.int32) for e in self._tokenizer.encode_batch_fast(list(texts))]
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(i) for i in ids], out=offsets[1:])
    return TokenTable(np.concatenate(ids) if ids else np.zeros(0, np.int32), offsets)


def pair(query: np.ndarray, passage: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """([CLS] query [SEP] passage [SEP], type ids 0 then 1), as BERT was taught sentence pairs."""
  ids = np.concatenate([query, passage[1:]])
  types = np.repeat(np.array([0, 1], np.int32), [len(query), len(passage) - 1])
  return ids, types
