"""What a provider of batches is: a file of requests in, files of results out, hours later."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from idistill_jax.llm import protocol

State = Literal["under way", "ended"]


class Server(Protocol):
  """One provider's batches.  family, model, params: as of its live provider, whose answers they share.

  key_field: where a line, of requests or of results, has its key.
  """

  family: str
  model: str
  params: Mapping[str, Any]
  key_field: str

  def line(self, key: str, request: protocol.Request) -> dict[str, Any]:
    """A request as its batch files have it."""
    ...

  def read(self, line: dict[str, Any]) -> tuple[str, protocol.Answer]:
    """(key, answer) of a line of results; raises LineFailed for a failed one."""
    ...

  def submit(self, path: pathlib.Path, label: str) -> str:
    """Uploads a file of requests and starts a batch; returns its name."""
    ...

  def find(self, label: str) -> str | None:
    """Name of the batch that was submitted with the label."""
    ...

  def state(self, name: str) -> State: ...

  def fetch(self, name: str) -> Iterator[bytes]:
    """Result files of an ended batch; none where it failed as a whole."""
    ...


class LineFailed(Exception):
  """A request of a batch that was not answered."""

  def __init__(self, key: str, message: str):
    super().__init__(message)
    self.key = key


@contextlib.contextmanager
def stopping(key: protocol.Secret, where: str) -> Iterator[None]:
  """Turns whatever an SDK raises into a Stop without the key: a batch is not lost by it, the next run goes on."""
  try:
    yield
  except protocol.Stop:
    raise
  except Exception as e:
    raise protocol.Stop(f"{where}: {key.cover(f'{type(e).__name__}: {e}')}; run the same command again") from None
