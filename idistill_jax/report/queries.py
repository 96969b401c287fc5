"""Runs, judgements and corpus -> each test query with what the systems found for it, side by side."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from idistill_jax import artifacts, records
from idistill_jax.data import example, tables
from idistill_jax.retrieval import runs

# Systems whose results are shown side by side.
SIDE_BY_SIDE = ("initial", "distilled", "ranker", "bm25", "hybrid")
SHOWN_RESULTS = 5
SNIPPET_CHARACTERS = 320
# More queries than this make the page too heavy for a phone: those that changed most are kept.
MAX_QUERIES = 1500


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Result:
  """A passage that a system found."""

  passage_id: str
  relevant: bool


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueryResults:
  """One test query.  delta: distilled minus initial on the main measure.  results: system -> the first few.
  relevant_ranks: system -> rank of the best judged passage, None where the run does not hold one.  answers: the
  accepted ones.  said: system -> what the reader answered from its passages."""

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


NOTHING = Shown(queries=(), left_out=0, passages={})


def gather(workdir: artifacts.Workdir, split: str, deltas: Mapping[str, float], relevant_from: int) -> Shown:
  """Judged queries of the split with what each system found; deltas: query id -> distilled minus initial."""
  collection = workdir.folder("collection")
  if workdir.manifest("collection") is None:
    return NOTHING
  accepted = tables.load_answers(collection)
  judged = _judged(collection, split, accepted)
  paths = {system: workdir.folder("evaluate") / "runs" / f"{system}.trec" for system in SIDE_BY_SIDE}
  orders = {system: _orders(path) for system, path in paths.items() if path.exists()}
  said = _said(workdir.folder("answer") / "answers.jsonl")
  every = [
    dataclasses.replace(one, answers=accepted.get(one.id, ()), said=said.get(one.id, {}))
    for one in _results(tables.load_queries(collection).of_split(split), judged, orders, deltas, relevant_from)
  ]
  shown = _most_changed(every)
  wanted = {result.passage_id for query in shown for found in query.results.values() for result in found}
  return Shown(queries=tuple(shown), left_out=len(every) - len(shown), passages=_snippets(collection, wanted))


def _judged(collection: pathlib.Path, split: str, accepted: Mapping[str, object]) -> tables.Qrels:
  """Judgements of the split; where answers stand in for them, the questions with none."""
  if (collection / "qrels" / f"{split}.tsv").exists() or not accepted:
    return tables.load_qrels(collection, split)
  return {query_id: {} for query_id in accepted}


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


def _snippets(collection: pathlib.Path, wanted: set[str]) -> dict[str, Snippet]:
  """Streams over the corpus and keeps what is shown, so that its size does not matter."""
  found: dict[str, Snippet] = {}
  if not wanted:
    return found
  for passage in example.read_records(collection, tables.PASSAGES, records.Passage):
    if passage.id in wanted:
      found[passage.id] = Snippet(title=passage.title, text=_shortened(passage.text))
  return found


def _shortened(text: str) -> str:
  if len(text) <= SNIPPET_CHARACTERS:
    return text
  return text[:SNIPPET_CHARACTERS].rsplit(" ", 1)[0] + " …"
