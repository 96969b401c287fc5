"""Headless Chromium over its DevTools protocol: open a page, run an expression in it, take a picture."""

import base64
import contextlib
import itertools
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image as image

FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip


class Page:
  """One tab.  errors: what the console and the page's scripts have complained about."""

  def __init__(self, socket: Any):
    self._socket, self._numbers = socket, itertools.count(1)
    self.errors: list[str] = []
    for domain in ("Page", "Runtime", "Log"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    number = next(self._numbers)
    self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
    while True:
      said = json.loads(self._socket.recv(timeout=30))
      self._note(said)
      if said.get("id") == number:
        assert "error" not in said, said
        return said["result"]

  def _note(self, said: dict[str, Any]) -> None:
    params = said.get("params", {})
    if said.get("method") == "Runtime.exceptionThrown":
      self.errors.append(params["exceptionDetails"]["text"])
    elif said.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
      self.errors.append(params["entry"]["text"])
    elif said.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
      self.errors.append(str(params["args"]))

  def open(self, url: str, ready: str = "document.readyState === 'complete'") -> None:
    self.call("Page.navigate", url=url)
    self.wait(ready)

  def wait(self, expression: str, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not self.run(expression):
      assert time.monotonic() < until, f"{expression} did not come true; {self.errors}"
      time.sleep(0.05)

  def run(self, expression: str) -> Any:
    """The value of a JavaScript expression."""
    found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def look(self, *, width: int, height: int, dark: bool = False) -> None:
    """The size of the screen, and which colours its owner prefers."""
    self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def picture(self, path: pathlib.Path) -> float:
    """Writes what the screen shows; returns the share of its most frequent colour: 1 is a blank screen."""
    path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
    with image.open(path) as shown:
      counts = [count for count, _ in shown.convert("RGB").getcolors(shown.width * shown.height)]
    return max(counts) / sum(counts)


@contextlib.contextmanager
def page() -> Iterator[Page]:
  """A tab of a browser of its own; skips where there is no Chromium or no websocket client."""
  chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
  if chromium is None:
    pytest.skip("no Chromium on this machine")
  client = pytest.importorskip("websockets.sync.client", reason="the package websockets is not installed")
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    running = subprocess.Popen([chromium, *FLAGS, f"--user-data-dir={folder}", "about:blank"], stderr=subprocess.PIPE)
    try:
      port = next(
        found[1] for line in running.stderr if (found := re.search(rb"ws://127\.0\.0\.1:(\d+)/", line))
      ).decode()
      with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
        tab = next(one for one in json.load(answer) if one["type"] == "page")
      with client.connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
        yield Page(socket)
    finally:
      running.terminate()
      running.wait(10)
