"""The LLM puts lists of passages in order.

    python -m idistill_jax.stages.labels --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.stages.labels --config=configs/quickstart.py --workdir=runs/quickstart --estimate

collection (and candidates) -> rankings-*.tfrecord: one RankedList for each usable answer; statuses.json: what
became of every list; dropped.jsonl: every list that was left out, and why.  Lists come from the collection where
it brings some (recorded answers belong to them), otherwise from the candidates of training queries, chosen and
shuffled by the seed.  Killed and started again, the stage finds its answers in the cache.
"""

import collections
import functools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from absl import logging

from idistill_jax import cli, config, dry_run, flow, records
from idistill_jax.data import deal, example, tables
from idistill_jax.llm import asking, estimate, prompt, ranking, session, workers
from idistill_jax.workdir import artifacts

STATUSES = "statuses.json"
# One JSON object for each list that was left out; the manifest names a few of them.
DROPPED = "dropped.jsonl"
_LISTS_PER_SHARD = 50_000
Shown = TypeVar("Shown", records.CandidateList, records.RankedList)


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.labels
  if made_elsewhere := tables.load_rankings(job.inputs["collection"]):
    take_over(job, made_elsewhere)
    return
  lists = to_be_ordered(job)
  plan = session.plan(cfg, job.cfg.seed)
  with session.Session(cfg, job.cache) as opened:
    outcomes = opened.label(lists, plan)
    model = opened.provider.model

  list_dropped(job, outcomes, model)
  rankings = list(ranked(job, outcomes, model))
  summary = summarise(outcomes, cfg)
  if not rankings:
    raise ValueError(f"none of {len(lists)} lists got a usable answer: {workers.told(job.drops)}; "
                     + session.told_again(job.out / DROPPED, job.cache))
  example.write_records(job.out, artifacts.RANKINGS, rankings, shards=-(-len(rankings) // _LISTS_PER_SHARD))
  (job.out / STATUSES).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(
    lists=len(rankings),
    asked=len(lists),
    paid=sum(labelled.paid for outcome in outcomes for labelled in outcome.answers),
    complete=summary["complete"],
    repaired=summary["repaired"],
    **summary["usage"],
    template=prompt.LISTWISE,
  )


def to_be_ordered(job: artifacts.Job) -> list[ranking.Unordered]:
  """The lists that are asked about, with their texts."""
  cfg = job.cfg.labels
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  lists = tables.load_lists(job.inputs["collection"])
  if lists is None:
    candidates = example.read_records(job.inputs["candidates"], artifacts.CANDIDATES, records.CandidateList)
    lists = sampled(candidates, size=cfg.list_size, window=cfg.window, seed=job.cfg.seed)
    if cfg.provider != "replay":
      lists = tuple(_of_each_text_one(job, lists, queries))
    if (longest := max((len(one.passage_ids) for one in lists), default=cfg.list_size)) < cfg.list_size:
      logging.warning("lists have %d passages at most, not labels.list_size=%d: the candidates are no more", longest,
                      cfg.list_size)  # fmt: skip
  elif cfg.provider != "replay" and (len(lists) < cfg.lists or any(
    len(one.passage_ids) != cfg.list_size for one in lists)):  # fmt: skip
    logging.warning("the collection brings %d lists of its own, and they are asked about as they are, in place of "
                    "labels.lists=%d of labels.list_size=%d", len(lists), cfg.lists, cfg.list_size)
  kept = list(usable(job, lists, queries, passages))[: cfg.lists]
  if not kept:
    without = "" if queries.of_split("train") else "; no query is for training: set collection.train_fraction"
    raise ValueError(f"no list to ask about: of {len(lists)} lists {workers.told(job.drops)}{without}")
  # One text for all lists that a passage is in.
  text = functools.cache(lambda passage_id: passages.by_id(passage_id).full_text)
  return [
    ranking.Unordered(
      shown.query_id, shown.passage_ids, queries.by_id(shown.query_id).text, tuple(map(text, shown.passage_ids))
    )
    for shown in kept
  ]


def take_over(job: artifacts.Job, made_elsewhere: Sequence[records.RankedList]) -> None:
  """Rankings that the collection brings are labels as they stand: nobody is asked.  Where fewer are wanted, the seed
  draws them, as it does lists to be asked about, and they stay in their order."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  found = list(usable(job, made_elsewhere, queries, passages))
  places = sorted(range(len(found)), key=lambda place: deal.drawn(f"{job.cfg.seed}/{found[place].query_id}"))
  kept = [found[place] for place in sorted(places[: job.cfg.labels.lists])]
  if not kept:
    raise ValueError(f"none of {len(made_elsewhere)} rankings can be learned from: {workers.told(job.drops)}")
  longer = sum(len(one.passage_ids) > job.cfg.labels.list_size for one in kept)
  if len(kept) < job.cfg.labels.lists or longer:
    logging.warning("%d rankings, %d of them longer than labels.list_size=%d, are labels as they are, in place of "
                    "labels.lists=%d", len(kept), longer, job.cfg.labels.list_size, job.cfg.labels.lists)
  list_dropped(job)
  example.write_records(job.out, artifacts.RANKINGS, kept)
  statuses = {"complete": 0, "repaired": 0, **count(one.status for one in kept)}
  summary = statuses | {
    "repairs": count(reason for one in kept for reason in one.repairs),
    "position_bias": position_bias((one.permutation, one.filled_places) for one in kept),
  }
  (job.out / STATUSES).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
  job.count(lists=len(kept), made_elsewhere=len(kept), **statuses)


def print_estimate(runner: cli.Runner) -> None:
  """What the stage would ask, cost and take, before anything is asked."""
  dry_run.print_counted(runner, "labels", lambda: _counted(runner.job(flow.STAGES["labels"])))


def _counted(job: artifacts.Job) -> str:
  cfg = job.cfg.labels
  if made_elsewhere := tables.load_rankings(job.inputs["collection"]):
    return f"{len(made_elsewhere):,} rankings were made elsewhere: nobody is asked"
  lists, plan = to_be_ordered(job), session.plan(cfg, job.cfg.seed)
  return estimate.with_cache(cfg, job.cache, lambda knows: estimate.of_lists(lists, plan, cfg, knows))


def sampled(
  candidates: Iterable[records.CandidateList], *, size: int, window: int, seed: int
) -> tuple[records.CandidateList, ...]:
  """The best `size` of each list; the lists in a drawn order.

  A list that one prompt holds is shuffled, so that no order can be copied; a longer one keeps its order, from
  which the windows bring the best up, and each window is shuffled when it is shown.  A shorter run asks about
  the first lists of a longer one: each query's place and shuffle depend on seed and id alone.
  """

  def arranged(found: records.CandidateList) -> tuple[str, ...]:
    best = found.passage_ids[:size]
    return shuffled(best, f"{seed}/{found.query_id}") if len(best) <= window else best

  # Cut before they are sorted: candidates are five times as deep as what is shown, and of logs there are millions.
  best = (records.CandidateList(query_id=found.query_id, passage_ids=arranged(found), scores=())
          for found in candidates)
  return tuple(sorted(best, key=lambda shown: deal.drawn(f"{seed}/{shown.query_id}")))


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


def _of_each_text_one(
  job: artifacts.Job, lists: Iterable[records.CandidateList], queries: tables.Queries
) -> Iterator[records.CandidateList]:
  """Logs of what people typed repeat themselves, and each list is paid for; the first that is drawn stands for all."""
  seen: set[str] = set()
  for shown in lists:
    text = " ".join(queries.by_id(shown.query_id).text.casefold().split()) if shown.query_id in queries else None
    if text in seen:
      job.drop("list of a query that repeats another's text", shown.query_id)
    else:
      seen.update(() if text is None else (text,))
      yield shown


def list_dropped(job: artifacts.Job, outcomes: Iterable[ranking.Outcome] = (), model: str | None = None) -> None:
  """Drops what got no order, and writes down every list that was left out, before `model` was asked about it or after:
  then with the model and its answer, by which `AnswerCache.forget` knows."""
  rows: list[dict[str, str | None]] = [
    {"query_id": what, "reason": reason} for reason, dropped in job.drops.items() for what in dropped
  ]
  for outcome in outcomes:
    if isinstance(outcome, ranking.Unranked):
      query_id = outcome.unordered.query_id
      job.drop(outcome.reason, query_id)
      logging.log_first_n(logging.WARNING, "%s: %s", 5, query_id, outcome.message)
      said = outcome.answers[-1].answer.text[:workers.LONGEST_EXCERPT] if outcome.answers else ""
      rows.append({"query_id": query_id, "model": model, "reason": outcome.reason, "message": outcome.message,
                   "answer": said})
  # Written without any as well: an attempt before this one may have left its own.
  (job.out / DROPPED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  job.count(dropped=len(rows), dropped_listed_in=DROPPED)


def ranked(
  job: artifacts.Job, outcomes: Iterable[ranking.Outcome], model: str
) -> Iterator[records.RankedList]:
  """Records of complete and repaired orders."""
  for outcome in outcomes:
    if isinstance(outcome, ranking.Unranked):
      continue
    usage = workers.Tally()
    usage.add("", [(labelled.answer, labelled.paid) for labelled in outcome.answers])
    yield records.RankedList(
      query_id=outcome.unordered.query_id,
      passage_ids=tuple(outcome.unordered.passage_ids[place] for place in outcome.parsed.order),
      status=outcome.parsed.status,
      permutation=outcome.parsed.order,
      filled_places=outcome.parsed.filled,
      repairs=outcome.parsed.reasons,
      agreement=outcome.agreement,
      weight=max(0.0, outcome.agreement) if job.cfg.labels.weigh_by_agreement else 1.0,
      template=prompt.fingerprint(),
      model=answered_by(outcome.answers, model),
      usage=() if usage.usage is None else (usage.usage.input_tokens, usage.usage.output_tokens),
    )


def answered_by(answers: Sequence[ranking.Labelled], asked: str) -> str:
  """The model that was asked, or those that answered in its name."""
  served = {labelled.answer.model for labelled in answers if labelled.answer.model}
  return ", ".join(sorted(name for name in served if not asking.is_model(asked, name))) or asked


def summarise(outcomes: Sequence[ranking.Outcome], cfg: config.Labels) -> dict[str, Any]:
  """What `statuses.json` holds; a function of the answers, whether they were cached or not."""
  tally = workers.Tally()
  for outcome in outcomes:
    tally.add("", [(labelled.answer, labelled.paid) for labelled in outcome.answers])
  done = [outcome for outcome in outcomes if isinstance(outcome, ranking.Ranked)]
  lost = [outcome.reason for outcome in outcomes if isinstance(outcome, ranking.Unranked)]
  answers = [labelled for outcome in outcomes for labelled in outcome.answers]
  return {
    "complete": sum(outcome.parsed.status == "complete" for outcome in done),
    "repaired": sum(outcome.parsed.status == "repaired" for outcome in done),
    "refused": count(reason.removeprefix("refused: ") for reason in lost if reason.startswith("refused: ")),
    "unanswered": count(reason for reason in lost if not reason.startswith("refused: ")),
    "repairs": count(reason for outcome in done for reason in outcome.parsed.reasons),
    "refused_answers": count(labelled.refusal for labelled in answers if labelled.parsed.status == "refused"),
    "lost_orders": count(reason for outcome in done for reason in outcome.lost),
    "agreement": round(sum(outcome.agreement for outcome in done) / len(done), 4) if done and cfg.orders > 1 else None,
    "position_bias": position_bias((labelled.parsed.order, labelled.parsed.filled) for labelled in answers),
    "usage": tally.bill(session.prices(cfg)),
    "answered_by": count(labelled.answer.model for labelled in answers if labelled.answer.model),
    "template": prompt.fingerprint(),
  }


def count(names: Iterable[str]) -> dict[str, int]:
  return dict(sorted(collections.Counter(names).items()))


def position_bias(answers: Iterable[tuple[Sequence[int], Sequence[int]]]) -> float | None:
  """Mean Spearman correlation of shown place and rank over the passages that each answer names.

  answers: the places at which an answer's passages were shown, best first, and its places that were filled in, which
  come last.  1: every list comes back as it was shown; 0: the place does not matter.  None where no answer names two
  passages, or none is known to have been shown any.

  rho = 1 - 6 sum(d^2) / (n (n^2 - 1)) for ranks without ties (Spearman 1904).
  """
  correlations = []
  for order, filled in answers:
    named = order[: len(order) - len(filled)]
    n = len(named)
    if n < 2:
      continue
    place = {shown: i for i, shown in enumerate(sorted(named))}
    squares = sum((rank - place[shown]) ** 2 for rank, shown in enumerate(named))
    correlations.append(1 - 6 * squares / (n * (n * n - 1)))
  return round(sum(correlations) / len(correlations), 4) if correlations else None


if __name__ == "__main__":
  cli.main(flow.STAGES["labels"], estimate=print_estimate)
