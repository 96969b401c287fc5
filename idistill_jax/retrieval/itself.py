"""Queries that are passages of the collection themselves, as ArguAna's arguments are: nobody is to find those.

BEIR's evaluator leaves a passage out of the results of the query with its id, and so do candidates and measures here.
Unlike there, one whose text is another stays, and so does one that is judged relevant for that query: then the ids are
the same by chance, as where both queries and passages are numbered.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from typing import Protocol

from idistill_jax import records
from idistill_jax.retrieval import runs


class Passages(Protocol):
  """What `data.tables.Passages` does."""

  def __contains__(self, item_id: object) -> bool: ...

  def by_id(self, item_id: str) -> records.Passage: ...


def of(queries: Iterable[records.Query], passages: Passages,
       qrels: Mapping[str, Mapping[str, int]]) -> frozenset[str]:
  """Ids of the queries whose own passage is to be left out."""
  return frozenset(
    query.id for query in queries
    if query.id in passages and qrels.get(query.id, {}).get(query.id, 0) <= 0
    and _is_one_text(query.text, passages.by_id(query.id)))


def _is_one_text(query: str, passage: records.Passage) -> bool:
  """Whether the query is the passage, case and white space aside: its title, its text or both, or the shorter of query
  and text stands in the longer and is most of it."""
  asked, title, text, whole = (
    " ".join(one.casefold().split()) for one in (query, passage.title, passage.text, passage.full_text))
  if asked in (title, f"{title} {text}"):
    return True
  pairs = (sorted((asked, one), key=len) for one in (text, whole))
  return any(shorter in longer and 2 * len(shorter) >= len(longer) for shorter, longer in pairs)


def without(found: runs.Run, own: Set[str], depth: int | None, dropped: Callable[[str], None]) -> runs.Run:
  """The run without own passages, and no deeper than `depth`; as it is where there are none.

  own: as `of` says; who searches looks one place deeper for them.  dropped: is told every query that lost a passage.
  """
  if not own:
    return found
  kept: runs.Run = {}
  for query_id, results in found.items():
    if query_id in own and query_id in results:
      dropped(query_id)
      results = {one: score for one, score in results.items() if one != query_id}
    kept[query_id] = {one: results[one] for one in runs.ranked(results)[:depth]}
  return kept
