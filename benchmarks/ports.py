"""A port of this machine for processes that are about to meet there."""

import socket


def free() -> int:
  """One that nobody listens on at this moment."""
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]
