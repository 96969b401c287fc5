"""A ranker's scores and gradients on a mesh of 2 x 2 x 2 pretended devices, and on one device."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from idistill_jax import config, sharding
from idistill_jax.data import pack
from idistill_jax.hf import networks


@dataclasses.dataclass(frozen=True)
class Step:
  """Of a loss that weighs the scores of eight rows: its value, the scores and the gradients."""

  loss: Any
  scores: Any
  gradients: Any


def steps(network: networks.Network, params: Any, rows: pack.Rows) -> tuple[Step, Step, Callable[[pack.Rows], Step]]:
  """On one device, on the mesh, and what gives that of other rows on one device."""
  mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, tensor=2))
  loss = lambda params, rows: (lambda scores: ((scores * np.linspace(-1, 2, 8)).sum(), scores))(
    network.apply(params, rows))
  step = jax.jit(jax.value_and_grad(loss, has_aux=True))

  def taken(params: Any, rows: pack.Rows) -> Step:
    (value, scores), gradients = step(params, rows)
    return Step(value, scores, gradients)

  spread = taken(sharding.put(params, network.shardings(mesh)), sharding.put(rows, sharding.packed(rows, mesh)))
  return taken(params, rows), spread, lambda rows: taken(params, rows)


def apart(found: Any, expected: Any) -> Any:
  """Of each parameter's gradient the farthest entry, as a share of the largest."""
  return jax.tree.map(lambda a, b: float(abs(a - b).max() / abs(b).max()), found, expected)
