"""Runs, judgements and corpus -> each test query with what the systems found for it, side by side."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from idistill_jax import records
from idistill_jax.data import example, tables
from idistill_jax.retrieval import answers, runs
from idistill_jax.workdir import artifacts

# Where these were measured they stand in front of all others.
FIRST_SYSTEMS = ("initial", "distilled", "ranker")
SHOWN_RESULTS = 5
SNIPPET_CHARACTERS = 320
# More queries than this make the page too heavy for a phone: those that changed most are kept.
MAX_QUERIES = 1500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
  """What makes a passage right, in the page's words: on a result, before a rank, before a list, for no rank."""

  tag: str
  rank: str
  listed: str
  missing: str


JUDGED = Evidence(tag="judged right", rank="judged passage", listed="Judged right", missing="not found")
# Where a collection has no judgements, a passage that holds an accepted answer; looked for in what is shown.
ANSWERED = Evidence(
  tag="holds an answer", rank="first with an answer", listed="Shown with an answer",
  missing=f"not in the first {SHOWN_RESULTS}",
)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
  """A passage that a system found."""

  passage_id: str
  relevant: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueryResults:
  """One test query.  delta: distilled minus initial on the main measure.  results: system -> the first few.
  relevant: ids of the right passages.  relevant_ranks: system -> rank of the best of them, None where there is none.
  answers: the accepted ones.  said: system -> what the reader answered from its passages."""

  id: str
  text: str
  delta: float | None
  relevant: tuple[str, ...]
  results: Mapping[str, tuple[Result, ...]]
  relevant_ranks: Mapping[str, int | None]
  answers: tuple[str, ...] = ()
  said: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snippet:
  """As much of a passage as is shown."""

  title: str
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
  """Queries that the page lists, how many it leaves out, and the passages that they name, by id."""

  queries: tuple[QueryResults, ...]
  left_out: int
  passages: Mapping[str, Snippet]
  evidence: Evidence = JUDGED


NOTHING = Shown(queries=(), left_out=0, passages={})


def gather(
  workdir: artifacts.Workdir, split: str, systems: Sequence[str], deltas: Mapping[str, float], relevant_from: int
) -> Shown:
  """Judged queries of the split with what each system found; deltas: query id -> distilled minus initial."""
  collection = workdir.folder("collection")
  if workdir.manifest("collection") is None:
    return NOTHING
  accepted = tables.load_answers(collection)
  has_judgements = (collection / "qrels" / f"{split}.tsv").exists() or not accepted
  judged = tables.load_qrels(collection, split) if has_judgements else {query_id: {} for query_id in accepted}
  paths = {system: workdir.folder("evaluate") / "runs" / f"{system}.trec" for system in _in_order(systems)}
  orders = {system: _orders(path) for system, path in paths.items() if path.exists()}
  said = _said(workdir.folder("answer") / "answers.jsonl")
  every = [
    dataclasses.replace(one, answers=accepted.get(one.id, ()), said=said.get(one.id, {}))
    for one in _results(tables.load_queries(collection).of_split(split), judged, orders, deltas, relevant_from)
  ]
  shown = _most_changed(every)
  wanted = {result.passage_id for query in shown for found in query.results.values() for result in found}
  passages = _passages(collection, wanted)
  if not has_judgements:
    # Another system may have found what the collection lacks.
    texts = {one: passages[one].text if one in passages else "" for one in wanted}
    in_context = answers.InContext({one.id: one.answers for one in shown}, texts.__getitem__)
    shown = [_by_answers(one, in_context) for one in shown]
  return Shown(
    queries=tuple(shown), left_out=len(every) - len(shown), evidence=JUDGED if has_judgements else ANSWERED,
    passages={one: Snippet(title=found.title, text=_shortened(found.text)) for one, found in passages.items()},
  )


def _in_order(systems: Sequence[str]) -> list[str]:
  return sorted(systems, key=lambda one: FIRST_SYSTEMS.index(one) if one in FIRST_SYSTEMS else len(FIRST_SYSTEMS))


def _by_answers(query: QueryResults, in_context: answers.InContext) -> QueryResults:
  """The query with those of its shown results marked that hold an answer."""
  ids = dict.fromkeys(result.passage_id for found in query.results.values() for result in found)
  relevant = tuple(one for one in ids if in_context.first_rank(query.id, [one]) is not None)
  results = {
    system: tuple(dataclasses.replace(one, relevant=one.passage_id in relevant) for one in found)
    for system, found in query.results.items()
  }
  ranks = {
    system: _first_rank([one.passage_id for one in found], relevant) for system, found in results.items()
  }
  return dataclasses.replace(query, relevant=relevant, results=results, relevant_ranks=ranks)


def _said(path: pathlib.Path) -> dict[str, dict[str, str]]:
  """query id -> system -> the reader's answer; empty where the answer stage asked nobody."""
  found: dict[str, dict[str, str]] = {}
  if path.exists():
    for line in path.read_text(encoding="utf-8").splitlines():
      one = json.loads(line)
      found.setdefault(one["query_id"], {})[one["system"]] = one["said"]
  return found


def _results(
  queries: Iterable[records.Query],
  qrels: tables.Qrels,
  orders: Mapping[str, Mapping[str, list[str]]],
  deltas: Mapping[str, float],
  relevant_from: int,
) -> Iterator[QueryResults]:
  for query in queries:
    # The evaluation has dropped and counted those without judgements.
    if query.id not in qrels:
      continue
    relevant = tuple(passage_id for passage_id, grade in qrels[query.id].items() if grade >= relevant_from)
    lists = {system: order.get(query.id, []) for system, order in orders.items()}
    yield QueryResults(
      id=query.id,
      text=query.text,
      delta=deltas.get(query.id),
      relevant=relevant,
      results={
        system: tuple(Result(passage_id=one, relevant=one in relevant) for one in order[:SHOWN_RESULTS])
        for system, order in lists.items()
      },
      relevant_ranks={system: _first_rank(order, relevant) for system, order in lists.items()},
    )


def _orders(path: pathlib.Path) -> dict[str, list[str]]:
  return {query_id: runs.ranked(results) for query_id, results in runs.read_trec(path).items()}


def _first_rank(order: Iterable[str], relevant: tuple[str, ...]) -> int | None:
  return next((rank for rank, passage_id in enumerate(order, start=1) if passage_id in relevant), None)


def _most_changed(queries: list[QueryResults]) -> list[QueryResults]:
  """At most MAX_QUERIES, in the collection's order; those with the largest change of either sign stay."""
  if len(queries) <= MAX_QUERIES:
    return queries
  kept = sorted(range(len(queries)), key=lambda i: (-abs(queries[i].delta or 0.0), queries[i].id))[
    :MAX_QUERIES
  ]
  return [queries[i] for i in sorted(kept)]


def _passages(collection: pathlib.Path, wanted: set[str]) -> dict[str, records.Passage]:
  """Streams over the corpus and keeps what is shown, so that its size does not matter."""
  if not wanted:
    return {}
  every = example.read_records(collection, tables.PASSAGES, records.Passage)
  return {passage.id: passage for passage in every if passage.id in wanted}


def _shortened(text: str) -> str:
  if len(text) <= SNIPPET_CHARACTERS:
    return text
  return text[:SNIPPET_CHARACTERS].rsplit(" ", 1)[0] + " …"
