"""Where a retriever's training step goes: matrix products, attention, AdamW, the rest; each against what there is.

Products and attention of one layer are measured by themselves, forward and gradient, at the shape of the step's rows.
What distances add to attention (MPNet, DeBERTa) is in the rest.
Peaks are measured too: one large product, and one pass over memory that reads and writes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from idistill_jax.data import pack
from idistill_jax.models import attention, families, windowed
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import table as table_lib
from idistill_jax.train import loop, utilization
from idistill_jax.train import step as step_lib


def parts(training: loop.Training) -> dict[str, Any]:
  """For each part of the step: seconds, its share of the step, GFLOP, GB, and how near it comes to the peaks.

  at_least: seconds that the peaks allow.  FLOPs count what is computed for padding and, of attention, anew.
  """
  network, batches, mesh = training.network, training.batches, training.mesh
  rows, length, layers = batches.rows, batches.row_tokens, network.table.layers
  products = utilization.peak(mesh, network.execution.products.name)
  memory, options = memory_rate(), execution_lib.compiler_options(mesh)

  def said(seconds: float, flops: float = 0.0, moved: float = 0.0) -> dict[str, float]:
    return {
      "seconds": seconds, "share": seconds / step, "gflop": flops / 1e9, "gigabytes": moved / 1e9,
      "gflops_per_second": flops / seconds / 1e9, "percent_of_peak": 100 * flops / seconds / products,
      "gigabytes_per_second": moved / seconds / 1e9, "percent_of_memory_rate": 100 * moved / seconds / memory,
      "at_least": max(flops / products, moved / memory)}

  step, adamw = _step_seconds(training)
  kernels = {path: leaf.shape[1:] for path, leaf in table_lib.flatten(network.abstract).items()
             if network.table.row(path).is_kernel_of_layer}
  multiplied = _layers_products(network.execution, kernels, rows, length, options)
  flops = 6.0 * rows * length * sum(np.prod(shape) for shape in kernels.values())
  # Of attention's output, which all families have alike.
  heads, width, _ = next(shape for path, shape in kernels.items() if path.endswith("/out/kernel"))
  packed = loop.place(batches[0], training.mesh).rows
  sizes = families.read_config(network.source)
  # Every layer is given one, those that see all of a text the row's length: they all take the same time.
  window = attention.Window(*[jnp.int32(sizes.reach)] * 2) if isinstance(sizes, windowed.Sizes) else None
  attended = _layers_attention(network.execution, packed, heads, width, window, options)
  # Two products forward; backward the weights anew, and four.
  pieces = packed.stairs or ((rows, length),)
  attention_flops = 7 * 2.0 * heads * width * sum(count * tokens**2 for count, tokens in pieces)
  found = {
    "step": said(step),
    "matrix products": said(layers * multiplied[0], layers * flops, layers * multiplied[1]),
    "attention": said(layers * attended[0], layers * attention_flops, layers * attended[1]),
    "AdamW": said(adamw[0], 0.0, adamw[1]),
  }
  rest = step - sum(found[name]["seconds"] for name in ("matrix products", "attention", "AdamW"))
  found["rest"] = {"seconds": rest, "share": rest / step}
  rounded = {name: {what: round(float(value), 4) for what, value in part.items()} for name, part in found.items()}
  tokens = float(np.mean([batches.tokens(i) for i in range(len(batches))]))
  return {"tokens_per_second": tokens / step, "rows": rows, "row_tokens": length, "fill": tokens / batches.room,
          "memory_bytes_per_second": memory, "parts": rounded,
          "flops_per_token": utilization.flops_per_token(network)}


def memory_rate() -> float:
  """Bytes/s of reading and writing one large array, the best of five."""
  count = 2**28 if jax.default_backend() != "cpu" else 2**25
  add = jax.jit(lambda x: x + 1.0)
  return 2 * 4 * count / _seconds(add, jnp.ones(count, jnp.float32))[0]


def _seconds(function: Any, *arguments: Any, options: dict[str, Any] | None = None) -> tuple[float, float]:
  """Of one call; and the bytes that the compiler says it moves, 0 where it does not.  options: of the compiler."""
  compiled = function.lower(*arguments).compile(options)
  return utilization.seconds(lambda: compiled(*arguments)), _bytes(compiled)


def _bytes(compiled: Any) -> float:
  return float((compiled.cost_analysis() or {}).get("bytes accessed", 0.0))


def _step_seconds(training: loop.Training) -> tuple[float, tuple[float, float]]:
  """Of the whole step; and (seconds, bytes) of its AdamW alone."""
  tx, state = loop.begun(training)
  batch = loop.place(training.batches[0], training.mesh)
  gradient = jax.tree.map(jnp.ones_like, state.params)

  def update(gradient: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
    updates, opt_state = tx.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  # As in the step, the old buffers are reused, so that each call needs what the one before gave.
  adamw = jax.jit(update, donate_argnums=(1, 2)).lower(gradient, state.opt_state, state.params).compile()

  def update_again() -> Any:
    nonlocal state
    params, opt_state = adamw(gradient, state.opt_state, state.params)
    state = step_lib.State(step=state.step, params=params, opt_state=opt_state)
    return state

  updated = utilization.seconds(update_again), _bytes(adamw)
  take = step_lib.make_step(training.loss_fn, tx, state)

  def step_again() -> Any:
    nonlocal state
    state, _ = take(state, batch)
    return state

  return utilization.seconds(step_again), updated


def _layers_products(execution: execution_lib.Execution, kernels: dict[str, tuple[int, ...]], rows: int,
                     length: int, options: dict[str, Any] | None) -> tuple[float, float]:
  """Seconds and bytes of all products of one layer with their gradients, each by itself; options: those of the step."""
  seconds = moved = 0.0
  for path, shape in kernels.items():
    # Of attention's output two axes are read, of all others one.
    axes = 2 if path.endswith("out/kernel") else 1
    into, out = "abc"[:axes], "def"[:len(shape) - axes]
    equation = f"rl{into},{into}{out}->rl{out}"
    multiply = lambda _, x, kernel, equation=equation: execution_lib.product(equation, execution.products, x, kernel)
    x = jnp.ones((rows, length, *shape[:axes]), execution.states)
    dy = jnp.ones((rows, length, *shape[axes:]), execution.states)
    took, bytes_moved = _seconds(_with_gradient(multiply), dy, None, x, jnp.ones(shape, jnp.float32), options=options)
    seconds, moved = seconds + took, moved + bytes_moved
  return seconds, moved


def _layers_attention(execution: execution_lib.Execution, rows: pack.Rows, heads: int, width: int,
                      window: attention.Window | None, options: dict[str, Any] | None) -> tuple[float, float]:
  """Seconds and bytes of one layer's attention with its gradient; window: as in attention.attend, options: as above."""
  x = jnp.ones((*rows.token_ids.shape, heads, width), execution.states)
  attend = lambda beside, q, k, v: execution.attend(q, k, v, beside[0], None, beside[1])
  # Rows and window are arguments, as in the step: with constants the compiler would calculate beforehand.
  return _seconds(_with_gradient(attend), x, (rows, window), x, x, x, options=options)


def _with_gradient(function: Callable[..., jax.Array]) -> Any:
  """(cotangent, what has no gradient, arguments) -> value and gradients by the arguments."""

  def both(dy: jax.Array, fixed: Any, *arguments: jax.Array) -> tuple[jax.Array, Any]:
    value, backward = jax.vjp(functools.partial(function, fixed), *arguments)
    return value, backward(dy)

  return jax.jit(both)
