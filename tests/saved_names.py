"""Tensors of a model in torch by the names that its files have, which are not always those of its parameters."""

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from idistill_jax.hf import weights


def of(model: Any, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """As they would be called as the model's parameters, but for what a task model puts in front.

  transformers saves those of some families under other names, and in other pieces; other modules have one name alone.
  """
  detached = {name: tensor.detach() for name, tensor in tensors.items()}
  if not hasattr(model, "save_pretrained"):
    return {weights.canonical(name): tensor.numpy() for name, tensor in detached.items()}
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, state_dict=detached)
    saved = safetensors.numpy.load_file(pathlib.Path(folder) / "model.safetensors")
  return {weights.canonical(name): tensor for name, tensor in saved.items()}
