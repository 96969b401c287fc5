"""What training saw of the test is found, and nothing else is."""

import pytest

from idistill_jax import records
from idistill_jax.retrieval import leakage


def queries(split: str, *texts: str) -> list[records.Query]:
  return [records.Query(id=f"{split}{i}", text=text, split=split) for i, text in enumerate(texts)]


TRAIN = queries("train", "how do I merge two sorted lists", "open a file for writing", "what is the capital of France")


@pytest.mark.parametrize(
  "text",
  ["what is the capital of France", "What is the capital of france?", "what is  the capital, of France"],
)
def test_the_same_question_in_another_dress_is_found(text):
  found = leakage.check(queries("test", "an unrelated thing", text), TRAIN, {}, [], 1)
  assert [(test, train) for test, train, _ in found.duplicates] == [("test1", "train2")]
  assert "1 of 2 test queries" in found.warnings[0]


@pytest.mark.parametrize("text", [
  "what is the population of Japan", "close a socket", "merge", "x", "how do I merge two sorted maps"])
def test_other_questions_are_none(text):
  found = leakage.check(queries("test", text), TRAIN, {}, [], 1)
  assert not found.duplicates and not found.warnings


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
  ],
)  # fmt: skip
def test_a_slip_a_stop_word_and_an_accent_make_no_other_question_and_symbols_do(test, train, same):
  found = leakage.check(queries("test", test), queries("train", "something else", train), {}, [], 1)
  assert [one[:2] for one in found.duplicates] == ([("test0", "train1")] if same else [])


def test_without_judgements_nothing_is_said_of_passages():
  ranking = records.RankedList(query_id="train0", passage_ids=("p", "o"), status="complete")
  unknown = leakage.check(queries("test", "x"), TRAIN, {}, [ranking], 1)
  assert unknown.as_json()["test_passages_ranked_first_in_training"] is None and not unknown.warnings
  known = leakage.check(queries("test", "x"), TRAIN, {"test0": {"p": 1}}, [ranking], 1)
  assert known.as_json()["test_passages_ranked_first_in_training"] == 1


def test_more_queries_than_a_block_and_none_at_all():
  many = queries("test", *(f"question number {'abcdefghij'[i % 10] * 9} {i}" for i in range(600)))
  train = [records.Query(id="copy", text=many[599].text, split="train")]
  assert next(one[:2] for one in leakage.check(many, train, {}, [], 1).duplicates) == ("test599", "copy")
  assert not leakage.check([], TRAIN, {}, [], 1).warnings and not leakage.check(many, [], {}, [], 1).warnings


def test_test_passages_that_the_llm_ranked_first_in_training():
  ranking = records.RankedList(query_id="train0", passage_ids=("p1", "p2"), status="complete")
  found = leakage.check(queries("test", "a"), TRAIN, {"test0": {"p1": 1, "p2": 1, "p3": 0}}, [ranking], 1)
  assert found.passages == ("p1",)
  assert len(found.warnings) == 1 and found.warnings[0].startswith("1 passages that are right for a test query")
  assert found.as_json()["test_passages_ranked_first_in_training"] == 1


def test_a_passage_below_the_grade_that_counts_is_not_right():
  rankings = [
    records.RankedList(query_id=f"train{i}", passage_ids=(f"p{i}", "x"), status="complete") for i in range(3)
  ]
  qrels = {"test0": {"p0": 1, "p1": 2, "p2": 3}}
  assert leakage.check(queries("test", "a"), TRAIN, qrels, rankings, 2).passages == ("p1", "p2")
  assert leakage.check(queries("test", "a"), TRAIN, qrels, rankings, 1).passages == ("p0", "p1", "p2")
