"""Passages, queries, judgements, recorded lists -> a collection that is consistent.

Passages may be more than memory holds: they are a stream that is read again for every pass, and of their ids only those
are kept that something names.  `assemble` takes what a source has read and leaves out, and names, what names something
that is not there.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from idistill_jax import records
from idistill_jax.data import characters, stream, tables

T = TypeVar("T")
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
      if own != "train" and relevant(judged) and not relevant(qrels[own].get(query_id, {})):
        dropped.append(Drop(f"query of {own} without a relevant passage left", query_id))
        del splits[query_id]
  kept_answers = {query_id: _whole_answers(query_id, found, dropped) for query_id, found in (answers or {}).items()}
  whole = Collection(title=title, passages=stream.usable(passages), queries=kept_queries, qrels=qrels, lists=lists,
                     pairs=pairs, answers=kept_answers, drops=tuple(dropped))
  return not_empty(restrict(whole, splits, known))


def corpus_only(*, title: str, passages: stream.Passages) -> Collection:
  """A collection that waits for queries: see `with_queries`.  Raises CollectionError where no passage has a text."""
  dropped: list[Drop] = []
  collections.deque(_with_text(passages, "passage", lambda p: p.full_text, dropped), maxlen=0)
  found = Collection(title=title, passages=stream.usable(passages), queries=(), qrels={}, drops=tuple(dropped))
  return not_empty(found, ["passages"])


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
        dropped += [Drop(f"judgement in {source} of an unknown query", f"{query_id} {one}") for one in judged]
        continue
      own = splits[query_id]
      if source != own and (own == "train" or query_id in judgements.get(own, {})):
        # Whoever evaluates by the file of the query's own split must get what stands in it, and who held a query out
        # must hear that it trains.
        dropped += [Drop(f"judgement in {source} of a query of {own}", f"{query_id} {one}") for one in judged]
        continue
      found = qrels[own].setdefault(query_id, {})
      for passage_id, score in judged.items():
        if passage_id not in known:
          dropped.append(Drop(f"judgement in {source} of an unknown passage", f"{query_id} {passage_id}"))
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


def relevant(judged: Mapping[str, int]) -> list[str]:
  """Passage ids of a query's judgements above zero."""
  return [passage_id for passage_id, score in judged.items() if score > 0]


def measurable(whole: Collection) -> set[str]:
  """Splits other than train of which queries have judgements or answers."""
  judged = {split for split, qrels in whole.qrels.items() if qrels}
  return (judged | {query.split for query in whole.queries if query.id in whole.answers}) - {"train"}


def with_rankings(
  whole: Collection, rankings: tuple[records.RankedList, ...], drops: Iterable[Drop]
) -> Collection:
  """The collection with LLM rankings beside it, without the passages and queries that it lacks; all left out are named.

  What an LLM said of the others stands, but for rankings of which fewer than two are left, or none that it named.
  """
  asked = named(dataclasses.replace(whole, rankings=rankings))
  known = {passage.id for passage in whole.passages if passage.id in asked}
  dropped, kept = list(drops), []
  for one in rankings:
    lacking = set(one.passage_ids) - known
    dropped += [Drop("passage of an LLM ranking that the collection lacks", f"{one.query_id} {passage_id}")
                for passage_id in one.passage_ids if passage_id in lacking]
    rest = one.without(lacking) if lacking else one
    if len(rest.passage_ids) < 2:
      dropped.append(Drop("LLM ranking of fewer than two passages of the collection", one.query_id))
    elif len(rest.filled_places) == len(rest.passage_ids):
      dropped.append(Drop("LLM ranking that names no passage of the collection", one.query_id))
    else:
      kept.append(rest)
  richer = dataclasses.replace(whole, rankings=tuple(kept), drops=whole.drops + tuple(dropped))
  return restrict(richer, (query.id for query in whole.queries), known)


def named(whole: Collection) -> set[str]:
  """Ids of passages that judgements, lists, rankings and pairs name."""
  return tables.mentioned((*whole.qrels.values(), whole.pairs), (*whole.lists, *whole.rankings))


def not_empty(found: Collection, kinds: Iterable[str] = ("passages", "queries")) -> Collection:
  """The same collection; raises CollectionError, with what was left out, where it has nothing of a kind."""
  for kind in kinds:
    if next(iter(getattr(found, kind)), None) is None:
      reasons = collections.Counter(drop.reason for drop in found.drops)
      left_out = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
      raise CollectionError(f"{found.title}: the collection has no {kind}; left out: {left_out or 'nothing'}")
  return found


def restrict(whole: Collection, query_ids: Iterable[str], passage_ids: Iterable[str]) -> Collection:
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
