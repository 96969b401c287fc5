"""A drawn corpus of any size, with queries, judgements and recorded orders, and a config that learns from it."""

import json
import pathlib
import shutil
from collections.abc import Iterator

import numpy as np

from benchmarks import models, texts
from idistill_jax import config
from idistill_jax.data import tables

WORDS, ASKED_WORDS, LISTED = 6, 3, 8
QUERIES = {"train": 64, "dev": 200, "test": 200}


def once(folder: pathlib.Path, passages: int) -> pathlib.Path:
  """The folder, prepared where it is not there; what was ended before it was whole is begun anew."""
  if not folder.exists():
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    prepare(half, passages)
    half.rename(folder)
  return folder


def prepare(folder: pathlib.Path, passages: int, seed: int = 0) -> pathlib.Path:
  """Weights, and a collection in BEIR's layout with recorded orders; returns where these are."""
  models.write(folder / "weights", layers=1, inner=models.WIDTH // 4)
  rng, words = np.random.default_rng(seed), texts.whole_words(folder / "weights")
  places_PxW = rng.integers(0, len(words), (passages, WORDS))
  beir, orders = folder / "beir", folder / "orders.jsonl"
  beir.mkdir()
  _write(beir / "corpus.jsonl", ({"_id": f"p{row}", "text": " ".join(words[place] for place in places)}
                                 for row, places in enumerate(places_PxW)))
  asked = {split: rng.choice(passages, (count, LISTED), replace=False) for split, count in QUERIES.items()}
  _write(beir / "queries.jsonl", (
    {"_id": f"{split}{number}", "text": " ".join(words[place] for place in places_PxW[rows[0], :ASKED_WORDS])}
    for split, of_split in asked.items() for number, rows in enumerate(of_split)))
  for split, of_split in asked.items():
    judged = {f"{split}{number}": {f"p{rows[0]}": 1} for number, rows in enumerate(of_split)}
    tables.write_qrels(beir / "qrels" / f"{split}.tsv", judged)
  _write(orders, ({"qid": f"train{number}", "ranking": [f"p{row}" for row in rows]}
                  for number, rows in enumerate(asked["train"])))
  return orders


def _write(path: pathlib.Path, lines: Iterator[dict[str, object]]) -> None:
  with path.open("w", encoding="utf-8") as out:
    out.writelines(json.dumps(line) + "\n" for line in lines)


def experiment(folder: pathlib.Path, passages: int, shards: int) -> config.Config:
  short = {"passages_per_list": 4, "lists_per_batch": 16}
  return config.Config(
    name="corpus",
    collection=config.Collection(source="beir", path=str(folder / "beir"), rankings=str(folder / "orders.jsonl")),
    encoder=config.Encoder(weights=str(folder / "weights"), query_tokens=8, passage_tokens=16, row_tokens=64,
                           tokens_per_step=2048),
    direct=config.Distillation(**short),
    ranker=config.Ranker(**short),
    scores=config.Scores(depth=LISTED),
    retriever=config.Retriever(teacher="ranker", **short),
    index=config.Index(kind="scann", scann_shard_passages=-(-passages // shards)),
  )
