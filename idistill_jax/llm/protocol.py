"""What a provider is: one request in, one answer out, or one of the named errors.

    Request ─► provider.ask ─► Answer
                    └─► NotRecorded · Pending · Transient (try again) · Unanswered (tries used up) · Rejected (this one)
                        · Stop (ask no more)

No message, representation or traceback of these errors holds an API key: `Secret` covers it in every text
that came from a server or an SDK.
"""

import contextlib
import dataclasses
import datetime
import email.utils
import importlib
import json
import logging
import os
import socket
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Protocol

from idistill_jax import extras

FinishReason = Literal["stop", "length", "blocked", "other"]

# The family of recordings, whose answers belong to ids and not to words.
RECORDED = "replay"
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
# Who runs a server of one's own often names a short word as its key, which may be a word of an answer.
_SHORTEST_KEY = 12
# More than any call takes, and whole in a float.
_MOST_TOKENS = 2**53
_TRANSIENT_STATUS = frozenset({408, 409, 425, 429, *range(500, 600)}) - {501, 505}
# Whoever says so gave up waiting for a model that may have answered, and billed, all the same; from 520 on it is a
# gateway of Cloudflare's.
_LOST_STATUS = frozenset({408, 502, 504, 520, 522, 524})
# Of one request: longer than the model's context, against a filter.
_REJECTED_STATUS = frozenset({400, 413, 422})


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
  """One list to be ranked: `passage_ids` in the order in which `prompt` shows them."""

  query_id: str
  passage_ids: tuple[str, ...]
  prompt: str


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
  """The raw text.  Token counts are None where the provider tells none; model: who says that it answered, if told."""

  text: str
  finish_reason: FinishReason
  input_tokens: int | None = None
  output_tokens: int | None = None
  model: str | None = dataclasses.field(default=None, compare=False)


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
  """Every try ended in a fault that another try might have mended.  reason: a name to count by."""

  reason = "unanswered"


class Rejected(Unanswered):
  """The server takes this one request for a bad one, however often it is asked."""

  reason = "rejected"


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

  def hide(self, text: str) -> str:
    """An answer without the key, which a server may give back; short ones are left as they are."""
    return text.replace(self._value, "***") if len(self._value) >= _SHORTEST_KEY else text

  def cover(self, text: str) -> str:
    """The text, shortened, without the key, be it quoted as Python or JSON quote."""
    covered = text
    for shown in {self._value, repr(self._value)[1:-1], json.dumps(self._value)[1:-1]} - {""}:
      covered = covered.replace(shown, "***")
    return covered if len(covered) <= _LONGEST_MESSAGE else covered[: _LONGEST_MESSAGE - 3] + "..."


def secret(*variables: str) -> Secret:
  """The first of these environment variables that is set; raises Stop naming them where none is, or it is no key."""
  for variable in variables:
    if value := os.environ.get(variable, "").strip():
      # No header takes it, and the errors that say so show it in forms of their own.
      if not value.isascii() or not value.isprintable() or " " in value:
        raise Stop(
          f"{variable} holds what no API key has, blanks, line breaks or letters beyond ASCII: set it to one key alone"
        )
      return Secret(value)
  raise Stop(
    f"no API key: set the environment variable {' or '.join(variables)}; keys are read from nowhere else"
  )


def secret_if_set(*variables: str) -> Secret:
  """For what needs no key, and yet must not show one; without a key it covers nothing."""
  try:
    return secret(*variables)
  except Stop:
    return Secret("")


def sdk(module: str, extra: str) -> types.ModuleType:
  """Imports an SDK; raises Stop naming the extra that installs it."""
  try:
    found = importlib.import_module(module)
  except ImportError as e:
    raise Stop(
      f"{module} cannot be imported ({e}); it comes with the extra {extra}: {extras.install(extra)}"
    ) from e
  for name in _CHATTY:
    logging.getLogger(name).setLevel(logging.WARNING)
  return found


def root(error: BaseException) -> BaseException:
  """What it all began with: an SDK calls a server that is not there a timeout."""
  *_, first = _causes(error)
  return first


def lost(where: str, message: str, error: BaseException) -> Transient:
  """The error for a connection that failed: nothing can have been billed where none came about."""
  never_came_about = any(isinstance(one, ConnectionRefusedError | socket.gaierror) for one in _causes(error))
  return Transient(f"{where}: {message}", refused=never_came_about)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
  """The error, what it came of, and so on."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def fault(where: str, status: int, message: str, retry_after: float | None = None) -> Transient | Rejected | Stop:
  """The error for an HTTP status: worth another try, of this request alone, or of all."""
  if status in _TRANSIENT_STATUS:
    return Transient(f"{where}: {status}: {message}", retry_after, refused=status not in _LOST_STATUS)
  # Gemini's word for a wrong key.
  if status in _REJECTED_STATUS and not ("API_KEY_INVALID" in message or "api key" in message.lower()):
    return Rejected(f"{where}: refused with status {status}: {message}")
  hint = {
    400: "; is the API key right?",
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
    raise lost(where, f"no readable answer: {key.cover(f'{type(e).__name__}: {e}')}", e) from None


def count(told: object) -> int | None:
  """A number of tokens that a server tells; None for what can be none, as NaN or less than nothing."""
  return int(told) if isinstance(told, int | float) and 0 <= told <= _MOST_TOKENS else None


def answer(
  key: Secret, text: object, finish_reason: FinishReason, *, prompt_tokens: object, output_tokens: object,
  total_tokens: object, model: object,
) -> Answer:
  """What a server told, whatever types it told it in; raises TypeError for a text that is none."""
  if not isinstance(text, str):
    raise TypeError(f"the answer is no text but {type(text).__name__}")
  prompt, output, total = count(prompt_tokens), count(output_tokens), count(total_tokens)
  if prompt is not None and output is not None and total is not None:
    # What a model thought is billed as output, and counted in the total alone by some.
    output = max(output, total - prompt)
  said = key.hide(model) if isinstance(model, str) else None
  return Answer(key.hide(text), finish_reason, prompt, output, said)
