"""Batches: a pure function of records, seed and step; resumable; what is in them is what the lists say."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
import tiny_world

from idistill_jax import config, records
from idistill_jax.data import batches, example, pack, tables, tfrecord
from idistill_jax.data import lists as lists_lib
from idistill_jax.hf import networks
from idistill_jax.train import inputs
from idistill_jax.workdir import artifacts


@pytest.fixture
def network(tiny_weights):
  return networks.retriever(tiny_world.encoder(tiny_weights))


@pytest.fixture
def stream(tmp_path, network):
  tiny_world.write_lists(tmp_path)
  return tiny_world.stream(tmp_path, network, pairs=False)


def _same(one: batches.ListBatch, other: batches.ListBatch) -> bool:
  return all(
    np.array_equal(getattr(one, name), getattr(other, name)) for name in ("passage_rows", "values", "where")
  ) and (np.array_equal(one.rows.token_ids, other.rows.token_ids))


def test_a_step_is_a_function_of_seed_and_step(stream, tmp_path, network):
  again = tiny_world.stream(tmp_path, network, pairs=False)
  other = tiny_world.stream(tmp_path, network, pairs=False, seed=1)
  assert all(_same(stream[i], again[i]) for i in range(len(stream)))
  assert not all(_same(stream[i], other[i]) for i in range(len(stream)))


def test_an_iterator_resumes_at_the_exact_step(stream):
  whole = list(batches.iterator(stream))
  first = batches.iterator(stream)
  for _ in range(3):
    next(first)
  second = batches.iterator(stream)
  second.set_state(first.get_state())
  rest = list(second)
  assert len(rest) == len(whole) - 3
  assert all(_same(one, other) for one, other in zip(rest, whole[3:], strict=True))
  assert not _same(rest[0], whole[0])


def test_tokens_are_counted_without_the_batch(stream):
  counted = [stream.tokens(step) for step in range(len(stream))]
  assert counted == [pack.real_tokens(stream[step].rows) for step in range(len(stream))]
  assert len(set(counted)) > 1


def test_every_list_takes_part_once_an_epoch(stream):
  per_epoch = [[slot.record for step in range(len(stream)) for slot in stream.slots(step) if slot.epoch == epoch]
               for epoch in range(tiny_world.EPOCHS)]
  assert [sorted(records) for records in per_epoch] == [list(range(tiny_world.LISTS))] * tiny_world.EPOCHS


@pytest.mark.parametrize("pairs", [True, False], ids=["ranker", "retriever"])
def test_of_several_processes_each_asks_for_the_texts_of_its_rows_and_plans_the_same(tmp_path, network, pairs):
  tiny_world.write_lists(tmp_path)
  rows = lambda mine: lambda count: np.arange(count) % 2 == mine
  whole = tiny_world.stream(tmp_path, network, pairs)
  even, odd = (tiny_world.stream(tmp_path, network, pairs, own=rows(mine)) for mine in (0, 1))
  asked = {id(one): read_from(one) for one in (whole, even, odd)}
  for step in range(len(whole)):
    of_whole, of_even, of_odd = whole[step], even[step], odd[step]
    texts = [asked[id(one)].pop() for one in (whole, even, odd)]
    assert texts[0] == texts[1] | texts[2] and not texts[1] & texts[2] and all(texts), step
    jax.tree.map(np.testing.assert_array_equal, *(
      dataclasses.replace(one, rows=one.rows.starts) for one in (of_whole, of_even)))  # all that is not cut by rows
    together = jax.tree.map(np.add, of_even.rows, of_odd.rows)
    np.testing.assert_array_equal(together.token_ids, of_whole.rows.token_ids)
    np.testing.assert_array_equal(together.halves, of_whole.rows.halves)


def read_from(stream: batches.Batches) -> list[set[int]]:
  """The texts that are asked for, by batch."""
  asked, whole = [], stream._texts.batch

  def batch(*lists):
    lengths, text = whole(*lists)
    asked.append(set())
    return lengths, lambda i: (asked[-1].add(i), text(i))[1]

  stream._texts = mock.Mock(batch=batch)
  return asked


def test_parts_share_the_steps_and_their_shape(stream):
  parts = [stream.part(which, tiny_world.EPOCHS) for which in range(tiny_world.EPOCHS)]
  assert [part.slots(step) for part in parts for step in range(len(part))] == [
    stream.slots(step) for step in range(len(stream))]
  assert {part[0].rows.token_ids.shape for part in parts} == {stream[0].rows.token_ids.shape}
  assert _same(parts[1][0], stream[len(parts[0])])


def test_absent_lists_and_passages_are_masked(stream):
  sizes = [len(stream.slots(step)) for step in range(len(stream))]
  assert min(sizes) < 3
  for step, size in enumerate(sizes):
    batch = stream[step]
    assert batch.where.any(1).sum() == size
    assert (batch.where.sum(1)[:size] == 4).all()


def test_the_whole_list_is_known_though_some_are_drawn(stream):
  for step in range(len(stream)):
    batch = stream[step]
    for b in np.flatnonzero(batch.where.any(1)):
      assert set(batch.passage_rows[b][batch.where[b]]) < set(batch.list_rows[b])
      assert len(set(batch.list_rows[b])) == tiny_world.LENGTH


def test_the_best_of_each_list_takes_part(stream):
  for step in range(len(stream)):
    batch = stream[step]
    assert (batch.values[batch.where.any(1)].max(1) == 0).all()


def test_all_steps_share_one_shape(stream):
  shapes = {stream[step].rows.token_ids.shape for step in range(len(stream))}
  assert shapes == {(stream.rows, 32)}


def test_a_corrupted_record_stops_with_its_name(stream, tmp_path, network):
  path = sorted(tmp_path.glob("lists-*.tfrecord"))[1]
  data = bytearray(path.read_bytes())
  data[40] ^= 1
  path.write_bytes(data)
  with pytest.raises(tfrecord.CorruptRecord, match=path.name):
    tiny_world.stream(tmp_path, network, pairs=False)


def test_no_lists_is_an_error_that_says_where_to_look(network, tmp_path):
  example.write_records(tmp_path, "lists", [])
  with pytest.raises(ValueError, match="no lists to train on"):
    tiny_world.stream(tmp_path, network, pairs=False)


def test_a_ranking_gives_places_and_what_the_parser_filled_is_not_known_where_a_teacher_gives_scores():
  queries = tables.Queries(records.Query(id=f"q{i}", text="", split="train") for i in range(2))
  passages = tables.Passages(records.Passage(id=f"p{i}", title="", text="") for i in range(4))
  ids, rows = ("p3", "p0", "p2"), [3, 0, 2]
  ranking = records.RankedList(query_id="q1", passage_ids=ids, status="repaired", filled_places=(2,), weight=0.25)
  found = lists_lib.numbered(ranking, queries, passages)
  assert (found.query_row, found.passage_rows.tolist(), found.weight) == (1, rows, 0.25)
  assert (found.values.tolist(), found.known.tolist()) == ([0.0, 1.0, 2.0], [True, True, False])
  scored = records.ScoredList(query_id="q0", passage_ids=ids, scores=(2.5, 0.5, -1.0))
  found = lists_lib.numbered(scored, queries, passages)
  assert (found.query_row, found.passage_rows.tolist(), found.weight) == (0, rows, 1.0)
  assert (found.values.tolist(), found.known.tolist()) == ([2.5, 0.5, -1.0], [True] * 3)


def test_an_order_teaches_nothing_of_passages_that_the_llm_left_out(tmp_path):
  ranking = records.RankedList(query_id="q1", passage_ids=("p3", "p0", "p2"), status="repaired", filled_places=(1,))
  example.write_records(tmp_path, artifacts.RANKINGS, [ranking])
  job = artifacts.Job(cfg=config.Config(name="x"), out=tmp_path, inputs={"labels": tmp_path}, cache=tmp_path)
  (found,) = inputs.orders_as_scores(job, 0.5)
  assert (found.passage_ids, found.scores) == (("p3", "p2"), (0.0, -4.0))
