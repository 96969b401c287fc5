"""tokenizer.json as the files beside it change it when transformers and sentence-transformers read a folder.

Those keep some of what a tokenizer does twice, in tokenizer.json and as arguments of its class or of the module that
holds it, and the arguments win.  An argument that is not there leaves tokenizer.json as it is, although a class may
have a default of its own for it.
"""

import functools
import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

FILE, ARGUMENTS = "tokenizer.json", "tokenizer_config.json"
# Of sentence-transformers' module, whose name was of the model's kind once: sentence_roberta_config.json.
_OF_MODULE = "sentence_*_config.json"
# Classes that take tokenizer.json as it is.
_AS_IT_IS = {"PreTrainedTokenizerFast", "TokenizersBackend"}
# Argument -> what BertNormalizer calls it.
_ACCENTS = "strip_accents"  # none: where it makes lower case
_OF_BERT = {"do_lower_case": "lowercase", _ACCENTS: _ACCENTS, "tokenize_chinese_chars": "handle_chinese_chars"}
_PREFIX = "add_prefix_space"
_DEBERTAS = {"DebertaV2Tokenizer", "DebertaV2TokenizerFast"}
# Arguments that make other tokens, and the value that is read.
_ONLY = {"truncation_side": "right", "split_special_tokens": False, "split_by_punct": False}


class TokenizerError(ValueError):
  """A model folder without a usable tokenizer.json."""


class BrokenFileError(ValueError):
  """A torn file of a checkpoint, or a pointer of git lfs in its place."""


def stated(folder: pathlib.Path, without: Collection[str] = ()) -> dict[str, Any]:
  """What the folder's tokenizer.json says, changed as the files beside it ask for, and without these of the tokens that
  were added to its vocabulary.  Raises TokenizerError for an argument that is not read."""
  raw = read(folder / FILE)
  raw["added_tokens"] = [one for one in raw.get("added_tokens") or () if one["content"] not in without]
  return raw | _changes(raw, folder)


def changes(folder: pathlib.Path) -> bool:
  """Whether the files beside tokenizer.json change it."""
  files = [folder / FILE, folder / ARGUMENTS, *sorted(folder.glob(_OF_MODULE))]
  return _do_change(folder, tuple((path, path.stat().st_mtime_ns) for path in files if path.exists()))


def tells_halves(folder: pathlib.Path) -> bool:
  """False where it leaves token types out that the model could tell the halves of a pair by."""
  named = read(folder / ARGUMENTS).get("model_input_names") or ["token_type_ids"]
  return "token_type_ids" in named or read(folder / "config.json").get("type_vocab_size", 0) < 2


def of_module(folder: pathlib.Path) -> dict[str, Any]:
  """What sentence-transformers' module asks of the folder's model and tokenizer."""
  return next(map(read, sorted(folder.glob(_OF_MODULE))), {})


def read(path: pathlib.Path) -> dict[str, Any]:
  """What one of a checkpoint's files says; nothing where it is not there."""
  return parsed(path) if path.exists() else {}


def parsed(path: pathlib.Path) -> Any:
  """As `read`, of a file that must be there; raises BrokenFileError where it is no JSON."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise BrokenFileError(f"{path}: is no JSON: {e}; fetch it again, and with git lfs where it is a pointer") from e


@functools.lru_cache
def _do_change(folder: pathlib.Path, files: tuple[tuple[pathlib.Path, int], ...]) -> bool:
  """Keys of stages ask for it again and again, and some of these files are of megabytes."""
  return (folder / FILE).exists() and bool(_changes(read(folder / FILE), folder))


def _changes(raw: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
  """Parts of tokenizer.json -> what they are then, of those that are not so already."""
  module = of_module(folder)
  arguments = read(folder / ARGUMENTS) | (module.get("tokenizer_args") or {}) | (module.get("processor_kwargs") or {})
  for name, value in _ONLY.items():
    if arguments.get(name, value) not in (value, None):
      raise TokenizerError(f"{folder / ARGUMENTS}: {name} is {arguments[name]!r}, and only {value!r} is supported: "
                           "with weights that were trained so, texts would be read as others")
  normalizer, splitter = raw.get("normalizer"), raw.get("pre_tokenizer")
  _refuse_what_others_take(folder, arguments, normalizer, splitter)
  if arguments.get("tokenizer_class") not in _AS_IT_IS:
    if normalizer is not None and normalizer["type"] == "BertNormalizer":
      normalizer = normalizer | {its: arguments[name] for name, its in _OF_BERT.items()
                                 if arguments.get(name) is not None or (name == _ACCENTS and name in arguments)}
    if splitter is not None and splitter["type"] == "ByteLevel" and arguments.get(_PREFIX) is not None:
      splitter = splitter | {_PREFIX: arguments[_PREFIX]}
  if module.get("do_lower_case") and not _lowers(normalizer):
    normalizer = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *_parts(normalizer)]}
  found = {"normalizer": normalizer, "pre_tokenizer": splitter}
  return {part: value for part, value in found.items() if value != raw.get(part)}


def _refuse_what_others_take(folder: pathlib.Path, arguments: Mapping[str, Any], normalizer: Mapping[str, Any] | None,
                             splitter: Mapping[str, Any] | None) -> None:
  """Raises TokenizerError where a class that is not of BERT's or RoBERTa's kind does otherwise than its tokenizer.json
  by an argument."""
  kind = arguments.get("tokenizer_class")
  lowers = kind in _DEBERTAS and arguments.get("do_lower_case") and not _lowers(normalizer)
  starts = kind not in _AS_IT_IS and arguments.get(_PREFIX) is False and any(
    one["type"] == "Metaspace" and one.get("prepend_scheme") != "never" for one in _parts(splitter))
  if lowers or starts:
    name = "do_lower_case" if lowers else _PREFIX
    raise TokenizerError(f"{folder / ARGUMENTS}: {name} is {arguments[name]!r}, and {FILE} does not do so: save both "
                         "with AutoTokenizer.save_pretrained, or take that out where the weights were not trained so")


def _parts(whole: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
  """Of a normalizer, or of a pre_tokenizer."""
  if whole is None:
    return []
  sequence: list[Mapping[str, Any]] = whole.get("normalizers") or whole.get("pretokenizers") or []
  return sequence if whole["type"] == "Sequence" else [whole]


def _lowers(normalizer: Mapping[str, Any] | None) -> bool:
  return any(one["type"] == "Lowercase" or one.get("lowercase") is True for one in _parts(normalizer))
