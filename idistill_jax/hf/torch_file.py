"""`pytorch_model.bin`, as torch.save writes it -> tensors, without torch, and without running what a pickle asks for.

The file is a zip archive (PyTorch 1.6 and newer): `<name>/data.pkl` holds names and the shapes of their tensors, each
a view of a storage whose bytes are `<name>/data/<key>`.
"""

import collections
import io
import math
import os
import pickle
import zipfile
from typing import Any

import numpy as np

from idistill_jax.models import table as table_lib

# What a pickle may name beside `_rebuild_tensor_v2` and OrderedDict.  bfloat16 is the first half of a float32.
_STORAGES = {"FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "u2", "LongStorage": "i8"}


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Tensors by name, float32 or int64; raises table.WeightsError naming the file for whatever is not tensors."""
  check(path)
  try:
    with zipfile.ZipFile(path) as archive:
      found = _Unpickler(archive).load()
  except table_lib.WeightsError as e:
    raise table_lib.WeightsError(f"{path}: {e}") from e
  except Exception as e:  # A pickle that is damaged, or made to do harm, fails in many ways.
    raise table_lib.WeightsError(f"{path}: cannot be read: {type(e).__name__}: {e}; fetch it again") from e
  if not isinstance(found, dict):
    raise table_lib.WeightsError(f"{path}: holds no mapping of names to tensors but {type(found).__name__}")
  for name, tensor in found.items():
    if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
      raise table_lib.WeightsError(f"{path}: {name!r} is no tensor but {type(tensor).__name__}")
  return dict(found)


def check(path: str | os.PathLike[str]) -> None:
  """Raises table.WeightsError for a file that is not in the form that is read; a look at its end."""
  if not zipfile.is_zipfile(path):
    raise table_lib.WeightsError(
      f"{path}: not in the zip form of torch.save, so torn, or written before PyTorch 1.6; where torch is, convert it: "
      f"python -c \"import torch; p = '{path}'; torch.save(torch.load(p, weights_only=True), p)\""
    )


class _Rebuild:
  """Stands for torch._utils._rebuild_tensor_v2.

  Why not simply a function: a pickle may set attributes of what it has been given, and this has none.
  """

  __slots__ = ()

  def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """A view of a storage; rest: whether it wants a gradient, hooks, metadata."""
    said = f"a tensor of the shape {size!r}, strides {stride!r} and offset {offset!r}"
    if not isinstance(storage, np.ndarray) or not isinstance(size, tuple) or not isinstance(stride, tuple):
      raise table_lib.WeightsError(f"{said} is no view of a storage")
    numbers = (offset, *size, *stride)
    if not all(type(one) is int and one >= 0 for one in numbers) or math.prod(size) > max(len(storage), 1):
      raise table_lib.WeightsError(f"{said} does not fit its storage of {len(storage)}")
    width = storage.itemsize
    try:
      # Numpy checks that a view of a buffer stays within it.
      view = np.ndarray(
        size, storage.dtype, buffer=storage, offset=offset * width, strides=tuple(one * width for one in stride)
      )
    except (TypeError, ValueError) as e:
      raise table_lib.WeightsError(f"{said} does not fit its storage of {len(storage)}: {e}") from e
    if view.dtype.kind == "u":
      return (view.astype(np.uint32) << 16).view(np.float32)
    return view.astype(np.float32 if view.dtype.kind == "f" else np.int64)


class _Unpickler(pickle.Unpickler):
  """Admits tensors, and refuses everything else by name."""

  def __init__(self, archive: zipfile.ZipFile):
    ours = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(ours) != 1:
      raise table_lib.WeightsError("no `<name>/data.pkl` in it: no file of torch.save")
    super().__init__(io.BytesIO(archive.read(ours[0])))
    self._archive, self._root = archive, ours[0].partition("/")[0]
    self._storages: dict[tuple[str, str], np.ndarray] = {}
    order = f"{self._root}/byteorder"
    self._order = ">" if order in archive.namelist() and archive.read(order) == b"big" else "<"

  def find_class(self, module: str, name: str) -> Any:
    match module, name:
      case "collections", "OrderedDict":
        return collections.OrderedDict
      case "torch._utils", "_rebuild_tensor_v2":
        return _Rebuild()
      case "torch", _ if name in _STORAGES:
        return name
    raise table_lib.WeightsError(
      f"asks for {module}.{name}: only tensors of {', '.join(_STORAGES)} are read; where torch is, and you trust the "
      "file, save its model with save_pretrained(safe_serialization=True)"
    )

  def persistent_load(self, saved: Any) -> np.ndarray:
    """A storage; each is read once, as tensors may share one."""
    word, kind, key, _, count = saved
    if word != "storage" or kind not in _STORAGES or not isinstance(key, str):
      raise table_lib.WeightsError(f"asks for {saved!r}, which is no storage")
    if (key, kind) not in self._storages:
      dtype, data = np.dtype(self._order + _STORAGES[kind]), self._archive.read(f"{self._root}/data/{key}")
      if len(data) != count * dtype.itemsize:
        raise table_lib.WeightsError(
          f"the storage {key!r} has {len(data)} bytes and should have {count * dtype.itemsize}; fetch the file again"
        )
      self._storages[key, kind] = np.frombuffer(data, dtype)
    return self._storages[key, kind]
