"""sentence-transformers at the same work: its trainers, its losses in the plainest loop, `encode` and `predict`.

The trainers need accelerate and datasets (extra `bench`).  Every training has `steps` timed steps after SKIPPED_STEPS.
"""

import contextlib
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses as dual_losses

from benchmarks import clock, texts
from idistill_jax import extras

SKIPPED_STEPS = 2


def device() -> str:
  return "cuda" if torch.cuda.is_available() else "cpu"


def wait() -> None:
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def autocast(dtype: str) -> torch.autocast:
  return torch.autocast(device(), dtype=getattr(torch, dtype), enabled=dtype != "float32")


def rates(lists_a_step: int, width: int, tokens_a_step: float, steps: int, seconds: float) -> dict[str, Any]:
  """Of a training whose timed steps took so long together."""
  mean = seconds / steps
  return {"steps": steps, "step_seconds": mean, "tokens_per_second": tokens_a_step / mean,
          "passages_per_second": lists_a_step * width / mean}


def timed(step: Callable[[range], None], work: str, lists: texts.Lists, lists_per_batch: int, dtype: str,
          steps: int) -> dict[str, Any]:
  """Rates of steps over the lists that come next.

  No step waits for the one before it, as ours does not: a batch is made ready while the device is at the last.
  """
  started, tokens, of_list = 0.0, [], lists.tokens(work)
  for number in range(SKIPPED_STEPS + steps):
    if number == SKIPPED_STEPS:
      wait()
      started = time.perf_counter()
    first = number * lists_per_batch % (len(lists.queries) - lists_per_batch + 1)
    chosen = range(first, first + lists_per_batch)
    with autocast(dtype):
      step(chosen)
    tokens.append(of_list[chosen].sum())
  wait()
  return rates(lists_per_batch, lists.width, float(np.mean(tokens[SKIPPED_STEPS:])), steps,
               time.perf_counter() - started)


def without_dropout(model: torch.nn.Module) -> torch.nn.Module:
  """The model; dropout is none of the work that is compared, and torch's fused attention on a CPU takes none."""
  for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
      module.p = 0.0
  return model


# -- Models --------------------------------------------------------------------------------------------------------


def _dual(folder: pathlib.Path, max_tokens: int) -> sentence_transformers.SentenceTransformer:
  model = sentence_transformers.SentenceTransformer(str(folder), device=device())
  model.max_seq_length = max_tokens
  without_dropout(model)
  return model


def _cross(folder: pathlib.Path, max_tokens: int) -> sentence_transformers.CrossEncoder:
  model = sentence_transformers.CrossEncoder(str(folder), num_labels=1, max_length=max_tokens, device=device())
  without_dropout(model)
  return model


# -- Training ------------------------------------------------------------------------------------------------------


def by_trainer(work: str, folder: pathlib.Path, lists: texts.Lists, *, lists_per_batch: int, dtype: str,
               max_tokens: int, steps: int) -> dict[str, Any]:
  """As its users train: columns of a data set, a loss, a trainer, which shuffles: tokens are those of a mean batch."""
  with extras.needed("sentence-transformers' trainer", "bench"):
    import accelerate  # noqa: F401  (that it is missing the trainer says in other words)
    import datasets
  import transformers
  from sentence_transformers import cross_encoder, sentence_transformer

  class Clock(transformers.TrainerCallback):
    def __init__(self) -> None:
      self.ended = 0
      self.times: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
      self.ended += 1
      if self.ended in (SKIPPED_STEPS, SKIPPED_STEPS + steps):
        wait()
        self.times.append(time.perf_counter())

  rows = [range(q * lists.width, (q + 1) * lists.width) for q in range(len(lists.queries))]
  columns: dict[str, Any] = {"query": lists.queries}
  if work == "ranker step":
    model, parts = _cross(folder, max_tokens), cross_encoder
    columns |= {"passages": [[lists.passages[i] for i in row] for row in rows]}
    loss = cross_losses.ListMLELoss(model)
    trainer, arguments = parts.CrossEncoderTrainer, parts.CrossEncoderTrainingArguments
  else:
    model, parts = _dual(folder, max_tokens), sentence_transformer
    columns |= {f"passage{n}": [lists.passages[row[n]] for row in rows] for n in range(lists.width)}
    loss = dual_losses.DistillKLDivLoss(model)
    trainer, arguments = parts.SentenceTransformerTrainer, parts.SentenceTransformerTrainingArguments
  seconds = Clock()
  with tempfile.TemporaryDirectory() as out:
    settings = arguments(
      output_dir=out, per_device_train_batch_size=lists_per_batch, max_steps=SKIPPED_STEPS + steps,
      bf16=dtype == "bfloat16", use_cpu=device() == "cpu", save_strategy="no", logging_strategy="no", report_to=[],
      disable_tqdm=True, dataloader_num_workers=0)
    data = datasets.Dataset.from_dict(columns | {"label": lists.scores.tolist()})
    trainer(model=model, args=settings, train_dataset=data, loss=loss, callbacks=[seconds]).train()
  begun, ended = seconds.times
  return rates(lists_per_batch, lists.width, lists.tokens(work).mean() * lists_per_batch, steps, ended - begun)


def by_plain_loop(work: str, folder: pathlib.Path, lists: texts.Lists, *, lists_per_batch: int, dtype: str,
                  max_tokens: int, steps: int) -> dict[str, Any]:
  """Without what its trainer does beside: tokenise, forward, backward, AdamW."""
  step = (_ranker if work == "ranker step" else _retriever)(folder, lists, max_tokens)
  return timed(step, work, lists, lists_per_batch, dtype, steps)


def _retriever(folder: pathlib.Path, lists: texts.Lists, max_tokens: int) -> Callable[[range], None]:
  model = _dual(folder, max_tokens)
  loss = dual_losses.DistillKLDivLoss(model)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

  def step(chosen: range) -> None:
    columns = [[lists.queries[q] for q in chosen]]
    columns += [[lists.passages[q * lists.width + n] for q in chosen] for n in range(lists.width)]
    features = [{name: value.to(device()) for name, value in model.tokenize(column).items()
                 if isinstance(value, torch.Tensor)} for column in columns]
    labels = torch.tensor(lists.scores[list(chosen)], device=device())
    loss(features, labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


def _ranker(folder: pathlib.Path, lists: texts.Lists, max_tokens: int) -> Callable[[range], None]:
  model = _cross(folder, max_tokens)
  loss = cross_losses.ListMLELoss(model)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

  def step(chosen: range) -> None:
    queries = [lists.queries[q] for q in chosen]
    passages = [lists.passages[q * lists.width:(q + 1) * lists.width] for q in chosen]
    labels = [torch.tensor(lists.scores[q], device=device()) for q in chosen]
    loss([queries, passages], labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


# -- Reading -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(model: torch.nn.Module, dtype: str):
  """As each device reads fastest in short numbers: a GPU with short weights, a CPU by autocast."""
  if dtype != "float32" and device() == "cuda":
    model.to(getattr(torch, dtype))
    yield
  else:
    with autocast(dtype):
      yield


def encode(folder: pathlib.Path, lists: texts.Lists, corpus: pathlib.Path, *, dtype: str, max_tokens: int,
           batch_size: int) -> dict[str, Any]:
  """From a file of JSON lines to a file of vectors."""
  model = _dual(folder, max_tokens)

  def whole() -> None:
    with corpus.open(encoding="utf-8") as lines:
      passages = [json.loads(line)["text"] for line in lines]
    np.save(corpus.with_name("peer.npy"), model.encode(passages, batch_size=batch_size, show_progress_bar=False))

  with _reading(model, dtype):
    model.encode(lists.passages[:256], batch_size=batch_size)
    wait()
    return clock.rates(whole, passages=len(lists.passages), tokens=int(lists.passage_lengths.sum()))


def score(folder: pathlib.Path, lists: texts.Lists, *, dtype: str, max_tokens: int, batch_size: int) -> dict[str, Any]:
  model = _cross(folder, max_tokens)
  queries = [query for query in lists.queries for _ in range(lists.width)]
  pairs = list(zip(queries, lists.passages, strict=True))
  with _reading(model, dtype):
    model.predict(pairs[:256], batch_size=batch_size)
    wait()
    return clock.rates(lambda: model.predict(pairs, batch_size=batch_size), pairs=len(pairs),
                       tokens=int(lists.tokens("score").sum()))
