"""Passages, queries, judgements, recorded lists -> a collection that is consistent, and smaller.

Passages may be more than memory holds: they are a stream that is read again for every pass, and of their ids only those
are kept that something names.  `assemble` takes what a source has read and leaves out what names something that is not
there; `subset` cuts a collection down so that what is kept still has all it needs.  Both name everything that they
leave out.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from idistill_jax import records
from idistill_jax.data import characters, deal, stream, tables

T = TypeVar("T")
# So many passages beyond a limit are named; of more, the number is told.
_NAMED = 1000
_HALF = "with half a character, as a cut emoji leaves: U+FFFD takes its place"


class CollectionError(ValueError):
  """Input that cannot become a collection; the message names file and line where there is one."""


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
  """One thing that was left out: why, and its name."""

  reason: str
  what: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
  """What a search engine is built from and measured on.

  title: what a report calls it.  qrels: split -> judgements of that split's queries.  lists: candidate lists
  recorded elsewhere, in the order shown, without scores.  rankings: LLM rankings made elsewhere.  pairs:
  generated query-passage pairs, which are for the contrastive baseline and nothing else.  answers: query id ->
  accepted answers.
  """

  title: str
  passages: stream.Passages
  queries: tuple[records.Query, ...]
  qrels: Mapping[str, tables.Qrels]
  lists: tuple[records.CandidateList, ...] = ()
  rankings: tuple[records.RankedList, ...] = ()
  pairs: tables.Qrels = dataclasses.field(default_factory=dict)
  answers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  drops: tuple[Drop, ...] = ()


def assemble(
  *,
  title: str,
  passages: stream.Passages,
  queries: Iterable[records.Query],
  judgements: Mapping[str, tables.Qrels],
  lists: Iterable[records.CandidateList] = (),
  pairs: tables.Qrels | None = None,
  answers: Mapping[str, tuple[str, ...]] | None = None,
  drops: Iterable[Drop] = (),
) -> Collection:
  """A collection in which every id that is named exists, and every judgement lies in its query's split.

  Left out and named: passages and queries without text, and halves of characters; judgements, lists and pairs that
  name an unknown query or passage; queries outside train that lose every relevant passage by that.  Raises
  CollectionError where no passage or no query is left, or where two judgements of a pair contradict each other.  Ids
  must be unique already.
  """
  dropped, lists, pairs = list(drops), tuple(lists), pairs or {}
  named = tables.mentioned((*judgements.values(), pairs), lists)
  # This pass also makes a reader check all that it reads.
  known = {p.id for p in _with_text(passages, "passage", lambda p: p.full_text, dropped) if p.id in named}
  kept_queries = tuple(_with_text(queries, "query", lambda q: q.text, dropped))
  splits = {query.id: query.split for query in kept_queries}
  qrels = _by_split(title, judgements, splits, known, dropped)
  for judged_queries in judgements.values():
    for query_id, judged in judged_queries.items():
      own = splits.get(query_id, "train")
      if own != "train" and _relevant(judged) and not _relevant(qrels[own].get(query_id, {})):
        dropped.append(Drop(f"query of {own} without a relevant passage left", query_id))
        del splits[query_id]
  kept_answers = {query_id: _whole_answers(query_id, found, dropped) for query_id, found in (answers or {}).items()}
  whole = Collection(title=title, passages=stream.usable(passages), queries=kept_queries, qrels=qrels, lists=lists,
                     pairs=pairs, answers=kept_answers, drops=tuple(dropped))
  return _not_empty(_restrict(whole, splits, known))


def corpus_only(*, title: str, passages: stream.Passages) -> Collection:
  """A collection that waits for queries: see `with_queries`.  Raises CollectionError where no passage has a text."""
  dropped: list[Drop] = []
  collections.deque(_with_text(passages, "passage", lambda p: p.full_text, dropped), maxlen=0)
  found = Collection(title=title, passages=stream.usable(passages), queries=(), qrels={}, drops=tuple(dropped))
  return _not_empty(found, ["passages"])


def with_queries(
  whole: Collection, queries: Iterable[records.Query], judgements: Mapping[str, tables.Qrels], pairs: tables.Qrels
) -> Collection:
  """The collection and more queries with their judgements and generated pairs; raises CollectionError as `assemble`."""
  splits = sorted({*whole.qrels, *judgements})
  return assemble(
    title=whole.title,
    passages=whole.passages,
    queries=(*whole.queries, *queries),
    judgements={split: {**whole.qrels.get(split, {}), **judgements.get(split, {})} for split in splits},
    lists=whole.lists,
    pairs={**whole.pairs, **pairs},
    answers=whole.answers,
    drops=whole.drops,
  )


def _by_split(title: str, judgements: Mapping[str, tables.Qrels], splits: Mapping[str, str], known: set[str],
              dropped: list[Drop]) -> dict[str, tables.Qrels]:
  """Judgements of known queries and passages, regrouped by the split of their query."""
  qrels: dict[str, tables.Qrels] = {split: {} for split in splits.values()}
  for source, judged_queries in judgements.items():
    for query_id, judged in judged_queries.items():
      if query_id not in splits:
        dropped += [Drop("judgement of an unknown query", f"{query_id} {passage_id}") for passage_id in judged]
        continue
      own = splits[query_id]
      if source != own and query_id in judgements.get(own, {}):
        # Whoever evaluates by the file of the query's own split must get what stands in it.
        dropped += [Drop(f"judgement in {source} of a query of {own}", f"{query_id} {one}") for one in judged]
        continue
      found = qrels[own].setdefault(query_id, {})
      for passage_id, score in judged.items():
        if passage_id not in known:
          dropped.append(Drop("judgement of an unknown passage", f"{query_id} {passage_id}"))
        elif found.setdefault(passage_id, score) != score:
          raise CollectionError(
            f"{title}: the pair {query_id} {passage_id} is judged {score} in {source} and "
            f"{found[passage_id]} in another split"
          )
  return qrels


def _with_text(items: Iterable[T], kind: str, text: Callable[[T], str], dropped: list[Drop]) -> Iterator[T]:
  for item in items:
    name: str = item.id  # type: ignore[attr-defined]
    if not text(item).strip():
      dropped.append(Drop(f"{kind} without text", name))
    elif characters.is_whole(text(item)):
      yield item
    else:
      dropped.append(Drop(f"{kind} {_HALF}", name))
      yield characters.whole(item)


def _whole_answers(query_id: str, found: tuple[str, ...], dropped: list[Drop]) -> tuple[str, ...]:
  if not all(map(characters.is_whole, found)):
    dropped.append(Drop(f"answer {_HALF}", query_id))
  return tuple(map(characters.repaired, found))


def _relevant(judged: Mapping[str, int]) -> list[str]:
  return [passage_id for passage_id, score in judged.items() if score > 0]


def with_rankings(
  whole: Collection, rankings: tuple[records.RankedList, ...], drops: Iterable[Drop]
) -> Collection:
  """The collection with LLM rankings beside it, without those that name what it lacks; all left out are named."""
  richer = dataclasses.replace(whole, rankings=rankings, drops=whole.drops + tuple(drops))
  named = _named(richer)
  return _restrict(richer, (q.id for q in whole.queries), (p.id for p in whole.passages if p.id in named))


def _named(whole: Collection) -> set[str]:
  """Ids of passages that judgements, lists, rankings and pairs name."""
  return tables.mentioned((*whole.qrels.values(), whole.pairs), (*whole.lists, *whole.rankings))


def divide(whole: Collection, train_fraction: float) -> Collection:
  """That share of the held-out queries, drawn by a hash of their ids, becomes the training split.

  Their judgements are left out, so that nothing is measured on what was trained on.  Raises CollectionError where
  the collection has training queries of its own, and for a share outside (0, 1).
  """
  if not 0 < train_fraction < 1:
    raise CollectionError(f"collection.train_fraction must lie between 0 and 1, found {train_fraction}")
  if any(query.split == "train" for query in whole.queries):
    raise CollectionError(f"{whole.title} has training queries: unset collection.train_fraction")

  moved = {query.id for query in whole.queries if deal.drawn(query.id) < train_fraction}
  return dataclasses.replace(
    whole,
    queries=tuple(
      dataclasses.replace(query, split="train") if query.id in moved else query for query in whole.queries
    ),
    qrels={
      split: {query_id: judged for query_id, judged in qrels.items() if query_id not in moved}
      for split, qrels in whole.qrels.items()
    },
  )


def subset(whole: Collection, *, max_passages: int | None, max_queries_per_split: int | None) -> Collection:
  """The first queries of each split, their relevant passages, their lists, then passages in corpus order.

  Neither limit is ever exceeded: a query whose relevant passages no longer fit is left out, then so is a list
  whose passages do not, and both are named.  `None` sets no limit.
  """
  if max_passages is None and max_queries_per_split is None:
    return whole
  limit = math.inf if max_passages is None else max_passages
  per_split: collections.Counter[str] = collections.Counter()
  queries: set[str] = set()
  passages: set[str] = set()
  lists, drops = [], []

  def fits(passage_ids: Iterable[str]) -> bool:
    more = set(passage_ids) - passages
    if len(passages) + len(more) > limit:
      return False
    passages.update(more)
    return True

  for query in whole.queries:
    if max_queries_per_split is not None and per_split[query.split] >= max_queries_per_split:
      drops.append(Drop("query beyond collection.max_queries_per_split", query.id))
    elif not fits(_relevant(whole.qrels.get(query.split, {}).get(query.id, {}))):
      drops.append(Drop("query whose passages exceed collection.max_passages", query.id))
    else:
      per_split[query.split] += 1
      queries.add(query.id)
  for shown in whole.lists:
    if shown.query_id in queries and not fits(shown.passage_ids):
      drops.append(Drop("recorded list whose passages exceed collection.max_passages", shown.query_id))
    else:
      lists.append(shown)
  for ranking in whole.rankings:
    # One that does not fit is named when passages are known.
    if ranking.query_id in queries:
      fits(ranking.passage_ids)
  kept = whole.passages
  if max_passages is not None:
    beyond = (passage.id for passage in whole.passages if not fits((passage.id,)))
    drops += [Drop("passage beyond collection.max_passages", one) for one in itertools.islice(beyond, _NAMED)]
    drops += [Drop("passage beyond collection.max_passages", "and others")] * sum(1 for _ in beyond)
    kept = stream.only(kept, lambda passage: passage.id in passages)
  smaller = dataclasses.replace(whole, passages=kept, lists=tuple(lists), drops=whole.drops + tuple(drops))
  return _not_empty(_restrict(smaller, queries, _named(whole) if max_passages is None else passages))


def _not_empty(found: Collection, kinds: Iterable[str] = ("passages", "queries")) -> Collection:
  for kind in kinds:
    if next(iter(getattr(found, kind)), None) is None:
      reasons = collections.Counter(drop.reason for drop in found.drops)
      left_out = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
      raise CollectionError(f"{found.title}: the collection has no {kind}; left out: {left_out or 'nothing'}")
  return found


def _restrict(whole: Collection, query_ids: Iterable[str], passage_ids: Iterable[str]) -> Collection:
  """The collection, its passages as they are, without what names another query or passage; what is lost is named."""
  queries, passages = set(query_ids), set(passage_ids)
  drops = list(whole.drops)

  def keep_list(shown: records.CandidateList | records.RankedList, kind: str = "recorded list") -> bool:
    if shown.query_id not in queries:
      drops.append(Drop(f"{kind} of a query left out", shown.query_id))
      return False
    lacking = [item for item in shown.passage_ids if item not in passages]
    if lacking:
      drops.append(Drop(f"{kind} naming a passage left out", f"{shown.query_id}: {' '.join(lacking)}"))
    return not lacking

  def keep_judged(qrels: tables.Qrels, reason: str) -> tables.Qrels:
    kept: tables.Qrels = {}
    for query_id, judged in qrels.items():
      for passage_id, score in judged.items():
        if query_id in queries and passage_id in passages:
          kept.setdefault(query_id, {})[passage_id] = score
        else:
          drops.append(Drop(reason, f"{query_id} {passage_id}"))
    return kept

  return dataclasses.replace(
    whole,
    queries=tuple(query for query in whole.queries if query.id in queries),
    qrels={
      split: keep_judged(qrels, "judgement naming a passage or query left out")
      for split, qrels in sorted(whole.qrels.items())
    },
    lists=tuple(shown for shown in whole.lists if keep_list(shown)),
    rankings=tuple(one for one in whole.rankings if keep_list(one, "LLM ranking")),
    pairs=keep_judged(whole.pairs, "generated pair naming a passage or query left out"),
    answers={query_id: found for query_id, found in whole.answers.items() if query_id in queries},
    drops=tuple(drops),
  )
