"""The LLM writes queries for sampled passages, where a corpus has none; off unless `queries.passages` asks for it.

    python -m idistill_jax.stages.queries --config=configs/my_corpus.py --workdir=runs/mine
    python -m idistill_jax.stages.queries --config=configs/my_corpus.py --workdir=runs/mine --estimate

-> queries-*.tfrecord; qrels/<split>.tsv: the passage each was written for; statuses.json: what was dropped, and why.
A query is kept where the initial retriever finds its passage, and where no query before it says the same.  Those of
some passages are held out, half for dev and half for test.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from idistill_jax import cli, config, dry_run, flow, processes, records
from idistill_jax.data import collection, corpora, deal, example, tables
from idistill_jax.llm import estimate, prompt, query_writing, session, workers
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

STATUSES, DROPPED = "statuses.json", "dropped.jsonl"
LENGTH_CLASSES = 3
_ROUNDS = 10
# Of queries and of passages that are multiplied with each other at once.
_ROWS, _BLOCK = 1024, 65_536


def run(job: artifacts.Job) -> None:
  if not config.writes_queries(job.cfg):
    raise config.ConfigError("queries.passages is none, so nothing is to be written: --config.queries.passages=700")
  whole = corpora.SOURCES[job.cfg.collection.source].load(job.cfg.collection)
  passages = _passages(whole, job.cfg.collection)
  retriever = inference.load_retriever(job.cfg, None, job)
  passages_PxE = retriever.encode_passages([passage.full_text for passage in passages])
  # Filled in the first process, which asks; what the others are told of it, as text, is what they help to encode.
  written: list[query_writing.Written] = []

  def ask() -> list[str]:
    drawn = _drawn(job, passages, passages_PxE)
    check_splits([one.id for one in drawn], whole, job.cfg)
    with session.Session(job.cfg.labels, job.cache) as asking:
      written.extend(query_writing.write(asking, drawn, job.cfg.queries.passage_tokens))
    return [one.text for one in _usable(job, written, asking.provider.model)]

  queries_QxE = retriever.encode_queries(processes.once(ask))
  processes.once(lambda: _keep(job, written, queries_QxE, passages, passages_PxE))


def _drawn(
  job: artifacts.Job, passages: Sequence[records.Passage], passages_PxE: np.ndarray
) -> list[query_writing.Passage]:
  """The passages that the LLM is to write queries for."""
  cfg, texts = job.cfg.queries, [passage.full_text for passage in passages]
  strata = stratify(unit(passages_PxE), [len(text.split()) for text in texts], cfg.clusters, job.cfg.seed)
  rows = sample(strata, min(cfg.passages or 0, len(passages)), job.cfg.seed)
  return [query_writing.Passage(passages[row].id, texts[row]) for row in rows]


def check_splits(passage_ids: Sequence[str], whole: collection.Collection, cfg: config.Config) -> None:
  """Raises ConfigError where queries written for these passages would leave nothing to measure by, or to train on.

  whole: what they are for, whose own queries may do.  The stage `collection` trains on those of a split that has such.
  """
  splits = {split_of(one, cfg.queries.held_out, cfg.seed) for one in passage_ids}
  own = collection.measurable(whole)
  measured = "test" in splits or own
  trained = splits & {"train", *own} or any(query.split == "train" for query in whole.queries) or (
    cfg.collection.train_fraction is not None)
  if not measured:
    lacking, raised = "is held out for test, so nothing could be measured", "queries.passages, queries.held_out"
  elif not trained:
    lacking, raised = "trains, so the LLM would have no list to order", "queries.passages, lower queries.held_out"
  else:
    return
  raise config.ConfigError(
    f"queries.passages={cfg.queries.passages} draws {len(passage_ids)} of the corpus, of which, with "
    f"queries.held_out={cfg.queries.held_out:g}, none {lacking}: raise {raised}, or take another seed; nothing was "
    "asked yet")


def _usable(
  job: artifacts.Job, written: Sequence[query_writing.Written], model: str
) -> list[query_writing.Written]:
  """Those that are queries at all; the others are dropped.  model: who was asked.  Raises ValueError where none is
  left."""
  dropped, usable = [one for one in written if one.dropped is not None], [one for one in written if one.dropped is None]
  for one in dropped:
    job.drop(str(one.dropped), query_id(one))
  rows = ({"query_id": one.style, "passage_ids": [one.passage_id], "model": model, "reason": one.dropped,
           "answer": one.answer and one.answer.answer.text[:workers.LONGEST_EXCERPT]} for one in dropped)
  (job.out / DROPPED).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  if not usable:
    raise ValueError(f"none of {len(written)} answers is a usable query: {workers.told(job.drops)}; "
                     + session.told_again(job.out / DROPPED, job.cache))
  return usable


def _keep(job: artifacts.Job, written: Sequence[query_writing.Written], queries_QxE: np.ndarray,
          passages: Sequence[records.Passage], passages_PxE: np.ndarray) -> None:
  """Writes the queries that find their passage and say something new; queries_QxE: of those that are usable."""
  cfg, usable = job.cfg.queries, [one for one in written if one.dropped is None]
  row_of = {passage.id: row for row, passage in enumerate(passages)}
  own_Q = np.array([row_of[one.passage_id] for one in usable])
  found_Q = places(queries_QxE, passages_PxE, own_Q) < (cfg.round_trip_depth or len(passages))
  fresh_Q = first_of_their_kind(unit(queries_QxE), found_Q, cfg.near_duplicate)
  kept = []
  for one, found, fresh in zip(usable, found_Q, fresh_Q, strict=True):
    if not found:
      job.drop("its passage is not found by it", query_id(one))
    elif not fresh:
      job.drop("says what an earlier query says", query_id(one))
    else:
      kept.append(one)
  if not kept:
    raise ValueError(f"no query finds its own passage within queries.round_trip_depth={cfg.round_trip_depth} places")
  _save(job, written, kept)


def print_estimate(runner: cli.Runner) -> None:
  """What the stage would ask, cost and take, before anything is asked."""
  dry_run.print_counted(runner, "queries", lambda: _counted(runner.cfg, runner.workdir.cache))


def _counted(cfg: config.Config, cache: pathlib.Path) -> str:
  passages = _passages(corpora.SOURCES[cfg.collection.source].load(cfg.collection), cfg.collection)
  shown = [query_writing.Passage(passage.id, passage.full_text) for passage in passages]
  count, tokens = min(cfg.queries.passages or 0, len(shown)), cfg.queries.passage_tokens
  return estimate.with_cache(
    cfg.labels, cache, lambda knows: estimate.of_queries(shown, count, tokens, cfg.labels, knows))


def _passages(whole: collection.Collection, cfg: config.Collection) -> tuple[records.Passage, ...]:
  return tuple(itertools.islice(whole.passages, cfg.max_passages))


def query_id(one: query_writing.Written) -> str:
  return f"{one.style.split('_')[1]}/{one.passage_id}"


def _save(
  job: artifacts.Job, written: Sequence[query_writing.Written], kept: Sequence[query_writing.Written]
) -> None:
  splits = {one.passage_id: split_of(one.passage_id, job.cfg.queries.held_out, job.cfg.seed) for one in kept}
  qrels: dict[str, tables.Qrels] = collections.defaultdict(dict)
  for one in kept:
    qrels[splits[one.passage_id]][query_id(one)] = {one.passage_id: 1}
  example.write_records(job.out, tables.QUERIES, [
    records.Query(id=query_id(one), text=one.text, split=splits[one.passage_id]) for one in kept
  ])
  for split, judged in qrels.items():
    tables.write_qrels(job.out / "qrels" / f"{split}.tsv", judged)
  tally = workers.Tally()
  for one in written:
    if one.answer is not None:
      tally.add("", [(one.answer.answer, one.answer.paid)])
  bill = tally.bill(session.prices(job.cfg.labels))
  statuses = {
    "asked": len(written),
    "kept": dict(collections.Counter(splits[one.passage_id] for one in kept)),
    "styles": dict(collections.Counter(one.style for one in kept)),
    "dropped": {reason: len(what) for reason, what in job.drops.items()},
    "usage": bill,
    "templates": [prompt.fingerprint(style) for style in prompt.QUERY_STYLES],
  }
  (job.out / STATUSES).write_text(json.dumps(statuses, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  job.count(asked=len(written), kept=len(kept), paid=tally.paid, **bill)


def unit(vectors_NxE: np.ndarray) -> np.ndarray:
  """At length 1: content is a direction, also where a retriever's lengths count in what it finds.

  As they are where they have it: divided by what float32 makes of 1, those of unit vectors would come out a little
  other, and so might be what the LLM is asked.
  """
  lengths_Nx1 = np.concatenate([np.linalg.norm(some_BxE, axis=1, keepdims=True) for some_BxE in _blocks(vectors_NxE)])
  return vectors_NxE if np.allclose(lengths_Nx1, 1, atol=1e-4) else vectors_NxE / np.maximum(lengths_Nx1, 1e-12)


def stratify(passages_PxE: np.ndarray, words: Sequence[int], clusters: int, seed: int) -> np.ndarray:
  """Stratum of each passage, int [P]: its cluster by k-means on the sphere, and its third by length.

  passages_PxE: at length 1.
  """
  rng = np.random.default_rng(seed)
  centres_CxE = passages_PxE[rng.choice(len(passages_PxE), min(clusters, len(passages_PxE)), replace=False)]
  for _ in range(_ROUNDS):
    cluster_P = np.concatenate([(some_BxE @ centres_CxE.T).argmax(1) for some_BxE in _blocks(passages_PxE)])
    for c in np.unique(cluster_P):
      total = passages_PxE[cluster_P == c].sum(0)
      centres_CxE[c] = total / max(float(np.linalg.norm(total)), 1e-12)
  by_length = np.argsort(np.asarray(words), kind="stable")
  third_P = np.empty(len(words), int)
  third_P[by_length] = np.arange(len(words)) * LENGTH_CLASSES // len(words)
  return cluster_P * LENGTH_CLASSES + third_P


def sample(strata_P: np.ndarray, count: int, seed: int) -> list[int]:
  """Rows of `count` passages: strata take turns, so that a small one is not drowned; a smaller count is a prefix."""
  rng = np.random.default_rng(seed)
  members = [np.flatnonzero(strata_P == stratum) for stratum in rng.permutation(np.unique(strata_P))]
  waiting = [rng.permutation(rows) for rows in members]
  turns = [int(rows[turn]) for turn in range(max(map(len, waiting))) for rows in waiting if turn < len(rows)]
  return turns[:count]


def places(queries_QxE: np.ndarray, passages_PxE: np.ndarray, own_Q: np.ndarray) -> np.ndarray:
  """How many passages are nearer to each query than its own, int [Q]."""
  found = []
  for start in range(0, len(own_Q), _ROWS):
    queries_RxE, own_R = queries_QxE[start : start + _ROWS], own_Q[start : start + _ROWS]
    # Multiplied twice, as not all products fit into memory; a query with its own alone would be rounded otherwise, and
    # a copy of its passage come out nearer.
    own_Rx1, nearer_R = np.empty((len(own_R), 1), passages_PxE.dtype), np.zeros(len(own_R), int)
    for number, some_BxE in enumerate(_blocks(passages_PxE)):
      here = own_R // _BLOCK == number
      own_Rx1[here, 0] = (queries_RxE @ some_BxE.T)[here, own_R[here] % _BLOCK]
    for some_BxE in _blocks(passages_PxE):
      nearer_R += (queries_RxE @ some_BxE.T > own_Rx1).sum(1)
    found.append(nearer_R)
  return np.concatenate(found)


def _blocks(rows_NxE: np.ndarray) -> Iterator[np.ndarray]:
  """All rows, so many at once that what is computed of them is small beside a large collection."""
  return (rows_NxE[start : start + _BLOCK] for start in range(0, len(rows_NxE), _BLOCK))


def first_of_their_kind(queries_QxE: np.ndarray, candidates_Q: np.ndarray, limit: float) -> np.ndarray:
  """Which candidates are no nearer than `limit` (cosine) to a candidate before them that is kept, bool [Q].

  queries_QxE: at length 1.
  """
  kept_Q = np.zeros(len(candidates_Q), bool)
  for i in np.flatnonzero(candidates_Q):
    kept_Q[i] = not (queries_QxE[np.flatnonzero(kept_Q)] @ queries_QxE[i] >= limit).any()
  return kept_Q


def split_of(passage_id: str, held_out: float, seed: int) -> str:
  """A function of seed and id, so that no passage has queries in two splits, and more passages move none."""
  drawn = deal.drawn(f"{seed}/{passage_id}")
  return "train" if drawn >= held_out else ("dev" if drawn < held_out / 2 else "test")


if __name__ == "__main__":
  cli.main(flow.STAGES["queries"], estimate=print_estimate)
