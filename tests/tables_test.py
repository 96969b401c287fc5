"""Tables over a collection folder, and judgement files."""

import gzip
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax import ids as ids_lib
from idistill_jax import records
from idistill_jax.data import example, tables, tfrecord

PASSAGES = [records.Passage(id="b", title="T", text="x"), records.Passage(id="a", title="", text="y")]
QUERIES = [
  records.Query(id=query_id, text=f"text {query_id}", split=split)
  for query_id, split in (("q2", "test"), ("q0", "train"), ("q1", "test"))
]


def test_rows_follow_the_collection_order(tmp_path):
  example.write_records(tmp_path, tables.PASSAGES, PASSAGES, shards=2)
  table = tables.load_passages(tmp_path)
  assert list(table.ids) == table.ids[:] == ["b", "a"]
  assert [table.row(passage_id) for passage_id in table.ids] == [0, 1]
  assert list(table.texts) == table.texts[:2] == ["T. x", "y"] and table.texts[-1] == "y"
  assert (table.by_id("a"), len(table), list(table)) == (PASSAGES[1], 2, PASSAGES)
  assert "a" in table and "c" not in table
  with pytest.raises(tables.UnknownIdError, match="Passages: none of 2 has the id 'c'"):
    table.row("c")


def many(count: int) -> list[records.Passage]:
  return [records.Passage(id=f"p{i}", title="T", text=f"word{i} " * 100) for i in range(count)]


def damage(folder, table, row: int) -> tfrecord.CorruptRecord:
  """A byte of a record is changed; what reading it should say."""
  path, number = table.items._payloads.place(row)
  data = bytearray(path.read_bytes())
  offset = sum(len(one) + 16 for _, one in zip(range(number), tfrecord.read(path), strict=False))
  data[offset + 100] ^= 1
  path.write_bytes(data)
  return tfrecord.CorruptRecord(path, offset, number, "")


@pytest.mark.parametrize("noted", [True, False])
def test_passages_are_read_and_checked_when_they_are_asked_for(tmp_path, noted):
  passages = many(10)
  example.write_records(tmp_path, tables.PASSAGES, passages, shards=4)
  if noted:
    tables.note_places(tmp_path)
  table = tables.load_passages(tmp_path)
  assert list(table) == passages and table.items[np.int64(-1)] == passages[-1]
  assert table.texts[2:9:3] == [one.full_text for one in passages[2:9:3]]
  assert [table.by_id(one.id) for one in passages] == passages
  with pytest.raises(IndexError):
    table.texts[10]
  expected = damage(tmp_path, table, 6)
  if noted:
    table = tables.load_passages(tmp_path)  # which reads none
  assert table.texts[5] == passages[5].full_text and table.texts[7] == passages[7].full_text
  with pytest.raises(tfrecord.CorruptRecord, match="bad data crc") as caught:
    table.by_id("p6")
  said = caught.value
  assert (said.path, said.offset, said.record) == (expected.path, expected.offset, expected.record)


def test_records_that_are_not_where_it_was_noted_are_looked_for(tmp_path):
  example.write_records(tmp_path, tables.PASSAGES, PASSAGES)
  tables.note_places(tmp_path)
  later = [records.Passage(id="é" * 200, title="", text="long"), *PASSAGES]
  (path,) = example.write_records(tmp_path, tables.PASSAGES, later)
  table = tables.load_passages(tmp_path)
  assert list(table) == later and table.row("é" * 200) == 0 and list(table.ids) == [one.id for one in later]
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(tfrecord.CorruptRecord, match=r"record 2 at byte \d+: truncated"):
    tables.load_passages(tmp_path)
  example.write_records(tmp_path, tables.PASSAGES, [*later, PASSAGES[0]])
  with pytest.raises(ValueError, match=rf"passages of {re.escape(str(tmp_path))}: the id 'b' occurs at rows 1 and 3"):
    tables.note_places(tmp_path)


def test_an_open_collection_holds_no_passages(tmp_path):
  example.write_records(tmp_path, tables.PASSAGES, many(3000))
  tables.note_places(tmp_path)
  tracemalloc.start()
  try:
    table = tables.load_passages(tmp_path)
    assert table.texts[2999] and table.row("p1234") == 1234
    assert tracemalloc.get_traced_memory()[1] < 40 * len(table)
  finally:
    tracemalloc.stop()


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=3), unique=True, max_size=8))
@settings(max_examples=50, deadline=None)
def test_ids_are_found_and_sorted_as_text(some):
  ids = ids_lib.of(some)
  assert list(ids) == some and [ids.row(one) for one in some] == list(range(len(some)))
  assert [some[row] for row in ids.ascending_P] == sorted(some)
  assert "longer than any" not in ids and "\ud800" not in ids and 1 not in ids


def test_an_id_that_would_lose_its_end_is_refused():
  with pytest.raises(ValueError, match=r"the id 'a\\x00' ends with a NUL character"):
    ids_lib.of(["b", "a\0"])


@pytest.mark.parametrize("long, much, said", [
  ("x" * 900, 10**5, True), ("x" * 9, 10**5, False), ("x" * 900, 10**9, False)])
def test_what_one_long_id_costs_all_others_is_said(monkeypatch, caplog, long, much, said):
  monkeypatch.setattr(ids_lib, "_MUCH", much)
  found = ids_lib.of([*(f"d{i}" for i in range(200)), long])
  assert found.row(long) == 200 and found[7] == "d7"
  assert ("201 ids take 0.0 GB" in caplog.text and "of 900 bytes" in caplog.text) is said


def test_a_split_keeps_order_and_rows(tmp_path):
  example.write_records(tmp_path, tables.QUERIES, QUERIES)
  table = tables.load_queries(tmp_path)
  assert [query.id for query in table.of_split("test")] == ["q2", "q1"]
  assert [table.row(query.id) for query in table.of_split("test")] == [0, 2]
  assert table.of_split("dev") == ()


def test_a_repeated_id_is_refused():
  with pytest.raises(ValueError, match="the id 'b' occurs at rows 0 and 2"):
    tables.Passages([PASSAGES[0], PASSAGES[1], PASSAGES[0]])


def test_lists_are_optional(tmp_path):
  assert tables.load_lists(tmp_path) is None
  shown = records.CandidateList(query_id="q0", passage_ids=("b", "a"), scores=())
  example.write_records(tmp_path, tables.LISTS, [shown])
  assert tables.load_lists(tmp_path) == (shown,)


ids = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=5)


@given(
  qrels=st.dictionaries(ids, st.dictionaries(ids, st.integers(-1, 3), min_size=1, max_size=3), max_size=4)
)
@settings(max_examples=50, deadline=None)
def test_judgements_come_back(tmp_path_factory, qrels):
  path = tmp_path_factory.mktemp("qrels") / "test.tsv"
  tables.write_qrels(path, qrels)
  assert tables.read_qrels(path) == qrels


def test_a_split_without_judgements_names_those_that_have_some(tmp_path):
  tables.write_qrels(tmp_path / "qrels" / "dev.tsv", {"q": {"p": 1}})
  assert tables.load_qrels(tmp_path, "dev") == {"q": {"p": 1}}
  with pytest.raises(FileNotFoundError, match=r"no judgements for the split 'test'; .* some for: dev"):
    tables.load_qrels(tmp_path, "test")


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n", "query_id\tcorpus_id\tscore\r\n",
                                    "\ufeffQuery-ID\tCorpus-ID\tScore\n"])  # fmt: skip
def test_judgements_in_other_hands(tmp_path, header):
  """pandas writes grades as 1.0, others leave the header out or write it with underscores."""
  path = tmp_path / "qrels.tsv"
  path.write_text(f"{header}q1\tp1\t1.0\n\nq1\tp2\t0\nq2\tp1\t-2.00\n")
  assert tables.read_qrels(path) == {"q1": {"p1": 1, "p2": 0}, "q2": {"p1": -2}}
  path.write_text("q1 0 p1 1.0\n")
  assert tables.read_trec_qrels(path) == {"q1": {"p1": 1}}


@pytest.mark.parametrize("read, line", [
  (tables.read_qrels, b"q1\tp%s\t1\n"), (tables.read_trec_qrels, b"q1 0 p%s 1\n"),
])
def test_judgements_that_are_not_utf8_name_file_and_line(tmp_path, read, line):
  path = tmp_path / "qrels"
  path.write_bytes(line % "é".encode() + line % b"2")
  assert read(path) == {"q1": {"pé": 1, "p2": 1}}
  path.write_bytes(line % b"1" + line % b"\xff")
  with pytest.raises(ValueError, match=r"qrels:2: not UTF-8: .*; convert the file"):
    read(path)


@pytest.mark.parametrize("content", [b"q1\tp1\t1\n", gzip.compress(b"q1\tp1\t1\n")[:-9]], ids=["none", "cut"])
def test_judgements_that_are_no_whole_gzip_file_name_file_and_line(tmp_path, content):
  path = tmp_path / "test.tsv.gz"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"test.tsv.gz:\d: cannot be read further: .*; fetch the gzip file again"):
    tables.read_qrels(path)


HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ("", r"qrels.tsv:1: expected a header .*, found ''"),
    ("q1 p1 1\n", r"qrels.tsv:1: expected a header .*, found 'q1"),
    ("corpus-id\tquery-id\tscore\n", r"qrels.tsv:1: expected a header .*, found 'corpus-id"),
    ("q1\tp1\t1\nq2 \tp1\t1\n", r"qrels.tsv:2: the ids 'q2 ' and 'p1' may have no white space"),
    ("q1\tp1\t1\nq2\tp\u00a01\t1\n", r"qrels.tsv:2: the ids 'q2' and 'p\\xa01' may have no white space"),
    ("q1\tp1\t1\nq2\tp1\t2147483648\n", r"qrels.tsv:2: expected query id, passage id and integer score"),
    ("q1,p1,1\n", r"qrels.tsv:1: expected .*; its fields are separated by commas, and tabs are needed$"),
    ("q1\tp1\tyes\n", r"qrels.tsv:1: expected a header .*, found 'q1"),
    ("q1\tp1\t1\nquery-id\tcorpus-id\tscore\n", r"qrels.tsv:2: expected"),
    (HEADER + "q1\tp1\t1\nq1 p2 1\n", r"qrels.tsv:3: expected .*, found 'q1 p2 1"),
    (HEADER + "q1\tp1\t0.5\n", r"qrels.tsv:2: expected .* integer score"),
    (HEADER + "q1\t\t1\n", r"qrels.tsv:2: expected"),
    (HEADER + "q1\tp1\t1\nq1\tp1\t2\n", r"qrels.tsv:3: q1 p1 is judged 2 here and 1 above"),
  ],
)
def test_malformed_judgements_name_file_and_line(tmp_path, content, message):
  path = tmp_path / "qrels.tsv"
  path.write_text(content)
  with pytest.raises(ValueError, match=message):
    tables.read_qrels(path)
