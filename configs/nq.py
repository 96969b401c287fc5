"""Natural Questions over the 21 million passages of DPR's Wikipedia: 1,000 LLM-ranked lists, Contriever.

    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq

Passages: https://dl.fbaipublicfiles.com/dpr/wikipedia_split/psgs_w100.tsv.gz as `data/psgs_w100.tsv.gz`; the questions
come from TensorFlow Datasets (`source launch/env.sh retrieval report llm hf tfds`).  Embeddings of 21 million passages
are 65 GB: for a host with 256 GB and accelerators.  There are no judgements: a passage is right that holds an answer.
Another encoder is a flag: --config.encoder.weights=<folder or name on the Hub>.
Variants: `slice` takes the first 100,000 passages and 500 questions a split.
"""

from idistill_jax import config as c


def get_config(variant: str | None = None) -> c.Config:
  cfg = c.Config(
    name="nq",
    collection=c.Collection(source="tfds", path="data/psgs_w100.tsv.gz", questions="natural_questions_open"),
    encoder=c.Encoder(weights="facebook/contriever", query_tokens=64, passage_tokens=256, row_tokens=512,
                      tokens_per_step=65_536),
    candidates=c.Candidates(depth=100),
    labels=c.Labels(provider="gemini", model="gemini-2.5-flash", lists=1000, list_size=20, passage_tokens=130),
    ranker=c.Ranker(head="pair_cosine", loss="listmle", passages_per_list=20, lists_per_batch=8, epochs=3),
    scores=c.Scores(depth=20, lists="all", unlabelled_queries=None),
    retriever=c.Retriever(teacher="ranker", loss="kl_list", passages_per_list=20, lists_per_batch=32, epochs=1),
    index=c.Index(kind="scann"),
    evaluate=c.Evaluate(rerank="all"),
    answer=c.Answer(systems="before_after"),
  )
  match variant:
    case None:
      pass
    case "slice":
      cfg.collection.max_passages = 100_000
      cfg.collection.max_queries_per_split = 500
    case _:
      raise ValueError(f"configs/nq.py has no variant {variant!r}; it has: slice")
  return cfg
