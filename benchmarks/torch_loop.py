"""What a careful user of PyTorch writes by hand: SDPA, autocast, fused AdamW, texts tokenised once, padded to a batch.

Sorted, the texts of a batch are read in groups of about one length, each padded to its own longest.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from torch.nn.utils import rnn

from benchmarks import peers, texts

# Name of a field -> what stands in it, [L].
Tokens = dict[str, torch.Tensor]

# Of a batch's passages or pairs; of more, each has too few texts to fill the device.
GROUPS = 4


def train_step(work: str, folder: pathlib.Path, lists: texts.Lists, *, groups: int, lists_per_batch: int, dtype: str,
               max_tokens: int, steps: int) -> dict[str, Any]:
  """Real tokens a second.  groups: of passages or pairs of about one length; 1 leaves them unsorted."""
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  make = _ranker if work == "ranker step" else _retriever
  step = make(folder, tokenizer, lists, max_tokens, groups)
  return peers.timed(step, work, lists, lists_per_batch, dtype, steps)


def _optimized(model: torch.nn.Module, loss_of: Callable[[range], torch.Tensor]) -> Callable[[range], None]:
  peers.without_dropout(model).to(peers.device()).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

  def step(chosen: range) -> None:
    loss_of(chosen).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

  return step


def _retriever(folder: pathlib.Path, tokenizer: Any, lists: texts.Lists, max_tokens: int,
               groups: int) -> Callable[[range], None]:
  """KL of the softmax over each list to the teacher's; states are pooled by their mean."""
  model = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa", add_pooling_layer=False)
  queries, passages = (
    _tokens(tokenizer(some, truncation=True, max_length=max_tokens, return_token_type_ids=False))
    for some in (lists.queries, lists.passages))

  def vectors(some: Sequence[Tokens]) -> torch.Tensor:
    batch = _padded(some)
    mask = batch["attention_mask"][..., None].float()
    return (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)

  def loss_of(chosen: range) -> torch.Tensor:
    rows = range(chosen.start * lists.width, chosen.stop * lists.width)
    asked = vectors([queries[q] for q in chosen])
    found = _in_groups(vectors, [passages[i] for i in rows], groups).view(len(chosen), lists.width, -1)
    scores = torch.einsum("qe,qne->qn", asked.float(), found.float())
    teacher = torch.tensor(lists.scores[list(chosen)], device=peers.device()).softmax(-1)
    return functional.kl_div(scores.log_softmax(-1), teacher, reduction="batchmean")

  return _optimized(model, loss_of)


def _ranker(folder: pathlib.Path, tokenizer: Any, lists: texts.Lists, max_tokens: int,
            groups: int) -> Callable[[range], None]:
  """ListMLE (Xia et al. 2008): minus the log-likelihood of the teacher's order."""
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder, attn_implementation="sdpa", num_labels=1)
  queries = [query for query in lists.queries for _ in range(lists.width)]
  pairs = _tokens(tokenizer(queries, lists.passages, truncation=True, max_length=max_tokens))
  best_first = np.argsort(-lists.scores, axis=1)

  def logits(some: Sequence[Tokens]) -> torch.Tensor:
    return model(**_padded(some)).logits[:, 0]

  def loss_of(chosen: range) -> torch.Tensor:
    rows = range(chosen.start * lists.width, chosen.stop * lists.width)
    scores = _in_groups(logits, [pairs[i] for i in rows], groups).view(len(chosen), lists.width).float()
    order = torch.tensor(best_first[list(chosen)], device=peers.device())
    ordered = scores.gather(1, order)
    return (ordered.flip(1).logcumsumexp(1).flip(1) - ordered).sum(1).mean()

  return _optimized(model, loss_of)


def _tokens(encoded: Any) -> list[Tokens]:
  """Of each text, what the model reads, without padding."""
  names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
  return [{name: torch.tensor(encoded[name][i]) for name in names} for i in range(len(encoded["input_ids"]))]


def _padded(some: Sequence[Tokens]) -> dict[str, torch.Tensor]:
  """To the longest; what is padded has no attention, so that 0 will do for every field."""
  pad = lambda parts: _sent(rnn.pad_sequence(parts, batch_first=True))
  batch = {name: pad([one[name] for one in some]) for name in some[0]}
  return batch | {"attention_mask": pad([torch.ones(len(one["input_ids"]), dtype=torch.long) for one in some])}


def _sent(batch: torch.Tensor) -> torch.Tensor:
  """On the device.  From pinned memory alone does the host not wait for it."""
  return batch.pin_memory().to("cuda", non_blocking=True) if peers.device() == "cuda" else batch


def _in_groups(read: Callable[[Sequence[Tokens]], torch.Tensor], some: Sequence[Tokens], groups: int) -> torch.Tensor:
  """What `read` makes of all, in their order, read in so many groups of about one length."""
  if groups == 1:
    return read(some)
  order = sorted(range(len(some)), key=lambda i: len(some[i]["input_ids"]))
  parts = [part.tolist() for part in np.array_split(order, min(groups, len(order)))]
  back = torch.tensor(np.argsort(order), device=peers.device())
  return torch.cat([read([some[i] for i in part]) for part in parts])[back]
