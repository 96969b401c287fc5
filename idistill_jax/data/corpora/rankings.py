"""LLM rankings made elsewhere -> ranked lists: labels that nobody has to pay for again.

A TREC run (`.trec`, `.run`, `.txt`), JSONL, or one JSON array (`.json`); each may end in `.gz`.  A line, or entry,
names the query (`qid` or `query_id`) and holds either `ranking`, passage ids best first, or `candidates`, ids in the
order shown, with the LLM's raw `response`, which is parsed as a live answer would be, as the quickstart's are; or it is
one of RankLLM's results: `query` with its `qid`, and `candidates`, best first, with their `docid`.  Answers that lie
in a file of their own, as RankGPT's, are read by `permutations`.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from idistill_jax import config, records
from idistill_jax.data import collection, tables
from idistill_jax.data.corpora import jsonl, permutations
from idistill_jax.llm import parse
from idistill_jax.retrieval import itself, runs
from idistill_jax.workdir import outside


def add(found: collection.Collection, cfg: config.Collection) -> collection.Collection:
  """The collection with the rankings that `cfg.rankings` names, those of `cfg.rankings_model` alone where set.

  One a query: the first.  What is left out is named; raises CollectionError where no ranking is left.
  """
  if cfg.rankings is None:
    if cfg.rankings_shown is not None:
      raise config.ConfigError("collection.rankings_shown is what collection.rankings are about: name those too")
    return found
  drops: list[collection.Drop] = []
  rankings = {}
  for one in read(cfg, found.queries, drops):
    if one.query_id in rankings:
      drops.append(collection.Drop("second LLM ranking of a query", one.query_id))
    else:
      rankings[one.query_id] = one
  own = _own(found, rankings)
  kept = tuple(_without_itself(one, drops) if one.query_id in own else one for one in rankings.values())
  whole = collection.with_rankings(found, kept, drops)
  if not whole.rankings:
    raise collection.CollectionError(
      f"{cfg.rankings}: no ranking of a query and passages of {found.title}"
      + (f" by {cfg.rankings_model!r}" if cfg.rankings_model else "")
    )
  return whole


def _own(found: collection.Collection, rankings: Mapping[str, records.RankedList]) -> Set[str]:
  """Queries whose ranking holds a passage that is its query, see `retrieval.itself`."""
  named = {query_id for query_id, one in rankings.items() if query_id in one.passage_ids}
  if not named:
    return named
  judged = {query_id: of for qrels in found.qrels.values() for query_id, of in qrels.items()}
  return itself.of((query for query in found.queries if query.id in named),
                   tables.Passages(passage for passage in found.passages if passage.id in named), judged)


def _without_itself(ranking: records.RankedList, drops: list[collection.Drop]) -> records.RankedList:
  """The ranking without the passage that is its query, which is named."""
  drops.append(collection.Drop("passage of an LLM ranking that is its query", ranking.query_id))
  return ranking.without({ranking.query_id})


def read(
  cfg: config.Collection, queries: Iterable[records.Query], drops: list[collection.Drop]
) -> Iterator[records.RankedList]:
  """Rankings in file order; another model's are passed over, what the LLM did not say goes to `drops`.

  queries: the collection's, asked for the ids of texts where a file has texts alone.
  """
  for where, found in _in_file_order(cfg, queries, drops):
    if len(set(found.passage_ids)) != len(found.passage_ids) or len(found.passage_ids) < 2:
      drops.append(collection.Drop("LLM ranking that names a passage twice or fewer than two", where))
    else:
      yield found


def _in_file_order(
  cfg: config.Collection, queries: Iterable[records.Query], drops: list[collection.Drop]
) -> Iterator[tuple[str, records.RankedList]]:
  path, model = outside.at(str(cfg.rankings)), cfg.rankings_model
  if cfg.rankings_shown is not None:
    _refuse_model(path, model)
    return permutations.read(path, outside.at(cfg.rankings_shown), queries, drops)
  return _of_json(path, model, drops) if runs.system_of(path) is None else _of_run(path, model)


def _refuse_model(path: outside.Path, model: str | None) -> None:
  if model is not None:
    raise config.ConfigError(f"{path} holds the rankings of one system: unset collection.rankings_model")


def _of_run(path: outside.Path, model: str | None) -> Iterator[tuple[str, records.RankedList]]:
  _refuse_model(path, model)
  found: dict[str, list[runs.Line]] = {}
  for line in runs.read_lines(path):
    found.setdefault(line.query_id, []).append(line)
  for query_id, lines in found.items():
    # Not as a run is measured, where equal scores are put in order by their ids: who wrote an LLM's order beside the
    # scores of a first stage, place by place, may have some twice; ranks, or else the lines, say which is better.
    order = tuple(line.passage_id for line in sorted(lines, key=lambda line: (-line.score, line.rank)))
    yield f"{path}: {query_id}", records.RankedList(query_id=query_id, passage_ids=order, status="complete")


def _rows(path: outside.Path) -> Iterator[jsonl.Row]:
  """Lines of a file, or entries of its array; raises CollectionError."""
  if outside.plain_name(path).suffix != ".json":
    yield from jsonl.read(path)
    return
  for number, entry in enumerate(jsonl.entries(path), start=1):
    if not isinstance(entry, dict):
      raise collection.CollectionError(
        f"{path}: entry {number}: expected an object, found {entry!r:.80}; of RankGPT's permutations, which are such "
        "an array, name the file with their queries and passages too: collection.rankings_shown"
      )
    yield jsonl.Row(f"{path}: entry {number}", entry)


def _of_json(
  path: outside.Path, model: str | None, drops: list[collection.Drop]
) -> Iterator[tuple[str, records.RankedList]]:
  for row in _rows(path):
    if model is not None and row.values.get("model") != model:
      continue
    query = row.values.get("query")
    query_id = _id(row.where, query.get("qid") if isinstance(query, dict) else jsonl.first(row, ("qid", "query_id")))
    candidates = row.values.get("candidates")
    if "ranking" in row.values:
      order = _ids(row.where, row.values["ranking"])
    elif isinstance(candidates, list) and all(isinstance(one, dict) for one in candidates):
      order = _ids(row.where, [one.get("docid") for one in candidates])
    else:
      shown = _ids(row.where, candidates)
      parsed = parse.parse(jsonl.text(row, "response"), len(shown))
      if parsed.status == "refused":
        drops.append(collection.Drop("refused LLM answer", row.where))
      else:
        yield row.where, permutations.ranked(query_id, shown, parsed)
      continue
    yield row.where, records.RankedList(query_id=query_id, passage_ids=order, status="complete")


def _ids(where: str, found: Any) -> tuple[str, ...]:
  if not isinstance(found, list):
    raise collection.CollectionError(
      f"{where}: `ranking` or `candidates` must be a list of passage ids, or RankLLM's objects with `docid`, "
      f"found {found!r}"
    )
  return tuple(_id(where, one) for one in found)


def _id(where: str, found: Any) -> str:
  """An id as text; RankLLM writes numbers where a collection's ids are numbers."""
  if not isinstance(found, (str, int)) or isinstance(found, bool):
    raise collection.CollectionError(f"{where}: an id of a query or passage must be text or a number, found {found!r}")
  return jsonl.whole_id(where, str(found))
