"""Each measurement runs and says what its line promises; what they measure is no test's business."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import config_test
import jax
import jax.numpy as jnp
import jobs
import numpy as np
import pytest

from benchmarks import alone, drawn, first_stages, memory, models, ours, report, run, scaling, texts
from idistill_jax import config, flow, multiply, records, sharding, validation
from idistill_jax.data import example, tables
from idistill_jax.hf import folders
from idistill_jax.models import attention, execution
from idistill_jax.train import utilization
from idistill_jax.workdir import artifacts


@pytest.fixture
def sizes(tiny_weights) -> run.Sizes:
  return run.Sizes(weights=tiny_weights, queries=32, passages_per_list=2, lists_per_batch=4, large_batch=8, passes=2,
                   max_tokens=32, row_tokens=64, tokens_per_step=256, peer_steps=1)


PARTS = [part for work in run.WORK for part in run.parts_of(work)]


@pytest.mark.parametrize("work", [part for part in PARTS if not part.startswith("first step")])
def test_every_measurement_of_ours_runs(work, sizes, tmp_path, monkeypatch):
  monkeypatch.setattr(utilization, "matrix_rate", lambda dtype: 1e12)
  # Of the eight devices that tests pretend to have; programs for all take longer to compile, and measure no more.
  monkeypatch.setattr(sharding, "make_mesh", lambda cfg, of=None, make=sharding.make_mesh: make(cfg, jax.devices()[:1]))
  found = run.ours(work, sizes, "float32", tmp_path)
  assert found["tokens_per_second"] > 0 and found["peak_memory_bytes"] > 0
  if work in run.COMPARED:
    share = report.share_of_peak(found, found)["percent_of_peak"]
    assert share == pytest.approx(100 * found["tokens_per_second"] * found["flops_per_token"] / 1e12, abs=0.06)
  # Of eight steps three come before the clock, of the three of the large batch one.
  timed = {"retriever step": 5, "ranker step": 5, "large batch": 2}
  if work in timed:
    assert found["steps"] == timed[work] and 0.5 < found["fill"] <= 1
  # With one or two steps, of which the last may be nearly empty.
  assert work == "input pipeline" or 0.2 < found["fill"] <= 1
  if work == report.ROOFLINE:
    named = ("matrix products", "attention", "AdamW", "rest")
    assert sum(found["parts"][name]["share"] for name in named) == pytest.approx(1, abs=0.001)
    # Two FLOPs a weight and token, forward and twice backward.
    expected = found["flops_per_token"] * found["rows"] * found["row_tokens"] / 1e9
    assert found["parts"]["matrix products"]["gflop"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("work, products", [("encode, sorted by length", 0), (report.ROOFLINE, 6)])
def test_what_is_compared_is_compiled_alike(work, products, sizes, tmp_path, monkeypatch):
  """Each product of a layer, its attention, and the step or the reading."""
  monkeypatch.setattr(utilization, "matrix_rate", lambda dtype: 1e12)
  monkeypatch.setattr(sharding, "make_mesh", lambda cfg, of=None, make=sharding.make_mesh: make(cfg, jax.devices()[:1]))
  of_these = {"xla_cpu_enable_fast_math": False}
  monkeypatch.setattr(execution, "compiler_options", lambda mesh: of_these)
  compiled, compile_ = [], jax.stages.Lowered.compile
  monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, options=None: (
    compiled.append(options), compile_(self, options))[1])
  jitted, jit = [], jax.jit
  monkeypatch.setattr(jax, "jit", lambda *of, **by: (jitted.append(by.get("compiler_options")), jit(*of, **by))[1])
  run.ours(work, sizes, "float32", tmp_path)
  assert jitted.count(of_these) == 1 and compiled.count(of_these) == products + bool(products)


def test_rows_of_reading_are_none_of_a_trainings_business(tiny_weights, tmp_path):
  encoder = ours.settings(tiny_weights, dtype="float32", max_tokens=32, row_tokens=512, tokens_per_step=512)
  lists = texts.draw(folders.resolve(tiny_weights), queries=8, width=2, max_tokens=32)
  made = ours.training("retriever step", lists, encoder, lists_per_batch=4, passes=1, folder=tmp_path)
  assert lists.passage_lengths.max() <= made.batches.row_tokens < 512


def test_exact_search_that_may_miss_some_is_measured_beside_the_one_that_must_not(tmp_path):
  sizes = ("--passages=1000", "--queries=5", "--width=8", "--depth=5", "--repeats=1")
  done = subprocess.run([sys.executable, "-m", "benchmarks.search", *sizes, "--system=exact", "--recall=0.9"],
                        env=os.environ | jobs.ONE_DEVICE, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  begun, *found = [json.loads(line) for line in done.stdout.splitlines()]
  # Without a TPU both find all.
  assert [(line["least_recall"], line["recall"]) for line in found] == [(1.0, 1.0), (0.9, 1.0)]
  assert {"date", "commit", "versions"} <= begun.keys()


def test_the_memory_of_a_search_is_none_of_whoever_asks_for_it(tmp_path):
  code = f"""
import pathlib
import numpy as np
from benchmarks import alone, search
folder, held = pathlib.Path({str(tmp_path)!r}), np.ones(2**27)
search.draw(folder, 1000, 5, 8)
found = alone.call(search.measure, folder, "exact", ["--depth=5", "--repeats=1"])
print(found[0]["peak_memory_bytes"] / held.nbytes)
"""
  done = subprocess.run([sys.executable, "-c", code], env=os.environ | jobs.ONE_DEVICE, capture_output=True, text=True,
                        timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  assert 0 < float(done.stdout) < 1


@pytest.mark.torch
def test_an_encoder_whose_tokens_see_near_ones_is_measured_with_them(sizes, tmp_path, monkeypatch):
  pytest.importorskip("transformers")
  import small_models

  monkeypatch.setattr(utilization, "matrix_rate", lambda dtype: 1e12)
  monkeypatch.setattr(sharding, "make_mesh", lambda cfg, of=None, make=sharding.make_mesh: make(cfg, jax.devices()[:1]))
  folder = small_models.write("modernbert", tmp_path / "modernbert")
  # Texts are drawn of words that are one token each.
  models._write_tokenizer(folder, 200)
  reaches, attend = [], attention.attend
  seen = lambda q, k, v, rows, bias=None, reach=None: (reaches.append(reach), attend(q, k, v, rows, bias, reach))[1]
  monkeypatch.setattr(execution, "choose", lambda *of, choose=execution.choose, **by: dataclasses.replace(
    choose(*of, **by), attend=seen))
  found = run.ours(report.ROOFLINE, dataclasses.replace(sizes, weights=str(folder)), "float32", tmp_path)
  assert reaches and all(reach is not None for reach in reaches)
  assert found["parts"]["attention"]["seconds"] > 0 and found["parts"]["matrix products"]["gflop"] > 0


def test_the_second_process_finds_what_the_first_has_compiled(sizes, tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  cold, warm = (run.Measurement(part, report.OURS, run.ours, (part, sizes, "float32", tmp_path)).take()
                for part in run.parts_of("first step"))
  assert (cold["from_cache"], warm["from_cache"]) == (0, 1)
  for line in (cold, warm):
    assert 0 < line["trace_seconds"] + line["compile_seconds"] < line["first_step_seconds"]
  assert warm["compile_seconds"] < cold["compile_seconds"]


@pytest.mark.torch
@pytest.mark.parametrize("system, work", [(system, work) for system, works in run.PEERS.items() for work in works])
def test_every_peer_runs(system, work, sizes, tmp_path):
  pytest.importorskip("sentence_transformers")
  if system == report.ST and work in run.STEPS and not all(map(importlib.util.find_spec, ("accelerate", "datasets"))):
    with pytest.raises(ModuleNotFoundError, match=r"launch/env\.sh bench"):
      run.peer(system, work, "float32", 8, sizes, tmp_path)
    pytest.skip("the trainers need accelerate and datasets: source launch/env.sh bench")
  found = run.peer(system, work, "float32", 8, sizes, tmp_path)
  assert found["tokens_per_second"] > 0 and (found["system"], found["device"]) == (system, "cpu")


@pytest.mark.torch
def test_groups_of_one_length_come_back_in_order_and_are_padded_to_their_own(tmp_path):
  torch_loop = pytest.importorskip("benchmarks.torch_loop")
  import torch

  some = [{"input_ids": torch.arange(n)} for n in (5, 2, 9, 1, 7)]
  widths = []

  def read(part):
    padded = torch_loop._padded(part)
    widths.append(padded["input_ids"].shape[1])
    return padded["attention_mask"].sum(1)

  for groups, longest in ((1, [9]), (2, [5, 9])):
    widths.clear()
    assert torch_loop._in_groups(read, some, groups).tolist() == [5, 2, 9, 1, 7] and widths == longest


@pytest.mark.torch
def test_drawn_weights_are_read_alike_by_all(tmp_path):
  transformers = pytest.importorskip("transformers")
  import torch

  from idistill_jax.train import inference

  folder = tmp_path / "drawn"
  models.write(folder, layers=2, width=32, inner=64, heads=4, vocabulary=200)
  lists = texts.draw(folder, queries=16, width=2, max_tokens=32)
  cfg = config.Config(name="t", encoder=config.Encoder(weights=str(folder), inference_dtype="float32"))
  retriever = inference.load_retriever(cfg, None)
  table = retriever.forward.network.passage_table(lists.passages, 64)
  np.testing.assert_array_equal(table.lengths, lists.passage_lengths)
  read = transformers.AutoTokenizer.from_pretrained(folder)(lists.passages[:4], padding=True, return_tensors="pt")
  assert read["attention_mask"].sum(1).tolist() == lists.passage_lengths[:4].tolist()
  with torch.no_grad():
    model = transformers.AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    states, mask = model(**read).last_hidden_state, read["attention_mask"][..., None]
  pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
  np.testing.assert_allclose(retriever.encode_passages(lists.passages[:4]), pooled, atol=1e-5)


def test_every_text_is_as_long_as_it_is_said_to_be(tiny_weights):
  lists = texts.draw(folders.resolve(tiny_weights), queries=16, width=2, max_tokens=32)
  assert len(lists.passages) == len(lists.passage_lengths) == 32
  assert lists.tokens("retriever step").sum() == lists.query_lengths.sum() + lists.passage_lengths.sum()
  # A pair has one of the first tokens less, and its query for every passage.
  assert lists.tokens("score").sum() == 2 * lists.query_lengths.sum() + lists.passage_lengths.sum() - 32


def line(system: str, work: str, rate: float, device: str = "NVIDIA H100", **more) -> report.Line:
  return {"system": system, "work": work, "device": device, "tokens_per_second": rate, "dtype": "bfloat16",
          "peak_memory_bytes": 70e9, **more}


def test_only_devices_of_a_kind_are_compared():
  own, slow = line(report.OURS, "encode", 30.0), line(report.ST, "encode", 20.0, "NVIDIA H100 80GB HBM3")
  fast = line("torch", "encode", 25.0)
  assert report.ratios(own, [slow]) == {"ratios": {report.ST: 1.5}, "ratio_to_the_best_peer": 1.5}
  assert report.ratios(own, [slow, fast])["ratio_to_the_best_peer"] == 1.2
  assert report.ratios({**own, "device": "cpu"}, [slow]).keys() == {"not_compared"}


def test_targets_are_held_against_the_best_line_of_each_peer_and_said_in_markdown(capsys):
  step = "retriever step"
  lines = [
    line(report.OURS, step, 100.0, percent_of_peak=40.0), line(report.ST, step, 5.0, percent_of_peak=2.0),
    line(report.ST, step, 9.0), line("torch", step, 25.0), line("torch-sorted", step, 50.0),
    line(report.OURS, "input pipeline", 300.0), line(report.OURS, "large batch", 1.0),
    {"system": report.ST, "work": "ranker step", "failed": "no"}, {"versions": {"jax": "0"}},
    {**line(report.OURS, "first step, cold", 1.0), "trace_seconds": 2.0, "compile_seconds": 59.0},
  ]
  report.show(lines, "gpu")
  said = [[cell.strip() for cell in row.split("|")[1:-1]] for row in capsys.readouterr().out.splitlines()]
  assert [row for row in said if len(row) == 4][2:] == [
    [step, "10 x sentence-transformers' trainer", "11.11", "yes"], [step, "5 x a PyTorch loop", "2.00", "no"],
    [step, "45 % of the measured matrix rate", "40.00", "no"],
    ["ranker step", "10 x sentence-transformers' trainer", "not measured", ""],
    ["large batch", "in 80 GB", "70.00", "yes"],
    ["input pipeline", "2 x what the retriever step consumes", "3.00", "yes"],
    ["first step, cold", "traced and compiled in 60 s", "61.00", "no"],
  ]
  assert set(report.TARGETS) == set(run.SIZES)


def test_starting_points_that_are_not_as_published_end_the_command():
  cfg = config_test.load("scifact")
  ranges = first_stages.published(cfg)
  means = lambda bm25, dense: {"BM25": {"nDCG@10": bm25}, "dense": {"nDCG@10": 0.1},
                               first_stages.JOINED: {"nDCG@10": dense}}  # fmt: skip
  # As measured here, and at the bounds to three places.
  for within in ((0.676, 0.645), (0.6646, 0.6424), (0.6794, 0.6484)):
    first_stages.gate(ranges, means(*within))
  for bm25, dense, said in ((0.6644, 0.645, "BM25 has nDCG@10 0.664, published 0.665 to 0.679"),
                            (0.681, 0.645, "BM25"), (0.676, 0.649, "joined by a space has nDCG@10 0.649")):
    with pytest.raises(first_stages.OutsideError, match=said):
      first_stages.gate(ranges, means(bm25, dense))
  # A part of the collection, other weights and other collections are nobody's to compare.
  assert not first_stages.published(config_test.load("scifact:tiny"))
  cfg.encoder.weights = "intfloat/e5-small-v2"
  assert set(first_stages.published(cfg)) == {"BM25"}
  assert not first_stages.published(config_test.load("quickstart"))


@pytest.mark.skipif(shutil.which("taskset") is None or len(os.sched_getaffinity(0)) < 2, reason="two cores, taskset")
def test_a_second_process_is_measured(tmp_path):
  command = [sys.executable, "-m", "benchmarks.scaling", "--config=configs/quickstart.py:tiny", f"--workdir={tmp_path}",
             "--task=encode"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | jobs.ONE_DEVICE)
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
  _, made = scaling.TASKS[work](job, queries, passages, 8)
  asked = made()
  piece = asked.read(range(len(asked)))
  assert len(asked) >= 8 and [len(piece.text(i)[0]) for i in range(len(asked))] == piece.lengths.tolist()


def test_memory_is_told_a_passage(minilm_weights, tmp_path):
  folder = folders.resolve(minilm_weights)
  example.write_records(tmp_path, tables.PASSAGES, memory.draw(5000, memory.vocabulary(folder)))
  tables.note_places(tmp_path)
  said = alone.call(memory.measure, tmp_path, folder, "tokens")
  # Each word is one token; a full stop behind the title, and two that frame the text.
  assert said["tokens"] == memory.TITLE_WORDS + memory.WORDS + 3
  # The texts are not held.  Ids of so few fit into what the first block left free, or do not.
  assert said["bytes_of_texts"] < 300 and said["bytes_beside_texts"] < 10_000


def test_a_corpus_that_was_half_drawn_is_drawn_anew(tmp_path, monkeypatch):
  drawing = []

  def prepare(folder: pathlib.Path, passages: int) -> None:
    (folder / "beir").mkdir(parents=True)
    drawing.append(passages)
    if len(drawing) == 1:
      raise KeyboardInterrupt
    (folder / "orders.jsonl").touch()

  monkeypatch.setattr(drawn, "prepare", prepare)
  with pytest.raises(KeyboardInterrupt):
    drawn.once(tmp_path / "drawn", 2000)
  assert drawn.once(tmp_path / "drawn", 2000) == drawn.once(tmp_path / "drawn", 2000) == tmp_path / "drawn"
  assert drawing == [2000, 2000] and [one.name for one in tmp_path.iterdir()] == ["drawn"]


def test_a_peak_is_of_products_as_exact_as_the_models(monkeypatch):
  """Rounded operands, as float32 has on a GPU unless told otherwise, are multiplied several times as fast."""
  exact, told = multiply.matmul, []
  monkeypatch.setattr(utilization.multiply, "matmul", lambda a, b: told.append(a.dtype) or exact(a, b))
  monkeypatch.setattr(utilization, "seconds", lambda call: jax.block_until_ready(call()) is None or 2.0)
  assert utilization.matrix_rate.__wrapped__("float32") == 1024**3 and told == [jnp.float32]


def test_a_drawn_corpus_is_a_collection_with_orders_to_learn(tmp_path):
  drawn.prepare(tmp_path, 2000)
  cfg = drawn.experiment(tmp_path, 2000, shards=4)
  validation.validate(cfg)
  workdir = artifacts.Workdir(tmp_path / "run")
  counts = workdir.execute(flow.STAGES["collection"], cfg)["counts"]
  assert counts["passages"] == 2000 and counts["queries"] == drawn.QUERIES
  assert counts["rankings"] == drawn.QUERIES["train"]
  folder = workdir.folder("collection")
  passages, queries = tables.load_passages(folder), tables.load_queries(folder)
  # Its words are a query's way to its passage.
  judged = tables.load_qrels(folder, "test")
  assert len(judged) == drawn.QUERIES["test"]
  for query_id, (passage_id,) in judged.items():
    assert passages.by_id(passage_id).text.startswith(queries.by_id(query_id).text)
