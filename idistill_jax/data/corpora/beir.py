"""A folder in BEIR's layout: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv` or TREC's `.txt`; each may end in
`.gz`.

A query's split is its `metadata.split` where it has one, else that of the judgements that hold it, else
train. Malformed lines, missing or repeated ids and an empty corpus are errors; what is merely empty or points
nowhere is left out and named.
"""

from collections.abc import Iterator, Mapping

from idistill_jax import config, records
from idistill_jax.data import characters, collection, stream, tables
from idistill_jax.data.corpora import files, jsonl
from idistill_jax.workdir import outside


def load(cfg: config.Collection) -> collection.Collection:
  """The collection in `cfg.path`; raises CollectionError, FileNotFoundError or ConfigError."""
  folder = files.folder(cfg)
  judgements, corpus = files.judgements(folder), files.file(folder, "corpus", ".jsonl")
  return collection.assemble(
    title=characters.repaired(folder.resolve().name),
    passages=stream.Stream(lambda: read_passages(corpus)),
    queries=read_queries(files.file(folder, "queries", ".jsonl"), judgements),
    judgements=judgements,
    answers=read_answers(files.file(folder, "queries", ".jsonl")),
  )


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the contents of every file that `load` reads."""
  return files.of_contents(files.folder(cfg), ".jsonl")


def read_passages(path: outside.Path) -> Iterator[records.Passage]:
  """Passages of a corpus file in file order; `title` may be absent."""
  for row, item_id, text in jsonl.with_texts(jsonl.identified(path), ("text",)):
    yield records.Passage(id=item_id, title=jsonl.words(row, ("title",)) or "", text=text)


def read_queries(path: outside.Path, judgements: Mapping[str, tables.Qrels]) -> Iterator[records.Query]:
  """Queries of a file in file order, each with its split."""
  for row, item_id, text in jsonl.with_texts(jsonl.identified(path), ("text",)):
    split = tables.split_of(item_id, jsonl.split(_stated(row), ("metadata.split",)), judgements)
    yield records.Query(id=item_id, text=text, split=split)


def read_answers(path: outside.Path) -> dict[str, tuple[str, ...]]:
  """Query id -> `metadata.answers`, of the queries that have some."""
  found = {}
  for row in jsonl.read(path):
    metadata = row.values.get("metadata")
    # SciFact and others keep things of other kinds there; a list of strings under this very key is meant for us.
    if isinstance(metadata, dict) and "answers" in metadata:
      found[jsonl.own_id(row)] = files.accepted(row.where, metadata["answers"])
  return {query_id: answers for query_id, answers in found.items() if answers}


def _stated(row: jsonl.Row) -> jsonl.Row:
  # Collections keep all kinds of things in `metadata`; only a string under this very key is meant for us.
  metadata = row.values.get("metadata")
  split = metadata.get("split") if isinstance(metadata, dict) else None
  return jsonl.Row(row.where, {"metadata.split": split} if isinstance(split, str) else {})
