"""sentence-transformers at the same work: its own losses, tokenisation and models, in the plainest training loop."""

import pathlib
import time
from typing import Any

import numpy as np
import sentence_transformers
import torch
from sentence_transformers.cross_encoder import losses as cross_losses
from sentence_transformers.sentence_transformer import losses as dual_losses

from benchmarks import clock, texts

SKIPPED_STEPS = 2


def _device() -> str:
  return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def train_step(kind: str, folder: pathlib.Path, lists: texts.Lists, *, lists_per_batch: int, dtype: str,
               max_tokens: int, steps: int) -> dict[str, Any]:
  """Real tokens a second of `steps` steps: tokenise, forward, backward, AdamW."""
  step = (_ranker if kind == "ranker" else _retriever)(folder, lists, lists_per_batch, max_tokens)
  tokens_a_list = (lists.pair_tokens if kind == "ranker" else lists.dual_tokens) / len(lists.queries)
  seconds = []
  for number in range(SKIPPED_STEPS + steps):
    first = number * lists_per_batch % (len(lists.queries) - lists_per_batch + 1)
    started = time.perf_counter()
    with torch.autocast(_device(), dtype=getattr(torch, dtype), enabled=dtype != "float32"):
      step(range(first, first + lists_per_batch))
    _wait()
    seconds.append(time.perf_counter() - started)
  step_seconds = float(np.mean(seconds[SKIPPED_STEPS:]))
  return {"steps": steps, "step_seconds": step_seconds,
          "tokens_per_second": tokens_a_list * lists_per_batch / step_seconds,
          "passages_per_second": lists_per_batch * lists.width / step_seconds}


def _retriever(folder: pathlib.Path, lists: texts.Lists, lists_per_batch: int, max_tokens: int) -> Any:
  model = sentence_transformers.SentenceTransformer(str(folder), device=_device())
  model.max_seq_length = max_tokens
  loss = dual_losses.DistillKLDivLoss(model)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

  def step(chosen: range) -> None:
    columns = [[lists.queries[q] for q in chosen]]
    columns += [[lists.passages[q * lists.width + n] for q in chosen] for n in range(lists.width)]
    features = [{name: value.to(_device()) for name, value in model.tokenize(column).items()
                 if isinstance(value, torch.Tensor)} for column in columns]
    labels = torch.tensor(lists.scores[list(chosen)], device=_device())
    loss(features, labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


def _ranker(folder: pathlib.Path, lists: texts.Lists, lists_per_batch: int, max_tokens: int) -> Any:
  model = sentence_transformers.CrossEncoder(str(folder), num_labels=1, max_length=max_tokens, device=_device())
  loss = cross_losses.ListMLELoss(model)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

  def step(chosen: range) -> None:
    queries = [lists.queries[q] for q in chosen]
    passages = [lists.passages[q * lists.width:(q + 1) * lists.width] for q in chosen]
    labels = [torch.tensor(lists.scores[q], device=_device()) for q in chosen]
    loss([queries, passages], labels).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


def encode(folder: pathlib.Path, lists: texts.Lists, *, dtype: str, max_tokens: int, batch_size: int) -> dict[str, Any]:
  model = sentence_transformers.SentenceTransformer(str(folder), device=_device())
  model.max_seq_length = max_tokens
  with torch.autocast(_device(), dtype=getattr(torch, dtype), enabled=dtype != "float32"):
    model.encode(lists.passages[:256], batch_size=batch_size)
    _wait()
    return clock.rates(lambda: model.encode(lists.passages, batch_size=batch_size), passages=len(lists.passages),
                       tokens=int(lists.passage_lengths.sum()))


def score(folder: pathlib.Path, lists: texts.Lists, *, dtype: str, max_tokens: int, batch_size: int) -> dict[str, Any]:
  model = sentence_transformers.CrossEncoder(str(folder), num_labels=1, max_length=max_tokens, device=_device())
  queries = [query for query in lists.queries for _ in range(lists.width)]
  pairs = list(zip(queries, lists.passages, strict=True))
  with torch.autocast(_device(), dtype=getattr(torch, dtype), enabled=dtype != "float32"):
    model.predict(pairs[:256], batch_size=batch_size)
    _wait()
    return clock.rates(lambda: model.predict(pairs, batch_size=batch_size), pairs=len(pairs), tokens=lists.pair_tokens)
