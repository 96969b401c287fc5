"""The pair-cosine head: the cosine of the halves by hand, and the exported folder, which gives the whole score alone.

Alone: in a process that cannot import our package, with texts of every length against every cut.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import rows_of

from idistill_jax import config
from idistill_jax.data import tokenize
from idistill_jax.hf import export, folders, networks, weights
from idistill_jax.models import bert
from idistill_jax.train import inference

QUERIES = ["merge two sorted lists", "open a file", "wait"]
PASSAGES = ["heapq.merge. Merge multiple sorted inputs into a single sorted output.", "io.open. Open file.", "Lock."]
WORDS = "merge sort split open close read write lock wait print join copy move date time path file".split()
WEIGHT = 30.0
# Three cuts, all different, and the longest is not the joint reading's.
QUERY, PAIR_PASSAGE, PASSAGE = 12, 20, 30


@pytest.fixture
def network(tiny_weights):
  return networks.ranker(config.Encoder(weights=tiny_weights), "pair_cosine")


@pytest.fixture
def pairs(network):
  queries, passages = (network.tokenizer.table(texts, 32) for texts in (QUERIES, PASSAGES))
  return [tokenize.pair(queries[i], passages[i], passages.between) for i in range(len(QUERIES))]


def test_score_is_the_cosine_of_the_means_of_the_halves(network, pairs):
  params = network.initial(0)
  rows = rows_of.packed([ids for ids, _ in pairs], [types for _, types in pairs], 64)
  scores = np.asarray(jax.jit(network.apply)(params, rows))
  encoder = bert.Bert.__call__
  states = np.asarray(jax.jit(lambda p, r: encoder(_merged(network, p).encoder, r, network.execution))(params, rows))
  for i, (ids, types) in enumerate(pairs):
    mine = states[rows.text_ids == i]
    assert len(mine) == len(ids)
    query, passage = (mine[types == half].mean(0) for half in (0, 1))
    expected = 20 * query @ passage / np.linalg.norm(query) / np.linalg.norm(passage)
    assert scores[i] == pytest.approx(expected, abs=1e-4)
  # Control: the halves read apart give another number, so the joint reading matters.
  assert np.ptp(scores) > 1e-2


def _merged(network, params):
  from flax import nnx

  return nnx.merge(network.graph, params)


# -- The exported folder -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Exported:
  """A ranker and the retriever of its similarity, neither as it started, and the folder that holds both."""

  cfg: config.Config
  ranker: inference.Ranker
  retriever: inference.Retriever
  folder: pathlib.Path

  @functools.cached_property
  def of_many_lengths(self) -> np.ndarray:
    """The scores of the pairs of that name."""
    return self.scores(*of_many_lengths())

  def scores(self, queries: list[str], passages: list[str]) -> np.ndarray:
    """As in training: the similarity is of each text alone."""
    similarities = self.retriever.encode_queries(queries) * self.retriever.encode_passages(passages)
    return self.ranker.score(queries, passages, similarities.sum(-1))


def shifted(one, seed: int):
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda leaf: np.asarray(leaf) + 0.02 * rng.normal(size=leaf.shape).astype(np.float32), one.forward.params
  )
  forward = inference.Forward(one.forward.network, params, one.forward._mesh, 64, 512)
  return dataclasses.replace(one, forward=forward)


def written(
  source: pathlib.Path, folder: pathlib.Path, weight: float | None = WEIGHT, **prompts: str
) -> Exported:
  encoder = config.Encoder(weights=str(source), query_tokens=QUERY, passage_tokens=PASSAGE,
                           pair_passage_tokens=PAIR_PASSAGE, row_tokens=64, tokens_per_step=512, **prompts)
  cfg = config.Config(name="pairs", encoder=encoder,
                      ranker=config.Ranker(head="pair_cosine", similarity_weight=weight))
  ranker, retriever = shifted(inference.load_ranker(cfg, None), 1), shifted(inference.load_retriever(cfg, None), 2)
  similarity = None if weight is None else export.Similarity(
    weight=weight, params=retriever.forward.params, network=retriever.forward.network, card="card\n",
    cut=export.Cut(query_tokens=QUERY, passage_tokens=PASSAGE))
  export.export_ranker(
    ranker.forward.params, ranker.forward.network, folder, head="pair_cosine", card="card\n", similarity=similarity,
    cut=export.Cut(query_tokens=QUERY, passage_tokens=PAIR_PASSAGE))
  return Exported(cfg, ranker, retriever, folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tiny_weights) -> Exported:
  return written(folders.resolve(tiny_weights), tmp_path_factory.mktemp("pairs") / "ranker")


def of_many_lengths() -> tuple[list[str], list[str]]:
  """Each query with each passage; of no word, far from a cut, next to it on either side, and far beyond every cut."""
  rng = np.random.default_rng(0)
  say = lambda words: " ".join(rng.choice(WORDS, words))
  queries = [say(n) for n in (0, 1, QUERY - 3, QUERY - 2, QUERY - 1, QUERY, 90)]
  passages = [say(n) for cut in (PAIR_PASSAGE, PASSAGE) for n in (cut - 3, cut - 2, cut - 1, cut)]
  passages += [say(n) for n in (0, 1, 600)]
  return [query for query in queries for _ in passages], passages * len(queries)


def loaded(folder: pathlib.Path, **options):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  return sentence_transformers.CrossEncoder(
    str(folder), device="cpu", trust_remote_code=True, local_files_only=True, **options)


def predicted(folder: pathlib.Path, queries: list[str], passages: list[str], **options) -> np.ndarray:
  """All pairs in one padded batch."""
  return loaded(folder, **options).predict(list(zip(queries, passages, strict=True)), batch_size=len(queries))


@pytest.mark.torch
def test_predict_is_the_whole_score_of_texts_of_every_length(exported):
  queries, passages = of_many_lengths()
  lengths = networks.retriever(exported.cfg.encoder).tokenizer.table([*queries, *passages], 999).lengths
  assert {QUERY, QUERY + 1, PAIR_PASSAGE, PAIR_PASSAGE + 1, PASSAGE, PASSAGE + 1} <= set(lengths)
  expected, found = exported.of_many_lengths, predicted(exported.folder, queries, passages)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  # Control: without the similarity, or without either cut, these would be other numbers.
  alone = dataclasses.replace(exported.ranker, similarity_weight=None).score(queries, passages, np.zeros(len(queries)))
  assert np.abs(found - alone).min() > 0.1 and np.ptp(found - alone) > 0.1
  assert np.ptp(alone) > 0.1


@pytest.mark.torch
@pytest.mark.parametrize("option, changed", [
  ("query_tokens", QUERY - 1), ("query_tokens", QUERY + 1), ("passage_tokens", PAIR_PASSAGE + 1),
  ("similarity", {"weight": WEIGHT, "prompts": ["", ""], "tokens": [QUERY, PASSAGE + 1]}),
  ("similarity", {"weight": WEIGHT, "prompts": ["", ""], "tokens": [QUERY + 1, PASSAGE]}),
  ("similarity", {"weight": WEIGHT, "prompts": ["", "a"], "tokens": [QUERY, PASSAGE]}),
  ("similarity", {"weight": WEIGHT + 0.1, "prompts": ["", ""], "tokens": [QUERY, PASSAGE]}),
  ("opening", 0),
  ("max_seq_length", 2 * PAIR_PASSAGE - 4)])
def test_control_every_cut_and_the_weight_show_in_the_scores(exported, tmp_path, option, changed):
  folder = shutil.copytree(exported.folder, tmp_path / "ranker")
  path = folder / "sentence_bert_config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {option: changed}))
  queries, passages = of_many_lengths()
  differ = np.abs(predicted(folder, queries, passages) - exported.of_many_lengths) > 1e-3
  assert differ.any()


@pytest.mark.torch
def test_a_tokenizer_that_reads_on_changes_nothing(exported):
  """Not even where it reads more than the encoder has positions for: what is read is cut first."""
  queries, passages = of_many_lengths()
  found = predicted(exported.folder, queries, passages, max_length=2000)
  np.testing.assert_allclose(found, exported.of_many_lengths, atol=1e-4)


@pytest.mark.torch
def test_half_precision_is_near(exported):
  found = predicted(exported.folder, QUERIES, PASSAGES, model_kwargs={"dtype": "bfloat16"})
  np.testing.assert_allclose(found, exported.scores(QUERIES, PASSAGES), rtol=0.02)


@pytest.mark.torch
def test_pooling_and_length_of_vectors_are_the_retrievers_own(tiny_weights, tmp_path):
  source = shutil.copytree(folders.resolve(tiny_weights), tmp_path / "source")
  kinds = {"": "Transformer", "1_Pooling": "Pooling"}
  (source / "1_Pooling").mkdir(exist_ok=True)
  (source / "modules.json").write_text(json.dumps([
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (path, kind) in enumerate(kinds.items())]))
  (source / "1_Pooling" / "config.json").write_text(json.dumps(
    {"word_embedding_dimension": 128, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
  made = written(source, tmp_path / "ranker", weight=0.5)
  assert np.linalg.norm(made.retriever.encode_queries(QUERIES), axis=-1).min() > 2
  queries, passages = of_many_lengths()
  np.testing.assert_allclose(predicted(made.folder, queries, passages), made.of_many_lengths, rtol=1e-5)


@pytest.mark.torch
def test_prompts_stand_before_the_texts_of_the_similarity_alone(exported, tiny_weights, tmp_path):
  # "ask" and a text's first letters are one word: its tokens are not those of the prompt and then those of the text.
  made = written(folders.resolve(tiny_weights), tmp_path / "ranker", query_prompt="ask", passage_prompt="found: ")
  queries, passages = of_many_lengths()
  expected, found = made.of_many_lengths, predicted(made.folder, queries, passages)
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.abs(expected - exported.of_many_lengths).max() > 0.1
  joint = lambda one: dataclasses.replace(one.ranker, similarity_weight=None).score(QUERIES, PASSAGES, np.zeros(3))
  np.testing.assert_array_equal(joint(made), joint(exported))


@pytest.mark.torch
def test_without_a_similarity_there_is_no_retriever_in_the_folder(tiny_weights, tmp_path):
  made = written(folders.resolve(tiny_weights), tmp_path / "ranker", weight=None)
  assert not (made.folder / weights.SIMILARITY).exists()
  queries, passages = of_many_lengths()
  expected = made.ranker.score(queries, passages, np.zeros(len(queries)))
  np.testing.assert_allclose(predicted(made.folder, queries, passages), expected, atol=1e-4)


def of_a_process(code: str, folder: pathlib.Path, **how) -> tuple[np.ndarray, str]:
  """Scores of `of_many_lengths` by a program that is given the folder, and the last line of what it says."""
  done = subprocess.run([sys.executable, "-c", code, str(folder)], input=json.dumps(of_many_lengths()), text=True,
                        capture_output=True, **how)  # fmt: skip
  assert done.returncode == 0, done.stderr
  found, imported = done.stdout.strip().splitlines()
  return np.array(json.loads(found)), imported


BY_ITSELF = """
import json, sys
sys.modules["idistill_jax"] = None
from sentence_transformers import CrossEncoder
queries, passages = json.load(sys.stdin)
ranker = CrossEncoder(sys.argv[1], device="cpu", trust_remote_code=True)
print(json.dumps(ranker.predict(list(zip(queries, passages))).tolist()))
try:
  import idistill_jax
except ImportError:
  print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "flax"}))
"""


@pytest.mark.torch
def test_the_folder_needs_nothing_of_this_package(exported, tmp_path):
  pytest.importorskip("sentence_transformers")
  # In another place, under another name, with a cache of code that nobody has filled.
  folder = shutil.copytree(exported.folder, tmp_path / "downloaded")
  found, imported = of_a_process(BY_ITSELF, folder, cwd=tmp_path,
                                 env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "code")})
  np.testing.assert_allclose(found, exported.of_many_lengths, atol=1e-4)
  assert imported == "[]"
  assert "idistill_jax" not in (folder / "pair_score.py").read_text()


OURS = """
import json, sys
from idistill_jax.hf.pair_score import PairScore
from sentence_transformers import CrossEncoder
queries, passages = json.load(sys.stdin)
ranker = CrossEncoder(modules=[PairScore.load(sys.argv[1])], device="cpu")
print(json.dumps(ranker.predict(list(zip(queries, passages))).tolist()))
print(sorted({name.partition(".")[0] for name in sys.modules} & {"jax", "flax"}))
"""


@pytest.mark.torch
def test_where_this_package_is_no_code_of_the_folder_is_needed(exported, tmp_path):
  pytest.importorskip("sentence_transformers")
  folder = shutil.copytree(exported.folder, tmp_path / "downloaded")
  (folder / "pair_score.py").unlink()
  found, imported = of_a_process(OURS, folder)
  np.testing.assert_allclose(found, exported.of_many_lengths, atol=1e-4)
  assert imported == "[]"


@pytest.mark.torch
def test_nothing_is_run_unasked(exported):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  # A head of random weights must not be put in its place either.
  with pytest.raises(Exception, match="trust_remote_code"):
    sentence_transformers.CrossEncoder(str(exported.folder), device="cpu")


@pytest.mark.torch
def test_rank_orders_by_the_whole_score(exported):
  ranked = loaded(exported.folder).rank(QUERIES[0], PASSAGES)
  expected = exported.scores([QUERIES[0]] * len(PASSAGES), PASSAGES)
  assert [one["corpus_id"] for one in ranked] == np.argsort(-expected).tolist()


@pytest.mark.torch
def test_what_sentence_transformers_saves_again_is_the_same_ranker(exported, tmp_path):
  loaded(exported.folder).save_pretrained(str(tmp_path / "again"))
  queries, passages = of_many_lengths()
  found = predicted(tmp_path / "again", queries, passages)
  np.testing.assert_allclose(found, exported.of_many_lengths, atol=1e-4)


@pytest.mark.torch
def test_the_encoder_that_reads_pairs_loads_without_the_code(exported, pairs):
  transformers = pytest.importorskip("transformers")
  model, info = transformers.AutoModel.from_pretrained(exported.folder, local_files_only=True, output_loading_info=True)
  assert type(model).__name__ == "BertModel" and not info["unexpected_keys"]
  assert set(info["missing_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported.folder, local_files_only=True)
  for i, (ids, types) in enumerate(pairs):
    both = tokenizer(QUERIES[i], PASSAGES[i])
    assert (both["input_ids"], both["token_type_ids"]) == (ids.tolist(), types.tolist())


@pytest.mark.torch
def test_the_retriever_loads_by_itself(exported):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  theirs = sentence_transformers.SentenceTransformer(str(exported.folder / weights.SIMILARITY), device="cpu")
  _, passages = of_many_lengths()
  np.testing.assert_allclose(theirs.encode(passages), exported.retriever.encode_passages(passages), atol=1e-4)


def test_both_are_starting_checkpoints(exported):
  encoder = dataclasses.replace(exported.cfg.encoder, weights=str(exported.folder))
  again = networks.ranker(encoder, "pair_cosine").initial(0)
  jax.tree.map(np.testing.assert_array_equal, again, exported.ranker.forward.params)
  encoder = dataclasses.replace(encoder, weights=str(exported.folder / weights.SIMILARITY))
  again = networks.retriever(encoder).initial(0)
  jax.tree.map(np.testing.assert_array_equal, again, exported.retriever.forward.params)
