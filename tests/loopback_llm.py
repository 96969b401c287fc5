"""A small HTTP server on 127.0.0.1 that speaks as OpenAI and as Gemini do, and remembers what it was asked.

Real SDKs are pointed at it.  `reply(number, prompt)` decides about the `number`-th request, counted from 1.
"""

import dataclasses
import http.server
import json
import re
import threading
import time
from collections.abc import Callable

import loopback


@dataclasses.dataclass(frozen=True)
class Reply:
  """text: the model's words; body: raw bytes in place of a well-formed answer; delay: seconds before it;
  drip: seconds between its bytes."""

  text: str = ""
  status: int = 200
  headers: dict[str, str] = dataclasses.field(default_factory=dict)
  body: bytes | None = None
  delay: float = 0.0
  finish: str = "stop"
  close: bool = False
  drip: float = 0.0


def reversed_order(number: int, prompt: str) -> Reply:
  """Ranks the last passage first."""
  count = int(re.search(r"Order all (\d+) passages", prompt)[1])
  return Reply(" > ".join(f"[{i}]" for i in range(count, 0, -1)))


class LoopbackLLM(loopback.Loopback):
  """`with LoopbackLLM(reply) as server:`; `server.url`, and `server.asked`: prompts in order of arrival."""

  def __init__(self, reply: Callable[[int, str], Reply] = reversed_order):
    self.reply = reply
    self.asked: list[str] = []
    self.answered: list[str] = []
    self.bodies: list[dict] = []
    self.headers: list[dict[str, str]] = []
    self.times: list[float] = []
    self.at_once = self.most_at_once = 0
    self.lock = threading.Lock()
    outer = self

    class Handler(loopback.Handler):
      def do_POST(self):
        outer.serve(self)

    class Server(http.server.ThreadingHTTPServer):
      daemon_threads = True
      request_queue_size = 128

      def handle_error(self, request, client_address):
        pass  # clients that were killed or ran out of patience

    super().__init__(Server(("127.0.0.1", 0), Handler))

  def serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
    gemini = "contents" in body
    prompt = body["contents"][0]["parts"][0]["text"] if gemini else body["messages"][0]["content"]
    with self.lock:
      self.asked.append(prompt)
      self.bodies.append(body)
      self.headers.append(dict(handler.headers))
      self.times.append(time.monotonic())
      number = len(self.asked)
      self.at_once += 1
      self.most_at_once = max(self.most_at_once, self.at_once)
    reply = self.reply(number, prompt)
    time.sleep(reply.delay)
    with self.lock:
      self.at_once -= 1
    if reply.close:
      handler.close_connection = True
      handler.connection.close()
      return
    payload = reply.body if reply.body is not None else json.dumps(self._payload(reply, gemini)).encode()
    handler.send_response(reply.status)
    for name, value in {
      "Content-Type": "application/json",
      "Content-Length": str(len(payload)),
      **reply.headers,
    }.items():
      handler.send_header(name, value)
    handler.end_headers()
    for start in range(0, len(payload), 1 if reply.drip else len(payload)):
      handler.wfile.write(payload[start : start + 1] if reply.drip else payload)
      time.sleep(reply.drip)
    if reply.status == 200:
      with self.lock:
        self.answered.append(prompt)

  def _payload(self, reply: Reply, gemini: bool) -> dict:
    if reply.status != 200:
      error = {"code": reply.status, "message": reply.text or "no", "status": "ERROR"}
      return {"error": error}
    if gemini:
      finish = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}[reply.finish]
      return {
        "candidates": [
          {"content": {"role": "model", "parts": [{"text": reply.text}]}, "finishReason": finish, "index": 0}
        ],
        "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 7, "totalTokenCount": 18},
      }
    message = {"role": "assistant", "content": reply.text}
    return {
      "id": "x",
      "object": "chat.completion",
      "created": 0,
      "model": "m",
      "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
      "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
