"""A raw answer of an LLM, number of passages shown -> an order with a status, never a guess in disguise.

An answer that names too little is refused and has no order at all.  Filling it up with the order in which the
passages were shown would teach the student to imitate the first stage.
"""

import dataclasses
import html
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

Status = Literal["complete", "repaired", "refused"]
Reason = Literal[
  # why an answer was repaired
  "missing",  # passages that it does not name
  "duplicate",  # passages that it names again; the first place counts
  "out of range",  # numbers that no passage has
  "tie",  # `[2] = [5]`; the written order counts
  "range",  # `[3]-[7]` says nothing about the order within; its passages count as not named
  "ellipsis",  # `[3] > ... > [9]`
  "truncated",  # ends within a label or behind a separator
  # why it was refused
  "empty",
  "refusal",  # the model says that it cannot or will not
  "no ranking",  # words, but no list of labels
  "fewer than half",  # names less than half of the passages
  "counts from zero",  # names a passage 0: every other number is off by one, or not, nobody knows
  "reversed",  # `[2] < [5]`: may mean best last, may be a slip
  "commentary in shown order",  # goes through the passages one by one and ranks nothing
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


def parse(text: str, n: int) -> Parsed:
  """Reads an answer about `n` passages; never raises on any text.

  Complete: every passage named exactly once, and nothing odd.  Refused: nothing usable, see `Reason`; in
  particular fewer than half of the passages named.  Repaired: all else.  Labels count from 1, as in `[4] >
  [16]`; comma lists, JSON lists, one label a line and bare `4 > 16` are understood as well.  Of several
  rankings in one answer, the one nearest to the form asked for counts, and of equals the last.
  """
  if n < 1:
    raise ValueError(f"an answer about {n} passages cannot be read")
  clean = _clean(text)
  if not clean.strip():
    return _refused("empty")
  chains = [chain for chain in _chains(clean) if chain.named(n)]
  if not chains:
    return _refused("refusal" if _REFUSAL.search(clean) else "no ranking")
  usable = [chain for chain in chains if 2 * len(chain.named(n)) >= n]
  if not usable:
    longest = max(chains, key=lambda chain: len(chain.named(n)))
    refusal: tuple[Reason, ...] = ("refusal",) if _REFUSAL.search(clean) else ()
    return _refused("fewer than half", *refusal, *longest.reasons(n))
  best = max(usable, key=lambda chain: (chain.closeness, len(chain.named(n)), chain.end))
  return _judge(best, n, truncated=bool(_BROKEN_OFF.fullmatch(clean, best.end)))


def _judge(chain: "_Chain", n: int, truncated: bool) -> Parsed:
  if 0 in chain.numbers:
    return _refused("counts from zero")
  if "reversed" in chain.links:
    return _refused("reversed")
  named = chain.named(n)
  if "comment" in chain.links and not chain.arrows and named == list(range(1, len(named) + 1)):
    return _refused("commentary in shown order")
  missing = [number for number in range(1, n + 1) if number not in set(named)]
  reasons = chain.reasons(n)
  if truncated:
    reasons.append("truncated")
  return Parsed(
    order=tuple(number - 1 for number in (*named, *missing)),
    status="repaired" if reasons else "complete",
    filled=tuple(range(len(named), n)),
    reasons=tuple(reasons),
  )


def _refused(*reasons: Reason) -> Parsed:
  return Parsed(order=(), status="refused", reasons=reasons)


# --- text ---

_THOUGHT = re.compile(
  r"<(think|thinking|thought|reasoning|scratchpad)>.*?(?:</\1>|\Z)", re.DOTALL | re.IGNORECASE
)
_END_OF_THOUGHT = re.compile(
  r"\A.*</(?:think|thinking|thought|reasoning|scratchpad)>", re.DOTALL | re.IGNORECASE
)
_TAG = re.compile(r"</?[A-Za-z][^<>\n\[\]]{0,60}>")
_ARROW = re.compile(r"[-=]{1,3}>|\\(?:succ|gt|rightarrow|to)\b|[→⇒≻›»⟩]|>[\s>]*>")
_WORD_BEFORE_LABEL = re.compile(r"\b(?:passage|document|doc|text)s?\s*#?\s*(?=\[)", re.IGNORECASE)
_WORD_AS_LABEL = re.compile(r"\b(?:passage|document|doc)\s*#?(\d+)\b", re.IGNORECASE)
_REFUSAL = re.compile(
  r"\b(?:sorry|cannot|can\W?t|won\W?t|unable to|not able to|as an ai)\b",
  re.IGNORECASE,
)
# What may follow a ranking that was cut off: a separator, perhaps with the start of a label.
_BROKEN_OFF = re.compile(r"\s*(?:[>,]\s*(?:\[\s*\d*)?|\[\s*\d*)\s*")


def without_thoughts(text: str) -> str:
  """What a model says when it has done with thinking aloud; empty where it never ended."""
  return _END_OF_THOUGHT.sub("", _THOUGHT.sub("", text))


def _clean(text: str) -> str:
  """The answer without thoughts, markup and typographic variants of brackets, digits and arrows."""
  text = html.unescape(unicodedata.normalize("NFKC", text))
  text = without_thoughts(text).translate(str.maketrans("【】〔〕⟦⟧", "[][][]", "*`\"'\u200b\ufeff"))
  text = _ARROW.sub(">", _TAG.sub(" ", text)).replace("\\", "")
  return _WORD_AS_LABEL.sub(r"[\1]", _WORD_BEFORE_LABEL.sub("", text))


# --- labels and what stands between them ---

Link = Literal["plain", "tie", "ellipsis", "dash", "reversed", "comment"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Label:
  """What one pair of brackets (or one bare run) holds: numbers, or a range of them."""

  start: int
  end: int
  numbers: tuple[int, ...]
  is_range: bool = False
  arrow: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Chain:
  """Labels that belong together.  links: what stands between neighbours."""

  labels: tuple[_Label, ...]
  links: tuple[Link, ...]
  arrows: bool

  @property
  def end(self) -> int:
    return self.labels[-1].end

  @property
  def _dashes_separate(self) -> bool:
    return len(self.links) > 1 and set(self.links) == {"dash"}

  @property
  def closeness(self) -> int:
    """How near to the form asked for: arrows, then plain lists, then labels with words between them."""
    return ("comment" not in self.links) * 2 + self.arrows

  @property
  def numbers(self) -> list[int]:
    """Every number named, ranges left out."""
    found: list[int] = []
    separate = self._dashes_separate
    for i, label in enumerate(self.labels):
      neighbours = self.links[max(i - 1, 0) : i + 1]
      if not label.is_range and (separate or "dash" not in neighbours):
        found += label.numbers
    return found

  def named(self, n: int) -> list[int]:
    """Numbers of passages in the order of their first mention."""
    return list(dict.fromkeys(number for number in self.numbers if 1 <= number <= n))

  def reasons(self, n: int) -> list[Reason]:
    inside = [number for number in self.numbers if 1 <= number <= n]
    has_range = any(label.is_range for label in self.labels) or (
      "dash" in self.links and not self._dashes_separate
    )
    found: list[tuple[Reason, bool]] = [
      ("missing", len(set(inside)) < n),
      ("duplicate", len(set(inside)) < len(inside)),
      ("out of range", len(inside) < len(self.numbers)),
      ("tie", "tie" in self.links),
      ("range", has_range),
      ("ellipsis", "ellipsis" in self.links),
    ]
    return [reason for reason, holds in found if holds]


_BRACKETS = re.compile(r"\[([^\[\]]{1,4000})\]")
_NUMBERS = re.compile(r"\s*\d+(?:[\s,;|>]+\d+)*[\s,;|>]*")
_RANGE = re.compile(r"\s*\d+\s*(?:[-–—~:]|\.\.+|to|through)\s*\d+\s*", re.IGNORECASE)
_BARE = re.compile(r"(?<![\w.\[])\d+(?:\s*[>,]\s*\d+)+(?![\w\]])")
_NOTHING_BUT_NUMBERS = re.compile(r"\s*\d+(?:\s+\d+)+\s*")
# A list marker in front of a label: `- `, `3. `, `#3: `, `Rank 3: `.
_MARKER = re.compile(r"\n\s*(?:[-•+]|(?:rank\s*)?#?\d{1,4}\s*[.):-]?)?\s*\Z", re.IGNORECASE)
_LONGEST_COMMENT = 400


def _chains(clean: str) -> Iterator[_Chain]:
  """Every run of labels in the text; bare numbers only where no brackets form a run."""
  runs = list(_bracket_runs(clean))
  yield from runs
  if any(len(run.numbers) > 1 for run in runs):
    return
  for match in _BARE.finditer(clean):
    yield _bare_run(match)
  if lines := _NOTHING_BUT_NUMBERS.fullmatch(clean):
    yield _bare_run(lines)


def _bare_run(match: re.Match[str]) -> _Chain:
  label = _Label(match.start(), match.end(), _read_numbers(match[0]))
  return _Chain((label,), (), arrows=">" in match[0])


def _bracket_runs(clean: str) -> Iterator[_Chain]:
  labels = list(_labels(clean))
  gaps = [clean[left.end : right.start] for left, right in itertools.pairwise(labels)]
  links = [_link(gap) for gap in gaps]
  arrows = [">" in gap for gap in gaps]
  start = 0
  for i in range(len(labels)):
    if i < len(gaps) and links[i] is not None and not _begins_anew(gaps, arrows, i):
      continue
    joined = tuple(link for link in links[start:i] if link is not None)
    run = tuple(labels[start : i + 1])
    yield _Chain(run, joined, any(arrows[start:i]) or any(label.arrow for label in run))
    start = i + 1


def _begins_anew(gaps: list[str], arrows: list[bool], i: int) -> bool:
  """Whether a line break ends a run of arrows or comes before one: what stands beyond it is another text."""
  return "\n" in gaps[i] and not arrows[i] and (any(arrows[max(i - 1, 0) : i]) or any(arrows[i + 1 : i + 2]))


def _labels(clean: str) -> Iterator[_Label]:
  for match in _BRACKETS.finditer(clean):
    if _NUMBERS.fullmatch(match[1]):
      yield _Label(match.start(), match.end(), _read_numbers(match[1]), arrow=">" in match[1])
    elif _RANGE.fullmatch(match[1]):
      yield _Label(match.start(), match.end(), _read_numbers(match[1]), is_range=True)


def _read_numbers(text: str) -> tuple[int, ...]:
  # More digits than any list has passages: any number out of range will do, and int() refuses very long ones.
  return tuple(int(digits[:9]) for digits in re.findall(r"\d+", text))


_WORDLESS: dict[str, Link] = {
  "": "plain",
  "and": "plain",
  "then": "plain",
  "&": "plain",
  "=": "tie",
  "==": "tie",
  "...": "ellipsis",
  "..": "ellipsis",
  "-": "dash",
  "–": "dash",
  "—": "dash",
  "~": "dash",
  "to": "dash",
  "through": "dash",
  "<": "reversed",
}


def _link(gap: str) -> Link | None:
  """How two labels with that text between them hang together; None where they do not."""
  if len(gap) > _LONGEST_COMMENT:
    return None
  unmarked = _MARKER.sub("\n", gap)
  core = unmarked.strip(" \t\r\n>,;|[]").lower()
  if core in _WORDLESS:
    return _WORDLESS[core]
  next_on_a_line_of_its_own = unmarked.endswith("\n")
  arrow_before_next = gap.rstrip().endswith(">") and "\n" not in gap
  return "comment" if next_on_a_line_of_its_own or arrow_before_next else None
