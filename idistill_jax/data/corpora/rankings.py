"""LLM rankings made elsewhere -> ranked lists: labels that nobody has to pay for again.

A TREC run (`.trec`, `.run`, `.txt`), JSONL, or one JSON array (`.json`); each may end in `.gz`.  A line, or entry,
names the query (`qid` or `query_id`) and holds either `ranking`, passage ids best first, or `candidates`, ids in the
order shown, with the LLM's raw `response`, which is parsed as a live answer would be, as the quickstart's are; or it is
one of RankLLM's results: `query` with its `qid`, and `candidates`, best first, with their `docid`.
"""

import dataclasses
import gzip
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from idistill_jax import config, outside, records
from idistill_jax.data import collection
from idistill_jax.data.corpora import jsonl
from idistill_jax.llm import parse
from idistill_jax.retrieval import runs


def add(found: collection.Collection, cfg: config.Collection) -> collection.Collection:
  """The collection with the rankings that `cfg.rankings` names, those of `cfg.rankings_model` alone where set.

  One a query: the first.  What is left out is named; raises CollectionError where no ranking is left.
  """
  if cfg.rankings is None:
    return found
  drops: list[collection.Drop] = []
  rankings = {}
  for one in read(cfg.rankings, cfg.rankings_model, drops):
    if one.query_id in rankings:
      drops.append(collection.Drop("second LLM ranking of a query", one.query_id))
    else:
      rankings[one.query_id] = _without_itself(one, found, drops)
  whole = collection.with_rankings(found, tuple(rankings.values()), drops)
  if not whole.rankings:
    raise collection.CollectionError(
      f"{cfg.rankings}: no ranking of a query and passages of {found.title}"
      + (f" by {cfg.rankings_model!r}" if cfg.rankings_model else "")
    )
  return whole


def _without_itself(
  ranking: records.RankedList, found: collection.Collection, drops: list[collection.Drop]
) -> records.RankedList:
  """The ranking without a passage that is its query (see `retrieval.itself`), which is named."""
  own = ranking.query_id
  if own not in ranking.passage_ids or any(qrels.get(own, {}).get(own, 0) > 0 for qrels in found.qrels.values()):
    return ranking
  drops.append(collection.Drop("passage of an LLM ranking that is its query", own))
  places = [place for place, one in enumerate(ranking.passage_ids) if one != own]
  return dataclasses.replace(
    ranking, passage_ids=tuple(ranking.passage_ids[place] for place in places),
    filled_places=tuple(new for new, place in enumerate(places) if place in ranking.filled_places),
  )  # fmt: skip


def read(
  path: str | os.PathLike[str], model: str | None, drops: list[collection.Drop]
) -> Iterator[records.RankedList]:
  """Rankings in file order; another model's are passed over, refused answers go to `drops`."""
  of_run = runs.system_of(path) is not None
  for where, found in _of_run(path, model) if of_run else _of_json(path, model, drops):
    if len(set(found.passage_ids)) != len(found.passage_ids) or len(found.passage_ids) < 2:
      drops.append(collection.Drop("LLM ranking that names a passage twice or fewer than two", where))
    else:
      yield found


def _of_run(path: str | os.PathLike[str], model: str | None) -> Iterator[tuple[str, records.RankedList]]:
  if model is not None:
    raise config.ConfigError(f"{path} holds the ranking of one system: unset collection.rankings_model")
  for query_id, results in runs.read_trec(path).items():
    order = tuple(runs.ranked(results))
    yield f"{path}: {query_id}", records.RankedList(query_id=query_id, passage_ids=order, status="complete")


def _rows(path: outside.Path) -> Iterator[jsonl.Row]:
  """Lines of a file, or entries of its array; raises CollectionError."""
  if pathlib.PurePath(path.name.removesuffix(".gz")).suffix != ".json":
    yield from jsonl.read(path)
    return
  try:
    data = path.read_bytes()
    entries = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
  except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as e:
    raise collection.CollectionError(f"{path}: not JSON: {e}; JSON lines belong into a file that ends in .jsonl") from e
  if not isinstance(entries, list):
    raise collection.CollectionError(f"{path}: expected a JSON array, found {type(entries).__name__}")
  for number, entry in enumerate(entries, start=1):
    if not isinstance(entry, dict):
      raise collection.CollectionError(
        f"{path}: entry {number}: expected an object, found {entry!r:.80}; RankGPT's permutations are such an array, "
        "whose queries and passages lie in another file: join them into lines of `qid`, `candidates` and `response`"
      )
    yield jsonl.Row(f"{path}: entry {number}", entry)


def _of_json(
  path: str | os.PathLike[str], model: str | None, drops: list[collection.Drop]
) -> Iterator[tuple[str, records.RankedList]]:
  for row in _rows(outside.at(path)):
    if model is not None and row.values.get("model") != model:
      continue
    query = row.values.get("query")
    query_id = _id(row.where, query.get("qid") if isinstance(query, dict) else jsonl.first(row, ("qid", "query_id")))
    candidates = row.values.get("candidates")
    status: parse.Status = "complete"
    filled: tuple[int, ...] = ()
    if "ranking" in row.values:
      order = _ids(row.where, row.values["ranking"])
    elif isinstance(candidates, list) and all(isinstance(one, dict) for one in candidates):
      order = _ids(row.where, [one.get("docid") for one in candidates])
    else:
      shown = _ids(row.where, candidates)
      parsed = parse.parse(jsonl.text(row, "response"), len(shown))
      if parsed.status == "refused":
        drops.append(collection.Drop("refused LLM answer", row.where))
        continue
      order, status, filled = tuple(shown[place] for place in parsed.order), parsed.status, parsed.filled
    yield row.where, records.RankedList(query_id=query_id, passage_ids=order, status=status, filled_places=filled)


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
  return str(found)
