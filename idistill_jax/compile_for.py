"""An experiment's training and encoding steps, compiled for chips that are not here: do they fit, at what cost?

    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart --compile_only=v5e:4x4
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart --compile_only=h100

Needs the chip's compiler (see chips.py) and none of the chips.  Rows are counted as if every text were as long as its
cut.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from rich import box, table
from rich import console as rich_console

from idistill_jax import chips, costs, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import batches, pack, tokenize
from idistill_jax.hf import networks
from idistill_jax.models import attention as attention_lib
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.train import objectives, optim
from idistill_jax.train import step as step_lib

SMALLER = "give it more `passes`, --config.encoder.remat=layers or more chips; encoding, fewer tokens_per_step"


class UnfitError(ValueError):
  """A step that does not fit into a chip, or attends without the kernel that there is for it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Program:
  """One compiled step, for one chip of the mesh.

  tokens: of all chips.  flops: of matrix products, attention's own among them.  bytes_moved: by the compiler's count,
  without what happens inside kernels; of a batch in passes what is encoded again for its gradient is counted, what
  surrounds the layers once at most.  kernels: how many there are in the text of the program, a loop's once; attends:
  whether attention should be one.  fusions: of operations, into one kernel each, a loop's once; collectives: how
  many, and how many of them something is computed meanwhile; both None on TPUs, as XLA cannot print every program that
  it has compiled for them.
  """

  name: str
  tokens: int
  argument_bytes: int
  temporary_bytes: int
  flops: float
  bytes_moved: float
  kernels: int
  attends: bool
  fusions: int | None
  collectives: tuple[int, int] | None

  @property
  def memory(self) -> int:
    return self.argument_bytes + self.temporary_bytes

  def seconds(self, chip: chips.Chip) -> float:
    """The larger of computing and moving at the data sheet's rates: a lower bound."""
    return max(self.flops / chip.flops, self.bytes_moved / chip.bandwidth)

  def faults(self, chip: chips.Chip) -> list[str]:
    """Why a chip should not be asked for it, and what to do."""
    found = []
    if self.memory > chip.taken * chip.memory:
      found.append(f"{self.name}: needs {_gib(self.memory)} of the {_gib(chip.taken * chip.memory)} that JAX takes; "
                   f"{SMALLER}")
    if self.attends and not self.kernels:
      found.append(f"{self.name}: attends by XLA's own products, not by the kernel that there is for bfloat16, for "
                   "rows of a multiple of 128 tokens: set --config.encoder.row_tokens and list_row_tokens to such")
    return found


def _gib(size: float) -> str:
  return f"{size / 2**30:.2f} GiB"


def check(cfg: config_lib.Config, name: str) -> None:
  """Prints what the steps need on chips that `chips.mesh_of` knows by name; raises UnfitError with all their faults."""
  mesh = chips.mesh_of(name, cfg.mesh)
  found = [compiled() for compiled in programs(cfg, mesh).values()]
  rich_console.Console().print(show(found, mesh))
  chip = chips.of(mesh)
  if faults := [fault for one in found for fault in one.faults(chip)]:
    raise UnfitError("; ".join(faults))


def programs(cfg: config_lib.Config, mesh: jax.sharding.Mesh) -> dict[str, Callable[[], Program]]:
  """What compiles each training step and the encoding of passages, by name; it raises UnfitError where the compiler
  finds no room."""
  encoder = cfg.encoder
  ranker = networks.ranker(encoder, cfg.ranker.head).on(mesh, encoder.training_dtype)
  retriever = networks.retriever(encoder).on(mesh, encoder.training_dtype)
  pair = tokenize.pair_lengths(encoder.query_tokens, encoder.pair_cut, ranker.tokenizer.between)
  pairs = cfg.ranker.lists_per_batch * cfg.ranker.passages_per_list

  def dual(name: str, one: config_lib.Distillation) -> Program:
    return _training(
      name, one, retriever, objectives.retriever, mesh, texts=one.lists_per_batch * (1 + one.passages_per_list),
      tokens=one.lists_per_batch * (one.passages_per_list * encoder.list_cut + encoder.query_tokens),
      row_tokens=encoder.list_row)

  return {
    "ranker step": lambda: _training("ranker step", cfg.ranker, ranker, objectives.ranker, mesh, texts=pairs,
                                     tokens=pairs * pair, row_tokens=encoder.list_row),
    "direct step": lambda: dual("direct step", cfg.direct),
    "retriever step": lambda: dual("retriever step", cfg.retriever),
    "encode": lambda: _encoding(retriever.on(mesh, encoder.inference_dtype), mesh, tokens=encoder.tokens_per_step,
                                row_tokens=encoder.row_tokens),
  }


def _training(name: str, cfg: Any, network: networks.Network,
              objective: Callable[[Any, networks.Network], step_lib.LossFn], mesh: jax.sharding.Mesh, *, texts: int,
              tokens: int, row_tokens: int) -> Program:
  """cfg: config.Ranker or config.Distillation, of which the objective makes a loss."""
  params = jax.tree.map(_abstract, network.abstract, network.shardings(mesh))
  network = network.frozen(cfg.frozen_layers)
  tx = optim.of(network, cfg.optim, 1000)
  everywhere = sharding.replicated(mesh)
  shardings = step_lib.opt_state_shardings(tx, params, network.shardings(mesh), everywhere)
  opt_state = jax.tree.map(_abstract, jax.eval_shape(tx.init, params), shardings)
  zero: Any = _abstract(jax.ShapeDtypeStruct((), jnp.int32), everywhere)
  state = step_lib.State(step=zero, params=params, opt_state=opt_state)
  shards = sharding.batch_shards(mesh)
  rows = _rows(tokens, row_tokens, texts, shards * cfg.passes, mesh)
  shape = (cfg.lists_per_batch, cfg.passages_per_list)
  of = lambda dtype, shape=shape: _abstract(jax.ShapeDtypeStruct(shape, dtype), everywhere)
  batch = batches.ListBatch(
    rows=rows, values=of(jnp.float32), where=of(jnp.bool_), known=of(jnp.bool_), passage_rows=of(jnp.int32),
    list_rows=of(jnp.int32), similarities=of(jnp.float32), weights=of(jnp.float32, shape[:1]),
  )

  step: Any = step_lib.make_step(objective(cfg, network), tx, state)
  part = _rows(math.ceil(tokens / cfg.passes), row_tokens, texts, shards, mesh)
  layer = _layer_bytes(name, network, params, part, mesh, gradient=True)
  again, layers, frozen = cfg.passes > 1, network.table.layers, network.execution.frozen_layers
  if again or frozen:
    # What is frozen has no gradient, and with passes all is read once before.
    forward = _layer_bytes(name, network, params, part, mesh, gradient=False)
    layer = again * forward + (frozen * forward + (layers - frozen) * layer) / layers
  turns = cfg.passes * layers
  if network.execution.unroll_layers and not again:
    turns, layer = 0, 0.0  # nothing is in a loop
  return _program(name, step, (state, batch), network, rows, mesh, layer_bytes=layer, turns=turns,
                  forward=1 + again + (network.execution.remat != "none"), backward=1)


def _encoding(network: networks.Network, mesh: jax.sharding.Mesh, *, tokens: int, row_tokens: int) -> Program:
  kernels_as_read = jax.eval_shape(lambda params: network.reading(params)[1], network.abstract)
  params = jax.tree.map(_abstract, kernels_as_read, network.shardings(mesh))
  # Which has its layers in a loop.
  network = dataclasses.replace(network, execution=network.execution.without_gradient())
  rows = _rows(tokens, row_tokens, tokens // 64, sharding.batch_shards(mesh), mesh)
  layer = _layer_bytes("encode", network, params, rows, mesh, gradient=False)
  apply = jax.jit(network.apply, compiler_options=execution_lib.compiler_options(mesh))
  return _program("encode", apply, (params, rows), network, rows, mesh, layer_bytes=layer,
                  turns=network.table.layers, forward=1, backward=0)


def _layer_bytes(name: str, network: networks.Network, params: Any, rows: pack.Rows, mesh: jax.sharding.Mesh, *,
                 gradient: bool) -> float:
  """What one layer moves by itself, with its gradient or without: XLA counts a loop's turn once.

  What the loop copies into a turn and out of it (weights, and what the gradient needs) is not in it.  Why not the
  whole program with two layers a turn, or with none in a loop: the TPU's compiler takes as long over it as over the
  program itself, or minutes more; over a layer it takes seconds.
  """
  execution = network.execution
  by_rows, everywhere = sharding.rows(mesh), sharding.replicated(mesh)
  encoder = lambda params: nnx.merge(network.graph, params).encoder
  graph, _ = nnx.split(encoder(params).layers)

  def unstacked(leaf: Any) -> Any:
    layout = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
    return _abstract(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), layout)

  own = jax.tree.map(unstacked, params["encoder"]["layers"])
  count, length = rows.token_ids.shape
  x = _abstract(jax.ShapeDtypeStruct((count, length, network.sizes.hidden_size), execution.states), by_rows)
  each, every = _beside(network, rows)
  of_one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), each)
  beside = jax.tree.map(lambda leaf: _abstract(leaf, everywhere), encoder_lib.Beside(of_one, every))

  def values(params: Any, x: Any, rows: Any, beside: Any) -> Any:
    layer = lambda params, x: nnx.merge(graph, params)(x, rows, beside, execution)
    return execution_lib.rematerialised(layer, execution.remat)(params, x)

  def gradients(params: Any, x: Any, rows: Any, beside: Any) -> Any:
    y, backward = jax.vjp(lambda params, x: values(params, x, rows, beside), params, x)
    # Any cotangent will do that has its shape, but for a constant, which the compiler would calculate with.
    return y, backward(x)

  layouts = (by_rows, (jax.tree.map(lambda leaf: leaf.sharding, own), by_rows)) if gradient else by_rows
  made = jax.jit(gradients if gradient else values, out_shardings=layouts,
                 compiler_options=execution_lib.compiler_options(mesh))
  with chips.as_if_here(mesh):
    lowered = made.lower(own, x, rows, beside)
  return costs.bytes_moved(_compiled(name, lowered, mesh))[0]


def _beside(network: networks.Network, rows: pack.Rows) -> encoder_lib.Beside:
  """What layers read beside states and parameters, of all of them."""
  read = lambda params, rows: nnx.merge(network.graph, params).encoder.beside(rows)
  found: encoder_lib.Beside = jax.eval_shape(read, network.abstract, rows)
  return found


def _rows(tokens: int, row_tokens: int, texts: int, multiple: int, mesh: jax.sharding.Mesh) -> pack.Rows:
  count = math.ceil(tokens / row_tokens / multiple) * multiple
  # An abstract array stands in for one wherever only shapes are read.
  cells: Any = jax.ShapeDtypeStruct((count, row_tokens), jnp.int32)
  starts: Any = jax.ShapeDtypeStruct((texts,), jnp.int32)
  empty = pack.Rows(token_ids=cells, positions=cells, halves=cells, segment_ids=cells, text_ids=cells, starts=starts)
  return jax.tree.map(_abstract, empty, sharding.packed(empty, mesh))


def _abstract(leaf: Any, layout: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _program(name: str, function: Any, arguments: tuple[Any, ...], network: networks.Network, rows: pack.Rows,
             mesh: jax.sharding.Mesh, *, layer_bytes: float, turns: int, forward: int, backward: int) -> Program:
  """turns: of the loops over layers and passes.  forward, backward: how often each layer's attention is computed."""
  with chips.as_if_here(mesh):
    traced = function.trace(*arguments)
    lowered = traced.lower()
  compiled = _compiled(name, lowered, mesh)
  memory, (moved, counted) = compiled.memory_analysis(), costs.bytes_moved(compiled)
  platform = mesh.devices.flat[0].platform
  text = compiled.as_text() if platform == "gpu" else None
  # As lowered: XLA cannot print every program that it has compiled for a TPU.
  kernels = lowered.as_text().count(chips.KERNELS[platform]) if platform in chips.KERNELS else 0
  flops = costs.products(traced.jaxpr.jaxpr)
  sizes = network.sizes
  if kernels:
    of_layer = functools.partial(costs.attention, rows.token_ids.shape, sizes.num_attention_heads, sizes.head_dim)
    learning = network.table.layers - network.execution.frozen_layers
    flops += network.table.layers * of_layer(forward=forward, backward=0)
    flops += learning * of_layer(forward=0, backward=backward)
  return Program(
    name=name, tokens=int(np.prod(rows.token_ids.shape)), argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes, flops=flops / mesh.size,
    bytes_moved=moved + (turns - counted) * layer_bytes, kernels=kernels,
    # What attends with distances is left to XLA where a kernel takes none.
    attends=network.execution.attend is not attention_lib.attend and not jax.tree.leaves(_beside(network, rows)),
    fusions=None if text is None else text.count(" fusion("),
    collectives=None if text is None else costs.collectives(text),
  )


def _compiled(name: str, lowered: Any, mesh: jax.sharding.Mesh) -> Any:
  device = mesh.devices.flat[0]
  try:
    return lowered.compile(compiler_options=chips.OPTIONS.get(device.platform))
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    raise UnfitError(f"{name}: does not fit into a {device.device_kind}; {SMALLER}; its compiler says: {e}") from e


def show(found: list[Program], mesh: jax.sharding.Mesh) -> table.Table:
  """One line a program; what does not fit into a chip is said."""
  kind, chip = mesh.devices.flat[0].device_kind, chips.of(mesh)
  made = table.Table(title=f"{mesh.size} x {kind}, mesh {dict(mesh.shape)}; for one chip", box=box.SIMPLE_HEAD)
  for column in ("program", "tokens", "arguments", "temporary", "memory", "GFLOP", "GB", "at least", "fusions",
                 "collectives", "kernels"):
    made.add_column(column, justify="left" if column == "program" else "right")
  for one in found:
    share = one.memory / chip.memory
    made.add_row(one.name, f"{one.tokens:,}", _gib(one.argument_bytes), _gib(one.temporary_bytes),
                 f"{share:.0%}" + (" DOES NOT FIT" if share > chip.taken else ""), f"{one.flops / 1e9:.1f}",
                 f"{one.bytes_moved / 1e9:.2f}", f"{1000 * one.seconds(chip):.2f} ms",
                 "" if one.fusions is None else str(one.fusions),
                 "" if one.collectives is None else "{}, {} behind work".format(*one.collectives), str(one.kernels))
  return made
