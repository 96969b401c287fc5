"""A context manager around a threaded HTTP server on 127.0.0.1, for the loopback servers of the tests."""

import http.server
import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Self


class Handler(http.server.BaseHTTPRequestHandler):
  """Keeps connections open, says nothing, and answers with what it is given."""

  protocol_version = "HTTP/1.1"

  def send(self, status: int, payload: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> None:
    self.send_response(status)
    for name, text in {"Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}.items():
      self.send_header(name, text)
    self.end_headers()
    self.wfile.write(payload)

  def log_message(self, *args) -> None:
    pass


class Loopback:
  """`with server:` answers at `server.url` until the block ends."""

  def __init__(self, server: http.server.ThreadingHTTPServer):
    self.server = server
    self.url = f"http://127.0.0.1:{server.server_port}"

  def __enter__(self) -> Self:
    threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return self

  def __exit__(self, *exc: object) -> None:
    self.server.shutdown()
    self.server.server_close()
