"""Trained parameters -> folders that transformers and sentence-transformers load, offline and without our code.

Needs neither of those two, nor torch: tensors go through the parameter table read backwards, the JSON files are the
starting checkpoint's own, cut down to what the loaders read.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import safetensors.numpy

from idistill_jax.data import tokenize
from idistill_jax.hf import weights
from idistill_jax.models import cross_encoder, dual_encoder, pooling
from idistill_jax.models import table as table_lib

# Facts about the machine and the file that the starting checkpoint was written with; ours differ.
_NOT_CARRIED = (
  "_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype", "architectures", "id2label", "label2id",
  "num_labels", "problem_type", "finetuning_task", "sentence_transformers", "sbert_ce_default_activation_function",
)
_IDENTITY = "torch.nn.modules.linear.Identity"
_MODULES = "sentence_transformers"
_PAIR_COSINE = "idistill_jax.hf.pair_cosine.PairCosine"
_SPECIAL_TOKENS = {
  "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip


class Exportable(Protocol):
  """What of a network this module reads (see train.networks.Network)."""

  @property
  def table(self) -> table_lib.Table: ...

  @property
  def source(self) -> pathlib.Path: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
  """Where texts were cut in training, special tokens included."""

  query_tokens: int
  passage_tokens: int

  @property
  def pair_tokens(self) -> int:
    """[CLS] query [SEP] passage [SEP]: the passage's own [CLS] is left out."""
    return self.query_tokens + self.passage_tokens - 1


def export_retriever(params: Any, network: Exportable, folder: pathlib.Path, *, cut: Cut, card: str) -> None:
  """Writes what AutoModel, AutoTokenizer and SentenceTransformer load; `card` becomes README.md.

  sentence-transformers knows one length for all texts, the passages'; queries longer than `cut.query_tokens` are thus
  read further than in training.  Raises table.WeightsError where a parameter has no row.
  """
  embedding = dual_encoder.read_embedding_config(network.source)
  tensors = table_lib.to_hf(network.table, params)
  width = tensors["embeddings.word_embeddings.weight"].shape[1]
  folder.mkdir(parents=True, exist_ok=True)
  _write_encoder(tensors, network.source, folder)
  _write_tokenizer(network.source, folder, cut.passage_tokens)
  _write_json(folder / "sentence_bert_config.json", {"max_seq_length": cut.passage_tokens, "do_lower_case": False})
  _write_json(folder / "config_sentence_transformers.json", {
    "__version__": {}, "prompts": {}, "default_prompt_name": None,
    "similarity_fn_name": "cosine" if embedding.normalize else "dot",
  })
  kinds = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if embedding.normalize else {})
  _write_modules({path: f"sentence_transformers.models.{kind}" for path, kind in kinds.items()}, folder)
  _write_pooling(folder / "1_Pooling", width, embedding.pooling)
  if embedding.normalize:
    # The module has nothing to say, but neither git nor the Hub keeps an empty folder.
    _write_json(folder / "2_Normalize" / "config.json", {})
  (folder / "README.md").write_text(card, encoding="utf-8")


def export_ranker(params: Any, network: Exportable, folder: pathlib.Path, *, head: str, cut: Cut,
                  similarity_weight: float | None, card: str) -> None:
  """Writes what transformers and CrossEncoder load; `card` becomes README.md.

  With the head "classifier" the folder is a plain AutoModelForSequenceClassification.  With "pair_cosine" it is an
  AutoModel, and CrossEncoder finds the comparison of the halves in hf.pair_cosine (see there).

  CrossEncoder.predict gives the score of the joint reading; `similarity_weight` x (similarity of the initial
  retriever) is added by the caller and lies in idistill.json.  A pair longer than `cut.pair_tokens` loses tokens of
  its longer text there, while training cut query and passage each at its own length: scores of over-long pairs can
  differ.
  """
  folder.mkdir(parents=True, exist_ok=True)
  _RANKERS[head](table_lib.to_hf(network.table, params), network.source, folder)
  _write_tokenizer(network.source, folder, cut.pair_tokens)
  facts = {"head": head, "similarity_weight": similarity_weight}
  _write_json(folder / weights.SIDECAR, facts | dataclasses.asdict(cut))
  (folder / "README.md").write_text(card, encoding="utf-8")


def _write_classifier(tensors: Mapping[str, np.ndarray], source: pathlib.Path, folder: pathlib.Path) -> None:
  _write_weights(folder, {_in_task_model(key): value for key, value in tensors.items()})
  _write_json(folder / "config.json", _config(source) | {
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
    "sentence_transformers": {"activation_fn": _IDENTITY},
  })


def _write_mean(tensors: Mapping[str, np.ndarray], source: pathlib.Path, folder: pathlib.Path) -> None:
  scale = np.float32(cross_encoder.MeanLinear.SCALE)
  head = {part: tensors[f"classifier.{part}"] for part in ("weight", "bias")}
  width = head["weight"].shape[1]
  _write_encoder({key: value for key, value in tensors.items() if not key.startswith("classifier.")}, source, folder)
  _write_pair_modules(folder, {"1_Pooling": f"{_MODULES}.sentence_transformer.modules.pooling.Pooling",
                               weights.DENSE_HEAD: f"{_MODULES}.base.modules.dense.Dense"})
  _write_pooling(folder / "1_Pooling", width, "mean")
  _write_json(folder / weights.DENSE_HEAD / "config.json", {
    "in_features": width, "out_features": 1, "bias": True, "activation_function": _IDENTITY,
    "module_input_name": "sentence_embedding", "module_output_name": "scores",
  })
  _write_weights(folder / weights.DENSE_HEAD, {f"linear.{part}": scale * value for part, value in head.items()})


def _write_pair_cosine(tensors: Mapping[str, np.ndarray], source: pathlib.Path, folder: pathlib.Path) -> None:
  _write_encoder(tensors, source, folder)
  _write_pair_modules(folder, {"1_PairCosine": _PAIR_COSINE})
  _write_json(folder / "1_PairCosine" / "config.json", {"scale": cross_encoder.PairCosine.SCALE})


def _write_pair_modules(folder: pathlib.Path, head: Mapping[str, str]) -> None:
  """What CrossEncoder reads of a model that is token states and modules, from subfolder to class, which score them."""
  _write_json(folder / "config_sentence_transformers.json", {
    "__version__": {}, "prompts": {}, "default_prompt_name": None,
    "model_type": "CrossEncoder", "activation_fn": _IDENTITY,
  })
  _write_modules({"": f"{_MODULES}.base.modules.transformer.Transformer", **head}, folder)
  _write_json(folder / "sentence_bert_config.json", {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
  })


# config.Ranker.head -> (HF tensors, source folder, folder) written as that head's loaders expect.
_RANKERS = {"classifier": _write_classifier, "mean": _write_mean, "pair_cosine": _write_pair_cosine}


def _in_task_model(key: str) -> str:
  """Canonical name -> the name in BertForSequenceClassification: everything but the head lies under "bert."."""
  return key if key.startswith("classifier.") else f"bert.{key}"


def _write_encoder(tensors: Mapping[str, np.ndarray], source: pathlib.Path, folder: pathlib.Path) -> None:
  # The pooler takes no part, but transformers expects one: it stays as the starting checkpoint had it.
  untouched = {key: value for key, value in weights.read_tensors(source).items() if key.startswith("pooler.")}
  _write_weights(folder, untouched | dict(tensors))
  _write_json(folder / "config.json", _config(source) | {"architectures": ["BertModel"]})


def _write_modules(kinds: Mapping[str, str], folder: pathlib.Path) -> None:
  """modules.json, from subfolder to class, and the subfolders."""
  _write_json(folder / "modules.json", [
    {"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(kinds.items())
  ])
  for path in filter(None, kinds):
    (folder / path).mkdir(exist_ok=True)


def _write_pooling(folder: pathlib.Path, width: int, kind: pooling.Pooling) -> None:
  _write_json(folder / "config.json", {
    "word_embedding_dimension": width,
    "pooling_mode_cls_token": kind == "cls",
    "pooling_mode_mean_tokens": kind == "mean",
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
  })


def _write_weights(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  # transformers refuses a file whose metadata does not name the framework.
  safetensors.numpy.save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def _config(source: pathlib.Path) -> dict[str, Any]:
  raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
  return {key: value for key, value in raw.items() if key not in _NOT_CARRIED}


def _write_tokenizer(source: pathlib.Path, folder: pathlib.Path, max_tokens: int) -> None:
  """tokenizer.json without the padding and cutting that it may carry, and the files that older loaders ask for."""
  path = source / "tokenizer.json"
  if not path.exists():
    raise tokenize.TokenizerError(f"{path} is missing; save it with AutoTokenizer.save_pretrained")
  raw = json.loads(path.read_text(encoding="utf-8"))
  options = _bert_tokenizer_options(raw, path)
  _write_json(folder / "tokenizer.json", raw | {"truncation": None, "padding": None})
  special = _special_tokens(source)
  _write_json(folder / "special_tokens_map.json", special)
  _write_json(folder / "tokenizer_config.json", special | options | {
    # This class emits token type ids; the generic fast one does not.
    "tokenizer_class": "BertTokenizer",
    "model_max_length": max_tokens,
    "clean_up_tokenization_spaces": True,
  })
  vocabulary = raw["model"]["vocab"]
  (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.__getitem__)),
                                    encoding="utf-8")


def _bert_tokenizer_options(raw: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """BertTokenizer's own options, as tokenizer.json has them: it builds its normaliser from these.

  Raises tokenize.TokenizerError for word pieces or a normaliser of another kind, which that class cannot express.
  """
  normalizer, pieces = raw["normalizer"] or {}, raw["model"].get("type", "WordPiece")
  if (normalizer.get("type"), pieces) != ("BertNormalizer", "WordPiece"):
    raise tokenize.TokenizerError(
      f"{path}: normalizer {normalizer.get('type')!r} with model {pieces!r} is no BertTokenizer's "
      "('BertNormalizer' with 'WordPiece'); such a checkpoint trains here but cannot be exported"
    )
  return {
    "do_lower_case": normalizer["lowercase"],
    "strip_accents": normalizer["strip_accents"],
    "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
  }


def _special_tokens(source: pathlib.Path) -> dict[str, str]:
  path = source / "tokenizer_config.json"
  raw = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  stated = {name: raw.get(name, default) for name, default in _SPECIAL_TOKENS.items()}
  return {name: token["content"] if isinstance(token, dict) else token for name, token in stated.items()}


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
