"""A folder of JSONL or TSV files under their authors' own column names -> a collection.

`corpus.<ending>`, `queries.<ending>` and `qrels/<split>.tsv` (BEIR's form) or `qrels/<split>.txt` (TREC's); each may
end in `.gz`.  Names of columns are those that are met in the wild, see `PASSAGE` and `QUESTION`.
"""

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from idistill_jax import config, records
from idistill_jax.data import characters, collection, stream, tables
from idistill_jax.data.corpora import jsonl, tsv
from idistill_jax.workdir import outside

# What we call it -> what files call it, the first that is there counts.  A file of questions may hold passages too.
Columns = dict[str, tuple[str, ...]]
PASSAGE: Columns = {
  "id": ("_id", "id", "docid", "doc_id", "docno", "pid", "passage_id"),
  "text": ("text", "contents", "passage", "body"),
  "title": ("title",),
}
QUESTION: Columns = {
  "id": ("_id", "id", "qid", "query_id", "question_id"),
  "text": ("query", "question", "text", "contents", "body"),
  "answers": ("answers", "answer"),
  "split": ("split",),
}
_IDS = {*PASSAGE["id"], *QUESTION["id"]}
_NAMES = {name for columns in (PASSAGE, QUESTION) for names in columns.values() for name in names}
# Whoever begins and ends so has written a list of strings; "[sic] and so on [...]" is an answer.
_OF_STRINGS = re.compile(r"\[\s*(np\.str_\()?['\"].*['\"]\)?\s*\]", re.S)


def _is_header(fields: Sequence[str]) -> bool:
  """Whether a first line names columns: an id, or two of another kind, as one word alone may be a query."""
  known = _NAMES.intersection(fields)
  return len(set(fields)) == len(fields) and (len(known) >= 2 or not _IDS.isdisjoint(known))


Reader = Callable[[outside.Path], Iterator[jsonl.Row]]
READERS: dict[str, Reader] = {".jsonl": jsonl.read, ".tsv": lambda path: tsv.read(path, _is_header)}
QRELS = {".tsv": tables.read_qrels, ".txt": tables.read_trec_qrels}


def load(cfg: config.Collection) -> collection.Collection:
  """The collection in the folder `cfg.path`; raises CollectionError, FileNotFoundError or ConfigError."""
  top, ending = folder(cfg), f".{cfg.source}"
  split_qrels, corpus = judgements(top), file(top, "corpus", ending)
  queries, answers = read_questions(file(top, "queries", ending), split_qrels)
  return collection.assemble(
    title=characters.repaired(top.resolve().name),
    passages=stream.Stream(lambda: read_passages(corpus)),
    queries=queries,
    judgements=split_qrels,
    answers=answers,
  )


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the contents of every file that `load` reads."""
  return of_contents(folder(cfg), f".{cfg.source}")


def of_contents(folder: outside.Path, ending: str) -> str:
  """Hash of corpus, queries and judgements in a folder."""
  read = [*(file(folder, stem, ending) for stem in ("corpus", "queries")), *qrels(folder)]
  return config.digest({path.relative_to(folder).as_posix(): outside.sha256(path) for path in read})


def read_passages(path: outside.Path) -> Iterator[records.Passage]:
  """Passages of a corpus file as a stream, in file order."""
  for row, item_id, text in _identified(path, PASSAGE):
    yield records.Passage(id=item_id, title=jsonl.words(row, PASSAGE["title"]) or "", text=text)


def read_ids(path: outside.Path) -> Iterator[tuple[str, str]]:
  """`file:line` and id of a file that names passages: one a line, or where its ending is a corpus file's, as in that.
  Blank lines are skipped; an id may stand there twice."""
  if outside.plain_name(path).suffix in READERS:
    yield from ((row.where, _id(row, PASSAGE["id"])) for row in reader(path)(path))
    return
  for number, line in outside.text_lines(path, collection.CollectionError):
    if line.strip():
      yield f"{path}:{number}", line.strip()


def read_questions(
  path: outside.Path, split_qrels: dict[str, tables.Qrels]
) -> tuple[list[records.Query], dict[str, tuple[str, ...]]]:
  """Queries in file order, and the accepted answers of those that have some."""
  queries, answers = [], {}
  for row, item_id, text in _identified(path, QUESTION):
    split = tables.split_of(item_id, jsonl.split(row, QUESTION["split"]), split_qrels)
    queries.append(records.Query(id=item_id, text=text, split=split))
    if found := accepted(row.where, jsonl.first(row, QUESTION["answers"])):
      answers[item_id] = found
  return queries, answers


def accepted(where: str, value: Any) -> tuple[str, ...]:
  """Answers from a list, from text that writes a list (JSON, Python as DPR's, or numpy), from TriviaQA's object of one
  value and its aliases, or one answer; () for none.  Raises CollectionError for anything else."""
  if value is None:
    return ()
  found = value
  if isinstance(value, dict) and isinstance(aliases := value.get("aliases") or [], list):
    found = [value.get("value"), *aliases]
  elif isinstance(value, str):
    found = _written_list(value.strip()) if re.fullmatch(r"\s*\[.*\]\s*", value, re.S) else [value]
  if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
    raise collection.CollectionError(f"{where}: the answers must be a list of strings, found {value!r}")
  return tuple(dict.fromkeys(one for one in found if one.strip()))


def _written_list(text: str) -> Any:
  """What text in brackets says: a list, one answer, or None where it is a list of strings that cannot be read."""
  try:
    return json.loads(text)
  except ValueError:
    pass
  try:
    found, tokens = ast.literal_eval(text), list(tokenize.generate_tokens(io.StringIO(text).readline))
  except (ValueError, SyntaxError, tokenize.TokenError):
    return None if _OF_STRINGS.fullmatch(text) else [text]
  # numpy writes no commas, and Python reads strings that stand side by side as one.
  strings = [ast.literal_eval(one.string) for one in tokens if one.type == tokenize.STRING]
  if len(strings) == len(found) or not all(isinstance(one, str) for one in found):
    return found
  return None if any(one.string == "," for one in tokens) else strings


def _identified(path: outside.Path, columns: Columns) -> Iterator[tuple[jsonl.Row, str, str]]:
  """Rows with their id, which must be there, be unique and have no white space in it, and their text or ""."""
  rows = jsonl.with_ids(lambda: ((row, _id(row, columns["id"])) for row in reader(path)(path)))
  return jsonl.with_texts(rows, columns["text"])


def reader(path: outside.Path) -> Reader:
  """What reads a file, by its ending; raises CollectionError for one that nothing reads."""
  ending = outside.plain_name(path).suffix
  if ending not in READERS:
    raise collection.CollectionError(f"{path}: files end in {', '.join(READERS)}, or one of them and .gz")
  return READERS[ending]


def _id(row: jsonl.Row, names: Sequence[str]) -> str:
  value = jsonl.words(row, names)
  if value is None:
    raise collection.CollectionError(jsonl.lacking(row, "id", names))
  return value


def folder(cfg: config.Collection) -> outside.Path:
  """Where the collection lies; raises ConfigError where the config does not say."""
  if cfg.path is None:
    raise config.ConfigError(f"collection.path must name a folder when collection.source is {cfg.source!r}")
  return outside.at(cfg.path)


def file(folder: outside.Path, stem: str, ending: str) -> outside.Path:
  """`<stem><ending>` or its `.gz`; raises FileNotFoundError where neither is there, CollectionError where both are."""
  choices = [folder / f"{stem}{ending}", folder / f"{stem}{ending}.gz"]
  found = [path for path in choices if path.exists()]
  if not found:
    raise FileNotFoundError(
      f"{folder}: neither {choices[0].name} nor {choices[1].name} is there; collection.path must name a folder with "
      f"corpus{ending}, queries{ending} and qrels/"
    )
  if len(found) > 1:
    raise collection.CollectionError(f"{folder}: both {choices[0].name} and {choices[1].name} are there; remove one")
  return found[0]


def qrels(folder: outside.Path) -> list[outside.Path]:
  """The files of judgements in a folder's `qrels`, sorted.

  Raises CollectionError for another file there, as what it holds out would train; hidden ones are nobody's judgements.
  """
  found = sorted(path for path in (folder / "qrels").glob("*") if not path.name.startswith("."))
  for path in found:
    if outside.plain_name(path).suffix not in QRELS:
      raise collection.CollectionError(
        f"{path}: judgements end in {' or '.join(QRELS)}, or one of them and .gz; rename it, or move it out of qrels/"
      )
  return found


def judgements(folder: outside.Path) -> dict[str, tables.Qrels]:
  """Split -> its judgements; raises CollectionError for a split that has two files, and as reading them does."""
  found: dict[str, outside.Path] = {}
  for path in qrels(folder):
    split = outside.plain_name(path).stem
    if (other := found.setdefault(split, path)) is not path:
      raise collection.CollectionError(f"{other} and {path.name} both hold judgements of {split}: remove one")
  return {split: QRELS[outside.plain_name(path).suffix](path) for split, path in found.items()}
