"""What a family of encoders is: what its checkpoints call the sizes and the tensors of an encoder here."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Family:
  """What sets the checkpoints of one model_type apart.

  name: of its classes in transformers, as in BertModel.
  prefix: of the encoder's tensors in models for a task; "" where they have none.  former_prefixes: read as this one.
  encoder: makes it of `config`'s sizes.  parameters: those that it may have.
  sizes: field of `config` -> its name in config.json.
  other: config.json -> the fields that are no sizes of it.  Raises encoder.UnsupportedModelError without the
  file's name.
  former: fields of config.json as they were called before -> as they are; read as these where these are not there, and
  written so.
  needs: what config.json must say where it says anything.
  tensors: module of the encoder -> HF's.
  classifier: pooler, norm if there is one, and classifier of its sequence classifiers -> HF's; {} where there are none
  that an encoder alone is enough for.
  beside_encoder: what the tensors of these begin with that have no prefix.
  activation: behind the pooler.  lacks: paths of parameters that they have in other families.
  ignored: HF keys, beside those of all families, that belong to no encoder.
  special_tokens: what the tokenizer's are called where tokenizer_config.json does not say.
  unembedded: tokens of the tokenizer that the encoder has no embedding of; texts spell their names as other words.
  """

  name: str
  prefix: str
  former_prefixes: tuple[str, ...] = ()
  encoder: Callable[..., Any]
  config: Callable[..., encoder_lib.Sizes]
  parameters: Sequence[encoder_lib.Parameter]
  sizes: Mapping[str, str]
  other: Callable[[Mapping[str, Any]], Mapping[str, Any]]
  former: Mapping[str, str] = dataclasses.field(default_factory=dict)
  needs: Mapping[str, Any]
  tensors: Mapping[str, str]
  classifier: Mapping[str, str]
  beside_encoder: tuple[str, ...] = ("classifier.", "pre_classifier.", "head.")
  activation: Callable[[jax.Array], jax.Array] = jnp.tanh
  lacks: frozenset[str] = frozenset()
  ignored: tuple[str, ...] = ()
  special_tokens: Mapping[str, str]
  unembedded: tuple[str, ...] = ()

  @property
  def model(self) -> str:
    """transformers' class of the encoder by itself."""
    return f"{self.name}Model"

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


# Fields of `encoder.Sizes` and `bert.BertConfig`, which have the names of BERT's config.json.
SIZES = {name: name for name in (
  "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
  "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
)}  # fmt: skip
# What transformers reads of a config.json about who sees whom, where all tokens of a text see each other.
SEES_ALL = {"is_causal": False, "is_decoder": False}
# What tokenizers call their special tokens.
BRACKETED = {
  "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
ANGLED = {
  "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>", "cls_token": "<s>", "mask_token": "<mask>",
}  # fmt: skip


def without(names: Mapping[str, str], *left_out: str) -> dict[str, str]:
  return {ours: theirs for ours, theirs in names.items() if ours not in left_out}
