"""Starting points of a collection, before anything is learned: BM25, the initial retriever, and both fused.

Where passages have titles, the retriever a second time, reading them as BEIR does: before the text, with a space.

    python -m benchmarks.first_stages --config=configs/scifact.py --workdir=runs/first_scifact

Runs the stages collection and candidates, asks no LLM, and prints a Markdown row a system with 95 % intervals.
"""

import numpy as np

from idistill_jax import artifacts, cli
from idistill_jax.data import similarity, tables
from idistill_jax.retrieval import bm25, exact, itself, runs, summary
from idistill_jax.stages import candidates, collection, evaluate
from idistill_jax.train import inference

MEASURES = ("MRR@10", "nDCG@10", "recall@100", "answer@1", "answer@5", "answer@20")


def measure(runner: cli.Runner) -> None:
  for stage in (collection.STAGE, candidates.STAGE):
    runner.run(stage)
  folders = {name: runner.workdir.folder(name) for name in ("collection", "candidates")}
  job = artifacts.Job(cfg=runner.cfg, out=runner.workdir.root, inputs=folders, cache=runner.workdir.cache)
  cfg = runner.cfg.evaluate
  passages, table = tables.load_passages(folders["collection"]), tables.load_queries(folders["collection"])
  qrels, accepted = evaluate.judgements(job), tables.load_answers(folders["collection"])
  queries = evaluate.measurable(job, table, qrels if qrels is not None else accepted)
  ids = [query.id for query in queries]

  embedded = similarity.load(folders["candidates"])
  queries_QxE = embedded.queries_QxE[np.array([table.row(one) for one in ids])]
  own = itself.of(queries, passages, qrels or {})
  depth = cfg.depth + bool(own)
  found = {
    "BM25": bm25.Bm25(passages.texts, passages.ids).search([query.text for query in queries], depth),
    "dense": exact.Exact(embedded.passages_PxE, passages.ids).search(queries_QxE, depth),
  }
  if any(passage.title for passage in passages.items):
    joined_PxE = inference.load_retriever(runner.cfg, None).encode_passages(
      [f"{passage.title} {passage.text}".strip() for passage in passages.items])
    found["dense, title and text joined by a space"] = exact.Exact(joined_PxE, passages.ids).search(queries_QxE, depth)
  systems = {
    name: evaluate.without(job, name, runs.from_hits(ids, passages.ids, hits), own, cfg.depth)
    for name, hits in found.items()
  }
  systems["hybrid"] = runs.fused([systems["dense"], systems["BM25"]], cfg.depth)
  measured = evaluate.measure(systems, ids, qrels, accepted, passages, cfg.relevant_from)
  said = summary.summarise(measured, [], cfg.resamples)

  shown = [name for name in MEASURES if name in said["measures"]]
  print(f"| {runner.cfg.name} ({len(ids)}) | " + " | ".join(shown) + " |")
  for system, means in said["systems"].items():
    values = (
      "{:.3f} [{:.3f}, {:.3f}]".format(means[name], *said["intervals"][system][name]) for name in shown
    )
    print(f"| {system} | " + " | ".join(values) + " |")


if __name__ == "__main__":
  cli.run_app(measure)
