"""The same numbers as torch from the same checkpoint: states, embeddings, logits, gradients, AdamW.

Both sides compute in float32; tolerances are stated at each comparison.
"""

import dataclasses
import pathlib

import adamw
import gradients
import jax
import numpy as np
import pytest
import rows_of
from flax import nnx

from idistill_jax import config
from idistill_jax.data import tokenize
from idistill_jax.hf import export, networks, weights
from idistill_jax.models import table as table_lib

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.torch

CUT = export.Cut(query_tokens=16, passage_tokens=48)
ROW = 64
QUERIES = ["how do I merge two sorted files?", "naïve Café 北京", "wait", "[MASK] & \t tabs\nlines", ""]
PASSAGES = [
  "heapq.merge Merge multiple sorted inputs into a single sorted output.",
  "os.wait Wait for completion of a child process, and return a tuple containing its pid and exit status. " * 6,
  "x", "str.casefold Return a casefolded copy: ß becomes ss, İ stays 2 code points.", "",
]


@dataclasses.dataclass(frozen=True)
class World:
  """One checkpoint as both models, and their exported folders."""

  retriever: networks.Network
  retriever_params: dict
  ranker: networks.Network
  ranker_params: dict
  folder: pathlib.Path


@pytest.fixture(scope="module", params=["minilm_weights", "tiny_weights"])
def world(request, tmp_path_factory) -> World:
  encoder = config.Encoder(weights=request.getfixturevalue(request.param))
  retriever, ranker = networks.retriever(encoder), networks.ranker(encoder, "classifier")
  retriever_params, ranker_params = retriever.initial(0), ranker.initial(0)
  # As it starts, the classifier gives scores and gradients near zero, which would agree with anything.
  kernel = np.random.default_rng(0).normal(size=ranker_params["classifier"]["kernel"].shape)
  ranker_params["classifier"]["kernel"] = kernel.astype(np.float32)
  ranker_params["classifier"]["bias"] = np.array([0.25], np.float32)
  folder = tmp_path_factory.mktemp(request.param)
  export.export_retriever(retriever_params, retriever, folder / "retriever", cut=CUT, card="card\n")
  export.export_ranker(
    ranker_params, ranker, folder / "ranker", head="classifier", cut=CUT, similarity=None, card="card\n"
  )
  return World(retriever, retriever_params, ranker, ranker_params, folder)


def single_rows(network: networks.Network, texts: list[str]):
  table = network.tokenizer.table(texts, CUT.passage_tokens)
  return rows_of.packed([table[i] for i in range(len(texts))], None, ROW)


def pair_rows(network: networks.Network):
  queries = network.tokenizer.table(QUERIES, CUT.query_tokens)
  passages = network.tokenizer.table(PASSAGES, CUT.passage_tokens)
  pairs = [tokenize.pair(queries[i], passages[i], passages.between) for i in range(len(QUERIES))]
  return rows_of.packed([ids for ids, _ in pairs], [types for _, types in pairs], ROW)


def torch_batch(network: networks.Network) -> dict:
  """The pairs padded, from our own token ids, so that only the model is compared."""
  queries = network.tokenizer.table(QUERIES, CUT.query_tokens)
  passages = network.tokenizer.table(PASSAGES, CUT.passage_tokens)
  pairs = [tokenize.pair(queries[i], passages[i], passages.between) for i in range(len(QUERIES))]
  names = ("input_ids", "token_type_ids", "attention_mask")
  batch = {name: torch.zeros((len(pairs), ROW), dtype=torch.long) for name in names}
  for i, (ids, types) in enumerate(pairs):
    batch["input_ids"][i, :len(ids)] = torch.tensor(ids)
    batch["token_type_ids"][i, :len(ids)] = torch.tensor(types)
    batch["attention_mask"][i, :len(ids)] = 1
  return batch


def torch_ranker(world: World):
  return transformers.BertForSequenceClassification.from_pretrained(world.folder / "ranker").eval()


def test_token_states_equal_those_of_the_original_checkpoint(world):
  """Against the starting folder, not our export: import and forward, and no step of ours on the other side."""
  model = transformers.BertModel.from_pretrained(world.retriever.source).eval()
  network = world.retriever
  rows = single_rows(network, PASSAGES)
  encoder = lambda params: nnx.merge(network.graph, params).encoder(rows, network.execution)
  states = np.asarray(jax.jit(encoder)(world.retriever_params))
  table = network.tokenizer.table(PASSAGES, CUT.passage_tokens)
  for i in range(len(PASSAGES)):
    with torch.no_grad():
      expected = model(input_ids=torch.tensor(table[i])[None].long()).last_hidden_state[0].numpy()
    # Entries are of order 1 (layer norm); 2e-5 is a few hundred roundings of float32.
    np.testing.assert_allclose(states[rows.text_ids == i], expected, atol=2e-5)


def test_embeddings_equal_sentence_transformers(world):
  texts = PASSAGES + QUERIES
  folder = str(world.folder / "retriever")
  theirs = sentence_transformers.SentenceTransformer(folder, device="cpu", local_files_only=True)
  ours = jax.jit(world.retriever.apply)(world.retriever_params, single_rows(world.retriever, texts))
  np.testing.assert_allclose(ours, theirs.encode(texts), atol=1e-5)


def test_embeddings_equal_those_of_the_original_folder(world):
  """Sentence-transformers on the starting checkpoint itself, where that says how it pools."""
  if not (world.retriever.source / "modules.json").exists():
    pytest.skip("the starting checkpoint is a plain encoder: how it pools is our own choice")
  theirs = sentence_transformers.SentenceTransformer(str(world.retriever.source), device="cpu", local_files_only=True)
  theirs.max_seq_length = CUT.passage_tokens
  ours = jax.jit(world.retriever.apply)(world.retriever_params, single_rows(world.retriever, PASSAGES))
  np.testing.assert_allclose(ours, theirs.encode(PASSAGES), atol=1e-5)


def test_scores_equal_sequence_classification(world):
  with torch.no_grad():
    expected = torch_ranker(world)(**torch_batch(world.ranker)).logits[:, 0].numpy()
  found = jax.jit(world.ranker.apply)(world.ranker_params, pair_rows(world.ranker))
  # A logit sums `width` products of order 1: magnitudes around 10.
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.ptp(expected) > 0.1, "all scores alike would agree with anything"


def test_gradients_of_every_parameter(world):
  cotangent = np.linspace(-1.0, 1.5, len(QUERIES), dtype=np.float32)
  model = torch_ranker(world)
  (model(**torch_batch(world.ranker)).logits[:, 0] * torch.tensor(cotangent)).sum().backward()
  expected = {weights.canonical(name): p.grad.numpy() for name, p in model.named_parameters()}

  rows = pair_rows(world.ranker)
  loss = lambda params: (world.ranker.apply(params, rows) * cotangent).sum()
  # Each mapping is a permutation of entries, so gradients go through the same table as weights.
  found = table_lib.to_hf(world.ranker.table, jax.jit(jax.grad(loss))(world.ranker_params))
  gradients.assert_equal(found, expected)


def test_adamw_steps_equal_torch(world):
  adamw.assert_equal(world.ranker, world.ranker_params, torch_ranker(world))
