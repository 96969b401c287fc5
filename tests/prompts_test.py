"""Prompts before texts: whose they are, where they stand, and that sentence-transformers puts the same ones there."""

import dataclasses
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from idistill_jax import config, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import card, export, folders, networks, prompts, weights
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.train import inference, inputs
from idistill_jax.workdir import artifacts

QUERIES = ["how do I merge two sorted files?", "wait for a child process", "merge " * 30]
PASSAGES = ["heapq.merge. Merge multiple sorted inputs into a single sorted output.", "os.wait. Wait.", "file " * 60]
E5 = {"query_prompt": "query: ", "passage_prompt": "passage: "}


@pytest.fixture
def folder(tmp_path, tiny_weights) -> pathlib.Path:
  """A copy of BERT-tiny that a test may change."""
  return pathlib.Path(shutil.copytree(folders.resolve(tiny_weights), tmp_path / "model"))


def encoder(folder: pathlib.Path, **fields) -> config.Encoder:
  sizes = {"query_tokens": 16, "passage_tokens": 40, "list_passage_tokens": 32, "row_tokens": 64}
  return config.Encoder(weights=str(folder), tokens_per_step=512, **sizes | fields)


def retriever(cfg: config.Encoder) -> inference.Retriever:
  return inference.load_retriever(config.Config(name="prompts", encoder=cfg), None)


def stated(folder: pathlib.Path, **said) -> None:
  (folder / prompts.FILE).write_text(json.dumps(said))


@pytest.mark.parametrize("said, query, passage", [
  ({"prompts": {"query": "query: ", "passage": "passage: "}}, "query: ", "passage: "),
  ({"prompts": {"corpus": "c: ", "document": "d: ", "passage": "p: "}}, "", "d: "),
  ({"prompts": {"corpus": "c: "}, "default_prompt_name": None}, "", "c: "),
  # The default is a query's, and a passage is none.
  ({"prompts": {"query": "ask: ", "other": "x"}, "default_prompt_name": "query"}, "ask: ", ""),
  ({"prompts": {"retrieval": "find: "}, "default_prompt_name": "retrieval"}, "find: ", "find: "),
  ({"prompts": {"query": "", "document": None}}, "", ""),
  ({"prompts": {}, "default_prompt_name": None}, "", ""),
  ({}, "", ""),
])
def test_a_checkpoints_own_prompts_and_those_that_are_given(folder, said, query, passage):
  stated(folder, **said)
  assert prompts.read(folder, encoder(folder)) == prompts.Prompts(query=query, passage=passage)
  given = prompts.read(folder, encoder(folder, query_prompt="", passage_prompt="mine: "))
  assert given == prompts.Prompts(query="", passage="mine: ")


def test_a_default_that_is_no_prompt(folder):
  stated(folder, prompts={}, default_prompt_name="query")
  with pytest.raises(encoder_lib.UnsupportedModelError, match=r"default_prompt_name is 'query', and prompts has \[\]"):
    prompts.read(folder, encoder(folder))


def test_a_prompt_is_part_of_each_text(folder):
  plain, prompted = retriever(encoder(folder)), retriever(encoder(folder, **E5))
  for prompt, ours, theirs, texts in (("query: ", prompted.encode_queries, plain.encode_queries, QUERIES),
                                      ("passage: ", prompted.encode_passages, plain.encode_passages, PASSAGES)):
    # Cut as one text, so that the longest loses to the prompt what it takes.
    np.testing.assert_array_equal(ours(texts), theirs([prompt + text for text in texts]))
    assert np.abs(ours(texts) - theirs(texts)).max(-1).min() > 1e-3


def test_the_retriever_is_trained_behind_them_and_the_ranker_reads_none(folder, tmp_path):
  example.write_records(tmp_path, tables.QUERIES, [
    records.Query(id=str(i), text=text, split="train") for i, text in enumerate(QUERIES)])
  example.write_records(tmp_path, tables.PASSAGES, [
    records.Passage(id=str(i), title="", text=text) for i, text in enumerate(PASSAGES)])
  for name in (similarity.QUERIES, similarity.PASSAGES):
    np.save(tmp_path / name, np.zeros((3, 2), np.float32))
  cfg = config.Config(name="prompts", encoder=encoder(folder, **E5))
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={"collection": tmp_path, "candidates": tmp_path})
  lists = [records.ScoredList(query_id="0", passage_ids=("2", "0"), scores=(1.0, 0.0)),
           records.ScoredList(query_id="1", passage_ids=("1", "2"), scores=(1.0, 0.0))]
  networks_of = {"query: ": networks.retriever(cfg.encoder), "": networks.ranker(cfg.encoder, "pair_cosine")}
  for prompt, network in networks_of.items():
    data, table = inputs.load(job, network, 32, "candidates", lists), network.tokenizer.table
    expected = table([prompt + text for text in QUERIES], 16)
    assert [data.query_tokens[row].tolist() for row in (0, 1)] == [expected[row].tolist() for row in (0, 1)]
    expected = table([prompt.replace("query", "passage") + text for text in PASSAGES], 32)
    assert [data.passage_tokens[row].tolist() for row in range(3)] == [expected[row].tolist() for row in range(3)]
    assert job.counts["passages of lists cut"]["longest"] == expected.cut.longest > 32


@pytest.mark.parametrize("fields, said", [
  ({"query_prompt": "merge " * 14}, r"takes all of encoder.query_tokens=16.*encoder.query_prompt"),
  ({"passage_prompt": "merge " * 30}, r"takes all of encoder.list_passage_tokens=32.*encoder.passage_prompt"),
  ({"passage_prompt": "merge " * 38}, r"takes all of encoder.passage_tokens=40")])
def test_a_prompt_that_leaves_nothing_of_its_text_is_refused(folder, fields, said):
  for read in (weights.check, networks.retriever):
    with pytest.raises(config.ConfigError, match=said):
      read(encoder(folder, **fields))
  weights.check(encoder(folder, query_prompt="merge " * 13, passage_prompt="merge " * 29))


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_pooling_that_leaves_prompts_out_is_refused_where_there_are_some(folder, kind):
  (folder / "modules.json").write_text(json.dumps([
    {"path": path, "type": f"sentence_transformers.models.{name}"}
    for path, name in (("", "Transformer"), ("1_Pooling", "Pooling"))]))
  (folder / "1_Pooling").mkdir(exist_ok=True)
  pooling = folder / "1_Pooling" / "config.json"
  pooling.write_text(json.dumps({"pooling_mode": kind, "include_prompt": False}))
  networks.retriever(encoder(folder))
  for read in (weights.check, networks.retriever):
    with pytest.raises(encoder_lib.UnsupportedModelError, match="include_prompt false"):
      read(encoder(folder, **E5))
  pooling.write_text(json.dumps({"pooling_mode": kind, "include_prompt": True}))
  networks.retriever(encoder(folder, **E5))


# -- The exported folder -------------------------------------------------------------------------------------------


def exported(cfg: config.Encoder, out: pathlib.Path) -> pathlib.Path:
  network = networks.retriever(cfg)
  cut = export.Cut(query_tokens=cfg.query_tokens, passage_tokens=cfg.passage_tokens)
  facts = card.Facts(cfg=config.Config(name="prompts", encoder=cfg), retriever=network, collection={"title": "t"},
                     labels={}, longest_list=20, training={}, versions={}, metrics=None)
  text = card.render("retriever", facts, str(out))
  export.export_retriever(network.initial(0), network, out, cut=cut, card=text)
  return out


def test_an_exported_folder_has_them_for_us(folder, tmp_path):
  # The starting checkpoint's own are not the trained ones.
  stated(folder, prompts={"query": "other: "})
  cfg = encoder(folder, query_prompt="", passage_prompt="passage: ")
  again = dataclasses.replace(cfg, weights=str(exported(cfg, tmp_path / "out")), passage_prompt=None, query_prompt=None)
  np.testing.assert_array_equal(retriever(again).encode_passages(PASSAGES), retriever(cfg).encode_passages(PASSAGES))
  np.testing.assert_array_equal(retriever(again).encode_queries(QUERIES), retriever(cfg).encode_queries(QUERIES))


@pytest.mark.torch
@pytest.mark.parametrize("fields", [E5, {"query_prompt": "ask"}, {}], ids=["both", "query", "none"])
def test_sentence_transformer_embeds_as_we_do(folder, tmp_path, fields):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  cfg = encoder(folder, **fields)
  out, ours = exported(cfg, tmp_path / "out"), retriever(cfg)
  theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu", local_files_only=True)
  short = QUERIES[:2]  # it cuts at one length for all texts, the passages'
  np.testing.assert_allclose(theirs.encode_query(short), ours.encode_queries(short), atol=1e-4)
  np.testing.assert_allclose(theirs.encode_document(PASSAGES), ours.encode_passages(PASSAGES), atol=1e-4)
  # The control: without the methods that know of prompts, only a folder without any gives the same.
  assert (np.abs(theirs.encode(short) - ours.encode_queries(short)).max() < 1e-4) == (not fields)

  code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
  names: dict = {}
  exec(code, names)
  shown = re.findall(r"\[(\".*?\")\]", code)
  np.testing.assert_allclose(names["queries"], ours.encode_queries([json.loads(shown[0])]), atol=1e-4)
  np.testing.assert_allclose(names["passages"], ours.encode_passages([json.loads(shown[1])]), atol=1e-4)
