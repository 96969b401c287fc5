"""What files beside tokenizer.json say of it, held against transformers and sentence-transformers, and out again."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import small_models

from idistill_jax import config, fingerprints
from idistill_jax.data import tokenize, tokenizer_files
from idistill_jax.hf import export, networks, weights
from idistill_jax.models import compared
from idistill_jax.train import inference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.torch

TEXTS = ["How do I merge Café files?", "naïve", "北京 merge", "the  exit status", "", "merge"]
XLM_R = ("XLMRobertaTokenizer", small_models.ANGLED, "<mask>")


@pytest.fixture
def folder(request, tmp_path) -> pathlib.Path:
  small_models.write(getattr(request, "param", "bert"), tmp_path / "model")
  return tmp_path / "model"


def edit(path: pathlib.Path, **values: object) -> None:
  """None takes a field away."""
  found = (json.loads(path.read_text()) if path.exists() else {}) | values
  path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def ids(folder: pathlib.Path) -> list[list[int]]:
  table = tokenize.Tokenizer(folder).table(TEXTS, 60)
  return [table[i].tolist() for i in range(len(TEXTS))]


def retriever(folder: pathlib.Path, **fields) -> inference.Retriever:
  encoder = config.Encoder(weights=str(folder), query_tokens=16, passage_tokens=24, row_tokens=64, tokens_per_step=256,
                           **fields)
  return inference.load_retriever(config.Config(name="x", encoder=encoder), None)


def exported(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
  found = retriever(folder).forward
  export.export_retriever(found.params, found.network, to, cut=export.Cut(query_tokens=16, passage_tokens=24), card="")
  return to


@pytest.mark.parametrize("folder, arguments", [
  ("bert", {"do_lower_case": False}), ("bert", {"strip_accents": False}), ("bert", {"tokenize_chinese_chars": False}),
  ("roberta", {"add_prefix_space": True})], indirect=["folder"])
def test_arguments_of_a_tokenizers_class_count(folder, arguments, tmp_path):
  before = ids(folder)
  edit(folder / tokenizer_files.ARGUMENTS, **arguments)
  found = ids(folder)
  assert tokenizer_files.changes(folder) and found != before
  assert found == transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
  assert transformers.AutoTokenizer.from_pretrained(exported(folder, tmp_path / "out"))(TEXTS)["input_ids"] == found
  assert not tokenizer_files.changes(tmp_path / "out"), "they are in tokenizer.json now"
  # A class that takes tokenizer.json as it is leaves them alone.
  edit(folder / tokenizer_files.ARGUMENTS, tokenizer_class="PreTrainedTokenizerFast")
  assert ids(folder) == before and not tokenizer_files.changes(folder)


@pytest.mark.parametrize("module", [{"do_lower_case": True}, {"tokenizer_args": {"do_lower_case": True}}])
def test_what_the_module_asks_of_a_tokenizer_counts(folder, tmp_path, module):
  edit(folder / tokenizer_files.ARGUMENTS, do_lower_case=False)
  cased = ids(folder)
  edit(folder / "sentence_bert_config.json", max_seq_length=24, **module)
  modules(folder, "Transformer", "Pooling", "Normalize")
  assert ids(folder) != cased
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = retriever(folder).encode_passages(TEXTS)
  np.testing.assert_allclose(theirs.encode(TEXTS), ours, atol=1e-5)
  again = sentence_transformers.SentenceTransformer(str(exported(folder, tmp_path / "out")), device="cpu")
  np.testing.assert_allclose(again.encode(TEXTS), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["config_args", "config_kwargs"])
def test_another_model_that_the_module_makes_of_config_json_is_refused(folder, name):
  modules(folder, "Transformer", "Pooling", "Normalize")
  same = {"layer_norm_eps": 1e-12, "output_attentions": False, "revision": "main"}
  edit(folder / "sentence_bert_config.json", max_seq_length=24, **{name: same})
  plain = retriever(folder).encode_passages(TEXTS)
  edit(folder / "sentence_bert_config.json", **{name: {"layer_norm_eps": 0.5}})
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
  assert np.abs(theirs - plain).max() > 0.1
  with pytest.raises(ValueError, match=r"config_args or config_kwargs .* are \{'layer_norm_eps': 0.5\}"):
    retriever(folder)
  edit(folder / "config.json", layer_norm_eps=0.5)
  edit(folder / "sentence_bert_config.json", **{name: {"hidden_act": "relu"}})
  with pytest.raises(ValueError, match=r"config_args or config_kwargs .* are \{'hidden_act': 'relu'\}"):
    retriever(folder)
  edit(folder / "sentence_bert_config.json", **{name: None})
  np.testing.assert_allclose(theirs, retriever(folder).encode_passages(TEXTS), atol=1e-5)


@pytest.mark.parametrize("name", [
  "config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "1_Pooling/config.json",
  "config_sentence_transformers.json", "model.safetensors.index.json"])
def test_a_pointer_in_a_files_place_is_told_by_the_files_name(folder, name):
  modules(folder, "Transformer", "Pooling")
  (folder / "model.safetensors").unlink()
  (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 17\n")
  with pytest.raises(tokenizer_files.BrokenFileError, match=rf"{folder / name}: is no JSON: .* fetch it again"):
    weights.check(config.Encoder(weights=str(folder), query_tokens=16, passage_tokens=24, row_tokens=64))


def modules(folder: pathlib.Path, *kinds: str) -> None:
  (folder / "modules.json").write_text(json.dumps([
    {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
    for i, kind in enumerate(kinds)]))
  for i, kind in enumerate(kinds[1:], start=1):
    (folder / f"{i}_{kind}").mkdir(exist_ok=True)
  (folder / "1_Pooling" / "config.json").write_text(json.dumps({
    "word_embedding_dimension": small_models.WIDTH, "pooling_mode_mean_tokens": True}))


@pytest.mark.parametrize("arguments", [
  {"truncation_side": "left"}, {"split_special_tokens": True}, {"split_by_punct": True}])
def test_arguments_that_are_not_read_are_refused_by_name(folder, arguments):
  (name,) = arguments
  edit(folder / tokenizer_files.ARGUMENTS, **arguments)
  with pytest.raises(tokenizer_files.TokenizerError, match=rf"tokenizer_config.json: {name} is .*, and only"):
    tokenize.Tokenizer(folder)


@pytest.mark.parametrize("folder, arguments", [
  ("deberta-v2", {"do_lower_case": True}), ("xlm-roberta", {"add_prefix_space": False}),
  ("camembert", {"add_prefix_space": False})], indirect=["folder"])
def test_what_other_classes_would_do_by_an_argument_is_refused(folder, arguments):
  before = ids(folder)
  edit(folder / tokenizer_files.ARGUMENTS, **arguments)
  # The control: transformers does otherwise than without it.
  assert transformers.AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"] != before
  (name,) = arguments
  with pytest.raises(tokenizer_files.TokenizerError, match=rf"{name} is .*, and tokenizer.json does not do so"):
    tokenize.Tokenizer(folder)
  edit(folder / tokenizer_files.ARGUMENTS, tokenizer_class="PreTrainedTokenizerFast")
  assert ids(folder) == before


@pytest.mark.parametrize("said", ["in full", "in special_tokens_map.json", "nowhere"])
def test_a_family_with_another_ones_tokenizer_is_exported_with_its_special_tokens(folder, tmp_path, said):
  """As multilingual MiniLMs, which are BERT's and have XLM-R's."""
  other = small_models._unigrams(*XLM_R)
  for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
    (folder / name).unlink(missing_ok=True)
  other.save_pretrained(folder)
  called = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
  if said != "in full":
    (folder / tokenizer_files.ARGUMENTS).write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
  if said == "in special_tokens_map.json":
    edit(folder / "special_tokens_map.json", **called | {"mask_token": {"content": "<mask>", "lstrip": True}})
  assert len(other) <= json.loads((folder / "config.json").read_text())["vocab_size"]
  out = exported(folder, tmp_path / "out")
  assert json.loads((out / "special_tokens_map.json").read_text()) == called
  theirs = sentence_transformers.SentenceTransformer(str(out), device="cpu")
  np.testing.assert_allclose(theirs.encode(TEXTS), retriever(folder).encode_passages(TEXTS), atol=1e-5)


def test_without_a_token_for_padding_the_weights_are_refused_before_anything_is_trained(folder):
  raw = json.loads((folder / "tokenizer.json").read_text())
  named = json.dumps(raw).replace("[PAD]", "[NIL]")
  (folder / "tokenizer.json").write_text(named)
  edit(folder / tokenizer_files.ARGUMENTS, pad_token=None)
  (folder / "special_tokens_map.json").unlink(missing_ok=True)
  encoder = config.Encoder(weights=str(folder), query_tokens=16, passage_tokens=24, row_tokens=64)
  sizes, tokenizer = weights.read_model(folder)
  assert weights.special_tokens(folder, sizes, tokenizer)["pad_token"] == "[NIL]", "by config.json's number"
  edit(folder / "config.json", pad_token_id=9999)
  with pytest.raises(tokenizer_files.TokenizerError, match="no token for padding"):
    weights.check(encoder)


@pytest.mark.parametrize("folder", ["roberta"], indirect=True)
def test_padding_that_stands_around_every_text_is_refused(folder):
  edit(folder / "config.json", pad_token_id=0)
  with pytest.raises(tokenizer_files.TokenizerError, match=r"config.json: pad_token_id 0 is '<s>' in tokenizer.json"):
    networks.retriever(config.Encoder(weights=str(folder)))


def test_a_ranker_gets_no_types_where_the_tokenizer_gives_none(folder):
  sizes = lambda: weights.read_model(folder)[0].types_tell_halves
  assert sizes()
  edit(folder / tokenizer_files.ARGUMENTS, model_input_names=["input_ids", "attention_mask"])
  assert not sizes()


# -- Cosines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said, unit", [("cosine", True), ("dot", False), (None, False)])
def test_how_a_checkpoint_is_compared_is_as_it_says(folder, tmp_path, said, unit):
  modules(folder, "Transformer", "Pooling")
  edit(folder / compared.FILE, prompts={}, similarity_fn_name=said)
  edit(folder / "sentence_bert_config.json", max_seq_length=24)
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  ours = retriever(folder)
  found = ours.encode_passages(TEXTS)
  np.testing.assert_allclose(theirs.encode(TEXTS, normalize_embeddings=unit), found, atol=1e-5)
  if said is not None:
    query = ours.encode_queries(TEXTS[:1])
    np.testing.assert_allclose(theirs.similarity(theirs.encode(TEXTS[:1]), theirs.encode(TEXTS)).numpy(),
                               query @ found.T, rtol=1e-4)
  again = sentence_transformers.SentenceTransformer(str(exported(folder, tmp_path / "out")), device="cpu")
  assert again.similarity_fn_name == ("cosine" if unit else "dot")
  np.testing.assert_allclose(again.encode(TEXTS), found, atol=1e-5)
  # The config's word counts more.
  lengths = np.linalg.norm(retriever(folder, normalize=not unit).encode_passages(TEXTS), axis=1)
  assert (np.abs(lengths - 1) < 1e-5).all() != unit


def test_distances_are_refused_but_where_they_order_as_cosines_do(folder):
  modules(folder, "Transformer", "Pooling")
  edit(folder / compared.FILE, similarity_fn_name="manhattan")
  with pytest.raises(ValueError, match=r"similarity_fn_name is 'manhattan', and cosine or dot is supported"):
    retriever(folder)
  assert retriever(folder, normalize=True).encode_passages(["x"]).shape == (1, small_models.WIDTH)
  edit(folder / compared.FILE, similarity_fn_name="euclidean")
  with pytest.raises(ValueError, match="euclidean"):
    retriever(folder)
  modules(folder, "Transformer", "Pooling", "Normalize")
  retriever(folder)


def test_embeddings_that_sentence_transformers_would_shorten_are_refused(folder):
  modules(folder, "Transformer", "Pooling", "Normalize")
  edit(folder / compared.FILE, truncate_dim=8)
  shortened = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
  assert shortened.encode(TEXTS).shape == (len(TEXTS), 8)
  with pytest.raises(ValueError, match=rf"truncate_dim is 8, .* of their {small_models.WIDTH} numbers: take it out"):
    retriever(folder)
  edit(folder / compared.FILE, truncate_dim=small_models.WIDTH)
  assert retriever(folder).encode_passages(["x"]).shape == (1, small_models.WIDTH)


def test_modules_elsewhere_or_of_other_makers_are_refused(folder):
  modules(folder, "Transformer", "Pooling")
  path = folder / compared.MODULES
  whole = json.loads(path.read_text())
  path.write_text(json.dumps([whole[0] | {"path": "0_Transformer"}, whole[1]]))
  with pytest.raises(ValueError, match=r"has its Transformer in '0_Transformer', .* folder .*0_Transformer in"):
    retriever(folder)
  path.write_text(json.dumps([whole[0], whole[1] | {"type": "my_pool.Pooling"}]))
  with pytest.raises(ValueError, match=r"modules Transformer, my_pool.Pooling are not supported"):
    retriever(folder)


@pytest.mark.parametrize("pooling", [{"pooling_mode": ["mean"]}, {"pooling_mode": "mean"}, {}])
def test_poolings_mode_in_all_its_forms(folder, pooling):
  modules(folder, "Transformer", "Pooling")
  (folder / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": small_models.WIDTH} | pooling))
  assert retriever(folder).forward.network.embedding.pooling == "mean"


def test_collections_with_written_queries_are_of_the_rule_that_keeps_them_apart(tmp_path):
  (tmp_path / "corpus.jsonl").write_text('{"_id": "p", "text": "x"}\n')
  of = config.Collection(source="corpus", path=str(tmp_path / "corpus.jsonl"))
  configs = (config.Config(name="x", collection=of, queries=config.Queries(passages=some)) for some in (None, 7))
  plain, written = map(fingerprints.collection, configs)
  assert written == f"{plain} {fingerprints.WRITTEN}"


def test_what_is_read_otherwise_than_before_is_made_anew(folder, tmp_path):
  key = lambda folder, **fields: fingerprints.weights(config.Config(
    name="x", encoder=config.Encoder(weights=str(folder), **fields)))  # fmt: skip
  assert " " not in key(folder)
  cased = shutil.copytree(folder, tmp_path / "cased")
  edit(cased / tokenizer_files.ARGUMENTS, do_lower_case=False)
  angles = shutil.copytree(folder, tmp_path / "angles")
  modules(angles, "Transformer", "Pooling")
  edit(angles / compared.FILE, similarity_fn_name="cosine")
  typeless = shutil.copytree(folder, tmp_path / "typeless")
  edit(typeless / tokenizer_files.ARGUMENTS, model_input_names=["input_ids", "attention_mask"])
  assert all(" " in key(one) for one in (cased, angles, typeless)) and " " not in key(angles, normalize=True)
  edit(typeless / "config.json", type_vocab_size=1)
  assert " " not in key(typeless)
  (folder / tokenizer_files.ARGUMENTS).write_text(json.dumps({"do_lower_case": None, "strip_accents": None}))
  assert not tokenizer_files.changes(folder), "none says nothing, and of accents what tokenizer.json says"
