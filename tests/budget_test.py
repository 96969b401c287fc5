"""The budget: never exceeded, not by calls under way, not by a second process, not after a kill."""

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax.llm import budget, protocol

PRICES = budget.Prices(1.0, 10.0)


def opened(path, dollars=None, tokens=None, prices=PRICES):
  return budget.Budget(path, max_dollars=dollars, max_tokens=tokens, prices=prices)


async def spend(books, bound, real, seconds=0.0):
  async with books.call(bound) as call:
    await asyncio.sleep(seconds)
    call.usage = real


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=30), st.integers(40, 300))
def test_calls_under_way_never_exceed_it(tmp_path_factory, calls, most):
  path = tmp_path_factory.mktemp("b") / "c"

  async def all_at_once():
    with opened(path, tokens=most) as books:
      seen = []

      async def one(bound, real):
        try:
          async with books.call(budget.Usage(bound, 0)) as call:
            seen.append(books.spent()[0])
            await asyncio.sleep(0)
            call.usage = budget.Usage(min(real, bound), 0)
        except budget.Exhausted:
          return 0
        return min(real, bound)

      really = sum(await asyncio.gather(*(one(*call) for call in calls)))
      return seen, really, books.spent()[0]

  seen, really, booked = asyncio.run(all_at_once())
  assert max(seen, default=0) <= most and really == booked <= most


def test_a_call_waits_for_room_that_another_gives_back(tmp_path):
  """Two bounds of 60 do not fit into 100 at once; what they really cost does."""

  async def both():
    with opened(tmp_path / "c", tokens=100) as books:
      small = spend(books, budget.Usage(60, 0), budget.Usage(10, 0), seconds=0.05)
      await asyncio.gather(small, spend(books, budget.Usage(60, 0), budget.Usage(10, 0)))
      return books.spent()[0]

  assert asyncio.run(both()) == 20


def test_dollars_count_both_kinds_of_tokens(tmp_path):
  async def run():
    with opened(tmp_path / "c", dollars=12e-6) as books:
      await spend(books, budget.Usage(2, 1), budget.Usage(2, 1))
      assert books.spent() == (3, pytest.approx(12e-6))
      with pytest.raises(budget.Exhausted, match=r"budget is used up.*max_dollars.*same command again"):
        await spend(books, budget.Usage(1, 0), budget.Usage(1, 0))

  asyncio.run(run())


def test_dollars_without_prices_are_refused(tmp_path):
  with pytest.raises(ValueError, match="both prices"):
    opened(tmp_path / "c", dollars=1.0, prices=budget.Prices(1.0, None))


def test_a_call_that_fails_costs_its_bound_unless_told(tmp_path):
  async def run():
    with opened(tmp_path / "c", tokens=100) as books:
      with pytest.raises(RuntimeError):
        async with books.call(budget.Usage(30, 0)):
          raise RuntimeError
      with pytest.raises(RuntimeError):
        async with books.call(budget.Usage(30, 0)) as call:
          call.usage = budget.Usage(0, 0)
          raise RuntimeError
      return books.spent()[0]

  assert asyncio.run(run()) == 30


KILLED = """
import asyncio, os, pathlib, signal, sys
from idistill_jax.llm import budget
async def run():
  books = budget.Budget(pathlib.Path(sys.argv[1]), max_dollars=None, max_tokens=100, prices=budget.Prices())
  async with books.call(budget.Usage(40, 0)):
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(run())
"""
SPENDING = """
import asyncio, pathlib, sys
from idistill_jax.llm import budget
async def run():
  with budget.Budget(pathlib.Path(sys.argv[1]), max_dollars=None, max_tokens=500, prices=budget.Prices()) as books:
    done = 0
    try:
      while True:
        async with books.call(budget.Usage(3, 0)):
          await asyncio.sleep(0.001)
        done += 1
    except budget.Exhausted:
      print(done)
asyncio.run(run())
"""


def test_what_a_killed_run_had_reserved_stays_reserved(tmp_path):
  assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "c"], check=False).returncode == -9
  with opened(tmp_path / "c", tokens=100) as books:
    assert books.spent()[0] == 40


HOLDING = """
import asyncio, pathlib, sys
from idistill_jax.llm import budget
async def run():
  with budget.Budget(pathlib.Path(sys.argv[1]), max_dollars=None, max_tokens=100, prices=budget.Prices()) as books:
    async with books.call(budget.Usage(60, 0)) as call:
      print("reserved", flush=True)
      await asyncio.sleep(1)
      call.usage = budget.Usage(10, 0)
asyncio.run(run())
"""


def test_a_process_waits_for_room_that_a_running_one_gives_back(tmp_path):
  path = tmp_path / "c"
  with subprocess.Popen([sys.executable, "-c", HOLDING, path], stdout=subprocess.PIPE) as holding:
    assert holding.stdout.readline() == b"reserved\n"
    with opened(path, tokens=100) as books:
      asyncio.run(spend(books, budget.Usage(60, 0), budget.Usage(10, 0)))
      assert books.spent()[0] == 20


def test_nobody_waits_for_a_killed_process_or_a_batch(tmp_path):
  assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / "c"], check=False).returncode == -9

  async def run():
    with opened(tmp_path / "c", tokens=100) as books:
      await books.reserve(budget.Usage(30, 0))
      with pytest.raises(budget.Exhausted):
        await spend(books, budget.Usage(60, 0), budget.Usage(60, 0))

  asyncio.run(asyncio.wait_for(run(), 30))


def test_two_processes_share_one(tmp_path):
  command = [sys.executable, "-c", SPENDING, tmp_path / "c"]
  both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
  done = [int(process.communicate(timeout=60)[0]) for process in both]
  assert sum(done) == 500 // 3


def test_a_file_that_is_no_account_is_named(tmp_path):
  path = tmp_path / "spent.sqlite"
  path.write_text("not a database, but long enough to look at " * 100)
  with pytest.raises(protocol.Stop, match=r"spent.sqlite: no usable account .*move it away"):
    budget.Budget(path, max_dollars=None, max_tokens=10, prices=budget.Prices(None, None))
