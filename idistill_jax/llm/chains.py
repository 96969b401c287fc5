"""An answer's text -> the runs of labels in it, such as `[4] > [16]`, and what stands between them.

Which run is the answer, and whether it can be believed, is for `parse` to say.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Literal

Link = Literal["plain", "tie", "ellipsis", "dash", "reversed", "comment"]


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
  """What one pair of brackets (or one bare run) holds: numbers, or a range of them."""

  start: int
  end: int
  numbers: tuple[int, ...]
  is_range: bool = False
  arrow: bool = False


@dataclasses.dataclass(frozen=True)  # no slots: what is asked for often is kept
class Chain:
  """Labels that belong together.  links, arrows: what stands between neighbours, and whether it holds an arrow."""

  labels: tuple[Label, ...]
  links: tuple[Link, ...]
  arrows: tuple[bool, ...]

  @property
  def start(self) -> int:
    return self.labels[0].start

  @property
  def end(self) -> int:
    return self.labels[-1].end

  @property
  def has_arrows(self) -> bool:
    return any(self.arrows) or any(label.arrow for label in self.labels)

  @property
  def has_range(self) -> bool:
    return any(label.is_range for label in self.labels) or ("dash" in self.links and not self._dashes_separate)

  @property
  def closeness(self) -> int:
    """How near to the form asked for: arrows, then plain lists, then labels with words between them."""
    return ("comment" not in self.links) * 2 + self.has_arrows

  @property
  def _dashes_separate(self) -> bool:
    return len(self.links) > 1 and set(self.links) == {"dash"}

  @functools.cached_property
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

  def without_echo(self, n: int) -> "Chain":
    """What follows a list of all passages: a model may repeat what it was given before it answers.

    Arrows within that list make it an answer, which then goes round in circles, unless words lead to another of all
    passages: the first was a draft.
    """
    seen: set[int] = set()
    for i, label in enumerate(self.labels[:-1]):
      seen.update(label.numbers)
      if seen.issuperset(range(1, n + 1)):
        echo = Chain(self.labels[: i + 1], self.links[:i], self.arrows[:i])
        rest = Chain(self.labels[i + 1 :], self.links[i + 1 :], self.arrows[i + 1 :])
        if echo.has_arrows:
          is_answer = self.links[i] == "comment" and len(rest.named(n)) == n
        else:
          is_answer = 2 * len(rest.named(n)) >= n
        return rest.without_echo(n) if is_answer else self
    return self


_BRACKETS = re.compile(r"\[([^\[\]]{1,4000})\]")
_NUMBERS = re.compile(r"\s*\d+(?:[\s,;|>]+\d+)*[\s,;|>]*")
_RANGE = re.compile(r"\s*\d+\s*(?:[-–—~:]|\.\.+|to|through)\s*\d+\s*", re.IGNORECASE)
_BARE = re.compile(r"(?<![\w.\[])\d+(?:\.\d+)?(?:\s*[>,]\s*\d+(?:\.\d+)?)+(?![\w\]])")
_NOTHING_BUT_NUMBERS = re.compile(r"\s*\d+(?:\s+\d+)+\s*")
# A list marker in front of a label: `- `, `3. `, `#3: `, `Rank 3: `.
_MARKER = re.compile(r"\n\s*(?:[-•+]|(?:rank\s*)?#?\d{1,4}\s*[.):-]?)?\s*\Z", re.IGNORECASE)
_LONGEST_COMMENT = 400


def find(clean: str) -> Iterator[Chain]:
  """Every run of labels in the text; bare numbers only where no brackets form a run."""
  runs = list(_bracket_runs(clean))
  yield from runs
  if not any(len(run.numbers) > 1 for run in runs):
    yield from _bare_runs(clean)


def _bare_runs(clean: str) -> Iterator[Chain]:
  """Runs such as `4 > 16`.  Several of `4, 16` are a table of ranks or scores; so is what has a decimal point."""
  matches = [match for match in _BARE.finditer(clean) if "." not in match[0]]
  rows = [len(line.split()) for line in clean.strip().splitlines()]
  if not matches and (len(rows) == 1 or max(rows) == 1) and (numbers := _NOTHING_BUT_NUMBERS.fullmatch(clean)):
    matches = [numbers]
  for match in matches:
    arrow = ">" in match[0]
    if arrow or len(matches) == 1:
      yield Chain((Label(match.start(), match.end(), _read_numbers(match[0]), arrow=arrow),), (), ())


def _bracket_runs(clean: str) -> Iterator[Chain]:
  labels = list(_labels(clean))
  gaps = [clean[left.end : right.start] for left, right in itertools.pairwise(labels)]
  links = [_link(gap) for gap in gaps]
  # In `[1] -> dicts`, `[2] if a > b` the arrow leads to words, not to the next label.
  arrows = [
    ">" in gap and (link != "comment" or gap.rstrip().endswith(">")) for gap, link in zip(gaps, links, strict=True)
  ]
  start = 0
  for i in range(len(labels)):
    if i < len(gaps) and links[i] is not None and not _begins_anew(gaps, arrows, i):
      continue
    joined = tuple(link for link in links[start:i] if link is not None)
    yield Chain(tuple(labels[start : i + 1]), joined, tuple(arrows[start:i]))
    start = i + 1


def _begins_anew(gaps: list[str], arrows: list[bool], i: int) -> bool:
  """Whether a line break ends a run of arrows or comes before one: what stands beyond it is another text."""
  return "\n" in gaps[i] and not arrows[i] and (any(arrows[max(i - 1, 0) : i]) or any(arrows[i + 1 : i + 2]))


def _labels(clean: str) -> Iterator[Label]:
  for match in _BRACKETS.finditer(clean):
    if _NUMBERS.fullmatch(match[1]):
      yield Label(match.start(), match.end(), _read_numbers(match[1]), arrow=">" in match[1])
    elif _RANGE.fullmatch(match[1]):
      yield Label(match.start(), match.end(), _read_numbers(match[1]), is_range=True)


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
  "~": "tie",
  "≈": "tie",
  "≃": "tie",
  "...": "ellipsis",
  "..": "ellipsis",
  "-": "dash",
  "–": "dash",
  "—": "dash",
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
