"""A context manager around a threaded HTTP server on 127.0.0.1, for the loopback servers of the tests."""

import http.server
import threading
from typing import Self


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
