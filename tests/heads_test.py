"""A ranker's head: read where the folder has one, new where it never had one, an error where it was lost."""

import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from idistill_jax import config
from idistill_jax.hf import export, folders, networks, weights
from idistill_jax.models import bert, cross_encoder
from idistill_jax.models import table as table_lib

CUT = export.Cut(query_tokens=16, passage_tokens=32)
HEAD_FILE = {"classifier": "model.safetensors", "mean": f"{folders.DENSE_HEAD}/model.safetensors"}
# By the names in that file.
LAST_BIAS = {"classifier": "classifier.bias", "mean": "linear.bias"}


def ranker(folder: pathlib.Path | str, head: str) -> networks.Network:
  return networks.ranker(config.Encoder(weights=str(folder), query_tokens=16, passage_tokens=32), head)


def exported(folder: pathlib.Path, head: str, start: str) -> dict:
  """Writes a ranker whose head says something, and gives its parameters."""
  network, rng = ranker(start, head), np.random.default_rng(0)
  params = network.initial(0)
  own = {name: jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), part)
         for name, part in params.items() if name != "encoder"}
  export.export_ranker(params | own, network, folder, head=head, cut=CUT, similarity=None, card="card\n")
  return params | own


@pytest.fixture(params=HEAD_FILE)
def head(request) -> str:
  return request.param


@pytest.fixture
def said(caplog):
  """What the log says of heads."""
  caplog.set_level("INFO", logger="absl")
  return lambda: [one.getMessage() for one in caplog.records if "new ones are made" in one.getMessage()]


def lose(folder: pathlib.Path, head: str, key: str) -> pathlib.Path:
  path = folder / HEAD_FILE[head]
  tensors = safetensors.numpy.load_file(path)
  del tensors[key]
  safetensors.numpy.save_file(tensors, path)
  return path


def test_a_whole_ranker_comes_back_and_nothing_is_said(tmp_path, tiny_weights, head, said):
  params = exported(tmp_path, head, tiny_weights)
  before = len(said())
  again = ranker(tmp_path, head).initial(7)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), again, params)
  assert len(said()) == before


def test_an_encoders_folder_gets_a_new_head_and_one_line_names_it(tiny_weights, head, said):
  network = ranker(tiny_weights, head)
  one, other = network.initial(0), network.initial(1)
  # Control: what the folder has is not new.
  jax.tree.map(np.testing.assert_array_equal, one["encoder"], other["encoder"])
  # By the seed, but for the unit over a mean, which starts at zero.
  assert np.array_equal(one["classifier"]["kernel"], other["classifier"]["kernel"]) == (head == "mean")
  keys = [row.hf_key for row in cross_encoder.HEADS[head].rows(bert.BERT)]
  assert said() == [f"{network.source} has no {', '.join(keys)}: new ones are made"] * 2
  assert LAST_BIAS[head] in keys


def test_a_lost_tensor_of_a_head_is_an_error_that_names_file_and_tensor(tmp_path, tiny_weights, head):
  exported(tmp_path, head, tiny_weights)
  path = lose(tmp_path, head, LAST_BIAS[head])
  with pytest.raises(table_lib.WeightsError) as e:
    ranker(tmp_path, head).initial(0)
  assert str(e.value).startswith(f"{path}: lacks {LAST_BIAS[head]}, and {tmp_path / weights.SIDECAR} says that the")
  # Control: who starts another head from there misses nothing.
  ranker(tmp_path, "pair_cosine").initial(0)


def test_a_head_whose_file_is_lost_is_an_error(tmp_path, tiny_weights):
  exported(tmp_path, "mean", tiny_weights)
  (tmp_path / HEAD_FILE["mean"]).unlink()
  with pytest.raises(table_lib.WeightsError, match=f"{HEAD_FILE['mean']}: lacks linear.weight, linear.bias, and"):
    ranker(tmp_path, "mean").initial(0)


def test_a_published_cross_encoder_says_by_its_class_that_it_has_a_head(tmp_path, tiny_weights, said):
  exported(tmp_path, "classifier", tiny_weights)
  (tmp_path / weights.SIDECAR).unlink()
  ranker(tmp_path, "classifier").initial(0)
  lose(tmp_path, "classifier", "classifier.weight")
  with pytest.raises(table_lib.WeightsError, match=f"lacks classifier.weight, and {tmp_path / 'config.json'} says"):
    ranker(tmp_path, "classifier").initial(0)
  # Control: the same file is an encoder's where config.json says that.
  path, before = tmp_path / "config.json", len(said())
  path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["BertModel"]}))
  ranker(tmp_path, "classifier").initial(0)
  assert [one.partition(" has no ")[2].partition(":")[0] for one in said()[before:]] == ["classifier.weight"]


def test_shards_are_named_by_the_file_that_lists_them(tmp_path, tiny_weights):
  exported(tmp_path, "classifier", tiny_weights)
  lose(tmp_path, "classifier", "classifier.bias")
  whole = tmp_path / "model.safetensors"
  names = dict.fromkeys(safetensors.numpy.load_file(whole), "model-00001-of-00001.safetensors")
  whole.rename(tmp_path / "model-00001-of-00001.safetensors")
  (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
  with pytest.raises(table_lib.WeightsError, match=r"model\.safetensors\.index\.json: lacks classifier\.bias"):
    ranker(tmp_path, "classifier").initial(0)


def test_a_head_is_no_start_for_another(tmp_path, tiny_weights, said):
  """BERT's classifier is called as a mean's unit may be, and reads another thing."""
  params = exported(tmp_path, "classifier", tiny_weights)
  before = len(said())
  started = ranker(tmp_path, "mean").initial(0)
  assert np.abs(params["classifier"]["kernel"]).max() > 0.1 and not np.any(started["classifier"]["kernel"])
  assert len(said()) == before + 1
