"""ModernBERT's encoder: packed token rows -> token states.  (Warner et al. 2024, arXiv 2412.13663.)

Norms stand before attention and MLP, and have no bias, nor has a product; positions turn queries and keys; most layers
attend to near tokens alone; the MLP is gated.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import encoder, family, layers, rotary, windowed
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ModernBertConfig(windowed.Sizes):
  """Of ModernBERT."""

  model_type: str = "modernbert"


def read(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """config.json -> the fields of ModernBertConfig that are no sizes, in either form of it, of transformers 4 and 5.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  count, every = raw["num_hidden_layers"], raw.get("global_attn_every_n_layers", 3)
  kinds = ["sliding_attention" if i % every else "full_attention" for i in range(count)]
  layers_see = windowed.read(raw, kinds, of_global=windowed.Former("global_rope_theta", 160_000.0),
                             of_local=windowed.Former("local_rope_theta", 10_000.0))
  if count < 2:
    raise encoder.UnsupportedModelError(f"num_hidden_layers is {count}; two or more are supported")
  pooled = raw.get("classifier_pooling", "cls")
  if pooled not in ("mean", "cls"):
    raise encoder.UnsupportedModelError(f"classifier_pooling is {pooled!r}; mean or cls is supported")
  reach = raw.get("sliding_window", raw.get("local_attention", 128) // 2)
  return {**layers_see, "reach": reach, "classifier_pooling": pooled}


PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("norm/scale", ("embed_out",), "d -> d"),
  # Of all layers but the first, which reads the embeddings as they are normalised.
  ("attention_norms/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/qkv/kernel", ("layer", "embed", "qkv", "heads", "head_dim"), "(three h k) d -> d three h k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/mlp_norm/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/up/kernel", ("layer", "embed", "gate", "mlp"), "(two f) d -> d two f"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("final_norm/scale", ("embed_out",), "d -> d"),
)


class OfLayer(NamedTuple):
  """What layers differ in beside their kernels; of all of them, each field has a leading "layer" axis.

  first: bool []; the layer reads its states as they are.  scale: [D]; of the norm before attention, where it does not.
  """

  first: jax.Array
  scale: jax.Array
  sight: windowed.Sight


class Layer(nnx.Module):
  """Self-attention and gated MLP, each of normalised states, and added to them."""

  def __init__(self, cfg: ModernBertConfig, *, rngs: nnx.Rngs):
    d, h, k, f = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size
    self.eps = cfg.layer_norm_eps
    self.qkv = layers.Dense("rld,dthk->rlthk", (d, 3, h, k), None, rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), None, rngs=rngs)
    self.mlp_norm = layers.ScaleNorm(d, cfg.layer_norm_eps, rngs=rngs)
    self.up = layers.Dense("rld,dtf->rltf", (d, 2, f), None, rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), None, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products, own = execution.products, beside.each
    read_RxLxD = jnp.where(own.first, x_RxLxD, layers.normalised(x_RxLxD, own.scale, self.eps))
    qkv_RxLx3xHxK = self.qkv(read_RxLxD, products)
    q, k = (rotary.turned(qkv_RxLx3xHxK[:, :, i], rows.positions, own.sight.frequencies) for i in (0, 1))
    mixed_RxLxHxK = execution.attend(q, k, qkv_RxLx3xHxK[:, :, 2], rows, None, own.sight.window)
    x_RxLxD = x_RxLxD + self.out(mixed_RxLxHxK, products)
    up_RxLx2xF = self.up(self.mlp_norm(x_RxLxD), products)
    gated_RxLxF = layers.gelu(up_RxLx2xF[:, :, 0]) * up_RxLx2xF[:, :, 1]
    return x_RxLxD + self.down(gated_RxLxF, products)


class ModernBert(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: ModernBertConfig, *, rngs: nnx.Rngs):
    width, eps = cfg.hidden_size, cfg.layer_norm_eps
    self.cfg = cfg
    self.word = layers.Embedding(cfg.vocab_size, width, rngs=rngs)
    self.norm = layers.ScaleNorm(width, eps, rngs=rngs)
    # Beside the layers, not in them: the first has none, and a stack is of like parts.
    self.attention_norms = encoder.stack(
      lambda rngs: layers.ScaleNorm(width, eps, rngs=rngs), cfg.num_hidden_layers - 1, rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
    self.final_norm = layers.ScaleNorm(width, eps, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = self.norm(self.word(rows.token_ids)).astype(execution.states)
    return self.final_norm(encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution))

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Of each layer what OfLayer says."""
    cfg, scales = self.cfg, self.attention_norms.scale[...]
    return encoder.Beside(each=OfLayer(
      first=jnp.arange(cfg.num_hidden_layers) == 0,
      scale=jnp.concatenate([jnp.ones_like(scales, shape=(1, cfg.hidden_size)), scales]),
      sight=cfg.sight(rows.token_ids.shape[1]),
    ))


_LAYER = "layers.{i}."
MODERNBERT = family.Family(
  name="ModernBert", prefix="model.", encoder=ModernBert, config=ModernBertConfig,
  parameters=PARAMETERS, special_tokens=family.BRACKETED,
  sizes=family.without(family.SIZES, "type_vocab_size") | {"layer_norm_eps": "norm_eps"}, other=read,
  needs=family.SEES_ALL | {
    "hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "rope_scaling": None,
  },
  tensors={
    "word": "embeddings.tok_embeddings",
    "norm": "embeddings.norm",
    "attention_norms": "layers.{next}.attn_norm",
    "layers/qkv": _LAYER + "attn.Wqkv",
    "layers/out": _LAYER + "attn.Wo",
    "layers/mlp_norm": _LAYER + "mlp_norm",
    "layers/up": _LAYER + "mlp.Wi",
    "layers/down": _LAYER + "mlp.Wo",
    "final_norm": "final_norm",
  },
  classifier={"pooler": "head.dense", "norm": "head.norm", "classifier": "classifier"},
  activation=layers.gelu, lacks=frozenset({"pooler/bias"}), ignored=("head.*", "decoder.*"),
)

FAMILIES = {"modernbert": MODERNBERT}
