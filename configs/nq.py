"""Natural Questions over the 21 million passages of DPR's Wikipedia: 1,000 LLM-ranked lists, Contriever.

    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq

Passages: https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz as `data/psgs_w100.tsv.gz`; the questions
come from TensorFlow Datasets (`source launch/env.sh retrieval report llm hf tfds`).  Embeddings of 21 million passages
are 65 GB: for a host with 256 GB and accelerators.  There are no judgements: a passage is right that holds an answer.
Contriever is searched as it was published, by inner products of embeddings that keep their lengths.  Another encoder is
two flags, of the families that BUILD.md names, and compared as its own files say: --config.encoder.weights=<folder or
name on the Hub> --config.encoder.normalize=none.
Variants: `slice` takes the first 100,000 passages and 500 questions a split.
"""

from idistill_jax import config as c
from idistill_jax import recipes


def get_config(variant: str | None = None) -> c.Config:
  cfg = recipes.open_questions("nq", "natural_questions_open")
  match variant:
    case None:
      pass
    case "slice":
      cfg.collection.max_passages = 100_000
      cfg.collection.max_queries_per_split = 500
    case _:
      raise ValueError(f"configs/nq.py has no variant {variant!r}; it has: slice")
  return cfg
