"""What is to be asked -> what asking would cost and how long it would take, in words, before anything is asked."""

from collections.abc import Callable, Sequence

from idistill_jax import config
from idistill_jax.llm import budget, prompt, protocol, ranking, windows

# Assumed where nothing was asked yet: a short answer of a small model.
SECONDS_PER_CALL = 2.0
# `[12] > `
TOKENS_PER_LABEL = 5
TOKENS_PER_QUERY = 20
_MANY = 300


def of_lists(
  lists: Sequence[ranking.Unordered], plan: ranking.Plan, cfg: config.Labels, knows: Callable[[protocol.Request], bool]
) -> str:
  """Prompts of up to 300 lists are rendered and counted, and stand for the others.

  knows: whether a request's answer is cached.  Only the first window of a list can be looked up: what later ones
  show depends on its answer.
  """
  sample = lists[:: max(1, len(lists) // _MANY)]
  calls, known, usage = 0, 0, budget.Usage(0, 0)
  for one in sample:
    spans = list(windows.spans(len(one.passage_ids), plan.window, plan.stride))
    # Any stretch of the list has about the prompt of the one that will be shown.
    requests = [ranking.to_request(one, range(start, stop), plan) for start, stop in spans]
    asked = requests * plan.orders_of(len(one.passage_ids))
    calls += len(asked)
    known += len(spans) == 1 and knows(requests[0])
    for request in asked:
      output = TOKENS_PER_LABEL * len(request.passage_ids)
      usage += budget.Usage(prompt.tokens(request.prompt), min(output, cfg.max_output_tokens))
  return f"{len(lists):,} lists, " + _said(calls, known, usage, len(lists) / len(sample), cfg)


def of_queries(texts: Sequence[str], passages: int, passage_tokens: int, cfg: config.Labels) -> str:
  """For queries in every style for so many of the passages; up to 300 of them stand for all."""
  sample = texts[:: max(1, len(texts) // _MANY)]
  prompts = [
    prompt.render_query_writing(style, text, passage_tokens) for text in sample for style in prompt.QUERY_STYLES
  ]
  usage = budget.Usage(sum(map(prompt.tokens, prompts)), TOKENS_PER_QUERY * len(prompts))
  return f"{passages:,} passages, " + _said(len(prompts), 0, usage, passages / len(sample), cfg)


def _said(calls: int, known: int, usage: budget.Usage, share: float, cfg: config.Labels) -> str:
  """share: how many times the sample's calls, known answers and tokens there are."""
  left = share * (calls - known) / calls
  total = budget.Usage(round(usage.input_tokens * left), round(usage.output_tokens * left))
  return "\n".join((
    f"{round(calls * share):,} calls, {round(known * share):,} of them answered by the cache",
    f"about {total.input_tokens:,} input and {total.output_tokens:,} output tokens (counted without the model's own "
    "vocabulary, thinking not included)",
    f"about {_money(total, cfg)}",
    f"about {_duration(_seconds(round(calls * left), total, cfg))} at {cfg.concurrency} calls at once of "
    f"{SECONDS_PER_CALL:g} s each",
  ))


def _money(usage: budget.Usage, cfg: config.Labels) -> str:
  prices = budget.Prices(cfg.dollars_per_million_input_tokens, cfg.dollars_per_million_output_tokens)
  dollars = prices.dollars(usage)
  if dollars is None:
    return "how many dollars is not known: set labels.dollars_per_million_input_tokens and ..._output_tokens"
  return f"${dollars:.2f}"


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
