"""Questions with answers from TensorFlow Datasets over a file of passages -> a collection for open-domain QA.

`questions` is natural_questions_open or a trivia_qa config such as trivia_qa/unfiltered.nocontext; passages come
from `path`, DPR's `psgs_w100.tsv.gz` or a JSONL file.  There are no judgements: a passage is right that holds an
answer.  Data sets are prepared in, and read from, `TFDS_DATA_DIR`.
"""

from collections.abc import Iterator
from typing import Any

from idistill_jax import config, extras, outside, records
from idistill_jax.data import collection, stream
from idistill_jax.data.corpora import files

# The test sets of both hide their answers or are the official dev set: the field measures on validation.
_SPLITS = {"train": "train", "validation": "test"}


def load(cfg: config.Collection) -> collection.Collection:
  """Raises ConfigError, CollectionError, and ModuleNotFoundError naming the extra."""
  path, questions = _checked(cfg)
  queries: list[records.Query] = []
  answers: dict[str, tuple[str, ...]] = {}
  drops: list[collection.Drop] = []
  for split, row in _rows(questions):
    query_id = f"{split}-{len(queries):06d}"
    accepted = _answers(row)
    if accepted:
      queries.append(records.Query(id=query_id, text=_decoded(row["question"]), split=split))
      answers[query_id] = accepted
    else:
      drops.append(collection.Drop("question without an answer", _decoded(row["question"])[:80]))
  return collection.assemble(
    title=f"{questions} over {path.name}", passages=stream.Stream(lambda: files.read_passages(path)),
    queries=queries, judgements={}, answers=answers, drops=drops,
  )  # fmt: skip


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the passages, and the data set's name and version."""
  path, questions = _checked(cfg)
  return config.digest([questions, str(_builder(questions).version), outside.sha256(path)])


def _checked(cfg: config.Collection) -> tuple[outside.Path, str]:
  if cfg.path is None or cfg.questions is None:
    raise config.ConfigError(
      "collection.source 'tfds' needs collection.path (a file of passages, such as psgs_w100.tsv.gz) and "
      "collection.questions (natural_questions_open, trivia_qa/unfiltered.nocontext)"
    )
  path = outside.at(cfg.path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: collection.path names no file of passages; DPR's is "
      "https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz"
    )
  return path, cfg.questions


def _rows(questions: str) -> Iterator[tuple[str, dict[str, Any]]]:
  builder = _builder(questions)
  if lacking := [name for name in ("question", "answer") if name not in builder.info.features]:
    raise config.ConfigError(
      f"collection.questions is {questions!r}, whose rows have no {' and no '.join(lacking)}; take "
      "natural_questions_open for natural_questions, or a trivia_qa config"
    )
  builder.download_and_prepare()
  for theirs, ours in _SPLITS.items():
    if theirs in builder.info.splits:
      for row in _package().as_numpy(builder.as_dataset(split=theirs)):
        yield ours, row


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
  """trivia_qa keeps the wordings that count in `aliases`, natural_questions_open in `answer`; others have one."""
  found = row["answer"]
  if isinstance(found, dict):
    found = [found["value"], *found["aliases"]]
  elif isinstance(found, str | bytes):
    found = [found]
  return tuple(dict.fromkeys(text for text in map(_decoded, found) if text.strip()))


def _decoded(text: Any) -> str:
  return text.decode() if isinstance(text, bytes) else str(text)


def _builder(questions: str) -> Any:
  return _package().builder(questions)


def _package() -> Any:
  with extras.needed("collection.source 'tfds'", "tfds"):
    import tensorflow_datasets
  return tensorflow_datasets
