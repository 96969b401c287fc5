"""The retriever: one encoder for queries and passages, a text -> one vector."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import families, pooling
from idistill_jax.models import table as table_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
  """How states become an embedding, as the checkpoint's sentence-transformers files say.

  include_prompt: whether the tokens of a prompt before the text are pooled with its own.
  """

  pooling: pooling.Pooling
  normalize: bool
  include_prompt: bool = True


def read_embedding_config(folder: pathlib.Path, normalize: bool | None) -> EmbeddingConfig:
  """From modules.json and the pooling module's config.json; a plain encoder without them is mean-pooled, normalised.

  normalize: as in config.Encoder; None leaves it to the files.
  """
  modules_path = folder / "modules.json"
  if not modules_path.exists():
    return EmbeddingConfig(pooling="mean", normalize=True if normalize is None else normalize)
  modules = json.loads(modules_path.read_text())
  kinds = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in modules}
  unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
  if unknown:
    raise encoder_lib.UnsupportedModelError(f"{modules_path}: modules {sorted(unknown)} are not supported")
  if "Pooling" not in kinds:
    raise encoder_lib.UnsupportedModelError(f"{modules_path}: has no Pooling module")
  path = folder / kinds["Pooling"] / "config.json"
  raw = json.loads(path.read_text())
  return EmbeddingConfig(
    pooling=_pooling(raw, path), normalize="Normalize" in kinds if normalize is None else normalize,
    include_prompt=raw.get("include_prompt", True),
  )


def _pooling(raw: dict[str, Any], path: pathlib.Path) -> pooling.Pooling:
  """sentence-transformers wrote one boolean a mode before it wrote `pooling_mode`; both forms are read."""
  if isinstance(raw.get("pooling_mode"), str):
    chosen = [raw["pooling_mode"]]
  else:
    chosen = [key.removeprefix("pooling_mode_") for key, on in raw.items() if key.startswith("pooling_mode_") and on]
  match chosen:
    case ["mean_tokens"] | ["mean"]:
      return "mean"
    case ["cls_token"] | ["cls"]:
      return "cls"
  raise encoder_lib.UnsupportedModelError(f"{path}: pooling {chosen} is not supported; mean or cls is")


class DualEncoder(nnx.Module):
  """Packed rows -> embeddings [T, E], float32."""

  def __init__(self, cfg: encoder_lib.Sizes, embedding: EmbeddingConfig, *, rngs: nnx.Rngs):
    self.encoder = families.encoder(cfg, rngs)
    self.embedding = embedding

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    vectors_TxE = pooling.POOLINGS[self.embedding.pooling](self.encoder(rows, execution), rows)
    return pooling.unit(vectors_TxE) if self.embedding.normalize else vectors_TxE


def table(cfg: encoder_lib.Sizes) -> table_lib.Table:
  return families.table_of(cfg, ())
