"""LLM rankings made elsewhere (JSONL) -> ranked lists: labels that nobody has to pay for again.

A line names the query (`qid` or `query_id`) and holds either `ranking`, passage ids best first, or `candidates`, ids
in the order shown, with the LLM's raw `response`, which is parsed as a live answer would be.  RankLLM's records and
those of the quickstart have these forms.
"""

import os
from collections.abc import Iterator

from idistill_jax import config, records
from idistill_jax.data import collection
from idistill_jax.data.corpora import jsonl
from idistill_jax.llm import parse


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
      rankings[one.query_id] = one
  whole = collection.with_rankings(found, tuple(rankings.values()), drops)
  if not whole.rankings:
    raise collection.CollectionError(
      f"{cfg.rankings}: no ranking of a query and passages of {found.title}"
      + (f" by {cfg.rankings_model!r}" if cfg.rankings_model else "")
    )
  return whole


def read(
  path: str | os.PathLike[str], model: str | None, drops: list[collection.Drop]
) -> Iterator[records.RankedList]:
  """Rankings in file order; another model's are passed over, refused answers go to `drops`."""
  for row in jsonl.read(path):
    if model is not None and row.values.get("model") != model:
      continue
    query_id = jsonl.text(row, "qid" if "qid" in row.values else "query_id")
    if "ranking" in row.values:
      found = records.RankedList(query_id=query_id, passage_ids=jsonl.texts(row, "ranking"), status="complete")
    else:
      shown = jsonl.texts(row, "candidates")
      parsed = parse.parse(jsonl.text(row, "response"), len(shown))
      if parsed.status == "refused":
        drops.append(collection.Drop("refused LLM answer", row.where))
        continue
      order = tuple(shown[place] for place in parsed.order)
      found = records.RankedList(
        query_id=query_id, passage_ids=order, status=parsed.status, filled_places=parsed.filled
      )
    if len(set(found.passage_ids)) != len(found.passage_ids) or len(found.passage_ids) < 2:
      drops.append(collection.Drop("LLM ranking that names a passage twice or fewer than two", row.where))
      continue
    yield found
