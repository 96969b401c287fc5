"""Texts -> token ids, each text once.  Pairs are joined from the two texts' tokens, never tokenised again."""

import array
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

import numpy as np
import tokenizers

from idistill_jax.data import tokenizer_files

Lengths = TypeVar("Lengths", int, np.ndarray)


# Texts that are encoded at once: a token is about a hundred bytes until its id is taken.
BLOCK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
  """How many of so many texts lost their end at `at` tokens, and how long the longest was before."""

  at: int
  texts: int
  of: int
  longest: int

  def __add__(self, other: "Cut") -> "Cut":
    """Of both, cut at the same length."""
    return dataclasses.replace(self, texts=self.texts + other.texts, of=self.of + other.of,
                               longest=max(self.longest, other.longest))

  def __str__(self) -> str:
    return f"{self.texts:,} of {self.of:,} cut at {self.at:,} tokens (longest {self.longest:,})"


@dataclasses.dataclass(frozen=True, eq=False)
class Between:
  """How a passage follows its query.

  ids: what stands between the two beside their own special tokens; nothing for BERT.  opening: how many special tokens
  a text begins with, which the passage then leaves out: BERT's [CLS], and none for T5.
  """

  ids: np.ndarray
  opening: int


@dataclasses.dataclass(frozen=True)
class TokenTable:
  """Token ids of many texts, end to end; text i is `flat[offsets[i]:offsets[i + 1]]`, with its special tokens.

  between: of pairs with these texts.
  """

  flat: np.ndarray
  offsets: np.ndarray
  between: Between
  cut: Cut

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, i: int) -> np.ndarray:
    return self.flat[self.offsets[i]:self.offsets[i + 1]]

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Once, as those of a few texts are asked for again and again."""
    return np.diff(self.offsets)

  def lengths_of(self, rows: np.ndarray | int) -> np.ndarray:
    return self.lengths[rows]


class Tokens(Protocol):
  """Token ids of texts, by the rows of their collection; between: as in TokenTable."""

  @property
  def between(self) -> Between: ...

  def __getitem__(self, row: int) -> np.ndarray: ...

  def lengths_of(self, rows: np.ndarray | int) -> np.ndarray:
    """How many tokens each of them has."""
    ...


@functools.lru_cache(maxsize=4)
def _of(stated: str) -> tuple[tokenizers.Tokenizer, int]:
  """Of a tokenizer.json's text, which every stage reads again and which takes 30 ms to build; and how many ids."""
  made = tokenizers.Tokenizer.from_str(stated)
  made.no_padding()
  # What is cut is counted, so texts are tokenised whole and cut here.
  made.no_truncation()
  return made, 1 + max(made.get_vocab(with_added_tokens=True).values())


class Tokenizer:
  """A fast tokenizer read from `tokenizer.json`; without: as in `tokenizer_files.stated`.

  ids: one more than the largest id that it gives.  between: as in TokenTable.  types_tell_halves: whether it gives a
  pair's query type 0, and all behind it type 1.
  """

  def __init__(self, folder: pathlib.Path, without: Collection[str] = ()):
    path = folder / tokenizer_files.FILE
    if not path.exists():
      raise tokenizer_files.TokenizerError(
        f"{path} is missing; save the tokenizer as a fast one (AutoTokenizer.save_pretrained)")
    self._tokenizer, self.ids = _of(
      json.dumps(tokenizer_files.stated(folder, without)) if without or tokenizer_files.changes(folder) else
      path.read_text(encoding="utf-8"))
    framed, both = self._tokenizer.encode("a"), self._tokenizer.encode("a", "a")
    alone, opening = len(framed.ids), len(list(itertools.takewhile(bool, framed.special_tokens_mask)))
    # Whatever they are called.  Cutting keeps one token behind a text, and a text of no word must be of one, too.
    if framed.special_tokens_mask != [*[1] * opening, *[0] * (alone - opening - 1), 1]:
      raise tokenizer_files.TokenizerError(
        f"{path}: its post_processor makes {framed.tokens} of 'a'; one special token must stand behind a text, as in "
        "[CLS] a [SEP] or a </s>: save the tokenizer with it (AutoTokenizer.save_pretrained)"
      )
    self.between = Between(np.asarray(both.ids[alone:len(both.ids) - alone + opening], np.int32), opening)
    if pair(np.asarray(framed.ids), np.asarray(framed.ids), self.between)[0].tolist() != both.ids:
      raise tokenizer_files.TokenizerError(
        f"{path}: its post_processor makes {both.tokens} of the pair 'a', 'a'; the second must follow the whole first, "
        "as in [CLS] a [SEP] a [SEP] or a </s> a </s>: save the tokenizer with both (AutoTokenizer.save_pretrained)"
      )
    self.types_tell_halves = both.type_ids == [0] * alone + [1] * (len(both.ids) - alone)

  def has(self, token: str) -> bool:
    return self._tokenizer.token_to_id(token) is not None

  def token(self, token_id: int) -> str | None:
    """What it calls the token of an id, None where it has none."""
    found: str | None = self._tokenizer.id_to_token(token_id)
    return found

  def table(self, texts: Iterable[str], max_tokens: int) -> TokenTable:
    """Token ids of each text cut at `max_tokens`, special tokens included; beside them, a block of texts is held."""
    # Arrays of the standard library, as they grow in place: numpy's would be copied once more to be put end to end.
    flat, offsets = array.array("i"), array.array("q", [0])
    too_long, longest, waiting = 0, 0, iter(texts)
    while block := list(itertools.islice(waiting, BLOCK)):
      for encoded in self._tokenizer.encode_batch_fast(block):
        ids = encoded.ids
        longest = max(longest, len(ids))
        if len(ids) > max_tokens:
          too_long += 1
          ids = ids[:max_tokens - 1] + ids[-1:]
        flat.extend(ids)
        offsets.append(len(flat))
    cut = Cut(at=max_tokens, texts=too_long, of=len(offsets) - 1, longest=longest)
    return TokenTable(np.frombuffer(flat, np.int32), np.frombuffer(offsets, np.int64), self.between, cut)


def pair(query: np.ndarray, passage: np.ndarray, between: Between) -> tuple[np.ndarray, np.ndarray]:
  """(token ids, halves: 0 then 1) of a pair: [CLS] query [SEP] passage [SEP], as BERT was taught sentence pairs.

  With RoBERTa's separator between the two, <s> query </s> </s> passage </s>: it is of the passage's half.  Where
  nothing opens a text, as with T5, query </s> passage </s>.
  """
  ids = np.concatenate([query, between.ids, passage[between.opening:]])
  halves = np.repeat(np.array([0, 1], np.int32), [len(query), len(ids) - len(query)])
  return ids, halves


def pair_lengths(queries: Lengths, passages: Lengths, between: Between) -> Lengths:
  """Tokens of pairs whose texts have so many, special tokens included."""
  return queries + len(between.ids) + passages - between.opening
