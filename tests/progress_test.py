"""Without a terminal, lines: now and then, and at the end of what was worth one."""

import types

import pytest

from idistill_jax import progress


@pytest.mark.parametrize("seconds, said", [
  ((0.1, 0.2, 0.3), []), ((0.1, 0.2, 1.5), [3]), ((0.1, 20.0, 20.1), [2, 3]), ((16.0, 17.0, 18.0), [1, 3]),
], ids=str)
def test_lines_come_now_and_then_and_at_the_end_but_of_what_is_done_at_once(seconds, said, monkeypatch, caplog):
  caplog.set_level("INFO", logger="absl")
  now = [100.0]
  monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
  with progress.bar("read", total=3) as bar:
    for done, at in enumerate(seconds, 1):
      now[0] = 100.0 + at
      bar.update(done)
  assert [one.getMessage().split()[1] for one in caplog.records] == [f"{done}/3" for done in said]
