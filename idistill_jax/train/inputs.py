"""What the trainings read: lists as rows of the collection, token tables and similarities."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from idistill_jax import by_row, records
from idistill_jax.data import example, similarity, tables, tokenize
from idistill_jax.data import lists as lists_lib
from idistill_jax.hf import networks
from idistill_jax.train import shares, tokens
from idistill_jax.workdir import artifacts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The lists that are trained on, and the collection as numbers; of texts in no list there are no tokens."""

  lists: Sequence[lists_lib.NumberedList]
  passage_tokens: tokenize.Tokens
  query_tokens: tokenize.Tokens
  similarity: similarity.Similarities


def rankings(job: artifacts.Job) -> Sequence[records.RankedList]:
  """The LLM's orders, each read when it is asked for."""
  return example.open_records(job.inputs["labels"], artifacts.RANKINGS, records.RankedList)


def orders_as_scores(job: artifacts.Job, temperature: float) -> Sequence[records.ScoredList]:
  """The LLM's rankings as a teacher's logits, -place / temperature, of the passages to which it gave a place."""
  def scored(one: records.RankedList) -> records.ScoredList:
    places = [place for place in range(len(one.passage_ids)) if place not in one.filled_places]
    return records.ScoredList(query_id=one.query_id, passage_ids=tuple(one.passage_ids[place] for place in places),
                              scores=tuple(-place / temperature for place in places))

  return by_row.Each(scored, rankings(job))


def numbers(job: artifacts.Job, what: str, lists: Sequence[lists_lib.Record | None], queries: tables.Queries,
            passages: tables.Passages) -> lists_lib.Lists:
  """Lists as numbers, of which every process of a job reads its share; each calls it.  None is no list."""
  def arrays(some: Iterable[lists_lib.Record]) -> dict[str, np.ndarray]:
    return lists_lib.arrays(lists_lib.numbered(one, queries, passages) for one in some)

  return lists_lib.Lists(shares.read(job, what, lists, arrays), queries.ids)


def load(job: artifacts.Job, network: networks.Network, passage_tokens: int, similarities: str,
         lists: Sequence[lists_lib.Record | None]) -> Inputs:
  """From a job's collection, the stage that made the similarities, and the lists that are trained on; passages are cut
  at `passage_tokens`.  Every process of a job calls it, and reads its share of the lists and of their texts."""
  passages = tables.load_passages(job.inputs["collection"])
  queries = tables.load_queries(job.inputs["collection"])
  # Here, and not in the threads that read batches ahead: protobuf has crashed when several threads parsed at once.
  read_lists = numbers(job, "lists", lists, queries, passages)
  # Of a corpus of millions, a thousand lists name thousands.
  passage_rows, query_rows = np.unique(read_lists.passage_rows), np.unique(read_lists.query_rows)
  read = functools.partial(tokens.of_rows, job, ids=network.tokenizer.ids, between=network.tokenizer.between)
  return Inputs(
    lists=read_lists,
    passage_tokens=read("passages of lists", passages.texts, passage_rows,
                        functools.partial(network.passage_table, max_tokens=passage_tokens)),
    query_tokens=read("queries of lists", queries.texts, query_rows,
                      functools.partial(network.query_table, max_tokens=job.cfg.encoder.query_tokens)),
    similarity=similarity.load(job.inputs[similarities]),
  )
