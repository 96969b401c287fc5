"""Trained parameters -> folders that transformers and sentence-transformers load, offline and without this package.

Needs neither of those two, nor torch: tensors go through the parameter table read backwards, the JSON files are the
starting checkpoint's own, cut down to what the loaders read.
"""

import dataclasses
import importlib.resources
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from idistill_jax.data import tokenize, tokenizer_files
from idistill_jax.hf import folders, networks, weights
from idistill_jax.hf import prompts as prompts_lib
from idistill_jax.models import compared, cross_encoder, families, pooling
from idistill_jax.models import family as family_lib
from idistill_jax.models import table as table_lib

# Facts about the machine and the file that the starting checkpoint was written with; ours differ.
_NOT_CARRIED = (
  "_name_or_path", "auto_map", "transformers_version", "torch_dtype", "dtype", "architectures", "id2label", "label2id",
  "num_labels", "problem_type", "finetuning_task", "sentence_transformers", "sbert_ce_default_activation_function",
)
_IDENTITY = "torch.nn.modules.linear.Identity"
# CrossEncoder.rank() asks for one label, and without an activation of ours predict() would put its own on the score.
_ONE_SCORE = {
  "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "sentence_transformers": {"activation_fn": _IDENTITY},
}
_MODULES = "sentence_transformers"
# Of the head "pair_cosine": a file of this package that lies in the exported folder, and the class in it.
_CODE, _CODE_CLASS = "pair_score.py", "pair_score.PairScore"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
  """Where texts were cut in training, special tokens included."""

  query_tokens: int
  passage_tokens: int

  def pair_tokens(self, tokenizer: tokenize.Tokenizer) -> int:
    """Of the two read together."""
    return tokenize.pair_lengths(self.query_tokens, self.passage_tokens, tokenizer.between)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
  """The term `weight` x similarity of a ranker's score: the retriever that gives it, and its card."""

  weight: float
  params: Any
  network: networks.Retriever
  cut: Cut
  card: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Ranker:
  """What is written of a ranker, and into which folder."""

  tensors: Mapping[str, np.ndarray]
  network: networks.Network
  folder: pathlib.Path
  cut: Cut
  similarity: Similarity | None


def export_retriever(params: Any, network: networks.Retriever, folder: pathlib.Path, *, cut: Cut, card: str) -> None:
  """Writes what AutoModel, AutoTokenizer and SentenceTransformer load; `card` becomes README.md.

  AutoModel makes a T5 of both halves, whose decoder is not here: T5EncoderModel is the class to load one with.
  sentence-transformers knows one length for all texts, the passages'; queries longer than `cut.query_tokens` are thus
  read further than in training.  Its encode_query and encode_document put the prompts before them.  Raises
  table.WeightsError where a parameter has no row.
  """
  embedding = network.embedding
  tensors = table_lib.to_hf(network.table, params)
  folder.mkdir(parents=True, exist_ok=True)
  behind = {one.key(name) for one in embedding.projections for name in one.shapes}
  _write_encoder({key: value for key, value in tensors.items() if key not in behind}, network, folder)
  _write_tokenizer(network, folder, cut.passage_tokens)
  _write_json(folder / "sentence_bert_config.json", {"max_seq_length": cut.passage_tokens, "do_lower_case": False})
  named = {"query": network.prompts.query, "document": network.prompts.passage} if network.prompts.any else {}
  _write_json(folder / prompts_lib.FILE, {
    "__version__": {}, "prompts": named, "default_prompt_name": None,
    "similarity_fn_name": "cosine" if embedding.normalize else "dot",
  })
  kinds = ["Transformer", "Pooling", *["Dense"] * len(embedding.projections), *["Normalize"] * embedding.normalize]
  paths = [f"{number}_{kind}" if number else "" for number, kind in enumerate(kinds)]
  _write_modules({path: f"{_MODULES}.models.{kind}" for path, kind in zip(paths, kinds, strict=True)}, folder)
  _write_pooling(folder / paths[1], network.sizes.hidden_size, embedding.pooling)
  for one, path in zip(embedding.projections, paths[2:], strict=False):
    _write_json(folder / path / "config.json", one.stated)
    _write_weights(folder / path, {name: tensors[one.key(name)] for name in one.shapes})
  if embedding.normalize:
    # The module has nothing to say, but neither git nor the Hub keeps an empty folder.
    _write_json(folder / paths[-1] / "config.json", {})
  (folder / "README.md").write_text(card, encoding="utf-8")


def export_ranker(params: Any, network: networks.Network, folder: pathlib.Path, *, head: str, cut: Cut,
                  similarity: Similarity | None, card: str) -> None:
  """Writes what transformers and CrossEncoder load; `card` becomes README.md.

  The retriever of the term `similarity` lies in the subfolder weights.SIMILARITY, as export_retriever writes one.

  With the head "pair_cosine", CrossEncoder.predict gives the whole score, and texts of any length are cut as in
  training (see pair_score.py, which comes along).  With "classifier", a plain AutoModelForSequenceClassification, and
  with "mean" no code comes along: predict gives the score of the joint reading, the caller adds the similarity, and a
  pair longer than `cut.pair_tokens()` loses tokens of its longer text, while training cut query and passage each at its
  own length.
  """
  folder.mkdir(parents=True, exist_ok=True)
  _RANKERS[head](_Ranker(
    tensors=table_lib.to_hf(network.table, params), network=network, folder=folder, cut=cut, similarity=similarity))
  _write_tokenizer(network, folder, cut.pair_tokens(network.tokenizer))
  facts = {"head": head, "similarity_weight": similarity and similarity.weight}
  _write_json(folder / weights.SIDECAR, facts | dataclasses.asdict(cut))
  (folder / "README.md").write_text(card, encoding="utf-8")
  if similarity is not None:
    export_retriever(similarity.params, similarity.network, folder / weights.SIMILARITY, cut=similarity.cut,
                     card=similarity.card)  # fmt: skip


def _write_classifier(ranker: _Ranker) -> None:
  family = families.FAMILIES[ranker.network.sizes.model_type]
  _write_weights(ranker.folder, {_in_task_model(key, family): value for key, value in ranker.tensors.items()})
  _write_json(ranker.folder / "config.json", _config(ranker.network.source) | _ONE_SCORE | {
    "architectures": [f"{family.name}ForSequenceClassification"],
  })


def _write_mean(ranker: _Ranker) -> None:
  folder, scale = ranker.folder, np.float32(cross_encoder.MeanLinear.SCALE)
  head = {part: ranker.tensors[f"linear.{part}"] for part in ("weight", "bias")}
  width = ranker.network.sizes.hidden_size
  encoder = {key: value for key, value in ranker.tensors.items() if not key.startswith("linear.")}
  _write_encoder(encoder, ranker.network, folder)
  _write_pair_modules(folder, {"": f"{_MODULES}.base.modules.transformer.Transformer",
                               "1_Pooling": f"{_MODULES}.sentence_transformer.modules.pooling.Pooling",
                               folders.DENSE_HEAD: f"{_MODULES}.base.modules.dense.Dense"}, {})
  _write_pooling(folder / "1_Pooling", width, "mean")
  _write_json(folder / folders.DENSE_HEAD / "config.json", {
    "in_features": width, "out_features": 1, "bias": True, "activation_function": _IDENTITY,
    "module_input_name": "sentence_embedding", "module_output_name": "scores",
  })
  _write_weights(folder / folders.DENSE_HEAD, {f"linear.{part}": scale * value for part, value in head.items()})


def _write_pair_cosine(ranker: _Ranker) -> None:
  network, folder, cut, similarity = ranker.network, ranker.folder, ranker.cut, ranker.similarity
  between = network.tokenizer.between
  _write_encoder(ranker.tensors, network, folder, _ONE_SCORE)
  _write_pair_modules(folder, {"": _CODE_CLASS}, {
    # The tokenizer takes tokens off the longer text of a pair, so at twice the longest cut none loses what it keeps.
    "max_seq_length": 2 * max(cut.query_tokens, cut.passage_tokens),
    # The cuts are found by the attention mask, which rows without padding come without.
    "unpad_inputs": False,
    "types_tell_halves": network.sizes.types_tell_halves, "opening": between.opening, "between": len(between.ids),
    "scale": cross_encoder.PairCosine.SCALE, **dataclasses.asdict(cut),
    "similarity": similarity and {
      "weight": similarity.weight,
      "prompts": [similarity.network.prompts.query, similarity.network.prompts.passage],
      "tokens": [similarity.cut.query_tokens, similarity.cut.passage_tokens],
    },
  })
  code = importlib.resources.files("idistill_jax.hf").joinpath(_CODE)
  (folder / _CODE).write_text(code.read_text(encoding="utf-8"), encoding="utf-8")


def _write_pair_modules(folder: pathlib.Path, kinds: Mapping[str, str], options: Mapping[str, Any]) -> None:
  """What CrossEncoder reads of modules, from subfolder to class; `options` of the first, an encoder's token states."""
  _write_json(folder / prompts_lib.FILE, {
    "__version__": {}, "prompts": {}, "default_prompt_name": None,
    "model_type": "CrossEncoder", "activation_fn": _IDENTITY,
  })
  _write_modules(kinds, folder)
  _write_json(folder / "sentence_bert_config.json", {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
    **options,
  })


# config.Ranker.head -> what writes its folder as that head's loaders expect.
_RANKERS = {"classifier": _write_classifier, "mean": _write_mean, "pair_cosine": _write_pair_cosine}


def _in_task_model(key: str, family: family_lib.Family) -> str:
  """Canonical name -> the name in a sequence classifier: everything but the head lies under "bert." or the like."""
  return key if key.startswith(family.beside_encoder) else family.prefix + key


def _write_encoder(tensors: Mapping[str, np.ndarray], network: networks.Network, folder: pathlib.Path,
                   score: Mapping[str, Any] | None = None) -> None:
  # The pooler takes no part, but transformers expects one of most: it stays as the starting checkpoint had it.
  family = families.FAMILIES[network.sizes.model_type]
  untouched = {key: value for key, value in weights.read_tensors(network.source).items()
               if key.startswith("pooler.") and not key.startswith(family.beside_encoder)}
  _write_weights(folder, untouched | dict(tensors))
  architecture = {"architectures": [family.model]}
  _write_json(folder / "config.json", _config(network.source) | architecture | dict(score or {}))


def _write_modules(kinds: Mapping[str, str], folder: pathlib.Path) -> None:
  """modules.json, from subfolder to class, and the subfolders."""
  _write_json(folder / compared.MODULES, [
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
    "pooling_mode_lasttoken": kind == "last",
  })


def _write_weights(folder: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  # transformers refuses a file whose metadata does not name the framework.
  safetensors.numpy.save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def _config(source: pathlib.Path) -> dict[str, Any]:
  return {key: value for key, value in families.read_raw(source).items() if key not in _NOT_CARRIED}


def _write_tokenizer(network: networks.Network, folder: pathlib.Path, max_tokens: int) -> None:
  """tokenizer.json without the padding and cutting that it may carry, and without tokens that have no embedding; and
  what transformers asks for beside it.

  Why the generic class and not BertTokenizer or another: those make a tokenizer of their own from the vocabulary, with
  whichever normaliser they know, and this one reads the file.
  """
  raw = tokenizer_files.stated(network.source, families.FAMILIES[network.sizes.model_type].unembedded)
  _write_json(folder / "tokenizer.json", raw | {"truncation": None, "padding": None})
  special = weights.special_tokens(network.source, network.sizes, network.tokenizer)
  _write_json(folder / "special_tokens_map.json", special)
  types = ["token_type_ids"] if network.sizes.types_tell_halves else []
  _write_json(folder / "tokenizer_config.json", special | {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_input_names": ["input_ids", *types, "attention_mask"],
    "model_max_length": max_tokens,
    "clean_up_tokenization_spaces": True,
  })


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
