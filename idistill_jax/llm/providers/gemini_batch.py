"""Gemini's Batch API: https://ai.google.dev/gemini-api/docs/batch-api.  Key: GEMINI_API_KEY or GOOGLE_API_KEY."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from idistill_jax import config
from idistill_jax.llm import batch_server, protocol
from idistill_jax.llm.providers import gemini

_UNDER_WAY = frozenset({"JOB_STATE_QUEUED", "JOB_STATE_PENDING", "JOB_STATE_RUNNING", "JOB_STATE_UPDATING"})


class GeminiBatch:
  """Files of `generateContent` requests."""

  family = gemini.Gemini.family
  key_field = "key"

  def __init__(self, cfg: config.Labels):
    self._genai = protocol.sdk("google.genai", "llm")
    self.model = cfg.model
    self.params: Mapping[str, Any] = gemini.params(cfg)
    self._key = protocol.secret_if_set(*gemini.KEYS)
    self._client: Any = None
    if cfg.batch_folder is None:
      self._key = protocol.secret(*gemini.KEYS)
      self._client = gemini.client(self._genai, self._key, cfg, attempts=cfg.attempts)
      # A second try would make a second batch where only the name of the first was lost: see batch._submit.
      self._client_once = gemini.client(self._genai, self._key, cfg, attempts=1)

  def line(self, key: str, request: protocol.Request) -> dict[str, Any]:
    contents = [{"role": "user", "parts": [{"text": request.prompt}]}]
    return {"key": key, "request": {"contents": contents, "generation_config": dict(self.params)}}

  def read(self, line: dict[str, Any]) -> tuple[str, protocol.Answer]:
    key = str(line["key"])
    if line.get("response") is None:
      raise batch_server.LineFailed(key, self._key.cover(json.dumps(line.get("error") or line.get("status"))))
    try:
      return key, gemini.read(self._genai.types.GenerateContentResponse.model_validate(line["response"]), self._key)
    except ValueError as e:
      raise batch_server.LineFailed(key, f"no readable answer: {type(e).__name__}") from e

  def submit(self, path: pathlib.Path, label: str) -> str:
    with self._faults():
      uploaded = self._client.files.upload(file=path, config={"mime_type": "jsonl", "display_name": path.name})
      started = self._client_once.batches.create(model=self.model, src=uploaded.name, config={"display_name": label})
      return str(started.name)

  def find(self, label: str) -> str | None:
    with self._faults():
      found = (one.name for one in self._client.batches.list(config={"page_size": 100}) if one.display_name == label)
      return next(found, None)

  def state(self, name: str) -> batch_server.State:
    with self._faults():
      return "under way" if self._client.batches.get(name=name).state.name in _UNDER_WAY else "ended"

  def fetch(self, name: str) -> Iterator[bytes]:
    with self._faults():
      found = self._client.batches.get(name=name)
      if found.dest and found.dest.file_name:
        yield self._client.files.download(file=found.dest.file_name)

  def _faults(self) -> Any:
    return batch_server.stopping(self._key, f"gemini batch {self.model}")
