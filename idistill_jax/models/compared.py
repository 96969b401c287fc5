"""How a checkpoint's embeddings are compared, as its sentence-transformers files say.  No JAX: keys of stages ask."""

import json
import pathlib

from idistill_jax.data import tokenizer_files

# Beside the modules: prompts, and how embeddings are compared.
FILE = "config_sentence_transformers.json"
MODULES = "modules.json"


def stated(folder: pathlib.Path) -> str | None:
  """Its `similarity_fn_name`: "cosine", "dot" or a distance's; None where it says nothing."""
  return tokenizer_files.read(folder / FILE).get("similarity_fn_name")


def by_cosine_alone(folder: pathlib.Path) -> bool:
  """Whether it says that embeddings of any length are compared by their angles: no module makes them of unit length."""
  path = folder / MODULES
  modules = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
  return bool(modules) and stated(folder) == "cosine" and not any(one["type"].endswith(".Normalize") for one in modules)
