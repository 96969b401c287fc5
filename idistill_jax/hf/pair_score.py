"""The ranker's head "pair_cosine" for sentence-transformers: a query and a passage -> the whole score.

    CrossEncoder(folder, trust_remote_code=True).predict([(query, passage), ...])
    CrossEncoder(modules=[PairScore.load(folder)]).predict([(query, passage), ...])  # with this file's own class

score = scale x cosine of the two halves of the pair read together
        + weight x similarity of query and passage as the retriever in similarity/ embeds each alone, with its prompts

The second term is there where the folder has a retriever.  This file lies in every folder that is exported with that
head, and needs torch and sentence-transformers alone.
"""

import os
from typing import Any, ClassVar

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer

RETRIEVER = "similarity"
# Features of each text alone, as in "query_input_ids".
ALONE, READ = ("query", "passage"), ("input_ids", "attention_mask")


class PairScore(Transformer):
  """features["scores"] float32 [pairs], of pairs tokenised as [CLS] query [SEP] passage [SEP], or without the [CLS].

  Each text is cut here, not by the tokenizer, which knows one length for a pair while training had one for each text.
  query_tokens, passage_tokens: where they are cut to be read together, special tokens included.
  opening: how many special tokens the tokenizer puts before a text, and before the query of a pair: [CLS], or none.
  between: how many more it puts behind the query's [SEP], as RoBERTa's; they are of the passage.
  types_tell_halves: whether the encoder is told by token types which text a token is of.
  similarity: {"weight", "prompts", "tokens"}, what the retriever reads before query and passage and where it cuts them,
  prompt included; or None.
  """

  config_keys: ClassVar[list[str]] = [
    *Transformer.config_keys, "max_seq_length", "scale", "query_tokens", "passage_tokens", "opening",
    "between", "types_tell_halves", "similarity",
  ]

  def __init__(
    self, model_name_or_path: str, *, scale: float, query_tokens: int, passage_tokens: int, opening: int,
    between: int, types_tell_halves: bool, similarity: dict[str, Any] | None, **kwargs: Any,
  ):
    super().__init__(model_name_or_path, **kwargs)
    self.scale, self.query_tokens, self.passage_tokens = scale, query_tokens, passage_tokens
    self.opening, self.between = opening, between
    self.types_tell_halves, self.similarity = types_tell_halves, similarity
    self.retriever: SentenceTransformer | None = None

  @classmethod
  def load(cls, model_name_or_path: str, subfolder: str = "", **how: Any) -> "PairScore":
    """From a folder or a repository on the Hub, the retriever with it."""
    made = super().load(model_name_or_path, subfolder=subfolder, **how)
    if made.similarity is not None:
      where = {key: how.get(key) for key in ("token", "cache_folder", "revision")}
      offline = how.get("local_files_only", False)
      folder = cls.load_dir_path(model_name_or_path, RETRIEVER, local_files_only=offline, **where)
      if folder is None:
        raise FileNotFoundError(f"{model_name_or_path} has no folder {RETRIEVER}/, which its scores need")
      # On the CPU at first: whoever holds this module moves all of it.
      made.retriever = SentenceTransformer(
        folder, device="cpu", local_files_only=True, backend=how.get("backend", "torch"),
        model_kwargs=how.get("model_kwargs"), config_kwargs=how.get("config_kwargs"),
      )
    return made

  def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
    super().save(output_path, *args, **kwargs)
    if self.retriever is not None:
      self.retriever.save(os.path.join(output_path, RETRIEVER), create_model_card=False)

  def preprocess(self, inputs: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Beside the pairs' tokens, those of their texts alone: behind a prompt, a text's first tokens may be others."""
    features = super().preprocess(inputs, *args, **kwargs)
    # By the tokenizer's own account: not all give types, and a text may have a [SEP] of its own.
    features["query_length"] = torch.tensor([
      [self.opening + features.sequence_ids(pair).count(0) + 1] for pair in range(len(features["input_ids"]))
    ])
    if self.similarity is not None:
      for half, name in enumerate(ALONE):
        prompt, cut = self.similarity["prompts"][half], self.similarity["tokens"][half]
        texts = [prompt + pair[half] for pair in inputs]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=cut, return_tensors="pt")
        features |= {f"{name}_{key}": tokens[key] for key in READ}
    return features

  def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
    # [pairs, 1]: tokens of [CLS] query [SEP], after which the passage begins, and of passage [SEP].
    ids, begin = features["input_ids"], features["query_length"]
    rest = features["attention_mask"].sum(1, keepdim=True) - begin
    # The query's own [SEP] goes where the query is cut.
    query = begin.clamp(max=self.query_tokens)
    ids = ids.scatter(1, query - 1, ids.gather(1, begin - 1))
    passage = rest.clamp(max=self.passage_tokens - self.opening + self.between)
    together = _rows(ids, query, passage, begin, self.tokenizer.pad_token_id)
    halves = torch.arange(together["input_ids"].shape[1], device=ids.device) >= query
    if self.types_tell_halves:
      together["token_type_ids"] = halves * together["attention_mask"]
    states = super().forward(dict(together), **kwargs)[self.module_output_name]
    means = (_mean(states, together["attention_mask"] * (halves == half)) for half in (False, True))
    scores = self.scale * torch.nn.functional.cosine_similarity(*means, dim=-1)

    if self.retriever is not None and self.similarity is not None:
      alone = ({key: features[f"{name}_{key}"] for key in READ} for name in ALONE)
      query_E, passage_E = (self.retriever(text)["sentence_embedding"].float() for text in alone)
      scores = scores + self.similarity["weight"] * (query_E * passage_E).sum(-1)
    features["scores"] = scores
    return features


def _rows(ids: torch.Tensor, head: torch.Tensor, tail: torch.Tensor, begin: torch.Tensor,
          pad: int) -> dict[str, torch.Tensor]:
  """Features of rows [pairs, longest]: the first `head` tokens of ids [pairs, L], then `tail` tokens from `begin` on.

  head, tail, begin: [pairs, 1].  The last token is [SEP], as where a tokenizer had cut.  pad: what fills the rows.
  """
  length = head + tail
  place = torch.arange(int(length.max()), device=ids.device)[None, :]
  source = torch.where(place < head, place, place - head + begin)
  real = (place < length).long()
  cut = ids.gather(1, source.clamp(max=ids.shape[1] - 1))
  # Wherever the query was cut, the place before the passage still holds a [SEP].
  cut = torch.where(place == length - 1, ids.gather(1, begin - 1), cut)
  return {"input_ids": torch.where(real == 1, cut, pad), "attention_mask": real}


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
  """Mean [pairs, D], float32, of the states [pairs, L, D] that the mask [pairs, L] keeps."""
  weights = mask.float()[:, :, None]
  return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
