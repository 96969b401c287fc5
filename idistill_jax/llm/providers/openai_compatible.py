"""Any OpenAI-compatible endpoint by base URL: OpenAI, vLLM, SGLang, Ollama, llama.cpp, OpenRouter.

Key: OPENAI_API_KEY; an endpoint of one's own needs none.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

from idistill_jax import config
from idistill_jax.llm import protocol

KEY = "OPENAI_API_KEY"
# The last four are other servers' words for "stop".
_FINISH: dict[str, protocol.FinishReason] = {
  "stop": "stop", "length": "length", "content_filter": "blocked",
  **dict.fromkeys(("eos", "eos_token", "stop_sequence", "end_turn"), "stop"),
}


class OpenAICompatible:
  """`chat/completions` with one user message."""

  family = "openai"
  remote = True

  def __init__(self, cfg: config.Labels):
    self._openai = protocol.sdk("openai", "llm")
    self._key = key(cfg.base_url)
    self.model = cfg.model
    self.params: Mapping[str, Any] = params(cfg)
    self._client = self._openai.AsyncOpenAI(
      api_key=self._key.reveal(), base_url=cfg.base_url, timeout=cfg.timeout_seconds, max_retries=0,
      # The SDK's own choice looks at all of its connections for each call.
      http_client=self._openai.DefaultAioHttpClient(),
    )
    # Given a path, the SDK would put it together with its base and take that apart for each call.
    self._url = f"{self._client.base_url}chat/completions"

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    where = f"openai {self.model}"
    with protocol.covered(self._key, where):
      try:
        # `chat.completions.create` would walk body and answer along their types, which takes as long as all the rest.
        answered = await self._client.post(
          self._url, cast_to=str,
          body={"model": self.model, "messages": [{"role": "user", "content": request.prompt}], **self.params},
        )
      except self._openai.APIStatusError as e:
        message = self._key.cover(str(e.message))
        raise protocol.fault(
          where, e.status_code, message, protocol.retry_after(e.response.headers)
        ) from None
      except self._openai.APIConnectionError as e:
        message = self._key.cover(f"{type(e).__name__}: {e.message} ({protocol.root(e)})")
        raise protocol.lost(where, f"no connection: {message}", e) from None
      completion = json.loads(answered)
      # Gateways say so in an answer that is none.
      if isinstance(completion, dict) and "choices" not in completion and (fault := completion.get("error")):
        code = fault.get("code") if isinstance(fault, dict) else None
        raise protocol.fault(where, code if isinstance(code, int) else 502, self._key.cover(json.dumps(fault)))
      found = read(completion, self._key)
      # OpenRouter's word for a model that broke off; the half that it said may be billed, and is no answer to keep.
      if (first := completion["choices"][0]).get("error") or first.get("finish_reason") == "error":
        told = self._key.cover(json.dumps(first.get("error")))
        raise protocol.Transient(f"{where}: the answer ended with an error: {told}")
      return found

  async def close(self) -> None:
    await self._client.close()


def read(completion: Mapping[str, Any], key: protocol.Secret) -> protocol.Answer:
  """The answer in a `ChatCompletion` as JSON has it; raises LookupError, TypeError or AttributeError without one."""
  first, usage = completion["choices"][0], completion.get("usage") or {}
  content = first["message"].get("content") or ""
  if isinstance(content, list):
    content = "".join(part["text"] for part in content if part.get("type") == "text")
  return protocol.answer(
    key, content,
    # Servers that give no reason give whole answers.
    _FINISH.get(first.get("finish_reason") or "stop", "other"),
    prompt_tokens=usage.get("prompt_tokens"), output_tokens=usage.get("completion_tokens"),
    total_tokens=usage.get("total_tokens"), model=completion.get("model"),
  )


def params(cfg: config.Labels) -> dict[str, Any]:
  # OpenAI's own reasoning models take neither max_tokens nor a temperature; other servers do not know the newer name.
  settings: dict[str, Any] = {"max_completion_tokens": cfg.max_output_tokens}
  if cfg.base_url is not None:
    settings = {"max_tokens": cfg.max_output_tokens, "temperature": 0.0}
  return settings if cfg.reasoning == "unset" else settings | {"reasoning_effort": cfg.reasoning}


def key(base_url: str | None) -> protocol.Secret:
  """From OPENAI_API_KEY; an endpoint of one's own may do without."""
  if base_url is not None and not os.environ.get(KEY, "").strip():
    # A local server asks for no key, the SDK insists on one.
    return protocol.Secret("no-key-needed")
  return protocol.secret(KEY)
