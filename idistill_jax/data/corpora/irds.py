"""ir_datasets ids -> a collection: `msmarco-passage/train`, or several of one corpus with commas between.

The split of each is the last word of its id that is train, dev or test; any other id is a test collection, as
`msmarco-passage/trec-dl-2020/judged` is.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from idistill_jax import config, extras, records
from idistill_jax.data import collection, stream, tables
from idistill_jax.data.corpora import jsonl

_TEXT = ("text", "body", "abstract", "contents", "default_text")


def load(cfg: config.Collection) -> collection.Collection:
  """Passages of the first id's corpus, queries and judgements of all; raises CollectionError or ConfigError."""
  names = _names(cfg)
  datasets = {name: _package().load(name) for name in names}
  judgements: dict[str, tables.Qrels] = {}
  queries, repeated = {}, []
  for name, dataset in sorted(datasets.items(), key=lambda one: tables.held_out_first(split_of(one[0]))):
    split = split_of(name)
    for query_id, query in _identified(name, "query", dataset.queries_iter) if dataset.has_queries() else ():
      if query_id in queries:
        repeated.append(collection.Drop("query of a second data set", f"{name} {query_id}"))
      else:
        queries[query_id] = records.Query(id=query_id, text=query.default_text(), split=split)
    for one in dataset.qrels_iter() if dataset.has_qrels() else ():
      judged = judgements.setdefault(split, {}).setdefault(one.query_id, {})
      if judged.setdefault(one.doc_id, int(one.relevance)) != int(one.relevance):
        raise collection.CollectionError(
          f"{name}: the pair {one.query_id} {one.doc_id} is judged {judged[one.doc_id]} and {one.relevance}"
        )
  first = datasets[names[0]]
  if not first.has_docs():
    raise collection.CollectionError(f"{names[0]}: this id of ir_datasets has no documents")
  return collection.assemble(
    title=names[0], passages=stream.Stream(lambda: _passages(names[0], first)), queries=queries.values(),
    judgements=judgements, drops=repeated,
  )


def fingerprint(cfg: config.Collection) -> str:
  """The ids: ir_datasets checks the hashes of what it downloads."""
  return config.digest(_names(cfg))


def split_of(name: str) -> str:
  named = [word for word in name.split("/")[1:] if word in ("train", "dev", "test")]
  return named[-1] if named else "test"


def _names(cfg: config.Collection) -> list[str]:
  if not cfg.path:
    raise config.ConfigError("collection.path must name an id when collection.source is 'ir_datasets'")
  return [name.strip() for name in cfg.path.split(",")]


def _identified(name: str, kind: str, items: Callable[[], Iterable[Any]]) -> Iterator[tuple[str, Any]]:
  """(id, item), the ids checked as those of a file are."""
  rows = jsonl.with_ids(lambda: (
    (jsonl.Row(f"{name}: {kind} {number}", {"item": item}), getattr(item, f"{kind}_id"))
    for number, item in enumerate(items(), start=1)
  ))  # fmt: skip
  return ((item_id, row.values["item"]) for row, item_id in rows)


def _passages(name: str, dataset: Any) -> Iterator[records.Passage]:
  for passage_id, document in _identified(name, "doc", dataset.docs_iter):
    text = next((getattr(document, name) for name in _TEXT if hasattr(document, name)), None)
    text = text() if callable(text) else text
    yield records.Passage(id=passage_id, title=getattr(document, "title", None) or "", text=text or "")


def _package() -> Any:
  with extras.needed("collection.source 'ir_datasets'", "datasets"):
    import ir_datasets
  return ir_datasets
