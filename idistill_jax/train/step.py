"""State and step: what changes during training, and the one function that changes it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

from idistill_jax import sharding
from idistill_jax.data import batches as batches_lib
from idistill_jax.models import execution

# (params, batch) -> scalar loss in float32.
LossFn = Callable[[Any, batches_lib.ListBatch], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """Arrays that change."""

  step: jax.Array
  params: Any
  opt_state: Any


def init(params: Any, tx: optax.GradientTransformation, shardings: Any, mesh: jax.sharding.Mesh) -> State:
  """Params onto the mesh; optimizer slots are born with their parameter's sharding."""
  replicated = sharding.replicated(mesh)
  params = sharding.put(params, shardings)
  # jit, so that slots are created where their parameters are rather than on device 0.
  opt_state = jax.jit(tx.init, out_shardings=opt_state_shardings(tx, params, shardings, replicated))(params)
  return State(step=sharding.put(np.zeros((), np.int32), replicated), params=params, opt_state=opt_state)


def opt_state_shardings(tx: optax.GradientTransformation, params: Any, shardings: Any, replicated: Any) -> Any:
  """Shardings of the optimizer state: a subtree shaped like params, but for those that have no slots, takes theirs,
  everything else is replicated."""
  abstract = jax.eval_shape(tx.init, params)
  has_no_slot = lambda node: isinstance(node, optax.MaskedNode)
  return optax.tree_map_params(tx, lambda slot, layout: slot if has_no_slot(slot) else layout, abstract, shardings,
                               transform_non_params=lambda _: replicated, is_leaf=has_no_slot)


def make_step(
  loss_fn: LossFn, tx: optax.GradientTransformation, state: State
) -> Callable[[State, batches_lib.ListBatch], tuple[State, Mapping[str, jax.Array]]]:
  """The jitted step; the old state's buffers are reused for the new one, which keeps `state`'s layout.

  Without the layout the compiler chooses one for what comes out, and compiles once more for what then goes in.
  """
  layout = jax.tree.map(lambda leaf: leaf.sharding, state)

  def step(state: State, batch: batches_lib.ListBatch) -> tuple[State, Mapping[str, jax.Array]]:
    loss, grads = jax.value_and_grad(loss_fn)(state.params, batch)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    seen = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return State(step=state.step + 1, params=params, opt_state=opt_state), seen

  mesh = jax.tree.leaves(layout)[0].mesh
  return jax.jit(step, donate_argnums=0, out_shardings=(layout, None),
                 compiler_options=execution.compiler_options(mesh))
