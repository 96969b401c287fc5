"""What flows between stages: frozen records and their form as `tf.train.Example` features.

Ids are `str`.  Every record carries the schema version; a reader refuses one it does not know.
"""

import dataclasses
from collections.abc import Set

from idistill_jax import config

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
  """A retrievable text.  `full_text` is what every model reads."""

  id: str
  title: str
  text: str

  @property
  def full_text(self) -> str:
    """The title as a sentence of its own, then the text."""
    title = self.title.strip()
    if not title or title[-1] in ".?!:":
      return f"{title} {self.text}".strip()
    return f"{title}. {self.text}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Query:
  id: str
  text: str
  split: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CandidateList:
  """A query's passages in the initial retriever's order, best first, with their similarities."""

  query_id: str
  passage_ids: tuple[str, ...]
  scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RankedList:
  """A query's passages in the LLM's order, best first.

  `permutation`: where each passage stood (0-based) in the list that was asked about; empty where not known.
  `filled_places` are places (0-based) that the LLM left out and the parser filled in.
  `status` is "complete" or "repaired"; refused answers never become a record.  `repairs`: why it is the second.
  `agreement`: mean Kendall tau of the orders that were asked for, 1 for a single one.
  `weight`: how much the list counts in the ranker's loss.
  `usage`: input and output tokens of its answers; empty where the provider tells none.
  """

  query_id: str
  passage_ids: tuple[str, ...]
  status: str
  permutation: tuple[int, ...] = ()
  filled_places: tuple[int, ...] = ()
  agreement: float = 1.0
  weight: float = 1.0
  template: str = ""
  model: str = ""
  usage: tuple[int, ...] = ()
  repairs: tuple[str, ...] = config.later(())

  def without(self, passage_ids: Set[str]) -> "RankedList":
    """The order of the others."""
    places = [place for place, one in enumerate(self.passage_ids) if one not in passage_ids]
    return dataclasses.replace(
      self, passage_ids=tuple(self.passage_ids[place] for place in places),
      permutation=tuple(self.permutation[place] for place in places) if self.permutation else (),
      filled_places=tuple(new for new, place in enumerate(places) if place in self.filled_places),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ScoredList:
  """A query's passages with the ranker's scores, best first."""

  query_id: str
  passage_ids: tuple[str, ...]
  scores: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
  """What counts as a right answer to a question, in any of several wordings."""

  query_id: str
  answers: tuple[str, ...]
