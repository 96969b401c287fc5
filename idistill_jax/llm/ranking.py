"""A list of passages -> one order of it: windows, orders asked about again, refusals asked about again.

    list ─► windows from the end up ─► an order  ┐
         ─► the same, shown shuffled ─► an order ├─► consensus, agreement
         ─► ...                                  ┘
"""

import dataclasses
import math
import random
from collections.abc import Awaitable, Callable, Sequence

from idistill_jax.llm import asking, consensus, parse, prompt, protocol, windows


@dataclasses.dataclass(frozen=True, slots=True)
class Unordered:
  """A list to be put in order: the texts of a query and its passages, and their ids."""

  query_id: str
  passage_ids: tuple[str, ...]
  query: str
  passages: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
  """How lists are asked about.

  window, stride: see `windows.spans`.  orders: in how many orders each list is shown, where it has as many.
  retries: how many times a refused answer is asked for again, shown in another order each time, while there is one
  that was not shown.  seed: what the orders shown depend on.
  """

  window: int
  stride: int
  orders: int
  retries: int
  passage_tokens: int
  seed: int

  def orders_of(self, n: int) -> int:
    """In how many orders a list of `n` is shown: two passages have two, and asked again an LLM says the same."""
    return min(self.orders, math.factorial(min(n, self.window)))


@dataclasses.dataclass(frozen=True, slots=True)
class Labelled:
  """An answer about one window.  parsed: the order, or that it is refused.  paid: not from the cache."""

  answer: protocol.Answer
  parsed: parse.Parsed
  paid: bool

  @property
  def refusal(self) -> str:
    """Name to count a refused answer by: the first reason found in its text, and how the provider ended it."""
    end = self.answer.finish_reason
    return self.parsed.reasons[0] + ("" if end == "stop" else f" (ended by: {end})")


@dataclasses.dataclass(frozen=True, slots=True)
class Ranked:
  """A list in order.

  parsed: the order of its passages, by their place in the list.  agreement: of the orders asked for, see
  `consensus.of`.  answers: all that were given, refused ones included.  lost: why orders that were asked for
  have no part in it.
  """

  unordered: Unordered
  parsed: parse.Parsed
  agreement: float
  answers: tuple[Labelled, ...]
  lost: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Unranked:
  """A list that got no order; `reason` is a name to count by, `message` tells more."""

  unordered: Unordered
  reason: str
  message: str
  answers: tuple[Labelled, ...]


Outcome = Ranked | Unranked
Ask = Callable[[protocol.Request], Awaitable[asking.Asked]]


class _Refused(Exception):
  """No try at a window gave an order."""


async def rank(ask: Ask, one: Unordered, plan: Plan) -> Outcome:
  """Asks until the list is in order or cannot be; raises protocol.Stop and protocol.Pending."""
  answers: list[Labelled] = []
  orders: list[parse.Parsed] = []
  lost: list[tuple[str, str]] = []
  pending: protocol.Pending | None = None
  repeats = plan.orders_of(len(one.passage_ids))
  for repeat in range(repeats):
    try:
      orders.append(await _slide(ask, one, plan, repeat, answers))
    except _Refused as e:
      lost.append((f"refused: {e}", str(e)))
    except protocol.NotRecorded as e:
      lost.append(("not recorded", str(e)))
    except protocol.Unanswered as e:
      lost.append((e.reason, str(e)))
    except protocol.Pending as e:
      # The other orders go into the same batch.
      pending = e
  if pending is not None:
    raise pending
  if not orders:
    return Unranked(one, *lost[0], tuple(answers))
  middle = consensus.of(orders, asked=repeats)
  reasons = tuple(dict.fromkeys(reason for order in orders for reason in order.reasons))
  parsed = parse.Parsed(middle.order, "repaired" if reasons else "complete", middle.filled, reasons)
  return Ranked(one, parsed, middle.agreement, tuple(answers), tuple(reason for reason, _ in lost))


async def _slide(
  ask: Ask, one: Unordered, plan: Plan, repeat: int, answers: list[Labelled]
) -> parse.Parsed:
  """One order of the whole list; every answer on the way is added to `answers`."""
  n = len(one.passage_ids)
  order, named = list(range(n)), [True] * n
  reasons: dict[parse.Reason, None] = {}
  for start, stop in windows.spans(n, plan.window, plan.stride):
    shown, parsed = await _ask_about(ask, one, order[start:stop], plan, (repeat, start), answers)
    order[start:stop] = [shown[place] for place in parsed.order]
    # The last window that a passage is in decides about it.
    for place, passage in enumerate(order[start:stop]):
      named[passage] = place not in parsed.filled
    reasons.update(dict.fromkeys(parsed.reasons))
  filled = tuple(place for place, passage in enumerate(order) if not named[passage])
  return parse.Parsed(tuple(order), "repaired" if reasons else "complete", filled, tuple(reasons))


async def _ask_about(
  ask: Ask, one: Unordered, window: Sequence[int], plan: Plan, which: tuple[int, int],
  answers: list[Labelled],
) -> tuple[list[int], parse.Parsed]:
  """(passages as they were shown, a usable answer about them); raises _Refused, NoAnswer or Stop.

  which: the repeat, and where in the list the window starts.
  """
  repeat, start = which
  first_retry = plan.orders_of(len(one.passage_ids)) + repeat * plan.retries
  retries = range(first_retry, min(first_retry + plan.retries, math.factorial(len(window))))
  refused: Labelled | None = None
  for number in (repeat, *retries):
    shown = _shown(one, window, plan, start, number)
    request = to_request(one, shown, plan)
    try:
      asked = await ask(request)
    except protocol.NotRecorded:
      # A recording knows the lists it was made for, and not those that a second try would show.
      if refused is None:
        raise
      break
    whole = asked.answer.finish_reason == "stop"
    found = Labelled(asked.answer, parse.parse(asked.answer.text, len(shown), whole=whole), asked.paid)
    answers.append(found)
    if found.parsed.status != "refused":
      return shown, found.parsed
    refused = found
  assert refused is not None
  raise _Refused(refused.refusal)


def _shown(one: Unordered, window: Sequence[int], plan: Plan, start: int, number: int) -> list[int]:
  """The `number`-th of the orders that a window is shown in, no two of them alike.

  A list that fits into one prompt is shown as it is first, since recorded answers belong to that order.  All else is
  shuffled, so that no order can be copied.
  """
  draw = random.Random(f"{plan.seed}/{one.query_id}/{start}")
  orders = [list(range(len(window)))] if len(window) == len(one.passage_ids) else []
  while len(orders) <= number:
    places = draw.sample(range(len(window)), len(window))
    if places not in orders:
      orders.append(places)
  return [window[place] for place in orders[number]]


def to_request(one: Unordered, shown: Sequence[int], plan: Plan) -> protocol.Request:
  return protocol.Request(
    one.query_id,
    tuple(one.passage_ids[i] for i in shown),
    prompt.render(one.query, [one.passages[i] for i in shown], plan.passage_tokens),
  )
