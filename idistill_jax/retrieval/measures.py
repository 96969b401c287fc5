"""Measures of a run against judgements, computed by trec_eval's own code (through ir-measures and
pytrec_eval).

Names: "MRR@k" (reciprocal rank of the first relevant passage among k), "nDCG@k" (graded gains), "hit@k" (1
where one of k is relevant, trec_eval's success), "recall@k" (share of the relevant ones among k).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from idistill_jax import extras
from idistill_jax.retrieval import runs

NAMES = ("MRR@10", "nDCG@10", "hit@1", "hit@10", "recall@20", "recall@100")

_NAME = re.compile(r"(MRR|nDCG|hit|recall)@([1-9]\d*)")


class MeasureError(ValueError):
  """A measure nobody knows, or judgements that nothing can be measured against."""


def per_query(
  qrels: Mapping[str, Mapping[str, int]],
  run: Mapping[str, Mapping[str, float]],
  measures: Sequence[str] = NAMES,
  *,
  relevant_from: int = 1,
) -> dict[str, dict[str, float]]:
  """measure -> query id -> value, for every query of the judgements, in their order.

  A query without results counts as 0, as does one that no passage is relevant to.  Queries of the run without
  judgements are left out.  relevant_from: the lowest grade that MRR, hit and recall take for relevant (nDCG
  reads the grades themselves).
  """
  if not qrels:
    raise MeasureError("there are no judgements to measure against")
  asked = {name: _parse(name) for name in measures}
  for query_id, results in run.items():
    runs.check_scores(query_id, results)
  judged_run = {query_id: dict(run[query_id]) for query_id in qrels if run.get(query_id)}
  # Of junk, as -2, trec_eval's code knows no more than that it is not relevant, and where a query has nothing else it
  # writes beyond its own memory.
  qrels = {query_id: {one: max(grade, 0) for one, grade in judged.items()} for query_id, judged in qrels.items()}
  found = {name: dict.fromkeys(qrels, 0.0) for name in measures}
  # trec_eval has no cut-off for reciprocal rank but reading only the first k results (its -M), done here per
  # cut-off. ir-measures would take MS MARCO's script for RR@k, which breaks ties the other way round.
  depths = {name: depth if kind == "MRR" else None for name, (kind, depth) in asked.items()}
  for depth in dict.fromkeys(depths.values()):
    names = [name for name in measures if depths[name] == depth]
    for metric_name, query_id, value in _trec_eval(
      qrels, _first(judged_run, depth), names, asked, relevant_from
    ):
      found[metric_name][query_id] = value
  return found


def check_grades(qrels: Mapping[str, Mapping[str, int]], relevant_from: int) -> None:
  """Raises MeasureError where no grade counts as relevant: all but nDCG would be 0 for whatever is found."""
  highest = max((grade for judged in qrels.values() for grade in judged.values()), default=relevant_from)
  if highest < relevant_from:
    mend = (f"set --config.evaluate.relevant_from={highest}" if highest > 0 else
            "take judgements that call anything relevant, or another --config.evaluate.split")
    raise MeasureError(f"evaluate.relevant_from is {relevant_from}, and the highest grade of the judgements is "
                       f"{highest}, so nothing would count as relevant: {mend}")


def mean(values: Mapping[str, float]) -> float:
  """Mean over queries; raises MeasureError where there are none."""
  if not values:
    raise MeasureError("there are no queries to take the mean over")
  return sum(values.values()) / len(values)


def _parse(name: str) -> tuple[str, int]:
  match = _NAME.fullmatch(name)
  if not match:
    raise MeasureError(f"unknown measure {name!r}; known are MRR@k, nDCG@k, hit@k and recall@k")
  return match[1], int(match[2])


def _first(run: runs.Run, depth: int | None) -> runs.Run:
  if depth is None:
    return run
  return {
    query_id: {one: results[one] for one in runs.ranked(results)[:depth]} for query_id, results in run.items()
  }


def _trec_eval(
  qrels: Any, run: runs.Run, names: Sequence[str], asked: Mapping[str, tuple[str, int]], relevant_from: int
) -> Iterator[tuple[str, str, float]]:
  """Yields (measure, query id, value) for queries that the run holds."""
  ir_measures = package()
  objects: dict[str, Any] = {
    "MRR": lambda cutoff: ir_measures.RR(rel=relevant_from),
    "nDCG": lambda cutoff: ir_measures.nDCG @ cutoff,
    "hit": lambda cutoff: ir_measures.Success(rel=relevant_from) @ cutoff,
    "recall": lambda cutoff: ir_measures.R(rel=relevant_from) @ cutoff,
  }
  named = {objects[asked[name][0]](asked[name][1]): name for name in names}
  for metric in ir_measures.pytrec_eval.evaluator(list(named), qrels).iter_calc(run):
    yield named[metric.measure], metric.query_id, metric.value


def package() -> Any:
  """ir_measures; raises ModuleNotFoundError, naming the extra, without it or what it needs."""
  with extras.needed("measuring", "retrieval"):
    import ir_measures
    import pytrec_eval  # noqa: F401  (ir-measures would only say that the provider is unavailable)
    import scipy  # noqa: F401  (for what is measured beside the means)
  return ir_measures
