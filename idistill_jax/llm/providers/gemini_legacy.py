"""Gemini through google-generativeai, whose support has ended; `gemini` is the one to use.  Same keys.

The SDK holds key and address globally, so one process talks to one endpoint.  It cannot say how much to think.
"""

import asyncio
import warnings
from collections.abc import Mapping
from concurrent import futures
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
    self._threads = futures.ThreadPoolExecutor(cfg.concurrency, thread_name_prefix="gemini_legacy")
    self._options = {"timeout": cfg.timeout_seconds, "retry": None}

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    # The SDK's own asynchronous calls need gRPC, which cannot be pointed at another endpoint as REST can.
    return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, request)

  def _ask(self, request: protocol.Request) -> protocol.Answer:
    where = f"gemini {self.model}"
    with protocol.covered(self._key, where):
      try:
        response = self._model.generate_content(request.prompt, request_options=self._options)
      except self._errors.GoogleAPICallError as e:
        headers = getattr(e.response, "headers", None)
        raise protocol.fault(
          where, e.code and int(e.code), self._key.cover(str(e.message)), protocol.retry_after(headers)
        ) from None
      except self._network as e:
        raise protocol.fault(where, None, self._key.cover(f"{type(e).__name__}: {e}")) from None
      return self._read(response)

  async def close(self) -> None:
    self._threads.shutdown(wait=False, cancel_futures=True)

  def _read(self, response: Any) -> protocol.Answer:
    usage = response.usage_metadata
    if not response.candidates:
      if not response.prompt_feedback.block_reason:
        raise ValueError("neither candidates nor a reason why there are none")
      return protocol.Answer("", "blocked", usage.prompt_token_count, 0)
    first = response.candidates[0]
    return protocol.Answer(
      "".join(part.text for part in first.content.parts),
      gemini.FINISH.get(first.finish_reason.name, "other"),
      usage.prompt_token_count,
      usage.candidates_token_count,
    )


def build(cfg: config.Labels) -> protocol.Provider:
  return GeminiLegacy(cfg)
