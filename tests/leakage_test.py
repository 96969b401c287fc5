"""What training saw of the test is found, and nothing else is."""

import pytest

from idistill_jax import records
from idistill_jax.report import claims
from idistill_jax.retrieval import leakage


def queries(split: str, *texts: str) -> list[records.Query]:
  return [records.Query(id=f"{split}{i}", text=text, split=split) for i, text in enumerate(texts)]


TRAIN = queries("train", "how do I merge two sorted lists", "open a file for writing", "what is the capital of France")


@pytest.mark.parametrize(
  "text",
  ["what is the capital of France", "What is the capital of france?", "what is  the capital, of France"],
)
def test_the_same_question_in_another_dress_is_found(text):
  found = leakage.check(queries("test", "an unrelated thing", text), TRAIN, {}, [], 1, {})
  assert [(test, train) for test, train, _ in found.duplicates] == [("test1", "train2")]
  assert "Of 2 test queries 1 have a near-duplicate" in claims.leak(found.as_json())


@pytest.mark.parametrize("text", [
  "what is the population of Japan", "close a socket", "merge", "x", "how do I merge two sorted maps"])
def test_other_questions_are_none(text):
  found = leakage.check(queries("test", text), TRAIN, {}, [], 1, {})
  assert not found.duplicates and claims.leak(found.as_json()) is None


@pytest.mark.parametrize(
  ("test", "train", "same"),
  [
    ("who wrote the origin of species", "who wrote origin of species", True),
    ("the capital of France", "capital of France?", True),
    ("what is C++", "What is C++?", True),
    ("what is C++", "what is C#", False),
    ("???", "!!!", False),
    ("???", " ??? ", True),
    *((f"which of the many books about {one} should somebody read who has written programs for many years", f"which of "
       f"the many books about {other} should somebody read who has written programs for many years", one == other)
      for one, other in (("c++", "c++"), ("c++", "c#"))),
    ("who is the president of France", "who was the president of France", False),
    ("turn a list into a string", "turn a string into a list", False),
    ("flights from Paris", "flights to Paris", False),
    ("is it safe to swim there", "is it not safe to swim there", False),
    ("is it", "it is there", False),
    ("the capital city of France", "the capitol city of France", True),
    ("colour of the sky", "color of the sky", True),
    ("merge two sorted iterables", "merge two sorted iterable", True),
    ("a café in Paris", "a cafe in Paris", True),
    ("what's the capital of France", "what is the capital of France", True),
    ("parse a string", "pause a string", False),
    ("import a module", "export a module", False),
    ("games of 2014", "games of 2018", False),
    ("a list of bytes", "a list of byte strings", False),
    ("我想知道北京大学在哪个城市", "我想知道南京大学在哪个城市", False),
    ("请问李白的父亲是谁", "请问李白的母亲是谁", False),
    ("请问李白的父亲是谁", "请问，李白的父亲是谁？", True),
    ("バスの使い方", "パスの使い方", False),
    ("バスの使い方", "ﾊﾞｽの使い方", True),
    ("이승만대통령의 나이", "이승민대통령의 나이", False),
    ("이승만 대통령", "이승만 대통령?", True),
  ],
)  # fmt: skip
def test_a_slip_a_stop_word_and_an_accent_make_no_other_question_and_symbols_do(test, train, same):
  found = leakage.check(queries("test", test), queries("train", "something else", train), {}, [], 1, {})
  assert [one[:2] for one in found.duplicates] == ([("test0", "train1")] if same else [])


@pytest.mark.parametrize(("test", "train", "same"), [
  ("who has most followers on instagram in world", "who has the most followers in the world on instagram", True),
  ("who is the president of France", "who was the president of France", True),
  ("turn a list into a string", "turn a string into a list", True),
  ("who has most followers on instagram", "who has the most followers in the world on instagram", False),
  ("is it", "it is there", False),
])
def test_the_same_words_in_another_order_are_found_where_something_right_is_shared(test, train, same):
  asked = (queries("test", test), queries("train", "something else", train), {}, [], 1)
  for right in (
    leakage.rights([{"test0": {"p1": 1, "p2": 0}}, {"train1": {"p1": 1, "p3": 1}}], {}, 1),
    leakage.rights([], {"test0": ("Selena Gomez", "x"), "train1": ("the Selena Gomez!",)}, 1),
  ):
    assert [one[:2] for one in leakage.check(*asked, right).duplicates] == ([("test0", "train1")] if same else [])
  # The control: a passage below the grade that counts, an answer that is called as a passage is, and none that is left.
  for right in (
    leakage.rights([{"test0": {"p1": 1}, "train1": {"p1": 0}}], {"train1": ("p1", "the")}, 1),
    leakage.rights([], {"test0": ("the",), "train1": ("a",)}, 1), {},
  ):
    assert not leakage.check(*asked, right).duplicates


def ranked(query_id: str, *passage_ids: str) -> records.RankedList:
  return records.RankedList(query_id=query_id, passage_ids=passage_ids, status="complete")


def scored(query_id: str, *passage_ids: str) -> records.ScoredList:
  return records.ScoredList(query_id=query_id, passage_ids=passage_ids, scores=(0.0,) * len(passage_ids))


def test_without_judgements_nothing_is_said_of_passages():
  numbers = ("right_passages", "right_passages_in_training_lists", "right_passages_first_in_training_lists")
  unknown = leakage.check(queries("test", "x"), TRAIN, {}, [ranked("train0", "p", "o")], 1, {})
  assert [unknown.as_json()[one] for one in numbers] == [None] * 3 and claims.seen(unknown.as_json()) is None
  known = leakage.check(queries("test", "x"), TRAIN, {"test0": {"p": 1}}, [ranked("train0", "p", "o")], 1, {})
  assert [known.as_json()[one] for one in numbers] == [1, 1, 1]


def test_more_queries_than_a_block_and_none_at_all():
  many = queries("test", *(f"question number {'abcdefghij'[i % 10] * 9} {i}" for i in range(600)))
  train = [records.Query(id="copy", text=many[599].text, split="train")]
  assert next(one[:2] for one in leakage.check(many, train, {}, [], 1, {}).duplicates) == ("test599", "copy")
  for none in (leakage.check([], TRAIN, {}, [], 1, {}), leakage.check(many, [], {}, [], 1, {})):
    assert claims.leak(none.as_json()) is None


def test_right_passages_in_training_lists_are_counted_wherever_they_stand_and_not_shouted():
  lists = [ranked("train0", "x", "p2", "p3"), scored("train1", "p4", "y"), scored("train2", "y", "p4", "p1")]
  qrels = {"test0": {"p1": 1, "p2": 1, "p3": 0}, "test1": {"p4": 1, "p5": 1, "p2": 1}}
  found = leakage.check(queries("test", "a", "b"), TRAIN, qrels, lists, 1, {})
  # Once each, what stood first in some list before the others; p5 is in no list, p3 not right.
  assert (found.right, found.listed, found.first) == (4, ("p4", "p1", "p2"), 1)
  assert found.as_json()["passage_examples"] == ["p4", "p1", "p2"]
  assert claims.seen(found.as_json()).startswith(
    "Of 4 passages that are right for a test query, 3 stand in a list that training learned from, 1 of them in first ")
  assert claims.leak(found.as_json()) is None


GAINED = {f"test{i}": 0.4 if i < 10 else 0.0 for i in range(20)}
BEFORE = dict.fromkeys(GAINED, 0.3)


def rested(gained: dict[str, float], *familiar: int, queries_asked: int = 20) -> leakage.Leakage:
  """Queries of a right passage each; those of `familiar` stood first in a training list."""
  test = queries("test", *(f"question {number}" for number in "abcdefghijklmnopqrst"[:queries_asked]))
  lists = [ranked(f"train{i}", f"p{i}", "x") for i in familiar]
  found = leakage.check(test, TRAIN, {one.id: {f"p{i}": 1, "x": 0} for i, one in enumerate(test)}, lists, 1, {})
  return found.measured("distilled against initial in MRR@10", BEFORE, {
    one: value + gained[one] for one, value in BEFORE.items()}, 2000)


def test_a_result_that_rests_on_passages_that_training_put_first_is_shouted():
  found = rested(GAINED, *range(10))
  assert found.familiar[:2] == (("test0", "p0"), ("test1", "p1")) and len(found.familiar) == 10
  said = claims.leak(found.as_json()).replace("\u00a0", " ")
  assert "10 of 20 test queries have a right passage that stands first" in said and "(test0: p0, test1: p1, " in said
  assert "in MRR@10 is +0.200 (p = 0.0" in said and "+0.000 (p = 1.000) over the other 10" in said
  rest = found.as_json()["rest"]
  assert (rest["queries"], rest["delta"], rest["is_lost"]) == (10, 0.0, True)
  assert found.as_json()["familiar_queries"] == 10 and found.as_json()["familiar_examples"][0] == ["test0", "p0"]


@pytest.mark.parametrize("gained, familiar", [
  (GAINED, range(10, 20)),  # the gain lies with the others
  (dict.fromkeys(GAINED, 0.1), range(10)),  # or with all
  (dict.fromkeys(GAINED, 0.1), range(15)),  # or with all, of which too few are left to tell it from chance
  (dict.fromkeys(GAINED, 0.0), range(10)),  # or there is none to doubt
  (GAINED, ())])
def test_a_result_that_does_not_rest_on_them_is_none(gained, familiar):
  found = rested(gained, *familiar)
  assert claims.leak(found.as_json()) is None and (found.rest is None) == (not familiar)
  assert found.rest is None or not found.rest.is_lost


def test_where_no_other_query_is_left_to_measure_it_is_shouted():
  found = rested(dict.fromkeys(GAINED, 0.1), *range(19))
  assert found.rest.delta is None and "and cannot be measured over the other 1." in claims.leak(found.as_json())


def test_a_test_query_with_a_list_of_its_own_is_shouted():
  for one in (ranked("test1", "x"), scored("test1", "x")):
    found = leakage.check(queries("test", "a", "b"), TRAIN, {}, [ranked("train0", "x"), one], 1, {})
    assert found.trained_on == ("test1",) and found.as_json()["test_queries_trained_on"] == 1
    assert "Of 2 test queries 1 have a list that training learned from (test1)" in claims.leak(found.as_json())
  assert not leakage.check(queries("test", "a", "b"), TRAIN, {}, [ranked("train0", "x")], 1, {}).trained_on


def test_a_passage_below_the_grade_that_counts_is_not_right():
  lists = [ranked(f"train{i}", f"p{i}", "x") for i in range(3)]
  qrels = {"test0": {"p0": 1, "p1": 2, "p2": 3}}
  assert leakage.check(queries("test", "a"), TRAIN, qrels, lists, 2, {}).listed == ("p1", "p2")
  assert leakage.check(queries("test", "a"), TRAIN, qrels, lists, 1, {}).listed == ("p0", "p1", "p2")
