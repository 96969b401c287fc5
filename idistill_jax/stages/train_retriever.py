"""A dual encoder learns the teacher's distribution over each list; the gradient goes into the retriever only.

    python -m idistill_jax.stages.train_retriever --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct (start), scores -> teacher-*.tfrecord (what it learned from), model/,
metrics.jsonl.
"""

from collections.abc import Callable, Iterator

from idistill_jax import cli, flow, records
from idistill_jax.data import example, tables
from idistill_jax.train import checkpoint, fit, inference, inputs
from idistill_jax.workdir import artifacts


def run(job: artifacts.Job) -> None:
  cfg = job.cfg.retriever
  params = fit.fit_retriever(job, "train retriever", cfg, teacher=TEACHERS[cfg.teacher](job), start=cfg.start)
  if cfg.direct_share is not None:
    params = fit.averaged(job, params, cfg.direct_share)
  if cfg.reach != 1.0:
    params = fit.reaching(job, params, cfg.reach)
  checkpoint.save_model(job.shared / inference.MODEL, params)
  job.count(teacher=cfg.teacher)


def _from_ranker(job: artifacts.Job) -> Iterator[records.ScoredList]:
  """The method: the ranker's scores on every list that it scored."""
  for one in example.read_records(job.inputs["scores"], artifacts.SCORES, records.ScoredList):
    logits = tuple(score / job.cfg.retriever.teacher_temperature for score in one.scores)
    yield records.ScoredList(query_id=one.query_id, passage_ids=one.passage_ids, scores=logits)


def _from_llm(job: artifacts.Job) -> Iterator[records.ScoredList]:
  """The control: the LLM's own order, no ranker between."""
  return inputs.orders_as_scores(job, job.cfg.retriever.order_temperature)


def _from_both(job: artifacts.Job) -> Iterator[records.ScoredList]:
  """The LLM's order where a list has one, the ranker's scores elsewhere."""
  ordered = list(_from_llm(job))
  yield from ordered
  seen = {one.query_id for one in ordered}
  yield from (one for one in _from_ranker(job) if one.query_id not in seen)


def _from_pairs(job: artifacts.Job) -> Iterator[records.ScoredList]:
  """The baseline: each query with the one passage it was generated from; other lists of the batch are negatives."""
  train = {query.id for query in tables.load_queries(job.inputs["collection"]).of_split("train")}
  for query_id, judged in tables.read_qrels(job.inputs["collection"] / "sources.tsv").items():
    if query_id in train:
      yield records.ScoredList(query_id=query_id, passage_ids=tuple(judged), scores=(0.0,) * len(judged))


TEACHERS: dict[str, Callable[[artifacts.Job], Iterator[records.ScoredList]]] = {
  "ranker": _from_ranker, "llm": _from_llm, "both": _from_both, "pairs": _from_pairs,
}

if __name__ == "__main__":
  cli.main(flow.STAGES["train_retriever"])
