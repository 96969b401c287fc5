"""Steps of our AdamW against torch's, from the same gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import saved_names

from idistill_jax import config
from idistill_jax.hf import networks
from idistill_jax.models import table as table_lib
from idistill_jax.train import optim

STEPS = 3


def assert_equal(network: networks.Network, start: Any, model: Any) -> None:
  """Same gradients into both optimizers, three steps: warm-up, clipping, moments and which parameters decay.

  start: our parameters, which those of torch's `model` equal.  Gradients are given rather than computed: Adam divides
  by their size, so the rounding of a gradient that is truly zero would become a full step of either sign.
  """
  import torch

  cfg = config.Optim(peak_lr=1e-2, warmup_fraction=0.5, weight_decay=0.1, b1=0.8, b2=0.95, clip_norm=1.0)
  table, params = network.table, jax.tree.map(jnp.asarray, start)
  tx = optim.adamw(cfg, STEPS, table_lib.decay_mask(table, params))
  named = dict(model.named_parameters())
  plain = lambda name: name.endswith("bias") or "norm" in name.lower()
  theirs = torch.optim.AdamW(
    [{"params": [p for name, p in named.items() if not plain(name)], "weight_decay": cfg.weight_decay},
     {"params": [p for name, p in named.items() if plain(name)], "weight_decay": 0.0}],
    betas=(cfg.b1, cfg.b2), eps=1e-8)
  rate = optim.schedule(cfg, STEPS + 1)
  update = jax.jit(lambda g, s, p: (lambda u, s: (optax.apply_updates(p, u), s))(*tx.update(g, s, p)))
  state = tx.init(params)
  rng = np.random.default_rng(0)
  for step in range(STEPS):
    tensors = {name: torch.tensor(rng.normal(size=p.shape).astype(np.float32) * 1e-3) for name, p in named.items()}
    grads = table_lib.unflatten(table_lib.from_hf(table, saved_names.of(model, tensors), network.abstract))
    params, state = update(grads, state, params)
    for name, p in named.items():
      p.grad = tensors[name]
    torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip_norm)
    for group in theirs.param_groups:
      group["lr"] = float(rate(step))
    theirs.step()
  found, before = table_lib.to_hf(table, params), table_lib.to_hf(table, start)
  moved = 0.0
  for name, expected in saved_names.of(model, named).items():
    # Steps are of order peak_lr = 1e-2.
    np.testing.assert_allclose(found[name], expected, atol=2e-6, rtol=1e-5, err_msg=name)
    moved = max(moved, float(np.abs(found[name] - before[name]).max()))
  assert moved > 1e-3, "nothing moved"
