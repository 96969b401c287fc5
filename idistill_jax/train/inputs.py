"""What the trainings read: token tables, similarities, and lists decoded to rows."""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from idistill_jax import artifacts, records
from idistill_jax.data import batches, example, similarity, tables, tokenize
from idistill_jax.train import networks, truncation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The collection as numbers; of passages in no list, passage_tokens has none."""

  passages: tables.Passages
  queries: tables.Queries
  passage_tokens: tokenize.TokenTable
  query_tokens: tokenize.TokenTable
  similarity: similarity.Similarities

  def ranked(self, payload: bytes) -> batches.TrainingList:
    """The LLM's order: values are places, 0 = best."""
    one = example.decode(records.RankedList, payload)
    known = np.ones(len(one.passage_ids), bool)
    known[list(one.filled_places)] = False
    ranked = self._list(one.query_id, one.passage_ids, np.arange(len(known)), known)
    return dataclasses.replace(ranked, weight=one.weight)

  def scored(self, payload: bytes) -> batches.TrainingList:
    """A teacher's scores: values are logits, best first."""
    one = example.decode(records.ScoredList, payload)
    return self._list(one.query_id, one.passage_ids, np.asarray(one.scores), np.ones(len(one.scores), bool))

  def _list(
    self, query_id: str, passage_ids: tuple[str, ...], values: np.ndarray, known: np.ndarray
  ) -> batches.TrainingList:
    return batches.TrainingList(
      query_row=self.queries.row(query_id), passage_rows=np.array([self.passages.row(i) for i in passage_ids]),
      values=values.astype(np.float32), known=known,
    )


def orders_as_scores(job: artifacts.Job, temperature: float) -> Iterator[records.ScoredList]:
  """The LLM's rankings as a teacher's logits, -place / temperature."""
  for one in example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList):
    logits = tuple(-place / temperature for place in range(len(one.passage_ids)))
    yield records.ScoredList(query_id=one.query_id, passage_ids=one.passage_ids, scores=logits)


def load(job: artifacts.Job, network: networks.Network, passage_tokens: int, similarities: str,
         lists: Iterable[records.RankedList | records.ScoredList]) -> Inputs:
  """From a job's collection, the stage that made the similarities, and the lists that are trained on; passages are cut
  at `passage_tokens`."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  # Of a corpus of millions, a thousand lists name thousands.
  rows = np.array(sorted({passages.row(one) for each in lists for one in each.passage_ids}), np.int64)
  passage_table = network.passage_table((passages.texts[row] for row in rows), passage_tokens)
  query_table = network.query_table(queries.texts, job.cfg.encoder.query_tokens)
  tell = truncation.telling(job)
  tell("queries", query_table.cut)
  tell("passages of lists", passage_table.cut)
  return Inputs(
    passages=passages, queries=queries,
    passage_tokens=passage_table.among(rows, len(passages)), query_tokens=query_table,
    similarity=similarity.load(job.inputs[similarities]),
  )


