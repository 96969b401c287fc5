"""Training curves for TensorBoard, where the extra `tensorboard` is installed: the numbers of metrics.jsonl.

An event file is a TFRecord file of `Event` messages.  Why not a writer that exists: they import torch or TensorFlow
wherever one is installed, which takes longer than compiling a step.
"""

import importlib.util
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from idistill_jax.data import tfrecord

FOLDER = "tensorboard"


class Curves:
  """Scalars by step, in an event file under `folder`; nothing where TensorBoard is not installed.

  begin_at: the first step that will be written; what a killed run wrote from there on is not shown.
  """

  def __init__(self, folder: pathlib.Path, begin_at: int):
    self._out = None
    if importlib.util.find_spec("tensorboard") is not None:
      from tensorboard.compat.proto import event_pb2, summary_pb2

      self._event, self._summary = event_pb2, summary_pb2
      (folder / FOLDER).mkdir(parents=True, exist_ok=True)
      # TensorBoard reads the files of a folder in the order of their names.
      self._out = (folder / FOLDER / f"events.out.tfevents.{time.time_ns()}").open("wb")
      self._add(file_version="brain.Event:2")
      started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(step=begin_at, session_log=started)

  def write(self, row: Mapping[str, float]) -> None:
    """row: as in metrics.jsonl, with its "step"."""
    if self._out is not None:
      values = [self._summary.Summary.Value(tag=name, simple_value=row[name]) for name in row.keys() - {"step"}]
      self._add(step=int(row["step"]), summary=self._summary.Summary(value=values))

  def _add(self, **fields: Any) -> None:
    assert self._out is not None
    event = self._event.Event(wall_time=time.time(), **fields)
    self._out.write(tfrecord.framed(event.SerializeToString()))
    # Whole records, so that who looks meanwhile reads what is there.
    self._out.flush()

  def close(self) -> None:
    if self._out is not None:
      self._out.close()
