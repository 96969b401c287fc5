"""What the attempts at a stage took, kept beside their work until it is committed."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from idistill_jax.workdir import files

FILE = "seconds"
# A kill costs no more of the count than this; of a machine that goes for good, no more than the second: what is sent to
# a bucket is paid for by the request.
WRITTEN_SECONDS, SENT_SECONDS = 30.0, 300.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Took:
  """seconds: of all attempts.  device_seconds: kind of device -> each attempt's seconds times how many it had."""

  seconds: float
  device_seconds: Mapping[str, float]

  def and_helpers(self, device_seconds: Mapping[str, float]) -> "Took":
    """With those of devices that helpers had, at the pieces that they made."""
    devices = collections.Counter(self.device_seconds)
    devices.update(device_seconds)
    return dataclasses.replace(self, device_seconds={kind: round(spent, 3) for kind, spent in devices.items()})


def read(text: str) -> Took:
  """What a file of this name says; earlier versions wrote the seconds alone."""
  said = json.loads(text or "0")
  return Took(**said) if isinstance(said, dict) else Took(seconds=float(said), device_seconds={})


class Spent:
  """What the attempts took that a folder tells of, and one that begins now.

  hardware: says what devices this one has for as long as it takes, as `processes.hardware` does, which waits until they
  are there; None for none.  on: what it said.
  """

  def __init__(self, folder: pathlib.Path, hardware: Callable[[], Mapping[str, Any]] | None = None):
    self._path = folder / FILE
    self._before = read(self._path.read_text() if self._path.exists() else "")
    self._began = time.monotonic()
    self.on = None if hardware is None else hardware()
    self._devices = {} if self.on is None else {self.on["kind"]: self.on["devices"]}
    self._writing = threading.Lock()

  def so_far(self) -> Took:
    now, devices = time.monotonic() - self._began, collections.Counter[str]()
    devices.update(self._before.device_seconds)
    devices.update({kind: count * now for kind, count in self._devices.items()})
    return Took(seconds=round(self._before.seconds + now, 2),
                device_seconds={kind: round(spent, 2) for kind, spent in devices.items()})

  def write(self) -> None:
    """A full disk costs the number: as an error it would hide why a stage ended, and keep its answers from a bucket."""
    try:
      with self._writing:
        if self._path.parent.exists():
          files.write_atomically(self._path, json.dumps(dataclasses.asdict(self.so_far())))
    except OSError as e:
      logging.warning("%s: not written (%s)", self._path, e)

  @contextlib.contextmanager
  def kept(self, send: Callable[[], object]) -> Iterator[None]:
    """Writes it every now and then while the block runs, and at its end; `send` makes it outlive this machine."""
    ended = threading.Event()
    writer = threading.Thread(target=self._keep_writing, args=(ended, send), daemon=True)
    writer.start()
    try:
      yield
    finally:
      ended.set()
      # What comes next may take the folder away.
      writer.join()
      self.write()

  def _keep_writing(self, ended: threading.Event, send: Callable[[], object]) -> None:
    sent = time.monotonic()
    while not ended.wait(WRITTEN_SECONDS):
      self.write()
      if time.monotonic() - sent > SENT_SECONDS:
        sent = time.monotonic()
        try:
          send()
        except Exception as e:  # a bucket has its own; where the stage is another run's by now, the work finds out too
          logging.warning("%s: not sent (%s)", self._path, e)
