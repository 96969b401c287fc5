"""What a process that was killed leaves in a folder."""

import os
import pathlib
import signal
import subprocess
import sys

SHARD = """
import os, signal, sys
from idistill_jax.data import tfrecord

def payloads():
  yield b"one"
  os.kill(os.getpid(), signal.SIGKILL)

tfrecord.write(sys.argv[1], "rankings", payloads())
"""


def in_a_shard(folder: pathlib.Path) -> str:
  """The name of the one file that it had begun."""
  before = set(os.listdir(folder))
  assert subprocess.run([sys.executable, "-c", SHARD, str(folder)], timeout=60).returncode == -signal.SIGKILL
  (left,) = set(os.listdir(folder)) - before
  return left
