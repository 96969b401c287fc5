"""Questions with answers from TensorFlow Datasets over a file of passages -> a collection for open-domain QA.

`questions` is natural_questions_open, natural_questions or a trivia_qa config such as trivia_qa/unfiltered.nocontext;
passages come from `path`, DPR's `psgs_w100.tsv.gz` or a JSONL file.  There are no judgements: a passage is right that
holds an answer.  Data sets are prepared in, and read from, `TFDS_DATA_DIR`.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from idistill_jax import config, extras, records
from idistill_jax.data import collection, stream
from idistill_jax.data.corpora import files
from idistill_jax.workdir import outside

# The test sets of both hide their answers or are the official dev set: the field measures on validation.
_SPLITS = {"train": "train", "validation": "test"}
# Of so many questions of train, one is held out for dev, as in DPR's files (8,757 and 8,837, a tenth of each).
ONE_IN = 10
# Longer short answers make a question none for an open domain: Lee et al. (2019), "Latent retrieval for weakly
# supervised open domain question answering", from which natural_questions_open comes.
_LONGEST_ANSWER_TOKENS = 5


def load(cfg: config.Collection) -> collection.Collection:
  """Raises ConfigError, CollectionError, and ModuleNotFoundError naming the extra."""
  path, questions = _checked(cfg)
  queries: list[records.Query] = []
  answers: dict[str, tuple[str, ...]] = {}
  drops: list[collection.Drop] = []
  for split, row in _rows(questions):
    text, accepted = _question(row), _answers(row)
    if split == "train" and _is_held_out(text):
      split = "dev"
    query_id = f"{split}-{len(queries):06d}"
    if accepted:
      queries.append(records.Query(id=query_id, text=text, split=split))
      answers[query_id] = accepted
    else:
      drops.append(collection.Drop("question without an answer", text[:80]))
  return collection.assemble(
    title=f"{questions} over {path.name}", passages=stream.Stream(lambda: files.read_passages(path)),
    queries=queries, judgements={}, answers=answers, drops=drops,
  )  # fmt: skip


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the passages, the data set's name and version, and how much of it is held out."""
  path, questions = _checked(cfg)
  return config.digest([questions, str(_builder(questions).version), outside.sha256(path), ONE_IN])


def _checked(cfg: config.Collection) -> tuple[outside.Path, str]:
  if cfg.path is None or cfg.questions is None:
    raise config.ConfigError(
      "collection.source 'tfds' needs collection.path (a file of passages, such as psgs_w100.tsv.gz) and "
      "collection.questions (natural_questions_open, natural_questions, trivia_qa/unfiltered.nocontext)"
    )
  path = outside.at(cfg.path)
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: collection.path names no file of passages; DPR's is "
      "https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz"
    )
  return path, cfg.questions


def _rows(questions: str) -> Iterator[tuple[str, dict[str, Any]]]:
  builder, package = _builder(questions), _package()
  features = builder.info.features
  answers = next((name for name in ("answer", "annotations") if name in features), None)
  if "question" not in features or answers is None:
    raise config.ConfigError(
      f"collection.questions is {questions!r}, whose rows have no question, or neither answer nor annotations; take "
      "natural_questions_open, natural_questions or a trivia_qa config"
    )
  builder.download_and_prepare()
  # Not the pages beside them, which are most of natural_questions and of trivia_qa.
  read = package.decode.PartialDecoding({"question": True, answers: True})
  for theirs, ours in _SPLITS.items():
    if theirs in builder.info.splits:
      for row in package.as_numpy(builder.as_dataset(split=theirs, decoders=read)):
        yield ours, row


def _is_held_out(text: str) -> bool:
  return int(hashlib.sha256(text.encode()).hexdigest(), 16) % ONE_IN == 0


def _question(row: dict[str, Any]) -> str:
  found = row["question"]
  return _decoded(found["text"] if isinstance(found, dict) else found)


def _answers(row: dict[str, Any]) -> tuple[str, ...]:
  """trivia_qa keeps the wordings that count in `aliases`, natural_questions_open in `answer`, natural_questions in the
  short answers of its annotators; others have one."""
  found = row["answer"] if "answer" in row else _short(row["annotations"]["short_answers"])
  if isinstance(found, dict):
    found = [found["value"], *found["aliases"]]
  elif isinstance(found, str | bytes):
    found = [found]
  return tuple(dict.fromkeys(text for text in map(_decoded, found) if text.strip()))


def _short(answers: dict[str, Any]) -> list[bytes]:
  """Texts of all annotators' short answers, which come as ragged tensors, an annotator a row."""
  text, start, end = (answers[name].flat_values.numpy() for name in ("text", "start_token", "end_token"))
  return list(text[end - start <= _LONGEST_ANSWER_TOKENS])


def _decoded(text: Any) -> str:
  return text.decode() if isinstance(text, bytes) else str(text)


def _builder(questions: str) -> Any:
  return _package().builder(questions)


def _package() -> Any:
  with extras.needed("collection.source 'tfds'", "tfds"):
    import tensorflow_datasets
  return tensorflow_datasets
