"""Training curves for TensorBoard, where the extra `tensorboard` is installed: the numbers of metrics.jsonl."""

import importlib.util
import pathlib
from collections.abc import Mapping

FOLDER = "tensorboard"


class Curves:
  """Scalars by step, in event files under `folder`; nothing where tensorboardX is not installed.

  begin_at: the first step that will be written; what a killed run wrote from there on is not shown.
  """

  def __init__(self, folder: pathlib.Path, begin_at: int):
    self._writer = None
    if importlib.util.find_spec("tensorboardX") is not None:
      import tensorboardX

      self._writer = tensorboardX.SummaryWriter(str(folder / FOLDER), purge_step=begin_at, flush_secs=10)

  def write(self, row: Mapping[str, float]) -> None:
    """row: as in metrics.jsonl, with its "step"."""
    if self._writer is not None:
      for name in row.keys() - {"step"}:
        self._writer.add_scalar(name, row[name], row["step"])

  def close(self) -> None:
    if self._writer is not None:
      self._writer.close()
