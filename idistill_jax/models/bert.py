"""The BERT family: packed token rows -> token states.  (Devlin et al. 2019, arXiv 1810.04805; post-norm, erf GELU.)

Many texts share a row: attention stays within equal segment ids, positions restart in every text, segment 0 is
padding.  One text a row is the special case of one segment.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from flax import nnx

from idistill_jax.models import execution as execution_lib
from idistill_jax.models import layers
from idistill_jax.models import table as table_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig:
  """Sizes, under the names that Hugging Face's config.json gives them."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int
  type_vocab_size: int
  layer_norm_eps: float

  @property
  def head_dim(self) -> int:
    return self.hidden_size // self.num_attention_heads


class UnsupportedModelError(ValueError):
  """A checkpoint of another family, or with a feature that this encoder lacks."""


def read_config(folder: pathlib.Path) -> BertConfig:
  """BertConfig from a folder's config.json; raises UnsupportedModelError for what this encoder cannot express."""
  path = folder / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: not a model folder in Hugging Face layout")
  raw = json.loads(path.read_text())
  required = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
  }
  for key, value in required.items():
    if raw.get(key, value) != value:
      raise UnsupportedModelError(f"{path}: {key} is {raw[key]!r}; this encoder family needs {value!r}")
  fields = [f.name for f in dataclasses.fields(BertConfig)]
  missing = [name for name in fields if name not in raw]
  if missing:
    raise UnsupportedModelError(f"{path}: lacks {missing}")
  return BertConfig(**{name: raw[name] for name in fields})


_LAYER = "encoder.layer.{i}."
_HEADS_IN = ("layer", "embed", "heads", "head_dim")
_BIAS = ("layer", "embed_out")

#  our path                  logical axes                 HF key                                      HF layout -> ours
ROWS = (
  table_lib.Row("word/embedding", ("vocab", "embed"), "embeddings.word_embeddings.weight", "v d -> v d"),
  table_lib.Row("position/embedding", ("position", "embed"), "embeddings.position_embeddings.weight", "p d -> p d"),
  table_lib.Row("type/embedding", ("type", "embed"), "embeddings.token_type_embeddings.weight", "t d -> t d"),
  table_lib.Row("norm/scale", ("embed_out",), "embeddings.LayerNorm.weight", "d -> d"),
  table_lib.Row("norm/bias", ("embed_out",), "embeddings.LayerNorm.bias", "d -> d"),
  table_lib.Row("layers/query/kernel", _HEADS_IN, _LAYER + "attention.self.query.weight", "(h k) d -> d h k"),
  table_lib.Row(
    "layers/query/bias", ("layer", "heads", "head_dim"), _LAYER + "attention.self.query.bias", "(h k) -> h k"
  ),
  table_lib.Row("layers/key/kernel", _HEADS_IN, _LAYER + "attention.self.key.weight", "(h k) d -> d h k"),
  table_lib.Row("layers/key/bias", ("layer", "heads", "head_dim"), _LAYER + "attention.self.key.bias", "(h k) -> h k"),
  table_lib.Row("layers/value/kernel", _HEADS_IN, _LAYER + "attention.self.value.weight", "(h k) d -> d h k"),
  table_lib.Row(
    "layers/value/bias", ("layer", "heads", "head_dim"), _LAYER + "attention.self.value.bias", "(h k) -> h k"
  ),
  table_lib.Row(
    "layers/out/kernel",
    ("layer", "heads", "head_dim", "embed"),
    _LAYER + "attention.output.dense.weight",
    "d (h k) -> h k d",
  ),
  table_lib.Row("layers/out/bias", _BIAS, _LAYER + "attention.output.dense.bias", "d -> d"),
  table_lib.Row("layers/attention_norm/scale", _BIAS, _LAYER + "attention.output.LayerNorm.weight", "d -> d"),
  table_lib.Row("layers/attention_norm/bias", _BIAS, _LAYER + "attention.output.LayerNorm.bias", "d -> d"),
  table_lib.Row("layers/up/kernel", ("layer", "embed", "mlp"), _LAYER + "intermediate.dense.weight", "f d -> d f"),
  table_lib.Row("layers/up/bias", ("layer", "mlp"), _LAYER + "intermediate.dense.bias", "f -> f"),
  table_lib.Row("layers/down/kernel", ("layer", "mlp", "embed"), _LAYER + "output.dense.weight", "d f -> f d"),
  table_lib.Row("layers/down/bias", _BIAS, _LAYER + "output.dense.bias", "d -> d"),
  table_lib.Row("layers/mlp_norm/scale", _BIAS, _LAYER + "output.LayerNorm.weight", "d -> d"),
  table_lib.Row("layers/mlp_norm/bias", _BIAS, _LAYER + "output.LayerNorm.bias", "d -> d"),
)

# HF keys that belong to the family but not to an encoder: other tasks' heads, and a buffer of constants.
IGNORED = ("embeddings.position_ids", "cls.*")


def rows(prefix: str = "") -> tuple[table_lib.Row, ...]:
  """The family's rows, for an encoder that lives at `prefix` of a larger model (in our path only)."""
  return tuple(dataclasses.replace(row, path=prefix + row.path) for row in ROWS)


def table_of(cfg: BertConfig, extra_rows: tuple[table_lib.Row, ...], ignored: tuple[str, ...],
             prefix: str) -> table_lib.Table:
  """The table of a model that wraps this encoder at `prefix` and adds parameters of its own."""
  return table_lib.Table(
    rows=rows(prefix) + extra_rows,
    layers=cfg.num_hidden_layers,
    sizes={"h": cfg.num_attention_heads, "k": cfg.head_dim},
    ignored=IGNORED + ignored,
  )


class Layer(nnx.Module):
  """Self-attention and MLP, each followed by residual and norm."""

  def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
    d, h, k, f = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size
    self.query = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.key = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.value = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), (d,), rngs=rngs)
    self.attention_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)
    self.up = layers.Dense("rld,df->rlf", (d, f), (f,), rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), (d,), rngs=rngs)
    self.mlp_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, segments_RxL: jax.Array, execution: execution_lib.Execution) -> jax.Array:
    products = execution.products
    q, k, v = (project(x_RxLxD, products) for project in (self.query, self.key, self.value))
    x_RxLxD = self.attention_norm(x_RxLxD + self.out(execution.attend(q, k, v, segments_RxL), products))
    hidden_RxLxF = jax.nn.gelu(self.up(x_RxLxD, products), approximate=False)
    return self.mlp_norm(x_RxLxD + self.down(hidden_RxLxF, products))


class Bert(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
    self.word = layers.Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
    self.position = layers.Embedding(cfg.max_position_embeddings, cfg.hidden_size, rngs=rngs)
    self.type = layers.Embedding(cfg.type_vocab_size, cfg.hidden_size, rngs=rngs)
    self.norm = layers.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)
    # mypy: `...` is a filter too, which nnx's annotation of StateAxes leaves out.
    keys = nnx.split_rngs(splits=cfg.num_hidden_layers)(
      nnx.vmap(lambda rngs: Layer(cfg, rngs=rngs), in_axes=(nnx.StateAxes({...: 0}),), out_axes=0)  # type: ignore[arg-type]
    )
    self.layers = keys(rngs)

  def __call__(self, tokens: Any, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D] of packed rows (see `data.pack.Rows`)."""
    x_RxLxD = self.word(tokens.token_ids) + self.position(tokens.positions) + self.type(tokens.type_ids)
    x_RxLxD = self.norm(x_RxLxD).astype(execution.states)
    graph, stacked = nnx.split(self.layers)

    def layer(x_RxLxD: jax.Array, params: Any) -> tuple[jax.Array, None]:
      return nnx.merge(graph, params)(x_RxLxD, tokens.segment_ids, execution), None

    layer_kept = execution_lib.rematerialised(layer, execution.remat)
    return jax.lax.scan(layer_kept, x_RxLxD, stacked, unroll=execution.unroll_layers)[0]
