"""Gemini through google-genai.  Key: GEMINI_API_KEY or GOOGLE_API_KEY."""

from collections.abc import Mapping
from typing import Any

from idistill_jax import config
from idistill_jax.llm import protocol

KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
FINISH: dict[str, protocol.FinishReason] = {
  "STOP": "stop",
  "MAX_TOKENS": "length",
  "SAFETY": "blocked",
  "RECITATION": "blocked",
  "BLOCKLIST": "blocked",
  "PROHIBITED_CONTENT": "blocked",
  "SPII": "blocked",
}


class Gemini:
  """`models.generateContent` at Google or at `labels.base_url`."""

  family = "gemini"
  remote = True

  def __init__(self, cfg: config.Labels):
    genai = protocol.sdk("google.genai", "llm")
    self._types, self._errors = genai.types, protocol.sdk("google.genai.errors", "llm")
    self._key = protocol.secret(*KEYS)
    self.model = cfg.model
    self.params: Mapping[str, Any] = params(cfg)
    self._config = self._types.GenerateContentConfig(**self.params)
    self._client = client(genai, self._key, cfg, attempts=1)

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    where = f"gemini {self.model}"
    with protocol.covered(self._key, where):
      try:
        response = await self._client.aio.models.generate_content(
          model=self.model, contents=request.prompt, config=self._config
        )
      except self._errors.APIError as e:
        headers = getattr(e.response, "headers", None)
        message = self._key.cover(str(e.message))
        raise protocol.fault(where, e.code, message, protocol.retry_after(headers)) from None
      return read(response, self._key)

  async def close(self) -> None:
    await self._client.aio.aclose()


def params(cfg: config.Labels) -> dict[str, Any]:
  """The `GenerateContentConfig`, as the REST interface has it in snake case."""
  settings: dict[str, Any] = {"temperature": 0.0, "max_output_tokens": cfg.max_output_tokens}
  match cfg.reasoning:
    case "unset":
      return settings
    case "none":
      # Models before Gemini 3 have budgets in place of levels, and only those can do without.
      return settings | {"thinking_config": {"thinking_budget": 0}}
    case level:
      return settings | {"thinking_config": {"thinking_level": level.upper()}}


def client(genai: Any, key: protocol.Secret, cfg: config.Labels, *, attempts: int) -> Any:
  """attempts: tries of each call that the SDK makes by itself."""
  return genai.Client(
    api_key=key.reveal(),
    vertexai=False,
    http_options=genai.types.HttpOptions(
      base_url=cfg.base_url,
      timeout=int(cfg.timeout_seconds * 1000),
      retry_options=genai.types.HttpRetryOptions(attempts=attempts),
    ),
  )


def read(response: Any, key: protocol.Secret) -> protocol.Answer:
  """The answer in a `GenerateContentResponse`; raises ValueError for one that is empty without a reason."""
  usage = response.usage_metadata
  if not response.candidates:
    if not (response.prompt_feedback and response.prompt_feedback.block_reason):
      raise ValueError("neither candidates nor a reason why there are none")
    return protocol.Answer("", "blocked", protocol.count(usage and usage.prompt_token_count), 0)
  first = response.candidates[0]
  parts = (first.content.parts or ()) if first.content else ()
  finish = first.finish_reason.name if first.finish_reason else "STOP"
  return protocol.answer(
    key, "".join(part.text for part in parts if part.text and not part.thought), FINISH.get(finish, "other"),
    prompt_tokens=usage and usage.prompt_token_count,
    output_tokens=usage and (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
    total_tokens=usage and usage.total_token_count, model=response.model_version,
  )
