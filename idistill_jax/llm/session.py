"""A config's `labels` section -> everything that asking needs, put together: provider, cache, budget, pace."""

import asyncio
import dataclasses
import functools
import gc
import pathlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Self, TypeVar

from idistill_jax import config
from idistill_jax.llm import asking, batch, budget, pace, protocol, providers, ranking, workers
from idistill_jax.llm import cache as cache_lib
from idistill_jax.workdir import databases

CACHE, SPENT = databases.ANSWERS, "spent.sqlite"
BATCHES = "batches"
In = TypeVar("In")
Out = TypeVar("Out")


def plan(cfg: config.Labels, seed: int) -> ranking.Plan:
  return ranking.Plan(
    window=cfg.window, stride=cfg.stride, orders=cfg.orders, retries=cfg.refused_retries,
    passage_tokens=cfg.passage_tokens, seed=seed,
  )


def by_batch(cfg: config.Labels) -> bool:
  return cfg.provider in ("gemini_batch", "openai_batch")


def prices(cfg: config.Labels) -> budget.Prices:
  """As configured, none where they are another model's; by batch half of it, as Google and OpenAI bill."""
  if cfg.has_prices_of_another:
    return budget.Prices()
  prices = cfg.dollars_per_million_input_tokens, cfg.dollars_per_million_output_tokens
  share = 0.5 if by_batch(cfg) else 1.0
  return budget.Prices(*(price if price is None else share * price for price in prices))


def of_reader(cfg: config.Config) -> config.Labels:
  """The labelling's provider and limits, with what the reader of `answer` has of its own."""
  labels, answer = cfg.labels, cfg.answer
  shared = answer.model is None and answer.dollars_per_million_input_tokens is None
  of_input, of_output = answer.dollars_per_million_input_tokens, answer.dollars_per_million_output_tokens
  return dataclasses.replace(
    labels,
    model=labels.model if answer.model is None else answer.model,
    recording=labels.recording if answer.recording is None else answer.recording,
    dollars_per_million_input_tokens=labels.dollars_per_million_input_tokens if shared else of_input,
    dollars_per_million_output_tokens=labels.dollars_per_million_output_tokens if shared else of_output,
    priced_model=labels.priced_model if shared else None,
  )


# Stages that ask -> whom, within what.
ASKING: dict[str, Callable[[config.Config], config.Labels]] = {
  "labels": lambda cfg: cfg.labels, "queries": lambda cfg: cfg.labels, "answer": of_reader,
}


def asks(stage: str, cfg: config.Config) -> bool:
  """Whether a stage of ASKING has anything to ask with that config."""
  return {
    "queries": config.writes_queries(cfg), "labels": cfg.collection.rankings is None,
    "answer": cfg.answer.systems != "none",
  }[stage]


def told_again(dropped: pathlib.Path, folder: pathlib.Path) -> str:
  """Where what was said to what `dropped` names can be read, and how it is asked for again: answers are kept."""
  return (f"what was said is in {dropped}; answers are kept, so once that is mended ask for these again by "
          f"python -m idistill_jax.llm.cache forget {folder / CACHE} {dropped}")


def check(cfg: config.Labels) -> None:
  """Raises as `providers.build` does, protocol.Stop for a missing key, SDK or recording; asks nothing."""
  asyncio.run(providers.build(cfg).close())


class Session:
  """`with Session(cfg, folder) as session:`; the cache and the books of the budget lie in the folder."""

  def __init__(self, cfg: config.Labels, folder: pathlib.Path):
    self.provider = providers.build(cfg)
    self._cfg, self._prices = cfg, prices(cfg)
    # One for all that is asked: connections belong to the event loop that they were opened in.
    self._loop = asyncio.Runner()
    self.cache = cache_lib.AnswerCache(folder / CACHE)
    limited = cfg.max_dollars is not None or cfg.max_tokens is not None
    self._budget = None if not limited else budget.Budget(
      folder / SPENT, max_dollars=cfg.max_dollars, max_tokens=cfg.max_tokens, prices=self._prices
    )
    self._batches = folder / BATCHES if cfg.batch_folder is None else pathlib.Path(cfg.batch_folder)

  def __enter__(self) -> Self:
    # The collector would go through all that is imported, a tenth of a second each time in which no answer is read.
    gc.freeze()
    return self

  def __exit__(self, *exc: object) -> None:
    gc.unfreeze()
    try:
      self._loop.run(self.provider.close())
    finally:
      self._loop.close()
      self.cache.close()
      if self._budget is not None:
        self._budget.close()

  def knows(self, request: protocol.Request) -> protocol.Answer | None:
    """The answer, where it is in the cache."""
    return self.cache.get(cache_lib.key(self.provider, request))

  def label(self, lists: Sequence[ranking.Unordered], plan: ranking.Plan) -> list[ranking.Outcome]:
    """Outcomes in the order of the lists; raises protocol.Stop."""

    async def one(asker: asking.Asker, unordered: ranking.Unordered) -> ranking.Outcome:
      return await ranking.rank(asker.ask, unordered, plan)

    def summary(outcome: ranking.Outcome) -> workers.Summary:
      status = outcome.parsed.status if isinstance(outcome, ranking.Ranked) else outcome.reason.partition(":")[0]
      return status, [(labelled.answer, labelled.paid) for labelled in outcome.answers]

    return self.each("labels", lists, one, summary)

  def each(
    self, name: str, items: Sequence[In], work: Callable[[asking.Asker, In], Awaitable[Out]],
    summary: Callable[[Out], workers.Summary],
  ) -> list[Out]:
    """`work` on every item.  What waits for a batch is worked on again when the batch has come back."""
    while True:
      results = self._loop.run(workers.run(
        functools.partial(work, self._asker), items, summary, name=name, at_once=2 * self._cfg.concurrency,
        prices=self._prices,
      ))
      if not isinstance(self.provider, batch.Batch) or not self.provider.pending:
        return [result for result in results if result is not None]
      self.provider.exchange(
        self._batches, self.cache, self._budget, poll_seconds=self._cfg.batch_poll_seconds,
        by_hand=self._cfg.batch_folder is not None,
      )

  @functools.cached_property
  def _asker(self) -> asking.Asker:
    cfg = self._cfg
    terms = asking.Terms(
      concurrency=cfg.concurrency, attempts=cfg.attempts, deadline_seconds=cfg.timeout_seconds,
      max_output_tokens=cfg.max_output_tokens,
    )
    delivered = self.provider.delivered if isinstance(self.provider, batch.Batch) else ()
    return asking.Asker(self.provider, self.cache, terms, budget=self._budget, pace=_pace(cfg), delivered=delivered)


def _pace(cfg: config.Labels) -> pace.Pace | None:
  if cfg.requests_per_minute is None and cfg.tokens_per_minute is None:
    return None
  return pace.Pace(
    requests_per_minute=cfg.requests_per_minute, tokens_per_minute=cfg.tokens_per_minute,
    largest=cfg.max_output_tokens + asking.PROMPT_TOKENS + (cfg.window + 1) * cfg.passage_tokens,
  )
