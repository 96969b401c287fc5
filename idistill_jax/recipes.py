"""What several experiments in `configs/` have in common, as sections of a config."""

from typing import TypedDict

from idistill_jax import config as c


class Taught(TypedDict):
  """How the three models learn."""

  direct: c.Distillation
  ranker: c.Ranker
  scores: c.Scores
  retriever: c.Retriever


def from_direct() -> Taught:
  """For small embedding weights and about 1,000 lists: the ranker starts from the direct control, and its pupil is
  averaged with it (BUILD.md, results)."""
  return Taught(
    direct=c.Distillation(passages_per_list=4, lists_per_batch=32, epochs=2, optim=c.Optim(peak_lr=1e-4)),
    ranker=c.Ranker(head="pair_cosine", loss="listmle", top_places=1, passages_per_list=4, lists_per_batch=16,
                    start="direct", similarity_weight=30.0, optim=c.Optim(peak_lr=1.5e-4)),
    scores=c.Scores(depth=10, candidates="direct", lists="all"),
    retriever=c.Retriever(teacher="ranker", teacher_temperature=0.5, direct_share=0.5, reach=1.25,
                          passages_per_list=4, lists_per_batch=32, optim=c.Optim(peak_lr=1e-4)),
  )


def asked_of_gemini(*, lists: int, passage_tokens: int, max_dollars: float) -> c.Labels:
  """Lists of 20 for gemini-3.5-flash-lite, for so many dollars at most, a reader's among them.

  Prices are those listed for this model in November 2026; they only serve the estimate and the budget.
  Another model has none of these: `labels.priced_model`.
  """
  return c.Labels(
    provider="gemini", model="gemini-3.5-flash-lite", lists=lists, list_size=20, passage_tokens=passage_tokens,
    dollars_per_million_input_tokens=0.30, dollars_per_million_output_tokens=2.50,
    priced_model="gemini-3.5-flash-lite", max_dollars=max_dollars,
  )


def open_questions(name: str, questions: str) -> c.Config:
  """Questions with answers over DPR's 21 million passages of Wikipedia: 1,000 LLM-ranked lists, Contriever.

  Contriever searches by inner products of embeddings as they are, and was itself trained on them divided by 0.05:
  Izacard et al. (2022), "Unsupervised Dense Information Retrieval with Contrastive Learning", arXiv 2112.09118.
  questions: as `collection.questions`.
  """
  return c.Config(
    name=name,
    collection=c.Collection(source="tfds", path="data/psgs_w100.tsv.gz", questions=questions),
    encoder=c.Encoder(weights="facebook/contriever", normalize=False, query_tokens=64, passage_tokens=256,
                      row_tokens=512, tokens_per_step=65_536, inference_dtype="bfloat16"),
    candidates=c.Candidates(depth=100),
    labels=asked_of_gemini(lists=1000, passage_tokens=130, max_dollars=20.0),
    direct=c.Distillation(student_temperature=0.05),
    ranker=c.Ranker(head="pair_cosine", loss="listmle", passages_per_list=20, lists_per_batch=8, epochs=3),
    scores=c.Scores(depth=20, lists="all", unlabelled_queries=None),
    retriever=c.Retriever(teacher="ranker", loss="kl_list", passages_per_list=20, lists_per_batch=32, epochs=1,
                          student_temperature=0.05),
    index=c.Index(kind="scann"),
    evaluate=c.Evaluate(rerank="all"),
    answer=c.Answer(systems="before_after"),
  )
