"""The embedded collection: search over the docstrings of the running Python's standard library.

Passages come from the interpreter; queries, recorded lists and judgements from the package's
`data/quickstart`.
"""

import json
import pathlib
import platform
import subprocess
import sys

from idistill_jax import config, records
from idistill_jax.data import collection, tables
from idistill_jax.data.corpora import beir, docstrings, jsonl
from idistill_jax.workdir import outside

QUICKSTART = pathlib.Path(__file__).parents[1] / "quickstart"
_EXTRACTION_SECONDS = 300


def load(cfg: config.Collection) -> collection.Collection:
  """What this Python lacks of the passages that are named is left out and named in `drops`."""
  if cfg.path is not None:
    raise config.ConfigError(
      f"collection.path is {cfg.path!r}, but collection.source 'stdlib' reads no folder; "
      "unset it or set the source to 'beir'"
    )
  passages, not_importable = extract()
  judgements = {split: tables.read_qrels(QUICKSTART / "qrels" / f"{split}.tsv") for split in ("dev", "test")}
  return collection.assemble(
    title=f"standard library of Python {platform.python_version()}",
    passages=passages,
    queries=beir.read_queries(QUICKSTART / "queries.jsonl", judgements),
    judgements=judgements,
    lists=_read_lists(QUICKSTART / "llm_answers.jsonl"),
    pairs=_read_pairs(),
    drops=[
      collection.Drop("standard library module that cannot be imported here", name) for name in not_importable
    ],
  )


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the Python that is running, the rules of extraction and the packaged files."""
  files = sorted(path for path in QUICKSTART.rglob("*") if path.is_file())
  return config.digest(
    [
      sys.version,
      sys.platform,
      outside.sha256(docstrings.__file__),
      {path.relative_to(QUICKSTART).as_posix(): outside.sha256(path) for path in files},
    ]
  )


def extract() -> tuple[list[records.Passage], list[str]]:
  """(passages in corpus order, modules that could not be imported).

  Runs in a bare interpreter: in this process, packages that have been imported may have patched the library,
  and `python -OO` would have no docstrings.
  """
  command = [sys.executable, "-I", "-S", "-W", "ignore", docstrings.__file__]
  done = subprocess.run(
    command,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    encoding="utf-8",
    errors="replace",
    timeout=_EXTRACTION_SECONDS,
    check=False,
  )
  if done.returncode != 0:
    raise collection.CollectionError(
      f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}"
    )
  found = json.loads(done.stdout)
  return [records.Passage(**passage) for passage in found["passages"]], found["not_importable"]


def _read_lists(path: pathlib.Path) -> list[records.CandidateList]:
  """Query and passages of each recorded answer, passages in the order in which the LLM was shown them."""
  return [
    records.CandidateList(
      query_id=jsonl.text(row, "query_id"), passage_ids=jsonl.texts(row, "candidates"), scores=()
    )
    for row in jsonl.read(path)
  ]


def _read_pairs() -> tables.Qrels:
  """Which passage each train query was written for.

  For the contrastive baseline alone: the method knows nothing about train queries but the LLM's order.
  """
  return tables.read_qrels(QUICKSTART / "qrels" / "train_sources.tsv")
