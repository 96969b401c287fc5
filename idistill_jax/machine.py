"""Which machine this is, and which process: hosts share names, containers share numbers of processes."""

import functools
import hashlib
import os
import pathlib
import socket
import uuid


@functools.cache
def identity() -> str:
  """The same for processes that know each other by their numbers, and for no others."""
  try:
    return f"{_boot()}/{os.readlink('/proc/self/ns/pid')}"  # each container has numbers of its own
  except OSError:  # not Linux
    return f"{socket.gethostname()}/{uuid.getnode():x}"


def process(pid: int) -> str | None:
  """A running process of this machine, by what no later one has in common with it, the second of three words being its
  number; None for one that has ended, or without /proc."""
  try:
    started = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{_boot()} {pid} {started}"
  except OSError:
    return None


def own_name() -> str:
  """Of this process, for names of files: its host, as people know it, and what tells it from others called so."""
  return f"{socket.gethostname()}-{hashlib.sha256(identity().encode()).hexdigest()[:8]}-{os.getpid()}"


def _boot() -> str:
  return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
