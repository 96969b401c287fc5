"""The LLM puts lists of passages in order.

    python -m idistill_jax.stages.labels --config=configs/quickstart.py --workdir=runs/quickstart

collection (and candidates) -> rankings-*.tfrecord: one RankedList for each usable answer; statuses.json: what
became of every list.  Lists come from the collection where it brings some (recorded answers belong to them),
otherwise from the candidates of training queries, chosen and shuffled by the seed.  Killed and started again,
the stage finds its answers in the cache.
"""

import collections
import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from absl import logging

from idistill_jax import artifacts, cli, config, records
from idistill_jax.data import example, tables
from idistill_jax.llm import cache as cache_lib
from idistill_jax.llm import label, parse, prompt, protocol, providers
from idistill_jax.llm.providers import replay

STATUSES = "statuses.json"
CACHE = "llm.sqlite"
_LISTS_PER_SHARD = 50_000
Shown = TypeVar("Shown", records.CandidateList, records.RankedList)


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.labels
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])

  if made_elsewhere := tables.load_rankings(job.inputs["collection"]):
    take_over(job, made_elsewhere, queries, passages)
    return
  lists = tables.load_lists(job.inputs["collection"])
  if lists is None:
    candidates = example.read_records(job.inputs["candidates"], artifacts.CANDIDATES, records.CandidateList)
    lists = sampled(candidates, size=cfg.list_size, seed=job.cfg.seed)
  kept = list(usable(job, lists, queries, passages))[: cfg.lists]
  if not kept:
    raise ValueError(f"no list to ask about: of {len(lists)} lists {tally_of(job.drops)}")

  requests = [to_request(shown, queries, passages, cfg.passage_words) for shown in kept]
  prices = label.Prices(cfg.dollars_per_million_input_tokens, cfg.dollars_per_million_output_tokens)
  with cache_lib.AnswerCache(job.cache / CACHE) as cache:
    outcomes = list(
      label.label(providers.build(cfg), cache, requests, concurrency=cfg.concurrency, prices=prices)
    )

  rankings = list(ranked(job, outcomes))
  summary = summarise(outcomes, prices)
  if not rankings:
    raise ValueError(f"none of {len(requests)} lists got a usable answer: {tally_of(job.drops)}")
  example.write_records(job.out, artifacts.RANKINGS, rankings, shards=-(-len(rankings) // _LISTS_PER_SHARD))
  (job.out / STATUSES).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(
    lists=len(rankings),
    asked=len(requests),
    paid=sum(o.paid for o in outcomes if isinstance(o, label.Labelled)),
    complete=summary["complete"],
    repaired=summary["repaired"],
    template=prompt.LISTWISE,
  )


def take_over(
  job: artifacts.Job,
  made_elsewhere: Sequence[records.RankedList],
  queries: tables.Queries,
  passages: tables.Passages,
) -> None:
  """Rankings that the collection brings are labels as they stand: nobody is asked."""
  kept = list(usable(job, made_elsewhere, queries, passages))[: job.cfg.labels.lists]
  if not kept:
    raise ValueError(f"none of {len(made_elsewhere)} rankings can be learned from: {tally_of(job.drops)}")
  example.write_records(job.out, artifacts.RANKINGS, kept)
  statuses = {"complete": 0, "repaired": 0, **count(one.status for one in kept)}
  (job.out / STATUSES).write_text(json.dumps(statuses, indent=1) + "\n", encoding="utf-8")
  job.count(lists=len(kept), made_elsewhere=len(kept), **statuses)


def sampled(
  candidates: Iterable[records.CandidateList], *, size: int, seed: int
) -> tuple[records.CandidateList, ...]:
  """The best `size` of each list, shuffled so that no order can be copied; the lists in a drawn order.

  A shorter run asks about the first lists of a longer one: each query's place and shuffle
  depend on seed and id alone.
  """

  def drawn(shown: records.CandidateList) -> tuple[str, str]:
    return hashlib.sha256(f"{seed}/{shown.query_id}".encode()).hexdigest(), shown.query_id

  return tuple(
    records.CandidateList(
      query_id=found.query_id,
      passage_ids=shuffled(found.passage_ids[:size], f"{seed}/{found.query_id}"),
      scores=(),
    )
    for found in sorted(candidates, key=drawn)
  )


def shuffled(ids: Sequence[str], seed: str) -> tuple[str, ...]:
  order = list(ids)
  random.Random(seed).shuffle(order)
  return tuple(order)


def usable(
  job: artifacts.Job,
  lists: Iterable[Shown],
  queries: tables.Queries,
  passages: tables.Passages,
) -> Iterator[Shown]:
  """Lists that can be asked about and learned from; the others are dropped by name."""
  for shown in lists:
    if shown.query_id not in queries:
      job.drop("list of a query that the collection lacks", shown.query_id)
    elif queries.by_id(shown.query_id).split != "train":
      job.drop("list of a query outside the training split", shown.query_id)
    elif any(passage_id not in passages for passage_id in shown.passage_ids):
      job.drop("list with a passage that the collection lacks", shown.query_id)
    elif len(set(shown.passage_ids)) < len(shown.passage_ids):
      job.drop("list that shows a passage twice", shown.query_id)
    elif len(shown.passage_ids) < 2:
      job.drop("list of fewer than two passages", shown.query_id)
    else:
      yield shown


def to_request(
  shown: records.CandidateList, queries: tables.Queries, passages: tables.Passages, passage_words: int
) -> protocol.Request:
  texts = [passages.by_id(passage_id).full_text for passage_id in shown.passage_ids]
  rendered = prompt.render(queries.by_id(shown.query_id).text, texts, passage_words)
  return protocol.Request(shown.query_id, shown.passage_ids, rendered)


def ranked(job: artifacts.Job, outcomes: Iterable[label.Outcome]) -> Iterator[records.RankedList]:
  """Records of complete and repaired answers; refused and missing ones are dropped by name."""
  for outcome in outcomes:
    request = outcome.request
    if isinstance(outcome, label.Unlabelled):
      job.drop(outcome.reason, request.query_id)
      logging.log_first_n(logging.WARNING, "%s: %s", 5, request.query_id, outcome.message)
    elif outcome.parsed.status == "refused":
      job.drop(refusal(outcome), request.query_id)
    else:
      yield records.RankedList(
        query_id=request.query_id,
        passage_ids=tuple(request.passage_ids[shown] for shown in outcome.parsed.order),
        status=outcome.parsed.status,
        filled_places=outcome.parsed.filled,
      )


def refusal(outcome: label.Labelled) -> str:
  """Name to count a refused answer by: the first reason found in its text, and how the provider ended it."""
  cut_short = "" if outcome.answer.finish_reason == "stop" else f" (ended by: {outcome.answer.finish_reason})"
  return f"refused: {outcome.parsed.reasons[0]}{cut_short}"


def summarise(outcomes: Sequence[label.Outcome], prices: label.Prices) -> dict[str, Any]:
  """What `statuses.json` holds; a function of the answers, whether they were cached or not."""
  tally = label.Tally()
  for outcome in outcomes:
    tally.add(outcome)
  labelled = [outcome for outcome in outcomes if isinstance(outcome, label.Labelled)]
  usage = {
    "answers": len(labelled),
    "input_tokens": tally.input_tokens,
    "output_tokens": tally.output_tokens,
    "dollars": tally.dollars(prices),
  }
  return {
    "complete": tally.statuses["complete"],
    "repaired": tally.statuses["repaired"],
    "refused": count(refusal(o).removeprefix("refused: ") for o in labelled if o.parsed.status == "refused"),
    "unanswered": count(o.reason for o in outcomes if isinstance(o, label.Unlabelled)),
    "repairs": count(
      reason for o in labelled if o.parsed.status == "repaired" for reason in o.parsed.reasons
    ),
    "position_bias": position_bias(o.parsed for o in labelled),
    "usage": usage,
    "template": prompt.fingerprint(),
  }


def count(names: Iterable[str]) -> dict[str, int]:
  return dict(sorted(collections.Counter(names).items()))


def position_bias(answers: Iterable[parse.Parsed]) -> float | None:
  """Mean Spearman correlation of shown place and rank over the passages that each answer names.

  1: every list comes back as it was shown; 0: the place does not matter.  None where no answer names two
  passages.

  rho = 1 - 6 sum(d^2) / (n (n^2 - 1)) for ranks without ties (Spearman 1904).
  """
  correlations = []
  for parsed in answers:
    named = parsed.order[: len(parsed.order) - len(parsed.filled)]
    n = len(named)
    if n < 2:
      continue
    place = {shown: i for i, shown in enumerate(sorted(named))}
    squares = sum((rank - place[shown]) ** 2 for rank, shown in enumerate(named))
    correlations.append(1 - 6 * squares / (n * (n * n - 1)))
  return round(sum(correlations) / len(correlations), 4) if correlations else None


def tally_of(drops: dict[str, list[str]]) -> str:
  return "; ".join(f"{len(what)}: {reason}" for reason, what in drops.items()) or "none was found"


def fingerprint(cfg: config.Config) -> str:
  """Template and recorded answers: what the labels come from beside config and inputs."""
  recording = cfg.labels.recording
  return f"{prompt.fingerprint()} {recording and replay.fingerprint(recording)}"


STAGE = artifacts.Stage(
  name="labels",
  reads=("collection", "candidates"),
  config=("labels", "seed"),
  run=run,
  fingerprint=fingerprint,
)

if __name__ == "__main__":
  cli.main(STAGE)
