"""The systems that are compared: what ours are called, and those of others, which come as run files."""

from collections.abc import Mapping, Sequence

from idistill_jax import config
from idistill_jax.retrieval import runs
from idistill_jax.workdir import outside

# What reciprocal rank fusion makes of several systems; the second shows how much of the first is there undistilled.
FUSED = {"hybrid": ("distilled", "bm25"), "initial+bm25": ("initial", "bm25")}
# Which systems' first places the ranker reorders, and what comes out is called.
RERANKED = {
  "initial": {"initial": "ranker"},
  "all": {"initial": "ranker", **{
    one: f"{one}+ranker" for one in ("bm25", "initial+bm25", "distilled", "hybrid")
  }},
}
# config.Answer.systems -> from whose passages a reader answers.
ANSWERED: dict[str, tuple[str, ...]] = {
  "none": (),
  "before_after": ("initial", "distilled"),
  "all": ("initial", "bm25", "direct", "ranker", "distilled", "hybrid"),
}
# What all retrievers are searched over, unless `index` makes smaller vectors of the distilled one's.
WHOLE = "the whole vectors"
# The first system is tested against the second, where both are measured; the first pair is the primary test.
TESTS: tuple[tuple[str, str], ...] = (
  ("distilled", "initial"),
  ("ranker", "initial"),
  ("direct", "initial"),
  ("distilled", "direct"),
  ("ranker", "direct"),
  ("distilled", "bm25"),
  ("distilled+scann", "distilled"),
  ("ranker", "distilled"),
  ("hybrid", "distilled"),
  ("hybrid", "initial+bm25"),
  ("bm25+ranker", "bm25"),
  ("initial+bm25+ranker", "initial+bm25"),
  ("distilled+ranker", "distilled"),
  ("hybrid+ranker", "hybrid"),
  ("hybrid+ranker", "initial+bm25+ranker"),
)
OURS = ("initial", "bm25", "direct", "distilled", "distilled+scann", *FUSED, *RERANKED["all"].values())


def read_runs(cfg: config.Config) -> dict[str, runs.Run]:
  """Systems that come as run files, by their files' names.  Raises RunError for what cannot be read."""
  return {str(runs.system_of(path)): runs.read_trec(path) for path in run_files(cfg)}


def run_files(cfg: config.Config) -> list[outside.Path]:
  """The files of `evaluate.runs`; raises FileNotFoundError for a folder without any, RunError for a name that no
  system can have."""
  if cfg.evaluate.runs is None:
    return []
  found = sorted(path for path in outside.at(cfg.evaluate.runs).glob("*") if runs.system_of(path) is not None)
  if not found:
    raise FileNotFoundError(
      f"{cfg.evaluate.runs}: evaluate.runs names no folder with files *{', *'.join(runs.ENDINGS)}, gzipped (.gz) or not"
    )
  taken = set(OURS)
  for path in found:
    name = str(runs.system_of(path))
    runs.check_word(name, f"{path}: rename the file, after which the system is called:")
    if name in taken:
      raise runs.RunError(f"{path}: another system is called {name!r} already; rename the file")
    taken.add(name)
  return found


def refuse_runs_of_other_queries(theirs: Mapping[str, runs.Run], ids: Sequence[str]) -> None:
  """Raises RunError for a run without a result for any of the measured queries."""
  for name, every in theirs.items():
    if not any(every.get(query_id) for query_id in ids):
      raise runs.RunError(
        f"the run {name} has no results for any of the {len(ids):,} measured queries, such as {ids[0]!r}; "
        f"it knows {next(iter(every), 'none')!r}: are these the same queries?"
      )
