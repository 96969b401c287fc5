"""Runs: query id -> passage id -> score, from hits, to and from TREC's form.

A run is ordered as trec_eval orders it, whatever the ranks in a file say: scores are compared as float32, the
higher first, and equal ones by passage id, the greater first.  Two scores that differ only beyond float32 are
a tie.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from idistill_jax.retrieval import hits as hits_lib
from idistill_jax.workdir import outside

Run = dict[str, dict[str, float]]
# The constant of reciprocal rank fusion that its authors found to hold everywhere.
RRF_K = 60
# What run files end in, with or without .gz behind it.
ENDINGS = (".trec", ".run", ".txt")


class RunError(ValueError):
  """A run that cannot be read, written or measured; the message names file and line, or query and passage."""


def ranked(results: Mapping[str, float]) -> list[str]:
  """Passage ids of one query, best first, in trec_eval's order."""
  return sorted(results, key=lambda passage_id: (np.float32(results[passage_id]), passage_id), reverse=True)


def from_hits(query_ids: Sequence[str], passage_ids: Sequence[str], hits: hits_lib.Hits) -> Run:
  """Run of a search, without places that did not match; queries that match nothing stay, empty."""
  if len(query_ids) != len(hits.rows):
    raise RunError(f"{len(query_ids)} query ids for hits of {len(hits.rows)} queries")
  return {
    query_id: {
      passage_ids[row]: float(score) for row, score in zip(rows[:found], scores[:found], strict=True)
    }
    for query_id, rows, scores, found in zip(
      _unique(query_ids), hits.rows, hits.scores, hits.found, strict=True
    )
  }


def from_order(orders: Mapping[str, Sequence[str]]) -> Run:
  """Run of rankings, best first: a passage scores how many stand below it, so nothing ties."""
  run: Run = {}
  for query_id, order in orders.items():
    run[query_id] = {passage_id: float(len(order) - place - 1) for place, passage_id in enumerate(order)}
    if len(run[query_id]) != len(order):
      raise RunError(f"query {query_id!r}: the ranking holds a passage twice")
  return run


def fused(found: Sequence[Mapping[str, Mapping[str, float]]], depth: int, k: int = RRF_K) -> Run:
  """Reciprocal rank fusion: a passage scores the sum of 1 / (k + rank) over the runs that hold it.

  The first `depth` of each query that any of the runs holds.  Cormack, Clarke and Buettcher, SIGIR 2009.
  """
  run: Run = {}
  for query_id in dict.fromkeys(query_id for one in found for query_id in one):
    scores: dict[str, float] = {}
    for one in found:
      for rank, passage_id in enumerate(ranked(one.get(query_id, {})), start=1):
        scores[passage_id] = scores.get(passage_id, 0.0) + 1 / (k + rank)
    run[query_id] = {passage_id: scores[passage_id] for passage_id in ranked(scores)[:depth]}
  return run


def write_trec(path: str | os.PathLike[str], run: Mapping[str, Mapping[str, float]], tag: str) -> None:
  """Writes `query Q0 passage rank score tag` lines, queries in the order of the run, ranks from 1.

  Raises RunError for an id or tag that TREC's form cannot hold (empty, or with white space) and a score that
  is not finite; then no file is written.  A query without results leaves no line.
  """
  check_word(tag, "the tag")
  lines = []
  for query_id, results in run.items():
    check_word(query_id, "the query id")
    check_scores(query_id, results)
    for rank, passage_id in enumerate(ranked(results), start=1):
      check_word(passage_id, f"query {query_id!r}: the passage id")
      lines.append(f"{query_id} Q0 {passage_id} {rank} {float(results[passage_id])!r} {tag}\n")
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(lines), encoding="utf-8", newline="\n")


def system_of(path: str | os.PathLike[str]) -> str | None:
  """The name of a file of a run without its endings, None for a file of another kind."""
  name = outside.plain_name(path)
  return name.stem if name.suffix in ENDINGS else None


class Line(NamedTuple):
  """A result of a TREC run; rank: infinite where its column holds no number."""

  query_id: str
  passage_id: str
  rank: float
  score: float


def read_trec(path: str | os.PathLike[str]) -> Run:
  """Reads a TREC run, gzipped or not, without blank lines; the rank column is not used, as in trec_eval.

  Raises RunError naming file and line.
  """
  run: Run = {}
  for line in read_lines(path):
    run.setdefault(line.query_id, {})[line.passage_id] = line.score
  return run


def read_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
  """The lines of a TREC run; raises as `read_trec` does."""
  seen: set[tuple[str, str]] = set()
  for number, line in outside.text_lines(outside.at(path), RunError):
    fields = line.split()
    if not fields:
      continue
    where = f"{path}:{number}"
    if len(fields) != 6:
      raise RunError(
        f"{where}: expected `query Q0 passage rank score tag`, found {len(fields)} fields: {line.strip()!r}"
      )
    query_id, _, passage_id, rank, text, _ = fields
    try:
      score = float(text)
    except ValueError:
      raise RunError(f"{where}: the score {text!r} is no number") from None
    if not math.isfinite(score):
      raise RunError(f"{where}: the score {text!r} is not finite")
    if (query_id, passage_id) in seen:
      raise RunError(f"{where}: query {query_id} lists passage {passage_id} a second time")
    seen.add((query_id, passage_id))
    yield Line(query_id, passage_id, float(rank) if rank.isdecimal() else math.inf, score)


def check_scores(query_id: str, results: Mapping[str, float]) -> None:
  """Raises RunError for a score that is NaN or infinite: trec_eval would rank it somewhere without a word."""
  for passage_id, score in results.items():
    if not math.isfinite(score):
      raise RunError(f"query {query_id!r}, passage {passage_id!r}: the score {score} is not finite")


def check_word(text: str, what: str) -> None:
  """Raises RunError for a name that would be none or several fields of a run file."""
  if len(text.split()) != 1 or text.split()[0] != text:
    raise RunError(f"{what} {text!r} is empty or holds white space, which TREC's form cannot carry")


def _unique(query_ids: Sequence[str]) -> Sequence[str]:
  if len(set(query_ids)) != len(query_ids):
    twice = next(query_id for query_id in query_ids if list(query_ids).count(query_id) > 1)
    raise RunError(f"the query id {twice!r} occurs more than once")
  return query_ids
