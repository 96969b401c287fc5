"""JSONL of `{"query_id", "candidates", "response"}` -> a provider that answers from it.

An answer is found by the query and the passages shown, in their order: one given to another list is none.
"""

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from idistill_jax import config
from idistill_jax.llm import protocol
from idistill_jax.workdir import outside

PACKAGE = "package:"


def locate(recording: str) -> Traversable | outside.Path:
  """The file that `labels.recording` names: a path, or `package:<path below idistill_jax/data>`."""
  packaged = importlib.resources.files("idistill_jax") / "data" / recording.removeprefix(PACKAGE)
  found = packaged if recording.startswith(PACKAGE) else outside.at(recording)
  if not found.is_file():
    raise FileNotFoundError(f"{found}: labels.recording = {recording!r} names no file")
  return found


def fingerprint(recording: str) -> str:
  """Content hash of a recording."""
  found = locate(recording)
  if isinstance(found, outside.Path):
    return outside.sha256(found)[:16]  # of an object it is remembered: every key asks
  return hashlib.sha256(found.read_bytes()).hexdigest()[:16]


class Replay:
  """Answers from a recording; raises NotRecorded for what it lacks.

  answers: (query id, ids of the passages shown, in their order) -> what was said.
  """

  family = protocol.RECORDED
  remote = False

  def __init__(self, recording: str):
    path = locate(recording)
    self.model = fingerprint(recording)
    self.params: Mapping[str, Any] = {}
    self._recording = recording
    self.answers: dict[tuple[str, tuple[str, ...]], str] = {}
    said_at: dict[tuple[str, tuple[str, ...]], int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
      if line.strip():
        key, response = _entry(f"{path}:{number}", line)
        if self.answers.setdefault(key, response) != response:
          raise ValueError(f"{path}:{number}: another answer about the query {key[0]!r} and the same passages than in "
                           f"line {said_at[key]}; keep one")
        said_at.setdefault(key, number)

  def __len__(self) -> int:
    return len(self.answers)

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    try:
      text = self.answers[request.query_id, request.passage_ids]
    except KeyError:
      raise protocol.NotRecorded(
        f"{self._recording} has no answer for the query {request.query_id} "
        f"with these {len(request.passage_ids)} passages in this order"
      ) from None
    return protocol.Answer(text, "stop")

  async def close(self) -> None:
    pass


def _entry(where: str, line: bytes) -> tuple[tuple[str, tuple[str, ...]], str]:
  try:
    values = json.loads(line)
  except (ValueError, RecursionError) as e:
    raise ValueError(f"{where}: not JSON ({e})") from e
  wanted = 'expected {"query_id": text, "candidates": [texts], "response": text}'
  if not isinstance(values, dict):
    raise ValueError(f"{where}: {wanted}, found {values!r:.80}")
  query_id, candidates, response = (values.get(key) for key in ("query_id", "candidates", "response"))
  if not (
    isinstance(query_id, str)
    and isinstance(response, str)
    and isinstance(candidates, list)
    and all(isinstance(item, str) for item in candidates)
  ):
    raise ValueError(f"{where}: {wanted}, found the keys {sorted(values)} with other types")
  return (query_id, tuple(candidates)), response


def build(cfg: config.Labels) -> protocol.Provider:
  if cfg.recording is None:
    raise protocol.Stop("labels.provider is replay, so labels.recording must name a file of recorded answers")
  return Replay(cfg.recording)
