"""BERT's encoder with positions that turn and a gated MLP: packed token rows -> token states.

NomicBERT (Nussbaum et al. 2024, arXiv 2402.01613) and mGTE (Zhang et al. 2024, arXiv 2407.19669) are this encoder;
their names are in FAMILIES.  Norms stand behind attention and MLP, as in BERT.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import encoder, family, layers, rotary
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RotaryBertConfig(encoder.Sizes):
  """And what the two differ in.

  type_vocab_size: 0 where there are no token types.  theta: base of the turns' frequencies.
  biased: whether attention and the MLP's last product add one.  fused: whether one tensor holds both of the MLP's first
  products.  activation: of the one that gates the other.
  """

  type_vocab_size: int
  theta: float
  biased: bool
  fused: bool
  activation: Callable[[jax.Array], jax.Array]

  @property
  def lacks(self) -> frozenset[str]:
    types = () if self.type_vocab_size else ("type/embedding",)
    return frozenset((*types, *(() if self.biased else _BIASES)))


_WIDTH = ("layer", "embed_out")
_BIASES = ("layers/qkv/bias", "layers/out/bias", "layers/down/bias")
_PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("type/embedding", ("type", "embed"), "t d -> t d"),
  ("norm/scale", ("embed_out",), "d -> d"),
  ("norm/bias", ("embed_out",), "d -> d"),
  ("layers/qkv/kernel", ("layer", "embed", "qkv", "heads", "head_dim"), "(three h k) d -> d three h k"),
  ("layers/qkv/bias", ("layer", "qkv", "heads", "head_dim"), "(three h k) -> three h k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/out/bias", _WIDTH, "d -> d"),
  ("layers/attention_norm/scale", _WIDTH, "d -> d"),
  ("layers/attention_norm/bias", _WIDTH, "d -> d"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("layers/down/bias", _WIDTH, "d -> d"),
  ("layers/mlp_norm/scale", _WIDTH, "d -> d"),
  ("layers/mlp_norm/bias", _WIDTH, "d -> d"),
)
_APART: tuple[encoder.Parameter, ...] = (
  ("layers/up/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/gate/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
)
_FUSED: tuple[encoder.Parameter, ...] = (
  ("layers/up/kernel", ("layer", "embed", "gate", "mlp"), "(two f) d -> d two f"),
)


class Layer(nnx.Module):
  """Self-attention and gated MLP, each followed by residual and norm."""

  def __init__(self, cfg: RotaryBertConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    d, h, k, f = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size
    self.qkv = layers.Dense("rld,dthk->rlthk", (d, 3, h, k), (3, h, k) if cfg.biased else None, rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), (d,) if cfg.biased else None, rngs=rngs)
    self.attention_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)
    if cfg.fused:
      self.up = layers.Dense("rld,dtf->rltf", (d, 2, f), None, rngs=rngs)
    else:
      self.up = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
      self.gate = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), (d,) if cfg.biased else None, rngs=rngs)
    self.mlp_norm = layers.LayerNorm(d, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products, turns = execution.products, rotary.frequencies(self.cfg.theta, self.cfg.head_dim)
    qkv_RxLx3xHxK = self.qkv(x_RxLxD, products)
    q, k = (rotary.turned(qkv_RxLx3xHxK[:, :, i], rows.positions, turns) for i in (0, 1))
    mixed_RxLxHxK = execution.attend(q, k, qkv_RxLx3xHxK[:, :, 2], rows)
    x_RxLxD = self.attention_norm(x_RxLxD + self.out(mixed_RxLxHxK, products))
    return self.mlp_norm(x_RxLxD + self.down(self._gated(x_RxLxD, products), products))

  def _gated(self, x_RxLxD: jax.Array, products: Any) -> jax.Array:
    up = self.up(x_RxLxD, products)
    if not self.cfg.fused:
      return up * self.cfg.activation(self.gate(x_RxLxD, products))
    return up[:, :, 0] * self.cfg.activation(up[:, :, 1])


class RotaryBert(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: RotaryBertConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.word = layers.Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
    if cfg.type_vocab_size:
      self.type = layers.TypeEmbedding(cfg.type_vocab_size, cfg.hidden_size, cfg.types_tell_halves, rngs=rngs)
    self.norm = layers.LayerNorm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = self.word(rows.token_ids)
    if self.cfg.type_vocab_size:
      x_RxLxD = self.type.added(x_RxLxD, rows.halves)
    x_RxLxD = self.norm(x_RxLxD).astype(execution.states)
    return encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution)

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Nothing: all layers turn queries and keys alike."""
    return encoder.Beside()


def _other(raw: Mapping[str, Any], *, theta: float, **fields: Any) -> Mapping[str, Any]:
  """Of config.json the fields of RotaryBertConfig that are no sizes; theta: where it does not tell.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  width = raw["hidden_size"] // raw["num_attention_heads"]
  if raw.get("head_dim") not in (None, width):
    raise encoder.UnsupportedModelError(f"head_dim is {raw['head_dim']}; {width}, a head's share, is supported")
  rotary.check_width(width)
  stated = rotary.theta(raw.get("rope_parameters") or {}, raw.get("rope_theta", theta))
  return {"types_tell_halves": raw["type_vocab_size"] > 1, "theta": stated, **fields}


_NOMIC_LAYER = "encoder.layers.{i}."
# Names of tensors are those of the authors' own code, and so is the former config.json, in GPT-2's words; transformers
# reads and writes these names too.
NOMIC = family.Family(
  name="NomicBert", prefix="nomic_bert.", encoder=RotaryBert, config=RotaryBertConfig, parameters=_PARAMETERS + _APART,
  sizes=family.SIZES, special_tokens=family.BRACKETED,
  other=lambda raw: _other(raw, theta=1000.0, biased=False, fused=False, activation=layers.silu),
  former={
    "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_inner": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps", "rotary_emb_base": "rope_theta",
    # Beyond these, the authors' code stretches positions.
    "max_trained_positions": "max_position_embeddings",
  },
  needs=family.SEES_ALL | {
    "hidden_act": "silu", "rope_scaling": None, "activation_function": "swiglu", "prenorm": False, "causal": False,
    "qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "use_rms_norm": False, "num_experts": 0,
    "parallel_block": False, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None, "scale_attn_by_inverse_layer_idx": False,
  },
  tensors={
    "word": "embeddings.word_embeddings", "type": "embeddings.token_type_embeddings", "norm": "emb_ln",
    "layers/qkv": _NOMIC_LAYER + "attn.Wqkv",
    "layers/out": _NOMIC_LAYER + "attn.out_proj",
    "layers/attention_norm": _NOMIC_LAYER + "norm1",
    "layers/up": _NOMIC_LAYER + "mlp.fc11",
    "layers/gate": _NOMIC_LAYER + "mlp.fc12",
    "layers/down": _NOMIC_LAYER + "mlp.fc2",
    "layers/mlp_norm": _NOMIC_LAYER + "norm2",
  },
  classifier={"pooler": "pooler.dense", "classifier": "classifier"},
)
_GTE_LAYER = "encoder.layer.{i}."
GTE = dataclasses.replace(
  NOMIC, name="Gte", prefix="gte.", former_prefixes=("new.",), parameters=_PARAMETERS + _FUSED, former={},
  special_tokens=family.ANGLED,
  other=lambda raw: _other(raw, theta=160_000.0, biased=True, fused=True, activation=layers.gelu),
  needs=family.SEES_ALL | {
    "hidden_act": "gelu", "rope_scaling": None, "position_embedding_type": "rope", "pack_qkv": True,
    "layer_norm_type": "layer_norm", "logn_attention_scale": False,
  },
  tensors={
    "word": "embeddings.word_embeddings", "type": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
    "layers/qkv": _GTE_LAYER + "attention.qkv_proj",
    "layers/out": _GTE_LAYER + "attention.o_proj",
    "layers/attention_norm": _GTE_LAYER + "attn_ln",
    "layers/up": _GTE_LAYER + "mlp.up_gate_proj",
    "layers/down": _GTE_LAYER + "mlp.down_proj",
    "layers/mlp_norm": _GTE_LAYER + "mlp_ln",
  },
)

FAMILIES = {"nomic_bert": NOMIC, "gte": GTE}
