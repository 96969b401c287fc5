"""TFRecord shards: what is written comes back, TensorFlow agrees, corruption is named."""

import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax import records
from idistill_jax.data import example, tfrecord

HEADER = 12
FOOTER = 4


def payloads(count: int) -> list[bytes]:
  rng = random.Random(count)
  return [b"%d:" % i + rng.randbytes(rng.randrange(50)) for i in range(count)]


def record_offset(written: list[bytes], record: int) -> int:
  return sum(HEADER + len(payload) + FOOTER for payload in written[:record])


@given(written=st.lists(st.binary(max_size=40), max_size=12), shards=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_shards_in_order_give_back_what_was_written(tmp_path_factory, written, shards):
  folder = tmp_path_factory.mktemp("shards")
  paths = tfrecord.write(folder, "x", written, shards)
  assert [path.name for path in paths] == [f"x-{i:05d}-of-{shards:05d}.tfrecord" for i in range(shards)]
  assert [payload for path in paths for payload in tfrecord.read(path)] == written
  assert tfrecord.shard_paths(folder, "x") == paths
  assert sorted(path.name for path in folder.iterdir()) == [path.name for path in paths]


def test_shards_hold_nearly_equal_counts(tmp_path):
  counts = [len(list(tfrecord.read(path))) for path in tfrecord.write(tmp_path, "x", payloads(11), 4)]
  assert sum(counts) == 11
  assert max(counts) - min(counts) <= 1


def test_several_shards_of_a_stream_hold_one_record_at_a_time(tmp_path):
  made, held = [], []

  class Payload(bytes):
    def __del__(self):
      held.append(len(made))

  def payloads():
    for i in range(10):
      made.append(i)
      yield Payload(b"%d" % i)

  written = tfrecord.write(tmp_path, "a", payloads(), shards=3, count=10)
  assert [len(list(tfrecord.read(path))) for path in written] == [3, 3, 4]
  assert [int(one) for path in written for one in tfrecord.read(path)] == made
  # Each is let go before the next but one is made; without a count all ten are held at once.
  assert held[:9] == list(range(2, 11))
  made, held = [], []
  tfrecord.write(tmp_path, "a", payloads(), shards=3)
  assert held[0] == 10
  for wrong in (9, 11):
    with pytest.raises(ValueError, match=f"{wrong} payloads were told"):
      tfrecord.write(tmp_path, "a", payloads(), shards=3, count=wrong)
  assert [int(one) for path in written for one in tfrecord.read(path)] == list(range(10))


def test_rewriting_removes_earlier_shards_of_that_name_only(tmp_path):
  tfrecord.write(tmp_path, "x", payloads(6), 3)
  tfrecord.write(tmp_path, "x-more", payloads(2), 1)
  tfrecord.write(tmp_path, "x", payloads(4), 2)
  counts = {name: [len(list(tfrecord.read(path))) for path in tfrecord.shard_paths(tmp_path, name)]
            for name in ("x", "x-more")}
  assert counts == {"x": [2, 2], "x-more": [2]}


def test_a_failing_writer_leaves_the_old_shards_and_nothing_else(tmp_path):
  tfrecord.write(tmp_path, "x", payloads(3), 1)

  def failing():
    yield b"new"
    raise RuntimeError("source broke")

  with pytest.raises(RuntimeError, match="source broke"):
    tfrecord.write(tmp_path, "x", failing(), 1)
  assert [path.name for path in tmp_path.iterdir()] == ["x-00000-of-00001.tfrecord"]
  assert list(tfrecord.read(tmp_path / "x-00000-of-00001.tfrecord")) == payloads(3)


def test_tensorflow_reads_what_we_write_and_the_other_way_round(tmp_path):
  tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
  lists = [
    records.ScoredList(query_id=f"q{i}é", passage_ids=("a", "ü"), scores=(0.5, -float(i))) for i in range(5)
  ]
  paths = example.write_records(tmp_path, "scores", lists, shards=2)
  spec = {
    "query_id": tf.io.FixedLenFeature([], tf.string),
    "passage_ids": tf.io.VarLenFeature(tf.string),
    "scores": tf.io.FixedLenFeature([2], tf.float32),
    example.VERSION_FEATURE: tf.io.FixedLenFeature([], tf.int64),
  }
  parsed = [tf.io.parse_single_example(raw, spec) for raw in tf.data.TFRecordDataset([str(p) for p in paths])]
  assert [row["query_id"].numpy().decode() for row in parsed] == [one.query_id for one in lists]
  assert [tuple(row["scores"].numpy().tolist()) for row in parsed] == [one.scores for one in lists]
  assert tf.sparse.to_dense(parsed[0]["passage_ids"]).numpy().tolist() == [b"a", "ü".encode()]
  assert parsed[0][example.VERSION_FEATURE].numpy() == records.SCHEMA_VERSION

  theirs = tmp_path / "theirs-00000-of-00001.tfrecord"
  with tf.io.TFRecordWriter(str(theirs)) as writer:
    for one in lists:
      message = tf.train.Example()
      feature = message.features.feature
      feature["query_id"].bytes_list.value.append(one.query_id.encode())
      feature["passage_ids"].bytes_list.value.extend(item.encode() for item in one.passage_ids)
      feature["scores"].float_list.value.extend(one.scores)
      feature[example.VERSION_FEATURE].int64_list.value.append(records.SCHEMA_VERSION)
      feature[example.TYPE_FEATURE].bytes_list.value.append(b"ScoredList")
      writer.write(message.SerializeToString())
  assert list(example.read_records(tmp_path, "theirs", records.ScoredList)) == lists


def corrupt_length(data: bytearray, offset: int) -> None:
  data[offset] ^= 1


def corrupt_length_crc(data: bytearray, offset: int) -> None:
  data[offset + 9] ^= 1


def corrupt_payload(data: bytearray, offset: int) -> None:
  data[offset + HEADER] ^= 1


def corrupt_payload_crc(data: bytearray, offset: int) -> None:
  (length,) = struct.unpack_from("<Q", data, offset)
  data[offset + HEADER + length] ^= 1


def cut_in_header(data: bytearray, offset: int) -> None:
  del data[offset + 5 :]


def cut_in_payload(data: bytearray, offset: int) -> None:
  del data[offset + HEADER + 1 :]


def cut_in_footer(data: bytearray, offset: int) -> None:
  (length,) = struct.unpack_from("<Q", data, offset)
  del data[offset + HEADER + length + 2 :]


@pytest.mark.parametrize(
  ("damage", "found"),
  [
    (corrupt_length, "bad length crc"),
    (corrupt_length_crc, "bad length crc"),
    (corrupt_payload, "bad data crc"),
    (corrupt_payload_crc, "bad data crc"),
    (cut_in_header, "truncated"),
    (cut_in_payload, "truncated"),
    (cut_in_footer, "truncated"),
  ],
)
@pytest.mark.parametrize("record", [0, 3])
def test_corruption_names_file_offset_and_record_and_loses_nothing_before(tmp_path, damage, found, record):
  written = payloads(5)
  (path,) = tfrecord.write(tmp_path, "x", written)
  offset = record_offset(written, record)
  data = bytearray(path.read_bytes())
  damage(data, offset)
  path.write_bytes(data)

  reader = tfrecord.read(path)
  assert [next(reader) for _ in range(record)] == written[:record]
  with pytest.raises(tfrecord.CorruptRecord) as caught:
    next(reader)
  assert (caught.value.path, caught.value.offset, caught.value.record) == (path, offset, record)
  for part in (str(path), f"byte {offset}", f"record {record}", found):
    assert part in str(caught.value)
  assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_missing_shards_are_named(tmp_path):
  with pytest.raises(tfrecord.MissingShard, match=re.escape(f"{tmp_path}: no file x-*")):
    tfrecord.shard_paths(tmp_path, "x")
  paths = tfrecord.write(tmp_path, "x", payloads(6), 3)
  paths[1].unlink()
  with pytest.raises(tfrecord.MissingShard, match="1 of 3 shards of x are missing: x-00001-of-00003"):
    tfrecord.shard_paths(tmp_path, "x")
  paths[0].rename(tmp_path / "x-00000-of-00001.tfrecord")
  with pytest.raises(tfrecord.MissingShard, match="different writings"):
    tfrecord.shard_paths(tmp_path, "x")


def test_works_without_tensorflow_installed(tmp_path):
  program = f"""
import sys
sys.modules["tensorflow"] = None
from idistill_jax import records
from idistill_jax.data import example, tables
example.write_records({str(tmp_path)!r}, "queries", [records.Query(id="q", text="t", split="test")])
(query,) = tables.load_queries({str(tmp_path)!r}).items
assert query.id == "q"
print("fine")
"""
  root = pathlib.Path(__file__).parents[1]
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
  )
  assert done.stdout == "fine\n", done.stderr
