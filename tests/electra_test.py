"""ELECTRA's own: embeddings of another width than the states, a head with GELU, what its pretraining leaves behind."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import rows_of
import safetensors.numpy
import small_models

from idistill_jax import config
from idistill_jax.data import tokenize
from idistill_jax.hf import networks
from idistill_jax.models import bert, families
from idistill_jax.models import table as table_lib

pytestmark = pytest.mark.torch
WIDTHS = {"electra": (24, small_models.WIDTH), "electra as wide as its embeddings": (small_models.WIDTH,) * 2}


@pytest.fixture(scope="module", params=WIDTHS)
def folder(request, tmp_path_factory) -> pathlib.Path:
  pytest.importorskip("transformers")
  return small_models.write(request.param, tmp_path_factory.mktemp("electra") / request.param)


@pytest.fixture
def narrow(tmp_path) -> pathlib.Path:
  """A folder whose embeddings are narrower than its states, which a test may break."""
  pytest.importorskip("transformers")
  return small_models.write("electra", tmp_path)


def encoder(folder: pathlib.Path) -> config.Encoder:
  return config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=16, row_tokens=32)


def change(folder: pathlib.Path, **values) -> None:
  path = folder / "config.json"
  raw = json.loads(path.read_text()) | values
  path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_what_replaced_and_masked_words_are_told_by_is_no_encoders(folder):
  """Of the discriminator and of the generator, whose heads lie in the file; every other tensor is read."""
  ours = networks.retriever(encoder(folder))
  flat = table_lib.to_hf(ours.table, ours.initial(0))
  there = safetensors.numpy.load_file(folder / "model.safetensors")
  assert set(flat) == {key.removeprefix("electra.") for key in there if key.startswith("electra.")}
  assert set(there) - {f"electra.{key}" for key in flat}, "the checkpoint has no head, and shows nothing"
  for key, value in flat.items():
    np.testing.assert_array_equal(value, there[f"electra.{key}"])


def test_width_is_that_of_the_states_and_not_of_the_embeddings(folder):
  network = networks.retriever(encoder(folder))
  embeddings, states = WIDTHS[folder.name]
  assert network.sizes.hidden_size == states and network.abstract["encoder"]["word"]["embedding"].shape[1] == embeddings
  rows = rows_of.packed([np.array([2, 9, 3]), np.array([2, 8, 7, 3])], None, 16)
  assert jax.eval_shape(network.apply, network.abstract, rows).shape == (2, states)


def test_a_width_that_config_json_does_not_tell_is_the_one_of_transformers(narrow):
  change(narrow, embedding_size=None)
  assert families.read_config(narrow).embedding_size == 128
  with pytest.raises(table_lib.WeightsError, match=r"gives \(\d+, 24\), encoder/word/embedding is \(\d+, 128\)"):
    networks.retriever(encoder(narrow)).initial(0)


def test_a_projection_that_is_lost_or_that_config_json_knows_nothing_of_is_an_error(narrow):
  path = narrow / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  change(narrow, embedding_size=small_models.WIDTH)
  with pytest.raises(table_lib.WeightsError, match=r"\+ embeddings_project\.weight \(32, 24\)"):
    networks.retriever(encoder(narrow)).initial(0)
  change(narrow, embedding_size=24)
  networks.retriever(encoder(narrow)).initial(0)
  del tensors["electra.embeddings_project.bias"]
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(table_lib.WeightsError, match=r"- embeddings_project\.bias \(for encoder/project/bias\)"):
    networks.retriever(encoder(narrow)).initial(0)


def test_a_cross_encoder_that_transformers_saved_gives_its_scores_head_included(folder, tmp_path, monkeypatch):
  """Controls: with BERT's tanh behind the dense layer, or another product behind the embeddings, they are others."""
  import torch
  import transformers

  with torch.random.fork_rng():
    torch.manual_seed(1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    with torch.no_grad():
      for parameter in model.classifier.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
  model.save_pretrained(tmp_path)
  (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
  network = networks.ranker(encoder(tmp_path), "classifier")
  params = network.initial(0)
  query, passages = np.array([2, 9, 10, 3]), [np.array([2, 30, 31, 32, 3]), np.array([2, 40, 3])]
  pairs = [tokenize.pair(query, passage, tokenize.Between(np.zeros(0, int), 1)) for passage in passages]
  with torch.no_grad():
    expected = np.concatenate([model(
      input_ids=torch.tensor(ids)[None].long(), token_type_ids=torch.tensor(halves)[None].long()).logits[0].numpy()
      for ids, halves in pairs])
  rows = rows_of.packed([ids for ids, _ in pairs], [halves for _, halves in pairs], 32)
  np.testing.assert_allclose(jax.jit(network.apply)(params, rows), expected, atol=1e-5)
  assert np.ptp(expected) > 1e-3
  # What networks are made of is remembered.
  monkeypatch.setattr(networks, "_split", networks._split.__wrapped__)
  monkeypatch.setitem(families.FAMILIES, "electra", dataclasses.replace(bert.ELECTRA, activation=jax.numpy.tanh))
  other = networks.ranker(encoder(tmp_path), "classifier")
  assert np.abs(jax.jit(other.apply)(params, rows) - expected).max() > 1e-3
  if "project" in params["encoder"]:
    params["encoder"]["project"]["kernel"] = 1.1 * params["encoder"]["project"]["kernel"]
    assert np.abs(jax.jit(network.apply)(params, rows) - expected).max() > 1e-3
