"""OpenAI's Batch API: https://platform.openai.com/docs/guides/batch.  Key: OPENAI_API_KEY."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from idistill_jax import config
from idistill_jax.llm import batch_server, protocol
from idistill_jax.llm.providers import openai_compatible

_ENDPOINT = "/v1/chat/completions"
_LABEL = "label"  # in a batch's metadata
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class OpenAIBatch:
  """Files of `chat/completions` requests."""

  family = openai_compatible.OpenAICompatible.family
  key_field = "custom_id"

  def __init__(self, cfg: config.Labels):
    self._openai = protocol.sdk("openai", "llm")
    self.model = cfg.model
    self.params: Mapping[str, Any] = openai_compatible.params(cfg)
    self._key = protocol.secret_if_set(openai_compatible.KEY)
    self._client: Any = None
    if cfg.batch_folder is None:
      self._key = openai_compatible.key(cfg.base_url)
      self._client = self._openai.OpenAI(
        api_key=self._key.reveal(), base_url=cfg.base_url, timeout=cfg.timeout_seconds, max_retries=cfg.attempts - 1
      )

  def line(self, key: str, request: protocol.Request) -> dict[str, Any]:
    body = {"model": self.model, "messages": [{"role": "user", "content": request.prompt}], **self.params}
    return {"custom_id": key, "method": "POST", "url": _ENDPOINT, "body": body}

  def read(self, line: dict[str, Any]) -> tuple[str, protocol.Answer]:
    key, response = str(line["custom_id"]), line.get("response")
    if line.get("error") or response is None or response["status_code"] != 200:
      raise batch_server.LineFailed(key, self._key.cover(json.dumps(line.get("error") or response)))
    try:
      return key, openai_compatible.read(response["body"], self._key)
    except (LookupError, TypeError, AttributeError) as e:
      raise batch_server.LineFailed(key, f"no readable answer: {type(e).__name__}") from e

  def submit(self, path: pathlib.Path, label: str) -> str:
    with self._faults():
      uploaded = self._client.files.create(file=path, purpose="batch")
      # A second try would make a second batch where only the name of the first was lost: see batch._submit.
      started = self._client.with_options(max_retries=0).batches.create(
        input_file_id=uploaded.id, endpoint=_ENDPOINT, completion_window="24h", metadata={_LABEL: label}
      )
      return str(started.id)

  def find(self, label: str) -> str | None:
    with self._faults():
      found = (one.id for one in self._client.batches.list(limit=100) if (one.metadata or {}).get(_LABEL) == label)
      return next(found, None)

  def state(self, name: str) -> batch_server.State:
    with self._faults():
      return "ended" if self._client.batches.retrieve(name).status in _ENDED else "under way"

  def fetch(self, name: str) -> Iterator[bytes]:
    with self._faults():
      found = self._client.batches.retrieve(name)
      for file in (found.output_file_id, found.error_file_id):
        if file:
          yield self._client.files.content(file).content

  def _faults(self) -> Any:
    return batch_server.stopping(self._key, f"openai batch {self.model}")
