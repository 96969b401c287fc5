"""What is to be asked -> what asking would cost and how long it would take, in words, before anything is asked."""

import asyncio
import contextlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence

from idistill_jax import config
from idistill_jax.llm import asking, budget, prompt, protocol, query_writing, ranking, session, windows

# Assumed where nothing was asked yet: a short answer of a small model.
SECONDS_PER_CALL = 2.0
# `[12] > `
TOKENS_PER_LABEL = 5
TOKENS_PER_QUERY = 20
TOKENS_PER_ANSWER = 20
_MANY = 300
# Passages whose prompts are looked up in the cache.
_LOOKED_UP = 20_000
Knows = Callable[[protocol.Request], protocol.Answer | None]


def with_cache(cfg: config.Labels, folder: pathlib.Path, said: Callable[[Knows], str]) -> str:
  """What `said` says of what the cache in the folder knows; it knows nothing where no provider can be built."""
  try:
    with session.Session(cfg, folder) as opened:
      return said(opened.knows)
  except protocol.Stop as e:
    return f"{said(lambda request: None)}\nthe cache was not looked into: {e}"


def of_lists(
  lists: Sequence[ranking.Unordered], plan: ranking.Plan, cfg: config.Labels, knows: Knows
) -> str:
  """Prompts of up to 300 lists are rendered and counted, and stand for the others.

  knows: a request's answer, where it is cached.  In each order of a list windows are looked up to the first that is
  not: what later ones show depends on its answer.
  """
  sample = lists[:: max(1, len(lists) // _MANY)]
  calls, known, usage = 0, 0, budget.Usage(0, 0)
  for one in sample:
    spans = list(windows.spans(len(one.passage_ids), plan.window, plan.stride))
    # Any stretch of the list has about the prompt of the one that will be shown.
    requests = [ranking.to_request(one, range(start, stop), plan) for start, stop in spans]
    asked = requests * plan.orders_of(len(one.passage_ids))
    calls += len(asked)
    known += min(asyncio.run(_known(one, plan, knows)), len(asked))
    for request in asked:
      output = TOKENS_PER_LABEL * len(request.passage_ids)
      usage += budget.Usage(prompt.tokens(request.prompt), min(output, cfg.max_output_tokens))
  share = len(lists) / len(sample)
  total = budget.Usage(round(usage.input_tokens * share), round(usage.output_tokens * share))
  return f"{len(lists):,} lists, " + _said(round(calls * share), round(known * share), total, cfg)


async def _known(one: ranking.Unordered, plan: ranking.Plan, knows: Knows) -> int:
  """How many answers about a list are cached, those included to which it was shown once more."""
  found = 0

  async def ask(request: protocol.Request) -> asking.Asked:
    nonlocal found
    if (answer := knows(request)) is None:
      raise protocol.Pending(request.query_id)
    found += 1
    return asking.Asked(answer, paid=False)

  with contextlib.suppress(protocol.Pending):
    await ranking.rank(ask, one, plan)
  return found


def of_queries(
  passages: Sequence[query_writing.Passage], count: int, passage_tokens: int, cfg: config.Labels, knows: Knows
) -> str:
  """For queries in every style for so many of the passages; up to 300 of them stand for all.

  Which are chosen takes their embeddings, so how many answers of theirs the cache has is told from the fewest to the
  most that any choice would give; it is asked about 20,000 passages at most, and nothing is known of others.
  """
  requests = lambda one: [query_writing.to_request(one, style, passage_tokens) for style in prompt.QUERY_STYLES]
  sample = passages[:: max(1, len(passages) // _MANY)]
  tokens = sum(prompt.tokens(request.prompt) for one in sample for request in requests(one))
  styles = len(prompt.QUERY_STYLES)
  known = sorted(
    sum(knows(request) is not None for request in requests(one)) for one in itertools.islice(passages, _LOOKED_UP)
  )
  others = min(len(passages) - len(known), count)
  fewest, most = sum(known[: count - others]), sum(known[len(known) - (count - others) :]) + styles * others
  calls = count * styles
  usage = budget.Usage(round(tokens * count / len(sample)), TOKENS_PER_QUERY * calls)
  return f"{count:,} passages, " + _said(calls, fewest, usage, cfg, most)


def of_questions(requests: Sequence[protocol.Request], cfg: config.Labels, knows: Knows) -> str:
  """For a reader's prompts."""
  usage = budget.Usage(sum(prompt.tokens(one.prompt) for one in requests), TOKENS_PER_ANSWER * len(requests))
  return _said(len(requests), sum(knows(one) is not None for one in requests), usage, cfg)


def _said(calls: int, known: int, usage: budget.Usage, cfg: config.Labels, most: int | None = None) -> str:
  """usage: of all calls.  known: answered by the cache; where it cannot be told, the fewest, beside the most."""
  ends = [known] if most in (None, known) else [most, known]
  left = [(calls - one) / max(calls, 1) for one in ends]
  totals = [budget.Usage(round(usage.input_tokens * share), round(usage.output_tokens * share)) for share in left]
  took = _to(_duration(_seconds(calls - one, total, cfg)) for one, total in zip(ends, totals, strict=True))
  answered = f"{known:,} of them answered by the cache" if len(ends) == 1 else (
    f"between {known:,} and {most:,} of them answered by the cache, as which passages are drawn takes their embeddings")
  return "\n".join((
    f"{calls:,} calls, {answered}",
    f"about {_to(f'{total.input_tokens:,}' for total in totals)} input and "
    f"{_to(f'{total.output_tokens:,}' for total in totals)} output tokens (counted without the model's own "
    "vocabulary, thinking not included)",
    f"about {_money(totals, cfg)}",
    "within a day, as a batch" if session.by_batch(cfg) else
    f"about {took} at {cfg.concurrency} calls at once of {SECONDS_PER_CALL:g} s each",
  ))


def _to(ends: Iterable[str]) -> str:
  """From one to the other, or the only one."""
  return " to ".join(dict.fromkeys(ends))


def _money(totals: Sequence[budget.Usage], cfg: config.Labels) -> str:
  dollars = [session.prices(cfg).dollars(usage) for usage in totals]
  if None in dollars:
    whose = f" (those that are set are of {cfg.priced_model}), and labels.priced_model={cfg.model}"
    return ("how many dollars is not known: set labels.dollars_per_million_input_tokens and ..._output_tokens"
            + whose * cfg.has_prices_of_another)
  return _to(f"${one:.2f}" for one in dollars)


def _seconds(calls: int, usage: budget.Usage, cfg: config.Labels) -> float:
  """The slowest of what holds calls back."""
  limits = [calls * SECONDS_PER_CALL / cfg.concurrency]
  if cfg.requests_per_minute is not None:
    limits.append(60 * calls / cfg.requests_per_minute)
  if cfg.tokens_per_minute is not None:
    limits.append(60 * usage.tokens / cfg.tokens_per_minute)
  return max(limits)


def _duration(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
