"""A small world to train in: BERT-tiny, a few words' worth of passages, lists in TFRecords."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from etils import epath

from idistill_jax import config, records, sharding
from idistill_jax.data import batches, example, similarity, tables, tfrecord
from idistill_jax.data import lists as lists_lib
from idistill_jax.hf import networks
from idistill_jax.train import inputs, loop, objectives

WORDS = (
  "merge sort split open close read write lock wait parse print join copy move hash date time path file list".split()
)
LISTS, LENGTH, EPOCHS = 10, 5, 2


def encoder(weights: str) -> config.Encoder:
  return config.Encoder(weights=weights, query_tokens=8, passage_tokens=16, row_tokens=32)


def _inputs(folder: pathlib.Path, network: networks.Network) -> inputs.Inputs:
  rng = np.random.default_rng(0)
  say = lambda: " ".join(rng.choice(WORDS, rng.integers(2, 10)))
  passages = tables.Passages(records.Passage(id=f"p{i}", title="", text=say()) for i in range(40))
  queries = tables.Queries(records.Query(id=f"q{i}", text=say(), split="train") for i in range(LISTS))
  return inputs.Inputs(
    lists=[lists_lib.numbered(one, queries, passages)
           for one in example.read_records(folder, "lists", records.ScoredList)],
    passage_tokens=network.tokenizer.table(passages.texts, 16),
    query_tokens=network.tokenizer.table(queries.texts, 8),
    similarity=similarity.Similarities(
      rng.normal(size=(LISTS, 4)).astype(np.float32), rng.normal(size=(40, 4)).astype(np.float32)
    ),
  )


def write_lists(folder: pathlib.Path) -> None:
  rng = np.random.default_rng(1)
  example.write_records(folder, "lists", (
    records.ScoredList(query_id=f"q{i}", passage_ids=tuple(f"p{j}" for j in rng.choice(40, LENGTH, replace=False)),
                       scores=tuple(float(-place) for place in range(LENGTH)))
    for i in range(LISTS)
  ), shards=2)


def stream(
  folder: pathlib.Path, network: networks.Network, pairs: bool, seed: int = 0, row_multiple: int = 8,
  **own: Callable[[int], np.ndarray],
) -> batches.Batches:
  data = _inputs(folder, network)
  texts = batches.PairTexts if pairs else batches.DualTexts
  # The scores are minus the places.
  lists = [dataclasses.replace(one, values=-one.values) for one in data.lists] if pairs else data.lists
  return batches.Batches(
    lists=lists, texts=texts(queries=data.query_tokens, passages=data.passage_tokens),
    shape=batches.Shape(lists=3, passages=4, always_best=1, row_tokens=32, row_multiple=row_multiple),
    similarity=data.similarity, epochs=EPOCHS, seed=seed, **own,
  )


def training(
  folder: pathlib.Path, weights: str, mesh: jax.sharding.Mesh, *, pairs: bool, checkpoint_every: int = 3,
  passes: int = 1,
) -> loop.Training:
  """Eight steps of either training; lists are written on the first call."""
  if not tfrecord.exists(folder, "lists"):
    write_lists(folder)
  network = networks.ranker(encoder(weights), "pair_cosine") if pairs else networks.retriever(encoder(weights))
  ranker = config.Ranker(loss="listmle", similarity_weight=1.0, passes=passes)
  retriever = config.Retriever(loss="kl_batch", student_temperature=0.05, passes=passes)
  loss = objectives.ranker(ranker, network) if pairs else objectives.retriever(retriever, network)
  own = functools.partial(sharding.own_rows, mesh=mesh)
  return loop.Training(
    name="test", network=network, start=lambda: network.initial(0), loss_fn=loss,
    batches=stream(folder, network, pairs, row_multiple=8 * passes, own=own), optim=config.Optim(peak_lr=1e-3),
    mesh=mesh, folder=folder,
    checkpoints=epath.Path(folder) / "checkpoints", checkpoint_every=checkpoint_every, profile=None,
  )


def with_loss(one: loop.Training, loss_fn) -> loop.Training:
  return dataclasses.replace(one, loss_fn=loss_fn)
