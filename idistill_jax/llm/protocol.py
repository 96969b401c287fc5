"""What a provider is: one request in, one answer out, or one of the named errors.

    Request ─► provider.ask ─► Answer
                    └─► NotRecorded · Pending · Transient (try again) · Unanswered (tries used up) · Stop (ask no more)

No message, representation or traceback of these errors holds an API key: `Secret` covers it in every text
that came from a server or an SDK.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import importlib
import logging
import os
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "blocked", "other"]

# Loggers of the SDKs that write a line for each request, URL included.
_CHATTY = (
  "httpx",
  "httpx2",
  "httpcore",
  "httpcore2",
  "openai",
  "google_genai",
  "google_genai.models",
  "urllib3",
)
_LONGEST_MESSAGE = 300
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
  """One list to be ranked: `passage_ids` in the order in which `prompt` shows them."""

  query_id: str
  passage_ids: tuple[str, ...]
  prompt: str


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """The raw text.  Token counts are None where the provider tells none."""

  text: str
  finish_reason: FinishReason
  input_tokens: int | None = None
  output_tokens: int | None = None


class Provider(Protocol):
  """family, model, params: what an answer depends on beside the prompt (never an address or a key).

  remote: whether asking goes to a server, so that it can fail, costs, and has limits.
  """

  family: str
  model: str
  params: Mapping[str, Any]
  remote: bool

  async def ask(self, request: Request) -> Answer:
    """Answers one request, in one try; many are under way at once."""
    ...

  async def close(self) -> None:
    """Gives connections back, in the event loop that they were opened in."""
    ...


class NoAnswer(Exception):
  """This one request has no answer; others may."""


class NotRecorded(NoAnswer):
  """The recording holds no answer for this query with these passages in this order."""


class Unanswered(NoAnswer):
  """Every try ended in a fault that another try might have mended."""


class Pending(NoAnswer):
  """The answer comes with a later batch."""


class Transient(Exception):
  """One try failed.

  retry_after: seconds that the server asked to wait, where it did.  refused: the server said that it did not
  answer; otherwise the words may have been made, and billed, and lost on the way.
  """

  def __init__(self, message: str, retry_after: float | None = None, *, refused: bool = False):
    super().__init__(message)
    self.retry_after = retry_after
    self.refused = refused


class Stop(ValueError):
  """No request can succeed: a wrong key, an unknown model, a missing SDK.  The message says what to do."""


class Secret:
  """An API key from the environment that does not show itself."""

  def __init__(self, value: str):
    self._value = value

  def __repr__(self) -> str:
    return "Secret(***)"

  def reveal(self) -> str:
    return self._value

  def cover(self, text: str) -> str:
    """The text, shortened, without the key."""
    covered = text.replace(self._value, "***") if self._value else text
    return covered if len(covered) <= _LONGEST_MESSAGE else covered[: _LONGEST_MESSAGE - 3] + "..."


def secret(*variables: str) -> Secret:
  """The first of these environment variables that is set; raises Stop naming them where none is."""
  for variable in variables:
    if value := os.environ.get(variable, "").strip():
      return Secret(value)
  raise Stop(
    f"no API key: set the environment variable {' or '.join(variables)}; keys are read from nowhere else"
  )


def sdk(module: str, extra: str) -> types.ModuleType:
  """Imports an SDK; raises Stop naming the extra that installs it."""
  try:
    found = importlib.import_module(module)
  except ImportError as e:
    raise Stop(
      f"{module} cannot be imported ({e}); it comes with: pip install 'idistill_jax[{extra}]'"
    ) from e
  for name in _CHATTY:
    logging.getLogger(name).setLevel(logging.WARNING)
  return found


def fault(where: str, status: int | None, message: str, retry_after: float | None = None) -> Transient | Stop:
  """The error for an HTTP status (None: the connection failed): worth another try, or not."""
  if status is None or status in _TRANSIENT_STATUS:
    said = status is not None
    return Transient(f"{where}: {status or 'no connection'}: {message}", retry_after, refused=said)
  hint = {
    401: "; is the API key right?",
    403: "; may this key use that model?",
    404: "; is there such a model?",
  }
  return Stop(f"{where}: refused with status {status}: {message}{hint.get(status, '')}")


def retry_after(headers: Mapping[str, str] | None) -> float | None:
  """Seconds that a Retry-After header asks for, in either of its forms (RFC 9110, 10.2.3)."""
  value = (headers or {}).get("retry-after")
  if value is None:
    return None
  with contextlib.suppress(ValueError):
    return max(0.0, float(value))
  with contextlib.suppress(ValueError, TypeError):
    when = email.utils.parsedate_to_datetime(value)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
  return None


@contextlib.contextmanager
def covered(key: Secret, where: str) -> Iterator[None]:
  """Turns whatever an SDK fails to read into a Transient without the key; lets the named errors pass."""
  try:
    yield
  except (Transient, Stop, NoAnswer):
    raise
  except Exception as e:
    raise Transient(f"{where}: no readable answer: {key.cover(f'{type(e).__name__}: {e}')}") from None
