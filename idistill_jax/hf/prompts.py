"""What a retriever reads before a query and before a passage: "query: ", an instruction, or nothing.

Not what a ranker reads: in a pair, order and token types say which text is the query, no checkpoint's prompts were made
for two texts in one row, and both would be read anew with every pair.  That holds for a head that starts from an
embedding's weights ("pair_cosine") too: training makes it a reader of pairs, and the similarity that is added to its
score is the retriever's, prompts included.
"""

import dataclasses
import pathlib

from idistill_jax import config as config_lib
from idistill_jax.data import tokenize, tokenizer_files
from idistill_jax.models import compared, dual_encoder
from idistill_jax.models import encoder as encoder_lib

FILE = compared.FILE
# The names under which sentence-transformers looks for them, in its order (encode_query, encode_document).
_QUERY, _PASSAGE = ("query",), ("document", "passage", "corpus")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
  """Stands right before each text, and is counted among its tokens; "" is none."""

  query: str = ""
  passage: str = ""

  @property
  def any(self) -> bool:
    return bool(self.query or self.passage)


NONE = Prompts()


def read(folder: pathlib.Path, cfg: config_lib.Encoder) -> Prompts:
  """Those of `cfg`, and where it has None, the checkpoint's own.

  Raises ConfigError where a prompt leaves no room for a text, encoder.UnsupportedModelError where the checkpoint's
  pooling leaves prompts out.
  """
  own = _of_checkpoint(folder)
  found = Prompts(
    query=own.query if cfg.query_prompt is None else cfg.query_prompt,
    passage=own.passage if cfg.passage_prompt is None else cfg.passage_prompt,
  )
  if found.any:
    if not dual_encoder.read_embedding_config(folder, cfg.normalize).include_prompt:
      raise encoder_lib.UnsupportedModelError(
        f"{folder}: its pooling has include_prompt false, which leaves a prompt's tokens out of the embedding, and is "
        "not supported; take other weights, or set encoder.query_prompt and encoder.passage_prompt to ''"
      )
    _check_room(found, folder, cfg)
  return found


def _of_checkpoint(folder: pathlib.Path) -> Prompts:
  """Its default prompt is for both where it has none under any of the names: encode_query and encode_document take
  "" rather than the default, but such a checkpoint is meant for `encode` alone."""
  path = folder / FILE
  raw = tokenizer_files.read(path)
  prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
  if default is not None and default not in prompts:
    raise encoder_lib.UnsupportedModelError(
      f"{path}: default_prompt_name is {default!r}, and prompts has {sorted(prompts)}"
    )
  if default is not None and not set(prompts) & {*_QUERY, *_PASSAGE}:
    return Prompts(query=prompts[default] or "", passage=prompts[default] or "")
  first = lambda names: next((prompts[name] for name in names if name in prompts), None) or ""
  return Prompts(query=first(_QUERY), passage=first(_PASSAGE))


def _check_room(prompts: Prompts, folder: pathlib.Path, cfg: config_lib.Encoder) -> None:
  tokenizer = tokenize.Tokenizer(folder)
  lengths = {"query": {"query_tokens": cfg.query_tokens},
             "passage": {"passage_tokens": cfg.passage_tokens, "list_passage_tokens": cfg.list_cut}}
  for name, fields in lengths.items():
    prompt = getattr(prompts, name)
    (taken,) = tokenizer.table([prompt], max(fields.values())).lengths
    for field, length in fields.items():
      if taken >= length:
        raise config_lib.ConfigError(
          f"the prompt {prompt!r} takes all of encoder.{field}={length}, and nothing of the text is read: raise it, or "
          f"set encoder.{name}_prompt (None is what {folder / FILE} says)"
        )
