"""A small HTTP server on 127.0.0.1 that takes batches as OpenAI and as Gemini do; the real SDKs talk to it.

A batch is under way for the first look at it, then ended; `answer(number, prompt)` decides about its lines.  Results
come back in reverse order; a line whose reply closes fails the batch as a whole.
"""

import http.server
import json
import re
from collections.abc import Callable
from typing import Any

import loopback
from loopback_llm import Reply, reversed_order


class LoopbackBatch(loopback.Loopback):
  """`batches`: the prompts of each batch, in order of submission.  refusing: no batch is taken."""

  def __init__(self, answer: Callable[[int, str], Reply | None] = reversed_order):
    self.answer = answer
    self.batches: list[list[str]] = []
    self.refusing = False
    self._labels: list[str] = []
    self.headers: list[dict[str, str]] = []
    self._files: dict[str, bytes] = {}
    self._results: list[tuple[str | None, str | None]] = []
    self._looks: dict[str, int] = {}
    self._gemini: set[int] = set()
    outer = self

    class Handler(loopback.Handler):
      def do_POST(self):
        outer.headers.append(dict(self.headers))
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.reply(outer.post(self.path.partition("?")[0], body, self.headers))

      def do_GET(self):
        self.reply(outer.get(self.path.partition("?")[0]))

      def reply(self, value: Any):
        status, headers = 404 if value is None else 200, {}
        match value:
          case (int() as status, value):
            pass
          case (value, headers):
            pass
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send(status, payload, headers)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    super().__init__(server)

  # -- Both: a file of requests becomes files of results -------------------------------------------------------------

  def _keep(self, content: bytes) -> str:
    name = f"file-{len(self._files)}"
    self._files[name] = content
    return name

  def _run(self, lines: list[dict], gemini: bool) -> None:
    prompts, good, bad = [], [], []
    for number, line in enumerate(lines, start=1):
      prompt = line["request"]["contents"][0]["parts"][0]["text"] if gemini else line["body"]["messages"][0]["content"]
      prompts.append(prompt)
      reply = self.answer(number, prompt)
      if reply is None:
        continue
      if reply.close:
        self._results.append((None, None))
        self.batches.append([prompt])
        return
      (good if reply.status == 200 else bad).append(_gemini(line, reply) if gemini else _openai(line, reply))
    self.batches.append(prompts)
    text = lambda entries: "".join(json.dumps(entry) + "\n" for entry in reversed(entries)).encode()
    if gemini:
      self._results.append((self._keep(text(good + bad)), None))
    else:
      self._results.append((self._keep(text(good)), self._keep(text(bad)) if bad else None))

  def _ended(self, name: str) -> bool:
    self._looks[name] = self._looks.get(name, 0) + 1
    return self._looks[name] > 1

  # -- Routes --------------------------------------------------------------------------------------------------------

  def post(self, path: str, body: bytes, headers: Any) -> Any:
    if path == "/v1/files":
      content = re.search(rb'name="file".*?\r\n\r\n(.*?)\r\n--', body, re.DOTALL)[1]
      return {"id": self._keep(content), "object": "file", "bytes": len(content), "created_at": 0,
              "filename": "f", "purpose": "batch", "status": "processed"}  # fmt: skip
    if path == "/v1/batches":
      if self.refusing:
        return None
      self._labels.append(json.loads(body)["metadata"]["label"])
      lines = self._files[json.loads(body)["input_file_id"]].splitlines()
      self._run([json.loads(line) for line in lines], gemini=False)
      return self._openai_batch(len(self.batches) - 1)
    if re.fullmatch(r"/upload/v1\w*/files", path) and headers.get("X-Goog-Upload-Command") == "start":
      return {}, {"X-Goog-Upload-URL": f"{self.url}/upload/there", "X-Goog-Upload-Status": "active"}
    if path == "/upload/there":
      name = self._keep(body)
      return {"file": {"name": f"files/{name}", "state": "ACTIVE"}}, {"X-Goog-Upload-Status": "final"}
    if path.endswith(":batchGenerateContent"):
      if self.refusing:
        return None
      self._labels.append(json.loads(body)["batch"]["displayName"])
      name = json.loads(body)["batch"]["inputConfig"]["fileName"].removeprefix("files/")
      self._run([json.loads(line) for line in self._files[name].splitlines()], gemini=True)
      self._gemini.add(len(self.batches) - 1)
      return self._gemini_batch(len(self.batches) - 1, ended=False)
    return None

  def get(self, path: str) -> Any:
    name = path.rpartition("/")[2]
    # Both speak of `/v1/batches`.
    if re.fullmatch(r"/v1\w*/batches", path):
      count = range(len(self.batches))
      if self._gemini:
        return {"operations": [self._gemini_batch(i, ended=False) for i in count]}
      return {"object": "list", "data": [self._openai_batch(i) for i in count], "has_more": False}
    if match := re.fullmatch(r"/v1\w*/batches/batch-(\d+)", path):
      number = int(match[1])
      show = self._gemini_batch if number in self._gemini else self._openai_batch
      return show(number, self._ended(name))
    if match := re.fullmatch(r"/v1/files/(.+)/content", path):
      return self._files[match[1]]
    if match := re.fullmatch(r"/(?:download/)?v1\w*/files/(.+):download", path):
      return self._files[match[1]]
    return None

  def _openai_batch(self, number: int, ended: bool = False) -> dict:
    good, bad = self._results[number]
    return {
      "id": f"batch-{number}", "object": "batch", "endpoint": "/v1/chat/completions", "input_file_id": "f",
      "completion_window": "24h", "created_at": 0, "status": "completed" if ended else "in_progress",
      "output_file_id": good if ended else None, "error_file_id": bad if ended else None,
      "metadata": {"label": self._labels[number]},
    }  # fmt: skip

  def _gemini_batch(self, number: int, ended: bool) -> dict:
    state = "BATCH_STATE_SUCCEEDED" if ended else "BATCH_STATE_RUNNING"
    metadata = {"state": state, "displayName": self._labels[number]}
    found: dict[str, Any] = {"name": f"batches/batch-{number}", "metadata": metadata}
    if ended and self._results[number][0]:
      found["metadata"]["output"] = {"responsesFile": f"files/{self._results[number][0]}"}
    return found


def _openai(line: dict, reply: Reply) -> dict:
  if reply.status != 200:
    response = {"status_code": reply.status, "request_id": "r", "body": {"error": {"message": reply.text}}}
    return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}
  message = {"role": "assistant", "content": reply.text}
  body = {
    "id": "x", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
  }  # fmt: skip
  response = {"status_code": 200, "request_id": "r", "body": body}
  return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}


def _gemini(line: dict, reply: Reply) -> dict:
  if reply.status != 200:
    return {"key": line["key"], "error": {"code": reply.status, "message": reply.text}}
  content = {"role": "model", "parts": [{"text": reply.text}]}
  response = {
    "candidates": [{"content": content, "finishReason": "STOP", "index": 0}],
    "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18},
  }
  return {"key": line["key"], "response": response}
