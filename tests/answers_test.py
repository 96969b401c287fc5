"""Answers are found and scored as the field's scripts do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idistill_jax.retrieval import answers

# What was said, accepted answers, exact match, F1: the last two as `get_raw_scores` of SQuAD 2's evaluate-v2.0.py gives
# them (torchmetrics 1.9's `squad`, which keeps answers that normalise to nothing, gives the same of all without such).
SCORED = (
  ("The Eiffel Tower.", ["Eiffel Tower"], 1.0, 1.0),
  ("14 December 1972", ["14 December 1972 UTC", "December 1972"], 0.0, 0.857143),
  ("a cat sat", ["the dog sat down"], 0.0, 0.4),
  ("", ["x"], 0.0, 0.0),
  ("the", ["x", "an"], 0.0, 0.0),
  ("", ["The", "Who"], 0.0, 0.0),
  ("Who", ["The", "Who"], 1.0, 1.0),
  # Nothing is left of any, so that nothing is right.
  ("", ["A", "The"], 1.0, 1.0),
  ("the", ["?"], 1.0, 1.0),
  ("x", ["A", "The"], 0.0, 0.0),
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


# What `has_answer` of DPR says of each text and answer (https://github.com/facebookresearch/DPR at 10ca720,
# dpr/data/qa_validation.py with match_type "string" and the SimpleTokenizer of dpr/utils/tokenizers.py; Pyserini's
# evaluate_dpr_retrieval.py has the same), run with regex 2026.11.15: NFD, tokens `[\p{L}\p{N}\p{M}]+` or one visible
# character, each in lower case, and the answer's must stand in the text one after the other.
HELD = (
  ("The physicist Wilhelm Conrad Röntgen, of Germany, was first.", "wilhelm conrad röntgen", True),
  # Composed and decomposed letters are one, an accent is none to be left out, and case is no matter.
  ("Ro\u0308ntgen was first.", "R\u00f6ntgen", True),
  ("Rontgen was first.", "R\u00f6ntgen", False),
  ("Beyonc\u00e9 sang.", "Beyonce", False),
  ("BEYONC\u00c9 sang.", "beyonc\u00e9", True),
  ("\u0130stanbul", "istanbul", False),
  ("\u0130stanbul", "\u0130STANBUL", True),
  ("Stra\u00dfe", "strasse", False),
  # A sigma ends a token, whatever follows it.
  ("\u039f\u0394\u039f\u03a3.\u0391", "\u03bf\u03b4\u03bf\u03c2", True),
  ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c3", False),
  # Ligatures and superscripts are what they are.
  ("the \ufb01rst one", "first", False),
  ("x\u00b2 grows", "x2", False),
  # Punctuation is a token, blanks around it are no matter.
  ("He received 150,782 SEK.", "150,782", True),
  ("He received 150 , 782 SEK.", "150,782", True),
  ("He received 150,782 SEK.", "150782", False),
  ("He received 150,782 SEK.", "782", True),
  ("the U.S. won", "US", False),
  ("the U.S. won", "u.s", True),
  ("the U.S. won", "U. S.", True),
  ("a well-known author", "well known", False),
  ("a well-known author", "well - known", True),
  ("a well\u2010known author", "well-known", False),
  ("AC/DC played", "ac/dc", True),
  ("AC/DC played", "AC DC", False),
  ("the cat's whiskers", "cat", True),
  ("the cat\u2019s whiskers", "cat's", False),
  ("a \u201cgreat\u201d man", "great", True),
  ("a \u201cgreat\u201d man", '"great"', False),
  ("$5 million, 100% of it", "5 million", True),
  ("it is 20\u00b0C", "20\u00b0C", True),
  ("snow_man", "snow", True),
  ("C++ and C#", "c++", True),
  ("C++ and C#", "C", True),
  ("emoji \U0001f600 here", "\U0001f600", True),
  # Whole tokens only, in order, one after the other; articles count.
  ("the cats sat", "cat", False),
  ("York New", "New York", False),
  ("New big York", "New York", False),
  ("New, York", "New York", False),
  ("New\nYork", "New York", True),
  ("New\u00a0York", "New York", True),
  ("answer is 42.", "the answer", False),
  ("\u5317\u4eac\u5e02", "\u5317\u4eac", False),
  ("\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e", "\u0939\u093f\u0928\u094d\u0926\u0940", True),
  # What cannot be seen parts tokens.
  ("co\u00adoperate", "cooperate", False),
  ("zero\u200bwidth", "zero width", True),
  ("", "x", False),
)


@pytest.mark.parametrize(("text", "answer", "holds"), HELD)
def test_answer_in_context_is_dprs(text, answer, holds):
  assert answers.has_answer(answers.tokens(text), [answers.tokens(answer)]) is holds


@pytest.mark.parametrize("blank", ["", "   ", "\u200b"])
def test_an_answer_without_tokens_is_in_no_text(blank):
  """DPR finds it in every one: each passage would be right."""
  assert answers.has_answer(answers.tokens("anything"), [answers.tokens(blank)]) is False


def test_any_answer_will_do_and_ranks_count_from_one():
  texts = {"p1": "nothing", "p2": "it was Paris", "p3": "Rome"}
  found = answers.InContext({"q1": ["Rome", "Paris"], "q2": ["Oslo"], "q3": ["nothing"]}, texts.__getitem__)
  assert found.first_rank("q1", ["p1", "p2", "p3"]) == 2
  measured = found.measure({"q1": ["p1", "p2"], "q2": ["p1", "p2", "p3"]})
  assert measured["answer@1"] == {"q1": 0.0, "q2": 0.0, "q3": 0.0}
  # q3 has no results and counts as 0.
  assert measured["answer@5"] == {"q1": 1.0, "q2": 0.0, "q3": 0.0}
