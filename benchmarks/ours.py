"""What this package does in a second: training steps from TFRecords, encoding from text, scoring of pairs.

Every measurement has "tokens_per_second" and, but for the input pipeline, "flops_per_token" (see train/utilization.py).
"""

import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import clock, texts
from idistill_jax import config, records, sharding
from idistill_jax.data import batches, example, pack, similarity, tables, tfrecord
from idistill_jax.train import inference, inputs, loop, networks, objectives, utilization

LISTS = "lists"
# Steps before the clock: compilation, and threads that have not read ahead yet.
SKIPPED_STEPS = 3


def settings(weights: str, *, dtype: str, max_tokens: int, row_tokens: int, tokens_per_step: int) -> config.Encoder:
  return config.Encoder(weights=weights, query_tokens=32, passage_tokens=max_tokens, row_tokens=row_tokens,
                        tokens_per_step=tokens_per_step, training_dtype=dtype, inference_dtype=dtype)


def _inputs(lists: texts.Lists, network: networks.Network, encoder: config.Encoder) -> inputs.Inputs:
  passages = tables.Passages(records.Passage(id=f"p{i}", title="", text=t) for i, t in enumerate(lists.passages))
  queries = tables.Queries(records.Query(id=f"q{i}", text=t, split="train") for i, t in enumerate(lists.queries))
  tokenizer, nothing = network.tokenizer, np.zeros((1, 1), np.float32)
  return inputs.Inputs(
    passages=passages, queries=queries,
    passage_tokens=tokenizer.table(passages.texts, encoder.passage_tokens),
    query_tokens=tokenizer.table(queries.texts, encoder.query_tokens),
    similarity=similarity.Similarities(np.broadcast_to(nothing, (len(queries), 1)),
                                       np.broadcast_to(nothing, (len(passages), 1))),
  )


def _write_lists(folder: pathlib.Path, lists: texts.Lists) -> None:
  example.write_records(folder, LISTS, (
    records.ScoredList(query_id=f"q{q}", scores=tuple(map(float, -np.sort(-row))),
                       passage_ids=tuple(f"p{q * lists.width + n}" for n in np.argsort(-row)))
    for q, row in enumerate(lists.scores)
  ))


def train_step(kind: str, lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int, passes: int,
               folder: pathlib.Path) -> dict[str, Any]:
  """Real tokens and passages a second of the loop that the stages run.  kind: "retriever" or "ranker"."""
  pairs = kind == "ranker"
  build = networks.ranker(encoder, "classifier") if pairs else networks.retriever(encoder)
  mesh = sharding.make_mesh(config.Mesh())
  network = build.on(mesh, encoder.training_dtype)
  data = _inputs(lists, network, encoder)
  _write_lists(folder, lists)
  loss = (objectives.ranker(config.Ranker(similarity_weight=None, passes=passes), network) if pairs else
          objectives.retriever(config.Retriever(loss="kl_list", passes=passes), network))
  kind_of_texts = batches.PairTexts if pairs else batches.DualTexts
  stream = batches.Batches(
    records=tfrecord.ShardedRecords(folder, LISTS), decode=data.scored, epochs=1, seed=0, similarity=data.similarity,
    texts=kind_of_texts(queries=data.query_tokens, passages=data.passage_tokens),
    shape=batches.Shape(lists=lists_per_batch, passages=lists.width, always_best=lists.width,
                        row_tokens=encoder.row_tokens, row_multiple=passes * sharding.batch_shards(mesh)),
  )
  loop.train(loop.Training(name=f"{kind} step", network=network, start=lambda: network.initial(0), loss_fn=loss,
                           batches=stream, optim=config.Optim(), mesh=mesh, folder=folder,
                           checkpoints=epath.Path(folder) / "checkpoints", checkpoint_every=10**9, profile=None))
  steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][SKIPPED_STEPS:]
  tokens = [pack.real_tokens(stream[step["step"] - 1].rows) for step in steps]
  seconds = sum(n / step["tokens_per_second"] for n, step in zip(tokens, steps, strict=True))
  return {
    "steps": len(steps), "step_seconds": seconds / len(steps), "tokens_per_second": sum(tokens) / seconds,
    "passages_per_second": len(steps) * lists_per_batch * lists.width / seconds,
    "fill": float(np.mean([step["fill"] for step in steps])), "rows": stream.rows,
    "flops_per_token": utilization.flops_per_token(network),
  }


def input_pipeline(lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int,
                   folder: pathlib.Path) -> dict[str, Any]:
  """Real tokens a second that the input alone delivers for the retriever, from TFRecords to packed batches."""
  network = networks.retriever(encoder)
  data = _inputs(lists, network, encoder)
  _write_lists(folder, lists)
  stream = batches.Batches(
    records=tfrecord.ShardedRecords(folder, LISTS), decode=data.scored, epochs=2, seed=0, similarity=data.similarity,
    texts=batches.DualTexts(queries=data.query_tokens, passages=data.passage_tokens),
    shape=batches.Shape(lists=lists_per_batch, passages=lists.width, always_best=2, row_tokens=encoder.row_tokens),
  )
  iterator = batches.iterator(stream)
  next(iterator)
  started, tokens = time.perf_counter(), 0
  for batch in iterator:
    tokens += pack.real_tokens(batch.rows)
  return {"tokens_per_second": tokens / (time.perf_counter() - started)}


def encode(lists: texts.Lists, encoder: config.Encoder) -> dict[str, Any]:
  """Passages a second, from text in memory to vectors in memory; the second of two runs."""
  retriever = inference.load_retriever(config.Config(name="benchmark", encoder=encoder), None)
  retriever.encode_passages(lists.passages)
  rates = clock.rates(lambda: retriever.encode_passages(lists.passages), passages=len(lists.passages),
                      tokens=int(lists.passage_lengths.sum()))
  return rates | {"flops_per_token": utilization.flops_per_token(retriever.forward.network) / 3}


def encode_sorted(lists: texts.Lists, encoder: config.Encoder) -> dict[str, Any]:
  """The control of packing: as `encode`, but every text has a row to itself, in steps of texts of about one length."""
  mesh = sharding.make_mesh(config.Mesh())
  network = networks.retriever(encoder).on(mesh, encoder.inference_dtype)
  network, params = network.reading(sharding.put(network.initial(0), network.shardings(mesh)))
  apply = jax.jit(network.apply)

  def encoded() -> np.ndarray:
    table = network.tokenizer.table(lists.passages, encoder.passage_tokens)
    order = np.argsort(-table.lengths, kind="stable")
    block, found, start = network.execution.row_block, [], 0
    while start < len(order):
      # The longest comes first, and says how many rows there are.
      row_tokens = -(-int(table.lengths[order[start]]) // block) * block
      count = encoder.tokens_per_step // row_tokens
      here = order[start : start + count]
      alone = pack.Placement(np.arange(len(here)), np.zeros(len(here), np.int32), len(here))
      rows = pack.fill([table[i] for i in here], None, alone, rows=count, row_tokens=row_tokens, text_count=count)
      found.append(np.asarray(apply(params, sharding.put(rows, sharding.packed(rows, mesh))))[: len(here)])
      start += len(here)
    return np.concatenate(found)[np.argsort(order)]

  encoded()
  return clock.rates(encoded, passages=len(lists.passages), tokens=int(lists.passage_lengths.sum()))


def score(lists: texts.Lists, encoder: config.Encoder) -> dict[str, Any]:
  """Pairs a second of ranker scoring, from text to scores."""
  cfg = config.Config(name="benchmark", encoder=encoder,
                      ranker=config.Ranker(head="classifier", similarity_weight=None))
  ranker = inference.load_ranker(cfg, None)
  queries = [query for query in lists.queries for _ in range(lists.width)]
  none = np.zeros(len(queries), np.float32)
  ranker.score(queries, lists.passages, none)
  rates = clock.rates(lambda: ranker.score(queries, lists.passages, none), pairs=len(queries), tokens=lists.pair_tokens)
  return rates | {"flops_per_token": utilization.flops_per_token(ranker.forward.network) / 3}
