"""The retriever: one encoder for queries and passages, a text -> one vector."""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from idistill_jax.data import pack, tokenizer_files
from idistill_jax.models import compared, families, pooling, projection
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import table as table_lib

# As sentence-transformers calls modules, in the order in which they are read.
_MODULES = re.compile(r"Transformer, Pooling(, Dense)*(, Normalize)?")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingConfig:
  """How states become an embedding, as the checkpoint's sentence-transformers files say.

  projections: what pooled states go through, one behind the other.
  include_prompt: whether the tokens of a prompt before the text are pooled with its own.
  """

  pooling: pooling.Pooling
  normalize: bool
  projections: tuple[projection.Projection, ...] = ()
  include_prompt: bool = True

  def width(self, states: int) -> int:
    """Of an embedding of states that wide."""
    return self.projections[-1].out_features if self.projections else states


def read_embedding_config(folder: pathlib.Path, normalize: bool | None) -> EmbeddingConfig:
  """From modules.json and the modules' config.json; a plain encoder without them is mean-pooled, normalised.

  normalize: as in config.Encoder; None leaves it to the files.  Raises encoder.UnsupportedModelError for what is not
  read, code of the repository's own among it.
  """
  modules_path, modules = folder / compared.MODULES, compared.modules(folder)
  if modules is None:
    return EmbeddingConfig(pooling="mean", normalize=True if normalize is None else normalize)
  kinds = [_kind(module) for module in modules]
  if not _MODULES.fullmatch(", ".join(kinds)):
    raise encoder_lib.UnsupportedModelError(
      f"{modules_path}: modules {', '.join(kinds)} are not supported; Transformer, Pooling, any number of Dense, and "
      "Normalize or nothing, in this order, are"
    )
  paths = lambda wanted: [module["path"] for kind, module in zip(kinds, modules, strict=True) if kind == wanted]
  if place := paths("Transformer")[0]:
    raise encoder_lib.UnsupportedModelError(
      f"{modules_path}: has its Transformer in {place!r}, and what lies beside that file would be read: name the "
      f"folder {folder / place} in encoder.weights")
  path = folder / paths("Pooling")[0] / "config.json"
  raw, dense = tokenizer_files.parsed(path), paths("Dense")
  states = families.read_config(folder).hidden_size
  found = EmbeddingConfig(
    pooling=_pooling(raw, path), normalize=_normalizes(folder, kinds) if normalize is None else normalize,
    projections=projection.read(folder, dense, states), include_prompt=raw.get("include_prompt", True),
  )
  kept, width = compared.truncated(folder), found.width(states)
  if kept is not None and kept < width:
    raise encoder_lib.UnsupportedModelError(
      f"{folder / compared.FILE}: truncate_dim is {kept}, and embeddings are read with all of their {width} numbers: "
      "take it out, and set index.dimensions to search by the first of them")
  return found


def _kind(module: dict[str, Any]) -> str:
  """The class, where it is sentence-transformers'; another's, whatever it is called, by its whole name."""
  kind: str = module["type"]
  return kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind


def _normalizes(folder: pathlib.Path, kinds: Sequence[str]) -> bool:
  """By a module, or in that they are compared by cosines; who says nothing is taken by the modules."""
  match compared.stated(folder):
    case None | "dot" | "dot_product":
      return "Normalize" in kinds
    case "cosine":
      return True
    case "euclidean" if "Normalize" in kinds:  # of unit vectors, the order is that of cosines
      return True
    case other:
      raise encoder_lib.UnsupportedModelError(
        f"{folder / compared.FILE}: similarity_fn_name is {other!r}, and cosine or dot is supported; encoder.normalize "
        "says which of the two to take instead")


def _pooling(raw: dict[str, Any], path: pathlib.Path) -> pooling.Pooling:
  """sentence-transformers wrote one boolean a mode before it wrote `pooling_mode`; both forms are read."""
  stated = {key: on for key, on in raw.items() if key.startswith("pooling_mode_")}
  if "pooling_mode" in raw:
    chosen = [raw["pooling_mode"]] if isinstance(raw["pooling_mode"], str) else raw["pooling_mode"]
  else:
    chosen = [key.removeprefix("pooling_mode_") for key, on in stated.items() if on] if stated else ["mean"]
  match chosen:
    case ["mean_tokens"] | ["mean"]:
      return "mean"
    case ["cls_token"] | ["cls"]:
      return "cls"
    case ["lasttoken"]:
      return "last"
  raise encoder_lib.UnsupportedModelError(f"{path}: pooling {chosen} is not supported; mean, cls or lasttoken is")


class DualEncoder(nnx.Module):
  """Packed rows -> embeddings [T, E], float32."""

  def __init__(self, cfg: encoder_lib.Sizes, embedding: EmbeddingConfig, *, rngs: nnx.Rngs):
    self.encoder = families.encoder(cfg, rngs)
    self.embedding = embedding
    self.projections = projection.Projections(embedding.projections, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    pooled_TxD = pooling.POOLINGS[self.embedding.pooling](self.encoder(rows, execution), rows)
    vectors_TxE = self.projections(pooled_TxD)
    return pooling.unit(vectors_TxE) if self.embedding.normalize else vectors_TxE


def table(cfg: encoder_lib.Sizes, projections: Sequence[projection.Projection] = ()) -> table_lib.Table:
  return families.table_of(cfg, projection.rows(projections, "projections"))
