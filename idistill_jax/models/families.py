"""Encoder families by the model_type of config.json; each is an entry of FAMILIES beside its encoder.

Import, export, shardings and decay follow from the rows that a family's names make.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from idistill_jax.data import tokenizer_files
from idistill_jax.models import bert, deberta, family, gemma, llama, modern_bert, rotary_bert, t5
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib

FAMILIES: Mapping[str, family.Family] = (
  bert.FAMILIES | deberta.FAMILIES | gemma.FAMILIES | llama.FAMILIES | modern_bert.FAMILIES | rotary_bert.FAMILIES
  | t5.FAMILIES
)

PREFIXES = tuple(dict.fromkeys(
  prefix for family in FAMILIES.values() for prefix in (family.prefix, *family.former_prefixes) if prefix))
# HF keys that belong to a family but not to an encoder: a buffer of constants, heads of tasks, and a ranker's "mean".
IGNORED = (
  "embeddings.position_ids", "pooler.*", "classifier.*", "pre_classifier.*", "cls.*", "lm_head.*", "vocab_transform.*",
  "vocab_layer_norm.*", "vocab_projector.*", "qa_outputs.*", "linear.*",
)  # fmt: skip


def read_raw(folder: pathlib.Path) -> dict[str, Any]:
  """A folder's config.json, its fields called as they are today, with its model_type.

  Raises encoder.UnsupportedModelError for a family that none here is.
  """
  path = folder / "config.json"
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing: not a model folder in Hugging Face layout")
  stated = tokenizer_files.parsed(path)
  model_type = stated.setdefault("model_type", "bert")  # old checkpoints of BERT have none
  if model_type not in FAMILIES:
    raise encoder_lib.UnsupportedModelError(
      f"{path}: model_type is {model_type!r}; the families that are read are {', '.join(sorted(FAMILIES))}"
    )
  former = FAMILIES[model_type].former
  # What is there under today's name too is what transformers reads.
  return {former[name]: value for name, value in stated.items() if name in former} | {
    name: value for name, value in stated.items() if name not in former}


def read_config(folder: pathlib.Path) -> encoder_lib.Sizes:
  """A family's sizes from a folder's config.json.

  Raises encoder.UnsupportedModelError for what no encoder here can express.
  """
  path, raw = folder / "config.json", read_raw(folder)
  sizes, module = _sizes(raw, path), tokenizer_files.of_module(folder)
  asked = (module.get("config_args") or {}) | (module.get("config_kwargs") or {})
  # Why not simply read them: transformers takes some of them, and others only where its class has a field called so.
  if asked and not _makes(raw | asked, path, sizes):
    raise encoder_lib.UnsupportedModelError(
      f"{folder}: config_args or config_kwargs of sentence_bert_config.json are {asked}, which makes another model of "
      "config.json: write there what the weights were trained with, and take them out")
  return sizes


def _makes(raw: Mapping[str, Any], path: pathlib.Path, sizes: encoder_lib.Sizes) -> bool:
  try:
    return _sizes(raw, path) == sizes
  except encoder_lib.UnsupportedModelError:
    return False


def _sizes(raw: Mapping[str, Any], path: pathlib.Path) -> encoder_lib.Sizes:
  """Of what `path` says; raises as `read_config` does."""
  known = FAMILIES[raw["model_type"]]
  for key, value in known.needs.items():
    if raw.get(key, value) != value:
      raise encoder_lib.UnsupportedModelError(f"{path}: {key} is {raw[key]!r}; this encoder family needs {value!r}")
  missing = [name for name in known.sizes.values() if name not in raw]
  if missing:
    also = "".join(f", or {old} for {new}" for old, new in known.former.items() if new in missing)
    raise encoder_lib.UnsupportedModelError(f"{path}: lacks {missing}{also}")
  sizes = {field: raw[name] for field, name in known.sizes.items()}
  try:
    return known.config(model_type=raw["model_type"], **sizes, **known.other(raw))
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
