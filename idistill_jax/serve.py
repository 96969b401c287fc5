"""A small search page and JSON API over the exported models of a workdir, on this machine alone.

    python -m idistill_jax.serve --workdir=runs/quickstart --port=8008

`GET /` is the page, `GET /?q=<question>` the page with what is found, so that a question can be kept and sent as a link
and needs no script; `GET /api/search?q=<question>&k=5` answers in JSON with each system's passages, milliseconds, and
the kind of search that took them.
Questions are cut off by length, by rate and by how long they wait, and answered one after the other: the models share
one device.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import math
import os
import socket
import time
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from absl import app, flags, logging

from idistill_jax import cli, extras, search
from idistill_jax.data import example, tfrecord

_PORT = flags.DEFINE_integer("port", 8008, "Port on 127.0.0.1.", lower_bound=0, upper_bound=65535)
# Ten a second keep many readers content; more is a script, which may raise it.
PER_MINUTE = 600
_RATE = flags.DEFINE_integer("per_minute", PER_MINUTE, "Questions a minute that the models are asked.", lower_bound=1)

HOST = "127.0.0.1"
LONGEST_QUESTION = 1000
# So many are fetched for every question, whatever it asks for: another number is another program to be compiled, while
# all others wait.
MOST_PASSAGES = 20
# Questions that may wait for the models; more are turned away at once.
MOST_WAITING = 64
# Seconds.  A question takes some on a CPU, where 32 readers who ask at once shall all be answered.
LONGEST_WAIT = 60.0
# Seconds between two looks at whether a waiting client is still there.
LOOK = 0.25
MINUTE = 60.0
# Passages a system where a question does not say how many.
SHOWN = 5
HEADERS = {
  "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
  "form-action 'self'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-store",
}
TEMPLATES = "idistill_jax.report"
PAGE, STYLE = "search.html.j2", "search.css"


class Searching(Protocol):
  """What `search.Searcher` does."""

  def search(self, query: str, k: int) -> Mapping[str, search.Answer]: ...


class ServeUnavailableError(ImportError):
  """A package of the extra `serve` is not installed."""


class Refused(Exception):
  """A request that is not answered: HTTP status, what to say, and after how many seconds to ask again."""

  def __init__(self, status: int, message: str, retry_after: float | None = None):
    super().__init__(message)
    self.status = status
    self.headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}


class Rate:
  """At most so many calls a minute.  All together: every client of 127.0.0.1 has the same address."""

  def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
    self._per_minute, self._clock = per_minute, clock
    self._times: collections.deque[float] = collections.deque()

  def admit(self) -> None:
    """Raises Refused where the minute is used up."""
    now = self._clock()
    while self._times and now - self._times[0] > MINUTE:
      self._times.popleft()
    if len(self._times) >= self._per_minute:
      left = MINUTE - (now - self._times[0])
      raise Refused(429, f"more than {self._per_minute} questions in a minute; wait a little", left)
    self._times.append(now)


class Queue:
  """One question at a time, a bounded number waiting for a bounded time."""

  def __init__(self, searcher: Searching, rate: Rate):
    self._searcher, self._rate = searcher, rate
    # A thread of its own, not one of Starlette's 40: those would be the bound then, and nobody turned away.
    self._models = concurrent.futures.ThreadPoolExecutor(1)
    # Why not let the thread's own queue hold them: a question in it can neither be told to come again nor forgotten.
    self._free = asyncio.Lock()
    self._taken = 0

  async def search(self, question: str, k: int, gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
    """JSON for the answers; raises Refused where too many wait, the minute is used up, this one waits too long, or
    nobody does for it any more (`gone`), ValueError for what cannot be searched for."""
    if self._taken > MOST_WAITING:
      raise Refused(503, f"{MOST_WAITING} questions are waiting already; try again", 1)
    # Behind all that turns a question away at once: who comes again as told must not use up what others have.
    self._rate.admit()
    self._taken += 1
    try:
      await self._turn(gone)
      try:
        loop = asyncio.get_running_loop()
        answers = await loop.run_in_executor(self._models, self._searcher.search, question, MOST_PASSAGES)
      finally:
        self._free.release()
    finally:
      self._taken -= 1
    return {"question": question, "systems": {name: _as_json(answer, k) for name, answer in answers.items()}}

  async def _turn(self, gone: Callable[[], Awaitable[bool]]) -> None:
    """Returns when the models are this question's, first come first served; raises Refused where it gives up."""
    until = time.monotonic() + LONGEST_WAIT
    turn = asyncio.ensure_future(self._free.acquire())
    try:
      while not turn.done():
        await asyncio.wait({turn}, timeout=min(LOOK, LONGEST_WAIT))
        if await gone():
          raise Refused(499, "nobody waits for the answer")
        if not turn.done() and time.monotonic() >= until:
          raise Refused(503, f"the question has waited {LONGEST_WAIT:g} s; try again when fewer ask", LONGEST_WAIT)
    except BaseException:
      if not turn.cancel():
        self._free.release()
      raise


def _as_json(answer: search.Answer, k: int) -> dict[str, Any]:
  passages = [{"id": one.id, "title": one.title, "text": one.text} for one in answer.passages[:k]]
  return {"milliseconds": round(answer.milliseconds, 2), "by": answer.by, "passages": passages}


def application(searcher: Searching, per_minute: int) -> Any:
  """The Starlette application.  Raises ServeUnavailableError naming the extra to install."""
  starlette = _starlette()
  queue = Queue(searcher, Rate(per_minute))
  # Questions and passages may be hostile: all of them pass the template's escaping.
  environment = starlette.Environment(loader=starlette.PackageLoader(TEMPLATES), autoescape=True)
  template, (style, *_) = environment.get_template(PAGE), environment.loader.get_source(environment, STYLE)

  async def answer(request: Any) -> tuple[dict[str, Any], int, dict[str, str]]:
    """What is found, or an "error"; the HTTP status; the headers."""
    try:
      _refuse_other_sites(request.headers)
      return await queue.search(*_asked(request.query_params), request.is_disconnected), 200, HEADERS
    except Refused as e:
      return {"error": str(e)}, e.status, HEADERS | e.headers
    except (tfrecord.CorruptRecord, example.ExampleError):
      raise  # a passage that cannot be read is no fault of who asks
    except ValueError as e:
      return {"error": str(e)}, 400, HEADERS

  async def api(request: Any) -> Any:
    found, status, headers = await answer(request)
    return starlette.JSONResponse(found, status_code=status, headers=headers)

  async def page(request: Any) -> Any:
    question = request.query_params.get("q", "").strip()
    found, status, headers = await answer(request) if question else ({}, 200, HEADERS)
    shown = template.render(question=question, longest=LONGEST_QUESTION, error=found.get("error"),
                            systems=found.get("systems"))
    return starlette.Response(shown, status_code=status, media_type="text/html", headers=headers)

  # Async like the others, so in the server's own thread: no page waits for a free one.
  async def css(request: Any) -> Any:
    return starlette.Response(style, media_type="text/css", headers=HEADERS)

  # Another site's page may reach this port under a name of its own (DNS rebinding): only ours are answered.
  hosts = starlette.Middleware(starlette.TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
  routes = [starlette.Route(path, end) for path, end in (("/", page), ("/search.css", css), ("/api/search", api))]
  return starlette.Starlette(routes=routes, middleware=[hosts])


def _refuse_other_sites(headers: Mapping[str, str]) -> None:
  """Raises Refused where a page of another site asks, as for an image: a few hundred of them would use up the rate.

  A link to an answer may stand anywhere.  Browsers say who asks; other clients do not, and need not.
  """
  if headers.get("sec-fetch-site") in ("cross-site", "same-site") and headers.get("sec-fetch-dest") != "document":
    raise Refused(403, "a page of another site asks for this")


def _asked(parameters: Mapping[str, str]) -> tuple[str, int]:
  """(question, k); raises Refused or ValueError saying what is wrong."""
  question, k = parameters.get("q", ""), parameters.get("k", str(SHOWN))
  if len(question) > LONGEST_QUESTION:
    raise Refused(413, f"the question has {len(question)} characters; at most {LONGEST_QUESTION} are read")
  if not k.isdecimal() or len(k) > 4 or not 1 <= int(k) <= MOST_PASSAGES:
    raise ValueError(f"k must be a whole number from 1 to {MOST_PASSAGES}")
  search.check(question, int(k))
  return question, int(k)


def _starlette() -> Any:
  """The names that are used of the extra's packages, in one place."""
  with extras.needed("serving", "serve", ServeUnavailableError):
    import jinja2
    import uvicorn  # noqa: F401  (better to say so before models are loaded)
    from starlette import applications, middleware, responses, routing
    from starlette.middleware import trustedhost
  return types.SimpleNamespace(
    Starlette=applications.Starlette, Middleware=middleware.Middleware, Response=responses.Response,
    JSONResponse=responses.JSONResponse, Route=routing.Route, TrustedHostMiddleware=trustedhost.TrustedHostMiddleware,
    Environment=jinja2.Environment, PackageLoader=jinja2.PackageLoader,
  )  # fmt: skip


def server(searcher: Searching, per_minute: int) -> Any:
  """A uvicorn server, not yet running; `run(sockets=[bound(port)])` serves there until interrupted."""
  made = application(searcher, per_minute)
  import uvicorn

  return uvicorn.Server(uvicorn.Config(
    made, log_level="warning", limit_concurrency=4 * MOST_WAITING, timeout_keep_alive=5,
    http="h11", h11_max_incomplete_event_size=16_384,  # the other parser, where it is installed, knows no such limit
  ))  # fmt: skip


def ready(workdir: str | os.PathLike[str], per_minute: int) -> Any:
  """`server` over the workdir's models, which have answered once: the first who asks waits for no compiler."""
  searcher = search.Searcher(workdir)
  searcher.search("a question", MOST_PASSAGES)
  return server(searcher, per_minute)


def bound(port: int) -> socket.socket:
  """A socket that listens at the port of 127.0.0.1, any free one for 0; raises OSError where another does."""
  try:
    return socket.create_server((HOST, port))
  except OSError as e:
    raise OSError(e.errno, f"{HOST}:{port}: {e.strerror}; take another with --port, or any with --port=0") from e


def main(argv: Sequence[str]) -> None:
  workdir = cli.WORKDIR.value
  if not workdir or len(argv) > 1:
    raise app.UsageError("--workdir is needed: python -m idistill_jax.serve --workdir=runs/quickstart")
  logging.set_verbosity(logging.INFO)
  cli.quiet_libraries()
  with cli.ending_in_words():
    _starlette()
    listening = bound(_PORT.value)
    logging.info("loading and compiling the models")
    serving = ready(workdir, _RATE.value)
  logging.info("http://%s:%d", HOST, listening.getsockname()[1])
  with contextlib.suppress(KeyboardInterrupt):
    serving.run(sockets=[listening])


if __name__ == "__main__":
  app.run(main)
