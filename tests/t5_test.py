"""T5's own: half of a checkpoint, no scale of logits, one bias for all layers, texts of any length, no [CLS]."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import pytest
import rows_of
import safetensors.numpy
import small_models
from flax import nnx

from idistill_jax import ahead, cli, config, dry_run
from idistill_jax.data import pack
from idistill_jax.hf import export, networks, weights
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution, families, layers
from idistill_jax.models import table as table_lib
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts

MODELS = ["t5", "t5 of gated layers"]
LENGTH, ROW = 40, 48
TEXTS = [np.arange(length, dtype=np.int32) * 7 % 60 for length in (5, 40, 12, 1, 17)]
CUT = export.Cut(query_tokens=10, passage_tokens=16)


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> pathlib.Path:
  pytest.importorskip("transformers")
  return small_models.write(request.param, tmp_path_factory.mktemp("t5") / "source")


@pytest.fixture
def own(tmp_path) -> pathlib.Path:
  """A folder with encoder and decoder, which a test may break."""
  pytest.importorskip("transformers")
  return small_models.write("t5", tmp_path / "source")


def encoder(folder: pathlib.Path, **values: Any) -> config.Encoder:
  lengths = {"query_tokens": 8, "passage_tokens": LENGTH, "row_tokens": ROW}
  return config.Encoder(weights=str(folder), **lengths | values)


def moved(params: Any) -> Any:
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


def read(graph: Any, params: Any, rows: pack.Rows, how: execution.Execution = execution.PLAIN) -> np.ndarray:
  """States of the rows' tokens, text by text."""
  encode = jax.jit(lambda params: nnx.merge(graph, params)(rows, how))
  states = np.asarray(encode(params["encoder"]), np.float32)
  return np.concatenate([states[rows.text_ids == text] for text in range(len(rows.starts))])


def graph_of(sizes: encoder_lib.Sizes) -> Any:
  return nnx.split(nnx.eval_shape(lambda: families.encoder(sizes, nnx.Rngs(0))))[0]


def theirs(folder: pathlib.Path, texts: list[np.ndarray], **how: Any) -> np.ndarray:
  import torch
  import transformers

  model = transformers.T5EncoderModel.from_pretrained(folder, **how).eval()
  with torch.no_grad():
    return np.concatenate([
      model(torch.tensor(text)[None].long()).last_hidden_state[0].float().numpy() for text in texts])


# -- As transformers has it --------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("buckets, farthest", [(32, 128), (12, 16), (32, 9), (8, 40), (33, 200), (6, 5)])
def test_distances_fall_into_the_buckets_of_transformers(buckets, farthest):
  torch = pytest.importorskip("torch")
  from transformers.models.t5 import modeling_t5

  distances = np.arange(-600, 601)
  expected = modeling_t5.T5Attention._relative_position_bucket(
    torch.tensor(distances), num_buckets=buckets, max_distance=farthest).numpy()
  ours = lambda farthest: layers.RelativeBias(buckets, 2, farthest, rngs=nnx.Rngs(0)).bucket(distances)
  np.testing.assert_array_equal(ours(farthest), expected)
  assert (ours(2 * farthest) != expected).any()


@pytest.mark.torch
@pytest.mark.parametrize("changes", [{}, {"farthest": 32}, {"layer_norm_eps": 1e-1}], ids=str)
def test_states_are_those_of_transformers_and_what_config_json_says_shows_in_them(folder, changes):
  sizes = families.read_config(folder)
  assert (sizes.head_dim, sizes.relative_buckets, sizes.farthest) == (12, 12, 16)
  assert sizes.head_dim != sizes.hidden_size // sizes.num_attention_heads
  params = networks.retriever(encoder(folder)).initial(0)
  rows = rows_of.packed(TEXTS, None, ROW)
  assert rows.segment_ids.max() > 1
  found = read(graph_of(dataclasses.replace(sizes, **changes)), params, rows)
  apart = float(np.abs(found - theirs(folder, TEXTS)).max())
  # Entries are of order 1.
  assert apart > 1e-3 if changes else apart < 2e-5, apart


@pytest.mark.torch
def test_text_by_text_attention_knows_distances_as_whole_rows_do(folder):
  network = networks.retriever(encoder(folder))
  graph, params, rows = graph_of(network.sizes), network.initial(0), rows_of.packed(TEXTS, None, ROW)
  by_text = read(graph, params, dataclasses.replace(rows, stairs=((1, 40), (4, 24))))
  np.testing.assert_allclose(by_text, read(graph, params, rows), atol=2e-5)


@pytest.mark.torch
def test_in_short_products_we_are_as_near_to_exact_states_as_transformers(folder):
  import torch

  exact, short = theirs(folder, TEXTS), theirs(folder, TEXTS, dtype=torch.bfloat16)
  network = networks.retriever(encoder(folder))
  how = dataclasses.replace(execution.PLAIN, products=jnp.dtype("bfloat16"), states=jnp.dtype("bfloat16"))
  ours = read(graph_of(network.sizes), network.initial(0), rows_of.packed(TEXTS, None, ROW), how)
  off = lambda found: float(np.sqrt(np.square(found - exact).mean()))
  assert 1e-4 < off(ours) < 1.2 * off(short), (off(ours), off(short))


@pytest.mark.torch
def test_a_text_may_be_longer_than_those_it_was_trained_on(folder):
  assert json.loads((folder / "config.json").read_text())["n_positions"] == small_models.POSITIONS
  cfg = encoder(folder, passage_tokens=3 * small_models.POSITIONS, row_tokens=3 * small_models.POSITIONS)
  weights.check(cfg)
  network, text = networks.retriever(cfg), np.arange(3 * small_models.POSITIONS, dtype=np.int32) * 7 % 60
  found = read(graph_of(network.sizes), network.initial(0), rows_of.one_a_row([text], None, len(text)))
  np.testing.assert_allclose(found, theirs(folder, [text]), atol=2e-5)


@pytest.mark.torch
@pytest.mark.parametrize("folder", MODELS[:1], indirect=True)
def test_the_first_token_that_is_pooled_is_a_word(folder, tmp_path):
  """As in sentence-transformers: nothing stands before a text.  Control: a mean is another vector."""
  sentence_transformers = pytest.importorskip("sentence_transformers")
  cfg = config.Config(name="x", encoder=encoder(folder, passage_tokens=16, tokens_per_step=256))
  mean = inference.load_retriever(cfg, None)
  first = dataclasses.replace(mean.forward.network.embedding, pooling="cls")
  network = dataclasses.replace(networks.retriever(cfg.encoder), embedding=first)
  export.export_retriever(mean.forward.params, network, tmp_path, card="card\n", cut=CUT)
  cfg.encoder.weights = str(tmp_path)
  one = inference.load_retriever(cfg, None)
  assert one.forward.network.embedding.pooling == "cls"
  ours = one.encode_passages(small_models.TEXTS)
  theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(small_models.TEXTS)
  np.testing.assert_allclose(theirs, ours, atol=1e-5)
  assert np.abs(mean.encode_passages(small_models.TEXTS) - ours).max() > 0.1


# -- What is read, and what is refused ---------------------------------------------------------------------------------


@pytest.mark.torch
def test_decoder_and_head_of_a_whole_checkpoint_are_no_encoders(own):
  """And the embeddings once more, under the encoder's own name; every other tensor is read."""
  path = own / "model.safetensors"
  there = safetensors.numpy.load_file(path)
  more = {"lm_head.weight": 2 * there["shared.weight"], "encoder.embed_tokens.weight": there["shared.weight"]}
  safetensors.numpy.save_file(there | more, path)
  ours = networks.retriever(encoder(own))
  flat = table_lib.to_hf(ours.table, ours.initial(0))
  assert set(flat) == {key for key in there if not key.startswith("decoder.")} < set(there)
  for key, value in flat.items():
    np.testing.assert_array_equal(value, there[key])
  safetensors.numpy.save_file(there | {"encoder.block.0.layer.2.layer_norm.weight": there["shared.weight"]}, path)
  with pytest.raises(table_lib.WeightsError, match=r"\+ encoder\.block\.0\.layer\.2\.layer_norm\.weight"):
    networks.retriever(encoder(own)).initial(0)


@pytest.mark.torch
def test_an_encoder_in_torchs_half_precision_is_read(own):
  """As sentence-t5 and gtr-t5 were published: the same embeddings lie there under two names."""
  import torch
  import transformers

  exact = networks.retriever(encoder(own)).initial(0)
  model = transformers.T5EncoderModel.from_pretrained(own).half()
  assert {"shared.weight", "encoder.embed_tokens.weight"} <= set(model.state_dict())
  torch.save(model.state_dict(), own / "pytorch_model.bin")
  (own / "model.safetensors").unlink()
  short = networks.retriever(encoder(own)).initial(0)
  jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6), short, exact)


RAW = {
  "model_type": "t5", "vocab_size": 60, "d_model": 32, "num_layers": 2, "num_heads": 4, "d_kv": 12, "d_ff": 64,
  "layer_norm_epsilon": 1e-6, "n_positions": 512,
}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"}


@pytest.mark.torch
@pytest.mark.parametrize("stated", [
  {}, GATED, {"relative_attention_num_buckets": 16, "relative_attention_max_distance": 40}], ids=range(3))
def test_config_json_is_read_as_transformers_reads_it(stated, tmp_path):
  transformers = pytest.importorskip("transformers")
  (tmp_path / "config.json").write_text(json.dumps(RAW | stated))
  ours, known = families.read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
  assert (ours.gated, ours.relative_buckets, ours.farthest, ours.head_dim) == (
    known.is_gated_act, known.relative_attention_num_buckets, known.relative_attention_max_distance, known.d_kv)
  assert known.dense_act_fn == ("gelu_new" if ours.gated else "relu") and ours.max_tokens is None


@pytest.mark.parametrize("stated, said", [
  ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu'; relu or gated-gelu is supported"),
  ({"feed_forward_proj": "gelu"}, "feed_forward_proj is 'gelu'"),
  (GATED | {"dense_act_fn": "silu"}, "dense_act_fn is 'silu'; with feed_forward_proj 'gated-gelu'"),
  (GATED | {"feed_forward_proj": "relu"}, "is_gated_act is True; with feed_forward_proj 'relu'"),
  ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets is 2"),
  ({"relative_attention_max_distance": 8}, "relative_attention_num_buckets is 32 and .*_distance 8; 4 or more"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(RAW | stated))
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    families.read_config(tmp_path)


@pytest.mark.torch
def test_a_classifier_is_refused_before_anything_is_run(own, tmp_path):
  """T5's in transformers reads what the decoder makes of a pair."""
  cfg = config.Config(name="x", encoder=encoder(own))
  assert cfg.ranker.head == "classifier"
  runner = cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), [])
  said = "ranker.head is 'classifier', and model_type 't5' has no .*: set ranker.head to 'mean' or 'pair_cosine'"
  for refused in (lambda: ahead.check(runner), lambda: networks.ranker(cfg.encoder, "classifier")):
    with pytest.raises(encoder_lib.UnsupportedModelError, match=said):
      refused()
  cfg.ranker.head, cfg.collection.rankings = "mean", "made/elsewhere.jsonl"
  ahead.check(runner)
  # For what is launched elsewhere, too.
  assert "NOT USABLE" not in "".join(dry_run.reads("candidates", cfg))
  cfg.ranker.head = "classifier"
  assert re.search(f"NOT USABLE: {said}", "".join(dry_run.reads("candidates", cfg)))


# -- On a mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.parametrize("folder", MODELS[1:], indirect=True)
def test_scores_and_gradients_on_a_mesh_are_those_of_one_device(folder):
  network = networks.ranker(encoder(folder), "pair_cosine")
  params = moved(network.initial(0))
  texts = [text[:24] for text in TEXTS * 2][:8]
  rows = rows_of.one_a_row(texts, [np.arange(len(text)) * 2 // max(len(text), 2) for text in texts], 32)
  alone, spread, step = on_mesh.steps(network, params, rows)
  assert np.ptp(alone.scores) > 1e-3
  np.testing.assert_allclose(spread.scores, alone.scores, atol=1e-4)
  apart = on_mesh.apart(spread.gradients, alone.gradients)
  assert max(jax.tree.leaves(apart)) < 1e-3, apart
  # A text without its last token shows in every parameter's.
  segments = rows.segment_ids.copy()
  segments[1, 23] = 0
  seen = on_mesh.apart(step(dataclasses.replace(rows, segment_ids=segments)).gradients, alone.gradients)
  assert min(jax.tree.leaves(seen)) > 1e-3, seen
