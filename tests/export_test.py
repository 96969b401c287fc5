"""Exported folders load without our code and give our numbers; the card says what the run did, and its code runs."""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from idistill_jax import config, flow, records, sharding
from idistill_jax.data import example, tokenize
from idistill_jax.hf import card, export, folders, networks, upload, weights
from idistill_jax.llm import query_writing
from idistill_jax.models import dual_encoder
from idistill_jax.report import claims
from idistill_jax.retrieval import systems
from idistill_jax.stages import export as export_stage
from idistill_jax.train import checkpoint, inference
from idistill_jax.workdir import artifacts

QUERIES = ["how do I merge two sorted files?", "wait for a child process", "naïve Café"]
PASSAGES = [
  "heapq.merge Merge multiple sorted inputs into a single sorted output.",
  "os.wait Wait for completion of a child process, and return a tuple containing its pid and exit status.",
  "str.casefold Return a casefolded copy of the string.",
]
METRICS = {
  "split": "test", "queries": 397, "measures": ["MRR@10", "hit@1"],
  "systems": {"initial": {"MRR@10": 0.3712, "hit@1": 0.29}, "ranker": {"MRR@10": 0.4444, "hit@1": 0.33},
              "distilled": {"MRR@10": 0.4071, "hit@1": 0.31}},
  "intervals": {"distilled": {"MRR@10": [0.3811, 0.4312]}},
  "tests": {"distilled vs initial": {"MRR@10": {"delta": 0.0359, "relative": 0.097, "p": 0.0123, "ci95": [0.01, 0.06],
                                                "p_holm": 0.0246, "wins": 80, "losses": 41, "ties": 276}}},
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir in which the export stage has run."""

  cfg: config.Config
  workdir: artifacts.Workdir

  def folder(self, name: str) -> pathlib.Path:
    return self.workdir.folder("export") / name

  def card(self, name: str) -> str:
    return (self.folder(name) / "README.md").read_text()


def stages(cfg: config.Config):
  """The stages that export reads, each leaving what the real one leaves, with parameters moved off their start."""
  def train(make):
    def run(job):
      network = make(cfg.encoder)
      rng = np.random.default_rng(1)
      params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01 * rng.normal(size=leaf.shape).astype(np.float32),
                            network.initial(0))
      layout = network.shardings(sharding.make_mesh(cfg.mesh))
      checkpoint.save_model(job.out / inference.MODEL, jax.tree.map(jax.device_put, params, layout))
      job.count(steps=123, rows=16)
    return run

  def evaluate(job):
    (job.out / "metrics.json").write_text(json.dumps(METRICS))

  def labels(job):
    order = tuple(f"p{i}" for i in range(18))
    lists = [records.RankedList(query_id=f"q{n}", passage_ids=order[:n], status="complete") for n in (2, 18, 7)]
    example.write_records(job.out, artifacts.RANKINGS, lists)
    job.count(lists=993, asked=1000, paid=1000, complete=962, repaired=31)

  runs = {
    "collection": lambda job: job.count(title="Standard library", passages=3743, queries={"train": 1000, "test": 397}),
    "labels": labels,
    "train_direct": train(networks.retriever),
    "train_ranker": train(lambda cfg: networks.ranker(cfg, "classifier")),
    "train_retriever": train(networks.retriever),
    "evaluate": evaluate,
  }
  return [artifacts.Stage(name=name, reads=(), config=(), run=run) for name, run in runs.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_weights) -> Run:
  cfg = config.Config(name="tiny", encoder=config.Encoder(
    weights=tiny_weights, query_tokens=16, passage_tokens=40, list_passage_tokens=32, row_tokens=64,
    tokens_per_step=512))
  cfg.mesh = config.Mesh(fsdp=2, tensor=2)
  workdir = artifacts.Workdir(tmp_path_factory.mktemp("workdir"))
  for stage in (*stages(cfg), flow.STAGES["export"]):
    workdir.execute(stage, cfg)
  return Run(cfg, workdir)


def snippet(text: str) -> str:
  return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.torch
def test_sentence_transformer_gives_our_embeddings(run):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  theirs = sentence_transformers.SentenceTransformer(str(run.folder("retriever")), device="cpu", local_files_only=True)
  ours = inference.load_retriever(run.cfg, run.workdir.folder("train_retriever"))
  assert theirs.max_seq_length == run.cfg.encoder.passage_tokens
  long = "words that go on and on " * 30
  np.testing.assert_allclose(theirs.encode([*PASSAGES, long]), ours.encode_passages([*PASSAGES, long]), atol=1e-4)
  np.testing.assert_allclose(theirs.encode(QUERIES), ours.encode_queries(QUERIES), atol=1e-4)
  initial = inference.load_retriever(run.cfg, None)
  assert np.abs(initial.encode_queries(QUERIES) - theirs.encode(QUERIES)).max() > 1e-3, "training left no trace"


def scores_by_the_cards_code(run: Run, queries: list[str], passages: list[str]) -> np.ndarray:
  """The card's own lines, run with the folder in place of the name they show."""
  code = snippet(run.card("ranker"))
  assert '"path/to/ranker"' in code
  code = code.replace("path/to/ranker", str(run.folder("ranker")))
  code = re.sub(r"queries = .*\npassages = .*", f"queries = {queries!r}\npassages = {passages!r}", code)
  names: dict = {}
  exec(code, names)
  return names["scores"]


def scores_in_training(run: Run, queries: list[str], passages: list[str]) -> np.ndarray:
  ranker = inference.load_ranker(run.cfg, run.workdir.folder("train_ranker"))
  initial = inference.load_retriever(run.cfg, None)
  return ranker.score(queries, passages, (initial.encode_queries(queries) * initial.encode_passages(passages)).sum(-1))


@pytest.mark.torch
def test_the_cards_code_gives_our_scores(run):
  pytest.importorskip("sentence_transformers")
  # Beside a query of just the allowed length, the pair's cut leaves an over-long passage as many tokens as ours does.
  full, over_long = "merge sorted files " * 4 + "sorted files", PASSAGES[1] * 5
  lengths = tokenize.Tokenizer(folders.resolve(run.cfg.encoder.weights)).table([full, over_long], 999).lengths
  assert lengths[0] == run.cfg.encoder.query_tokens and lengths[1] > run.cfg.encoder.passage_tokens
  queries, passages = [*QUERIES, full], [*PASSAGES, over_long]
  found, expected = scores_by_the_cards_code(run, queries, passages), scores_in_training(run, queries, passages)
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.torch
def test_cross_encoder_gives_the_raw_logit(run):
  sentence_transformers = pytest.importorskip("sentence_transformers")
  ours = inference.load_ranker(run.cfg, run.workdir.folder("train_ranker"))
  theirs = sentence_transformers.CrossEncoder(str(run.folder("ranker")), device="cpu", local_files_only=True)
  logits = dataclasses.replace(ours, similarity_weight=None).score(QUERIES, PASSAGES, np.zeros(len(QUERIES)))
  found = theirs.predict(list(zip(QUERIES, PASSAGES, strict=True)))
  np.testing.assert_allclose(found, logits, atol=1e-4)
  assert np.abs(1 / (1 + np.exp(-logits)) - found).max() > 1e-2, "a sigmoid in between would not be noticed"
  assert theirs.max_seq_length == 16 + 32 - 1


@pytest.mark.torch
def test_the_retriever_cards_code_runs(run):
  pytest.importorskip("sentence_transformers")
  names: dict = {}
  exec(snippet(run.card("retriever")).replace("path/to/retriever", str(run.folder("retriever"))), names)
  assert names["queries"].shape == (1, 128)


@pytest.mark.torch
def test_transformers_loads_every_weight(run):
  transformers = pytest.importorskip("transformers")
  model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
    run.folder("ranker"), local_files_only=True, output_loading_info=True)
  assert type(model).__name__ == "BertForSequenceClassification"
  assert model.config.num_labels == 1
  # Loaders also accept an encoder without its prefix; what is written is what save_pretrained would write.
  assert set(safetensors.numpy.load_file(run.folder("ranker") / "model.safetensors")) == set(model.state_dict())
  assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
  model, info = transformers.AutoModel.from_pretrained(
    run.folder("retriever"), local_files_only=True, output_loading_info=True)
  assert type(model).__name__ == "BertModel"
  # BERT-tiny comes without a pooler, which no embedding reads.
  assert set(info["missing_keys"]) <= {"pooler.dense.weight", "pooler.dense.bias"}
  assert not info["unexpected_keys"]


@pytest.mark.torch
@pytest.mark.parametrize("model", ["ranker", "retriever"])
def test_auto_tokenizer_gives_our_tokens_and_types(run, model):
  transformers = pytest.importorskip("transformers")
  theirs = transformers.AutoTokenizer.from_pretrained(run.folder(model), local_files_only=True)
  ours = tokenize.Tokenizer(run.folder(model))
  texts = [*QUERIES, "İstanbul 北京 [MASK] ß\tx", ""]
  table = ours.table(texts, 16)
  for i, text in enumerate(texts):
    assert theirs(text, truncation=True, max_length=16)["input_ids"] == table[i].tolist()
  ids, types = tokenize.pair(table[0], table[1], table.between)
  both = theirs(texts[0], texts[1])
  assert both["input_ids"] == ids.tolist()
  assert both["token_type_ids"] == types.tolist()


def test_an_exported_retriever_is_a_starting_checkpoint(run):
  """What is written reads back through our own importer: poolings, lengths and every parameter."""
  encoder = dataclasses.replace(run.cfg.encoder, weights=str(run.folder("retriever")))
  again = networks.retriever(encoder).initial(0)
  trained = inference.load_params(networks.retriever(run.cfg.encoder), run.workdir.folder("train_retriever"),
                                  sharding.make_mesh(run.cfg.mesh), 0)
  jax.tree.map(np.testing.assert_array_equal, again, trained)


def test_a_checkpoints_own_pooler_and_pooling_come_along(tmp_path, minilm_weights):
  network = networks.retriever(config.Encoder(weights=minilm_weights))
  cut = export.Cut(query_tokens=8, passage_tokens=9)
  export.export_retriever(network.initial(0), network, tmp_path, cut=cut, card="")
  before = weights.read_tensors(network.source)
  after = safetensors.numpy.load_file(tmp_path / "model.safetensors")
  assert set(before) - set(after) == {"embeddings.position_ids"}
  for name, tensor in after.items():
    np.testing.assert_array_equal(tensor, before[name], err_msg=name)
  pooled = lambda folder: dual_encoder.read_embedding_config(folder, None)
  assert pooled(tmp_path) == pooled(network.source) == dual_encoder.EmbeddingConfig(pooling="mean", normalize=True)


def test_files_of_the_ranker(run):
  read = lambda name: json.loads((run.folder("ranker") / name).read_text())
  assert read("idistill.json") == {
    "head": "classifier", "similarity_weight": 10.0, "query_tokens": 16, "passage_tokens": 32}
  assert read("tokenizer.json")["truncation"] is None
  assert read("tokenizer.json")["padding"] is None
  assert read("tokenizer_config.json")["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]


def test_a_card_tells_the_run_and_nothing_else(run):
  text = run.card("retriever")
  front = text.split("---\n")[1]
  assert "library_name: sentence-transformers\n" in front
  assert "pipeline_tag: sentence-similarity\n" in front
  assert "license" not in front
  assert "base_model" not in front
  for said in ("3743", "993", "train 1000, test 397", "| training.steps | `123` |", "| student_temperature | `0.05` |",
               "0.4071 [0.3811, 0.4312]",
               "+0.0359 against initial (p = 0.0246, Holm's correction; 80 queries better, 41 worse, 276 equal)",
               "- jax: "):
    assert said in text, said
  assert "passages at 32" in text and "the 40 at which" in text
  assert "without a stated licence" in text
  shown = "Merge multiple sorted inputs into a single sorted output."
  example = records.Passage(id="", title="heapq.merge", text=shown)
  assert f'["{example.full_text}"]' in text
  assert "paid" not in text
  assert str(run.workdir.root) not in text
  assert "site-packages" not in text
  assert "pipeline_tag: text-ranking\n" in run.card("ranker")
  # No test of the ranker against the initial retriever was measured, so none is told.
  assert " against initial" not in run.card("ranker")


def facts(run: Run, **changes) -> card.Facts:
  unchanged = card.Facts(cfg=run.cfg, retriever=networks.retriever(run.cfg.encoder), collection={"title": "t"},
                         labels={}, longest_list=20, training={}, versions={}, metrics=None)
  return dataclasses.replace(unchanged, **changes)


def test_an_unmeasured_model_has_no_numbers(run):
  assert "## Results\n\nNot measured.\n" in card.render("ranker", facts(run), "owner/name")


def test_the_card_says_that_an_llm_wrote_what_was_measured_by(run):
  metrics = {"queries": 2, "split": "test", "measures": [], "systems": {}, "intervals": {}, "tests": {}}
  for more, said in ({}, False), ({"written_queries": 0}, False), ({"written_queries": 2}, True):
    text = card.render("retriever", facts(run, metrics=metrics | more), "owner/name")
    assert (query_writing.CAUTION in text) is said


def test_the_card_says_from_which_grade_on_passages_are_relevant(run):
  metrics = {"queries": 2, "split": "test", "measures": [], "systems": {}, "intervals": {}, "tests": {}}
  for more, said in ({}, False), ({"relevant_from": 1}, False), ({"relevant_from": 2}, True):
    text = card.render("retriever", facts(run, metrics=metrics | more), "owner/name")
    assert ("2 queries of the test split, passages relevant from grade 2 on (but" in text) is said


def test_the_card_corrects_what_is_not_the_primary_test(run):
  found = {"delta": 0.1, "p": 0.01, "p_holm": 0.06, "wins": 3, "losses": 1, "ties": 0}
  metrics = {"queries": 4, "split": "test", "measures": [], "systems": {}, "intervals": {},
             "primary": {"test": "distilled vs initial", "measure": "MRR@10"},
             "tests": {f"{one} vs initial": {"MRR@10": found, "hit@1": found} for one in ("distilled", "ranker")}}
  said = {kind: card.render(kind, facts(run, metrics=metrics), "owner/name") for kind in ("retriever", "ranker")}
  assert "- MRR@10: +0.1000 against initial (p = 0.01, the primary test; 3 queries better" in said["retriever"]
  assert "- hit@1: +0.1000 against initial (p = 0.06, Holm's correction; 3 queries better" in said["retriever"]
  assert said["ranker"].count("(p = 0.06, Holm's correction;") == 2


@pytest.mark.parametrize("more, said", [
  ({"leakage": {"test_queries": 5, "near_duplicate_queries": 5, "examples": [["a", "b", 1.0]]}},
   "**Leakage. Of 5 test queries 5 have a near-duplicate among the training queries (a ~ b). What is measured on"),
  ({"ann": {"options_against": "the index's own vectors (32 dimensions, int8), not the whole ones"}},
   "**`distilled` was searched over the index's own vectors (32 dimensions, int8), not the whole ones"),
  ({"leakage": {"test_queries": 5}, "ann": {"options_against": systems.WHOLE}}, None)])
@pytest.mark.parametrize("kind", ["retriever", "ranker"])
def test_the_card_says_what_the_report_says_beside_its_numbers(run, kind, more, said):
  metrics = {"queries": 5, "split": "test", "measures": [], "systems": {}, "intervals": {}, "tests": {}} | more
  told = facts(run, metrics=metrics, caveats=claims.caveats(metrics))
  results = card.render(kind, told, "owner/name").partition("## Results\n")[2]
  assert ("**" in results) is (said is not None) and (said is None or said in results)


@pytest.mark.parametrize("teacher, said, not_said", [
  ("llm", "learnt from the order in which", "cross-encoder, which"),
  ("pairs", "learnt from pairs", "learnt from the order"),
  ("ranker", "scores of a cross-encoder, which itself", "learnt from pairs")])
def test_the_card_names_the_teacher_that_taught(run, teacher, said, not_said):
  cfg = dataclasses.replace(run.cfg, retriever=dataclasses.replace(run.cfg.retriever, teacher=teacher))
  text = card.render("retriever", facts(run, cfg=cfg), "owner/name")
  assert said in text
  assert not_said not in text


def test_recorded_answers_are_not_ascribed_to_the_configured_model(run):
  teacher = "- Teacher: `{}` (provider `gemini`); lists of at most 18 passages were put in order\n"
  assert run.cfg.labels.list_size != 18 and teacher.format(run.cfg.labels.model) in run.card("ranker")
  cfg = dataclasses.replace(run.cfg, labels=dataclasses.replace(run.cfg.labels, provider="replay"))
  assert run.cfg.labels.model not in card.render("ranker", facts(run, cfg=cfg), "owner/name")


@pytest.mark.parametrize("path, model, said", [
  ("/data/mine/claims.jsonl.gz", "claude", "(`claude`, `claims.jsonl.gz`)"),
  ("gs://bucket/mine/run.trec", None, "(`run.trec`)")])
@pytest.mark.parametrize("kind", ["retriever", "ranker"])
def test_rankings_made_elsewhere_are_told_as_such(run, kind, path, model, said):
  collection = dataclasses.replace(run.cfg.collection, rankings=path, rankings_model=model)
  told = facts(run, cfg=dataclasses.replace(run.cfg, collection=collection), longest_list=100,
               labels={"lists": 31, "made_elsewhere": 31, "complete": 31, "repaired": 0})
  text = card.render(kind, told, "owner/name")
  assert f"- Teacher: rankings made elsewhere {said}; lists of at most 100 passages were put in order\n" in text
  assert "Teacher's lists, complete: 31" in text
  for wrong in (run.cfg.labels.model, run.cfg.labels.provider, "/data/mine", "bucket"):
    assert wrong not in text


def test_without_a_similarity_term_the_card_asks_for_none(run):
  ranker = dataclasses.replace(run.cfg.ranker, similarity_weight=None)
  text = card.render("ranker", facts(run, cfg=dataclasses.replace(run.cfg, ranker=ranker)), "owner/name")
  assert "SentenceTransformer(" not in text
  assert 'CrossEncoder("owner/name")' in text


def test_licence_and_base_come_from_the_starting_weights(run, minilm_weights):
  encoder = dataclasses.replace(run.cfg.encoder, weights=minilm_weights)
  changed = facts(run, cfg=dataclasses.replace(run.cfg, encoder=encoder), retriever=networks.retriever(encoder))
  text = card.render("retriever", changed, "owner/name")
  assert "license: apache-2.0\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n" in text
  assert "license: apache-2.0\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n" in card.of_similarity(changed)


@pytest.mark.parametrize("readme, licence", [
  ("---\nlicense: mit\ntags:\n- a\n---\n", "mit"), ('---\ntags: []\nlicense: "cc-by-4.0"\n---\nx', "cc-by-4.0"),
  ("---\nlicense:\n- mit\n- apache-2.0\n---\n", "mit"), ("---\nlicense: [mit]\n---\n", "mit"),
  ("---\nlicense:\nlanguage: en\n---\n", None), ("---\nlicense:\n\ntags:\n- a\n---\n", None),
  ("license: mit", None), ("---\ntags: []\n---\nlicense: mit\n", None), ("", None)])
def test_licence_of(readme, licence):
  assert card.licence_of(readme) == licence


@pytest.mark.torch
@pytest.mark.parametrize("normalizer", [{"type": "NFC"}, None])
def test_a_tokenizer_of_no_class_of_transformers_is_written_as_it_is(run, tmp_path, normalizer):
  transformers = pytest.importorskip("transformers")
  source = shutil.copytree(folders.resolve(run.cfg.encoder.weights), tmp_path / "source")
  raw = json.loads((source / "tokenizer.json").read_text())
  (source / "tokenizer.json").write_text(json.dumps(raw | {"normalizer": normalizer}))
  network = networks.retriever(dataclasses.replace(run.cfg.encoder, weights=str(source)))
  export.export_retriever(network.initial(0), network, tmp_path / "out", card="card\n",
                          cut=export.Cut(query_tokens=8, passage_tokens=16))
  text = "Wait for a Child process"
  ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"]
  assert ids == network.tokenizer.table([text], 16)[0].tolist()
  # Control: BERT's own class would have made lower case of it.
  assert ids != tokenize.Tokenizer(folders.resolve(run.cfg.encoder.weights)).table([text], 16)[0].tolist()


def test_a_missing_token_is_told_before_anything_is_written(run, tmp_path, monkeypatch):
  pytest.importorskip("huggingface_hub")
  monkeypatch.delenv("HF_TOKEN", raising=False)
  cfg = dataclasses.replace(run.cfg, export=config.Export(upload_ranker="owner/name"))
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path,
                      inputs={name: run.workdir.folder(name) for name in flow.STAGES["export"].reads})
  with pytest.raises(upload.UploadError, match="HF_TOKEN"):
    export_stage.run(job)
  assert not list(tmp_path.iterdir())


def test_what_was_measured_of_an_earlier_model_is_not_told_of_this_one(run, tmp_path):
  evaluate = shutil.copytree(run.workdir.folder("evaluate"), tmp_path / "evaluate")
  manifest = json.loads((evaluate / artifacts.MANIFEST).read_text())
  inputs = {name: run.workdir.folder(name) for name in flow.STAGES["export"].reads} | {"evaluate": evaluate}
  key = run.workdir.manifest("train_retriever")["key"]
  for measured, metrics in ((key, METRICS), ("earlier", None)):
    (evaluate / artifacts.MANIFEST).write_text(json.dumps(manifest | {"inputs": {"train_retriever": measured}}))
    job = artifacts.Job(cfg=run.cfg, out=tmp_path, cache=tmp_path, inputs=inputs)
    assert export_stage.facts(job, "train_ranker", networks.retriever(run.cfg.encoder)).metrics == metrics


def exported_anew(run: Run, folder: pathlib.Path, **changes) -> pathlib.Path:
  """The folder of a ranker whose config has these changes."""
  cfg = dataclasses.replace(run.cfg, ranker=dataclasses.replace(run.cfg.ranker, **changes))
  job = artifacts.Job(cfg=cfg, out=folder, cache=folder,
                      inputs={name: run.workdir.folder(name) for name in flow.STAGES["export"].reads})
  export_stage.run(job)
  assert {path.name for path in folder.iterdir()} == {"ranker", "retriever"}
  return folder / "ranker"


def test_the_retriever_that_a_ranker_starts_from_lies_in_its_folder(run, tmp_path):
  trained = inference.load_params(networks.retriever(run.cfg.encoder), run.workdir.folder("train_direct"),
                                  sharding.make_mesh(run.cfg.mesh), 0)
  initial = networks.retriever(run.cfg.encoder).initial(0)
  for start, expected in (("direct", trained), ("weights", initial)):
    folder = exported_anew(run, tmp_path / start, start=start) / weights.SIMILARITY
    encoder = dataclasses.replace(run.cfg.encoder, weights=str(folder))
    jax.tree.map(np.testing.assert_array_equal, networks.retriever(encoder).initial(0), expected)
    assert pooling_of(folder) == pooling_of(folders.resolve(run.cfg.encoder.weights))
    said = {"direct": "learnt the large language model's order", "weights": "before any training"}[start]
    assert said in (folder / "README.md").read_text() and said in (folder.parent / "README.md").read_text()
  # The control: the two are not the same weights, and a ranker without such a term has none.
  assert any(np.any(one != other) for one, other in zip(*map(jax.tree.leaves, (trained, initial)), strict=True))
  assert not (exported_anew(run, tmp_path / "none", similarity_weight=None) / weights.SIMILARITY).exists()


def pooling_of(folder: pathlib.Path) -> dual_encoder.EmbeddingConfig:
  return dual_encoder.read_embedding_config(folder, None)


@pytest.mark.torch
@pytest.mark.parametrize("start, weight", [("direct", 30.0), ("weights", 10.0), ("direct", None)])
def test_the_card_of_a_pair_cosine_ranker_is_run_as_it_stands(run, tmp_path, start, weight):
  pytest.importorskip("sentence_transformers")
  trained = tmp_path / "trained"
  trained.mkdir()
  cfg = dataclasses.replace(run.cfg, ranker=config.Ranker(head="pair_cosine", start=start, similarity_weight=weight))
  network = networks.ranker(cfg.encoder, "pair_cosine")
  layout = network.shardings(sharding.make_mesh(cfg.mesh))
  checkpoint.save_model(trained / inference.MODEL, jax.tree.map(jax.device_put, network.initial(0), layout))
  inputs = {name: run.workdir.folder(name) for name in flow.STAGES["export"].reads}
  shutil.copy(inputs["train_ranker"] / artifacts.MANIFEST, trained)
  inputs["train_ranker"] = trained
  export_stage.run(artifacts.Job(cfg=cfg, out=tmp_path / "out", cache=tmp_path, inputs=inputs))

  text = (tmp_path / "out" / "ranker" / "README.md").read_text()
  long = "merge sorted files " * 30
  queries, passages = [*QUERIES, long], [*PASSAGES, long]
  code = snippet(text).replace("path/to/ranker", str(tmp_path / "out" / "ranker"))
  names: dict = {}
  exec(re.sub(r"queries = .*\npassages = .*", f"queries = {queries!r}\npassages = {passages!r}", code), names)
  retriever = inference.load_retriever(cfg, run.workdir.folder("train_direct") if start == "direct" else None)
  similarities = (retriever.encode_queries(queries) * retriever.encode_passages(passages)).sum(-1)
  expected = inference.load_ranker(cfg, trained).score(queries, passages, similarities)
  np.testing.assert_allclose(names["scores"], expected, atol=1e-4)
  assert "SentenceTransformer" not in snippet(text) and "pair_score.py" in text and "whole score" in text
  assert ("similarity/" in text) == (weight is not None)
  assert "idistill_jax" not in text.replace("Made with idistill_jax.", "").partition("## Data")[0]


def test_from_the_hub_a_similarity_that_the_caller_adds_comes_with_all_of_the_repository(run):
  hub = snippet(card.render("ranker", facts(run), "owner/name"))
  assert 'folder = snapshot_download("owner/name")' in hub
  assert 'SentenceTransformer(folder + "/similarity")' in hub
  assert "snapshot_download" not in snippet(run.card("ranker"))
  # Why not its name alone: the Hub has none of three parts.
  huggingface_hub = pytest.importorskip("huggingface_hub")
  with pytest.raises(huggingface_hub.errors.HFValidationError, match="owner/name/similarity"):
    huggingface_hub.utils.validate_repo_id("owner/name/similarity")
  huggingface_hub.utils.validate_repo_id("owner/name")


def test_export_needs_neither_torch_nor_transformers():
  code = ("import sys; from idistill_jax.stages import export; "
          "print(sorted({'torch', 'transformers', 'huggingface_hub', 'jinja2'} & set(sys.modules)))")
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
