"""Positions that turn queries and keys.  (Su et al. 2021, arXiv 2104.09864.)"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from idistill_jax.models import encoder, layers


def theta(stated: Mapping[str, Any], otherwise: Any) -> float:
  """Base of the frequencies, of config.json's `rope_parameters`; `otherwise` where these do not say.

  Raises encoder.UnsupportedModelError for frequencies that are made in another way.
  """
  found = stated.get("rope_theta", otherwise)
  plain = {"rope_type": "default", "rope_theta": found}
  if not isinstance(found, int | float) or {**plain, **stated} != plain:
    raise encoder.UnsupportedModelError(
      f"rope_parameters {stated} and a theta of {found!r}; only rope_type 'default' with a rope_theta is supported")
  return found


def check_width(width: int) -> None:
  """Raises encoder.UnsupportedModelError for heads whose numbers are no pairs."""
  if width % 2:
    raise encoder.UnsupportedModelError(f"heads are {width} wide; positions turn pairs, so an even width is supported")


def frequencies(theta: float | np.ndarray, head_dim: int) -> jax.Array:
  """[..., K / 2], radians a token, for each theta [...]."""
  return jnp.asarray(np.asarray(theta)[..., None] ** -(np.arange(0, head_dim, 2) / head_dim), jnp.float32)


def turned(x_RxLxHxK: jax.Array, positions_RxL: jax.Array | np.ndarray, frequencies: jax.Array) -> jax.Array:
  """Feature i and feature i + K / 2 of every head turned by position x frequency i, so that products of two tokens know
  how far apart they are.  In the type of x.

  In float32: in bfloat16, the angles of tokens a few hundred apart are the same.
  """
  positions_RxLx1x1 = jnp.asarray(positions_RxL, jnp.float32)[:, :, None, None]
  angles_RxLx1xK = positions_RxLx1x1 * layers.lift(frequencies, positions_RxLx1x1)
  cos, sin = jnp.cos(angles_RxLx1xK), jnp.sin(angles_RxLx1xK)
  left, right = jnp.split(x_RxLxHxK.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x_RxLxHxK.dtype)
