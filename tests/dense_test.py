"""Dense modules behind pooling: read, trained and written as sentence-transformers and torch do."""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys
import types

import adamw
import gradients
import jax
import numpy as np
import pytest
import rows_of
import safetensors.numpy
import small_models
import tiny_world

from idistill_jax import config, dry_run, sharding
from idistill_jax.hf import card, export, folders, networks, weights
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import table as table_lib
from idistill_jax.retrieval import compact
from idistill_jax.train import checkpoint, fit, inference, loop
from idistill_jax.workdir import artifacts

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.torch

WIDTH = small_models.WIDTH
IDENTITY = "torch.nn.modules.linear.Identity"
CUT = export.Cut(query_tokens=10, passage_tokens=24)
TEXTS = [*small_models.TEXTS, "", "the exit status of a child process and of the files to merge " * 3]


@dataclasses.dataclass(frozen=True)
class Kind:
  """dense: (out_features, bias, activation) of each module."""

  family: str
  pooling: str
  dense: tuple[tuple[int, bool, str], ...]
  normalize: bool

  @property
  def kinds(self) -> list[str]:
    return ["Transformer", "Pooling", *["Dense"] * len(self.dense), *["Normalize"] * self.normalize]


KINDS = {
  "LaBSE": Kind("bert", "cls", ((WIDTH, True, "Tanh"),), True),
  "distiluse": Kind("distilbert", "mean", ((24, True, "Tanh"),), False),
  "GTR": Kind("roberta", "mean", ((40, False, "Identity"),), True),
  "EmbeddingGemma": Kind("gemma3_text", "mean", ((64, False, "Identity"), (24, False, "Identity")), True),
  "others": Kind("bert", "mean", ((24, True, "ReLU"), (48, False, "GELU"), (16, True, "Identity")), True),
}


def write(kind: Kind, folder: pathlib.Path) -> pathlib.Path:
  """As SentenceTransformer saves it."""
  from sentence_transformers import models

  small_models.write(kind.family, folder / "encoder")
  with torch.random.fork_rng():
    torch.manual_seed(3)
    made, width = [models.Transformer(str(folder / "encoder")), models.Pooling(WIDTH, kind.pooling)], WIDTH
    for out, bias, activation in kind.dense:
      made.append(models.Dense(width, out, bias=bias, activation_function=getattr(torch.nn, activation)()))
      width = out
    made += [models.Normalize()] * kind.normalize
    # Without a name, cosines are what it is saved with, and those are of unit vectors here.
    compared = None if kind.normalize else "dot"
    whole = sentence_transformers.SentenceTransformer(modules=made, device="cpu", similarity_fn_name=compared)
    whole.save(str(folder / "model"))
  return folder / "model"


@functools.cache
def _theirs(folder: pathlib.Path):
  return sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


@dataclasses.dataclass(frozen=True)
class World:
  kind: Kind
  folder: pathlib.Path

  @property
  def cfg(self) -> config.Encoder:
    return encoder(self.folder)

  @property
  def width(self) -> int:
    return self.kind.dense[-1][0]

  @functools.cached_property
  def retriever(self) -> inference.Retriever:
    """The initial one."""
    return retriever(self.cfg)


def encoder(folder: pathlib.Path) -> config.Encoder:
  return config.Encoder(weights=str(folder), query_tokens=10, passage_tokens=24, row_tokens=64, tokens_per_step=256)


def retriever(cfg: config.Encoder) -> inference.Retriever:
  return inference.load_retriever(config.Config(name="x", encoder=cfg), None)


def moved(one, seed: int):
  """Not as it started."""
  rng, forward = np.random.default_rng(seed), one.forward
  params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape).astype(np.float32),
                        forward.params)
  return dataclasses.replace(one, forward=inference.Forward(forward.network, params, forward._mesh, 64, 256))


@pytest.fixture(scope="module", params=KINDS)
def world(request, tmp_path_factory) -> World:
  return World(KINDS[request.param], write(KINDS[request.param], tmp_path_factory.mktemp("dense")))


@pytest.fixture(scope="module")
def labse(tmp_path_factory) -> World:
  return World(KINDS["LaBSE"], write(KINDS["LaBSE"], tmp_path_factory.mktemp("labse")))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory) -> World:
  kind = KINDS["EmbeddingGemma"]
  return World(kind, write(kind, tmp_path_factory.mktemp("gemma")))


@pytest.fixture
def folder(labse, tmp_path) -> pathlib.Path:
  """One that a test may break: 2_Dense is behind pooling."""
  return pathlib.Path(shutil.copytree(labse.folder, tmp_path / "model"))


def change(path: pathlib.Path, **values) -> None:
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


# -- As sentence-transformers and torch compute --------------------------------------------------------------------


def test_the_initial_retriever_embeds_as_sentence_transformers_does(world):
  theirs = _theirs(world.folder)
  theirs.max_seq_length = 24
  found = world.retriever.encode_passages(TEXTS)
  assert found.shape == (len(TEXTS), world.width)
  np.testing.assert_allclose(found, theirs.encode(TEXTS), atol=1e-5)
  assert world.retriever.encode_queries([]).shape == (0, world.width)


def test_control_without_the_module_or_its_activation_they_are_others(labse, folder):
  expected = labse.retriever.encode_passages(TEXTS)
  change(folder / "2_Dense" / "config.json", activation_function=IDENTITY)
  assert np.abs(retriever(encoder(folder)).encode_passages(TEXTS) - expected).max() > 1e-2
  (folder / "modules.json").write_text(json.dumps([
    one for one in json.loads((folder / "modules.json").read_text()) if not one["type"].endswith("Dense")]))
  assert np.abs(retriever(encoder(folder)).encode_passages(TEXTS) - expected).max() > 0.1


def torch_model(world: World):
  """Parameters called as in a whole checkpoint; the pooler, which takes no part, is none of them."""
  theirs = _theirs(world.folder)
  model = torch.nn.Module()
  model.bert = theirs[0].auto_model
  if hasattr(model.bert, "pooler"):
    model.bert.pooler = None
  for number, kind in enumerate(world.kind.kinds):
    if kind == "Dense":
      model.add_module(f"{number}_Dense", theirs[number])
  return theirs, model.eval()


def test_gradients_and_steps_of_its_parameters_are_torchs(world):
  theirs, model = torch_model(world)
  network, params = world.retriever.forward.network, world.retriever.forward.network.initial(0)
  table = network.passage_table(small_models.TEXTS, 24)
  texts = [table[i] for i in range(len(table))]
  cotangent = np.random.default_rng(0).normal(size=(len(texts), world.width)).astype(np.float32)
  model.zero_grad()
  for text, of_one in zip(texts, cotangent, strict=True):
    # None of them at once, as padding is another's.
    ids = torch.tensor(text)[None].long()
    features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (theirs(features)["sentence_embedding"][0] * torch.tensor(of_one)).sum().backward()
  expected = {weights.canonical(name): p.grad.numpy() for name, p in model.named_parameters()}
  rows = rows_of.packed(texts, None, 64)
  ours = jax.jit(jax.grad(lambda params: (network.apply(params, rows) * cotangent).sum()))(params)
  gradients.assert_equal(table_lib.to_hf(network.table, ours), expected)
  dense = [name for name in expected if "_Dense." in name]
  assert len(dense) == sum(1 + bias for _, bias, _ in world.kind.dense)
  assert min(np.abs(expected[name]).max() for name in dense) > 1e-3
  adamw.assert_equal(network, params, model)


def test_shardings_and_decay_follow_from_the_rows(gemma):
  network = gemma.retriever.forward.network
  layout = table_lib.flatten(network.shardings(sharding.make_mesh(config.Mesh(fsdp=2, tensor=2))))
  decays = table_lib.flatten(table_lib.decay_mask(network.table, network.abstract))
  own = {path: (layout[path].spec, decays[path]) for path in layout if not path.startswith("encoder/")}
  assert own == {f"projections/layers/{i}/kernel": (jax.sharding.PartitionSpec("fsdp", None), True) for i in (0, 1)}


def test_truncated_vectors_are_those_of_sentence_transformers(labse):
  theirs = sentence_transformers.SentenceTransformer(
    str(labse.folder), device="cpu", local_files_only=True, truncate_dim=8)
  theirs.max_seq_length = 24
  found = compact.truncated(labse.retriever.encode_passages(TEXTS), 8)
  np.testing.assert_allclose(found, theirs.encode(TEXTS, normalize_embeddings=True), atol=1e-5)


def test_a_training_moves_them(gemma, tmp_path):
  start = networks.retriever(tiny_world.encoder(str(gemma.folder))).initial(0)
  mesh = sharding.make_mesh(config.Mesh(fsdp=2, tensor=2))
  params = loop.train(tiny_world.training(tmp_path, str(gemma.folder), mesh, pairs=False))
  before, after = (table_lib.flatten(one["projections"]) for one in (start, params))
  assert len(before) == 2
  for path, leaf in after.items():
    assert np.linalg.norm(np.asarray(leaf) - before[path]) > 1e-2, path


def test_a_retriever_that_starts_from_the_direct_one_has_its_projections_and_a_ranker_none(labse, tmp_path):
  cfg = config.Config(name="x", encoder=labse.cfg)
  network = networks.retriever(labse.cfg)
  trained = jax.tree.map(lambda leaf: leaf + 0.5, network.initial(0))
  checkpoint.save_model(tmp_path / inference.MODEL, trained)
  job = artifacts.Job(cfg=cfg, out=tmp_path, inputs={"train_direct": tmp_path}, cache=tmp_path)
  jax.tree.map(np.testing.assert_array_equal, fit.STARTS["direct"](job, network), trained)
  for head in ("mean", "pair_cosine", "classifier"):
    assert "projections" not in fit.STARTS["direct"](job, networks.ranker(labse.cfg, head))


# -- Out again -----------------------------------------------------------------------------------------------------


def exported(one: inference.Retriever, folder: pathlib.Path, text: str = "card\n") -> pathlib.Path:
  export.export_retriever(one.forward.params, one.forward.network, folder, cut=CUT, card=text)
  return folder


def test_the_exported_folder_has_the_modules_back(world, tmp_path):
  ours = moved(world.retriever, 1)
  out = exported(ours, tmp_path / "out")
  modules = json.loads((out / "modules.json").read_text())
  assert [one["type"].rpartition(".")[2] for one in modules] == world.kind.kinds
  for path in (one["path"] for one in modules if one["type"].endswith("Dense")):
    said, source = (json.loads((folder / path / "config.json").read_text()) for folder in (out, world.folder))
    assert said.keys() == {"in_features", "out_features", "bias", "activation_function"}
    assert said.items() <= source.items()
    written, read = (safetensors.numpy.load_file(folder / path / "model.safetensors") for folder in (out, world.folder))
    assert written.keys() == read.keys()
  assert not [key for key in safetensors.numpy.load_file(out / "model.safetensors") if "Dense" in key]
  assert json.loads((out / "1_Pooling" / "config.json").read_text())["word_embedding_dimension"] == WIDTH
  found = _theirs(out).encode(TEXTS)
  np.testing.assert_allclose(found, ours.encode_passages(TEXTS), atol=1e-5)
  assert np.abs(found - world.retriever.encode_passages(TEXTS)).max() > 1e-2
  again = retriever(encoder(out))
  assert again.forward.network.embedding == ours.forward.network.embedding
  jax.tree.map(np.testing.assert_array_equal, again.forward.params, ours.forward.params)


def test_the_card_tells_the_width_of_the_embeddings(gemma):
  facts = card.Facts(cfg=config.Config(name="x", encoder=gemma.cfg), retriever=gemma.retriever.forward.network,
                     collection={"title": "t"}, labels={}, longest_list=20, training={}, versions={}, metrics=None)
  assert "vectors of 24 numbers" in card.render("retriever", facts, "path/to/it")


def ranker(world: World, head: str) -> inference.Ranker:
  return inference.load_ranker(
    config.Config(name="x", encoder=world.cfg, ranker=config.Ranker(head=head, similarity_weight=3.0)), None)


def test_the_exported_ranker_adds_the_similarity_of_projected_vectors(gemma, tmp_path):
  """Control: without the modules, the retriever in its folder says something else."""
  one, start = moved(ranker(gemma, "pair_cosine"), 2), moved(gemma.retriever, 1)
  assert set(one.forward.network.abstract) == {"encoder"}
  similarity = export.Similarity(
    weight=3.0, params=start.forward.params, network=start.forward.network, cut=CUT, card="")
  export.export_ranker(one.forward.params, one.forward.network, tmp_path, head="pair_cosine", similarity=similarity,
                       cut=CUT, card="")
  load = lambda **how: sentence_transformers.CrossEncoder(
    str(tmp_path), device="cpu", trust_remote_code=True, local_files_only=True, **how)
  queries, passages = TEXTS[:5], TEXTS[1:6]
  similarities = (start.encode_queries(queries) * start.encode_passages(passages)).sum(-1)
  expected = one.score(queries, passages, similarities)
  pairs = list(zip(queries, passages, strict=True))
  np.testing.assert_allclose(load().predict(pairs), expected, atol=1e-4)
  np.testing.assert_allclose(load(model_kwargs={"dtype": "bfloat16"}).predict(pairs), expected, rtol=0.1, atol=0.5)
  modules = tmp_path / weights.SIMILARITY / "modules.json"
  modules.write_text(json.dumps([one for one in json.loads(modules.read_text()) if "Dense" not in one["type"]]))
  assert np.abs(load().predict(pairs) - expected).max() > 1e-2


def test_a_rankers_own_dense_module_and_a_retrievers_are_not_taken_for_each_other(labse, tmp_path):
  assert (labse.folder / folders.DENSE_HEAD / "model.safetensors").exists(), "nothing to be confused with"
  one = ranker(labse, "mean")
  assert not np.any(one.forward.params["classifier"]["kernel"])
  one = moved(one, 4)
  export.export_ranker(one.forward.params, one.forward.network, tmp_path, head="mean", similarity=None, cut=CUT,
                       card="")
  again = networks.ranker(encoder(tmp_path), "mean").initial(0)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, one.forward.params)
  theirs = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu", local_files_only=True)
  queries, passages = ["wait", "a naïve child"], ["the Café", "string"]
  found = theirs.predict(list(zip(queries, passages, strict=True)))
  np.testing.assert_allclose(found, one.score(queries, passages, np.zeros(2)), atol=1e-4)
  said = r"2_Dense/config\.json: module_output_name is 'scores'"
  for read in (networks.retriever, weights.check):
    with pytest.raises(encoder_lib.UnsupportedModelError, match=said):
      read(encoder(tmp_path))


# -- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [
  "Transformer Dense Pooling", "Transformer Pooling Normalize Dense", "Transformer Dense", "Pooling Dense",
  "Transformer Pooling Dense Normalize Normalize", "Transformer Pooling LSTM Dense"])
def test_another_order_is_refused_by_name(folder, kinds):
  (folder / "modules.json").write_text(json.dumps([
    {"path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
    for number, kind in enumerate(kinds.split())]))
  said = f"modules.json: modules {', '.join(kinds.split())} are not supported; Transformer, Pooling, any number of Den"
  for read in (networks.retriever, weights.check):
    with pytest.raises(encoder_lib.UnsupportedModelError, match=said):
      read(encoder(folder))


@pytest.mark.parametrize("said, values", [
  (r"activation_function 'torch\.nn\.modules\.activation\.SiLU' is not supported; torch\.nn\.modules\.linear\.Identity",
   {"activation_function": "torch.nn.modules.activation.SiLU"}),
  ("use_residual is True", {"use_residual": True}),
  ("module_input_name is 'token_embeddings'", {"module_input_name": "token_embeddings"}),
  ("in_features is 24, and what is before it gives 32", {"in_features": 24}),
])
def test_what_a_dense_module_cannot_be_is_refused_with_its_file(folder, said, values):
  change(folder / "2_Dense" / "config.json", **values)
  for read in (networks.retriever, weights.check):
    with pytest.raises(encoder_lib.UnsupportedModelError, match=rf"2_Dense/config\.json: {said}"):
      read(encoder(folder))


def test_each_reads_what_the_one_before_it_gives(gemma, tmp_path):
  folder = shutil.copytree(gemma.folder, tmp_path / "model")
  change(folder / "3_Dense" / "config.json", in_features=WIDTH)
  said = r"3_Dense/config\.json: in_features is 32, and what is before it gives 64"
  with pytest.raises(encoder_lib.UnsupportedModelError, match=said):
    networks.retriever(encoder(folder))


def test_what_old_files_do_not_say_is_a_bias_and_tanh(folder, labse):
  path = folder / "2_Dense" / "config.json"
  path.write_text(json.dumps({"in_features": WIDTH, "out_features": WIDTH}))
  assert networks.retriever(encoder(folder)).embedding == labse.retriever.forward.network.embedding
  path.write_text(json.dumps({"in_features": WIDTH}))
  with pytest.raises(encoder_lib.UnsupportedModelError, match=r"2_Dense/config\.json: lacks \['out_features'\]"):
    networks.retriever(encoder(folder))


@pytest.mark.parametrize("said, broken", [
  ("has linear.weight (32, 32), and", lambda tensors: tensors.pop("linear.bias")),
  ("has linear.bias (32,), linear.weight (24, 32), and",
   lambda tensors: tensors.update({"linear.weight": tensors["linear.weight"][:24].copy()})),
  ("has linear.bias (32,), linear.weight (32, 32), residual.weight (1,), and",
   lambda tensors: tensors.update({"residual.weight": np.ones(1, np.float32)})),
])
def test_tensors_that_config_json_does_not_ask_for_are_an_error_with_file_and_tensor(folder, said, broken):
  path = folder / "2_Dense" / "model.safetensors"
  tensors = safetensors.numpy.load_file(path)
  networks.retriever(encoder(folder)).initial(0)
  broken(tensors)
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(table_lib.WeightsError) as e:
    networks.retriever(encoder(folder)).initial(0)
  assert str(e.value) == (
    f"{path}: {said} by config.json there it should have linear.bias (32,), linear.weight (32, 32)")
  # Heads do not read it.
  networks.ranker(encoder(folder), "pair_cosine").initial(0)


def test_a_lost_file_is_told_before_anything_is_run(folder):
  cfg = config.Config(name="x", encoder=encoder(folder))
  usable = lambda: "NOT USABLE" not in "".join(dry_run.reads("candidates", cfg))
  assert usable()
  (folder / "2_Dense" / "model.safetensors").write_bytes(b"torn")
  assert not usable()
  (folder / "2_Dense" / "model.safetensors").unlink()
  assert not usable()
  with pytest.raises(table_lib.WeightsError, match=r"2_Dense: no model\.safetensors and no pytorch_model\.bin"):
    networks.retriever(encoder(folder)).initial(0)


# -- Files of torch ------------------------------------------------------------------------------------------------


def of_torch(folder: pathlib.Path) -> pathlib.Path:
  """The module's tensors in torch's file alone."""
  path = folder / "2_Dense" / "model.safetensors"
  torch.save({key: torch.tensor(value) for key, value in safetensors.numpy.load_file(path).items()},
             path.with_name("pytorch_model.bin"))
  path.unlink()
  return path.with_name("pytorch_model.bin")


def test_a_dense_module_of_torch_is_read_and_part_of_the_key(folder, labse):
  expected = labse.retriever.encode_passages(TEXTS)
  keys = {folders.fingerprint(str(folder))}
  path = of_torch(folder)
  np.testing.assert_array_equal(retriever(encoder(folder)).encode_passages(TEXTS), expected)
  keys.add(folders.fingerprint(str(folder)))
  torch.save({"linear.weight": torch.ones(WIDTH, WIDTH), "linear.bias": torch.ones(WIDTH)}, path)
  assert np.abs(retriever(encoder(folder)).encode_passages(TEXTS) - expected).max() > 0.1
  keys.add(folders.fingerprint(str(folder)))
  assert len(keys) == 3
  # Control: what nobody reads is in no key.
  (folder / "onnx").mkdir()
  (folder / "onnx" / "model.bin").write_bytes(b"large")
  assert folders.fingerprint(str(folder)) in keys


def test_a_changed_config_of_a_module_changes_the_key(folder):
  before = folders.fingerprint(str(folder))
  change(folder / "2_Dense" / "config.json", activation_function=IDENTITY)
  assert folders.fingerprint(str(folder)) != before


def test_the_hub_is_asked_for_torchs_file_of_a_module_that_has_no_other(folder, tmp_path, monkeypatch):
  of_torch(folder)
  asked, here = [], tmp_path / "0123abc"

  def snapshot_download(name, allow_patterns, revision=None):
    asked.append(allow_patterns)
    for path in (path for pattern in allow_patterns for path in folder.rglob(pattern) if path.is_file()):
      target = here / path.relative_to(folder)
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(path, target)
    return str(here)

  monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
  assert folders.resolve("owner/name") == here
  assert asked[1:] == [["2_Dense/pytorch_model*.bin"]] and (here / "2_Dense" / "pytorch_model.bin").exists()
  networks.retriever(encoder(here)).initial(0)


def test_from_a_bucket_a_modules_tensors_come_along():
  names = ["modules.json", "model.safetensors", "pytorch_model.bin", "2_Dense/config.json", "2_Dense/model.safetensors",
           "2_Dense/pytorch_model.bin", "3_Dense/pytorch_model.bin", "checkpoint-5/2_Dense/model.safetensors",
           "onnx/model.bin"]  # fmt: skip
  assert set(folders._to_fetch(names)) == {
    "modules.json", "2_Dense/config.json", "model.safetensors", "2_Dense/model.safetensors",
    "3_Dense/pytorch_model.bin"}
