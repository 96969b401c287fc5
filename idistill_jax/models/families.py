"""Encoder families by the model_type of config.json: what each calls the sizes and the tensors of its encoder.

A family is an entry of FAMILIES; import, export, shardings and decay follow from the rows that its names make.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from idistill_jax.models import bert, layers, modern_bert
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
  """What sets the checkpoints of one model_type apart.

  name: of its classes in transformers, as in BertModel.
  prefix: of the encoder's tensors in models for a task.
  encoder: makes it of `config`'s sizes.  parameters: those that it may have.
  sizes: field of `config` -> its name in config.json.
  other: config.json -> the fields that are no sizes of it.  Raises encoder.UnsupportedModelError without the
  file's name.
  needs: what config.json must say where it says anything.
  tensors: module of the encoder -> HF's.
  classifier: pooler, norm if there is one, and classifier of its sequence classifiers -> HF's.
  activation: behind the pooler.  lacks: paths of parameters that they have in other families.
  ignored: HF keys, beside those of all families, that belong to no encoder.
  special_tokens: what the tokenizer's are called where tokenizer_config.json does not say.
  """

  name: str
  prefix: str
  encoder: Callable[..., Any] = bert.Bert
  config: Callable[..., encoder_lib.Sizes] = bert.BertConfig
  parameters: Sequence[encoder_lib.Parameter] = bert.PARAMETERS
  sizes: Mapping[str, str]
  other: Callable[[Mapping[str, Any]], Mapping[str, Any]]
  needs: Mapping[str, Any]
  tensors: Mapping[str, str]
  classifier: Mapping[str, str]
  activation: Callable[[jax.Array], jax.Array] = jnp.tanh
  lacks: frozenset[str] = frozenset()
  ignored: tuple[str, ...] = ()
  special_tokens: Mapping[str, str]

  def rows(self, cfg: encoder_lib.Sizes) -> tuple[table_lib.Row, ...]:
    """Of an encoder of these sizes, which every model here calls `encoder`."""
    rows = rows_of(self.parameters, self.tensors, self.lacks | cfg.lacks)
    return tuple(dataclasses.replace(row, path=f"encoder/{row.path}") for row in rows)


def rows_of(parameters: Iterable[encoder_lib.Parameter], tensors: Mapping[str, str],
            lacks: frozenset[str] = frozenset()) -> tuple[table_lib.Row, ...]:
  """A row for each parameter (path, axes, layout) of a module that `tensors` has HF's name of, but for `lacks`."""
  split = ((path.rpartition("/"), axes, layout) for path, axes, layout in parameters if path not in lacks)
  return tuple(
    table_lib.Row(f"{module}/{leaf}", axes, f"{tensors[module]}.{'bias' if leaf == 'bias' else 'weight'}", layout)
    for (module, _, leaf), axes, layout in split if module in tensors
  )


_SIZES = {name: name for name in (
  "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
  "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)}  # fmt: skip
_NEEDS = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
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
_BRACKETED = {
  "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
_ANGLED = {
  "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip
_NO_TYPES = {"type_vocab_size": 0, "types_tell_halves": False}


def _padding(raw: Mapping[str, Any]) -> int:
  """Position of padding: its token's id, which is RoBERTa's where config.json does not tell."""
  return 1 if raw.get("pad_token_id") is None else raw["pad_token_id"]


def _without(names: Mapping[str, str], *left_out: str) -> dict[str, str]:
  return {ours: theirs for ours, theirs in names.items() if ours not in left_out}


BERT = Family(
  name="Bert", prefix="bert.", sizes=_SIZES, needs=_NEEDS, tensors=_TENSORS, special_tokens=_BRACKETED,
  other=lambda raw: {"types_tell_halves": raw["type_vocab_size"] > 1},
  classifier={"pooler": "pooler.dense", "classifier": "classifier"},
)
# Positions are counted from behind the one of padding.  (Liu et al. 2019, arXiv 1907.11692.)  The tokenizers in
# transformers give no types, so all tokens have type 0.
ROBERTA = dataclasses.replace(
  BERT, name="Roberta", prefix="roberta.", special_tokens=_ANGLED,
  other=lambda raw: {"first_position": _padding(raw) + 1, "types_tell_halves": False},
  classifier={"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
)
_DISTIL = "transformer.layer.{i}."
# Sanh et al. 2019, arXiv 1910.01108.
DISTILBERT = Family(
  name="DistilBert", prefix="distilbert.", needs={"activation": "gelu"}, special_tokens=_BRACKETED,
  sizes={
    **_without(_SIZES, "type_vocab_size", "layer_norm_eps"), "hidden_size": "dim", "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads", "intermediate_size": "hidden_dim",
  },
  other=lambda raw: {"layer_norm_eps": 1e-12, **_NO_TYPES},
  tensors=_without(_EMBEDDINGS, "type") | {
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
MPNET = Family(
  name="MPNet", prefix="mpnet.", needs=_NEEDS | {"relative_attention_num_buckets": 32},
  sizes=_without(_SIZES, "type_vocab_size"), special_tokens=_ANGLED | {"unk_token": "[UNK]"},
  other=lambda raw: {"first_position": 2, "relative_buckets": 32, **_NO_TYPES},
  tensors=_without(_TENSORS, "type") | {
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
_MODERN_LAYER = "layers.{i}."
MODERNBERT = Family(
  name="ModernBert", prefix="model.", encoder=modern_bert.ModernBert, config=modern_bert.ModernBertConfig,
  parameters=modern_bert.PARAMETERS, special_tokens=_BRACKETED,
  sizes=_without(_SIZES, "type_vocab_size") | {"layer_norm_eps": "norm_eps"}, other=modern_bert.read,
  needs={
    "hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False, "attention_bias": False,
    "mlp_bias": False, "classifier_bias": False, "rope_scaling": None,
  },
  tensors={
    "word": "embeddings.tok_embeddings",
    "norm": "embeddings.norm",
    "attention_norms": "layers.{next}.attn_norm",
    "layers/qkv": _MODERN_LAYER + "attn.Wqkv",
    "layers/out": _MODERN_LAYER + "attn.Wo",
    "layers/mlp_norm": _MODERN_LAYER + "mlp_norm",
    "layers/up": _MODERN_LAYER + "mlp.Wi",
    "layers/down": _MODERN_LAYER + "mlp.Wo",
    "final_norm": "final_norm",
  },
  classifier={"pooler": "head.dense", "norm": "head.norm", "classifier": "classifier"},
  activation=layers.gelu, lacks=frozenset({"pooler/bias"}), ignored=("head.*", "decoder.*"),
)

FAMILIES = {
  "bert": BERT,
  "roberta": ROBERTA,
  "xlm-roberta": dataclasses.replace(ROBERTA, name="XLMRoberta"),
  "camembert": dataclasses.replace(ROBERTA, name="Camembert"),
  "distilbert": DISTILBERT,
  "mpnet": MPNET,
  "electra": ELECTRA,
  "modernbert": MODERNBERT,
}

PREFIXES = tuple(dict.fromkeys(family.prefix for family in FAMILIES.values()))
# HF keys that belong to a family but not to an encoder: a buffer of constants, heads of tasks, and a ranker's "mean".
IGNORED = (
  "embeddings.position_ids", "pooler.*", "classifier.*", "pre_classifier.*", "cls.*", "lm_head.*", "vocab_transform.*",
  "vocab_layer_norm.*", "vocab_projector.*", "qa_outputs.*", "linear.*",
)  # fmt: skip


def read_config(folder: pathlib.Path) -> encoder_lib.Sizes:
  """A family's sizes from a folder's config.json.

  Raises encoder.UnsupportedModelError for what no encoder here can express.
  """
  path = folder / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: not a model folder in Hugging Face layout")
  raw = json.loads(path.read_text(encoding="utf-8"))
  model_type = raw.get("model_type", "bert")  # old checkpoints of BERT have none
  if model_type not in FAMILIES:
    raise encoder_lib.UnsupportedModelError(
      f"{path}: model_type is {model_type!r}; the families that are read are {', '.join(sorted(FAMILIES))}"
    )
  family = FAMILIES[model_type]
  for key, value in family.needs.items():
    if raw.get(key, value) != value:
      raise encoder_lib.UnsupportedModelError(f"{path}: {key} is {raw[key]!r}; this encoder family needs {value!r}")
  missing = [name for name in family.sizes.values() if name not in raw]
  if missing:
    raise encoder_lib.UnsupportedModelError(f"{path}: lacks {missing}")
  sizes = {field: raw[name] for field, name in family.sizes.items()}
  try:
    return family.config(model_type=model_type, **sizes, **family.other(raw))
  except encoder_lib.UnsupportedModelError as e:
    raise encoder_lib.UnsupportedModelError(f"{path}: {e}") from e


def encoder(cfg: encoder_lib.Sizes, rngs: nnx.Rngs) -> Any:
  """The module that reads rows: called with (rows, execution), it gives token states [R, L, D]."""
  return FAMILIES[cfg.model_type].encoder(cfg, rngs=rngs)


def table_of(cfg: encoder_lib.Sizes, extra_rows: tuple[table_lib.Row, ...]) -> table_lib.Table:
  """The table of a model that has this encoder and adds parameters of its own."""
  return table_lib.Table(
    rows=FAMILIES[cfg.model_type].rows(cfg) + extra_rows,
    layers=cfg.num_hidden_layers,
    sizes={"h": cfg.num_attention_heads, "k": cfg.head_dim, "two": 2},
    ignored=IGNORED + FAMILIES[cfg.model_type].ignored,
  )
