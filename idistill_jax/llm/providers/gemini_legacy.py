"""Gemini through google-generativeai, whose support has ended; `gemini` is the one to use.  Same keys.

The SDK holds key and address globally, so one process talks to one endpoint.  It cannot say how much to think.
"""

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from idistill_jax import config
from idistill_jax.llm import protocol
from idistill_jax.llm.providers import gemini

_EXTRA = "gemini-legacy"


class GeminiLegacy:
  """`GenerativeModel.generate_content` over REST, at Google or at `labels.base_url`."""

  family = gemini.Gemini.family
  remote = True

  def __init__(self, cfg: config.Labels):
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", FutureWarning)
      genai = protocol.sdk("google.generativeai", _EXTRA)
      clients = protocol.sdk("google.generativeai.client", _EXTRA)
      self._errors = protocol.sdk("google.api_core.exceptions", _EXTRA)
      self._network = protocol.sdk("requests.exceptions", _EXTRA).RequestException
    self._key = protocol.secret(*gemini.KEYS)
    self.model = cfg.model
    if cfg.reasoning != "unset":
      raise protocol.Stop(f"labels.reasoning={cfg.reasoning}: google-generativeai cannot say so; take provider=gemini")
    self.params: Mapping[str, Any] = gemini.params(cfg)
    genai.configure(
      api_key=self._key.reveal(),
      transport="rest",
      client_options={"api_endpoint": cfg.base_url} if cfg.base_url else None,
    )
    # google-auth asks twice more after a 401, hoping for fresh credentials; an API key has none.
    session = clients.get_default_generative_client().transport._session
    session._max_refresh_attempts = 0
    self._model = genai.GenerativeModel(cfg.model, generation_config=dict(self.params))
    self._options = {"timeout": cfg.timeout_seconds, "retry": None}

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    """In a thread, as the SDK's own asynchronous calls need gRPC, which cannot be pointed at another endpoint.

    A thread of its own, and a daemon: one that a server keeps dripping to beyond its deadline holds up no other call,
    as it would in a pool, and not the end of the process.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[protocol.Answer] = loop.create_future()

    def settle(found: protocol.Answer | Exception) -> None:
      if answer.done():
        return
      if isinstance(found, Exception):
        answer.set_exception(found)
      else:
        answer.set_result(found)

    def work() -> None:
      found: protocol.Answer | Exception
      try:
        found = self._ask(request)
      except Exception as e:
        found = e
      # Past the deadline, the loop itself may have ended.
      with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=work, name="gemini_legacy", daemon=True).start()
    return await answer

  def _ask(self, request: protocol.Request) -> protocol.Answer:
    where = f"gemini {self.model}"
    with protocol.covered(self._key, where):
      try:
        response = self._model.generate_content(request.prompt, request_options=self._options)
      except self._errors.GoogleAPICallError as e:
        headers = getattr(e.response, "headers", None)
        message = self._key.cover(str(e.message))
        if e.code is None:
          raise protocol.lost(where, message, e) from None
        raise protocol.fault(where, int(e.code), message, protocol.retry_after(headers)) from None
      except self._network as e:
        message = self._key.cover(f"{type(e).__name__}: {e}")
        raise protocol.lost(where, f"no connection: {message}", e) from None
      return self._read(response)

  async def close(self) -> None:
    pass

  def _read(self, response: Any) -> protocol.Answer:
    # Counts that were not sent are zeros here.
    usage = response.usage_metadata if response.usage_metadata.total_token_count else None
    if not response.candidates:
      if not response.prompt_feedback.block_reason:
        raise ValueError("neither candidates nor a reason why there are none")
      return protocol.Answer("", "blocked", protocol.count(response.usage_metadata.prompt_token_count), 0)
    first = response.candidates[0]
    return protocol.answer(
      self._key, "".join(part.text for part in first.content.parts),
      gemini.FINISH.get(first.finish_reason.name, "other"),
      prompt_tokens=usage and usage.prompt_token_count, output_tokens=usage and usage.candidates_token_count,
      total_tokens=usage and usage.total_token_count, model=None,
    )
