"""Records <-> tf.train.Example: records survive, equal ones give equal bytes, other bytes are refused."""

import dataclasses
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax import records
from idistill_jax.data import example, tfrecord


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Everything:
  """One field of every type that a record may have."""

  a_str: str
  an_int: int
  a_float: float
  strs: tuple[str, ...]
  ints: tuple[int, ...]
  floats: tuple[float, ...]


# Code points that UTF-8 has: no lone surrogates.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ints = st.integers(-(2**63), 2**63 - 1)
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def tuples(values):
  return st.lists(values, max_size=6).map(tuple)


everything = st.builds(
  Everything,
  a_str=texts,
  an_int=ints,
  a_float=float32s,
  strs=tuples(texts),
  ints=tuples(ints),
  floats=tuples(float32s),
)
contract = st.one_of(
  st.builds(records.Passage, id=texts, title=texts, text=texts),
  st.builds(records.Query, id=texts, text=texts, split=texts),
  st.builds(records.CandidateList, query_id=texts, passage_ids=tuples(texts), scores=tuples(float32s)),
  st.builds(
    records.RankedList,
    query_id=texts,
    passage_ids=tuples(texts),
    status=texts,
    filled_places=tuples(ints),
    weight=float32s,
  ),
  st.builds(records.ScoredList, query_id=texts, passage_ids=tuples(texts), scores=tuples(float32s)),
)


@given(record=st.one_of(everything, contract))
@settings(max_examples=200, deadline=None)
def test_every_record_comes_back_equal(record):
  assert example.decode(type(record), example.encode(record)) == record


@given(value=st.floats(-3e38, 3e38))
@settings(max_examples=100, deadline=None)
def test_floats_come_back_as_the_nearest_float32_and_stay_there(value):
  record = records.ScoredList(query_id="q", passage_ids=("p",), scores=(value,))
  once = example.decode(records.ScoredList, example.encode(record))
  assert once.scores == struct.unpack("<f", struct.pack("<f", value))
  assert math.isclose(once.scores[0], value, rel_tol=2**-24, abs_tol=2**-149)
  assert example.decode(records.ScoredList, example.encode(once)) == once


def test_equal_records_give_equal_bytes_in_any_process():
  query = records.Query(id="q", text="t", split="dev")
  assert example.encode(query) == example.encode(records.Query(split="dev", text="t", id="q"))
  # Golden: features in the order of their names, as the wire format's own description has them.
  assert example.encode(query) == (
    b"\n\x61"
    b"\n\x0b\n\x02id\x12\x05\n\x03\n\x01q"
    b"\n\x18\n\x0brecord_type\x12\x09\n\x07\n\x05Query"
    b"\n\x17\n\x0eschema_version\x12\x05\x1a\x03\n\x01\x01"
    b"\n\x10\n\x05split\x12\x07\n\x05\n\x03dev"
    b"\n\x0d\n\x04text\x12\x05\n\x03\n\x01t"
  )


def changed(record, name: str, change) -> bytes:
  """Bytes of a record, one feature of which was changed through the message class."""
  message = example._Example.FromString(example.encode(record))
  change(message.features.feature, name)
  return message.SerializeToString(deterministic=True)


def remove(feature, name):
  del feature[name]


def make_int(feature, name):
  feature[name].int64_list.value[:] = [7]


def make_two(feature, name):
  feature[name].bytes_list.value.append(b"second")


def make_not_utf8(feature, name):
  feature[name].bytes_list.value[:] = [b"\xff"]


def make_other_name(feature, name):
  feature[name].bytes_list.value[:] = [b"Passage"]


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("text", remove, "Query.text: the feature is missing"),
    ("text", make_int, "Query.text: a bytes_list is needed, found int64_list"),
    ("text", make_two, "Query.text: one value is needed, found 2"),
    ("text", make_not_utf8, "Query.text: not UTF-8"),
    ("extra", make_two, "Query has no fields extra"),
    (example.VERSION_FEATURE, remove, "schema_version is missing"),
    (example.VERSION_FEATURE, make_int, "schema_version is 7, this program knows 1"),
    (example.TYPE_FEATURE, make_other_name, "record_type is Passage, asked for was Query"),
  ],
)
def test_what_is_not_the_record_asked_for_is_refused(name, change, message):
  query = records.Query(id="q", text="t", split="dev")
  with pytest.raises(example.ExampleError, match=message):
    example.decode(records.Query, changed(query, name, change))


def test_bytes_of_something_else_are_refused():
  with pytest.raises(example.ExampleError, match=r"3 bytes are not a tf.train.Example"):
    example.decode(records.Query, b"\xff\xff\xff")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"scores": (math.nan,)}, "ScoredList.scores: a finite float is needed, not nan"),
    ({"scores": (-math.inf,)}, "ScoredList.scores: a finite float is needed"),
    ({"scores": (1e39,)}, "ScoredList.scores: .*beyond float32"),
    ({"scores": ("1",)}, "ScoredList.scores: a finite float is needed, not '1'"),
    ({"query_id": 3}, "ScoredList.query_id: a str is needed, not 3"),
    ({"query_id": "\ud800"}, "ScoredList.query_id: .*surrogates not allowed"),
  ],
)
def test_a_value_that_its_feature_cannot_hold_is_refused(change, message):
  record = records.ScoredList(query_id="q", passage_ids=("p",), scores=(1.0,))
  with pytest.raises(example.ExampleError, match=message):
    example.encode(dataclasses.replace(record, **change))


@pytest.mark.parametrize("value", [2**63, True])
def test_an_int_beyond_64_bits_or_a_bool_is_refused(value):
  record = records.RankedList(query_id="q", passage_ids=(), status="complete", filled_places=(value,))
  with pytest.raises(example.ExampleError, match="an int of 64 bits is needed"):
    example.encode(record)


def test_a_field_that_came_later_is_read_of_records_without_it_and_written_where_it_says_something():
  plain = records.RankedList(query_id="q", passage_ids=("p", "r"), status="complete")
  repaired = dataclasses.replace(plain, status="repaired", repairs=("missing",))
  # As records were written before there was the field.
  assert b"repairs" not in example.encode(plain) and example.decode(records.RankedList, example.encode(plain)) == plain
  assert example.decode(records.RankedList, example.encode(repaired)) == repaired
  # What is not there leaves no room for what nobody knows.
  with pytest.raises(example.ExampleError, match="RankedList has no fields extra"):
    example.decode(records.RankedList, changed(plain, "extra", make_two))


def test_a_field_type_without_a_feature_is_a_defect_of_the_class():
  @dataclasses.dataclass(frozen=True)
  class Unwritable:
    ids: list[str]

  with pytest.raises(TypeError, match=r"Unwritable.ids: no feature of that name holds"):
    example.encode(Unwritable(ids=[]))


def test_typed_reading_names_file_and_record(tmp_path):
  good = records.Query(id="q", text="t", split="dev")
  (path,) = tfrecord.write(tmp_path, "queries", [example.encode(good), changed(good, "text", remove)])
  reader = example.read_records(tmp_path, "queries", records.Query)
  assert next(reader) == good
  with pytest.raises(example.ExampleError) as caught:
    next(reader)
  assert str(caught.value) == f"{path}: record 1: Query.text: the feature is missing"


def test_typed_shards_keep_the_order(tmp_path):
  queries = [records.Query(id=f"q{i}", text="t", split="dev") for i in range(7)]
  assert len(example.write_records(tmp_path, "queries", iter(queries), shards=3)) == 3
  assert list(example.read_records(tmp_path, "queries", records.Query)) == queries
