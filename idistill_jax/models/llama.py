"""Llama's layers as an encoder: packed token rows -> token states.  (Touvron et al. 2023, arXiv 2302.13971.)

Norms stand before attention and MLP, divide by the root mean square alone and have no bias, nor has a product; several
heads of queries share one of keys and values (Ainslie et al. 2023, arXiv 2305.13245); positions turn queries and keys;
the MLP is gated.  In EuroBERT (Boizard et al. 2025, arXiv 2503.05500) a token sees all of its text, in Qwen3 (Zhang et
al. 2025, arXiv 2506.05176) what stands before it, unless config.json says otherwise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import attention, encoder, family, layers, rotary
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LlamaConfig(encoder.Sizes):
  """And what else it is made of.

  num_key_value_heads: of keys and values.  theta: base of the turns' frequencies.
  causal: whether a token sees but what stands before it.  norms_heads: whether queries and keys are normalised.
  """

  types_tell_halves: bool = False
  num_key_value_heads: int
  theta: float
  causal: bool
  norms_heads: bool

  @property
  def lacks(self) -> frozenset[str]:
    return frozenset(() if self.norms_heads else ("layers/query_norm/scale", "layers/key_norm/scale"))


_OF_KEYS = ("layer", "embed", "heads", "head_dim")
PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("layers/attention_norm/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/query/kernel", ("layer", "embed", "heads", "head_dim"), "(h k) d -> d h k"),
  ("layers/key/kernel", _OF_KEYS, "(g k) d -> d g k"),
  ("layers/value/kernel", _OF_KEYS, "(g k) d -> d g k"),
  ("layers/query_norm/scale", ("layer", "head_dim"), "k -> k"),
  ("layers/key_norm/scale", ("layer", "head_dim"), "k -> k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/mlp_norm/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/gate/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/up/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("final_norm/scale", ("embed_out",), "d -> d"),
)


class Layer(nnx.Module):
  """Self-attention and gated MLP, each of normalised states, and added to them."""

  def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    d, h, g, k, f, eps = (cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim,
                          cfg.intermediate_size, cfg.layer_norm_eps)
    self.attention_norm = layers.RmsNorm(d, eps, rngs=rngs)
    self.query = layers.Dense("rld,dhk->rlhk", (d, h, k), None, rngs=rngs)
    self.key = layers.Dense("rld,dgk->rlgk", (d, g, k), None, rngs=rngs)
    self.value = layers.Dense("rld,dgk->rlgk", (d, g, k), None, rngs=rngs)
    if cfg.norms_heads:
      self.query_norm, self.key_norm = layers.RmsNorm(k, eps, rngs=rngs), layers.RmsNorm(k, eps, rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), None, rngs=rngs)
    self.mlp_norm = layers.RmsNorm(d, eps, rngs=rngs)
    self.gate = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.up = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), None, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products = execution.products
    mixed_RxLxHxK = self._mixed(self.attention_norm(x_RxLxD), rows, execution)
    x_RxLxD = x_RxLxD + self.out(mixed_RxLxHxK, products)
    read_RxLxD = self.mlp_norm(x_RxLxD)
    gated_RxLxF = layers.silu(self.gate(read_RxLxD, products)) * self.up(read_RxLxD, products)
    return x_RxLxD + self.down(gated_RxLxF, products)

  def _mixed(self, x_RxLxD: jax.Array, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """What attention makes of the values [R, L, H, K]."""
    cfg, products = self.cfg, execution.products
    q, k, v = (project(x_RxLxD, products) for project in (self.query, self.key, self.value))
    if cfg.norms_heads:
      q, k = self.query_norm(q), self.key_norm(k)
    frequencies = rotary.frequencies(cfg.theta, cfg.head_dim)
    q, k = (rotary.turned(one, rows.positions, frequencies) for one in (q, k))
    k, v = (attention.of_each_query(one, cfg.num_attention_heads) for one in (k, v))
    return execution.attend(q, k, v, rows, None, attention.Window(None, 0) if cfg.causal else None)


class Llama(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: LlamaConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.word = layers.Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
    self.final_norm = layers.RmsNorm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = self.word(rows.token_ids).astype(execution.states)
    return self.final_norm(encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution))

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Nothing: all layers are alike."""
    return encoder.Beside()


def check_shared(heads: int, shared: int) -> None:
  """Raises encoder.UnsupportedModelError where not as many heads of queries share each of keys."""
  if heads % shared:
    raise encoder.UnsupportedModelError(f"num_attention_heads is {heads}, no multiple of {shared} num_key_value_heads")


def _other(raw: Mapping[str, Any], *, width: int | None, causal: bool, norms_heads: bool) -> Mapping[str, Any]:
  """Of config.json the fields of LlamaConfig that are no sizes; width: where it does not tell, None for a share of
  the states'.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  heads = raw["num_attention_heads"]
  shared = raw.get("num_key_value_heads") or heads
  check_shared(heads, shared)
  kinds = set(raw.get("layer_types") or ()) - {"full_attention"}
  if kinds:
    raise encoder.UnsupportedModelError(f"layer_types has {sorted(kinds)}; full_attention is supported")
  width = raw.get("head_dim") or width or raw["hidden_size"] // heads
  rotary.check_width(width)
  return {
    "width": width, "num_key_value_heads": shared,
    "theta": rotary.theta(raw.get("rope_parameters") or {}, raw.get("rope_theta", 10_000.0)),
    "causal": causal, "norms_heads": norms_heads,
  }


_NEEDS = {"hidden_act": "silu", "rope_scaling": None, "attention_bias": False, "mlp_bias": False}
_LAYER = "layers.{i}."
TENSORS = {
  "word": "embed_tokens",
  "layers/attention_norm": _LAYER + "input_layernorm",
  "layers/query": _LAYER + "self_attn.q_proj",
  "layers/key": _LAYER + "self_attn.k_proj",
  "layers/value": _LAYER + "self_attn.v_proj",
  "layers/query_norm": _LAYER + "self_attn.q_norm",
  "layers/key_norm": _LAYER + "self_attn.k_norm",
  "layers/out": _LAYER + "self_attn.o_proj",
  "layers/mlp_norm": _LAYER + "post_attention_layernorm",
  "layers/gate": _LAYER + "mlp.gate_proj",
  "layers/up": _LAYER + "mlp.up_proj",
  "layers/down": _LAYER + "mlp.down_proj",
  "final_norm": "norm",
}
EUROBERT = family.Family(
  name="EuroBert", prefix="model.", encoder=Llama, config=LlamaConfig, parameters=PARAMETERS,
  sizes=family.without(family.SIZES, "type_vocab_size") | {"layer_norm_eps": "rms_norm_eps"},
  other=lambda raw: _other(raw, width=None, causal=False, norms_heads=False),
  needs=family.SEES_ALL | _NEEDS,
  tensors=TENSORS,
  # Its sequence classifier scores each token and takes their mean.
  classifier={},
  special_tokens={
    "bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>", "mask_token": "<|mask|>",
  },
)
# Its sequence classifier reads the last token, without a pooler.
QWEN3 = dataclasses.replace(
  EUROBERT, name="Qwen3",
  other=lambda raw: _other(raw, width=128, causal=raw.get("is_causal", True), norms_heads=True),
  needs=_NEEDS | {"use_sliding_window": False},
  special_tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
)

FAMILIES = {"eurobert": EUROBERT, "qwen3": QWEN3}
