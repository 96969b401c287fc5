"""Exact inner-product search in JAX: passage vectors and queries -> the k best of every query.

Passages and queries are cut into blocks of one size each, so that no more than one block of scores exists at
a time and XLA compiles once.  With a mesh, each block of passages is spread over all devices: every device
keeps the k best of its own part, and only those travel.

A TPU sorts slowly, and finds the best of parts of a row while it multiplies: Chern et al. (2022), "TPU-KNN", arXiv
2206.14286.  Asked for less than all of the best, the same search leaves the sorting to that.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from idistill_jax import multiply, processes, sharding
from idistill_jax.retrieval import hits as hits_lib

# Passages of one block on one device, and queries of one block: 256 x 16,384 scores are 16 MiB.
PASSAGE_BLOCK = 16_384
QUERY_BLOCK = 256
# Scores of one group, where the best are found by groups: for k = 100, 1,024 maxima and 1,600 scores of the 16,384.
GROUP = 16

# Scores and places, of the same shape.
Best = tuple[jax.Array, jax.Array]


class Exact:
  """Passages in memory, in the order of the tie rule, as `top_k` prefers the lower index among equals."""

  def __init__(
    self,
    vectors_PxE: np.ndarray,
    ids: Sequence[str],
    *,
    mesh: jax.sharding.Mesh | None = None,
    passage_block: int = PASSAGE_BLOCK,
    recall: float = 1.0,
  ):
    """recall: the share of the best that a TPU has to find; elsewhere all are found.

    Raises hits.VectorError (empty, not finite, wrong shape) and ValueError (repeated id, recall), naming ids.  Of a
    mesh of several processes each looks at what its own devices hold, and what one finds is the error of all.
    """
    if not 0 < recall <= 1:
      raise ValueError(f"recall is {recall}, and a share of the best lies above 0 and not above 1")
    vectors_PxE = hits_lib.check_shape(vectors_PxE, ids)
    self._order_P = hits_lib.tie_order(ids)
    passages, self._width = vectors_PxE.shape
    shards = mesh.size if mesh is not None else 1
    self._block = min(passage_block, -(-passages // shards))
    per_step = shards * self._block
    looks: list[tuple[int, np.ndarray]] = []
    several = mesh is not None and mesh.is_multi_process
    with processes.agreed("exact search's reading of its passages") if several else contextlib.nullcontext():
      self._blocks_SxPxE = [
        _spread((shards, self._block, self._width), mesh, functools.partial(self._read, vectors_PxE, looks, start))
        for start in range(0, passages, per_step)
      ]
      bad = np.sort(np.concatenate([bad for _, bad in looks]))
      hits_lib.refuse(bad, sum(count for count, _ in looks), lambda row: repr(ids[row]), "passages")
    self._mesh, self._recall = mesh, recall

  def __len__(self) -> int:
    return len(self._order_P)

  def _read(
    self, vectors_PxE: np.ndarray, looks: list[tuple[int, np.ndarray]], start: int, shards: range
  ) -> np.ndarray:
    """float32 [S, P, E]: the passages of some shards of the block that begins there, and zeros behind the last.

    looks: takes how many there are, and the rows that are not finite.
    """
    rows = self._order_P[start + shards.start * self._block : start + shards.stop * self._block]
    read = np.zeros((len(shards) * self._block, self._width), np.float32)
    with np.errstate(over="ignore"):
      read[: len(rows)] = vectors_PxE[rows]
    looks.append((len(rows), rows[hits_lib.not_finite(read[: len(rows)])]))
    return read.reshape(len(shards), self._block, self._width)

  def search(self, queries_QxE: np.ndarray, k: int) -> hits_lib.Hits:
    """The min(k, P) best passages of each query; equal scores rank as `hits.tie_order` says.

    Raises ValueError for k < 1, hits.VectorError for queries that are not finite or of another width, and
    OverflowError where an inner product leaves float32.
    """
    hits_lib.check_k(k)
    queries_QxE = hits_lib.check_queries(queries_QxE, self._width)
    k = min(k, len(self))
    parts = []
    for i in range(0, len(queries_QxE), QUERY_BLOCK):
      with processes.waiting(f"exact search, queries from {i} on"):
        parts.append(self._search_block(queries_QxE[i : i + QUERY_BLOCK], k))
    rows = np.concatenate([np.empty((0, k), np.int32), *(part[1] for part in parts)])
    scores = np.concatenate([np.empty((0, k), np.float32), *(part[0] for part in parts)])
    if not np.isfinite(scores).all():
      bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
      raise OverflowError(
        f"inner products of query rows {bad[:5].tolist()} leave float32; are the vectors normalised?"
      )
    return hits_lib.Hits(
      rows=self._order_P[rows], scores=scores, found=np.full(len(queries_QxE), k, np.int32)
    )

  def _search_block(self, queries_QxE: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places (in tie order) of at most QUERY_BLOCK queries."""
    count = len(queries_QxE)
    # Few block sizes, few compilations: a lone query does not pay for 256.
    padded = min(QUERY_BLOCK, 1 << (count - 1).bit_length())
    queries_BxE = _place(np.pad(queries_QxE, ((0, padded - count), (0, 0))), self._mesh)
    best = tuple(
      _place(start, self._mesh)
      for start in (np.full((padded, k), -np.inf, np.float32), np.zeros((padded, k), np.int32))
    )
    per_step = self._block * self._blocks_SxPxE[0].shape[0]
    for number, block in enumerate(self._blocks_SxPxE):
      best = _merge(best, queries_BxE, block, number * per_step, len(self), mesh=self._mesh,
                    recall=self._recall)
    scores, rows = jax.device_get(best)
    return scores[:count], rows[:count]


def _place(array: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """To the device, or to all of the mesh."""
  return jnp.asarray(array) if mesh is None else sharding.put(array, sharding.replicated(mesh))


def _spread(shape: tuple[int, int, int], mesh: jax.sharding.Mesh | None,
            read: Callable[[range], np.ndarray]) -> jax.Array:
  """Passages [S, P, E] to the device, or a shard to each of the mesh; a process reads those of its own devices."""
  if mesh is None:
    return jnp.asarray(read(range(shape[0])))
  layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  return sharding.put_parts(shape, layout, lambda part: read(range(*part[0].indices(shape[0]))))


@functools.partial(jax.jit, static_argnames=("mesh", "recall"))
def _merge(
  best: Best,
  queries_BxE: jax.Array,
  block_SxPxE: jax.Array,
  start: jax.Array,
  passages: jax.Array,
  *,
  mesh: jax.sharding.Mesh | None,
  recall: float,
) -> Best:
  """The k best of those so far and of one block.  Earlier places stand first, so that they win ties."""
  shards, size, _ = block_SxPxE.shape
  k = best[0].shape[1]
  local_best = functools.partial(_local_best, k=min(k, size), recall=recall)
  if mesh is not None:
    # Not left to the compiler: it gathers all scores on every device before it takes the best.
    over, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    local_best = jax.shard_map(
      local_best,
      mesh=mesh,
      in_specs=(everywhere, over, over, everywhere),
      out_specs=PartitionSpec(None, mesh.axis_names),
    )
  first_S = start + size * jnp.arange(shards, dtype=jnp.int32)
  found = local_best(queries_BxE, block_SxPxE, first_S, passages)
  if mesh is not None:
    found = jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))
  batch = queries_BxE.shape[0]
  scores, places = (
    jnp.concatenate([old, new_BxSxK.reshape(batch, -1)], axis=1)
    for old, new_BxSxK in zip(best, found, strict=True)
  )
  top, index = jax.lax.top_k(scores, k)
  return top, jnp.take_along_axis(places, index, axis=1)


def _best_by_groups(scores: jax.Array, *, k: int) -> Best:
  """As `lax.top_k`, equal scores too, of rows of scores; sorts two short rows for one long one.

  The k best stand in the k groups of the best maxima, of equal ones the first: were one in another group, each of these
  k would hold a score that is better, or as good and earlier.
  """
  *rows, size = scores.shape
  padded = jnp.pad(scores, [(0, 0)] * len(rows) + [(0, -size % GROUP)], constant_values=-jnp.inf)
  groups = padded.reshape(*rows, -1, GROUP)
  _, which = jax.lax.top_k(groups.max(-1), min(k, groups.shape[-2]))
  # In their order, so that the earlier of equal scores stands first.
  which = jnp.sort(which)
  top, at = jax.lax.top_k(jnp.take_along_axis(groups, which[..., None], axis=-2).reshape(*rows, -1), k)
  return top, jnp.take_along_axis(which, at // GROUP, axis=-1) * GROUP + at % GROUP


def _local_best(
  queries_BxE: jax.Array, block_SxPxE: jax.Array, first_S: jax.Array, passages: jax.Array, *, k: int,
  recall: float,
) -> Best:
  """Scores and places [B, S, k] of the best of each shard."""
  scores_BxSxP = multiply.einsum("be,spe->bsp", queries_BxE, block_SxPxE)
  # -0.0 sorts below 0.0 in top_k, but is no worse a score.
  scores_BxSxP = jnp.where(scores_BxSxP == 0, 0.0, scores_BxSxP)
  places_SxP = first_S[:, None] + jnp.arange(block_SxPxE.shape[1], dtype=jnp.int32)[None]
  scores_BxSxP = jnp.where(places_SxP[None] < passages, scores_BxSxP, -jnp.inf)
  if recall == 1.0:
    # What a GPU has for more than a few of the best is a sort of whole rows.
    top_BxSxK, within_BxSxK = jax.lax.platform_dependent(
      scores_BxSxP, cuda=functools.partial(_best_by_groups, k=k),
      default=lambda scores: tuple(jax.lax.top_k(scores, k)))
  else:
    top_BxSxK, within_BxSxK = jax.lax.approx_max_k(scores_BxSxP, k, recall_target=recall)
  return top_BxSxK, within_BxSxK + first_S[None, :, None]
