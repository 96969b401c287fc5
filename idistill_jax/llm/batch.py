"""Prompts in a file, answers in a file: half the price, hours later, and the road to a million lists.

    pending ─► requests-<n>.jsonl ─► submitted, or carried by hand ─► results ─► cache ─► the same work once more

The folder holds everything that was sent and that came back, so a killed run asks for nothing twice.  Only a run that
dies between a server's taking a batch and the note of its name loses that batch: the name is in the provider's console,
and its results may be put beside the others by hand.
"""

import asyncio
import collections
import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NoReturn, Protocol

from absl import logging

from idistill_jax import processes
from idistill_jax.llm import asking, protocol
from idistill_jax.llm import budget as budget_lib
from idistill_jax.llm import cache as cache_lib

# What OpenAI takes in one file.
MOST_LINES = 50_000
RESULTS = "results"
_NOTE, _FAILED = ".submitted.json", ".failed.json"

State = Literal["under way", "ended"]


class Server(Protocol):
  """One provider's batches.  family, model, params: as of its live provider, whose answers they share."""

  family: str
  model: str
  params: Mapping[str, Any]

  def line(self, key: str, request: protocol.Request) -> dict[str, Any]:
    """A request as its batch files have it."""
    ...

  def read(self, line: dict[str, Any]) -> tuple[str, protocol.Answer]:
    """(key, answer) of a line of results; raises LineFailed for a failed one."""
    ...

  def submit(self, path: pathlib.Path) -> str:
    """Uploads a file of requests and starts a batch; returns its name."""
    ...

  def state(self, name: str) -> State: ...

  def fetch(self, name: str) -> Iterator[bytes]:
    """Result files of an ended batch; none where it failed as a whole."""
    ...


class LineFailed(Exception):
  """A request of a batch that was not answered."""

  def __init__(self, key: str, message: str):
    super().__init__(message)
    self.key = key


def _request_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob("requests-*.jsonl"))


@contextlib.contextmanager
def stopping(key: protocol.Secret, where: str) -> Iterator[None]:
  """Turns whatever an SDK raises into a Stop without the key: a batch is not lost by it, the next run goes on."""
  try:
    yield
  except protocol.Stop:
    raise
  except Exception as e:
    raise protocol.Stop(f"{where}: {key.cover(f'{type(e).__name__}: {e}')}; run the same command again") from None


class Batch:
  """A provider that answers later: it notes what it is asked, and `exchange` gets the answers into the cache."""

  remote = False

  def __init__(self, server: Server, *, attempts: int, max_output_tokens: int):
    self.family, self.model, self.params = server.family, server.model, server.params
    self.pending: dict[str, protocol.Request] = {}
    self._server, self._attempts, self._max_output_tokens = server, attempts, max_output_tokens
    self._failures: dict[str, list[str]] = {}

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    key = cache_lib.key(self, request.prompt)
    failures = self._failures.get(key, [])
    if len(failures) >= self._attempts:
      raise protocol.Unanswered(f"failed in {len(failures)} batches, the last time: {failures[-1]}")
    self.pending[key] = request
    raise protocol.Pending(f"{request.query_id} waits for a batch")

  async def close(self) -> None:
    pass

  def exchange(
    self, folder: pathlib.Path, cache: cache_lib.AnswerCache, budget: budget_lib.Budget | None, *,
    poll_seconds: float, by_hand: bool,
  ) -> None:
    """Waits for batches under way, takes in all results there are, and sends off the rest where nothing new came.

    Raises protocol.Stop naming the files where they are carried by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for note in sorted(folder.glob(f"*{_NOTE}")):
      self._wait_for(note, budget, poll_seconds)
    failed_before = sum(map(len, self._failures.values()))
    taken = self._take_results(folder, cache)
    failed_now = sum(map(len, self._failures.values())) - failed_before
    rest = {key: request for key, request in self.pending.items() if cache.get(key) is None}
    self.pending = {}
    if taken or failed_now or not rest:
      return
    if by_hand:
      self._hand_over(folder, rest)
    there = len(_request_files(folder)) if any(folder.glob(f"{RESULTS}*.jsonl")) else 0
    for path, bound in self._write(folder, rest, there):
      self._submit(path, bound, budget)

  def _hand_over(self, folder: pathlib.Path, rest: Mapping[str, protocol.Request]) -> NoReturn:
    """Writes what lies in no file yet, or has failed as often as it was written; always raises protocol.Stop."""
    written: collections.Counter[int] = collections.Counter()
    holding: dict[int, pathlib.Path] = {}
    for path in _request_files(folder):
      for line in path.read_bytes().splitlines():
        written[hash(line)] += 1
        holding[hash(line)] = path
    hashes = {key: hash(self._line(key, request).encode()) for key, request in rest.items()}
    fresh = {
      key: request for key, request in rest.items() if written[hashes[key]] <= len(self._failures.get(key, ()))
    }
    paths = {holding[hashes[key]] for key in rest.keys() - fresh.keys()}
    paths |= {path for path, _ in self._write(folder, fresh, len(_request_files(folder)))}
    raise protocol.Stop(
      f"{len(rest):,} requests wait in {', '.join(map(str, sorted(paths)))}: have them answered, put what comes back "
      f"into {folder} as {RESULTS}*.jsonl, and run the same command again"
    )

  def _line(self, key: str, request: protocol.Request) -> str:
    return json.dumps(self._server.line(key, request), ensure_ascii=False)

  def _write(
    self, folder: pathlib.Path, rest: Mapping[str, protocol.Request], first: int
  ) -> Iterator[tuple[pathlib.Path, budget_lib.Usage]]:
    """Files of requests, numbered from `first`, each with the most tokens that it can take."""
    items = list(rest.items())
    for number, start in enumerate(range(0, len(items), MOST_LINES), start=first):
      path, bound = folder / f"requests-{number:04d}.jsonl", budget_lib.Usage(0, 0)
      part = path.with_suffix(".part")
      with open(part, "w", encoding="utf-8") as out:
        for key, request in items[start : start + MOST_LINES]:
          out.write(self._line(key, request) + "\n")
          bound += asking.bound(request.prompt, self._max_output_tokens)
      part.replace(path)
      yield path, bound

  def _submit(self, path: pathlib.Path, bound: budget_lib.Usage, budget: budget_lib.Budget | None) -> None:
    row = None if budget is None else asyncio.run(budget.reserve(bound))
    name = self._server.submit(path)
    note = path.with_suffix(_NOTE)
    note.write_text(json.dumps({"name": name, "reservation": row}) + "\n")
    logging.info("%s is submitted as %s", path, name)

  def _wait_for(self, note: pathlib.Path, budget: budget_lib.Budget | None, poll_seconds: float) -> None:
    submitted = json.loads(note.read_text())
    started = said = time.monotonic()
    while self._server.state(submitted["name"]) == "under way":
      if time.monotonic() - said > 600:
        said = time.monotonic()
        logging.info("%s: under way for %.0f min", submitted["name"], (said - started) / 60)
      # The server that answers is at work; it may take a day.
      processes.moved()
      time.sleep(poll_seconds)
    stem = note.name.removesuffix(_NOTE)
    usage, contents = budget_lib.Usage(0, 0), list(self._server.fetch(submitted["name"]))
    for number, content in enumerate(contents):
      part = note.with_name(f"{RESULTS}-of-{stem}-{number}.jsonl")
      part.with_suffix(".part").write_bytes(content)
      part.with_suffix(".part").replace(part)
      usage += self._cost(content)
    if budget is not None and submitted["reservation"] is not None:
      budget.book(submitted["reservation"], usage)
    if not contents:
      note.rename(note.with_name(stem + _FAILED))
      raise protocol.Stop(
        f"the batch {submitted['name']} ended without results, its provider's console says why; "
        "run the same command again to submit its requests anew"
      )
    note.unlink()

  def _cost(self, content: bytes) -> budget_lib.Usage:
    total = budget_lib.Usage(0, 0)
    for line in content.splitlines():
      try:
        _, answer = self._server.read(json.loads(line))
      except (LineFailed, ValueError, KeyError, TypeError):
        continue
      total += budget_lib.Usage.of(answer) or budget_lib.Usage(0, self._max_output_tokens)
    return total

  def _take_results(self, folder: pathlib.Path, cache: cache_lib.AnswerCache) -> int:
    """Answers to what is pending go into the cache; returns how many."""
    self._failures = {}
    taken = 0
    for path in sorted(folder.glob(f"{RESULTS}*.jsonl")):
      foreign = unreadable = 0
      for line in path.read_bytes().splitlines():
        if not line.strip():
          continue
        try:
          key, answer = self._server.read(json.loads(line))
        except LineFailed as e:
          self._failures.setdefault(e.key, []).append(str(e))
          continue
        except (ValueError, KeyError, TypeError):
          unreadable += 1
          continue
        if (request := self.pending.get(key)) is not None:
          taken += cache.get(key) is None
          cache.put(key, self, request, answer)
        else:
          foreign += 1
      if unreadable:
        logging.warning("%s: %d lines cannot be read; what they answer is asked for again", path, unreadable)
      if foreign:
        logging.info("%s: %d lines answer nothing that is still open", path, foreign)
    return taken
