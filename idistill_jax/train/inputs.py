"""What the trainings read: lists as rows of the collection, token tables and similarities."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from idistill_jax import records
from idistill_jax.data import batches, example, similarity, tables, tokenize
from idistill_jax.train import networks, truncation
from idistill_jax.workdir import artifacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The lists that are trained on, and the collection as numbers; of passages in no list, passage_tokens has none."""

  lists: Sequence[batches.TrainingList]
  passage_tokens: tokenize.TokenTable
  query_tokens: tokenize.TokenTable
  similarity: similarity.Similarities


def training_list(one: records.RankedList | records.ScoredList, queries: tables.Queries,
                  passages: tables.Passages) -> batches.TrainingList:
  """Of the LLM's order, values are places, 0 = best; of a teacher's scores they are logits."""
  known = np.ones(len(one.passage_ids), bool)
  if isinstance(one, records.RankedList):
    known[list(one.filled_places)] = False
    values, weight = np.arange(len(known), dtype=np.float32), one.weight
  else:
    values, weight = np.asarray(one.scores, np.float32), 1.0
  return batches.TrainingList(
    query_id=one.query_id, query_row=queries.row(one.query_id),
    passage_rows=np.array([passages.row(i) for i in one.passage_ids]), values=values, known=known, weight=weight,
  )


def orders_as_scores(job: artifacts.Job, temperature: float) -> Iterator[records.ScoredList]:
  """The LLM's rankings as a teacher's logits, -place / temperature, of the passages to which it gave a place."""
  for one in example.read_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList):
    places = [place for place in range(len(one.passage_ids)) if place not in one.filled_places]
    yield records.ScoredList(query_id=one.query_id, passage_ids=tuple(one.passage_ids[place] for place in places),
                             scores=tuple(-place / temperature for place in places))


def load(job: artifacts.Job, network: networks.Network, passage_tokens: int, similarities: str,
         lists: Iterable[records.RankedList | records.ScoredList]) -> Inputs:
  """From a job's collection, the stage that made the similarities, and the lists that are trained on; passages are cut
  at `passage_tokens`."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  # Here, and not in the threads that read batches ahead: protobuf has crashed when several threads parsed at once.
  decoded = tuple(training_list(one, queries, passages) for one in lists)
  # Of a corpus of millions, a thousand lists name thousands.
  rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.passage_rows for one in decoded)]))
  passage_table = network.passage_table((passages.texts[row] for row in rows), passage_tokens)
  query_table = network.query_table(queries.texts, job.cfg.encoder.query_tokens)
  tell = truncation.telling(job)
  tell("queries", query_table.cut)
  tell("passages of lists", passage_table.cut)
  return Inputs(
    lists=decoded, passage_tokens=passage_table.among(rows, len(passages)), query_tokens=query_table,
    similarity=similarity.load(job.inputs[similarities]),
  )


