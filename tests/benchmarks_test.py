"""Each of our own measurements runs and says what its line promises; what they measure is no test's business."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from benchmarks import ours, run, scaling, texts
from idistill_jax import artifacts, config, records
from idistill_jax.data import tables
from idistill_jax.hf import weights
from idistill_jax.train import utilization

OPTIONS = {
  "dtype": "float32", "queries": 32, "passages_per_list": 2, "lists_per_batch": 4, "passes": 1, "max_tokens": 32,
  "row_tokens": 64, "tokens_per_step": 256,
}  # fmt: skip


@pytest.mark.parametrize("work", run.WORK)
def test_every_measurement_of_ours_runs(work, tiny_weights, monkeypatch):
  monkeypatch.setattr(utilization, "matrix_rate", lambda dtype: 1e12)
  found = run.ours(work, {**OPTIONS, "weights": tiny_weights})
  assert found["tokens_per_second"] > 0 and found["peak_memory_bytes"] > 0
  if work in run.COMPARED:
    share = run.share_of_peak(found, found)["percent_of_peak"]
    assert share == pytest.approx(100 * found["tokens_per_second"] * found["flops_per_token"] / 1e12, abs=0.06)
  if work.endswith("step"):
    assert found["steps"] == 32 // 4 - ours.SKIPPED_STEPS and 0.5 < found["fill"] <= 1


def test_every_text_is_as_long_as_it_is_said_to_be(tiny_weights):
  lists = texts.draw(weights.resolve(tiny_weights), queries=16, width=2, max_tokens=32)
  assert len(lists.passages) == len(lists.passage_lengths) == 32
  assert dataclasses.replace(lists).dual_tokens == lists.query_lengths.sum() + lists.passage_lengths.sum()


def test_only_devices_of_a_kind_are_compared():
  of = lambda device, rate: {"device": device, "tokens_per_second": rate}
  assert run.ratio(of("NVIDIA H100", 30.0), of("NVIDIA H100 80GB HBM3", 20.0)) == {"ratio_to_the_best_peer": 1.5}
  assert run.ratio(of("cpu", 30.0), of("NVIDIA H100 80GB HBM3", 20.0)).keys() == {"not_compared"}


@pytest.mark.skipif(shutil.which("taskset") is None or len(os.sched_getaffinity(0)) < 2, reason="two cores, taskset")
def test_a_second_process_is_measured(tmp_path):
  command = [sys.executable, "-m", "benchmarks.scaling", "--config=configs/quickstart.py:tiny", f"--workdir={tmp_path}",
             "--task=encode"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"XLA_FLAGS": ""})
  assert done.returncode == 0, done.stderr
  head, alone, two, ratio = map(json.loads, done.stdout.splitlines())
  assert (head["config"], alone["processes"], two["processes"]) == ("quickstart", 1, 2)
  assert alone["texts"] == two["texts"] == 400 and len(set(two["cores"])) == 2 and alone["cores"] == two["cores"][:1]
  assert ratio["speedup"] == pytest.approx(alone["seconds"] / two["seconds"], rel=0.01)


@pytest.mark.parametrize("work", scaling.TASKS)
def test_texts_whose_rate_is_measured_are_as_long_as_told(tmp_path, tiny_weights, work):
  cfg = config.Config(name="t", encoder=config.Encoder(weights=tiny_weights))
  passages = tables.Passages(records.Passage(id=str(n), title="", text="word " * n) for n in range(1, 9))
  queries = tables.Queries([records.Query(id="q", text="which word", split="train")])
  job = artifacts.Job(cfg=cfg, out=tmp_path, inputs={}, cache=tmp_path)
  _, (lengths, text) = scaling.TASKS[work](job, queries, passages, 8)
  assert len(lengths) >= 8 and [len(text(i)[0]) for i in range(len(lengths))] == lengths.tolist()
