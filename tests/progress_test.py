"""A bar in a terminal, elsewhere lines now and then; of what is done at once, neither."""

import io
import time
import types

import pytest
from rich import console as rich_console

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


@pytest.mark.parametrize("seconds, shown", [(0.0, False), (1.0, True)])
def test_in_a_terminal_a_bar_comes_once_it_is_worth_one_and_ends_with_what_it_was_of(seconds, shown, monkeypatch):
  screen = io.StringIO()
  console = rich_console.Console(file=screen, force_terminal=True, width=100)
  monkeypatch.setattr(progress.rich_console, "Console", lambda **how: console)
  monkeypatch.setattr(progress, "FROM_SECONDS", 0.3)
  with progress.bar("read", total=3) as bar:
    time.sleep(seconds)
    bar.update(3)
  assert ("read" in screen.getvalue() and "3/3" in screen.getvalue()) == shown
  assert bool(screen.getvalue()) == shown
