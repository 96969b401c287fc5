"""Records of a job: each is read by one process and written by one, and all know what all have read."""

import itertools
import json

import jobs
import numpy as np
import pytest
import shared

from idistill_jax import config, records
from idistill_jax.data import example, lists, tfrecord
from idistill_jax.train import shares
from idistill_jax.workdir import artifacts


def bits(folder) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.glob("again-*.tfrecord")}


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_what_they_read_and_write_and_are_invisible(tmp_path, count):
  shared.write_lists(tmp_path)
  (tmp_path / "out").mkdir()
  with jobs.started(tmp_path / "job", count, "-m", "shared", str(tmp_path)) as job:
    job.succeed()
  (tmp_path / "alone").mkdir()
  alone, *_ = shared.share(tmp_path, tmp_path / "alone")
  assert len(alone["scores"]) > shared.LISTS
  read = [json.loads((tmp_path / f"{process}.json").read_text()) for process in range(count)]
  for of_each in zip(*read, strict=True):
    assert all(of_each) and sorted(itertools.chain(*of_each)) == list(range(shared.LISTS))
  for process in range(count):
    np.testing.assert_array_equal(np.load(tmp_path / f"{process}.npz")["scores"], alone["scores"])
  assert bits(tmp_path / "out") == bits(tmp_path / "alone") and len(bits(tmp_path / "alone")) == 6
  assert not list((tmp_path / "out").rglob("*.npz"))
  kept = [one.query_id for one in example.read_records(tmp_path / "alone", "again", records.ScoredList)]
  assert kept == [f"q{i}" for i in range(shared.LISTS) if i % 5 != 4]


def test_what_one_process_finds_torn_none_takes_for_whole(tmp_path):
  shared.write_lists(tmp_path)
  (tmp_path / "out").mkdir()
  last = tfrecord.shard_paths(tmp_path, "lists")[-1]
  data = bytearray(last.read_bytes())
  data[-6] ^= 1  # of the last record's payload, which the second process reads
  last.write_bytes(data)
  with jobs.started(tmp_path / "job", 2, "-m", "shared", str(tmp_path)) as job:
    assert job.wait(120) == [1, 1], job.said()
  assert f"CorruptRecord: {last}: record 6 at byte" in job.said(1)
  # By its own error, or by the end of the other, whichever it hears of first.
  assert f"CorruptRecord: {last}: record 6 at byte" in job.said(0)
  assert not list(tmp_path.glob("*.npz"))


def test_no_records_are_one_shard_without_any_and_no_numbers(tmp_path):
  job = artifacts.Job(cfg=config.Config(name="test"), out=tmp_path, inputs={}, cache=tmp_path)
  shares.write(job, "lists", [])
  assert [path.name for path in tfrecord.shard_paths(tmp_path, "lists")] == ["lists-00000-of-00001.tfrecord"]
  none = example.open_records(tmp_path, "lists", records.ScoredList)
  read = lists.Lists(shares.read(job, "lists", none, lists.arrays), [])
  assert len(none) == len(read) == len(read.only(np.zeros(0, bool))) == 0


def test_shards_of_an_earlier_attempt_do_not_lie_beside_those_of_this_one(tmp_path):
  made = [records.ScoredList(query_id=f"q{i}", passage_ids=("p",), scores=(1.0,)) for i in range(9)]
  job = artifacts.Job(cfg=config.Config(name="test"), out=tmp_path, inputs={}, cache=tmp_path)
  example.write_records(tmp_path, "lists", made, shards=3)
  example.write_records(tmp_path, "others", made, shards=3)
  kept = []
  job.keep = lambda name: kept.append((name, len(list(tmp_path.glob("lists-*")))))
  shares.write(job, "lists", made[:4])
  # Out of a bucket, too, before the new one goes there.
  assert kept == [("", 0), ("lists-00000-of-00001.tfrecord", 1)]
  assert list(example.read_records(tmp_path, "lists", records.ScoredList)) == made[:4]
  assert len(tfrecord.shard_paths(tmp_path, "others")) == 3
