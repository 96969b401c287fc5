"""A raw answer of an LLM, number of passages shown -> an order with a status, never a guess in disguise.

An answer that names too little is refused and has no order at all.  Filling it up with the order in which the
passages were shown would teach the student to imitate the first stage.
"""

import dataclasses
import html
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal

from idistill_jax.llm import chains

Status = Literal["complete", "repaired", "refused"]
Reason = Literal[
  # why an answer was repaired
  "missing",  # passages that it does not name
  "duplicate",  # passages that it names again; the first place counts
  "out of range",  # numbers that no passage has
  "tie",  # `[2] = [5]`; the written order counts
  "range",  # `[3]-[7]` says nothing about the order within; its passages count as not named
  "ellipsis",  # `[3] > ... > [9]`
  "truncated",  # ends within a label or behind a separator, or was cut off; refused where words follow the list
  # why it was refused
  "empty",
  "refusal",  # the model says that it cannot or will not
  "no ranking",  # words, but no list of labels
  "fewer than half",  # names less than half of the passages
  "counts from zero",  # names a passage 0: every other number is off by one, or not, nobody knows
  "reversed",  # `[2] < [5]`, which may mean best last and may be a slip, or words before the list that say best last
  "commentary in shown order",  # goes through the passages one by one, or speaks of all of them, and ranks nothing
  "in pieces",  # what the list lacks stands in another one beside it; how the two hang together nobody knows
]


@dataclasses.dataclass(frozen=True, slots=True)
class Parsed:
  """What an answer says.

  order: 0-based numbers of the passages shown, best first; a permutation, or empty where refused.
  filled: places (0-based, in `order`) that the answer left out; they hold the passages that it does not name,
    in the order shown, behind those that it does.
  reasons: what was repaired, or why it was refused; empty where complete.
  """

  order: tuple[int, ...]
  status: Status
  filled: tuple[int, ...] = ()
  reasons: tuple[Reason, ...] = ()


def parse(text: str, n: int, *, whole: bool = True) -> Parsed:
  """Reads an answer about `n` passages; never raises on any text.

  Complete: every passage named exactly once, and nothing odd.  Refused: nothing usable, see `Reason`; in
  particular fewer than half of the passages named.  Repaired: all else.  Labels count from 1, as in `[4] >
  [16]`; comma lists, JSON lists, one label a line and bare `4 > 16` are understood as well.  Of several
  rankings in one answer, the one nearest to the form asked for counts, and of equals the last.

  whole: whether the model ended the answer itself.  One that was cut off is never complete.
  """
  if n < 1:
    raise ValueError(f"an answer about {n} passages cannot be read")
  if whole and (asked_for := _as_asked_for(text, n)):
    return asked_for
  clean = _clean(text)
  if not clean.strip():
    return _refused("empty")
  found = [run.without_echo(n) for run in chains.find(clean) if run.named(n)]
  if not found:
    return _refused("refusal" if _REFUSAL.search(clean) else "no ranking")
  usable = [chain for chain in found if 2 * len(chain.named(n)) >= n]
  if not usable:
    longest = max(found, key=lambda chain: len(chain.named(n)))
    refusal: tuple[Reason, ...] = ("refusal",) if _REFUSAL.search(clean) else ()
    return _refused("fewer than half", *refusal, *_oddities(longest, n))
  best = max(usable, key=lambda chain: (chain.closeness, len(chain.named(n)), chain.end))
  why = _misread(best, clean, text) or _in_pieces(best, found, clean, n) or (None if whole else _cut_off(best, clean))
  if why is not None:
    return _refused(why)
  named = best.named(n)
  missing = [number for number in range(1, n + 1) if number not in set(named)]
  reasons = _oddities(best, n)
  if not whole or _BROKEN_OFF.fullmatch(clean, best.end):
    reasons.append("truncated")
  return Parsed(
    order=tuple(number - 1 for number in (*named, *missing)),
    status="repaired" if reasons else "complete",
    filled=tuple(range(len(named), n)),
    reasons=tuple(reasons),
  )


def _as_asked_for(text: str, n: int) -> Parsed | None:
  """An answer of just the form that the prompt asks for, as most are: what follows would read it alike, and slowly."""
  if not _AS_ASKED_FOR.fullmatch(text):
    return None
  numbers = [int(digits) for digits in _DIGITS.findall(text)]
  in_order = sorted(numbers) == list(range(1, n + 1))
  return Parsed(order=tuple(number - 1 for number in numbers), status="complete") if in_order else None


def _oddities(chain: chains.Chain, n: int) -> list[Reason]:
  inside = [number for number in chain.numbers if 1 <= number <= n]
  found: list[tuple[Reason, bool]] = [
    ("missing", len(set(inside)) < n),
    ("duplicate", len(set(inside)) < len(inside)),
    ("out of range", len(inside) < len(chain.numbers)),
    ("tie", "tie" in chain.links),
    ("range", chain.has_range),
    ("ellipsis", "ellipsis" in chain.links),
  ]
  return [reason for reason, holds in found if holds]


def _misread(chain: chains.Chain, clean: str, text: str) -> Reason | None:
  """What the labels say where they do not say which passage is best; arrows always do."""
  before = clean[:chain.start].rpartition("\n")[2]
  after = clean[chain.end:].partition("\n")[0]
  numbers = chain.numbers
  if 0 in numbers:
    return "counts from zero"
  if "reversed" in chain.links or _is_worst_first(chain, clean, text):
    return "reversed"
  if chain.has_arrows:
    return None
  lists = sum(len(label.numbers) > 1 for label in chain.labels)
  pairs = lists > 1 and len(set(numbers)) < len(numbers)
  if pairs or set(chain.links) == {"tie"} or _MARKS.search(before):
    return "no ranking"
  if list(dict.fromkeys(numbers)) != sorted(set(numbers)):
    return None
  if _REFUSAL.search(clean):
    return "refusal"
  told = "comment" in chain.links or _LETTER.search(_HEADING.sub("", before) + after)
  return "commentary in shown order" if told else None


def _is_worst_first(chain: chains.Chain, clean: str, text: str) -> bool:
  """Whether the words before the labels, or a note right behind them, say that the best come last, in the answer's own
  words: a query or passage that it quotes says nothing of its order.  Quotation marks of JSON quote nobody."""
  if _NOTE_OF_WORST_FIRST.match(clean, chain.end):
    return True
  if not _WORST_FIRST.search(clean, max(0, chain.start - _HEADING_REACHES), chain.start):
    return False
  own = text if _JSON_KEY.search(text) else _QUOTED.sub(" ", text)
  return _WORST_FIRST.search(_clean(own)) is not None


def _in_pieces(chain: chains.Chain, found: Sequence[chains.Chain], clean: str, n: int) -> Reason | None:
  """Filled up at the end, what stands in front of an unknown separator would turn from the best to the worst."""
  missing = set(range(1, n + 1)).difference(chain.named(n))
  for other in found:
    if missing.intersection(other.named(n)):
      between = clean[min(other.end, chain.end) : max(other.start, chain.start)]
      # `Relevant: [3], [1]`, a line break, `Not relevant: [4], [2]`; what goes through all of them is another text.
      in_front = other.end <= chain.start and missing.issuperset(other.named(n))
      if in_front or "\n" not in between or not _LETTER.search(between):
        return "in pieces"
  return None


def _cut_off(chain: chains.Chain, clean: str) -> Reason | None:
  """A ranking with words behind it was not the last one to come; a bare 1 may be the beginning of 12."""
  rest = clean[chain.end:]
  half_a_number = not rest and clean[-1].isdigit()
  return "truncated" if half_a_number or _LETTER.search(rest) else None


def _refused(*reasons: Reason) -> Parsed:
  return Parsed(order=(), status="refused", reasons=reasons)


# --- text ---

_AS_ASKED_FOR = re.compile(r"\s*\[[0-9]{1,4}\](?: > \[[0-9]{1,4}\])*\s*")
_DIGITS = re.compile(r"[0-9]+")
_THOUGHT = re.compile(
  r"<(think|thinking|thought|reasoning|scratchpad)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE
)
_END_OF_THOUGHT = re.compile(
  r"\A.*</(?:think|thinking|thought|reasoning|scratchpad)>", re.DOTALL | re.IGNORECASE
)
# Of gpt-oss, from a server that does not take its channels apart.
_FINAL_CHANNEL = re.compile(r"\A.*<\|channel\|>final<\|message\|>", re.DOTALL)
_TAG = re.compile(r"</?[A-Za-z][^<>\n\[\]]{0,60}>|<\|[a-z_]{1,30}\|>")
_ARROW = re.compile(r"[-=]{1,3}>|\\(?:succ|gt|rightarrow|to)\b|[→⇒≻›»⟩]|>[\s>]*>")
_WORD_BEFORE_LABEL = re.compile(r"\b(?:passage|document|doc|text)s?\s*#?\s*(?=\[)", re.IGNORECASE)
_WORD_AS_LABEL = re.compile(r"\b(?:passage|document|doc)\s*#?(\d+)\b", re.IGNORECASE)
_REFUSAL = re.compile(
  r"\b(?:sorry|cannot|can\W?t|won\W?t|unable to|not able to|as an ai|none of)\b",
  re.IGNORECASE,
)
# A list of marks, one a passage, and a list from the worst passage to the best.
_MARKS = re.compile(r"\b(?:scores?|ratings?|grades?)\b", re.IGNORECASE)
# Texts are about ascending orders, and of increasing importance, as well: those of worth alone are of a ranking.
_WORTH = r"(?:\w+\s+)?(?:relevan|useful|helpful|importan|pertinen|suitab|similar)\w*"
_ONE = r"(?:\s+(?:passage|document|doc|text|result|answer|match|one|item)(?:e?s)?)?"
_WORST_LEADS, _BEST_IS = rf"(?:worst|least\s+{_WORTH}){_ONE}\s+first\b", rf"(?:best|most\s+{_WORTH}){_ONE}\s+"
_WORST_FIRST = re.compile(
  # Not "from best to worst, the most relevant first", nor "at least".
  r"(?<!\bto )(?<!\bto the )(?<!\bat )(?<!> )\b(?:worst|least)\b.{0,40}\b(?:best|most)\b"
  rf"|\b{_WORST_LEADS}"
  rf"|\b{_BEST_IS}(?:last|at\s+the\s+(?:end|bottom))\b"
  rf"|(?<!non-)\b(?:ascending|increasing)\s+order\s+(?:of|by)\s+{_WORTH}"
  rf"|(?:\b(?:in|by|order\s+of)\s+|^[^\w\n]*)(?:ascending|increasing)\s+{_WORTH}"
  rf"|\b{_WORTH}\W{{1,3}}(?:(?:in\s+)?ascending|in\s+increasing)\b"
  r"|(?<!non-)\b(?:ascending|increasing)\s+order\s*:\s*(?=[\[\d]|\Z)",
  re.IGNORECASE | re.MULTILINE,
)
# `(ordered from least to most relevant)`; other words behind a list, as "[4] is the least relevant", explain it.
_NOTE_OF_WORST_FIRST = re.compile(
  r"\W{0,6}(?:(?:ordered|ranked|sorted|listed|arranged|order|ranking)\b\W{0,3})?(?:from\s+(?:the\s+)?)?"
  rf"(?:(?:worst|least)(?:\s+{_WORTH})?\s+to\s+(?:the\s+)?(?:best|most)\b"
  rf"|{_WORST_LEADS}|{_BEST_IS}last\b"
  rf"|(?:in|by)\s+(?:ascending|increasing)\s+(?:order\s+of\s+)?{_WORTH})",
  re.IGNORECASE,
)
_JSON_KEY = re.compile(r'"\s*:')
_QUOTED = re.compile(r'"[^"\n]{0,400}"|“[^”\n]{0,400}”')
# What stands before a ranking on its line and says that it is one.
_HEADING = re.compile(r"\b(?:the|my|is|final|json|answer|order|output|rank|ranked|ranking|result)\b", re.IGNORECASE)
_HEADING_REACHES = 120
_LETTER = re.compile(r"[^\W\d_]")
# What may follow a ranking that was cut off: a separator, perhaps with the start of a label.
_BROKEN_OFF = re.compile(r"\s*(?:[>,]\s*(?:\[\s*\d*)?|\[\s*\d*)\s*")
_VARIANTS = str.maketrans("【】〔〕⟦⟧", "[][][]", "*`\"'\u200b\ufeff") | {ord("≥"): ">="}


def without_thoughts(text: str) -> str:
  """What a model says when it has done with thinking aloud; empty where it never ended."""
  return _END_OF_THOUGHT.sub("", _THOUGHT.sub("", _FINAL_CHANNEL.sub("", text)))


def _clean(text: str) -> str:
  """The answer without thoughts, markup and typographic variants of brackets, digits and arrows."""
  text = html.unescape(unicodedata.normalize("NFKC", text))
  text = without_thoughts(text).translate(_VARIANTS)
  text = _ARROW.sub(">", _TAG.sub(" ", text)).replace("\\", "")
  return _WORD_AS_LABEL.sub(r"[\1]", _WORD_BEFORE_LABEL.sub("", text))

