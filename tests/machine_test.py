"""Machines are told apart where names of hosts are not, and processes where numbers are not."""

import os
import re
import socket
import subprocess

import pytest

from idistill_jax import machine


def test_two_containers_of_one_host_name_and_process_number_write_files_of_their_own(monkeypatch):
  names = []
  for identity in ("boot/pid:[1]", "boot/pid:[2]"):
    monkeypatch.setattr(machine, "identity", lambda identity=identity: identity)
    names.append(machine.own_name())
  assert len(set(names)) == 2
  for name in names:
    assert re.fullmatch(rf"{re.escape(socket.gethostname())}-[0-9a-f]{{8}}-{os.getpid()}", name)


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="this system has no /proc")
def test_a_process_is_known_while_it_runs_and_never_taken_for_a_later_one():
  child = subprocess.Popen(["sleep", "60"])
  try:
    known = machine.process(child.pid)
    assert known == machine.process(child.pid) != machine.process(os.getpid())
    assert known.split()[1] == str(child.pid)
  finally:
    child.kill()
    child.wait()
  assert machine.process(child.pid) is None
