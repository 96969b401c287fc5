"""The ranker's `pair_cosine` head for sentence-transformers: token states of a pair -> 20 x cosine of its halves.

An exported ranker with this head names this class in modules.json.  sentence-transformers imports classes of other
packages only where it is told to:  CrossEncoder(folder, trust_remote_code=True), with idistill_jax installed.
"""

from typing import ClassVar

import torch
from sentence_transformers.base.modules import Module


class PairCosine(Module):
  """features["scores"] [pairs]; the halves are told apart by token type, padding by the attention mask."""

  config_keys: ClassVar[list[str]] = ["scale"]

  def __init__(self, scale: float):
    super().__init__()
    self.scale = scale

  def forward(self, features: dict[str, torch.Tensor], **kwargs: object) -> dict[str, torch.Tensor]:
    real, types = features["attention_mask"], features["token_type_ids"]
    query, passage = (self._mean(features["token_embeddings"], real * (types == half)) for half in (0, 1))
    features["scores"] = self.scale * torch.nn.functional.cosine_similarity(query, passage, dim=-1)
    return features

  def _mean(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.to(states.dtype)[:, :, None]
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

  def save(self, output_path: str, *args: object, safe_serialization: bool = True, **kwargs: object) -> None:
    self.save_config(output_path)
