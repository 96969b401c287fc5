"""An experiment's training and encoding steps, compiled for a TPU slice that is not here: do they fit, at what cost?

    python -m idistill_jax.compile_for --config=configs/quickstart.py --topology=v5e:4x4

Needs the package libtpu (extra `tpu-compile`) and no TPU.  Rows are counted as if every text were as long as its cut.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from rich import box, table
from rich import console as rich_console

from idistill_jax import cli, extras, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import batches, pack, tokenize
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import table as table_lib
from idistill_jax.train import networks, objectives, optim
from idistill_jax.train import step as step_lib

_TOPOLOGY = flags.DEFINE_string("topology", "v5e:4x4", "The slice, as `jax.experimental.topologies` names it.")
_CHIPS = flags.DEFINE_integer("chips", None, "So many of the slice's; by default all.", lower_bound=1)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Chip:
  """What one chip can do, by its maker's data sheet: FLOP/s in bfloat16, bytes/s and bytes of its memory."""

  flops: float
  bandwidth: float
  memory: float


# By `device_kind`.
CHIPS = {
  "TPU v4": Chip(flops=275e12, bandwidth=1228e9, memory=32 * 2**30),
  "TPU v5 lite": Chip(flops=197e12, bandwidth=819e9, memory=16 * 2**30),
  "TPU v5": Chip(flops=459e12, bandwidth=2765e9, memory=95 * 2**30),
  "TPU v6 lite": Chip(flops=918e12, bandwidth=1640e9, memory=32 * 2**30),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Program:
  """One compiled step, for one chip of the slice.

  tokens: of the whole slice.  flops and bytes_moved are the compiler's count, without what happens inside kernels; of a
  batch in passes what is encoded again for its gradient is counted, what surrounds the layers once.  kernels: how many
  there are in the text of the program, a loop's once.
  """

  name: str
  tokens: int
  argument_bytes: int
  temporary_bytes: int
  flops: float
  bytes_moved: float
  kernels: int

  @property
  def memory(self) -> int:
    return self.argument_bytes + self.temporary_bytes

  def seconds(self, chip: Chip) -> float:
    """The larger of computing and moving at the data sheet's rates: a lower bound."""
    return max(self.flops / chip.flops, self.bytes_moved / chip.bandwidth)


# Of XLA's names for what a program costs.
COUNTED = ("flops", "bytes accessed")


class NoTpuCompilerError(ModuleNotFoundError):
  """libtpu is not installed."""


def mesh_of(topology: str, cfg: config_lib.Mesh, chips: int | None = None) -> jax.sharding.Mesh:
  """The mesh over the chips of a slice, or the first of them; raises NoTpuCompilerError, and ShardingError where sizes
  differ."""
  from jax.experimental import topologies

  try:
    import libtpu
  except ModuleNotFoundError as e:
    raise NoTpuCompilerError(f"compiling for a TPU needs its compiler: {extras.install('tpu-compile')}") from e
  # Asking the cloud's metadata server which TPU this is would only wait for nobody.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())
  # The two cores of a v4 chip are told apart unless asked otherwise, and no mesh is made of half chips.
  one_a_chip = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
  devices: Any = topologies.get_topology_desc(platform="tpu", topology_name=topology, **one_a_chip).devices
  kind = devices[0].device_kind
  if kind not in CHIPS:
    raise ValueError(f"--topology={topology}: no data sheet of a {kind} here; known are {sorted(CHIPS)}")
  return sharding.make_mesh(cfg, devices[:chips])


def programs(cfg: config_lib.Config, mesh: jax.sharding.Mesh) -> list[Program]:
  """The training steps and the encoding of passages."""
  encoder = cfg.encoder
  ranker = networks.ranker(encoder, cfg.ranker.head).on(mesh, encoder.training_dtype)
  retriever = networks.retriever(encoder).on(mesh, encoder.training_dtype)
  pair = tokenize.pair_lengths(encoder.query_tokens, encoder.pair_cut, ranker.tokenizer.between)
  dual = {"direct step": cfg.direct, "retriever step": cfg.retriever}
  encoding = retriever.on(mesh, encoder.inference_dtype)
  return [
    _training("ranker step", cfg.ranker, ranker, objectives.ranker, mesh,
              texts=cfg.ranker.lists_per_batch * cfg.ranker.passages_per_list,
              tokens=cfg.ranker.lists_per_batch * cfg.ranker.passages_per_list * pair, row_tokens=encoder.list_row),
    *(
      _training(name, one, retriever, objectives.retriever, mesh,
                texts=one.lists_per_batch * (1 + one.passages_per_list),
                tokens=one.lists_per_batch * (one.passages_per_list * encoder.list_cut + encoder.query_tokens),
                row_tokens=encoder.list_row)
      for name, one in dual.items()
    ),
    _encoding(encoding, mesh, tokens=encoder.tokens_per_step, row_tokens=encoder.row_tokens),
  ]


def _training(name: str, cfg: Any, network: networks.Network,
              objective: Callable[[Any, networks.Network], step_lib.LossFn], mesh: jax.sharding.Mesh, *, texts: int,
              tokens: int, row_tokens: int) -> Program:
  """cfg: config.Ranker or config.Distillation, of which the objective makes a loss."""
  params = jax.tree.map(_abstract, network.abstract, network.shardings(mesh))
  tx = optim.adamw(cfg.optim, 1000, table_lib.decay_mask(network.table, network.abstract))
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

  # Layers in a loop, as a TPU runs them.
  network = dataclasses.replace(network, execution=dataclasses.replace(network.execution, unroll_layers=False))
  step: Any = step_lib.make_step(objective(cfg, network), tx, state)
  lowered = step.lower(state, batch)
  compiled = lowered.compile()
  part = _rows(math.ceil(tokens / cfg.passes), row_tokens, texts, shards, mesh)
  layer = _layer_cost(network, params, part, mesh, gradient=True)
  if cfg.passes > 1:
    again = _layer_cost(network, params, part, mesh, gradient=False)
    layer = {what: layer[what] + again[what] for what in COUNTED}
  return _program(name, lowered, compiled, rows, layer, turns=cfg.passes * network.table.layers)


def _encoding(network: networks.Network, mesh: jax.sharding.Mesh, *, tokens: int, row_tokens: int) -> Program:
  kernels_as_read = jax.eval_shape(lambda params: network.reading(params)[1], network.abstract)
  params = jax.tree.map(_abstract, kernels_as_read, network.shardings(mesh))
  # Which has its layers in a loop.
  network = dataclasses.replace(network, execution=network.execution.without_gradient())
  rows = _rows(tokens, row_tokens, tokens // 64, sharding.batch_shards(mesh), mesh)
  lowered = jax.jit(network.apply).lower(params, rows)
  layer = _layer_cost(network, params, rows, mesh, gradient=False)
  return _program("encode", lowered, lowered.compile(), rows, layer, turns=network.table.layers)


def _layer_cost(network: networks.Network, params: Any, rows: pack.Rows, mesh: jax.sharding.Mesh, *,
                gradient: bool) -> dict[str, float]:
  """What one layer costs by itself, with its gradient or without: XLA counts a loop's turn once.

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
  each, every = jax.eval_shape(lambda params, rows: encoder(params).beside(rows), params, rows)
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
  made = jax.jit(gradients if gradient else values, out_shardings=layouts)
  cost: Any = made.lower(own, x, rows, beside).compile().cost_analysis()
  return {what: cost[what] for what in COUNTED}


def _rows(tokens: int, row_tokens: int, texts: int, multiple: int, mesh: jax.sharding.Mesh) -> pack.Rows:
  count = math.ceil(tokens / row_tokens / multiple) * multiple
  # An abstract array stands in for one wherever only shapes are read.
  cells: Any = jax.ShapeDtypeStruct((count, row_tokens), jnp.int32)
  starts: Any = jax.ShapeDtypeStruct((texts,), jnp.int32)
  empty = pack.Rows(token_ids=cells, positions=cells, halves=cells, segment_ids=cells, text_ids=cells, starts=starts)
  return jax.tree.map(_abstract, empty, sharding.packed(empty, mesh))


def _abstract(leaf: Any, layout: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)


def _program(name: str, lowered: Any, compiled: Any, rows: pack.Rows, layer: dict[str, float], *,
             turns: int) -> Program:
  """turns: of the loops over layers and passes, of which the compiler has counted one."""
  memory, counted = compiled.memory_analysis(), compiled.cost_analysis()
  cost = {what: counted[what] + (turns - 1) * layer[what] for what in COUNTED}
  return Program(
    name=name, tokens=int(np.prod(rows.token_ids.shape)), argument_bytes=memory.argument_size_in_bytes,
    temporary_bytes=memory.temp_size_in_bytes, flops=cost["flops"], bytes_moved=cost["bytes accessed"],
    # As lowered: XLA cannot print every program that it has compiled.
    kernels=lowered.as_text().count("@tpu_custom_call"),
  )


def show(found: list[Program], mesh: jax.sharding.Mesh) -> table.Table:
  """One line a program; what does not fit into a chip is said."""
  kind = mesh.devices.flat[0].device_kind
  chip = CHIPS[kind]
  made = table.Table(title=f"{mesh.size} x {kind}, mesh {dict(mesh.shape)}; for one chip", box=box.SIMPLE_HEAD)
  for column in ("program", "tokens", "arguments", "temporary", "memory", "GFLOP", "GB", "at least", "kernels"):
    made.add_column(column, justify="left" if column == "program" else "right")
  gib = lambda size: f"{size / 2**30:.2f} GiB"
  for one in found:
    share = one.memory / chip.memory
    made.add_row(one.name, f"{one.tokens:,}", gib(one.argument_bytes), gib(one.temporary_bytes),
                 f"{share:.0%}" + (" DOES NOT FIT" if share > 1 else ""), f"{one.flops / 1e9:.1f}",
                 f"{one.bytes_moved / 1e9:.2f}", f"{1000 * one.seconds(chip):.2f} ms", str(one.kernels))
  return made


def main(cfg: config_lib.Config) -> None:
  mesh = mesh_of(_TOPOLOGY.value, cfg.mesh, _CHIPS.value)
  rich_console.Console().print(show(programs(cfg, mesh), mesh))


if __name__ == "__main__":
  cli.config_app(main)
