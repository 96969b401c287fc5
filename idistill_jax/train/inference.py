"""Trained or initial models over any number of texts: embeddings and ranker scores, packed, with progress."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from idistill_jax import config as config_lib
from idistill_jax import progress, sharding
from idistill_jax.data import pack, tokenize
from idistill_jax.train import checkpoint, networks

# Texts that are packed together: enough for full rows, few enough to hold.
LOOKAHEAD = 8192
# At most this many texts share a row on average; fixes the number of pooled vectors a step.
SHORTEST_TEXT = 6
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Retriever:
  """A dual encoder with its parameters on the mesh."""

  cfg: config_lib.Encoder
  forward: "Forward"

  def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
    """Embeddings float32 [Q, E]."""
    return self._encode("queries", texts, self.cfg.query_tokens)

  def encode_passages(self, texts: Sequence[str]) -> np.ndarray:
    """Embeddings float32 [P, E]."""
    return self._encode("passages", texts, self.cfg.passage_tokens)

  def _encode(self, name: str, texts: Sequence[str], max_tokens: int) -> np.ndarray:
    table = self.forward.network.tokenizer.table(texts, max_tokens)
    return self.forward(f"encode {name}", table.lengths, lambda i: (table[i], None))


@dataclasses.dataclass(frozen=True)
class Ranker:
  """A cross-encoder with its parameters on the mesh, and the weight of the initial similarity in its score."""

  cfg: config_lib.Encoder
  forward: "Forward"
  similarity_weight: float | None

  def score(self, queries: Sequence[str], passages: Sequence[str], similarities: np.ndarray) -> np.ndarray:
    """Scores float32 [pairs] of queries[i] with passages[i], whose initial similarity is similarities[i]."""
    distinct_queries, query_of = np.unique(np.asarray(queries, object), return_inverse=True)
    distinct_passages, passage_of = np.unique(np.asarray(passages, object), return_inverse=True)
    tokenizer = self.forward.network.tokenizer
    query_table = tokenizer.table(distinct_queries.tolist(), self.cfg.query_tokens)
    passage_table = tokenizer.table(distinct_passages.tolist(), self.cfg.pair_cut)
    return self.score_rows(query_table, passage_table, query_of, passage_of, similarities)

  def score_rows(self, queries: tokenize.TokenTable, passages: tokenize.TokenTable, query_of: np.ndarray,
                 passage_of: np.ndarray, similarities: np.ndarray) -> np.ndarray:
    """As `score`, over token tables and the rows of each pair."""
    lengths = queries.lengths[query_of] + passages.lengths[passage_of] - 1
    learned = self.forward("score pairs", lengths,
                           lambda i: tokenize.pair(queries[query_of[i]], passages[passage_of[i]]))
    if self.similarity_weight is None:
      return learned
    return learned + self.similarity_weight * np.asarray(similarities, np.float32)


def load_retriever(cfg: config_lib.Config, folder: epath.PathLike | None) -> Retriever:
  """The retriever trained in a stage's folder, or the initial one where `folder` is None."""
  network = networks.retriever(cfg.encoder)
  return Retriever(cfg.encoder, _forward(cfg, network, folder, cfg.encoder.row_tokens))


def load_ranker(cfg: config_lib.Config, folder: epath.PathLike | None) -> Ranker:
  """The ranker trained in a stage's folder, or the untrained one where `folder` is None."""
  network = networks.ranker(cfg.encoder, cfg.ranker.head)
  return Ranker(cfg.encoder, _forward(cfg, network, folder, cfg.encoder.list_row), cfg.ranker.similarity_weight)


def load_params(network: networks.Network, folder: epath.PathLike | None, mesh: jax.sharding.Mesh, seed: int) -> Any:
  """Parameters trained in a stage's folder, or the initial ones where it is None, laid over the mesh."""
  layout = network.shardings(mesh)
  if folder is None:
    return jax.tree.map(jax.device_put, network.initial(seed), layout)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  abstract = jax.tree.map(place, network.abstract, layout)
  return checkpoint.load_model(epath.Path(folder) / MODEL, abstract)


def _forward(
  cfg: config_lib.Config, network: networks.Network, folder: epath.PathLike | None, row_tokens: int
) -> "Forward":
  mesh = sharding.make_mesh(cfg.mesh)
  params = load_params(network, folder, mesh, cfg.seed)
  network = network.on(mesh, cfg.encoder.inference_dtype)
  return Forward(network, params, mesh, row_tokens, max(1, cfg.encoder.tokens_per_step // row_tokens))


class Forward:
  """A jitted forward pass over many packed texts, one static shape."""

  def __init__(
    self, network: networks.Network, params: Any, mesh: jax.sharding.Mesh, row_tokens: int, rows_per_step: int
  ):
    self.network = network
    self.params = params
    self._mesh, self._row_tokens = mesh, row_tokens
    self._rows = -(-rows_per_step // sharding.batch_shards(mesh)) * sharding.batch_shards(mesh)
    self._per_row = max(1, row_tokens // SHORTEST_TEXT)
    self._apply = jax.jit(network.apply)

  def __call__(
    self, name: str, lengths: np.ndarray, text: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
  ) -> np.ndarray:
    """Output [T, ...] for texts of the given lengths, `text(i)` giving (token ids, type ids) of each."""
    out: np.ndarray | None = None
    done = 0
    with progress.bar(name, total=len(lengths)) as bar:
      pending: tuple[np.ndarray, np.ndarray, jax.Array] | None = None
      for which, numbers, rows in self._steps(lengths, text):
        result = self._apply(self.params, self._place(rows))
        for indices, slots, values in filter(None, [pending]):
          out = _put(out, len(lengths), indices, np.asarray(values)[slots])
          done += len(indices)
          bar.update(done)
        pending = which, numbers, result
      if pending is not None:
        out = _put(out, len(lengths), pending[0], np.asarray(pending[2])[pending[1]])
        bar.update(len(lengths))
    return out if out is not None else np.zeros((0,), np.float32)

  def _place(self, rows: pack.Rows) -> pack.Rows:
    return jax.device_put(rows, sharding.packed(rows, self._mesh))

  def _steps(
    self, lengths: np.ndarray, text: Callable[[int], tuple[np.ndarray, np.ndarray | None]]
  ) -> Iterator[tuple[np.ndarray, np.ndarray, pack.Rows]]:
    """(text indices, their output slots, packed rows) of each step."""
    for begin in range(0, len(lengths), LOOKAHEAD):
      window = np.arange(begin, min(begin + LOOKAHEAD, len(lengths)))
      placement = pack.place(lengths[window], self._row_tokens, self._per_row)
      for first in range(0, placement.rows, self._rows):
        here = np.flatnonzero((placement.row >= first) & (placement.row < first + self._rows))
        yield self._step(window[here], placement.row[here] - first, placement.column[here], text)

  def _step(self, indices: np.ndarray, row: np.ndarray, column: np.ndarray,
            text: Callable[[int], tuple[np.ndarray, np.ndarray | None]]) -> tuple[np.ndarray, np.ndarray, pack.Rows]:
    slots = _slots(row, column) + row * self._per_row
    pairs = [text(int(i)) for i in indices]
    types = [t for _, t in pairs if t is not None]
    rows = pack.fill([ids for ids, _ in pairs], types or None, pack.Placement(row, column, self._rows), rows=self._rows,
                     row_tokens=self._row_tokens, text_ids=slots, text_count=self._rows * self._per_row)
    return indices, slots, rows


def _slots(row: np.ndarray, column: np.ndarray) -> np.ndarray:
  """0, 1, 2... within each row, by column."""
  order = np.lexsort((column, row))
  first_of_row = np.searchsorted(row[order], row[order], side="left")
  slots = np.empty(len(row), np.int64)
  slots[order] = np.arange(len(row)) - first_of_row
  return slots


def _put(out: np.ndarray | None, total: int, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
  if out is None:
    out = np.empty((total, *values.shape[1:]), np.float32)
  out[indices] = values
  return out
