"""T5's encoder: packed token rows -> token states.  (Raffel et al. 2020, arXiv 1910.10683.)

Norms stand before attention and MLP, divide by the root mean square alone and have no bias, nor has a product; logits
are not divided by the heads' width; tokens know how far apart they are, by one bias for all layers, and not where they
stand.  So a text may have any length: the 512 tokens of `n_positions` are what the published ones were trained on.  In
T5 1.1 and Flan-T5 the MLP is gated.  (Shazeer 2020, arXiv 2002.05202.)
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
class T5Config(encoder.Sizes):
  """And what T5 alone has.

  gated: whether the MLP is.  relative_buckets: of distances between tokens; those from `farthest` on share the last.
  """

  model_type: str = "t5"
  types_tell_halves: bool = False
  gated: bool
  relative_buckets: int
  farthest: int

  @property
  def lacks(self) -> frozenset[str]:
    return frozenset({"layers/up/kernel"} if self.gated else {"layers/gate/kernel", "layers/gated/kernel"})


# feed_forward_proj -> what else transformers writes of the MLP, which must not say otherwise.
_MLPS = {
  "relu": {"is_gated_act": False, "dense_act_fn": "relu"},
  "gated-gelu": {"is_gated_act": True, "dense_act_fn": "gelu_new"},
}


def read(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """config.json -> the fields of T5Config that are no sizes, and transformers' defaults where it does not tell.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  mlp = raw.get("feed_forward_proj", "relu")
  if mlp not in _MLPS:
    raise encoder.UnsupportedModelError(f"feed_forward_proj is {mlp!r}; {' or '.join(_MLPS)} is supported")
  for key, value in _MLPS[mlp].items():
    if raw.get(key, value) != value:
      raise encoder.UnsupportedModelError(f"{key} is {raw[key]!r}; with feed_forward_proj {mlp!r} it must be {value!r}")
  buckets = raw.get("relative_attention_num_buckets", 32)
  farthest = raw.get("relative_attention_max_distance", 128)
  if not 1 <= buckets // 4 < farthest:
    raise encoder.UnsupportedModelError(
      f"relative_attention_num_buckets is {buckets} and relative_attention_max_distance {farthest}; 4 or more are "
      "supported, and a distance of more than a quarter of them"
    )
  return {"gated": _MLPS[mlp]["is_gated_act"], "relative_buckets": buckets, "farthest": farthest}


_HEADS_IN = ("layer", "embed", "heads", "head_dim")
_UP = ("layer", "embed", "mlp")

PARAMETERS: tuple[encoder.Parameter, ...] = (
  ("word/embedding", ("vocab", "embed"), "v d -> v d"),
  ("relative/embedding", ("bucket", "heads"), "b h -> b h"),
  ("layers/attention_norm/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/query/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/key/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/value/kernel", _HEADS_IN, "(h k) d -> d h k"),
  ("layers/out/kernel", ("layer", "heads", "head_dim", "embed"), "d (h k) -> h k d"),
  ("layers/mlp_norm/scale", ("layer", "embed_out"), "d -> d"),
  ("layers/up/kernel", _UP, "f d -> d f"),
  ("layers/gate/kernel", _UP, "f d -> d f"),
  ("layers/gated/kernel", _UP, "f d -> d f"),
  ("layers/down/kernel", ("layer", "mlp", "embed"), "d f -> f d"),
  ("final_norm/scale", ("embed_out",), "d -> d"),
)


class Layer(nnx.Module):
  """Self-attention and MLP, each of normalised states, and added to them."""

  def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs):
    d, h, k, f = cfg.hidden_size, cfg.num_attention_heads, cfg.head_dim, cfg.intermediate_size
    self.cfg = cfg
    self.attention_norm = layers.RmsNorm(d, cfg.layer_norm_eps, rngs=rngs)
    self.query = layers.Dense("rld,dhk->rlhk", (d, h, k), None, rngs=rngs)
    self.key = layers.Dense("rld,dhk->rlhk", (d, h, k), None, rngs=rngs)
    self.value = layers.Dense("rld,dhk->rlhk", (d, h, k), None, rngs=rngs)
    self.out = layers.Dense("rlhk,hkd->rld", (h, k, d), None, rngs=rngs)
    self.mlp_norm = layers.RmsNorm(d, cfg.layer_norm_eps, rngs=rngs)
    if cfg.gated:
      self.gate = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
      self.gated = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    else:
      self.up = layers.Dense("rld,df->rlf", (d, f), None, rngs=rngs)
    self.down = layers.Dense("rlf,fd->rld", (f, d), None, rngs=rngs)

  def __call__(self, x_RxLxD: jax.Array, rows: pack.Rows, beside: encoder.Beside,
               execution: execution_lib.Execution) -> jax.Array:
    products, read_RxLxD = execution.products, self.attention_norm(x_RxLxD)
    q, k, v = (project(read_RxLxD, products) for project in (self.query, self.key, self.value))
    # `attend` divides the logits by this root, for which T5's queries are small instead.
    mixed_RxLxHxK = execution.attend(q * self.cfg.head_dim ** 0.5, k, v, rows, beside.all)
    x_RxLxD = x_RxLxD + self.out(mixed_RxLxHxK, products)
    return x_RxLxD + self.down(self.hidden(self.mlp_norm(x_RxLxD), products), products)

  def hidden(self, x_RxLxD: jax.Array, products: Any) -> jax.Array:
    """[R, L, F]"""
    if not self.cfg.gated:
      return jax.nn.relu(self.up(x_RxLxD, products))
    return layers.gelu_by_tanh(self.gate(x_RxLxD, products)) * self.gated(x_RxLxD, products)


class T5Encoder(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: T5Config, *, rngs: nnx.Rngs):
    self.word = layers.Embedding(cfg.vocab_size, cfg.hidden_size, rngs=rngs)
    self.relative = layers.RelativeBias(cfg.relative_buckets, cfg.num_attention_heads, cfg.farthest, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)
    self.final_norm = layers.RmsNorm(cfg.hidden_size, cfg.layer_norm_eps, rngs=rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = self.word(rows.token_ids).astype(execution.states)
    return self.final_norm(encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution))

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Of all layers the bias of distances [H, L, L]."""
    return encoder.Beside(all=self.relative(rows.token_ids.shape[1]))


_ATTENTION, _MLP = "encoder.block.{i}.layer.0.", "encoder.block.{i}.layer.1."
# Ignored: the embeddings once more, as the encoder's own, and the decoder of whole checkpoints.
T5 = family.Family(
  name="T5Encoder", prefix="", encoder=T5Encoder, config=T5Config, parameters=PARAMETERS,
  sizes={
    "vocab_size": "vocab_size", "hidden_size": "d_model", "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads", "width": "d_kv", "intermediate_size": "d_ff",
    "layer_norm_eps": "layer_norm_epsilon",
  },
  other=read, needs=family.SEES_ALL,
  tensors={
    "word": "shared",
    # The first layer keeps it for all.
    "relative": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "layers/attention_norm": _ATTENTION + "layer_norm",
    "layers/query": _ATTENTION + "SelfAttention.q",
    "layers/key": _ATTENTION + "SelfAttention.k",
    "layers/value": _ATTENTION + "SelfAttention.v",
    "layers/out": _ATTENTION + "SelfAttention.o",
    "layers/mlp_norm": _MLP + "layer_norm",
    "layers/up": _MLP + "DenseReluDense.wi",
    "layers/gate": _MLP + "DenseReluDense.wi_0",
    "layers/gated": _MLP + "DenseReluDense.wi_1",
    "layers/down": _MLP + "DenseReluDense.wo",
    "final_norm": "encoder.final_layer_norm",
  },
  classifier={}, ignored=("encoder.embed_tokens.weight", "decoder.*"),
  special_tokens={"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
)

FAMILIES = {"t5": T5}
