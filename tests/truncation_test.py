"""Texts that lose their end: cut as their tokenizer itself would, counted without reading them twice, and told."""

import logging
import pathlib
import resource
import sys

import jobs
import numpy as np
import pytest
import tokenizers

from idistill_jax import config, records
from idistill_jax.data import example, similarity, tables, tokenize
from idistill_jax.hf import folders, networks
from idistill_jax.report import claims
from idistill_jax.train import inference, inputs, truncation
from idistill_jax.workdir import artifacts

WORDS = "merge sort naïve 北京 don't #include [MASK] unbelievably".split()


@pytest.fixture(scope="module")
def texts() -> list[str]:
  rng = np.random.default_rng(0)
  return ["", *(" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(200))]


@pytest.mark.parametrize("at", [3, 12, 13, 999])
def test_texts_are_cut_as_the_tokenizer_cuts_them(tiny_weights, texts, at):
  folder = folders.resolve(tiny_weights)
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  theirs.no_padding()
  theirs.no_truncation()
  lengths = [len(theirs.encode(text).ids) for text in texts]
  theirs.enable_truncation(at)
  table = tokenize.Tokenizer(folder).table(texts, at)
  assert [table[i].tolist() for i in range(len(texts))] == [theirs.encode(text).ids for text in texts]
  assert table.cut == tokenize.Cut(at=at, texts=sum(n > at for n in lengths), of=201, longest=max(lengths))
  assert (table.cut.texts > 0) == (at < 999) and table.cut.texts < 201


def peaks() -> None:
  """Of many short texts, a block at a time and then all at once: prints bytes of the table, and by how many the memory
  of this process grew in both."""
  rng = np.random.default_rng(0)
  texts = [" ".join(rng.choice(WORDS, 8)) for _ in range(60_000)]
  tokenizer = tokenize.Tokenizer(pathlib.Path(sys.argv[1]))
  most = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  tokenizer.table(texts[:tokenize.BLOCK], 999)
  before = most()
  table = tokenizer.table(texts, 999)
  after = most()
  assert len(tokenizer._tokenizer.encode_batch_fast(texts)) == len(table)
  print(table.flat.nbytes + table.offsets.nbytes, after - before, most() - before)


def test_tokenising_takes_little_more_memory_than_its_table(tiny_weights, tmp_path):
  # A process of its own: what this one once used is not told apart.
  command = ("-c", "import truncation_test; truncation_test.peaks()", str(folders.resolve(tiny_weights)))
  with jobs.started(tmp_path, 1, *command) as job:
    job.succeed(60)
  table, blocks, at_once = map(int, job.said(0).split()[-3:])
  assert blocks < 5 * table < at_once / 5


def test_of_no_texts_none_is_cut(tiny_weights):
  table = tokenize.Tokenizer(folders.resolve(tiny_weights)).table([], 8)
  assert len(table) == 0 and table.cut == tokenize.Cut(at=8, texts=0, of=0, longest=0)


def test_a_stage_tells_it_once(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  job = artifacts.Job(cfg=config.Config(name="t"), out=tmp_path, cache=tmp_path, inputs={})
  tell = truncation.telling(job)
  for _ in range(2):
    tell("passages", tokenize.Cut(at=96, texts=1557, of=3743, longest=812))
  # Nothing to tell aloud, but how much room was left is worth a number.
  tell("queries", tokenize.Cut(at=64, texts=0, of=1397, longest=31))
  assert caplog.messages == ["passages: 1,557 of 3,743 cut at 96 tokens (longest 812)"]
  assert job.counts["queries cut"] == {"at": 64, "texts": 0, "of": 1397, "longest": 31}
  shown = claims.plain({name: found for name, found in job.counts.items() if "passages" in name})
  assert shown == "(passages cut (at 96, texts 1,557, of 3,743, longest 812))"


def test_a_retriever_tells_what_it_embeds(tiny_weights, tmp_path):
  encoder = config.Encoder(weights=tiny_weights, query_tokens=6, passage_tokens=8, row_tokens=16, tokens_per_step=64)
  cfg = config.Config(name="t", encoder=encoder)
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={})
  retriever = inference.load_retriever(cfg, None, job)
  retriever.encode_queries(["merge two sorted lists of files", "merge"])
  retriever.encode_passages(["merge two sorted lists of files", "merge"])
  retriever.encode_queries([])
  assert job.counts == {"queries cut": {"at": 6, "texts": 1, "of": 2, "longest": 8},
                        "passages cut": {"at": 8, "texts": 0, "of": 2, "longest": 8}}


def test_a_training_reads_the_passages_of_its_lists_alone(tiny_weights, tmp_path):
  texts = ["merge", "read one file after the other and wait", "sort", "open"]
  example.write_records(tmp_path, tables.QUERIES, [records.Query(id="q", text="lists", split="train")])
  example.write_records(tmp_path, tables.PASSAGES, [
    records.Passage(id=f"p{row}", title="", text=text) for row, text in enumerate(texts)])
  np.save(tmp_path / similarity.QUERIES, np.zeros((1, 2), np.float32))
  np.save(tmp_path / similarity.PASSAGES, np.zeros((4, 2), np.float32))
  cfg = config.Config(name="t", encoder=config.Encoder(weights=tiny_weights, query_tokens=6))
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={"collection": tmp_path, "candidates": tmp_path})
  network = networks.retriever(cfg.encoder)
  lists = [records.ScoredList(query_id="q", passage_ids=("p3", "p0"), scores=(1.0, 0.0)),
           records.ScoredList(query_id="q", passage_ids=("p2", "p3"), scores=(1.0, 0.0))]
  read, whole = inputs.load(job, network, 8, "candidates", lists).passage_tokens, network.passage_table(texts, 8)
  assert [len(read[row]) for row in (0, 2, 3)] == read.lengths_of(np.array([0, 2, 3])).tolist() == [3, 3, 3]
  assert all(read[row].tolist() == whole[row].tolist() for row in (0, 2, 3)) and len(whole[1]) == 8
  assert job.counts["passages of lists cut"] == {"at": 8, "texts": 0, "of": 3, "longest": 3}
