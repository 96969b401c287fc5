"""What this package does in a second: training steps from TFRecords, encoding from a file to a file, scoring of pairs.

Every measurement but that of the first step has "tokens_per_second" and, but for the input pipeline,
"flops_per_token" (see train/utilization.py).
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import clock, texts
from idistill_jax import config, records, sharding
from idistill_jax.data import batches, example, pack, similarity, tables
from idistill_jax.data import lists as lists_lib
from idistill_jax.data.corpora import jsonl
from idistill_jax.hf import networks
from idistill_jax.models import execution
from idistill_jax.train import fit, inference, inputs, loop, objectives, utilization, windows
from idistill_jax.workdir import artifacts

LISTS = "lists"
# Steps before the clock: compilation, and threads that have not read ahead yet.  Of few steps the first alone.
SKIPPED_STEPS, FEW = 3, 6


def settings(weights: str, *, dtype: str, max_tokens: int, row_tokens: int, tokens_per_step: int) -> config.Encoder:
  return config.Encoder(weights=weights, query_tokens=32, passage_tokens=max_tokens, row_tokens=row_tokens,
                        tokens_per_step=tokens_per_step, training_dtype=dtype, inference_dtype=dtype)


def _inputs(lists: texts.Lists, network: networks.Network, encoder: config.Encoder,
            folder: pathlib.Path) -> inputs.Inputs:
  """As the stages read them, from lists that are written into the folder."""
  passages = tables.Passages(records.Passage(id=f"p{i}", title="", text=t) for i, t in enumerate(lists.passages))
  queries = tables.Queries(records.Query(id=f"q{i}", text=t, split="train") for i, t in enumerate(lists.queries))
  example.write_records(folder, LISTS, (
    records.ScoredList(query_id=f"q{q}", scores=tuple(map(float, -np.sort(-row))),
                       passage_ids=tuple(f"p{q * lists.width + n}" for n in np.argsort(-row)))
    for q, row in enumerate(lists.scores)
  ))
  tokenizer, nothing = network.tokenizer, np.zeros((1, 1), np.float32)
  return inputs.Inputs(
    lists=[lists_lib.numbered(one, queries, passages)
           for one in example.read_records(folder, LISTS, records.ScoredList)],
    passage_tokens=tokenizer.table(passages.texts, encoder.passage_tokens),
    query_tokens=tokenizer.table(queries.texts, encoder.query_tokens),
    similarity=similarity.Similarities(np.broadcast_to(nothing, (len(queries), 1)),
                                       np.broadcast_to(nothing, (len(passages), 1))),
  )


def training(work: str, lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int, passes: int,
             folder: pathlib.Path, epochs: int = 1) -> loop.Training:
  """What the stages would run over the lists, which are written into the folder.

  work: "ranker step", or a retriever's: with a loss over each list as its peers have it, or, in passes, with one over
  all passages of the batch, on which nothing but GradCache gives exact gradients.
  """
  pairs = work == "ranker step"
  build = networks.ranker(encoder, "classifier") if pairs else networks.retriever(encoder)
  mesh = sharding.make_mesh(config.Mesh())
  network = build.on(mesh, encoder.training_dtype)
  data = _inputs(lists, network, encoder, folder)
  over = "kl_list" if passes == 1 else "kl_batch"
  shape: dict[str, Any] = {"lists_per_batch": lists_per_batch, "passages_per_list": lists.width,
                           "always_best": lists.width, "passes": passes}
  cfg = config.Ranker(similarity_weight=None, **shape) if pairs else config.Retriever(loss=over, **shape)
  loss = objectives.ranker(cfg, network) if isinstance(cfg, config.Ranker) else objectives.retriever(cfg, network)
  kind_of_texts = batches.PairTexts if pairs else batches.DualTexts
  stream = batches.Batches(
    lists=data.lists, texts=kind_of_texts(queries=data.query_tokens, passages=data.passage_tokens),
    shape=fit.shape(cfg, encoder.list_row_tokens, network, mesh), similarity=data.similarity, epochs=epochs, seed=0,
  )
  return loop.Training(
    name=work, network=network, start=lambda: network.initial(0), loss_fn=loss, batches=stream, optim=config.Optim(),
    mesh=mesh, folder=folder, checkpoints=epath.Path(folder) / "checkpoints", checkpoint_every=10**9, profile=None)


def train_step(work: str, lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int, folder: pathlib.Path,
               passes: int = 1, epochs: int = 1) -> dict[str, Any]:
  """Real tokens and passages a second of the loop that the stages run; work: as in `training`."""
  one = training(work, lists, encoder, lists_per_batch=lists_per_batch, passes=passes, folder=folder, epochs=epochs)
  stream = one.batches
  loop.train(one)
  rows = _metrics(folder)
  steps = rows[1 if len(rows) < FEW else SKIPPED_STEPS:]
  tokens = [stream.tokens(step["step"] - 1) for step in steps]
  seconds = sum(n / step["tokens_per_second"] for n, step in zip(tokens, steps, strict=True))
  return {
    "steps": len(steps), "step_seconds": seconds / len(steps), "tokens_per_second": sum(tokens) / seconds,
    "passages_per_second": len(steps) * lists_per_batch * lists.width / seconds,
    "fill": float(np.mean([step["fill"] for step in steps])), "rows": stream.rows,
    "input_wait": float(np.mean([step["input_wait"] for step in steps])),
    **{name: rows[0][name] for name in windows.OF_START},
    "flops_per_token": utilization.flops_per_token(one.network),
  }


def _metrics(folder: pathlib.Path) -> list[dict[str, float]]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def first_step(lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int, folder: pathlib.Path,
               cache: pathlib.Path) -> dict[str, Any]:
  """Seconds until a retriever's first step is done, and what of them its program took; cache: of compiled programs."""
  jax.config.update("jax_compilation_cache_dir", str(cache))
  few = dataclasses.replace(
    lists, queries=lists.queries[:lists_per_batch], passages=lists.passages[:lists_per_batch * lists.width],
    scores=lists.scores[:lists_per_batch])
  loop.train(training("retriever step", few, encoder, lists_per_batch=lists_per_batch, passes=1, folder=folder))
  return {name: _metrics(folder)[0][name] for name in windows.OF_START}


def input_pipeline(lists: texts.Lists, encoder: config.Encoder, *, lists_per_batch: int,
                   folder: pathlib.Path) -> dict[str, Any]:
  """Real tokens a second that the input alone delivers for the retriever: lists that were read and tokenised, as
  trainings do it before their first step, to packed batches."""
  one = training("retriever step", lists, encoder, lists_per_batch=lists_per_batch, passes=1, folder=folder, epochs=2)
  # From before its threads start: batches that were read ahead of the clock would count as made in no time.
  started, tokens = time.perf_counter(), 0
  for batch in batches.iterator(one.batches):
    tokens += pack.real_tokens(batch.rows)
  return {"tokens_per_second": tokens / (time.perf_counter() - started)}


def encode(lists: texts.Lists, encoder: config.Encoder, corpus: pathlib.Path) -> dict[str, Any]:
  """Passages a second, from a file of JSON lines to a file of vectors, by pieces as the stages do; the second of two
  runs."""
  cfg, folder = config.Config(name="benchmark", encoder=encoder), corpus.parent
  retriever = inference.load_retriever(cfg, None, artifacts.Job(cfg=cfg, out=folder, inputs={}, cache=folder))

  def whole() -> None:
    passages = [text for _, _, text in jsonl.with_texts(jsonl.identified(corpus), ("text",))]
    np.save(folder / similarity.PASSAGES, retriever.encode_passages(passages))

  whole()
  rates = clock.rates(whole, passages=len(lists.passages), tokens=int(lists.passage_lengths.sum()))
  return rates | {"flops_per_token": utilization.flops_per_token(retriever.forward.network) / 3, "fill": _fill(folder)}


def _fill(folder: pathlib.Path) -> float:
  """Of the last run over all pieces that the folder's log tells of."""
  told = [json.loads(line) for line in windows.path(folder, 0).read_text().splitlines()]
  return float(np.mean([line["fill"] for line in told[-told[-1]["pieces"]:]]))


def encode_sorted(lists: texts.Lists, encoder: config.Encoder) -> dict[str, Any]:
  """The control of packing: as `encode`, but every text has a row to itself, in steps of texts of about one length."""
  mesh = sharding.make_mesh(config.Mesh())
  network = networks.retriever(encoder).on(mesh, encoder.inference_dtype)
  network, params = network.reading(sharding.put(network.initial(0), network.shardings(mesh)))
  apply = jax.jit(network.apply, compiler_options=execution.compiler_options(mesh))

  def encoded() -> tuple[np.ndarray, int]:
    """The vectors, and for how many tokens the rows had places."""
    table = network.tokenizer.table(lists.passages, encoder.passage_tokens)
    order = np.argsort(-table.lengths, kind="stable")
    block, found, start, room = network.execution.row_block, [], 0, 0
    while start < len(order):
      # The longest comes first, and says how many rows there are.
      row_tokens = -(-int(table.lengths[order[start]]) // block) * block
      count = encoder.tokens_per_step // row_tokens
      here = order[start : start + count]
      alone = pack.Placement(np.arange(len(here)), np.zeros(len(here), np.int32), len(here))
      rows = pack.fill(table.lengths[here], lambda i, here=here: (table[here[i]], None), alone, rows=count,
                       row_tokens=row_tokens, text_count=count)
      # Fetched behind the last: as there, no step waits for the one before it.
      found.append((apply(params, sharding.put(rows, sharding.packed(rows, mesh))), len(here)))
      start, room = start + len(here), room + count * row_tokens
    return np.concatenate([np.asarray(vectors)[:texts] for vectors, texts in found])[np.argsort(order)], room

  _, room = encoded()
  tokens = int(lists.passage_lengths.sum())
  return clock.rates(encoded, passages=len(lists.passages), tokens=tokens) | {"fill": tokens / room}


def score(lists: texts.Lists, encoder: config.Encoder, folder: pathlib.Path) -> dict[str, Any]:
  """Pairs a second of ranker scoring, from text to scores, by pieces as the stages do."""
  cfg = config.Config(name="benchmark", encoder=encoder,
                      ranker=config.Ranker(head="classifier", similarity_weight=None))
  ranker = inference.load_ranker(cfg, None, artifacts.Job(cfg=cfg, out=folder, inputs={}, cache=folder))
  queries = [query for query in lists.queries for _ in range(lists.width)]
  none = np.zeros(len(queries), np.float32)
  ranker.score(queries, lists.passages, none)
  rates = clock.rates(lambda: ranker.score(queries, lists.passages, none), pairs=len(queries),
                      tokens=int(lists.tokens("score").sum()))
  return rates | {"flops_per_token": utilization.flops_per_token(ranker.forward.network) / 3, "fill": _fill(folder)}
