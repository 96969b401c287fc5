"""AdamW with linear warm-up and decay, clipping, and weight decay on matrices only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from idistill_jax import config as config_lib
from idistill_jax.hf import networks
from idistill_jax.models import table as table_lib


def schedule(cfg: config_lib.Optim, steps: int) -> optax.Schedule:
  """Up to the peak over the first `warmup_fraction` of the steps, then linearly to 0, which no step reaches."""
  warmup = max(1, round(cfg.warmup_fraction * steps))
  rise = optax.linear_schedule(cfg.peak_lr / warmup, cfg.peak_lr, max(1, warmup - 1))
  return optax.join_schedules([rise, optax.linear_schedule(cfg.peak_lr, 0.0, max(1, steps - warmup))], [warmup])


def rates(cfg: config_lib.Optim, steps: int) -> list[float]:
  """The learning rate of every step."""
  return np.asarray(jax.vmap(schedule(cfg, steps))(jnp.arange(steps))).tolist()


def of(network: networks.Network, cfg: config_lib.Optim, steps: int) -> optax.GradientTransformation:
  """For a network's parameters."""
  table, frozen = network.table, network.execution.frozen_layers
  return adamw(cfg, steps, table_lib.decay_mask(table, network.abstract),
               table_lib.trained_mask(table, network.abstract, frozen) if frozen else None)


def adamw(cfg: config_lib.Optim, steps: int, decay_mask: Any, trained: Any = None) -> optax.GradientTransformation:
  """trained: of each parameter, whether it changes, a bool or an array that spreads over it; None: all do.  What stays
  as a whole has no moments."""
  clip = optax.clip_by_global_norm(cfg.clip_norm)
  decayed = optax.adamw(schedule(cfg, steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=decay_mask)
  if trained is None:
    return optax.chain(clip, decayed)
  learns = jax.tree.map(lambda rows: bool(np.any(rows)), trained)
  # Without a gradient AdamW changes nothing, but weights decay.
  return optax.chain(clip, optax.masked(decayed, learns),
                     optax.stateless(lambda updates, params: jax.tree.map(jnp.multiply, updates, trained)))
