"""Model folders in Hugging Face layout -> tensors under the names that the parameter tables use."""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import safetensors
import safetensors.numpy

from idistill_jax import config as config_lib
from idistill_jax.data import tokenize, tokenizer_files
from idistill_jax.hf import folders, prompts, torch_file
from idistill_jax.models import cross_encoder, dual_encoder, families, family, projection
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib
from idistill_jax.workdir import outside

# Beside an exported ranker, what sentence-transformers cannot hold: the weight of the term that is added to its logit,
# and how we cut.
SIDECAR = "idistill.json"
# Where an exported ranker keeps the retriever whose similarity is a term of its score; pair_score.py looks there.
SIMILARITY = "similarity"
# What tensors are read from: the first of these that a folder has, whole or in shards.
READERS = {"model.safetensors": safetensors.numpy.load_file, "pytorch_model.bin": torch_file.load}


def check(cfg: config_lib.Encoder, head: str | None = None) -> None:
  """Raises what reading the weights would raise, as far as a look at their folder tells, and where texts are too long.

  head: of a ranker that starts from them, which must be one that their family has.

  A name on the Hub is taken to be good until it is resolved, and so is a folder in a bucket that has a config.json.
  """
  if isinstance(there := outside.at(cfg.weights), outside.Object):
    if not (there / "config.json").exists():
      raise FileNotFoundError(f"encoder.weights: {there} has no config.json")
    return
  folder = folders.local(cfg.weights)
  if folder is None:
    return
  sizes, tokenizer = read_fitting(folder, cfg)
  if "pad_token" not in special_tokens(folder, sizes, tokenizer):
    raise tokenizer_files.TokenizerError(
      f"{folder}: no token for padding, which whoever loads what is trained needs: name one that tokenizer.json has as "
      f"pad_token in {tokenizer_files.ARGUMENTS}")
  if head is not None:
    cross_encoder.head_of(sizes, head)
  prompts.read(folder, cfg)
  projections = dual_encoder.read_embedding_config(folder, cfg.normalize).projections
  for path in itertools.chain(*(_files(folder / place) for place in ("", *(one.path for one in projections)))):
    if path.suffix == ".safetensors":
      try:
        with safetensors.safe_open(path, "numpy"):
          pass
      except (safetensors.SafetensorError, OSError) as e:
        raise table_lib.WeightsError(f"{path}: cannot be read: {e}; fetch it again") from e
    else:
      torch_file.check(path)


def read_fitting(folder: pathlib.Path, cfg: config_lib.Encoder) -> tuple[encoder_lib.Sizes, tokenize.Tokenizer]:
  """As `read_model`, where the texts of `cfg` fit.

  Raises ConfigError where a text of `cfg` has more tokens than the checkpoint positions, or a pair more than a row.
  What lies past the end of a table is read as NaN, of its whole row.
  """
  sizes, tokenizer = read_model(folder)
  list_field = "passage_tokens" if cfg.list_passage_tokens is None else "list_passage_tokens"
  pair_field = list_field if cfg.pair_passage_tokens is None else "pair_passage_tokens"
  of_pair = f"a pair of encoder.query_tokens and encoder.{pair_field}"
  pair = tokenize.pair_lengths(cfg.query_tokens, cfg.pair_cut, tokenizer.between)
  lengths = {
    "encoder.query_tokens": cfg.query_tokens,
    "encoder.passage_tokens": cfg.passage_tokens,
    f"encoder.{list_field}": cfg.list_cut,
    of_pair: pair,
  }
  for fields, length in lengths.items():
    if sizes.max_tokens is not None and length > sizes.max_tokens:
      kept = f", {sizes.first_position} of them for no text" if sizes.first_position else ""
      raise config_lib.ConfigError(
        f"{fields} is {length}, and {folder / 'config.json'} has max_position_embeddings "
        f"{sizes.max_position_embeddings}{kept}: lower it, or take other weights"
      )
  if pair > cfg.list_row:
    raise config_lib.ConfigError(
      f"{of_pair} is {pair} tokens with what {folder / 'tokenizer.json'} puts between the two, and a row has "
      f"{cfg.list_row}: set encoder.list_row_tokens to {pair} or more"
    )
  return sizes, tokenizer


def read_model(folder: pathlib.Path) -> tuple[encoder_lib.Sizes, tokenize.Tokenizer]:
  """Sizes and tokenizer; the halves of a pair have types where both know of them.

  Raises tokenizer_files.TokenizerError where the tokenizer gives ids that the checkpoint has no embedding of, or takes
  padding's token for another.
  """
  sizes = families.read_config(folder)
  tokenizer = tokenize.Tokenizer(folder, families.FAMILIES[sizes.model_type].unembedded)
  if tokenizer.ids > sizes.vocab_size:
    raise tokenizer_files.TokenizerError(
      f"{folder / 'tokenizer.json'} gives token ids up to {tokenizer.ids - 1}, and {folder / 'config.json'} has "
      f"vocab_size {sizes.vocab_size}: save both from the same model"
    )
  _refuse_padding_in_texts(folder, sizes, tokenizer)
  # Who reads the folder gives the model no types where its tokenizer_config.json leaves them out.
  told = sizes.types_tell_halves and tokenizer.types_tell_halves and tokenizer_files.tells_halves(folder)
  return dataclasses.replace(sizes, types_tell_halves=told), tokenizer


def _refuse_padding_in_texts(folder: pathlib.Path, sizes: encoder_lib.Sizes, tokenizer: tokenize.Tokenizer) -> None:
  """Of RoBERTa's kin, which count positions past padding's: transformers leaves out every token that has its id."""
  first = getattr(sizes, "first_position", 0)
  if first and first - 1 in tokenizer.table([""], 2)[0]:
    raise tokenizer_files.TokenizerError(
      f"{folder / 'config.json'}: pad_token_id {first - 1} is {tokenizer.token(first - 1)!r} in tokenizer.json, which "
      "stands around every text: save both from the same model")


def special_tokens(folder: pathlib.Path, sizes: encoder_lib.Sizes, tokenizer: tokenize.Tokenizer) -> dict[str, str]:
  """What a folder's special tokens are called, but for those that its tokenizer lacks: as special_tokens_map.json or
  tokenizer_config.json says, else the family, another family of whose tokenizer this is, or config.json's padding."""
  said = tokenizer_files.read(folder / "special_tokens_map.json") | tokenizer_files.read(
    folder / tokenizer_files.ARGUMENTS)  # fmt: skip
  stated = {name: token["content"] if isinstance(token, dict) else token for name, token in said.items()
            if name.endswith("_token") and isinstance(token, dict | str)}  # fmt: skip
  own = families.FAMILIES[sizes.model_type].special_tokens
  pad = families.read_raw(folder).get("pad_token_id")
  padding = {} if pad is None else {"pad_token": tokenizer.token(pad) or ""}
  found: dict[str, str] = {}
  for called in (stated, own, family.BRACKETED, family.ANGLED, padding):
    for name in {*own, "pad_token"} & called.keys() - found.keys():
      if tokenizer.has(called[name]):
        found[name] = called[name]
  return found


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of the first of READERS that is there (or of its shards), float32, under the family's canonical names.

  Old checkpoints call LayerNorm's parameters gamma and beta, task models put the encoder under "bert." or the like.
  An exported ranker's head comes with them.  Raises table.WeightsError where no such file is there, or none that can
  be read.
  """
  return {canonical(key): value for key, value in _tensors(folder)} | _dense_head(folder)


def read_projections(folder: pathlib.Path, each: Sequence[projection.Projection]) -> dict[str, np.ndarray]:
  """The tensors of these modules by their keys among those of the whole checkpoint, float32.

  Raises table.WeightsError where a module has others than its config.json says.
  """
  found: dict[str, np.ndarray] = {}
  for one in each:
    tensors = dict(_tensors(folder / one.path))
    if (shapes := {name: value.shape for name, value in tensors.items()}) != one.shapes:
      said = lambda of: ", ".join(f"{name} {shape}" for name, shape in sorted(of.items())) or "nothing"
      raise table_lib.WeightsError(
        f"{_whole(folder / one.path)}: has {said(shapes)}, and by config.json there it should have {said(one.shapes)}")
    found |= {one.key(name): value for name, value in tensors.items()}
  return found


def _tensors(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
  """Under the names in the files."""
  for path in _files(folder):
    read = READERS["model.safetensors" if path.suffix == ".safetensors" else "pytorch_model.bin"]
    for key, value in read(path).items():
      yield key, np.asarray(value, np.float32) if value.dtype.kind in "fV" else value


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The files that tensors are in; raises table.WeightsError where there are none."""
  whole = _whole(folder)
  if whole.suffix != ".json":
    return [whole]
  return [folder / one for one in sorted(set(tokenizer_files.parsed(whole)["weight_map"].values()))]


def _whole(folder: pathlib.Path) -> pathlib.Path:
  """The file that tensors are in, or that says in which shards; raises table.WeightsError where there is none."""
  for name in READERS:
    for path in (folder / name, folder / f"{name}.index.json"):
      if path.exists():
        return path
  raise table_lib.WeightsError(
    f"{folder}: no {' and no '.join(READERS)}; convert the checkpoint with save_pretrained(safe_serialization=True)"
  )


def _dense_head(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The linear unit of our ranker with the head "mean", unscaled; nothing of other folders with such a module."""
  path = _file_of_head(folder, "mean")
  if not path.exists() or _claim(folder, "mean") is None:
    return {}
  scale = np.float32(cross_encoder.MeanLinear.SCALE)
  return {key: value / scale for key, value in safetensors.numpy.load_file(path).items()}


def refuse_lost_head(folder: pathlib.Path, head: str | None, lost: Sequence[str]) -> None:
  """Raises table.WeightsError where the folder says that it is a ranker with this head, whose tensors `lost` it lacks;
  an encoder's folder has never had them."""
  if head is not None and (claim := _claim(folder, head)) is not None:
    raise table_lib.WeightsError(
      f"{_file_of_head(folder, head)}: lacks {', '.join(lost)}, and {claim} says that the folder is a ranker with the "
      f"head {head!r}: fetch it or export it again, or take an encoder's folder"
    )


def _claim(folder: pathlib.Path, head: str) -> pathlib.Path | None:
  """The file in which the folder says that it is a ranker with this head, a key of cross_encoder.HEADS."""
  ours, theirs = folder / SIDECAR, folder / "config.json"
  if ours.exists():
    return ours if tokenizer_files.parsed(ours).get("head") == head else None
  classes = tokenizer_files.parsed(theirs).get("architectures") or ()
  classifies = any(name.endswith("ForSequenceClassification") for name in classes)
  return theirs if head == "classifier" and classifies else None


def _file_of_head(folder: pathlib.Path, head: str) -> pathlib.Path:
  """Where the tensors of a ranker's head are, or which shards have them."""
  return folder / folders.DENSE_HEAD / "model.safetensors" if head == "mean" else _whole(folder)


def canonical(key: str) -> str:
  prefix = next((one for one in families.PREFIXES if key.startswith(one)), "")
  return (
    key.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
  )
