"""A workdir as a run leaves it, made in a second: real records, runs, measures and manifests, drawn ranks."""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np

from idistill_jax import config as config_lib
from idistill_jax import records
from idistill_jax.data import example, tables
from idistill_jax.report import gather
from idistill_jax.retrieval import measures, runs, summary
from idistill_jax.workdir import artifacts

# Mean of the judged passage's drawn rank: smaller is better.
QUALITY = {"initial": 9.0, "bm25": 12.0, "ranker": 6.0, "distilled": 4.0, "hybrid": 5.0}
DEPTH = 100


def build(
  root: pathlib.Path,
  passages: Sequence[records.Passage],
  queries: Sequence[records.Query],
  qrels: tables.Qrels,
  quality: dict[str, float] = QUALITY,
  but: Sequence[str] = (),
) -> artifacts.Workdir:
  """Commits every stage but those in `but`; queries must be of the test split and judged."""
  workdir = artifacts.Workdir(root)
  cfg = config_lib.Config(name="quickstart")
  root.mkdir(parents=True, exist_ok=True)
  (root / "config.json").write_text(json.dumps(config_lib.as_dict(cfg)))
  random = np.random.default_rng(0)

  def collection(job: artifacts.Job) -> None:
    example.write_records(job.out, tables.PASSAGES, passages)
    example.write_records(job.out, tables.QUERIES, queries)
    tables.write_qrels(job.out / "qrels" / "test.tsv", qrels)
    accepted = [records.Answers(query_id=query.id, answers=(f"thing {i}",)) for i, query in enumerate(queries)]
    example.write_records(job.out, tables.ANSWERS, accepted)
    job.count(passages=len(passages), queries=len(queries), judgements={"test": len(qrels)})
    job.drop("judged passage that this Python lacks", "q0815 nntplib.NNTP")

  def labels(job: artifacts.Job) -> None:
    (job.out / "statuses.json").write_text(
      json.dumps(
        {
          "complete": 962,
          "repaired": 31,
          "refused": {"no ranking in the answer": 5},
          "unanswered": {"deadline": 2},
          "repairs": {"passages left out": 31},
          "position_bias": 0.1184,
          "usage": {"answers": 998, "input_tokens": 1_412_311, "output_tokens": 99_123, "dollars": None},
          "template": "ab12",
        }
      )
    )
    job.count(lists=993, input_tokens=1_412_311, output_tokens=99_123, dollars=0.6715)
    for number in range(7):
      job.drop("refused: no ranking in the answer", f"q{number:04}")

  def training(steps: int, rate: float) -> Callable[[artifacts.Job], None]:
    def run(job: artifacts.Job) -> None:
      rows = [
        {
          "step": step + 1,
          "loss": 1.6 * math.exp(-3 * step / steps) + 0.8 + 0.15 * random.standard_normal(),
          "grad_norm": 1.0,
          "lr": rate * min(step / (steps / 10), (steps - step) / (0.9 * steps)),
          "fill": 0.96,
          "tokens_per_second": 2900 + 200 * random.standard_normal(),
        }
        for step in range(steps)
      ]
      (job.out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
      job.count(steps=steps, rows=24)

    return run

  def evaluate(job: artifacts.Job) -> None:
    measured = {}
    for system, mean in quality.items():
      found = runs.from_order(_orders(passages, qrels, mean, random))
      runs.write_trec(job.out / "runs" / f"{system}.trec", found, system)
      measured[system] = measures.per_query(qrels, found)
    summary.write_per_query(job.out / "per_query.csv", measured)
    pairs = [
      (one, other)
      for one, other in (("distilled", "initial"), ("ranker", "initial"), ("distilled", "bm25"))
      if one in quality and other in quality
    ]
    (job.out / "metrics.json").write_text(
      json.dumps(
        {
          "split": "test",
          "queries": len(queries),
          **summary.summarise(measured, pairs, 2000, (("distilled", "initial"), "MRR@10")),
          "ann": {
            "recall@100 of exact": 0.9987,
            "exact_queries_per_second": 8123.4,
            "scann_queries_per_second": 20311.9,
            "exact_milliseconds": 4.2,
            "scann_milliseconds": 1.4,
            "index": "exact",
            "leaves": 61,
            "curve": [
              {"leaves_to_search": 6, "reorder": 1000, "recall": 0.81, "queries_per_second": 41_000.0,
               "milliseconds": 0.4},
              {"leaves_to_search": 22, "reorder": 1000, "recall": 0.97, "queries_per_second": 21_000.0,
               "milliseconds": 0.9},
              {"leaves_to_search": 61, "reorder": 1000, "recall": 0.999, "queries_per_second": 9_100.0,
               "milliseconds": 2.6},
            ],
            "options_against": "the whole vectors",
            "options_passages": [100_000, 21_015_324],
            "options": [
              {"dimensions": 384, "precision": "float32", "recall@100 of exact": 1.0, "bytes a passage": 1536,
               "MRR@10": 0.46, "nDCG@10": 0.53},
              {"dimensions": 192, "precision": "int8", "recall@100 of exact": 0.83, "bytes a passage": 192,
               "MRR@10": 0.41, "nDCG@10": 0.47},
            ],
          },
          "leakage": {"near_duplicate_queries": 0, "test_queries": len(queries), "examples": []},
          "dropped_queries": 0,
        }
      )
    )
    job.count(queries=len(queries))

  def answer(job: artifacts.Job) -> None:
    said = {"initial": "nothing", "distilled": "thing 0"}
    lines = [
      {"query_id": query.id, "system": system, "passage_ids": [], "said": words}
      for query in queries
      for system, words in said.items()
    ]
    (job.out / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = {
      system: {"EM": {query.id: float(random.random() < share) for query in queries}}
      for system, share in (("initial", 0.3), ("distilled", 0.6))
    }
    for values in measured.values():
      values["F1"] = {query_id: 0.2 + 0.7 * value for query_id, value in values["EM"].items()}
    summary.write_per_query(job.out / "per_query.csv", measured)
    found = summary.summarise(measured, [("distilled", "initial")], 500)
    (job.out / "metrics.json").write_text(json.dumps({"questions": len(queries), **found}))

  does = {
    "index": lambda job: job.count(**{"index": "scann", "tuned on": {"dev": 155, "unused train": 345}}),
    "answer": answer,
    "collection": collection,
    "labels": labels,
    "train_ranker": training(250, 2e-4),
    "train_retriever": training(90, 1e-4),
    "evaluate": evaluate,
  }
  reads = {"index": ("train_retriever",), "evaluate": ("train_retriever", "index")}
  for name in gather.SHOWN:
    if name not in but:
      stage = artifacts.Stage(
        name=name, reads=reads.get(name, ()), config=("name",), run=does.get(name, lambda job: job.count(things=3))
      )
      workdir.execute(stage, cfg)
  return workdir


def train_anew(workdir: artifacts.Workdir) -> None:
  """Another retriever, of which nothing is made yet."""
  run = lambda job: shutil.copy(workdir.folder("train_retriever") / "metrics.jsonl", job.out)
  stage = artifacts.Stage(name="train_retriever", reads=(), config=("name",), run=run)
  workdir.execute(stage, config_lib.Config(name="another"))


def _orders(passages, qrels, mean: float, random: np.random.Generator) -> dict[str, list[str]]:
  """Random passages, the judged one at a geometrically drawn rank."""
  ids = [passage.id for passage in passages]
  orders = {}
  for query_id, judged in qrels.items():
    order = [
      ids[i] for i in random.choice(len(ids), min(DEPTH, len(ids)), replace=False) if ids[i] not in judged
    ]
    for passage_id in judged:
      order.insert(random.geometric(1 / mean) - 1, passage_id)
    orders[query_id] = order[:DEPTH]
  return orders
