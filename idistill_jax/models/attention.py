"""Attention within the texts of packed rows: the plain form; `kernels` has those of accelerators."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from idistill_jax import multiply
from idistill_jax.data import pack

# Added to the score of a pair of tokens of two texts; finite, so that a row of nothing but padding has no NaN.
APART = -1e9
# More keys are attended to in parts of at most so many: of up to 256 XLA makes one pass on a CPU (products, maxima and
# sums together), of more several, which take up to five times as long; so they do in parts of 256.
_WHOLE, _PART = 256, 224


class Window(NamedTuple):
  """How many tokens of its text one sees before itself and behind: int32 [] or constants; None: all that there are."""

  before: jax.Array | int | None
  behind: jax.Array | int | None


class Attend(Protocol):
  """Within the texts of packed rows, queries, keys and values [R, L, H, K] -> [R, L, H, K], in the type of q.

  bias: added to the scores of all rows.  window: None: a token sees all of its text.
  """

  def __call__(self, q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
               bias_HxLxL: jax.Array | None = None, window: Window | None = None, /) -> jax.Array: ...


def attend(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, rows: pack.Rows,
           bias_HxLxL: jax.Array | None = None, window: Window | None = None) -> jax.Array:
  """softmax(q k' / sqrt(K) + bias) v over tokens of the same text, as `Attend` says; sums in float32.

  Text by text where it is planned how long they are (`pack.Rows.stairs`): of whole rows, most products are of tokens of
  two texts.  Padding then comes out as 0.

  Why not `jax.nn.dot_product_attention`, and why gradients of their own: heads in front of tokens, and a softmax that
  divides after the second product, run several times as fast on CPU (see BUILD.md, performance), and recomputing the
  weights costs less than keeping them.
  """
  if rows.stairs:
    return _by_text(rows.stairs, q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, _spans(rows), bias_HxLxL, window)
  return _by_row(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, rows.segment_ids, bias_HxLxL, window)


# -- Whole rows --------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def _by_row(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
            bias_HxLxL: jax.Array | None, window: Window | None) -> jax.Array:
  return _by_row_forward(q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL, window)[0]


def _by_row_forward(q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, segments_RxL: jax.Array,
                    bias_HxLxL: jax.Array | None, window: Window | None) -> tuple[jax.Array, Any]:
  q, k, v = map(heads_first, (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK))
  mixed = heads_first(_mixed(q, k, v, _apart(segments_RxL, window), bias_HxLxL)).astype(q_RxLxHxK.dtype)
  return mixed, (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, segments_RxL, bias_HxLxL, window, mixed)


def _by_row_backward(saved: Any, dmixed: jax.Array) -> tuple[Any, ...]:
  *qkv, segments, bias, window, mixed = saved
  q, k, v, mixed, dmixed = map(heads_first, (*qkv, mixed, dmixed))
  *gradients, dbias = _gradients(q, k, v, _apart(segments, window), bias, mixed, dmixed)
  return *map(heads_first, gradients), None, dbias, None


_by_row.defvjp(_by_row_forward, _by_row_backward)


def _apart(segments_RxL: jax.Array, window: Window | None) -> jax.Array:
  """[R, 1, L, L]; APART for two tokens that do not see each other."""
  # Added, not chosen by `where`: XLA compiles that to faster code on CPU.
  return jnp.where(together(segments_RxL, window), 0.0, APART)[:, None]


def together(segments_RxL: jax.Array, window: Window | None) -> jax.Array:
  """bool [R, L, L]; whether two tokens are of one segment, and the first sees the second."""
  return (segments_RxL[:, :, None] == segments_RxL[:, None, :]) & _near(segments_RxL.shape[1], window)


def _near(length: int, window: Window | None) -> jax.Array | np.ndarray | bool:
  """bool [1, L, L]; whether the first sees the second."""
  if window is None:
    return True
  columns = np.arange(length)
  behind_1xLxL = columns[None, None, :] - columns[None, :, None]
  near: Any = True
  if window.before is not None:
    near = -behind_1xLxL <= window.before
  if window.behind is not None:
    near = near & (behind_1xLxL <= window.behind)
  return near


# -- Text by text ------------------------------------------------------------------------------------------------------


class _Spans(NamedTuple):
  """Where the texts are, longest first, and each one's piece: so many tokens in a row, itself among them.

  first: int32 [S]; flat position of the piece.  before: int32 [S]; its tokens in front of the text.  lengths: int32
  [S]; of the text.  places: int32 [R, L]; each token's place among the tokens of all pieces; beyond them, padding's.
  """

  first: jax.Array
  before: jax.Array
  lengths: jax.Array
  places: jax.Array


def _spans(rows: pack.Rows) -> _Spans:
  text_ids, texts = jnp.asarray(rows.text_ids), rows.starts.shape[0]
  tokens_S = np.repeat([tokens for _, tokens in rows.stairs], [count for count, _ in rows.stairs])
  lengths_T = jnp.bincount(text_ids.ravel(), length=texts + 1)[:texts]
  longest_S = jnp.argsort(-lengths_T)[: len(tokens_S)]
  starts_S = jnp.asarray(rows.starts)[longest_S]
  # A piece that starts with its text may reach beyond the last row.
  first_S = jnp.minimum(starts_S, text_ids.size - tokens_S)
  of_pieces_S = np.cumsum(tokens_S) - tokens_S
  place_T = jnp.full(texts + 1, tokens_S.sum()).at[longest_S].set(of_pieces_S + starts_S - first_S)
  return _Spans(first_S, starts_S - first_S, lengths_T[longest_S], place_T[text_ids] + rows.positions)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_text(stairs: pack.Stairs, q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array, spans: _Spans,
             bias_HxLxL: jax.Array | None, window: Window | None) -> jax.Array:
  return _by_text_forward(stairs, q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, spans, bias_HxLxL, window)[0]


def _by_text_forward(stairs: pack.Stairs, q_RxLxHxK: jax.Array, k_RxLxHxK: jax.Array, v_RxLxHxK: jax.Array,
                     spans: _Spans, bias_HxLxL: jax.Array | None, window: Window | None) -> tuple[jax.Array, Any]:
  found = []
  for step in _steps(stairs):
    q, k, v = (step.pieces(x, spans) for x in (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK))
    found.append(_mixed(q, k, v, step.apart(spans, window), step.bias(bias_HxLxL)))
  mixed = _gathered(found, spans).astype(q_RxLxHxK.dtype)
  return mixed, (q_RxLxHxK, k_RxLxHxK, v_RxLxHxK, spans, bias_HxLxL, window, mixed)


def _by_text_backward(stairs: pack.Stairs, saved: Any, dmixed: jax.Array) -> tuple[Any, ...]:
  *qkv, spans, bias_HxLxL, window, mixed = saved
  found = []
  dbias_HxLxL = None if bias_HxLxL is None else jnp.zeros_like(bias_HxLxL)
  for step in _steps(stairs):
    q, k, v, mixed_here, dmixed_here = (step.pieces(x, spans) for x in (*qkv, mixed, dmixed))
    # What is not the text's own is another piece's to send back.
    dmixed_here = jnp.where(step.inside(spans)[:, None, :, None], dmixed_here, 0)
    *gradients, dbias = _gradients(q, k, v, step.apart(spans, window), step.bias(bias_HxLxL), mixed_here, dmixed_here)
    found.append(gradients)
    if dbias_HxLxL is not None:
      dbias_HxLxL = dbias_HxLxL.at[:, : step.tokens, : step.tokens].add(dbias)
  return *(_gathered(parts, spans) for parts in zip(*found, strict=True)), None, dbias_HxLxL, None


_by_text.defvjp(_by_text_forward, _by_text_backward)


@dataclasses.dataclass(frozen=True)
class _Step:
  """The pieces of one length: those of `which` texts, longest first."""

  which: slice
  tokens: int

  def pieces(self, x_RxLxHxK: jax.Array, spans: _Spans) -> jax.Array:
    """[S', H, tokens, K]"""
    flat = x_RxLxHxK.reshape(-1, *x_RxLxHxK.shape[2:])
    cut = lambda first: jax.lax.dynamic_slice_in_dim(flat, first, self.tokens)
    return heads_first(jax.vmap(cut)(spans.first[self.which]))

  def inside(self, spans: _Spans) -> jax.Array:
    """bool [S', tokens]; which tokens of the pieces are of their texts."""
    before, length = spans.before[self.which, None], spans.lengths[self.which, None]
    column = jnp.arange(self.tokens)[None]
    return (column >= before) & (column < before + length)

  def apart(self, spans: _Spans, window: Window | None) -> jax.Array:
    """[S', 1, 1 or tokens, tokens], to be added to scores of keys."""
    return jnp.where(self.inside(spans)[:, None] & _near(self.tokens, window), 0.0, APART)[:, None]

  def bias(self, bias_HxLxL: jax.Array | None) -> jax.Array | None:
    return None if bias_HxLxL is None else bias_HxLxL[:, : self.tokens, : self.tokens]


def _steps(stairs: pack.Stairs) -> Iterator[_Step]:
  first = 0
  for count, tokens in stairs:
    yield _Step(slice(first, first + count), tokens)
    first += count


def _gathered(found: Sequence[jax.Array], spans: _Spans) -> jax.Array:
  """[S', H, tokens, K] of each length -> [R, L, H, K]; gathered by both sides, as XLA scatters on one thread."""
  flat = jnp.concatenate([heads_first(one).reshape(-1, one.shape[1], one.shape[3]) for one in found])
  return jnp.take(flat, spans.places, axis=0, mode="fill", fill_value=0)


# -- Both --------------------------------------------------------------------------------------------------------------


def _mixed(q_RxHxLxK: jax.Array, k_RxHxLxK: jax.Array, v_RxHxLxK: jax.Array, apart: jax.Array,
           bias_HxLxL: jax.Array | None) -> jax.Array:
  """[R, H, L, K], float32; of many keys in parts, put together as in flash attention (Dao et al. 2022)."""
  keys = k_RxHxLxK.shape[2]
  part = keys if keys <= _WHOLE else -(-keys // -(-keys // _PART))
  found = []
  for some in (slice(first, first + part) for first in range(0, keys, part)):
    bias = None if bias_HxLxL is None else bias_HxLxL[..., some]
    weights, total, most = _weights(q_RxHxLxK, k_RxHxLxK[:, :, some], apart[..., some], bias)
    found.append((multiply.matmul(weights.astype(v_RxHxLxK.dtype), v_RxHxLxK[:, :, some]), total, most))
  if len(found) == 1:
    return found[0][0] / found[0][1]
  # Not of one stacked array, which takes twice as long.
  most = functools.reduce(jnp.maximum, (its for _, _, its in found))
  shares = [jnp.exp(its - most) for _, _, its in found]
  mixed, total = (functools.reduce(jnp.add, (share * one[which] for share, one in zip(shares, found, strict=True)))
                  for which in (0, 1))
  return mixed / total


def _gradients(q: jax.Array, k: jax.Array, v: jax.Array, apart: jax.Array, bias_HxLxL: jax.Array | None,
               mixed: jax.Array, dmixed: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
  """By q, k, v [R, H, L, K] and by the bias."""
  short, scale = q.dtype, q.shape[-1] ** -0.5
  weights, total, _ = _weights(q, k, apart, bias_HxLxL)
  weights = weights / total
  carried = (dmixed.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1, keepdims=True)
  dlogits = weights * (multiply.matmul(dmixed, _transposed(v)) - carried)
  dbias = None if bias_HxLxL is None else dlogits.sum(0).astype(bias_HxLxL.dtype)
  dlogits = dlogits.astype(short)
  dq = multiply.matmul(dlogits, k) * scale
  dk = multiply.matmul(_transposed(dlogits), q) * scale
  dv = multiply.matmul(_transposed(weights.astype(short)), dmixed)
  return dq.astype(short), dk.astype(short), dv.astype(short), dbias


def _weights(q_RxHxLxK: jax.Array, k_RxHxLxK: jax.Array, apart: jax.Array,
             bias_HxLxL: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """exp(logits - their maximum) [R, H, L, L], its sums and the maxima, both [R, H, L, 1], all float32."""
  logits = multiply.matmul(q_RxHxLxK * q_RxHxLxK.shape[-1] ** -0.5, _transposed(k_RxHxLxK)) + apart
  if bias_HxLxL is not None:
    logits = logits + bias_HxLxL[None].astype(jnp.float32)
  most = logits.max(-1, keepdims=True)
  weights = jnp.exp(logits - most)
  return weights, weights.sum(-1, keepdims=True), most


def of_each_query(shared_RxLxGxK: jax.Array, heads: int) -> jax.Array:
  """Heads of keys or values that several of `heads` queries share, one for each of these [R, L, H, K].

  No kernel here shares them itself.
  """
  return jnp.repeat(shared_RxLxGxK, heads // shared_RxLxGxK.shape[2], axis=2)


def heads_first(x: jax.Array) -> jax.Array:
  """[R, L, H, K] -> [R, H, L, K], and back."""
  return jnp.swapaxes(x, 1, 2)


def _transposed(x: jax.Array) -> jax.Array:
  return jnp.swapaxes(x, -1, -2)
