"""Gemma 3's layers as an encoder: packed token rows -> token states.  (Gemma Team 2025, arXiv 2503.19786.)

Norms stand before and behind attention and MLP, divide by the root mean square alone, and multiply by one and a
parameter more; no product has a bias.  Several heads of queries share one of keys and values; queries and keys are
normalised, and turned by positions; most layers attend to near tokens alone; the MLP is gated.  In EmbeddingGemma
(Schechter Vera et al. 2025, arXiv 2509.20354) a token sees what is before it and what is behind.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import attention, encoder, family, layers, llama, rotary, windowed
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class GemmaConfig(windowed.Sizes):
  """And what else it is made of.

  num_key_value_heads: of keys and values.  scalar: logits are divided by the root of it, whatever a head's width.
  """

  model_type: str = "gemma3_text"
  num_key_value_heads: int
  scalar: float


def read(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """config.json -> the fields of GemmaConfig that are no sizes, in either form of it, of transformers 4 and 5.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  if raw.get("use_bidirectional_attention") is not True:
    raise encoder.UnsupportedModelError(
      f"use_bidirectional_attention is {raw.get('use_bidirectional_attention')!r}; this encoder family needs True, as "
      "EmbeddingGemma has it: without it Gemma writes texts and embeds none")
  heads, shared = raw["num_attention_heads"], raw["num_key_value_heads"]
  llama.check_shared(heads, shared)
  window = raw.get("sliding_window", 4096)
  if not isinstance(window, int):
    raise encoder.UnsupportedModelError(f"sliding_window is {window!r}; a number is supported")
  count, every = raw["num_hidden_layers"], raw.get("sliding_window_pattern", 6)
  kinds = ["sliding_attention" if i % every else "full_attention" for i in range(1, count + 1)]
  layers_see = windowed.read(raw, kinds, of_global=windowed.Former("rope_theta", 1_000_000.0),
                             of_local=windowed.Former("rope_local_base_freq", 10_000.0))
  # A causal token's window is given; half of it lies on either side of one that sees both.
  return {**layers_see, "reach": window // 2}


_OF_KEYS = ("layer", "embed", "heads", "head_dim")
_WIDTH = ("layer", "embed_out")
PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("layers/attention_norm/offset", _WIDTH, "d -> d"),
  ("layers/query/kernel", ("layer", "embed", "heads", "head_dim"), "(h k) d -> d h k"),
  ("layers/key/kernel", _OF_KEYS, "(g k) d -> d g k"),
  ("layers/value/kernel", _OF_KEYS, "(g k) d -> d g k"),
  ("layers/query_norm/offset", ("layer", "head_dim"), "k -> k"),
  ("layers/key_norm/offset", ("layer", "head_dim"), "k -> k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/attended_norm/offset", _WIDTH, "d -> d"),
  ("layers/mlp_norm/offset", _WIDTH, "d -> d"),
  ("layers/gate/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/up/kernel", ("layer", "embed", "mlp"), "f d -> d f"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("layers/gated_norm/offset", _WIDTH, "d -> d"),
  ("final_norm/offset", ("embed_out",), "d -> d"),
)


class OffsetNorm(nnx.Module):
  """Divides by the root mean square, and multiplies by 1 + offset, which is what checkpoints hold."""

  def __init__(self, width: int, eps: float, *, rngs: nnx.Rngs):
    self.eps = eps
    self.offset = nnx.Param(jnp.zeros((width,), jnp.float32))

  def __call__(self, x: jax.Array) -> jax.Array:
    return layers.rms_normalised(x, 1.0 + self.offset[...], self.eps)


class Layer(nnx.Module):
  """Self-attention and gated MLP, each of normalised states, and normalised once more to be added to them."""

  def __init__(self, cfg: GemmaConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    d, h, g, k, f = (cfg.hidden_size, cfg.num_attention_heads, cfg.num_key_value_heads, cfg.head_dim,
                     cfg.intermediate_size)
    norm = lambda width: OffsetNorm(width, cfg.layer_norm_eps, rngs=rngs)
    self.attention_norm, self.attended_norm, self.mlp_norm, self.gated_norm = (norm(d) for _ in range(4))
    self.query = layers.Dense("rld,dhk->rlhk", (d, h, k), None, rngs=rngs)
    self.key = layers.Dense("rld,dgk->rlgk", (d, g, k), None, rngs=rngs)
    self.value = layers.Dense("rld,dgk->rlgk", (d, g, k), None, rngs=rngs)
    self.query_norm, self.key_norm = norm(k), norm(k)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), None, rngs=rngs)
    self.gate = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.up = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), None, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products = execution.products
    mixed_RxLxHxK = self._mixed(self.attention_norm(x_RxLxD), rows, beside.each, execution)
    x_RxLxD = x_RxLxD + self.attended_norm(self.out(mixed_RxLxHxK, products))
    read_RxLxD = self.mlp_norm(x_RxLxD)
    gated_RxLxF = layers.gelu_by_tanh(self.gate(read_RxLxD, products)) * self.up(read_RxLxD, products)
    return x_RxLxD + self.gated_norm(self.down(gated_RxLxF, products))

  def _mixed(self, x_RxLxD: jax.Array, rows: pack.Rows, sight: windowed.Sight,
             execution: execution_lib.Execution) -> jax.Array:
    """What attention makes of the values [R, L, H, K]."""
    cfg, products = self.cfg, execution.products
    q, k, v = (project(x_RxLxD, products) for project in (self.query, self.key, self.value))
    # `attend` divides the logits by the root of a head's width.
    q, k = self.query_norm(q) * (cfg.head_dim / cfg.scalar) ** 0.5, self.key_norm(k)
    q, k = (rotary.turned(one, rows.positions, sight.frequencies) for one in (q, k))
    k, v = (attention.of_each_query(one, cfg.num_attention_heads) for one in (k, v))
    return execution.attend(q, k, v, rows, None, sight.window)


class Gemma(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: GemmaConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.word = layers.Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
    self.final_norm = OffsetNorm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = (self.word(rows.token_ids) * self.cfg.hidden_size ** 0.5).astype(execution.states)
    return self.final_norm(encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution))

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """How far each layer sees, and how it turns."""
    return encoder.Beside(each=self.cfg.sight(rows.token_ids.shape[1]))


_LAYER = "layers.{i}."
# Its sequence classifier reads the last token, without a pooler.
GEMMA = family.Family(
  name="Gemma3Text", prefix="model.", encoder=Gemma, config=GemmaConfig, parameters=PARAMETERS,
  sizes=family.without(family.SIZES, "type_vocab_size") | {
    "layer_norm_eps": "rms_norm_eps", "width": "head_dim", "num_key_value_heads": "num_key_value_heads",
    "scalar": "query_pre_attn_scalar",
  },
  other=read,
  needs=family.SEES_ALL | {
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None,
    "rope_scaling": None,
  },
  # Llama's, but that the norm behind attention has the name of the one before the MLP.
  tensors=llama.TENSORS | {
    "layers/attended_norm": _LAYER + "post_attention_layernorm",
    "layers/mlp_norm": _LAYER + "pre_feedforward_layernorm",
    "layers/gated_norm": _LAYER + "post_feedforward_layernorm",
  },
  classifier={},
  special_tokens={
    "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
  },
  # Of the one tokenizer of all Gemma 3, of which others read images.
  unembedded=("<image_soft_token>",),
)

FAMILIES = {"gemma3_text": GEMMA}
