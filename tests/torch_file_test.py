"""Files of torch.save without torch: its tensors as they are, and nothing but tensors."""

import collections
import json
import os
import pathlib
import pickle
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest

from idistill_jax.hf import folders, torch_file, weights
from idistill_jax.models import table as table_lib


def archive(path: pathlib.Path, pickled: bytes, **entries: bytes) -> pathlib.Path:
  with zipfile.ZipFile(path, "w") as out:
    out.writestr("archive/data.pkl", pickled)
    for key, data in entries.items():
      out.writestr(f"archive/data/{key.removeprefix('_')}", data)
  return path


class Calls:
  """Pickles as a call."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.torch
def test_every_tensor_that_torch_saves_is_read_as_it_is(tmp_path):
  torch = pytest.importorskip("torch")
  whole = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
  saved = collections.OrderedDict(
    whole=whole, turned=whole.t(), part=whole[1:3, ::2], half=whole.half(), short=whole.bfloat16(),
    ids=torch.arange(5).expand(1, -1), none=torch.zeros(0, 3), one=torch.tensor(2.5),
    parameter=torch.nn.Linear(2, 2).state_dict()["weight"],
  )  # fmt: skip
  # As state_dict() leaves it.
  saved._metadata = collections.OrderedDict({"": {"version": 1}})
  torch.save(saved, tmp_path / "model.bin")
  found = torch_file.load(tmp_path / "model.bin")
  assert set(found) == set(saved)
  for name, tensor in saved.items():
    assert found[name].dtype == (np.int64 if name == "ids" else np.float32), name
    np.testing.assert_array_equal(found[name], tensor.to(torch.int64 if name == "ids" else torch.float32).numpy())
  torch.save({"w": torch.zeros(2, dtype=torch.float64)}, tmp_path / "double.bin")
  with pytest.raises(table_lib.WeightsError, match=r"double.bin: .*torch.DoubleStorage"):
    torch_file.load(tmp_path / "double.bin")
  torch.save(saved, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
  with pytest.raises(table_lib.WeightsError, match=r"old.bin: .*before PyTorch 1.6.*torch.save\(torch.load"):
    torch_file.load(tmp_path / "old.bin")
  # As weights of a model: names become canonical, and safetensors are read first where both are there.
  (tmp_path / "model.bin").rename(tmp_path / "pytorch_model.bin")
  assert set(weights.read_tensors(tmp_path)) == set(saved)


@pytest.mark.parametrize(
  ("value", "said"),
  [
    (Calls(os.mkdir, "ran"), r"asks for (posix|nt)\.mkdir: only tensors"),
    (Calls(eval, "1"), r"asks for (builtins|__builtin__)\.eval"),
    (Calls(getattr, "", "format"), r"\.getattr"),
    ({"w": Calls(np.zeros, 3)}, "numpy.zeros"),
    ({"w": 1.0}, "'w' is no tensor"),
    ([1, 2], "no mapping of names to tensors"),
  ],
)
def test_nothing_but_tensors_is_admitted(tmp_path, monkeypatch, value, said):
  monkeypatch.chdir(tmp_path)
  path = archive(tmp_path / "evil.bin", pickle.dumps(value, protocol=2))
  with pytest.raises(table_lib.WeightsError, match=rf"evil.bin: .*({said})"):
    torch_file.load(path)
  assert not (tmp_path / "ran").exists()


def test_what_is_admitted_cannot_be_changed(tmp_path):
  """BUILD sets attributes of what stands on the stack: here of what rebuilds tensors."""
  change = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
  with pytest.raises(table_lib.WeightsError, match=r"m.bin: cannot be read: AttributeError"):
    torch_file.load(archive(tmp_path / "m.bin", change))


def tensor_of(offset: int, size: tuple, stride: tuple) -> bytes:
  """The pickle of {"w": a view of the storage "0", of four float32}; by hand, as torch is not needed to read one."""
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
  numbers = b"".join(pickle.dumps(one, protocol=2)[2:-1] for one in (offset, size, stride, False))
  call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + numbers + b"ccollections\nOrderedDict\n)RtR"
  return b"\x80\x02}X\x01\x00\x00\x00w" + call + b"s."


FOUR = np.arange(4, dtype="<f4").tobytes()


def test_a_view_is_read_within_its_storage_alone(tmp_path):
  read = lambda data, *view: torch_file.load(archive(tmp_path / "m.bin", tensor_of(*view), _0=data))["w"].tolist()
  assert read(FOUR, 1, (3,), (1,)) == [1, 2, 3] and read(FOUR, 0, (2, 2), (1, 2)) == [[0, 2], [1, 3]]
  for bad in ((1, (4,), (1,)), (0, (2, 2), (1, 3)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (5,), (0,)),
              (0, ("2",), (1,))):  # fmt: skip
    with pytest.raises(table_lib.WeightsError, match=r"m.bin: .*a tensor of the shape"):
      read(FOUR, *bad)
  with pytest.raises(table_lib.WeightsError, match=r"m.bin: .*the storage '0' has 12 bytes.* 16"):
    read(FOUR[:-4], 0, (2,), (1,))
  with pytest.raises(table_lib.WeightsError, match=r"m.bin: .*data/0"):
    torch_file.load(archive(tmp_path / "m.bin", tensor_of(0, (2,), (1,))))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04torn"])
def test_a_file_of_another_kind_is_named(tmp_path, content):
  (tmp_path / "m.bin").write_bytes(content)
  with pytest.raises(table_lib.WeightsError, match=r"m.bin: "):
    torch_file.load(tmp_path / "m.bin")
  with zipfile.ZipFile(tmp_path / "m.bin", "w") as out:
    out.writestr("something.txt", "else")
  with pytest.raises(table_lib.WeightsError, match=r"m.bin: .*data.pkl"):
    torch_file.load(tmp_path / "m.bin")


def test_weights_come_from_it_where_no_safetensors_are(tmp_path):
  index = tmp_path / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"weight_map": {"bert.LayerNorm.gamma": "a.bin", "w": "a.bin"}}))
  archive(tmp_path / "a.bin", tensor_of(0, (2,), (1,)), _0=FOUR)
  assert weights.read_tensors(tmp_path)["w"].tolist() == [0, 1]
  before = folders.fingerprint(str(tmp_path))
  archive(tmp_path / "a.bin", tensor_of(1, (2,), (1,)), _0=FOUR)
  assert folders.fingerprint(str(tmp_path)) != before
  # Where both are there, the file that nobody reads is not in the key, as it was not before there was a reader.
  safetensors = pytest.importorskip("safetensors.numpy")
  safetensors.save_file({"w": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
  before = folders.fingerprint(str(tmp_path))
  (tmp_path / "a.bin").unlink()
  assert folders.fingerprint(str(tmp_path)) == before and weights.read_tensors(tmp_path)["w"].tolist() == [1]


def test_the_hub_is_asked_for_it_where_it_has_no_safetensors(tmp_path, monkeypatch):
  hub = {"config.json": "{}", "pytorch_model.bin": "x"}
  asked = []

  def snapshot_download(name, allow_patterns, revision=None):
    asked.append((allow_patterns, revision))
    folder = tmp_path / "0123abc"
    folder.mkdir(exist_ok=True)
    for file, text in hub.items():
      if any(pathlib.PurePath(file).match(pattern) for pattern in allow_patterns):
        (folder / file).write_text(text)
    return str(folder)

  hub_client = types.SimpleNamespace(snapshot_download=snapshot_download)
  monkeypatch.setitem(sys.modules, "huggingface_hub", hub_client)
  folder = folders.resolve("owner/name")
  assert (folder / "pytorch_model.bin").exists() and [revision for _, revision in asked] == [None, "0123abc"]
  shutil.rmtree(folder)
  hub["model.safetensors"] = "y"
  folder = folders.resolve("owner/name")
  assert not (folder / "pytorch_model.bin").exists() and len(asked) == 3
