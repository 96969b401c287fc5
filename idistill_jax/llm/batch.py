"""Prompts in a file, answers in a file: half the price, hours later, and the road to a million lists.

    pending ─► requests-<n>.jsonl ─► submitted, or carried by hand ─► results ─► cache ─► the same work once more

The folder holds everything that was sent and that came back, so a killed run asks for nothing twice.  A batch's label
is noted before it is submitted: one that a run died over is found by it.
"""

import asyncio
import collections
import contextlib
import itertools
import json
import pathlib
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import logging

from idistill_jax import config, processes
from idistill_jax.llm import asking, batch_server, prompt, protocol, waiting
from idistill_jax.llm import budget as budget_lib
from idistill_jax.llm import cache as cache_lib
from idistill_jax.workdir import files

# OpenAI takes 50,000 lines and 200 MB in one file.
MOST_LINES, MOST_BYTES = 50_000, 100_000_000
RESULTS = "results"
_LINES_AT_ONCE = 1_000
# What a line may be that holds no answer: other JSON, none at all, JSON within JSON without end.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# Of a batch under way, of one that ended without results, of requests that an ended one says nothing about.
_NOTE, _FAILED, _LOST = ".submitted.json", ".failed.json", ".lost.json"


def _request_files(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(folder.glob("requests-*.jsonl"))


def _next_number(paths: Iterable[pathlib.Path]) -> int:
  """One that no name among the paths has."""
  numbers = [int(found[1]) for path in paths if (found := re.search(r"requests-(\d+)", path.name))]
  return max(numbers) + 1 if numbers else 0


def _replace(path: pathlib.Path, content: bytes) -> None:
  with files.replacing(path) as out:
    out.write(content)


class Batch:
  """A provider that answers later: it notes what it is asked, and `exchange` gets the answers into the cache.

  delivered: the keys of those that it got there.
  """

  remote = False

  def __init__(self, server: batch_server.Server, cfg: config.Labels):
    self.family, self.model, self.params = server.family, server.model, server.params
    self.pending, self.delivered = waiting.Waiting(), set[str]()
    self._server, self._attempts, self._max_output_tokens = server, cfg.attempts, cfg.max_output_tokens
    self._failures: dict[str, list[str]] = {}

  async def ask(self, request: protocol.Request) -> protocol.Answer:
    key = cache_lib.key(self, request)
    failures = self._failures.get(key, [])
    if len(failures) >= self._attempts:
      raise protocol.Unanswered(f"failed in {len(failures)} batches, the last time: {failures[-1]}")
    self.pending.note(key, request)
    raise protocol.Pending(f"{request.query_id} waits for a batch")

  async def close(self) -> None:
    self.pending.close()

  def exchange(
    self, folder: pathlib.Path, cache: cache_lib.AnswerCache, budget: budget_lib.Budget | None, *,
    poll_seconds: float, by_hand: bool,
  ) -> None:
    """Waits for batches under way, takes in all results there are, and sends off the rest where nothing new came.

    Raises protocol.Stop naming the files where they are carried by hand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for note in sorted(folder.glob(f"*{_NOTE}")):
      if self._is_there(note, budget):
        self._wait_for(note, budget, poll_seconds)
    failed_before = sum(map(len, self._failures.values()))
    taken = self._take_results(folder, cache, budget)
    failed_now = sum(map(len, self._failures.values())) - failed_before
    rest = [key for key in self.pending if cache.get(key) is None]
    if rest and not (taken or failed_now):
      self._send_off(folder, rest, budget, by_hand=by_hand)
    self.pending.forget()

  def _send_off(
    self, folder: pathlib.Path, rest: Sequence[str], budget: budget_lib.Budget | None, *, by_hand: bool
  ) -> None:
    if by_hand:
      self._hand_over(folder, rest)
    # A file of requests alone was never sent, so it is written over.
    sent = folder.glob(f"{RESULTS}*requests-*"), folder.glob("requests-*.json")
    first = _next_number(itertools.chain(*sent))
    for number, (path, bound) in enumerate(self._write(folder, rest, first, budget)):
      try:
        self._submit(path, bound, budget)
      except budget_lib.Exhausted:
        if not number:
          raise
        # What was sent costs less than its bound, as a rule by far.
        logging.info("the budget has room for no more until what was sent is answered")
        return

  def _hand_over(self, folder: pathlib.Path, rest: Sequence[str]) -> NoReturn:
    """Writes what lies in no file yet, or has failed as often as it was written; always raises protocol.Stop."""
    written: collections.Counter[int] = collections.Counter()
    holding: dict[int, pathlib.Path] = {}
    for path in _request_files(folder):
      for line in path.read_bytes().splitlines():
        written[hash(line)] += 1
        holding[hash(line)] = path
    hashes = {key: hash(self._line(key, self._asked(key))) for key in rest}
    fresh = [key for key in rest if written[hashes[key]] <= len(self._failures.get(key, ()))]
    paths = {holding[hashes[key]] for key in set(rest).difference(fresh)}
    paths |= {path for path, _ in self._write(folder, fresh, _next_number(folder.iterdir()))}
    raise protocol.Stop(
      f"{len(rest):,} requests wait in {', '.join(map(str, sorted(paths)))}: have them answered, put what comes back "
      f"into {folder} as {RESULTS}*.jsonl, and run the same command again"
    )

  def _asked(self, key: str) -> protocol.Request:
    request = self.pending.get(key)
    assert request is not None
    return request

  def _line(self, key: str, request: protocol.Request) -> bytes:
    return json.dumps(self._server.line(key, request), ensure_ascii=False).encode()

  def _write(
    self, folder: pathlib.Path, rest: Sequence[str], first: int, budget: budget_lib.Budget | None = None
  ) -> Iterator[tuple[pathlib.Path, budget_lib.Usage]]:
    """Files of requests, numbered from `first`, each with the most tokens that it takes: no more than a budget has."""
    for number, (lines, bound) in enumerate(self._portions(rest, budget), start=first):
      path = folder / f"requests-{number:04d}.jsonl"
      _replace(path, b"".join(lines))
      yield path, bound

  def _portions(
    self, rest: Sequence[str], budget: budget_lib.Budget | None
  ) -> Iterator[tuple[list[bytes], budget_lib.Usage]]:
    lines: list[bytes] = []
    size, bound = 0, budget_lib.Usage(0, 0)
    for key in rest:
      request = self._asked(key)
      line, its = self._line(key, request) + b"\n", asking.bound(request.prompt, self._max_output_tokens)
      full = len(lines) == MOST_LINES or size + len(line) > MOST_BYTES
      if lines and (full or (budget is not None and not budget.has_room(bound + its))):
        yield lines, bound
        lines, size, bound = [], 0, budget_lib.Usage(0, 0)
      lines.append(line)
      size += len(line)
      bound += its
    if lines:
      yield lines, bound

  def _submit(self, path: pathlib.Path, bound: budget_lib.Usage, budget: budget_lib.Budget | None) -> None:
    noted: dict[str, Any] = {
      "family": self.family, "label": f"idistill-{uuid.uuid4().hex}", "name": None,
      "reservation": None if budget is None else asyncio.run(budget.reserve(bound)),
    }
    note = path.with_suffix(_NOTE)
    _replace(note, json.dumps(noted).encode())
    try:
      noted["name"] = self._server.submit(path, noted["label"])
    except protocol.Stop:
      # Refused, or only its name was lost; where the server cannot say so now, the next run asks it.
      with contextlib.suppress(protocol.Stop):
        if self._is_there(note, budget):
          return
      raise
    _replace(note, json.dumps(noted).encode())
    logging.info("%s is submitted as %s", path, noted["name"])

  def _is_there(self, note: pathlib.Path, budget: budget_lib.Budget | None) -> bool:
    """Whether a batch came of a note; if not, the note and its reservation go.  Another provider's are left to it."""
    noted = json.loads(note.read_text())
    if (family := noted.get("family", self.family)) != self.family:
      logging.warning("%s: a batch at %s may be under way; a run that asks there collects it", note, family)
      return False
    if noted["name"] is None:
      name = self._server.find(noted["label"])
      if name is None:
        if budget is not None and noted["reservation"] is not None:
          budget.book(noted["reservation"], budget_lib.Usage(0, 0))
        note.unlink()
        return False
      _replace(note, json.dumps({**noted, "name": name}).encode())
    return True

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
      _replace(note.with_name(f"{RESULTS}-of-{stem}-{number}.jsonl"), content)
      usage += self._cost(content)
    if budget is not None and submitted["reservation"] is not None:
      budget.book(submitted["reservation"], usage)
    if not contents:
      note.rename(note.with_name(stem + _FAILED))
      raise protocol.Stop(
        f"the batch {submitted['name']} ended without results, its provider's console says why; "
        "run the same command again to submit its requests anew"
      )
    requests = note.with_name(f"{stem}.jsonl")
    asked = self._keys(requests.read_bytes()) if requests.exists() else set()
    if lost := asked - set().union(*map(self._keys, contents)):
      _replace(note.with_name(stem + _LOST), json.dumps(sorted(lost)).encode())
    note.unlink()

  def _keys(self, content: bytes) -> set[str]:
    """Of all lines that can be read."""
    found = set()
    for line in content.splitlines():
      with contextlib.suppress(*_UNREADABLE):
        found.add(str(json.loads(line)[self._server.key_field]))
    return found

  def _cost(self, content: bytes) -> budget_lib.Usage:
    total = budget_lib.Usage(0, 0)
    for line in content.splitlines():
      with contextlib.suppress(batch_server.LineFailed, *_UNREADABLE):
        total += self._used(*self._server.read(json.loads(line)))
    return total

  def _used(self, key: str, answer: protocol.Answer) -> budget_lib.Usage:
    if (told := budget_lib.Usage.of(answer)) is not None:
      return told
    request = self.pending.get(key)
    return budget_lib.Usage(0 if request is None else prompt.tokens(request.prompt), self._max_output_tokens)

  def _take_results(self, folder: pathlib.Path, cache: cache_lib.AnswerCache, budget: budget_lib.Budget | None) -> int:
    """Answers to what is pending go into the cache, those carried by hand into the books; returns how many are new."""
    self._failures = {}
    taken = 0
    for path in sorted(folder.glob(f"{RESULTS}*.jsonl")):
      odd: collections.Counter[str] = collections.Counter()
      # Those of a submitted batch were booked when it ended.
      books = None if path.name.startswith(f"{RESULTS}-of-") else budget
      with open(path, "rb") as lines:
        while portion := list(itertools.islice(lines, _LINES_AT_ONCE)):
          taken += self._take(portion, cache, books, odd)
      if odd["unreadable"]:
        logging.warning("%s: %d lines cannot be read; what they answer is asked for again", path, odd["unreadable"])
      if odd["foreign"]:
        logging.info("%s: %d lines answer nothing that is still open", path, odd["foreign"])
    for path in sorted(folder.glob(f"*{_LOST}")):
      for key in json.loads(path.read_bytes()):
        self._failures.setdefault(key, []).append("the batch ended without a word about it")
    return taken

  def _take(
    self, lines: Sequence[bytes], cache: cache_lib.AnswerCache, books: budget_lib.Budget | None,
    odd: collections.Counter[str],
  ) -> int:
    """Lines of results into the cache, in one commit; those that say nothing usable are counted in `odd`."""
    new: dict[str, tuple[protocol.Request, protocol.Answer]] = {}
    usage = budget_lib.Usage(0, 0)
    for line in filter(bytes.strip, lines):
      try:
        key, answer = self._server.read(json.loads(line))
      except batch_server.LineFailed as e:
        self._failures.setdefault(e.key, []).append(str(e))
        continue
      except _UNREADABLE:
        odd["unreadable"] += 1
        continue
      if (request := self.pending.get(key)) is None:
        odd["foreign"] += 1
      elif key not in new and cache.get(key) is None:
        new[key] = request, answer
        usage += self._used(key, answer)
    # Booked first: killed in between, the next run counts these answers twice, which is better than not at all.
    if books is not None:
      books.book(None, usage)
    cache.put_rows([cache_lib.row_of(key, self, *found) for key, found in new.items()])
    self.delivered.update(new)
    return len(new)
