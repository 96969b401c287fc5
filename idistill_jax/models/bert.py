"""BERT's encoder: packed token rows -> token states.  (Devlin et al. 2019, arXiv 1810.04805; post-norm, erf GELU.)

RoBERTa, DistilBERT, MPNet and ELECTRA are this encoder too, but for what BertConfig tells apart; their names are in
FAMILIES.

Many texts share a row: attention stays within equal segment ids, positions restart in every text, segment 0 is
padding.  One text a row is the special case of one segment.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import encoder, family, layers
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BertConfig(encoder.Sizes):
  """And what else a family differs in from BERT.

  type_vocab_size: 0 where there are no token types.
  embedding_size: of embeddings that a product takes to the width of the states; None: they have it already.
  relative_buckets: of distances between tokens, each of which adds to the logits of attention; None adds nothing.
  """

  model_type: str = "bert"
  max_position_embeddings: int
  type_vocab_size: int
  types_tell_halves: bool = True
  relative_buckets: int | None = None
  embedding_size: int | None = None

  @property
  def lacks(self) -> frozenset[str]:
    return frozenset({"project/kernel", "project/bias"} if self.embedding_size is None else ())


_HEADS_IN, _HEADS = ("layer", "embed", "heads", "head_dim"), ("layer", "heads", "head_dim")
_BIAS = ("layer", "embed_out")

# A family has the modules that it has a name for.
PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("position/embedding", ("position", "embed"), "p d -> p d"),
  ("type/embedding", ("type", "embed"), "t d -> t d"),
  ("norm/scale", ("embed_out",), "d -> d"),
  ("norm/bias", ("embed_out",), "d -> d"),
  ("project/kernel", ("embed", "embed_out"), "d e -> e d"),
  ("project/bias", ("embed_out",), "d -> d"),
  ("relative/embedding", ("bucket", "heads"), "b h -> b h"),
  ("layers/query/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/query/bias", _HEADS, "(h k) -> h k"),
  ("layers/key/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/key/bias", _HEADS, "(h k) -> h k"),
  ("layers/value/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/value/bias", _HEADS, "(h k) -> h k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/out/bias", _BIAS, "d -> d"),
  ("layers/attention_norm/scale", _BIAS, "d -> d"),
  ("layers/attention_norm/bias", _BIAS, "d -> d"),
  ("layers/up/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/up/bias", ("layer", "mlp"), "f -> f"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("layers/down/bias", _BIAS, "d -> d"),
  ("layers/mlp_norm/scale", _BIAS, "d -> d"),
  ("layers/mlp_norm/bias", _BIAS, "d -> d"),
)


class Layer(nnx.Module):
  """Self-attention and MLP, each followed by residual and norm."""

  def __init__(self, cfg: encoder.Sizes, *, rngs: nnx.Rngs):
    d, h, k, f = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size
    self.query = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.key = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.value = layers.Dense("rld,dhk->rlhk", (d, h, k), (h, k), rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), (d,), rngs=rngs)
    self.attention_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)
    self.up = layers.Dense("rld,df->rlf", (d, f), (f,), rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), (d,), rngs=rngs)
    self.mlp_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products = execution.products
    q, k, v = (project(x_RxLxD, products) for project in (self.query, self.key, self.value))
    mixed_RxLxHxK = self.mixed(q, k, v, rows, beside, execution)
    x_RxLxD = self.attention_norm(x_RxLxD + self.out(mixed_RxLxHxK, products))
    hidden_RxLxF = layers.gelu(self.up(x_RxLxD, products))
    return self.mlp_norm(x_RxLxD + self.down(hidden_RxLxF, products))

  def mixed(self, q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
            beside: encoder.Beside, execution: execution_lib.Execution) -> jax.Array:
    """What attention makes of the values [R, L, H, K]."""
    return execution.attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, rows, beside.all)


class Bert(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    width = cfg.hidden_size if cfg.embedding_size is None else cfg.embedding_size
    self.word = layers.Embedding(cfg.vocab_size, width, rngs=rngs)
    self.position = layers.Embedding(cfg.max_position_embeddings, width, rngs=rngs)
    if cfg.type_vocab_size:
      self.type = layers.TypeEmbedding(cfg.type_vocab_size, width, cfg.types_tell_halves, rngs=rngs)
    self.norm = layers.LayerNorm(width, cfg.layer_norm_eps, rngs=rngs)
    if cfg.embedding_size is not None:
      self.project = layers.Dense("rle,ed->rld", (width, cfg.hidden_size), (cfg.hidden_size,), rngs=rngs)
    if cfg.relative_buckets is not None:
      self.relative = layers.RelativeBias(cfg.relative_buckets, cfg.num_attention_heads, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    cfg = self.cfg
    x_RxLxE = self.word(rows.token_ids) + self.position(rows.positions + cfg.first_position)
    if cfg.type_vocab_size:
      x_RxLxE = self.type.added(x_RxLxE, rows.halves)
    x_RxLxE = self.norm(x_RxLxE).astype(execution.states)
    x_RxLxD = x_RxLxE if cfg.embedding_size is None else self.project(x_RxLxE, execution.products)
    return encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution)

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Of all layers a bias of distances [H, L, L], if the family has one."""
    # Of the columns of a row alone: within a text they are as far apart as its positions.
    return encoder.Beside(all=None if self.cfg.relative_buckets is None else self.relative(rows.token_ids.shape[1]))


# -- The families that are this encoder -------------------------------------------------------------------------------

_NEEDS = family.SEES_ALL | {"hidden_act": "gelu", "position_embedding_type": "absolute"}
_EMBEDDINGS = {
  "word": "embeddings.word_embeddings", "position": "embeddings.position_embeddings",
  "type": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip
_LAYER = "encoder.layer.{i}."
_TENSORS = _EMBEDDINGS | {
  "layers/query": _LAYER + "attention.self.query",
  "layers/key": _LAYER + "attention.self.key",
  "layers/value": _LAYER + "attention.self.value",
  "layers/out": _LAYER + "attention.output.dense",
  "layers/attention_norm": _LAYER + "attention.output.LayerNorm",
  "layers/up": _LAYER + "intermediate.dense",
  "layers/down": _LAYER + "output.dense",
  "layers/mlp_norm": _LAYER + "output.LayerNorm",
}
_NO_TYPES = {"type_vocab_size": 0, "types_tell_halves": False}


def _padding(raw: Mapping[str, Any]) -> int:
  """Position of padding: its token's id, which is RoBERTa's where config.json does not tell."""
  return 1 if raw.get("pad_token_id") is None else raw["pad_token_id"]


BERT = family.Family(
  name="Bert", prefix="bert.", encoder=Bert, config=BertConfig, parameters=PARAMETERS, sizes=family.SIZES,
  needs=_NEEDS, tensors=_TENSORS, special_tokens=family.BRACKETED,
  other=lambda raw: {"types_tell_halves": raw["type_vocab_size"] > 1},
  classifier={"pooler": "pooler.dense", "classifier": "classifier"},
)
# Positions are counted from behind the one of padding.  (Liu et al. 2019, arXiv 1907.11692.)  The tokenizers in
# transformers give no types, so all tokens have type 0.
ROBERTA = dataclasses.replace(
  BERT, name="Roberta", prefix="roberta.", special_tokens=family.ANGLED,
  other=lambda raw: {"first_position": _padding(raw) + 1, "types_tell_halves": False},
  classifier={"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
)
_DISTIL = "transformer.layer.{i}."
# Sanh et al. 2019, arXiv 1910.01108.
DISTILBERT = dataclasses.replace(
  BERT, name="DistilBert", prefix="distilbert.", needs=family.SEES_ALL | {"activation": "gelu"},
  sizes={
    **family.without(family.SIZES, "type_vocab_size", "layer_norm_eps"), "hidden_size": "dim",
    "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
  },
  other=lambda raw: {"layer_norm_eps": 1e-12, **_NO_TYPES},
  tensors=family.without(_EMBEDDINGS, "type") | {
    "layers/query": _DISTIL + "attention.q_lin",
    "layers/key": _DISTIL + "attention.k_lin",
    "layers/value": _DISTIL + "attention.v_lin",
    "layers/out": _DISTIL + "attention.out_lin",
    "layers/attention_norm": _DISTIL + "sa_layer_norm",
    "layers/up": _DISTIL + "ffn.lin1",
    "layers/down": _DISTIL + "ffn.lin2",
    "layers/mlp_norm": _DISTIL + "output_layer_norm",
  },
  classifier={"pooler": "pre_classifier", "classifier": "classifier"}, activation=jax.nn.relu,
)
# Song et al. 2020, arXiv 2004.09297.  transformers puts positions behind 1, and distances into 32 buckets, whatever
# config.json says.
MPNET = dataclasses.replace(
  BERT, name="MPNet", prefix="mpnet.", needs=_NEEDS | {"relative_attention_num_buckets": 32},
  sizes=family.without(family.SIZES, "type_vocab_size"), special_tokens=family.ANGLED | {"unk_token": "[UNK]"},
  other=lambda raw: {"first_position": 2, "relative_buckets": 32, **_NO_TYPES},
  tensors=family.without(_TENSORS, "type") | {
    "relative": "encoder.relative_attention_bias",
    "layers/query": _LAYER + "attention.attn.q",
    "layers/key": _LAYER + "attention.attn.k",
    "layers/value": _LAYER + "attention.attn.v",
    "layers/out": _LAYER + "attention.attn.o",
    "layers/attention_norm": _LAYER + "attention.LayerNorm",
  },
  classifier=ROBERTA.classifier,
)


def _embedding_size(raw: Mapping[str, Any]) -> int | None:
  """Where it differs from the states' width; 128 in transformers where config.json does not tell."""
  size: int = raw.get("embedding_size", 128)
  return None if size == raw["hidden_size"] else size


# Clark et al. 2020, arXiv 2003.10555.  Ignored: what tells replaced tokens in the discriminator, and the generator's
# head for masked words.
ELECTRA = dataclasses.replace(
  BERT, name="Electra", prefix="electra.", tensors=_TENSORS | {"project": "embeddings_project"},
  other=lambda raw: {**BERT.other(raw), "embedding_size": _embedding_size(raw)},
  classifier=ROBERTA.classifier, activation=layers.gelu,
  ignored=("discriminator_predictions.*", "generator_predictions.*", "generator_lm_head.*"),
)

FAMILIES = {
  "bert": BERT,
  "roberta": ROBERTA,
  "xlm-roberta": dataclasses.replace(ROBERTA, name="XLMRoberta"),
  "camembert": dataclasses.replace(ROBERTA, name="Camembert"),
  "distilbert": DISTILBERT,
  "mpnet": MPNET,
  "electra": ELECTRA,
}
