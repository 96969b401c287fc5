"""AdamW with linear warm-up and decay, clipping, and weight decay on matrices only."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from idistill_jax import config as config_lib


def schedule(cfg: config_lib.Optim, steps: int) -> optax.Schedule:
  """Up to the peak over the first `warmup_fraction` of the steps, then linearly to 0, which no step reaches."""
  warmup = max(1, round(cfg.warmup_fraction * steps))
  rise = optax.linear_schedule(cfg.peak_lr / warmup, cfg.peak_lr, max(1, warmup - 1))
  return optax.join_schedules([rise, optax.linear_schedule(cfg.peak_lr, 0.0, max(1, steps - warmup))], [warmup])


def rates(cfg: config_lib.Optim, steps: int) -> list[float]:
  """The learning rate of every step."""
  return np.asarray(jax.vmap(schedule(cfg, steps))(jnp.arange(steps))).tolist()


def adamw(cfg: config_lib.Optim, steps: int, decay_mask: Any) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(cfg.clip_norm),
    optax.adamw(schedule(cfg, steps), b1=cfg.b1, b2=cfg.b2, weight_decay=cfg.weight_decay, mask=decay_mask),
  )
