"""What the trainings read: lists as rows of the collection, token tables and similarities."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from idistill_jax import records
from idistill_jax.data import batches, example, similarity, tables, tokenize
from idistill_jax.train import networks, tokens
from idistill_jax.workdir import artifacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The lists that are trained on, and the collection as numbers; of texts in no list there are no tokens."""

  lists: Sequence[batches.TrainingList]
  passage_tokens: tokenize.Tokens
  query_tokens: tokenize.Tokens
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
  at `passage_tokens`.  Every process of a job calls it, and tokenises its share of the texts."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  # Here, and not in the threads that read batches ahead: protobuf has crashed when several threads parsed at once.
  decoded = tuple(training_list(one, queries, passages) for one in lists)
  # Of a corpus of millions, a thousand lists name thousands.
  passage_rows = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.passage_rows for one in decoded)]))
  query_rows = np.unique(np.fromiter((one.query_row for one in decoded), np.int64, len(decoded)))
  read = functools.partial(tokens.of_rows, job, ids=network.tokenizer.ids, between=network.tokenizer.between)
  return Inputs(
    lists=decoded,
    passage_tokens=read("passages of lists", passages.texts, passage_rows,
                        functools.partial(network.passage_table, max_tokens=passage_tokens)),
    query_tokens=read("queries of lists", queries.texts, query_rows,
                      functools.partial(network.query_table, max_tokens=job.cfg.encoder.query_tokens)),
    similarity=similarity.load(job.inputs[similarities]),
  )
