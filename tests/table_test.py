"""The parameter table is a bijection between our leaves and a checkpoint's tensors, for every size of the family."""

import dataclasses
import os
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from idistill_jax import sharding
from idistill_jax.models import bert, cross_encoder, deberta, dual_encoder, encoder, families, gemma, modern_bert, t5
from idistill_jax.models import table as table_lib

GOLDEN = pathlib.Path(__file__).parent / "golden"
TINY = bert.BertConfig(
  vocab_size=11, hidden_size=6, num_hidden_layers=3, num_attention_heads=2, intermediate_size=10,
  max_position_embeddings=7, type_vocab_size=2, layer_norm_eps=1e-12,
)
MINILM = bert.BertConfig(
  vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536,
  max_position_embeddings=512, type_vocab_size=2, layer_norm_eps=1e-12,
)
BASE = dataclasses.replace(MINILM, hidden_size=768, num_hidden_layers=12, intermediate_size=3072)
LARGE = dataclasses.replace(
  MINILM, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
MODELS = {
  "retriever": (
    lambda cfg: dual_encoder.DualEncoder(
      cfg, dual_encoder.EmbeddingConfig(pooling="mean", normalize=True), rngs=nnx.Rngs(0)),
    dual_encoder.table,
  ),
  "ranker": (lambda cfg: cross_encoder.HEADS[head(cfg)].module(cfg, rngs=nnx.Rngs(0)),
             lambda cfg: cross_encoder.table(cfg, head(cfg))),
}


def head(cfg: encoder.Sizes) -> str:
  """The one with the most parameters."""
  return "classifier" if families.FAMILIES[cfg.model_type].classifier else "mean"


def abstract_of(model: str, cfg: encoder.Sizes):
  return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: MODELS[model][0](cfg))))


def counting_checkpoint(model: str, cfg: bert.BertConfig) -> dict[str, np.ndarray]:
  """Tensors of the family's names and shapes that hold 0, 1, 2... so that no two weights are alike."""
  d, f = cfg.hidden_size, cfg.intermediate_size
  shapes = {
    "embeddings.word_embeddings.weight": (cfg.vocab_size, d),
    "embeddings.position_embeddings.weight": (cfg.max_position_embeddings, d),
    "embeddings.token_type_embeddings.weight": (cfg.type_vocab_size, d),
    "embeddings.LayerNorm.weight": (d,),
    "embeddings.LayerNorm.bias": (d,),
  }
  for i in range(cfg.num_hidden_layers):
    layer = {
      "attention.self.query": (d, d), "attention.self.key": (d, d), "attention.self.value": (d, d),
      "attention.output.dense": (d, d), "attention.output.LayerNorm": (d,), "intermediate.dense": (f, d),
      "output.dense": (d, f), "output.LayerNorm": (d,),
    }
    for name, shape in layer.items():
      shapes[f"encoder.layer.{i}.{name}.weight"] = shape
      shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
  if model == "ranker":
    shapes |= {"pooler.dense.weight": (d, d), "pooler.dense.bias": (d,)}
    shapes |= {"classifier.weight": (1, d), "classifier.bias": (1,)}
  ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
  return {
    name: np.arange(end - np.prod(shape), end, dtype=np.float32).reshape(shape)
    for (name, shape), end in zip(shapes.items(), ends, strict=True)
  }


@pytest.mark.parametrize("model", MODELS)
def test_import_then_export_changes_nothing(model):
  table, abstract = MODELS[model][1](TINY), abstract_of(model, TINY)
  tensors = counting_checkpoint(model, TINY)
  flat = table_lib.from_hf(table, tensors, abstract)
  assert set(flat) == set(table_lib.flatten(abstract))
  # Every number of the checkpoint arrives once: nothing is lost, doubled or made up.
  arrived = np.sort(np.concatenate([leaf.ravel() for leaf in flat.values()]))
  np.testing.assert_array_equal(arrived, np.arange(sum(t.size for t in tensors.values()), dtype=np.float32))
  back = table_lib.to_hf(table, table_lib.unflatten(flat))
  assert set(back) == set(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_a_kernel_that_stays_transposed_is_noticed():
  table, abstract = MODELS["ranker"][1](TINY), abstract_of("ranker", TINY)
  wrong = dataclasses.replace(table, rows=tuple(
    dataclasses.replace(row, layout="o d -> o d") if row.path == "pooler/kernel" else row for row in table.rows))
  tensors = counting_checkpoint("ranker", TINY)
  right_flat, wrong_flat = (table_lib.from_hf(t, tensors, abstract) for t in (table, wrong))
  assert not np.array_equal(right_flat["pooler/kernel"], wrong_flat["pooler/kernel"])


def test_heads_are_cut_from_the_output_axis():
  """Written out without einops: head h, feature k of a projection is row h * K + k of the checkpoint's matrix."""
  tensors = counting_checkpoint("retriever", TINY)
  flat = table_lib.from_hf(MODELS["retriever"][1](TINY), tensors, abstract_of("retriever", TINY))
  query, out = flat["encoder/layers/query/kernel"], flat["encoder/layers/out/kernel"]
  assert query[2, 5, 1, 0] == tensors["encoder.layer.2.attention.self.query.weight"][1 * 3 + 0, 5]
  assert out[2, 1, 0, 5] == tensors["encoder.layer.2.attention.output.dense.weight"][5, 1 * 3 + 0]


def test_what_modernbert_keeps_in_one_matrix_is_cut_in_its_order():
  """Written out without einops: query, key and value, each head by head; what is gated, then the gates."""
  cfg = dataclasses.replace(small("ModernBERT-base"), num_hidden_layers=3)
  d, f = cfg.hidden_size, cfg.intermediate_size
  table, abstract = MODELS["retriever"][1](cfg), abstract_of("retriever", cfg)
  rng = np.random.default_rng(0)
  tensors = table_lib.to_hf(table, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), abstract))
  flat = table_lib.from_hf(table, tensors, abstract)
  qkv, up = flat["encoder/layers/qkv/kernel"], flat["encoder/layers/up/kernel"]
  their_qkv, their_up = tensors["layers.2.attn.Wqkv.weight"], tensors["layers.2.mlp.Wi.weight"]
  assert their_qkv.shape == (3 * d, d) and their_up.shape == (2 * f, d)
  assert qkv[2, 5, 1, 1, 3] == their_qkv[d + 4 + 3, 5] and up[2, 5, 1, 7] == their_up[f + 7, 5]
  # The first layer has no norm before its attention.
  assert "layers.0.attn_norm.weight" not in tensors
  np.testing.assert_array_equal(flat["encoder/attention_norms/scale"][1], tensors["layers.2.attn_norm.weight"])


@pytest.mark.parametrize("cfg", [TINY, MINILM, BASE, LARGE], ids=["tiny", "minilm", "base", "large"])
@pytest.mark.parametrize("model", MODELS)
def test_every_leaf_has_one_row_and_every_row_a_leaf(model, cfg):
  table = MODELS[model][1](cfg)
  leaves = table_lib.flatten(abstract_of(model, cfg))
  assert sorted(row.path for row in table.rows) == sorted(leaves)
  for path, leaf in leaves.items():
    assert len(table.row(path).axes) == len(leaf.shape), path


ROBERTA = dataclasses.replace(
  BASE, model_type="roberta", vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, first_position=2,
  types_tell_halves=False)
DISTILBERT = dataclasses.replace(
  BASE, model_type="distilbert", num_hidden_layers=6, type_vocab_size=0, types_tell_halves=False)
MPNET = dataclasses.replace(
  DISTILBERT, model_type="mpnet", vocab_size=30527, num_hidden_layers=12, max_position_embeddings=514, first_position=2,
  relative_buckets=32)
MODERNBERT = modern_bert.ModernBertConfig(
  vocab_size=50368, hidden_size=768, num_hidden_layers=22, num_attention_heads=12, intermediate_size=1152,
  max_position_embeddings=8192, layer_norm_eps=1e-5, local=tuple(i % 3 > 0 for i in range(22)), reach=64,
  global_theta=160_000.0, local_theta=10_000.0, classifier_pooling="mean",
)
DEBERTA = deberta.DebertaConfig(
  vocab_size=128100, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
  max_position_embeddings=512, layer_norm_eps=1e-7, buckets=256, farthest=512,
)
ELECTRA = dataclasses.replace(
  BASE, model_type="electra", hidden_size=256, num_attention_heads=4, intermediate_size=1024, embedding_size=128)
T5 = t5.T5Config(
  vocab_size=32128, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, width=64, intermediate_size=3072,
  layer_norm_eps=1e-6, gated=False, relative_buckets=32, farthest=128)
GEMMA = gemma.GemmaConfig(
  vocab_size=262144, hidden_size=768, num_hidden_layers=24, num_attention_heads=3, num_key_value_heads=1, width=256,
  intermediate_size=1152, max_position_embeddings=2048, layer_norm_eps=1e-6, scalar=256,
  local=tuple(i % 6 > 0 for i in range(1, 25)), reach=256, global_theta=1e6, local_theta=10_000.0)
PUBLISHED = {
  "bert-base-uncased": (BASE, 108_891_648), "bert-large-uncased": (LARGE, 334_092_288),
  "roberta-base": (ROBERTA, 124_055_040), "distilbert-base-uncased": (DISTILBERT, 66_362_880),
  "xlm-roberta-base": (dataclasses.replace(ROBERTA, model_type="xlm-roberta", vocab_size=250002), 277_453_056),
  "camembert-base": (dataclasses.replace(ROBERTA, model_type="camembert", vocab_size=32005), 110_031_360),
  "mpnet-base": (MPNET, 108_895_872), "ModernBERT-base": (MODERNBERT, 149_014_272),
  "electra-small-discriminator": (ELECTRA, 13_483_008),
  "deberta-v3-base": (DEBERTA, 183_831_552),
  "electra-base-discriminator": (dataclasses.replace(BASE, model_type="electra"), 108_891_648),
  # Without the two Dense modules behind its pooling.
  "embeddinggemma-300m": (GEMMA, 302_863_104),
  # The encoder of t5-base, which sentence-t5-base and gtr-t5-base have, and one with fewer heads than d_model / d_kv.
  "t5-base": (T5, 109_628_544),
  "flan-t5-small": (dataclasses.replace(
    T5, hidden_size=512, num_hidden_layers=8, num_attention_heads=6, intermediate_size=1024, gated=True), 35_332_800),
}  # fmt: skip


def small(name: str) -> encoder.Sizes:
  """A published model with less of everything."""
  return dataclasses.replace(PUBLISHED[name][0], vocab_size=11, hidden_size=8, num_attention_heads=2,
                             intermediate_size=10, num_hidden_layers=2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_the_published_models(name):
  """Parameters of these checkpoints without their pooler."""
  cfg, count = PUBLISHED[name]
  assert sum(leaf.size for leaf in jax.tree.leaves(abstract_of("retriever", cfg))) == count


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_parameter_of_every_family_goes_out_under_one_name_and_comes_back(name, model):
  table, abstract = MODELS[model][1](small(name)), abstract_of(model, small(name))
  assert sorted(row.path for row in table.rows) == sorted(table_lib.flatten(abstract))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract)
  tensors = table_lib.to_hf(table, params)
  assert sum(tensor.size for tensor in tensors.values()) == sum(leaf.size for leaf in jax.tree.leaves(abstract))
  back = table_lib.unflatten(table_lib.from_hf(table, tensors, abstract))
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_everything_that_does_not_fit_is_listed_at_once():
  tensors = counting_checkpoint("ranker", TINY)
  del tensors["encoder.layer.1.output.dense.bias"]
  tensors["encoder.layer.0.crossattention.self.query.weight"] = np.zeros((6, 6), np.float32)
  tensors["embeddings.word_embeddings.weight"] = np.zeros((12, 6), np.float32)
  tensors["encoder.layer.0.attention.self.query.weight"] = np.zeros((5, 6), np.float32)
  with pytest.raises(table_lib.WeightsError) as e:
    table_lib.from_hf(MODELS["ranker"][1](TINY), tensors, abstract_of("ranker", TINY))
  said = str(e.value)
  assert "- encoder.layer.1.output.dense.bias (for encoder/layers/down/bias)" in said
  assert "+ encoder.layer.0.crossattention.self.query.weight (6, 6)" in said
  assert "~ embeddings.word_embeddings.weight: gives (12, 6), encoder/word/embedding is (11, 6)" in said
  assert "~ encoder.layer.0.attention.self.query.weight: (5, 6)" in said


def test_layers_of_different_shapes_are_an_error():
  tensors = counting_checkpoint("retriever", TINY)
  tensors["encoder.layer.1.intermediate.dense.bias"] = np.zeros(9, np.float32)
  with pytest.raises(table_lib.WeightsError, match=r"~ encoder.layer.0.intermediate.dense.bias"):
    table_lib.from_hf(MODELS["retriever"][1](TINY), tensors, abstract_of("retriever", TINY))


def test_more_layers_than_the_config_says_are_an_error():
  tensors = counting_checkpoint("retriever", dataclasses.replace(TINY, num_hidden_layers=4))
  with pytest.raises(table_lib.WeightsError, match=r"\+ encoder.layer.3.output.dense.weight"):
    table_lib.from_hf(MODELS["retriever"][1](TINY), tensors, abstract_of("retriever", TINY))


def test_optional_leaves_may_be_absent_and_ignored_keys_present():
  table, abstract = MODELS["ranker"][1](TINY), abstract_of("ranker", TINY)
  tensors = counting_checkpoint("retriever", TINY) | {
    "embeddings.position_ids": np.arange(7), "cls.predictions.bias": np.zeros(11, np.float32)}
  flat = table_lib.from_hf(table, tensors, abstract, optional=cross_encoder.HEADS["classifier"].fresh(TINY))
  assert set(table_lib.flatten(abstract)) - set(flat) == set(cross_encoder.HEADS["classifier"].fresh(TINY))
  with pytest.raises(table_lib.WeightsError, match=r"- pooler\.dense\.weight"):
    table_lib.from_hf(table, tensors, abstract)


@pytest.mark.parametrize("copies", [0, 2])
def test_a_leaf_with_no_row_or_two_is_an_error(copies):
  table = MODELS["ranker"][1](TINY)
  head = [row for row in table.rows if row.path == "classifier/bias"]
  others = [row for row in table.rows if row.path != "classifier/bias"]
  with pytest.raises(table_lib.WeightsError, match=f"'classifier/bias' matches {copies} rows"):
    table_lib.from_hf(dataclasses.replace(table, rows=(*others, *head * copies)),
                      counting_checkpoint("ranker", TINY), abstract_of("ranker", TINY))


@pytest.mark.parametrize("name", PUBLISHED)
def test_matrices_and_embeddings_decay_and_nothing_else(name):
  table, abstract = MODELS["ranker"][1](small(name)), abstract_of("ranker", small(name))
  flat = table_lib.flatten(table_lib.decay_mask(table, abstract))
  marks = {path: np.full(leaf.shape, flat[path], np.float32) for path, leaf in table_lib.flatten(abstract).items()}
  for key, tensor in table_lib.to_hf(table, table_lib.unflatten(marks)).items():
    assert tensor.all() == (tensor.ndim == 2), key


@pytest.mark.parametrize("model", MODELS)
def test_a_tensor_axis_need_not_divide_the_vocabulary(model):
  mesh = jax.make_mesh((1, 2, 4), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  laid = table_lib.shardings(MODELS[model][1](MINILM), abstract_of(model, MINILM), mesh)
  assert laid["encoder"]["layers"]["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")


@pytest.mark.parametrize("sizes", [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)],
                         ids=["1x1x1", "8x1x1", "1x8x1", "2x2x2"])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name, cfg", [("minilm", MINILM), ("modernbert", MODERNBERT)])
def test_golden_listing(name, cfg, model, sizes):
  """UPDATE_GOLDEN=1 writes the files anew."""
  devices = jax.devices()[:int(np.prod(sizes))]
  mesh = jax.make_mesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
  found = table_lib.listing(MODELS[model][1](cfg), abstract_of(model, cfg), mesh)
  path = GOLDEN / f"{name}_{model}_{'x'.join(map(str, sizes))}.txt"
  if os.environ.get("UPDATE_GOLDEN") == "1":
    path.parent.mkdir(exist_ok=True)
    path.write_text(found)
  assert path.exists(), f"{path} is missing; UPDATE_GOLDEN=1 writes it"
  assert found == path.read_text()
