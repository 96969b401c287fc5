"""Collections agree with themselves, and stay so when they are cut down."""

import collections
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax import records
from idistill_jax.data import collection, subset, tables


def passage(passage_id: str, text: str = "some text") -> records.Passage:
  return records.Passage(id=passage_id, title="", text=text)


def query(query_id: str, split: str = "test", text: str = "some words") -> records.Query:
  return records.Query(id=query_id, text=text, split=split)


def shown(query_id: str, *passage_ids: str) -> records.CandidateList:
  return records.CandidateList(query_id=query_id, passage_ids=passage_ids, scores=())


def reasons(found: collection.Collection) -> dict[str, list[str]]:
  by_reason = collections.defaultdict(list)
  for drop in found.drops:
    by_reason[drop.reason].append(drop.what)
  return dict(by_reason)


def test_what_points_nowhere_is_left_out_and_named():
  found = collection.assemble(
    title="t",
    passages=[passage("p1"), passage("p2"), passage("empty", "  ")],
    queries=[query("q1"), query("q2"), query("q3", "train"), query("mute", text="")],
    judgements={
      "test": {"q1": {"p1": 1, "gone": 1}, "q2": {"gone": 1, "p2": 0}, "nobody": {"p1": 1, "p2": 0}},
      "train": {"q3": {"empty": 1}},
    },
    lists=[shown("q3", "p1", "p2"), shown("q3", "p1", "gone"), shown("mute", "p1")],
    pairs={"q3": {"p2": 1}, "nobody": {"p1": 1}},
  )
  assert [p.id for p in found.passages] == ["p1", "p2"]
  # q2 lost its only relevant passage and cannot be measured; q3 is trained on, which takes no judgement.
  assert [q.id for q in found.queries] == ["q1", "q3"]
  assert {split: qrels for split, qrels in found.qrels.items() if qrels} == {"test": {"q1": {"p1": 1}}}
  assert found.lists == (shown("q3", "p1", "p2"),)
  assert found.pairs == {"q3": {"p2": 1}}
  assert reasons(found) == {
    "passage without text": ["empty"],
    "query without text": ["mute"],
    "judgement in test of an unknown query": ["nobody p1", "nobody p2"],
    "judgement in test of an unknown passage": ["q1 gone", "q2 gone"],
    "judgement in train of an unknown passage": ["q3 empty"],
    "query of test without a relevant passage left": ["q2"],
    "judgement naming a passage or query left out": ["q2 p2"],
    "recorded list naming a passage left out": ["q3: gone"],
    "recorded list of a query left out": ["mute"],
    "generated pair naming a passage or query left out": ["nobody p1"],
  }


def test_nothing_is_left_out_where_everything_agrees():
  found = collection.assemble(
    title="t",
    passages=[passage("p1")],
    queries=[query("q1"), query("q2")],
    judgements={"test": {"q1": {"p1": 1}}},
  )
  # A query that never had a judgement is not one that lost it.
  assert [q.id for q in found.queries] == ["q1", "q2"]
  assert found.drops == ()


def test_judgements_lie_in_the_split_of_their_query():
  found = collection.assemble(
    title="t",
    passages=[passage("p1"), passage("p2")],
    queries=[query("q1", "dev")],
    judgements={"train": {"q1": {"p1": 1}}, "extra": {"q1": {"p1": 1, "p2": 2}}},
  )
  assert found.qrels["dev"] == {"q1": {"p1": 1, "p2": 2}}
  with pytest.raises(collection.CollectionError, match="pair q1 p1 is judged 2 in b and 1 in another split"):
    collection.assemble(
      title="t",
      passages=[passage("p1")],
      queries=[query("q1")],
      judgements={"a": {"q1": {"p1": 1}}, "b": {"q1": {"p1": 2}}},
    )


@pytest.mark.parametrize(
  ("passages", "queries", "message"),
  [
    ([], [query("q")], "t: the collection has no passages; left out: nothing"),
    (
      [passage("p", "")],
      [query("q")],
      "t: the collection has no passages; left out: 1 x passage without text",
    ),
    ([passage("p")], [], "t: the collection has no queries"),
  ],
)
def test_an_empty_collection_is_an_error(passages, queries, message):
  with pytest.raises(collection.CollectionError, match=message):
    collection.assemble(title="t", passages=passages, queries=queries, judgements={})


@pytest.mark.parametrize(
  ("stated", "holding", "split"),
  [
    ("dev", ["test"], "dev"),
    (None, ["train", "test", "extra"], "test"),
    (None, ["train", "extra", "dev"], "dev"),
    (None, ["train", "extra"], "extra"),
    (None, ["train"], "train"),
    (None, [], "train"),
  ],
)
def test_split_is_stated_else_held_out_else_train(stated, holding, split):
  judgements = {name: {"q": {"p": 1}} for name in holding} | {"other": {"q2": {"p": 1}}}
  assert tables.split_of("q", stated, judgements) == split


def example_collection() -> collection.Collection:
  queries = [query(f"q{i:02d}", split) for i, split in enumerate(["train"] * 12 + ["dev"] * 4 + ["test"] * 8)]
  held_out = [q for q in queries if q.split != "train"]
  judgements = {"dev": {}, "test": {}}
  for i, q in enumerate(held_out):
    judgements[q.split][q.id] = {f"p{(7 * i) % 60:02d}": 1, f"p{(7 * i + 1) % 60:02d}": 0}
  return collection.assemble(
    title="t",
    passages=[passage(f"p{i:02d}") for i in range(60)],
    queries=queries,
    judgements=judgements,
    lists=[shown(f"q{i:02d}", *(f"p{(11 * i + 3 * j) % 60:02d}" for j in range(5))) for i in range(8)],
    pairs={f"q{i:02d}": {f"p{(5 * i) % 60:02d}": 1} for i in range(12)},
  )


@given(
  max_passages=st.one_of(st.none(), st.integers(1, 70)), per_split=st.one_of(st.none(), st.integers(1, 15))
)
@settings(max_examples=60, deadline=None)
def test_a_subset_keeps_its_limits_and_all_that_it_needs(max_passages, per_split):
  whole = example_collection()
  kept = subset.limited(whole, max_passages=max_passages, max_queries_per_split=per_split)
  passages = {p.id for p in kept.passages}
  queries = {q.id: q.split for q in kept.queries}
  assert len(passages) == min(60, max_passages or 60)
  assert all(count <= (per_split or 12) for count in collections.Counter(queries.values()).values())
  for q in kept.queries:
    relevant = {p for p, score in whole.qrels.get(q.split, {}).get(q.id, {}).items() if score > 0}
    assert relevant <= passages
  for one in kept.lists:
    assert one in whole.lists and set(one.passage_ids) <= passages and one.query_id in queries
  for qrels in [*kept.qrels.values(), kept.pairs]:
    assert all(q in queries and set(judged) <= passages for q, judged in qrels.items())
  # Order stays, and whatever went has a name.
  assert list(kept.passages) == [p for p in whole.passages if p.id in passages]
  assert list(kept.queries) == [q for q in whole.queries if q.id in queries]
  named = {drop.what.split()[0].rstrip(":") for drop in kept.drops}
  assert {p.id for p in whole.passages} - passages <= named
  assert {q.id for q in whole.queries} - queries.keys() <= named
  assert {one.query_id for one in set(whole.lists) - set(kept.lists)} <= named


def test_a_wide_limit_changes_nothing_and_a_tight_one_does():
  whole = example_collection()
  assert subset.limited(whole, max_passages=None, max_queries_per_split=None) == whole
  assert subset.limited(whole, max_passages=60, max_queries_per_split=12) == whole
  assert subset.limited(whole, max_passages=59, max_queries_per_split=12) != whole
  assert subset.limited(whole, max_passages=60, max_queries_per_split=7) != whole


def test_lists_of_kept_queries_are_kept_while_their_passages_fit():
  whole = example_collection()
  roomy = subset.limited(whole, max_passages=50, max_queries_per_split=4)
  assert [one.query_id for one in roomy.lists] == ["q00", "q01", "q02", "q03"]
  tight = subset.limited(whole, max_passages=14, max_queries_per_split=4)
  assert 0 < len(tight.lists) < 4
  assert len(reasons(tight)["recorded list whose passages exceed collection.max_passages"]) == 4 - len(
    tight.lists
  )


def test_the_generated_pairs_have_no_say_in_what_is_kept():
  whole = example_collection()
  other = dataclasses.replace(whole, pairs={"q00": {"p59": 1}, "q11": {"p00": 1}})
  kept, kept_other = (subset.limited(c, max_passages=20, max_queries_per_split=4) for c in (whole, other))
  assert kept.pairs != kept_other.pairs
  assert dataclasses.replace(kept, pairs={}, drops=()) == dataclasses.replace(kept_other, pairs={}, drops=())


def test_a_subset_of_nothing_is_an_error():
  with pytest.raises(
    collection.CollectionError, match="t: the collection has no queries; left out: 24 x query"
  ):
    subset.limited(example_collection(), max_passages=None, max_queries_per_split=0)
