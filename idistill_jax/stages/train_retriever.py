"""A dual encoder learns the teacher's distribution over each list; the gradient goes into the retriever only.

    python -m idistill_jax.stages.train_retriever --config=configs/quickstart.py --workdir=runs/quickstart

collection, candidates, labels, train_direct (start), scores -> teacher-*.tfrecord (what it learned from), model/,
metrics.jsonl.
"""

import dataclasses
from collections.abc import Callable, Sequence

from idistill_jax import by_row, cli, flow, records
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


def _from_ranker(job: artifacts.Job) -> Sequence[records.ScoredList]:
  """The method: the ranker's scores on every list that it scored."""
  def logits(one: records.ScoredList) -> records.ScoredList:
    return dataclasses.replace(one, scores=tuple(score / job.cfg.retriever.teacher_temperature for score in one.scores))

  return by_row.Each(logits, example.open_records(job.inputs["scores"], artifacts.SCORES, records.ScoredList))


def _from_llm(job: artifacts.Job) -> Sequence[records.ScoredList]:
  """The control: the LLM's own order, no ranker between."""
  return inputs.orders_as_scores(job, job.cfg.retriever.order_temperature)


def _from_both(job: artifacts.Job) -> Sequence[records.ScoredList | None]:
  """The LLM's order where a list has one, the ranker's scores elsewhere."""
  ordered, scored = _from_llm(job), _from_ranker(job)
  seen = {one.query_id for one in inputs.rankings(job)}

  def either(i: int) -> records.ScoredList | None:
    if i < len(ordered):
      return ordered[i]
    one = scored[i - len(ordered)]
    return None if one.query_id in seen else one

  return by_row.Each(either, range(len(ordered) + len(scored)))


def _from_pairs(job: artifacts.Job) -> Sequence[records.ScoredList]:
  """The baseline: each query with the one passage it was generated from; other lists of the batch are negatives."""
  train = {query.id for query in tables.load_queries(job.inputs["collection"]).of_split("train")}
  sources = tables.read_qrels(job.inputs["collection"] / tables.SOURCES)
  return [records.ScoredList(query_id=query_id, passage_ids=tuple(judged), scores=(0.0,) * len(judged))
          for query_id, judged in sources.items() if query_id in train]


TEACHERS: dict[str, Callable[[artifacts.Job], Sequence[records.ScoredList | None]]] = {
  "ranker": _from_ranker, "llm": _from_llm, "both": _from_both, "pairs": _from_pairs,
}

if __name__ == "__main__":
  cli.main(flow.STAGES["train_retriever"])
