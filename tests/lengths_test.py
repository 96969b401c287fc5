"""Retrievers that compare by inner products of embeddings as they are, as Contriever does: the field
`encoder.normalize`, from reading a checkpoint to the folder that is exported."""

import dataclasses
import json
import logging
import pathlib
import re
import shutil

import numpy as np
import pytest

from idistill_jax import config, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import card, export, folders, networks
from idistill_jax.models import dual_encoder
from idistill_jax.retrieval import exact, index
from idistill_jax.stages import queries as queries_stage
from idistill_jax.train import fit, inference, inputs
from idistill_jax.workdir import artifacts

QUERIES = ["how do I merge two sorted files?", "wait for a child process", "lock"]
PASSAGES = ["heapq.merge. Merge multiple sorted inputs into one.", "os.wait. Wait.", "file " * 20, "lock a file"]


@pytest.fixture
def folder(tmp_path, tiny_weights) -> pathlib.Path:
  """A copy of BERT-tiny, which has no modules.json."""
  made = pathlib.Path(shutil.copytree(folders.resolve(tiny_weights), tmp_path / "model"))
  assert not (made / "modules.json").exists()
  return made


def encoder(folder: pathlib.Path, **fields) -> config.Encoder:
  return config.Encoder(weights=str(folder), tokens_per_step=512, query_tokens=16, passage_tokens=40, row_tokens=64,
                        **fields)


def retriever(cfg: config.Encoder) -> inference.Retriever:
  return inference.load_retriever(config.Config(name="lengths", encoder=cfg), None)


def with_modules(folder: pathlib.Path, *kinds: str) -> None:
  (folder / "modules.json").write_text(json.dumps([
    {"path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
    for number, kind in enumerate(kinds)]))
  (folder / "1_Pooling").mkdir()
  (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))


@pytest.mark.parametrize("kinds, own", [
  ((), True), (("Transformer", "Pooling", "Normalize"), True), (("Transformer", "Pooling"), False)])
def test_the_config_says_it_or_the_checkpoint_does(folder, kinds, own):
  if kinds:
    with_modules(folder, *kinds)
  read = lambda normalize: dual_encoder.read_embedding_config(folder, normalize).normalize
  assert [read(None), read(True), read(False)] == [own, True, False]


def test_a_config_that_leaves_it_alone_has_the_keys_of_one_without_the_field():
  keyed = lambda **fields: config.keyed(config.Encoder(**fields))
  assert "normalize" not in keyed()
  assert keyed(normalize=False)["normalize"] is False and keyed(normalize=True)["normalize"] is True
  # A field of old counts with its default too.
  assert keyed()["query_prompt"] is None


def test_lengths_are_those_of_the_pooled_states(folder):
  free, unit = (retriever(encoder(folder, normalize=on)) for on in (False, None))
  for long, short in ((free.encode_queries(QUERIES), unit.encode_queries(QUERIES)),
                      (free.encode_passages(PASSAGES), unit.encode_passages(PASSAGES))):
    lengths = np.linalg.norm(long, axis=1, keepdims=True)
    np.testing.assert_allclose(long / lengths, short, atol=1e-5)
    assert np.ptp(lengths) > 0.1 and lengths.min() > 1.1


def exported(cfg: config.Encoder, out: pathlib.Path) -> pathlib.Path:
  network = networks.retriever(cfg)
  facts = card.Facts(cfg=config.Config(name="lengths", encoder=cfg), retriever=network, collection={"title": "t"},
                     labels={}, longest_list=20, training={}, versions={}, metrics=None)
  cut = export.Cut(query_tokens=cfg.query_tokens, passage_tokens=cfg.passage_tokens)
  export.export_retriever(network.initial(0), network, out, cut=cut, card=card.render("retriever", facts, str(out)))
  return out


@pytest.mark.parametrize("normalize, said, modules", [(False, "dot", 2), (True, "cosine", 3)])
def test_the_exported_folder_says_it(folder, tmp_path, normalize, said, modules):
  # The starting checkpoint says the contrary.
  with_modules(folder, "Transformer", "Pooling", *(() if normalize else ("Normalize",)))
  cfg = encoder(folder, normalize=normalize)
  out = exported(cfg, tmp_path / "out")
  assert json.loads((out / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == said
  assert len(json.loads((out / "modules.json").read_text())) == modules
  assert ("keep their lengths" in (out / "README.md").read_text()) == (not normalize)
  # The config of a workdir that loads it, with the field as it was and without.
  for again in (normalize, None):
    loaded = retriever(dataclasses.replace(cfg, weights=str(out), normalize=again))
    np.testing.assert_array_equal(loaded.encode_passages(PASSAGES), retriever(cfg).encode_passages(PASSAGES))


@pytest.mark.torch
def test_sentence_transformer_compares_as_we_do(folder, tmp_path):
  pytest.importorskip("sentence_transformers")
  cfg = encoder(folder, normalize=False)
  out, ours = exported(cfg, tmp_path / "out"), retriever(cfg)
  names: dict = {}
  exec(re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1], names)
  theirs = names["retriever"]
  found = theirs.similarity(theirs.encode(QUERIES), theirs.encode(PASSAGES)).numpy()
  products = ours.encode_queries(QUERIES) @ ours.encode_passages(PASSAGES).T
  np.testing.assert_allclose(found, products, rtol=1e-4)
  assert products.min() > 1.5  # no cosines


# -- Search --------------------------------------------------------------------------------------------------------


def long_vectors(count: int, seed: int) -> np.ndarray:
  """About centres, as embeddings lie, at lengths as different as Contriever's."""
  random = np.random.default_rng(seed)
  centres = np.random.default_rng(0).standard_normal((40, 32))
  vectors = centres[random.integers(0, 40, count)] + 0.5 * random.standard_normal((count, 32))
  return (vectors * random.uniform(0.5, 2, (count, 1))).astype(np.float32)


@pytest.mark.scann
def test_scann_is_built_tuned_searched_and_grown_by_inner_products(tmp_path):
  pytest.importorskip("scann", reason="the extra `retrieval` is not installed")
  passages, queries = long_vectors(1500, seed=1), long_vectors(60, seed=2)
  ids = [f"p{i:04}" for i in range(1500)]
  # Of 1,400: the rest come later.
  said = index.write(tmp_path, passages[:1400], ids[:1400], config.Index(kind="scann", tuned_depth=10), queries[:30])
  assert said["index"] == "scann" and said["tuned recall@10"] >= 0.98
  grown = index.upsert(tmp_path, ids[:1400], ids[1400:], passages[1400:])
  # In all leaves: which of them ScaNN puts a passage into is chance.
  scann = index.open_scann(tmp_path, grown)
  found = scann.searching(leaves=scann.settings.leaves, reorder=100).search(queries[30:], 10).rows
  share = lambda truth: np.mean([len({*one} & {*other}) / 10 for one, other in zip(found, truth, strict=True)])
  assert share(exact.Exact(passages, ids).search(queries[30:], 10).rows) > 0.95
  # The control: what unit vectors find is something else.
  unit = passages / np.linalg.norm(passages, axis=1, keepdims=True)
  assert share(exact.Exact(unit, ids).search(queries[30:], 10).rows) < 0.8


def test_what_says_the_same_is_told_by_direction():
  """Of written queries, and of clusters that passages are drawn from."""
  said = np.array([[1.0, 0.0], [0.5, 0.0], [3.0, 3.0]], np.float32)
  fresh = lambda vectors: queries_stage.first_of_their_kind(vectors, np.ones(3, bool), 0.95).tolist()
  assert fresh(queries_stage.unit(said)) == [True, False, True]
  # The control: by products the short one is new, and the long one says what others say.
  assert fresh(said) == [True, True, False]
  assert np.isfinite(queries_stage.unit(np.zeros((1, 2), np.float32))).all()


# -- Training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale, temperature, warned", [
  (0.3, 0.05, False), (30.0, 0.05, True), (30.0, 10.0, False)])
def test_a_temperature_for_cosines_is_told_to_be_too_sharp_for_products(
    tmp_path, tiny_weights, caplog, scale, temperature, warned):
  queries = [records.Query(id=f"q{i}", text="x", split="train") for i in range(9)]
  passages = [records.Passage(id=f"p{i}", title="", text="y") for i in range(8)]
  example.write_records(tmp_path, tables.QUERIES, queries)
  example.write_records(tmp_path, tables.PASSAGES, passages)
  lists = [records.ScoredList(query_id=f"q{i}", passage_ids=tuple(f"p{j}" for j in range(8)), scores=(0.0,) * 8)
           for i in range(9)]
  random = np.random.default_rng(0)
  drawn = lambda count: (random.standard_normal((count, 16)) / 4).astype(np.float32)
  np.save(tmp_path / similarity.QUERIES, scale * drawn(9))
  np.save(tmp_path / similarity.PASSAGES, drawn(8))
  cfg = config.Config(name="sharp", encoder=config.Encoder(weights=tiny_weights))
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={"collection": tmp_path, "candidates": tmp_path})
  data = inputs.load(job, networks.retriever(cfg.encoder), 32, "candidates", lists)
  with caplog.at_level(logging.WARNING):
    fit.warn_of_sharpness("train retriever", data, temperature)
  told = re.search(r"train retriever: .* student_temperature is 0.05; about ([\d.]+) leaves", caplog.text)
  assert (told is not None) == warned
  if told is not None:
    caplog.clear()
    fit.warn_of_sharpness("train retriever", data, float(told[1]))
    assert not caplog.text
