"""Trained or initial models over any number of texts: embeddings and ranker scores, packed, with progress.

The texts are cut into pieces that the processes of a job claim; each tokenises what it claims and works on its own
devices.
"""

import contextlib
import dataclasses
import itertools
import operator
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath

from idistill_jax import config as config_lib
from idistill_jax import processes, progress, sharding
from idistill_jax.data import pack, similarity, tables, tokenize
from idistill_jax.hf import networks
from idistill_jax.models import execution as execution_lib
from idistill_jax.train import checkpoint, truncation, windows
from idistill_jax.train import pieces as pieces_lib
from idistill_jax.train import shapes as shapes_lib
from idistill_jax.train import texts as texts_lib
from idistill_jax.workdir import artifacts, remade

MODEL = "model"
_UNSAVED = np.zeros(0, np.int64)

T = TypeVar("T")
# Is told how the texts of each kind were cut.
TellCuts = Callable[[Sequence[tokenize.Cut]], None]


@dataclasses.dataclass(frozen=True)
class Retriever:
  """A dual encoder with its parameters on the mesh; `tell` is told how the texts were cut that it embeds."""

  cfg: config_lib.Encoder
  forward: "Forward"
  tell: truncation.Tell | None = None

  def encode_queries(self, texts: Sequence[str], into: pathlib.Path | None = None) -> np.ndarray:
    """Embeddings float32 [Q, E]; into: as in Forward."""
    table = self.forward.network.query_table
    return self._encode("queries", texts_lib.Tokenised(texts, lambda some: table(some, self.cfg.query_tokens)), into)

  def encode_passages(self, texts: Sequence[str], into: pathlib.Path | None = None) -> np.ndarray:
    """Embeddings float32 [P, E]; into: as in Forward."""
    table = self.forward.network.passage_table
    return self._encode("passages", texts_lib.Tokenised(texts, lambda some: table(some, self.cfg.passage_tokens)), into)

  def _encode(self, name: str, texts: texts_lib.Texts, into: pathlib.Path | None) -> np.ndarray:
    return self.forward(f"encode {name}", texts, into, _telling(self.tell, name))


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
    return self.score_rows(distinct_queries.tolist(), distinct_passages.tolist(), query_of, passage_of, similarities)

  def score_rows(self, queries: Sequence[str], passages: Sequence[str], query_of: np.ndarray, passage_of: np.ndarray,
                 similarities: np.ndarray) -> np.ndarray:
    """As `score`, of queries[query_of[i]] with passages[passage_of[i]]: a process reads those of the pairs that it
    claims."""
    return whole_score(self.learned(queries, passages, query_of, passage_of), similarities, self.similarity_weight)

  def learned(self, queries: Sequence[str], passages: Sequence[str], query_of: np.ndarray, passage_of: np.ndarray,
              tell: truncation.Tell | None = None) -> np.ndarray:
    """As `score_rows`, without the similarities.  tell: is told how the texts were cut."""
    return self.forward("score pairs", self.pairs(queries, passages, query_of, passage_of),
                        tell=_telling(tell, "queries of lists", "passages of lists"))

  def pairs(self, queries: Sequence[str], passages: Sequence[str], query_of: np.ndarray,
            passage_of: np.ndarray) -> texts_lib.Pairs:
    """What it reads of the pairs of `score_rows`."""
    network, cfg = self.forward.network, self.cfg
    return texts_lib.Pairs(
      texts_lib.Half(texts=queries, row_of=query_of, table=lambda some: network.query_table(some, cfg.query_tokens)),
      texts_lib.Half(texts=passages, row_of=passage_of, table=lambda some: network.passage_table(some, cfg.pair_cut)),
      network.tokenizer.between)


def whole_score(learned: np.ndarray, similarities: np.ndarray, weight: float | None) -> np.ndarray:
  """float32 [pairs] of what a ranker has learned of each, and its initial similarity; weight: as of Ranker."""
  return learned if weight is None else learned + weight * np.asarray(similarities, np.float32)


def _telling(tell: truncation.Tell | None, *kinds: str) -> TellCuts | None:
  if tell is None:
    return None

  def tell_each(cuts: Sequence[tokenize.Cut]) -> None:
    for kind, cut in zip(kinds, cuts, strict=True):
      tell(kind, cut)

  return tell_each


def load_retriever(cfg: config_lib.Config, folder: epath.PathLike | None,
                   job: artifacts.Job | None = None) -> Retriever:
  """The retriever trained in a stage's folder, or the initial one where `folder` is None; `job` as in Forward.

  What is cut of its texts is told to the job.
  """
  network = networks.retriever(cfg.encoder)
  tell = None if job is None else truncation.telling(job)
  return Retriever(cfg.encoder, _forward(cfg, network, folder, cfg.encoder.row_tokens, job), tell)


def load_ranker(cfg: config_lib.Config, folder: epath.PathLike | None, job: artifacts.Job | None = None) -> Ranker:
  """The ranker trained in a stage's folder, or the untrained one where `folder` is None; `job` as in Forward."""
  network = networks.ranker(cfg.encoder, cfg.ranker.head)
  forward = _forward(cfg, network, folder, cfg.encoder.list_row, job)
  return Ranker(cfg.encoder, forward, cfg.ranker.similarity_weight)


def embed_collection(job: artifacts.Job,
                     folder: epath.PathLike | None) -> tuple[tables.Passages, tables.Queries, np.ndarray, np.ndarray]:
  """The collection's texts and their embeddings, float32 [P, E] and [Q, E], by the retriever of `load_retriever`.

  The embeddings are files of the job's folder, as data.similarity reads them.
  """
  passages, queries = tables.load_passages(job.inputs["collection"]), tables.load_queries(job.inputs["collection"])
  retriever = load_retriever(job.cfg, folder, job)
  passages_PxE = retriever.encode_passages(passages.texts, into=job.out / similarity.PASSAGES)
  queries_QxE = retriever.encode_queries(queries.texts, into=job.out / similarity.QUERIES)
  return passages, queries, passages_PxE, queries_QxE


def load_params(network: networks.Network, folder: epath.PathLike | None, mesh: jax.sharding.Mesh, seed: int) -> Any:
  """Parameters trained in a stage's folder, or the initial ones where it is None, laid over the mesh."""
  layout = network.shardings(mesh)
  if folder is None:
    return sharding.put(network.initial(seed), layout)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  abstract = jax.tree.map(place, network.abstract, layout)
  return checkpoint.load_model(epath.Path(folder) / MODEL, abstract)


def _forward(
  cfg: config_lib.Config, network: networks.Network, folder: epath.PathLike | None, row_tokens: int,
  job: artifacts.Job | None,
) -> "Forward":
  mesh = sharding.local_mesh(cfg.mesh)
  params = load_params(network, folder, mesh, cfg.seed)
  network = network.on(mesh, cfg.encoder.inference_dtype)
  saving = (_UNSAVED if job is None or folder is None else
            pieces_lib.numbers(checkpoint.saving(epath.Path(folder) / MODEL)))
  return Forward(network, params, mesh, row_tokens, cfg.encoder.tokens_per_step, job, saving)


class Forward:
  """A jitted forward pass over many packed texts, in one static shape or, where rows of two lengths pay, two.

  job: whose folder has what is finished, shared by all processes that see it, so that nothing is done twice, and what
  each of them did (see windows); None keeps nothing.
  """

  def __init__(
    self, network: networks.Network, params: Any, mesh: jax.sharding.Mesh, row_tokens: int, tokens_per_step: int,
    job: artifacts.Job | None = None, saving: np.ndarray = _UNSAVED,
  ):
    self.network, self.params = network.reading(params)
    self._mesh, self._row_tokens, self._step_tokens = mesh, row_tokens, tokens_per_step
    self._apply = jax.jit(self.network.apply, compiler_options=execution_lib.compiler_options(mesh))
    self._job, self._saving, self._calls = job, saving, itertools.count()

  def __call__(self, name: str, texts: texts_lib.Texts, into: pathlib.Path | None = None,
               tell: TellCuts | None = None) -> np.ndarray:
    """Output [T, ...] for T texts.

    into: a file that it is written to and mapped from, as in `Pieces.whole`.  tell: is told how they were cut, in the
    process that writes.  Who only helps gets T zeros.
    """
    job, total, none = self._job, len(texts), np.zeros((0, *self.network.each), np.float32)
    work_name = f"{next(self._calls)} {name}"
    whose = np.concatenate([texts.sample, texts.whose, self._saving])
    work = (pieces_lib.Pieces(None, work_name, total, whose, none=none) if job is None
            else pieces_lib.Pieces(job.pieces, work_name, total, whose, job.still_alone, none))
    with contextlib.closing(work), progress.bar(name, total=total, done=total - work.left()) as bar:
      for claimed in work.rounds():
        bar.update(total - work.left())
        began = time.perf_counter()
        with contextlib.closing(texts_lib.ahead(claimed, texts.read)) as read:
          for (rows, piece), steps in itertools.groupby(self._outputs(read, texts), key=operator.itemgetter(0)):
            before, found, room = total - work.left(), [], 0
            for _, indices, values, places in steps:
              found.append((indices, values))
              room += places
              done = sum(len(some) for some, _ in found)
              work.tell(rows, done)
              bar.update(before + done)
            indices, values = map(np.concatenate, zip(*found, strict=True))
            work.finish(rows, values[np.argsort(indices)].astype(np.float32), piece.cuts)
            if job is not None:
              windows.add_piece(job, name, work.place(rows), texts=len(rows), seconds=time.perf_counter() - began,
                                tokens=int(piece.lengths.sum()), room=room)
            began = time.perf_counter()
      if job is not None and job.helps:
        # Of its outputs nothing is made: it need not hold those of the others, too.
        return np.broadcast_to(np.float32(0), total)
      if tell is not None and total and processes.is_first():
        tell(work.cuts())
      if job is not None and into is not None and processes.is_first():
        remade.note(into)
      return work.whole(into)

  def _outputs(
    self, read: Iterable[tuple[range, texts_lib.Piece]], texts: texts_lib.Texts
  ) -> Iterator[tuple[tuple[range, texts_lib.Piece], np.ndarray, np.ndarray, int]]:
    """(piece, indices of its texts, their outputs, places for tokens) of each step, fetched when the next is on its way
    to the device."""
    shapes = shapes_lib.of(texts, self.network.execution, self.network.sizes.hidden_size, row_tokens=self._row_tokens,
                           step_tokens=self._step_tokens, shards=sharding.batch_shards(self._mesh))
    dispatched = (
      (piece, indices, slots, self._apply(self.params, self._place(rows)), rows.token_ids.size)
      for piece in read for indices, slots, rows in self._steps(piece[1], shapes)
    )
    for piece, indices, slots, values, places in _one_late(dispatched):
      yield piece, indices, np.asarray(values)[slots], places

  def _place(self, rows: pack.Rows) -> pack.Rows:
    return sharding.put(rows, sharding.packed(rows, self._mesh))

  def _steps(self, piece: texts_lib.Piece,
             shapes: Sequence[shapes_lib.StepShape]) -> Iterator[tuple[np.ndarray, np.ndarray, pack.Rows]]:
    """(indices of the texts, their output slots, packed rows) of each step over a piece."""
    lengths, row_lengths = piece.lengths, tuple(shape.row_tokens for shape in shapes)
    for shape, (_, apart) in zip(shapes, pack.by_row_length(lengths, row_lengths), strict=True):
      placement = pack.place(lengths[apart], shape.row_tokens, shape.texts_per_row)
      for first in range(0, placement.rows, shape.rows):
        here = np.flatnonzero((placement.row >= first) & (placement.row < first + shape.rows))
        yield shapes_lib.step(apart[here], placement.row[here] - first, placement.column[here], piece, shape)


def _one_late(items: Iterator[T]) -> Iterator[T]:
  """Each item when the next has been made, the last at the end."""
  held: list[T] = []
  for item in items:
    held.append(item)
    if len(held) > 1:
      yield held.pop(0)
  yield from held
