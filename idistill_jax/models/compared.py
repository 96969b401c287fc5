"""How a checkpoint makes and compares embeddings, by its sentence-transformers files.  No JAX: keys of stages ask."""

import pathlib
from typing import Any

from idistill_jax.data import tokenizer_files

# Beside the modules: prompts, and how embeddings are compared.
FILE = "config_sentence_transformers.json"
MODULES = "modules.json"


def modules(folder: pathlib.Path) -> list[dict[str, Any]] | None:
  """Its modules in their order; None of a plain encoder, which has no such file."""
  path = folder / MODULES
  if not path.exists():
    return None
  found: list[dict[str, Any]] = tokenizer_files.parsed(path)
  return found


def stated(folder: pathlib.Path) -> str | None:
  """Its `similarity_fn_name`: "cosine", "dot" or a distance's; None where it says nothing."""
  return tokenizer_files.read(folder / FILE).get("similarity_fn_name")


def truncated(folder: pathlib.Path) -> int | None:
  """Its `truncate_dim`: how many numbers of an embedding sentence-transformers keeps, the first; None: all."""
  return tokenizer_files.read(folder / FILE).get("truncate_dim")


def by_cosine_alone(folder: pathlib.Path) -> bool:
  """Whether it says that embeddings of any length are compared by their angles: no module makes them of unit length."""
  kinds = [one["type"] for one in modules(folder) or ()]
  return bool(kinds) and stated(folder) == "cosine" and not any(kind.endswith(".Normalize") for kind in kinds)
