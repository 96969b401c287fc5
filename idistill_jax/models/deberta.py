"""DeBERTa's encoder: packed token rows -> token states.  (He et al. 2021, arXiv 2006.03654 and 2111.09543.)

BERT's layers without positions in what they read: attention weighs how far apart two tokens are by what they say.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from idistill_jax.data import pack
from idistill_jax.models import attention, bert, encoder, family, kernels, layers
from idistill_jax.models import execution as execution_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DebertaConfig(encoder.Sizes):
  """And into how many buckets distances to either side fall, up to the farthest."""

  model_type: str = "deberta-v2"
  types_tell_halves: bool = False
  buckets: int
  farthest: int

  @property
  def attends_by_text(self) -> bool:
    return False


# What config.json must say, as transformers takes another value where it says nothing.
_STATED = {
  "relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
}  # fmt: skip


def read(raw: Mapping[str, Any]) -> Mapping[str, Any]:
  """config.json -> the fields of DebertaConfig that are no sizes.

  Raises encoder.UnsupportedModelError without the file's name.
  """
  width, kinds = raw["hidden_size"], raw.get("pos_att_type") or ()
  if isinstance(kinds, str):
    kinds = [kind.strip() for kind in kinds.lower().split("|")]
  if set(kinds) != {"c2p", "p2c"}:
    raise encoder.UnsupportedModelError(f"pos_att_type is {raw.get('pos_att_type')!r}; c2p and p2c are supported")
  widths = {"embedding_size": width, "pooler_hidden_size": width,
            "attention_head_size": width // raw["num_attention_heads"]}
  said = {key: raw.get(key) for key in _STATED} | {key: raw.get(key, value) for key, value in widths.items()}
  for key, value in (_STATED | widths).items():
    if said[key] != value:
      raise encoder.UnsupportedModelError(f"{key} is {said[key]!r}; this encoder family needs {value!r}")
  buckets, farthest = raw.get("position_buckets", -1), raw.get("max_relative_positions", -1)
  if farthest < 1:
    farthest = raw["max_position_embeddings"]
  if not 0 < buckets // 2 < farthest - 1:
    raise encoder.UnsupportedModelError(
      f"position_buckets is {buckets}, of distances up to {farthest}; 2 or more are supported, half of them fewer than "
      "these distances"
    )
  return {"buckets": buckets, "farthest": farthest}


PARAMETERS: tuple[encoder.Parameter, ...] = (
  *bert.PARAMETERS,
  ("distance/embedding", ("bucket", "embed"), "b d -> b d"),
  ("distance_norm/scale", ("embed_out",), "d -> d"),
  ("distance_norm/bias", ("embed_out",), "d -> d"),
)


class Distances(NamedTuple):
  """Embeddings of distances, which each layer makes keys and queries of [1, 2L, D].

  keys: of one that lies 1 - L to L columns behind its query.  queries: of one that lies so many behind its key.
  """

  keys: jax.Array
  queries: jax.Array


class Layer(bert.Layer):
  """BERT's, but for attention."""

  def mixed(self, q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
            beside: encoder.Beside, execution: execution_lib.Execution) -> jax.Array:
    if execution.attend is not attention.attend:
      kernels.say_plain("no kernel weighs distances by what tokens say")
    far_keys = self.key(beside.all.keys, execution.products)[0]
    far_queries = self.query(beside.all.queries, execution.products)[0]
    return attend(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, far_queries, far_keys, jnp.asarray(rows.segment_ids))


# Without the checkpoint, every layer's weights would be kept for the gradient.
@jax.checkpoint
def attend(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, far_queries_2LxHxK: jax.Array,
           far_keys_2LxHxK: jax.Array, segments_RxL: jax.Array) -> jax.Array:
  """Disentangled attention within equal segments [R, L, H, K], in the type of q (arXiv 2006.03654, equations 2 to 4):
  softmax of (content to content + content to position + position to content) / sqrt(3 K), in float32."""
  scale = (3 * q_RxLxHxK.shape[-1]) ** -0.5
  q, k, v = map(attention.heads_first, (q_RxLxHxK * scale, k_RxLxHxK, v_RxLxHxK))
  # Once for each row: XLA would turn round all that a product without rows makes, which takes longer on a CPU.
  far_queries, far_keys = (
    jnp.broadcast_to(jnp.swapaxes(x, 0, 1)[None], (*q.shape[:2], *x.shape[::2])) for x in (
      far_queries_2LxHxK * scale, far_keys_2LxHxK))
  logits_RxHxLxL = _products("rhlk,rhmk->rhlm", q, k) + from_each(_products("rhlk,rhmk->rhlm", q, far_keys))
  logits_RxHxLxL += jnp.swapaxes(from_each(_products("rhlk,rhmk->rhlm", k, far_queries)), 2, 3)
  apart_RxLxL = jnp.where(attention.together(segments_RxL, None), 0.0, attention.APART)
  weights_RxHxLxL = jax.nn.softmax(logits_RxHxLxL + apart_RxLxL[:, None])
  mixed = execution_lib.product("rhlm,rhmk->rhlk", v.dtype, weights_RxHxLxL, v)
  return attention.heads_first(mixed).astype(q_RxLxHxK.dtype)


def _products(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """float32, of operands of the type of x."""
  return execution_lib.product(equation, x.dtype, x.astype(jnp.float32), y)


def from_each(x_RxHxLx2L: jax.Array) -> jax.Array:
  """Of each token i and column j the entry for the distance j - i, of those from 1 - L to L, [R, H, L, L].

  Cut off the rows laid end to end, each of which is then read one entry earlier than the one before it (Huang et al.
  2018, arXiv 1809.04281, "skewing"): gathered by index, it would be scattered by its gradient.
  """
  *of, length, _ = x_RxHxLx2L.shape
  flat = x_RxHxLx2L.reshape(*of, 2 * length**2)[..., length - 1:-1]
  return flat.reshape(*of, length, 2 * length - 1)[..., :length]


class Deberta(nnx.Module):
  """Embeddings and a stack of layers whose parameters carry a leading "layer" axis."""

  def __init__(self, cfg: DebertaConfig, *, rngs: nnx.Rngs):
    width, eps = cfg.hidden_size, cfg.layer_norm_eps
    self.cfg = cfg
    self.word = layers.Embedding(cfg.vocab_size, width, rngs=rngs)
    self.norm = layers.LayerNorm(width, eps, rngs=rngs)
    self.distance = layers.Embedding(2 * cfg.buckets, width, rngs=rngs)
    self.distance_norm = layers.LayerNorm(width, eps, rngs=rngs)
    self.layers = encoder.stack(lambda rngs: Layer(cfg, rngs=rngs), cfg.num_hidden_layers, rngs)

  def __call__(self, rows: pack.Rows, execution: execution_lib.Execution) -> jax.Array:
    """Token states [R, L, D]."""
    x_RxLxD = self.norm(self.word(rows.token_ids)).astype(execution.states)
    return encoder.through(self.layers, x_RxLxD, rows, self.beside(rows), execution)

  def beside(self, rows: pack.Rows) -> encoder.Beside:
    """Of all layers what Distances says."""
    # Of columns: within a text they are as far apart as its positions.
    length = rows.token_ids.shape[1]
    columns, normed = np.arange(1 - length, length + 1), self.distance_norm(self.distance.embedding[...])
    of = lambda distances: jnp.take(normed, bucket(distances, self.cfg), axis=0)[None]
    return encoder.Beside(all=Distances(keys=of(-columns), queries=of(columns)))


def bucket(distances: np.ndarray, cfg: DebertaConfig) -> np.ndarray:
  """Of how far queries lie behind their keys: near ones have a bucket of their own, and those farther off share them by
  the logarithm of their distance; before their keys, the same below the middle one."""
  alone = cfg.buckets // 2
  # In float32, as transformers has it.
  far = np.maximum(np.abs(distances), alone).astype(np.float32) / alone
  shared = np.ceil(np.log(far) / np.log(np.float32((cfg.farthest - 1) / alone)) * (alone - 1)).astype(int) + alone
  signed = np.where(np.abs(distances) <= alone, distances, np.sign(distances) * shared)
  return np.clip(signed + cfg.buckets, 0, 2 * cfg.buckets - 1)


DEBERTA = dataclasses.replace(
  bert.BERT, name="DebertaV2", prefix="deberta.", encoder=Deberta, config=DebertaConfig, parameters=PARAMETERS,
  sizes=family.without(family.SIZES, "type_vocab_size"), other=read,
  needs=family.SEES_ALL | {
    "hidden_act": "gelu", "pooler_hidden_act": "gelu", "type_vocab_size": 0, "conv_kernel_size": 0,
  },
  tensors=family.without(bert.BERT.tensors, "position", "type") | {
    "distance": "encoder.rel_embeddings",
    "distance_norm": "encoder.LayerNorm",
    "layers/query": "encoder.layer.{i}.attention.self.query_proj",
    "layers/key": "encoder.layer.{i}.attention.self.key_proj",
    "layers/value": "encoder.layer.{i}.attention.self.value_proj",
  },
  activation=layers.gelu, beside_encoder=("pooler.", "classifier."),
  # Heads of the generator and of the discriminator, and what transformers leaves out too: positions, which the first
  # head alone read, and what the discriminator's embeddings differed by from the generator's.
  ignored=("lm_predictions.*", "mask_predictions.*", "embeddings.position_embeddings.*",
           "embeddings.word_embeddings._weight"),
)

FAMILIES = {"deberta-v2": DEBERTA}
