"""What ModernBERT alone has: layers that see near tokens only, positions that turn, and two forms of config.json."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import on_mesh
import pytest
import rows_of
import small_models
from flax import nnx

from idistill_jax import config
from idistill_jax.hf import networks
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution, families, modern_bert, rotary

SIZES = modern_bert.ModernBertConfig(
  vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
  max_position_embeddings=80, layer_norm_eps=1e-5, local=(False, True, False), reach=4, global_theta=500.0,
  local_theta=20.0,
)
TEXTS = [np.arange(length, dtype=np.int32) * 7 % 60 for length in (5, 30, 12, 2, 17)]


def moved(params: Any) -> Any:
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)


GRAPH, PARAMS = nnx.split(families.encoder(SIZES, nnx.Rngs(0)))
PARAMS = moved(nnx.to_pure_dict(PARAMS))


def read(rows: Any, how: execution.Execution = execution.PLAIN) -> np.ndarray:
  """States of the rows' tokens, text by text."""
  states = np.asarray(jax.jit(lambda params, rows: nnx.merge(GRAPH, params)(rows, how))(PARAMS, rows))
  return np.concatenate([states[rows.text_ids == text] for text in range(len(rows.starts))])


# -- As transformers has it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  pytest.importorskip("transformers")
  return small_models.write("modernbert", tmp_path_factory.mktemp("modernbert"))


@pytest.fixture(scope="module")
def theirs(folder) -> np.ndarray:
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder).eval()
  with torch.no_grad():
    return np.concatenate([model(torch.tensor(text)[None].long()).last_hidden_state[0].numpy() for text in TEXTS])


@pytest.mark.torch
@pytest.mark.parametrize("changes", [
  {}, {"reach": 3}, {"reach": 5}, {"reach": 100}, {"global_theta": 20.0, "local_theta": 500.0}, {"local_theta": 21.0},
  {"global_theta": 480.0}, {"local": (True, False, True)}, {"layer_norm_eps": 1e-2}], ids=str)
def test_states_are_those_of_transformers_and_what_config_json_says_shows_in_them(folder, theirs, changes):
  sizes = families.read_config(folder)
  assert (sizes.local, sizes.reach, sizes.global_theta, sizes.local_theta) == ((False, True, False), 4, 500.0, 20.0)
  params = networks.retriever(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=32)).initial(0)
  graph = nnx.split(families.encoder(dataclasses.replace(sizes, **changes), nnx.Rngs(0)))[0]
  rows = rows_of.packed(TEXTS, None, 40)
  assert rows.segment_ids.max() > 1
  encode = jax.jit(lambda params: nnx.merge(graph, params)(rows, execution.PLAIN))
  states = np.asarray(encode(params["encoder"]))
  found = np.concatenate([states[rows.text_ids == text] for text in range(len(TEXTS))])
  apart = float(np.abs(found - theirs).max())
  # Entries are of order 1.
  assert apart > 1e-3 if changes else apart < 2e-5, apart


@pytest.mark.torch
def test_in_short_products_we_are_as_near_to_exact_states_as_transformers(folder, theirs):
  """Of texts as long as there are positions for: what turns is of float32 on both sides."""
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
  with torch.no_grad():
    short = [model(torch.tensor(text)[None].long()).last_hidden_state[0].float().numpy() for text in TEXTS]
  network = networks.retriever(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=32))
  how = dataclasses.replace(execution.PLAIN, products=jnp.dtype("bfloat16"), states=jnp.dtype("bfloat16"))
  rows = rows_of.packed(TEXTS, None, 40)
  encode = jax.jit(lambda params: nnx.merge(network.graph, params).encoder(rows, how))
  states = np.asarray(encode(network.initial(0)), np.float32)
  ours = [states[rows.text_ids == text] for text in range(len(TEXTS))]
  off = lambda found: float(np.sqrt(np.square(np.concatenate(found) - theirs).mean()))
  assert 1e-4 < off(ours) < 1.2 * off(short), (off(ours), off(short))


OLD = {
  "model_type": "modernbert", "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4,
  "intermediate_size": 64, "max_position_embeddings": 80, "norm_eps": 1e-5, "pad_token_id": 0, "local_attention": 9,
  "position_embedding_type": "absolute", "reference_compile": True,
}  # fmt: skip
PLAIN_ROPE = {"rope_type": "default"}


@pytest.mark.torch
@pytest.mark.parametrize("stated", [
  {"global_attn_every_n_layers": 2, "global_rope_theta": 90.0, "local_rope_theta": 30.0, "classifier_pooling": "mean"},
  {},
  {"layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 3, "global_attn_every_n_layers": 2},
  {"rope_parameters": {"full_attention": PLAIN_ROPE | {"rope_theta": 90.0}, "sliding_attention": PLAIN_ROPE},
   "global_rope_theta": 70.0, "local_rope_theta": 30.0, "layer_types": None},
  {"rope_parameters": {"sliding_attention": PLAIN_ROPE | {"rope_theta": 90}}, "global_attn_every_n_layers": 1},
  {"sliding_window": 7},
], ids=range(6))
def test_both_forms_of_config_json_are_read_as_transformers_reads_them(stated, tmp_path):
  transformers = pytest.importorskip("transformers")
  (tmp_path / "config.json").write_text(json.dumps(OLD | stated))
  ours, known = families.read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
  assert ours.local == tuple(kind == "sliding_attention" for kind in known.layer_types)
  assert ours.reach == known.sliding_window and ours.classifier_pooling == known.classifier_pooling
  of_kind = {kind: one["rope_theta"] for kind, one in known.rope_parameters.items()}
  assert {"full_attention": ours.global_theta, "sliding_attention": ours.local_theta} == of_kind


@pytest.mark.parametrize("stated, said", [
  ({"hidden_activation": "silu"}, "hidden_activation is 'silu'; this encoder family needs 'gelu'"),
  ({"classifier_activation": "relu"}, "classifier_activation is 'relu'"),
  *(({f"{part}_bias": True}, f"{part}_bias is True; this encoder family needs False")
    for part in ("norm", "attention", "mlp", "classifier")),
  ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling is"),
  ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}}, "full_attention has rope_parameters"),
  ({"rope_parameters": PLAIN_ROPE | {"rope_theta": 10.0}}, "rope_parameters has \\['rope_theta', 'rope_type'"),
  ({"local_rope_theta": None}, "sliding_attention has rope_parameters {} and a theta of None"),
  ({"layer_types": ["full_attention"] * 4}, "layer_types is .*; 5 of full_attention, sliding_attention"),
  ({"layer_types": ["linear_attention"] * 5}, "layer_types is .*'linear_attention'"),
  ({"num_hidden_layers": 1}, "num_hidden_layers is 1; two or more"),
  ({"classifier_pooling": "max"}, "classifier_pooling is 'max'; mean or cls"),
], ids=str)
def test_what_no_encoder_here_has_is_refused_by_name(stated, said, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(OLD))
  assert families.read_config(tmp_path).hidden_size == 32
  (tmp_path / "config.json").write_text(json.dumps(OLD | stated))
  with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
    families.read_config(tmp_path)


# -- The window --------------------------------------------------------------------------------------------------------


def test_text_by_text_attention_sees_the_window_as_whole_rows_do():
  rows = rows_of.packed(TEXTS, None, 40)
  np.testing.assert_allclose(read(dataclasses.replace(rows, stairs=((1, 32), (4, 24)))), read(rows), atol=1e-5)


def test_what_lies_beyond_all_windows_changes_nothing():
  """With local layers alone a token is read by those at most layers x reach away, and by those that far."""
  graph = nnx.split(families.encoder(dataclasses.replace(SIZES, local=(True, True, True)), nnx.Rngs(0)))[0]
  encode = jax.jit(lambda rows: nnx.merge(graph, PARAMS)(rows, execution.PLAIN)[0])
  other = TEXTS[1].copy()
  other[0] = 59
  states, changed = (encode(rows_of.one_a_row([text], None, 30)) for text in (TEXTS[1], other))
  apart = np.abs(np.asarray(changed - states)).max(-1)
  assert (apart[:13] > 1e-6).all() and (apart[13:] == 0).all()


# -- Positions that turn -----------------------------------------------------------------------------------------------


def test_products_of_turned_queries_and_keys_know_how_far_apart_they_are():
  frequencies = rotary.frequencies(160_000.0, 8)
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 2, 1, 8))
  at = lambda i, j: (rotary.turned(q, np.array([[i, i]]), frequencies)
                     * rotary.turned(k, np.array([[j, j]]), frequencies)).sum(-1)
  np.testing.assert_allclose(at(7000, 7003), at(0, 3), atol=5e-3)
  np.testing.assert_allclose(at(0, 0), (q * k).sum(-1), atol=1e-6)
  assert float(jnp.abs(at(3, 0) - at(0, 3)).max()) > 0.1 and float(jnp.abs(at(0, 4) - at(0, 3)).max()) > 0.1


def test_angles_of_short_states_are_exact():
  """bfloat16 would put the positions 8,001 and 8,002 at 8,000."""
  x = jax.random.normal(jax.random.key(0), (1, 3, 1, 8))
  positions, frequencies = np.array([[8000, 8001, 8002]]), jnp.ones(4)
  exact = rotary.turned(x, positions, frequencies)
  short = rotary.turned(x.astype(jnp.bfloat16), positions, frequencies)
  assert short.dtype == jnp.bfloat16
  np.testing.assert_allclose(short.astype(jnp.float32), exact, atol=0.03)


# -- On a mesh ---------------------------------------------------------------------------------------------------------


@pytest.mark.torch
def test_scores_and_gradients_on_a_mesh_are_those_of_one_device(folder):
  network = networks.ranker(config.Encoder(weights=str(folder), query_tokens=8, passage_tokens=32), "classifier")
  params = moved(network.initial(0))
  rows = rows_of.one_a_row([text[:24] for text in TEXTS * 2][:8], None, 32)
  alone, spread, step = on_mesh.steps(network, params, rows)
  assert np.ptp(alone.scores) > 1e-3
  np.testing.assert_allclose(spread.scores, alone.scores, atol=1e-4)
  apart = on_mesh.apart(spread.gradients, alone.gradients)
  assert max(jax.tree.leaves(apart)) < 1e-3, apart
  # A text without its last token shows in every parameter's but that of the bias, which reads none.
  segments = rows.segment_ids.copy()
  segments[0, np.flatnonzero(segments[0])[-1]] = 0
  seen = on_mesh.apart(step(dataclasses.replace(rows, segment_ids=segments)).gradients, alone.gradients)
  assert seen["classifier"].pop("bias") == 0 and min(jax.tree.leaves(seen)) > 1e-3, seen
