"""SIGTERM while a training is watched: it is heard by all, and lost nowhere."""

import signal
from collections.abc import Iterator

import jax
import pytest

from idistill_jax import config, processes, sharding
from idistill_jax.train import preemption


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(config.Mesh())


@pytest.fixture
def heard() -> Iterator[list[int]]:
  """What comes to whoever listened before the training."""
  found: list[int] = []
  before = signal.signal(signal.SIGTERM, lambda number, _: found.append(number))
  yield found
  signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("count", [1, 2])
def test_what_comes_too_late_for_a_step_comes_after_the_last(mesh, heard, monkeypatch, count):
  monkeypatch.setattr(processes, "count", lambda: count)
  with preemption.watch(mesh) as preempted:
    assert not preempted() and not preempted()
    signal.raise_signal(signal.SIGTERM)
    assert not heard
  assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("end", [preemption.Preempted(), FloatingPointError("nan")], ids=repr)
def test_what_ends_the_training_anyway_is_not_ended_once_more(mesh, heard, end):
  with pytest.raises(type(end)), preemption.watch(mesh):
    signal.raise_signal(signal.SIGTERM)
    raise end
  assert not heard
  # And where nothing came, nothing does.
  with preemption.watch(mesh):
    pass
  assert not heard
