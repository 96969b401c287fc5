"""Every family gives transformers' numbers, and comes back out as transformers and sentence-transformers load it."""

import dataclasses
import functools
import json
import pathlib

import adamw
import gradients
import jax
import numpy as np
import pytest
import rows_of
import safetensors.numpy
import saved_names
import small_models
from flax import nnx

from idistill_jax import config
from idistill_jax.data import pack, tokenize
from idistill_jax.hf import export, networks, weights
from idistill_jax.models import cross_encoder, families, family, layers
from idistill_jax.models import table as table_lib
from idistill_jax.train import inference

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytestmark = pytest.mark.torch

QUERY, PAIR_PASSAGE, PASSAGE, ROW, WEIGHT = 10, 16, 24, 64, 3.0
QUERIES = ["merge two sorted files", "wait", "", "a naïve child", "sorted [SEP] </s> files"]
PASSAGES = [small_models.TEXTS[1], "the Café", "string", "", "a child <mask> process"]
# Of these none is cut.
SHORT = ["wait", "", "child"]
LONG = "the exit status of a child process and of the files to merge " * 3


@dataclasses.dataclass(frozen=True)
class World:
  """A small model of a family, and where exports of it go."""

  name: str
  folder: pathlib.Path
  out: pathlib.Path

  @property
  def cfg(self) -> config.Encoder:
    return config.Encoder(weights=str(self.folder), query_tokens=QUERY, passage_tokens=PASSAGE, row_tokens=ROW,
                          pair_passage_tokens=PAIR_PASSAGE, tokens_per_step=256)

  def pairs(self, network: networks.Network) -> list[tuple[np.ndarray, np.ndarray]]:
    queries, passages = network.tokenizer.table(QUERIES, QUERY), network.tokenizer.table(PASSAGES, PAIR_PASSAGE)
    return [tokenize.pair(queries[i], passages[i], passages.between) for i in range(len(QUERIES))]

  @functools.cached_property
  def retriever(self) -> inference.Retriever:
    """Not as it started, and exported to out/retriever."""
    one = inference.load_retriever(config.Config(name="x", encoder=self.cfg), None)
    network, params = one.forward.network, moved(one.forward.params, 2)
    export.export_retriever(params, network, self.out / "retriever", card="card\n",
                            cut=export.Cut(query_tokens=QUERY, passage_tokens=PASSAGE))
    return dataclasses.replace(one, forward=inference.Forward(network, params, one.forward._mesh, ROW, 256))


def made(name: str, folder: pathlib.Path) -> World:
  return World(name, small_models.write(name, folder / "source"), folder / "out")


def family_of(name: str) -> family.Family:
  return families.FAMILIES[small_models.SMALL[name].model_type]


POSITIONS = "max_position_embeddings"
BOUNDED = ["bert with one type", *(name for name, one in families.FAMILIES.items()
                                   if name != "bert" and POSITIONS in one.sizes)]
UNBOUNDED = [name for name in small_models.SMALL if POSITIONS not in family_of(name).sizes]


@pytest.fixture(scope="module", params=[*BOUNDED, *UNBOUNDED])
def world(request, tmp_path_factory) -> World:
  return made(request.param, tmp_path_factory.mktemp("family"))


# XLM-RoBERTa and CamemBERT are RoBERTa to a ranker, and two types are tried of others than BERT.
DISTINCT = [name for name in small_models.SMALL if name not in ("xlm-roberta", "camembert", "bert")]
CLASSIFIERS = [name for name in DISTINCT if family_of(name).classifier]
UNCLASSIFIED = [name for name in DISTINCT if not family_of(name).classifier]
# Their classifiers are built otherwise: T5's has a decoder, EuroBERT's scores each token, the others read the last one.
UNREAD = ("t5", "eurobert", "qwen3", "gemma3_text")


@pytest.fixture(scope="module", params=[*CLASSIFIERS, *UNCLASSIFIED])
def distinct(request, tmp_path_factory) -> World:
  return made(request.param, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_every_family_is_tried(model_type):
  assert model_type in small_models.SMALL, f"{model_type!r} has no small model: add one to small_models.SMALL"
  one = families.FAMILIES[model_type]
  theirs = f"{one.name}ForSequenceClassification"
  assert one.classifier or not hasattr(transformers, theirs) or model_type in UNREAD, (
    f"transformers has {theirs}: name its modules in `classifier`, or the family in UNREAD where it is built otherwise")


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_classes_and_prefix_are_called_so_in_transformers(model_type):
  one = families.FAMILIES[model_type]
  assert transformers.AutoConfig.for_model(model_type).model_type == model_type
  for kind in ("Model", *(["ForSequenceClassification"] if one.classifier else [])):
    known = getattr(transformers, one.name + kind)
    assert known.config_class.model_type == model_type
    assert f"{known.base_model_prefix}." == one.prefix or (not one.classifier and not one.prefix)


def moved(params, seed: int):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape).astype(np.float32), params)


def stretched(rows: pack.Rows) -> pack.Rows:
  """With padding behind every token."""
  apart = lambda x, beside=0: np.stack([x, np.full_like(x, beside)], -1).reshape(len(x), -1)
  return dataclasses.replace(
    rows, token_ids=apart(rows.token_ids), positions=apart(2 * rows.positions), halves=apart(rows.halves),
    segment_ids=apart(rows.segment_ids), text_ids=apart(rows.text_ids, len(rows.starts)), starts=2 * rows.starts)


def test_token_states_equal_those_of_transformers(world):
  """Of the starting folder itself; texts share rows.  Control: of tokens that stand farther apart they are others."""
  network = networks.retriever(world.cfg)
  table = network.tokenizer.table(small_models.TEXTS, PASSAGE)
  rows = rows_of.packed([table[i] for i in range(len(table))], None, ROW)
  assert rows.segment_ids.max() > 1
  params = network.initial(0)
  encoder = jax.jit(lambda params, rows: nnx.merge(network.graph, params).encoder(rows, network.execution))
  # Farther apart and not just elsewhere, which is nothing to positions that turn, nor to distances.
  states, others = np.asarray(encoder(params, rows)), np.asarray(encoder(params, stretched(rows)))[:, ::2]
  model = getattr(transformers, small_models.SMALL[world.name].encoder).from_pretrained(world.folder).eval()
  for i in range(len(table)):
    with torch.no_grad():
      expected = model(input_ids=torch.tensor(table[i])[None].long()).last_hidden_state[0].numpy()
    np.testing.assert_allclose(states[rows.text_ids == i], expected, atol=2e-5)
    assert np.abs(others[rows.text_ids == i] - expected).max() > 1e-2


def torch_batch(world: World, network: networks.Network, tokenizer) -> dict:
  """The pairs padded, types where the tokenizer gives any."""
  pairs = world.pairs(network)
  ids = torch.full((len(pairs), ROW), tokenizer.pad_token_id)
  mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
  for i, (tokens, halves) in enumerate(pairs):
    ids[i, :len(tokens)], mask[i, :len(tokens)] = torch.tensor(tokens).long(), 1
    types[i, :len(tokens)] = torch.tensor(halves).long()
  told = {"token_type_ids": types} if "token_type_ids" in tokenizer.model_input_names else {}
  return {"input_ids": ids, "attention_mask": mask} | told


@pytest.mark.parametrize("distinct", CLASSIFIERS, indirect=True)
def test_a_sequence_classifier_gives_our_scores_gradients_and_steps(distinct):
  """The exported ranker in torch, with every tensor that transformers expects of it and no other."""
  world, cotangent = distinct, np.linspace(-1.0, 1.5, len(QUERIES), dtype=np.float32)
  network = networks.ranker(world.cfg, "classifier")
  params, folder = moved(network.initial(0), 1), world.out / "classifier"
  export.export_ranker(params, network, folder, head="classifier", similarity=None, card="card\n",
                       cut=export.Cut(query_tokens=QUERY, passage_tokens=PAIR_PASSAGE))
  model, info = transformers.AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  assert [type(model).__name__] == json.loads((folder / "config.json").read_text())["architectures"]
  written = {weights.canonical(name) for name in safetensors.numpy.load_file(folder / "model.safetensors")}
  assert written == set(saved_names.of(model, model.state_dict()))
  scores = model.eval()(**torch_batch(world, network, transformers.AutoTokenizer.from_pretrained(folder))).logits[:, 0]
  (scores * torch.tensor(cotangent)).sum().backward()
  expected = saved_names.of(model, {name: p.grad for name, p in model.named_parameters()})

  rows = rows_of.packed(*map(list, zip(*world.pairs(network), strict=True)), ROW)
  loss = lambda params: (lambda out: ((out * cotangent).sum(), out))(network.apply(params, rows))
  (_, found), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(found, scores.detach().numpy(), atol=1e-4)
  assert np.ptp(found) > 0.1
  # transformers gives the row of padding no gradient: no text of these holds it.
  gradients.assert_equal(table_lib.to_hf(network.table, ours), expected)
  adamw.assert_equal(network, params, model)


def torch_scores(model, head: str, params, pairs: list[tuple[np.ndarray, np.ndarray]]):
  """By hand, pair by pair."""
  scores = []
  for ids, halves in pairs:
    states = model(torch.tensor(ids)[None].long()).last_hidden_state[0]
    if head == "mean":
      kernel, bias = (torch.tensor(np.asarray(params["classifier"][part])) for part in ("kernel", "bias"))
      scores.append(cross_encoder.MeanLinear.SCALE * (states.mean(0) @ kernel + bias)[0])
    else:
      query, passage = (states[torch.tensor(halves == half)].mean(0) for half in (0, 1))
      scores.append(cross_encoder.PairCosine.SCALE * torch.cosine_similarity(query, passage, dim=0))
  return torch.stack(scores)


@pytest.mark.parametrize("head", ["mean", "pair_cosine"])
@pytest.mark.parametrize("distinct", UNCLASSIFIED, indirect=True)
def test_a_ranker_without_a_classifier_gives_the_scores_gradients_and_steps_of_torch(distinct, head):
  """Of the exported encoder, with every tensor that transformers expects of it and no other."""
  world, folder = distinct, distinct.out / f"alone {head}"
  network = networks.ranker(world.cfg, head)
  params, pairs = moved(network.initial(0), 1), world.pairs(network)
  export.export_ranker(params, network, folder, head=head, similarity=None, card="card\n",
                       cut=export.Cut(query_tokens=QUERY, passage_tokens=PAIR_PASSAGE))
  made_of = getattr(transformers, small_models.SMALL[world.name].encoder)
  model, info = made_of.from_pretrained(folder, output_loading_info=True)
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  assert [type(model).__name__] == json.loads((folder / "config.json").read_text())["architectures"]
  cotangent = np.linspace(-1.0, 1.5, len(pairs), dtype=np.float32)
  scores = torch_scores(model.eval(), head, params, pairs)
  (scores * torch.tensor(cotangent)).sum().backward()
  expected = {weights.canonical(name): p.grad.numpy() for name, p in model.named_parameters()}

  rows = rows_of.packed(*map(list, zip(*pairs, strict=True)), ROW)
  loss = lambda params: (lambda out: ((out * cotangent).sum(), out))(network.apply(params, rows))
  (_, found), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(found, scores.detach().numpy(), atol=1e-4)
  assert np.ptp(found) > 0.1
  of_encoder = {key: value for key, value in table_lib.to_hf(network.table, ours).items()
                if not key.startswith("linear.")}
  gradients.assert_equal(of_encoder, expected)
  if head == "pair_cosine":
    adamw.assert_equal(network, params, model)


def test_sentence_transformer_gives_our_embeddings(world):
  ours, folder = world.retriever, world.out / "retriever"
  theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
  texts = [*PASSAGES, *QUERIES, LONG]
  np.testing.assert_allclose(theirs.encode(texts), ours.encode_passages(texts), atol=1e-5)
  read_by = getattr(transformers, small_models.SMALL[world.name].encoder)
  _, info = read_by.from_pretrained(folder, output_loading_info=True)
  # None of these checkpoints has a pooler, and no embedding reads it.
  assert {key.partition(".")[0] for key in info["missing_keys"]} <= {"pooler"} and not info["unexpected_keys"]
  again = networks.retriever(dataclasses.replace(ours.cfg, weights=str(folder))).initial(0)
  jax.tree.map(np.testing.assert_array_equal, again, ours.forward.params)


def test_tokens_are_those_of_transformers(world):
  """Of the tokenizer class that the family has there, and of the folder that is written."""
  assert world.retriever
  texts = [*QUERIES, *PASSAGES, LONG, LONG.upper(), "İstanbul 北京 ß\tx"]
  table = networks.retriever(world.cfg).tokenizer.table(texts, 14)
  whole = networks.retriever(world.cfg).tokenizer.table(texts, 999)
  cut = tokenize.pair_lengths(14, 14, table.between)
  for folder in (world.folder, world.out / "retriever"):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(texts, truncation=True, max_length=14)["input_ids"] == [table[i].tolist() for i in range(len(table))]
    both = theirs(texts[:-1], texts[1:], truncation="longest_first", max_length=cut)["input_ids"]
    fits = [len(whole[i]) <= 14 for i in range(len(texts))]
    # Where both or none of two are longer than the cut, that of a pair, longest first, leaves each as much.
    alike = [i for i in range(len(both)) if fits[i] == fits[i + 1]]
    assert {fits[i] for i in alike} == {True, False}
    for i in alike:
      assert both[i] == tokenize.pair(table[i], table[i + 1], table.between)[0].tolist()


def test_cross_encoder_gives_our_whole_scores(distinct):
  cross_encoder_agrees(distinct, "pair_cosine")


@pytest.mark.parametrize("name", ["roberta", "deberta-v2", *UNCLASSIFIED])
def test_cross_encoder_gives_the_scores_of_a_head_without_code(name, tmp_path):
  cross_encoder_agrees(made(name, tmp_path), "mean")


def cross_encoder_agrees(world: World, head: str) -> None:
  retriever = world.retriever
  one = inference.load_ranker(
    config.Config(name="x", encoder=world.cfg, ranker=config.Ranker(head=head, similarity_weight=WEIGHT)), None)
  network, params, folder = one.forward.network, moved(one.forward.params, 3), world.out / head
  one = dataclasses.replace(one, forward=inference.Forward(network, params, one.forward._mesh, ROW, 256))
  similarity = export.Similarity(weight=WEIGHT, params=retriever.forward.params, card="card\n",
                                 network=retriever.forward.network,
                                 cut=export.Cut(query_tokens=QUERY, passage_tokens=PASSAGE))
  whole = head == "pair_cosine"
  export.export_ranker(params, network, folder, head=head, similarity=similarity if whole else None, card="card\n",
                       cut=export.Cut(query_tokens=QUERY, passage_tokens=PAIR_PASSAGE))
  # Where the folder has code, texts of any length are cut as in training.
  queries, passages = ([*QUERIES, LONG, LONG], [*PASSAGES, LONG, "the"]) if whole else (SHORT, PASSAGES[1:4])
  theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu", trust_remote_code=whole, local_files_only=True)
  found = theirs.predict(list(zip(queries, passages, strict=True)))
  similarities = (retriever.encode_queries(queries) * retriever.encode_passages(passages)).sum(-1)
  expected = one.score(queries, passages, similarities if whole else np.zeros(len(queries)))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.ptp(found) > 0.1
  if whole:
    # Control: without the similarity they are others.
    alone = dataclasses.replace(one, similarity_weight=None).score(queries, passages, similarities)
    assert np.abs(alone - found).max() > 0.1


@pytest.mark.parametrize("world", BOUNDED, indirect=True)
def test_the_longest_text_is_one_for_which_there_are_positions(world):
  sizes, tokenizer = weights.read_model(world.folder)
  assert sizes.max_tokens == small_models.POSITIONS - sizes.first_position
  longest = dataclasses.replace(world.cfg, query_tokens=8, pair_passage_tokens=8, passage_tokens=sizes.max_tokens,
                                row_tokens=128)
  network = networks.retriever(longest)
  text = network.tokenizer.table([LONG * 4], sizes.max_tokens)[0]
  assert len(text) == sizes.max_tokens
  assert np.isfinite(jax.jit(network.apply)(network.initial(0), rows_of.one_a_row([text], None, len(text)))).all()
  with pytest.raises(config.ConfigError, match=f"encoder.passage_tokens is {sizes.max_tokens + 1}, and .* has max_pos"):
    networks.retriever(dataclasses.replace(longest, passage_tokens=sizes.max_tokens + 1))
  pair = tokenize.pair_lengths(8, 8, tokenizer.between)
  networks.ranker(dataclasses.replace(longest, list_row_tokens=pair), "mean")
  with pytest.raises(config.ConfigError, match=f"is {pair} tokens with what .* set encoder.list_row_tokens to {pair}"):
    networks.ranker(dataclasses.replace(longest, list_row_tokens=pair - 1), "mean")


def test_distances_fall_into_the_buckets_of_transformers():
  from transformers.models.mpnet import modeling_mpnet

  distances = np.arange(-600, 601)
  theirs = modeling_mpnet.MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
  ours = layers.RelativeBias(32, 2, rngs=nnx.Rngs(0)).bucket(distances)
  np.testing.assert_array_equal(ours, theirs)
  # Of those behind, none is at no distance.
  assert set(ours) == {*range(32)} - {16}
