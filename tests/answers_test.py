"""Answers are found and scored as the field's scripts do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idistill_jax.retrieval import answers

# What was said, accepted answers, exact match, F1: the last two as torchmetrics 1.9's `squad` gives them.
SCORED = (
  ("The Eiffel Tower.", ["Eiffel Tower"], 1.0, 1.0),
  ("14 December 1972", ["14 December 1972 UTC", "December 1972"], 0.0, 0.857143),
  ("a cat sat", ["the dog sat down"], 0.0, 0.4),
  ("", ["x"], 0.0, 0.0),
  ("the", ["x", "an"], 1.0, 1.0),
  ("U.S.", ["US", "United States"], 1.0, 1.0),
  ("New York, New York", ["New York"], 0.0, 0.666667),
  ("twenty-one", ["twenty one"], 0.0, 0.0),
  ("Beyoncé", ["Beyonce"], 0.0, 0.0),
  ("it's", ["its"], 1.0, 1.0),
  ("1,000", ["1000"], 1.0, 1.0),
  ("no idea", ["Paris"], 0.0, 0.0),
)


@pytest.mark.parametrize(("said", "accepted", "exact", "f1"), SCORED)
def test_equals_the_published_scorer(said, accepted, exact, f1):
  assert answers.exact_match(said, accepted) == exact
  assert answers.f1(said, accepted) == pytest.approx(f1, abs=1e-6)


@given(st.text(), st.text())
def test_scores_lie_between_zero_and_one_and_agree(said, answer):
  found = answers.f1(said, [answer])
  assert 0 <= found <= 1 and found >= answers.exact_match(said, [answer])
  assert found == pytest.approx(answers.f1(answer, [said]))


@pytest.mark.parametrize(
  ("text", "answer", "holds"),
  [
    ("Wilhelm Conrad Röntgen, of Germany", "wilhelm conrad röntgen", True),
    # Composed and decomposed letters are one.
    ("Ro\u0308ntgen", "R\u00f6ntgen", True),
    ("received 150,782 SEK", "150,782", True),
    # Whole tokens only, in order, one after the other.
    ("the cats sat", "cat", False),
    ("York New", "New York", False),
    ("New big York", "New York", False),
    ("the U.S. won", "US", False),
    ("anything", "", False),
    ("anything", "   ", False),
  ],
)
def test_answer_in_context_is_dprs(text, answer, holds):
  assert answers.has_answer(answers.tokens(text), [answers.tokens(answer)]) is holds


def test_any_answer_will_do_and_ranks_count_from_one():
  texts = {"p1": "nothing", "p2": "it was Paris", "p3": "Rome"}
  found = answers.InContext({"q1": ["Rome", "Paris"], "q2": ["Oslo"], "q3": ["nothing"]}, texts.__getitem__)
  assert found.first_rank("q1", ["p1", "p2", "p3"]) == 2
  measured = found.measure({"q1": ["p1", "p2"], "q2": ["p1", "p2", "p3"]})
  assert measured["answer@1"] == {"q1": 0.0, "q2": 0.0, "q3": 0.0}
  # q3 has no results and counts as 0.
  assert measured["answer@5"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}
