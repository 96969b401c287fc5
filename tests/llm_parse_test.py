"""Raw answers of LLMs: what each is taken for, and that nothing unusable passes for an order."""

import collections
import gzip
import json
import os
import pathlib
import re
import time
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax.llm import parse

DATA = os.environ.get("IDISTILL_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="IDISTILL_DATA is not set: no recorded answers to read")

# answer about 5 passages, status, order from 1 (of those named), reasons
TABLE = [
  ("[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []),
  ("  [3]>[1]>[5]>[2]>[4]\n\n", "complete", [3, 1, 5, 2, 4], []),
  (
    "Sure! Here is the ranking:\n\n**[3] > [1] > [5] > [2] > [4]**\n\nPassage [3] is best; [4] is not.",
    "complete",
    [3, 1, 5, 2, 4],
    [],
  ),
  ("```\n[3] > [1] > [5] > [2] > [4]\n```", "complete", [3, 1, 5, 2, 4], []),
  ("```json\n[3, 1, 5, 2, 4]\n```", "complete", [3, 1, 5, 2, 4], []),
  ('{"ranking": ["[3]", "[1]", "[5]", "[2]", "[4]"]}', "complete", [3, 1, 5, 2, 4], []),
  ('["3", "1", "5", "2", "4"]', "complete", [3, 1, 5, 2, 4], []),
  (
    "<think>\nFirst thought: [1] > [2] > [3] > [4] > [5]. No.\n</think>\n[3] > [1] > [5] > [2] > [4]",
    "complete",
    [3, 1, 5, 2, 4],
    [],
  ),
  (
    "[1] > [2] > [3] > [4] > [5] looks wrong</think>[3] > [1] > [5] > [2] > [4]",
    "complete",
    [3, 1, 5, 2, 4],
    [],
  ),
  ("<think>\nLet me see: [1] > [2] > [3] > [4] > [5], perhaps", "refused", [], ["empty"]),
  # A draft and an answer on one line, the second of which is the model's.
  *((f"{said}[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []) for said in (
    "Initial order [1] > [2] > [3] > [4] > [5]. Final → ",
    "First pass: [1] > [2] > [3] > [4] > [5], after checking => ",
    "<|channel|>analysis<|message|>We rank. [5] is best, then [4]<|end|><|start|>assistant<|channel|>final<|message|>",
  )),
  ("[3] > [1] > [5] > [2] > [4] > [3] > [1] > [5]", "repaired", [3, 1, 5, 2, 4], ["duplicate"]),
  ("[3] > [1] > [5] > [2] > [4]. The first two -> [3] > [1]", "repaired", [3, 1, 5, 2, 4], ["duplicate"]),
  # Headings that say best first in other words.
  *((f"{said}[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []) for said in (
    "Here is the ranking from best to worst (most relevant first):\n",
    "Passages ordered from most relevant to least relevant, most relevant first:\n",
    "Ranking from the most to the least relevant, with the most helpful passage first: ",
    "best -> worst, most relevant first: ",
    "At least two passages are relevant; the most relevant come first: ",
  )),
  (
    "[1] > [2] > [3] > [4] > [5]\nOn reflection:\n\nFinal answer: [3] > [1] > [5] > [2] > [4]",
    "complete",
    [3, 1, 5, 2, 4],
    [],
  ),
  ("<answer>[3] &gt; [1] &gt; [5] &gt; [2] &gt; [4]</answer>", "complete", [3, 1, 5, 2, 4], []),
  ("［３］ ＞ ［１］ ＞ ［５］ ＞ ［２］ ＞ ［４］", "complete", [3, 1, 5, 2, 4], []),
  ("【3】→【1】→【5】→【2】→【4】", "complete", [3, 1, 5, 2, 4], []),
  ("[٣] > [١] > [٥] > [٢] > [٤]", "complete", [3, 1, 5, 2, 4], []),
  (r"$\boxed{[3] \succ [1] \succ [5] \succ [2] \succ [4]}$", "complete", [3, 1, 5, 2, 4], []),
  (r"\[3\] \> \[1\] \> \[5\] \> \[2\] \> \[4\]", "complete", [3, 1, 5, 2, 4], []),
  ("3 > 1 > 5 > 2 > 4", "complete", [3, 1, 5, 2, 4], []),
  ("3, 1, 5, 2, 4", "complete", [3, 1, 5, 2, 4], []),
  ("3\n1\n5\n2\n4", "complete", [3, 1, 5, 2, 4], []),
  ("[3 > 1 > 5 > 2 > 4]", "complete", [3, 1, 5, 2, 4], []),
  ("[3] -> [1] -> [5] -> [2] -> [4]", "complete", [3, 1, 5, 2, 4], []),
  ("[3] - [1] - [5] - [2] - [4]", "complete", [3, 1, 5, 2, 4], []),
  ("[3] [1] [5] [2] [4]", "complete", [3, 1, 5, 2, 4], []),
  ("1. [3]\n2. [1]\n3. [5]\n4. [2]\n5. [4]", "complete", [3, 1, 5, 2, 4], []),
  ("Rank 1: [3]\nRank 2: [1]\nRank 3: [5]\nRank 4: [2]\nRank 5: [4]", "complete", [3, 1, 5, 2, 4], []),
  (
    "- [3] merges iterables\n- [1] merges dicts\n- [5] sorts\n- [2] zips\n- [4] hashes",
    "complete",
    [3, 1, 5, 2, 4],
    [],
  ),
  ("[3] (exact) > [1] (close) > [5] (so-so) > [2] (no) > [4] (no)", "complete", [3, 1, 5, 2, 4], []),
  ("Passage 3 > Passage 1 > Passage 5 > Passage 2 > Passage 4", "complete", [3, 1, 5, 2, 4], []),
  # what was given comes first, the answer behind it
  ("[1, 2, 3, 4, 5]\n[3, 1, 5, 2, 4]", "complete", [3, 1, 5, 2, 4], []),
  ("[1], [2], [3], [4], [5]\n[3], [1], [5], [2], [4]", "complete", [3, 1, 5, 2, 4], []),
  ("[1, 2, 3, 4, 5] -> [3, 1, 5, 2, 4]", "complete", [3, 1, 5, 2, 4], []),
  ("[1, 2, 3, 4, 5]\n[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []),
  # the order shown, given as an answer
  ("The final ranking is: [1], [2], [3], [4], [5].", "complete", [1, 2, 3, 4, 5], []),
  ("1. [1]\n2. [2]\n3. [3]\n4. [4]\n5. [5]", "complete", [1, 2, 3, 4, 5], []),
  ("[Passage 3] > [Document 1] > [doc 5] > [passage 2] > [passage 4]", "complete", [3, 1, 5, 2, 4], []),
  # repaired
  ("[3] > [1] > [5]", "repaired", [3, 1, 5], ["missing"]),
  ("[1, 2, 3, 4, 5]\n[3, 1, 5, 2]", "repaired", [3, 1, 5, 2], ["missing"]),
  ("[3] > [1] > [5] > [2] > [4] > [1] > [2] > [3] > [5] > [4]", "repaired", [3, 1, 5, 2, 4], ["duplicate"]),
  ("[3] > [1] > [3] > [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["duplicate"]),
  ("[3] > [1] > [9] > [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["out of range"]),
  ("[3] > [99999999999999999999] > [1] > [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["out of range"]),
  ("[3] > [1] = [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["tie"]),
  ("[3] > [1] ≈ [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["tie"]),
  ("[3] > [1] ~ [5] ≃ [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["tie"]),
  ("[3] ≥ [1] >= [5] > [2] > [4]", "repaired", [3, 1, 5, 2, 4], ["tie"]),
  ("[3] > [1] > [5] > [2] > [", "repaired", [3, 1, 5, 2], ["missing", "truncated"]),
  ("[3] > [1] > [5] > [2] > [4] >", "repaired", [3, 1, 5, 2, 4], ["truncated"]),
  ("[3] > [1] > ... > [4]", "repaired", [3, 1, 4], ["missing", "ellipsis"]),
  ("[3] > [5] > [4] > [1-2]", "repaired", [3, 5, 4], ["missing", "range"]),
  ("[3] > [5] > [4] > [1] - [2]", "repaired", [3, 5, 4], ["missing", "range"]),
  (
    "[1] is about dicts\n[2] is about zip\n[3] merges\n[4] hashes\n[5] sorts\n\n[3] > [1] > [5] > [2]",
    "repaired",
    [3, 1, 5, 2],
    ["missing"],
  ),
  # refused
  ("", "refused", [], ["empty"]),
  (" \n\t ", "refused", [], ["empty"]),
  ("I'm sorry, but I cannot rank these passages.", "refused", [], ["refusal"]),
  (
    "As an AI language model I do not judge passage [2].",
    "refused",
    [],
    ["fewer than half", "refusal", "missing"],
  ),
  ("The passages are all about Python.", "refused", [], ["no ranking"]),
  ("[3] > [1]", "refused", [], ["fewer than half", "missing"]),
  ("[1]-[5]", "refused", [], ["no ranking"]),
  ("[1-5]", "refused", [], ["no ranking"]),
  ("[1] to [5]", "refused", [], ["no ranking"]),
  ("[1] > ... > [5]", "refused", [], ["fewer than half", "missing", "ellipsis"]),
  ("[0] > [2] > [4] > [1] > [3]", "refused", [], ["counts from zero"]),
  ("[3] < [1] < [5] < [2] < [4]", "refused", [], ["reversed"]),
  (
    "[1] is about dicts\n[2] is about zip\n[3] merges\n[4] hashes\n[5] sorts",
    "refused",
    [],
    ["commentary in shown order"],
  ),
  ("[1] is about dicts\n[2] is about zip\n[4] hashes\n[5] sorts", "refused", [], ["commentary in shown order"]),
  ("[1] -> dicts\n[2] -> zip\n[3] -> merge\n[4] -> hash\n[5] -> sort", "refused", [], ["commentary in shown order"]),
  ("[1] is\n[2] tells if a > b\n[3] merges\n[4] hashes\n[5] sorts", "refused", [], ["commentary in shown order"]),
  ("[3] > [1] ⁇ [5] > [2] > [4]", "refused", [], ["in pieces"]),
  ("3 > 1 ⁇ 5 > 2 > 4", "refused", [], ["in pieces"]),
  ("[3] > [1]\n[5] > [2] > [4]", "refused", [], ["in pieces"]),
  ("Relevant: [3], [1]\nNot relevant: [5], [2], [4]", "refused", [], ["in pieces"]),
  ("Relevant: [3], [1], [5]\nNot relevant: [4], [2]", "repaired", [3, 1, 5], ["missing"]),
  ("[1, 2, 3, 4, 5] are shown.\nAnswer: [3, 1, 5, 2]", "refused", [], ["commentary in shown order"]),
  ("[1] = [2] = [3] = [4] = [5]", "refused", [], ["no ranking"]),
  ("1 3\n2 1\n3 5\n4 2\n5 4", "refused", [], ["no ranking"]),
  ("1,3\n2,1\n3,5\n4,2\n5,4", "refused", [], ["no ranking"]),
  ("[[1, 3], [2, 1], [3, 5], [4, 2], [5, 4]]", "refused", [], ["no ranking"]),
  ("{1: 3, 2: 1, 3: 5, 4: 2, 5: 4}", "refused", [], ["no ranking"]),
  ("3.5, 1, 5, 2, 4", "refused", [], ["no ranking"]),
  ("Scores: [5, 4, 3, 2, 1]", "refused", [], ["no ranking"]),
  ("From the least to the most relevant:\n\n[4] > [2] > [5] > [1] > [3]", "refused", [], ["reversed"]),
  ("From the most to the least relevant:\n\n[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []),
  ("Worst to best: [4], [2], [5], [1], [3]", "refused", [], ["reversed"]),
  *((f"{said}[4] > [2] > [5] > [1] > [3]", "refused", [], ["reversed"]) for said in (
    "Most relevant last: ", "The most useful passages at the end:\n", "**Ranked worst first:**\n\n",
    "Least relevant documents first: ", "In ascending order of relevance: ",
    "I ordered them by increasing relevance.\n",
    "Increasing relevance: ", "By relevance (ascending): ", "Ranking, in increasing order of their relevance:\n",
    "In ascending order: ", 'The query says "best".\nMost relevant last: ', '{"most relevant last": ',
    '{"order": "least relevant first", "ranking": ',
  )),
  ("Ranking in increasing relevance: 4, 2, 5, 1, 3", "refused", [], ["reversed"]),
  *((f"[4] > [2] > [5] > [1] > [3]{said}", "refused", [], ["reversed"]) for said in (
    "\n\n(ordered from least to most relevant)", " (least relevant first)", "\nRanked from worst to best.",
    "\n*Sorted by increasing relevance*",
  )),
  *((f"[3] > [1] > [5] > [2] > [4]{said}", "complete", [3, 1, 5, 2, 4], []) for said in (
    "\n\n(ordered from most to least relevant)", " (most relevant first)", "\n[4] is least relevant, [3] most.",
    "\nThe least relevant is [4], the most relevant [3].", "\nLeast relevant last.",
  )),
  *((f"{said}[3] > [1] > [5] > [2] > [4]", "complete", [3, 1, 5, 2, 4], []) for said in (
    "Most relevant first: ", "Least relevant last: ", "In descending order of relevance: ",
    "By decreasing relevance:\n", "In non-increasing order of relevance: ", "Best first, worst last: ",
    # What a query or passage says, in its own words and quoted.
    "The query is how to sort a list in ascending order.\n", "The least recently used entry is evicted first.\n",
    "Which evidence is of increasing clinical importance?\n", "It was the best film last year.\n",
    'The query is: "show results in ascending order of relevance".\n\n', "The one on “least relevant first” leads.\n",
  )),
  ("[7] > [8] > [9]", "refused", [], ["no ranking"]),
  ("[link](http://x) and [a] > [b]", "refused", [], ["no ranking"]),
  ("<html><body><h1>502 Bad Gateway</h1></body></html>", "refused", [], ["no ranking"]),
]


@pytest.mark.parametrize(("text", "status", "named", "reasons"), TABLE)
def test_table(text, status, named, reasons):
  parsed = parse.parse(text, 5)
  assert (parsed.status, list(parsed.reasons)) == (status, reasons)
  if status == "refused":
    assert parsed.order == () and parsed.filled == ()
    return
  left_out = [number for number in range(1, 6) if number not in named]
  assert [number + 1 for number in parsed.order] == named + left_out
  assert parsed.filled == tuple(range(len(named), 5))


def test_no_text_without_labels_gives_the_order_shown():
  for text in ("", "yes", "ok 1", "I cannot", "[x]"):
    assert parse.parse(text, 5).order == ()


NUMBERS = [f"[{number}]" for number in range(1, 6)]


@pytest.mark.parametrize(
  ("text", "n", "reason"),
  [
    ("I'm sorry, but I cannot rank [1], [2], [3], [4] and [5].", 5, "refusal"),
    ("None of the passages [1], [2], [3], [4], [5] answers the query.", 5, "refusal"),
    ("I cannot rank passages 1, 2, 3, 4, 5 as none is relevant.", 5, "refusal"),
    ("[1] [2] [3] [4] [5]\n\nI am unable to say more.", 5, "refusal"),
    ("Passages [1], [2] and [3] are about dicts; [4] and [5] are not.", 5, "commentary in shown order"),
    ("Both [1] and [2] are irrelevant.", 2, "commentary in shown order"),
    ("Passage [2] is irrelevant.", 2, "commentary in shown order"),
  ],
)
def test_prose_that_mentions_the_passages_ranks_nothing(text, n, reason):
  assert parse.parse(text, n) == parse.Parsed((), "refused", reasons=(reason,))


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.sampled_from(NUMBERS), min_size=3, unique=True).map(sorted),
  st.sampled_from([", ", " and ", " ", "; ", " is short\n", " -> words\n", ": a > b\n"]),
  st.sampled_from(["I looked at ", "The passages are ", "I cannot rank ", "No passage among "]),
  st.sampled_from(["", ".", " are about dicts.", " is long"]),
)
def test_words_around_the_order_shown_are_never_an_answer(numbers, between, before, after):
  assert parse.parse(before + between.join(numbers) + after, 5).status == "refused"


@settings(max_examples=60, deadline=None)
@given(st.permutations(NUMBERS), st.integers(0, 3), st.sampled_from([" ? ", " ∼ ", " or ", " ⟂ ", " / ", "\n"]))
def test_no_passage_in_front_of_an_unknown_separator_ends_up_last(numbers, at, separator):
  text = " > ".join(numbers[: at + 1]) + separator + " > ".join(numbers[at + 1 :])
  parsed = parse.parse(text, 5)
  assert parsed.status == "refused" or [NUMBERS[place] for place in parsed.order] == numbers


def test_what_was_cut_off_is_never_complete():
  cut_off = lambda text, n=3: parse.parse(text, n, whole=False)
  assert cut_off("At first sight [1] > [2] > [3]. But on reading closer, passage").reasons == ("truncated",)
  assert cut_off("At first sight [1] > [2] > [3]. But on reading closer, passage").status == "refused"
  assert cut_off("[3] > [1] > [2]") == parse.Parsed((2, 0, 1), "repaired", (), ("truncated",))
  assert cut_off("[3] > [1] > [") == parse.Parsed((2, 0, 1), "repaired", (2,), ("missing", "truncated"))
  # A 1 that ends the text may have become 12.
  assert cut_off("3 > 2 > 1").status == "refused" and cut_off("3 > 2 > 1 >").status == "repaired"
  assert cut_off("").reasons == ("empty",)


def test_one_passage():
  assert parse.parse("[1]", 1) == parse.Parsed((0,), "complete")
  assert parse.parse("[2]", 1).status == "refused"


_PIECES = st.sampled_from(
  [
    "[",
    "]",
    "[1]",
    "[2]",
    "[3]",
    "[4]",
    "[12]",
    "[0]",
    ">",
    " > ",
    "<",
    "=",
    "...",
    "-",
    ", ",
    "\n",
    "1. ",
    "[1-3]",
    "<think>",
    "</think>",
    "```",
    '"',
    "{",
    "}",
    "passage ",
    "sorry",
    "[1, 2, 3]",
    "４",
    "[٣]",
    "\\",
    "&gt;",
    " to ",
    "best",
  ]
)


def _check_laws(text, n):
  parsed = parse.parse(text, n)
  if parsed.status == "refused":
    assert parsed.order == () and parsed.filled == () and parsed.reasons
    return
  assert sorted(parsed.order) == list(range(n))
  assert parsed.filled == tuple(range(n - len(parsed.filled), n)) and 2 * len(parsed.filled) <= n
  filled = [parsed.order[place] for place in parsed.filled]
  assert filled == sorted(filled)
  assert (parsed.status == "complete") == (not parsed.reasons)
  if parsed.status == "complete":
    assert not parsed.filled


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=200), st.lists(_PIECES, max_size=40).map("".join)), st.integers(1, 24))
def test_never_raises_and_keeps_its_laws(text, n):
  _check_laws(text, n)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.permutations(range(1, 9)), st.lists(st.integers(0, 9), min_size=1, max_size=10)))
def test_the_form_asked_for_is_read_as_all_others_are(numbers):
  text = " > ".join(f"[{number}]" for number in numbers)
  with mock.patch.object(parse, "_as_asked_for", return_value=None):
    as_others = parse.parse(text, 8)
  assert parse.parse(text, 8) == as_others


@settings(max_examples=100, deadline=None)
@given(
  st.integers(1, 30).flatmap(lambda n: st.permutations(range(n))),
  st.sampled_from([" > ", ">", ", ", "\n", " >\n"]),
)
def test_every_permutation_comes_back(order, separator):
  text = separator.join(f"[{number + 1}]" for number in order)
  assert parse.parse(text, len(order)) == parse.Parsed(tuple(order), "complete")


@pytest.mark.parametrize(
  "unit",
  [
    "[",
    "]",
    "-",
    ">",
    "> ",
    "\n",
    "[1] ",
    "[1]\n",
    "1 ",
    "1,",
    "passage ",
    "<think>",
    "<a",
    "1. \n",
    "[1] - ",
    "[1] words ",
    "1 2 ",
    "least ",
    "“most relevant last [1] ",
    "in increasing relevant ",
  ],
)
def test_long_nonsense_takes_no_time(unit):
  started = time.process_time()
  _check_laws(unit * (40_000 // len(unit)), 20)
  assert time.process_time() - started < 3


@needs_data
def test_recorded_answers_are_all_complete():
  path = pathlib.Path(DATA) / "quickstart" / "llm_answers.jsonl"
  answers = [json.loads(line) for line in path.read_text().splitlines()]
  parsed = [parse.parse(answer["response"], len(answer["candidates"])) for answer in answers]
  assert collections.Counter(p.status for p in parsed) == {"complete": 1000}
  for answer, p in zip(answers, parsed, strict=True):
    assert list(p.order) == [int(number) - 1 for number in re.findall(r"\d+", answer["response"])]


@needs_data
def test_raw_windows_of_real_models_are_all_classified():
  with gzip.open(pathlib.Path(DATA) / "trec-dl" / "raw_windows.jsonl.gz", "rt") as file:
    windows = [json.loads(line) for line in file]
  found = collections.Counter()
  for window in windows:
    n, text = len(window["candidates"]), window["response"]
    parsed = parse.parse(text, n)
    found[parsed.status, parsed.reasons] += 1
    numbers = [int(number) - 1 for number in re.findall(r"\d+", text)]
    if sorted(numbers) == list(range(n)):
      assert parsed == parse.Parsed(tuple(numbers), "complete")
    else:
      assert parsed.status == "repaired"
  assert len(windows) == 5076
  assert found == {
    ("complete", ()): 4810,
    ("repaired", ("duplicate",)): 185,
    ("repaired", ("missing", "duplicate")): 73,
    ("repaired", ("missing",)): 7,
    ("repaired", ("duplicate", "truncated")): 1,
  }
