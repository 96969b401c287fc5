"""A BERT-base with drawn weights, as a folder: how fast it is does not depend on them, and nothing is downloaded."""

import itertools
import json
import pathlib
import string

import numpy as np
import safetensors.numpy
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from idistill_jax.hf import folders

NAME = "drawn-bert-base"
VOCABULARY, LAYERS, WIDTH, INNER, HEADS, POSITIONS = 30522, 12, 768, 3072, 12, 512
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def folder(name: str, kept: pathlib.Path) -> pathlib.Path:
  """Where the weights of `name` are: as encoder.weights names them, or NAME, which is written into `kept` once."""
  if name != NAME:
    return folders.resolve(name)
  made = kept / NAME
  if not made.exists():
    write(made)
  return made


def write(to: pathlib.Path, *, layers: int = LAYERS, width: int = WIDTH, inner: int = INNER, heads: int = HEADS,
          vocabulary: int = VOCABULARY) -> None:
  """config.json, model.safetensors and a tokenizer whose every word is one token."""
  to.mkdir(parents=True)
  config = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": vocabulary, "hidden_size": width,
    "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": inner, "hidden_act": "gelu",
    "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "initializer_range": 0.02,
  }
  (to / "config.json").write_text(json.dumps(config, indent=1))
  safetensors.numpy.save_file(_tensors(layers, width, inner, vocabulary), to / "model.safetensors", {"format": "pt"})
  _write_tokenizer(to, vocabulary)


def _tensors(layers: int, width: int, inner: int, vocabulary: int) -> dict[str, np.ndarray]:
  rng, found = np.random.default_rng(0), {}

  def dense(name: str, into: int, out: int) -> None:
    found[f"{name}.weight"] = rng.normal(0, 0.02, (out, into)).astype(np.float32)
    found[f"{name}.bias"] = np.zeros(out, np.float32)

  def norm(name: str) -> None:
    found[f"{name}.weight"], found[f"{name}.bias"] = np.ones(width, np.float32), np.zeros(width, np.float32)

  for name, rows in (("word", vocabulary), ("position", POSITIONS), ("token_type", 2)):
    table = rng.normal(0, 0.02, (rows, width)).astype(np.float32)
    found[f"embeddings.{name}_embeddings.weight"] = table
  norm("embeddings.LayerNorm")
  for number in range(layers):
    layer = f"encoder.layer.{number}"
    for name in ("query", "key", "value"):
      dense(f"{layer}.attention.self.{name}", width, width)
    dense(f"{layer}.attention.output.dense", width, width)
    norm(f"{layer}.attention.output.LayerNorm")
    dense(f"{layer}.intermediate.dense", width, inner)
    dense(f"{layer}.output.dense", inner, width)
    norm(f"{layer}.output.LayerNorm")
  dense("pooler.dense", width, width)
  return found


def _write_tokenizer(to: pathlib.Path, vocabulary: int) -> None:
  letters = string.ascii_lowercase
  made_up = ("".join(word) for length in (3, 4) for word in itertools.product(letters, repeat=length))
  words = [*SPECIAL, *itertools.islice(made_up, vocabulary - len(SPECIAL))]
  tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
  tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[(word, SPECIAL.index(word)) for word in ("[CLS]", "[SEP]")])
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.save(str(to / "tokenizer.json"))
  named = {f"{word.strip('[]').lower()}_token": word for word in SPECIAL}
  (to / "tokenizer_config.json").write_text(json.dumps(
    {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS, **named}, indent=1))
