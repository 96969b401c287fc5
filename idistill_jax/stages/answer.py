"""A reader LLM answers the questions from each system's first passages: what distillation is worth in RAG.

    python -m idistill_jax.stages.answer --config=configs/wiki_qa.py --workdir=runs/wiki_qa
    python -m idistill_jax.stages.answer --config=configs/wiki_qa.py --workdir=runs/wiki_qa --estimate

collection, evaluate (runs, per_query.csv) -> metrics.json, per_query.csv (and .parquet), answers.jsonl (what was said).
The reader is asked through the providers that label lists: answers are cached, recorded ones are replayed.  Scored by
exact match, F1 and answer-in-context.  With `answer.systems` "none" nobody is asked and nothing is written.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from idistill_jax import cli, config, dry_run, flow, records
from idistill_jax.data import tables
from idistill_jax.llm import asking, estimate, prompt, protocol, reader, session, workers
from idistill_jax.retrieval import answers, runs, summary
from idistill_jax.retrieval import systems as systems_lib
from idistill_jax.workdir import artifacts

METRICS, PER_QUERY, PARQUET, ANSWERS = "metrics.json", "per_query.csv", "per_query.parquet", "answers.jsonl"
# The first is tested against the second, where both have answered.
TESTS = (("distilled", "initial"), ("ranker", "initial"), ("hybrid", "distilled"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
  """What the reader said to one question with the passages of one system."""

  query_id: str
  system: str
  passage_ids: tuple[str, ...]
  said: str


def run(job: artifacts.Job) -> None:
  systems = systems_lib.ANSWERED[job.cfg.answer.systems]
  if not systems:
    job.count(questions=0)
    return
  passages = tables.load_passages(job.inputs["collection"])
  accepted = tables.load_answers(job.inputs["collection"])
  found = found_by(job, systems)
  questions = questions_with(accepted, job)
  requests, nothing_found = asked(found, questions, passages, job.cfg.answer)
  said, bill = ask(job, requests)
  replies = complete(job, systems, said + without_passages(job, nothing_found))
  if not replies:
    raise ValueError(f"the reader answered none of {len(questions)} questions for all of {', '.join(systems)}")
  measured = score(systems, replies, accepted, passages, job.cfg.answer.passage_tokens)
  summary.write_per_query(job.out / PER_QUERY, measured)
  if job.cfg.evaluate.parquet:
    summary.write_parquet(job.out / PARQUET, measured)
  with open(job.out / ANSWERS, "w", encoding="utf-8") as file:
    for reply in replies:
      file.write(json.dumps(dataclasses.asdict(reply), ensure_ascii=False) + "\n")
  answered = len(replies) // len(systems)
  tests = [pair for pair in TESTS if set(pair) <= set(systems)]
  metrics = {"questions": answered, "usage": bill, **summary.summarise(measured, tests, job.cfg.evaluate.resamples)}
  (job.out / METRICS).write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(questions=answered, **bill, **{f"{system} F1": metrics["systems"][system]["F1"] for system in systems})


def found_by(job: artifacts.Job, systems: Sequence[str]) -> dict[str, runs.Run]:
  """system -> its run, as evaluate wrote it."""
  return {system: runs.read_trec(job.inputs["evaluate"] / "runs" / f"{system}.trec") for system in systems}


def questions_with(accepted: Mapping[str, Sequence[str]], job: artifacts.Job) -> list[records.Query]:
  """The questions that are asked; those that evaluate did not measure are dropped; raises ValueError for none."""
  # Not by the runs: a question for which nobody found anything is in none, and counts.
  measured = summary.read_query_ids(job.inputs["evaluate"] / PER_QUERY)
  queries = tables.load_queries(job.inputs["collection"]).of_split(job.cfg.evaluate.split)
  for query in queries:
    if query.id in accepted and query.id not in measured:
      job.drop("question that evaluate left out", query.id)
  questions = [query for query in queries if query.id in accepted and query.id in measured]
  if not questions:
    raise ValueError(
      f"no question of the split {job.cfg.evaluate.split!r} that was measured has answers: set answer.systems to none"
    )
  return questions[: job.cfg.answer.questions]


def print_estimate(runner: cli.Runner) -> None:
  """What the stage would ask, cost and take, before anything is asked."""
  systems = systems_lib.ANSWERED[runner.cfg.answer.systems]
  if not systems:
    print("nobody is asked: answer.systems is none")
    return
  dry_run.print_counted(runner, "answer", lambda: _counted(runner.job(flow.STAGES["answer"]), systems))


def _counted(job: artifacts.Job, systems: Sequence[str]) -> str:
  questions = questions_with(tables.load_answers(job.inputs["collection"]), job)
  passages = tables.load_passages(job.inputs["collection"])
  requests, _ = asked(found_by(job, systems), questions, passages, job.cfg.answer)
  once, cfg = list(dict.fromkeys(request for _, request in requests)), session.of_reader(job.cfg)
  said = estimate.with_cache(cfg, job.cache, lambda knows: estimate.of_questions(once, cfg, knows))
  return f"{len(systems)} systems, {said}"


def asked(
  found: Mapping[str, runs.Run], questions: Sequence[records.Query], passages: tables.Passages, cfg: config.Answer
) -> tuple[list[tuple[str, protocol.Request]], list[tuple[str, str]]]:
  """(system, request) for every question and system that found something for it, (system, query id) for the others."""
  requests, nothing_found = [], []
  for system, run_of in found.items():
    for question in questions:
      ids = tuple(runs.ranked(run_of.get(question.id, {}))[: cfg.passages])
      if not ids:
        nothing_found.append((system, question.id))
        continue
      texts = [passages.by_id(one).full_text for one in ids]
      text = reader.render(question.text, texts, cfg.passage_tokens)
      requests.append((system, protocol.Request(question.id, ids, text)))
  return requests, nothing_found


def without_passages(job: artifacts.Job, nothing_found: Sequence[tuple[str, str]]) -> list[Reply]:
  """Nobody is asked where a system found nothing: it has no answer, which is wrong, as a query without results is."""
  for system, query_id in nothing_found:
    job.drop(f"question for which {system} found nothing (counts as wrong)", query_id)
  return [Reply(query_id=query_id, system=system, passage_ids=(), said="") for system, query_id in nothing_found]


@dataclasses.dataclass(frozen=True, slots=True)
class Silence:
  """A request that got no answer."""

  reason: str
  message: str


async def one(asker: asking.Asker, request: protocol.Request) -> asking.Asked | Silence:
  """Raises protocol.Stop and protocol.Pending."""
  try:
    return await asker.ask(request)
  except protocol.NotRecorded as e:
    return Silence("not recorded", str(e))
  except protocol.Unanswered as e:
    return Silence(e.reason, str(e))


def summary_of(outcome: asking.Asked | Silence) -> workers.Summary:
  if isinstance(outcome, Silence):
    return outcome.reason, []
  return "answered", [(outcome.answer, outcome.paid)]


def ask(
  job: artifacts.Job, requests: Sequence[tuple[str, protocol.Request]]
) -> tuple[list[Reply], dict[str, Any]]:
  """What the reader said, and its bill; unanswered requests are dropped by name.  Equal requests are asked once.

  Raises protocol.Stop, of the kind that came, saying how to do without a reader.
  """
  once = list(dict.fromkeys(request for _, request in requests))
  said: dict[protocol.Request, str] = {}
  cfg, tally = session.of_reader(job.cfg), workers.Tally()
  try:
    with session.Session(cfg, job.cache) as reading:
      outcomes = reading.each("answers", once, one, summary_of)
  except protocol.Stop as e:
    raise type(e)(f"{e}; for the report without a reader's answers: --config.answer.systems=none") from e
  for request, outcome in zip(once, outcomes, strict=True):
    tally.add(*summary_of(outcome))
    if isinstance(outcome, Silence):
      job.drop(outcome.reason, request.query_id)
      logging.log_first_n(logging.WARNING, "%s: %s", 5, request.query_id, outcome.message)
    else:
      said[request] = reader.said(outcome.answer.text)
  replies = [
    Reply(query_id=request.query_id, system=system, passage_ids=request.passage_ids, said=said[request])
    for system, request in requests if request in said
  ]  # fmt: skip
  return replies, tally.bill(session.prices(cfg))


def complete(job: artifacts.Job, systems: Sequence[str], replies: Sequence[Reply]) -> list[Reply]:
  """Replies to questions that the reader answered for every system, as tests compare pairs."""
  systems_of: dict[str, set[str]] = {}
  for reply in replies:
    systems_of.setdefault(reply.query_id, set()).add(reply.system)
  for query_id, answered in systems_of.items():
    if len(answered) < len(systems):
      job.drop("question answered for some systems only", query_id)
  return [reply for reply in replies if len(systems_of[reply.query_id]) == len(systems)]


def score(
  systems: Sequence[str],
  replies: Sequence[Reply],
  accepted: Mapping[str, Sequence[str]],
  passages: tables.Passages,
  passage_tokens: int,
) -> dict[str, dict[str, dict[str, float]]]:
  """system -> "EM", "F1", "answer in context" -> query id -> value.

  In context is what the reader was shown: title and text, cut as in the prompt, and not the whole text alone, as
  answer@k has it.
  """
  known = {reply.query_id: accepted[reply.query_id] for reply in replies}
  in_context = answers.InContext(known, lambda one: prompt.shown(passages.by_id(one).full_text, passage_tokens))
  measured: dict[str, dict[str, dict[str, float]]] = {
    system: {"EM": {}, "F1": {}, "answer in context": {}} for system in systems
  }
  for reply in replies:
    values, right = measured[reply.system], accepted[reply.query_id]
    values["EM"][reply.query_id] = answers.exact_match(reply.said, right)
    values["F1"][reply.query_id] = answers.f1(reply.said, right)
    found = in_context.first_rank(reply.query_id, reply.passage_ids)
    values["answer in context"][reply.query_id] = float(found is not None)
  return measured


if __name__ == "__main__":
  cli.main(flow.STAGES["answer"], estimate=print_estimate)
