"""A pipeline looks at keys, packages and runs before its first stage, where one that wants them is still to be run."""

import contextlib
import json
import pathlib
import sys

import pytest
import tiny_world

from idistill_jax import ahead, cli, config
from idistill_jax.hf import upload
from idistill_jax.llm import protocol
from idistill_jax.retrieval import ann, index, runs
from idistill_jax.workdir import artifacts

ASKS = {"queries", "labels", "answer"}


@pytest.fixture
def runner(tmp_path, tiny_weights, monkeypatch) -> cli.Runner:
  """Of a config that asks nobody; no key is set."""
  for variable in ("OPENAI_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"):
    monkeypatch.delenv(variable, raising=False)
  cfg = config.Config(name="x", encoder=tiny_world.encoder(tiny_weights))
  cfg.collection.rankings, cfg.labels.provider = "made/elsewhere.jsonl", "openai"
  return cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), [])


def made(root: pathlib.Path, *stages: str) -> artifacts.Workdir:
  """A workdir where they have been run."""
  for stage in stages:
    (root / stage).mkdir(parents=True)
    (root / stage / artifacts.MANIFEST).write_text(json.dumps({"stage": stage, "key": "k", "inputs": {}}))
  return artifacts.Workdir(root)


def ask(cfg: config.Config, stage: str) -> None:
  match stage:
    case "queries":
      cfg.queries.passages = 5
    case "labels":
      cfg.collection.rankings = None
    case "answer":
      cfg.answer.systems = "before_after"


@pytest.mark.parametrize("stage", sorted(ASKS))
def test_a_missing_key_is_named_where_a_stage_will_ask(runner, monkeypatch, tmp_path, stage):
  pytest.importorskip("openai")
  ahead.check(runner)  # nobody is asked
  ask(runner.cfg, stage)
  with pytest.raises(protocol.Stop, match="no API key: set the environment variable OPENAI_API_KEY"):
    ahead.check(runner)
  # Not where it need not ask: it is done, or may be taken over.
  taken = cli.Runner(runner.cfg, runner.workdir, [made(tmp_path / "other", stage)])
  ahead.check(taken)
  with monkeypatch.context() as patched:
    patched.setattr(artifacts.Workdir, "is_done", lambda self, one, cfg: one.name == stage)
    ahead.check(runner)
  monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
  ahead.check(runner)
  assert not (tmp_path / "w").exists()


def test_a_missing_sdk_and_a_missing_recording_are_named(runner, monkeypatch):
  ask(runner.cfg, "labels")
  monkeypatch.setitem(sys.modules, "openai", None)
  with pytest.raises(protocol.Stop, match=r"openai cannot be imported .* extra llm"):
    ahead.check(runner)
  runner.cfg.labels.provider, runner.cfg.labels.recording = "replay", "nowhere.jsonl"
  with pytest.raises(FileNotFoundError, match=r"labels\.recording = 'nowhere\.jsonl' names no file"):
    ahead.check(runner)


def test_a_malformed_run_of_candidates_is_named_with_its_line(runner, tmp_path, monkeypatch):
  path = tmp_path / "bing.trec"
  path.write_text("q Q0 p 1 0.5 bing\nq p 0.5\n")
  runner.cfg.candidates.run = str(path)
  with pytest.raises(runs.RunError, match=f"{path}:2"):
    ahead.check(runner)
  monkeypatch.setattr(artifacts.Workdir, "is_done", lambda self, one, cfg: one.name == "candidates")
  ahead.check(runner)


@pytest.mark.parametrize("name, token, words", [
  ("owner/name", None, "HF_TOKEN"),
  ("no spaces/!!x", "t", "'no spaces/!!x' names no repository"), ("", "t", "'' names"),
])  # fmt: skip
def test_what_could_not_be_uploaded_is_told_before_anything_is_trained(runner, monkeypatch, name, token, words):
  pytest.importorskip("huggingface_hub", reason="the extra `hf` is not installed")
  monkeypatch.delenv("HF_TOKEN", raising=False)
  ahead.check(runner)
  runner.cfg.export.upload_retriever = name
  if token is not None:
    monkeypatch.setenv("HF_TOKEN", token)
  with pytest.raises(upload.UploadError, match=words):
    ahead.check(runner)
  # The control.
  monkeypatch.setenv("HF_TOKEN", "t")
  runner.cfg.export.upload_retriever = "owner/name"
  ahead.check(runner)


def test_more_dimensions_than_embeddings_have_are_refused(runner):
  runner.cfg.index.dimensions = 129
  with pytest.raises(config.ConfigError, match=r"index\.dimensions is 129; the embeddings of .* have 128"):
    ahead.check(runner)
  runner.cfg.index.dimensions = 128
  ahead.check(runner)


def test_a_malformed_run_to_be_measured_beside_ours_is_named_with_its_line(runner, tmp_path, monkeypatch):
  (tmp_path / "runs").mkdir()
  path = tmp_path / "runs" / "bing.trec"
  path.write_text("q Q0 p 1 0.5 bing\nnothing of the kind\n")
  runner.cfg.evaluate.runs = str(path.parent)
  with pytest.raises(runs.RunError, match=f"{path}:2"):
    ahead.check(runner)
  monkeypatch.setattr(artifacts.Workdir, "is_done", lambda self, one, cfg: one.name == "evaluate")
  ahead.check(runner)


@pytest.mark.parametrize("module, stage, extra", [
  ("bm25s", "evaluate", "retrieval"), ("Stemmer", "evaluate", "retrieval"), ("ir_measures", "evaluate", "retrieval"),
  ("pytrec_eval", "evaluate", "retrieval"), ("scipy", "evaluate", "retrieval"), ("jinja2", "report", "report"),
  ("matplotlib", "report", "report")])
def test_what_the_last_stages_need_is_looked_for_before_the_first(runner, monkeypatch, module, stage, extra):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=rf"{module}.*env\.sh {extra}"):
    ahead.check(runner)
  monkeypatch.setattr(artifacts.Workdir, "is_done", lambda self, one, cfg: one.name == stage)
  ahead.check(runner)


def test_a_machine_on_which_scann_would_not_run_is_told(runner, monkeypatch):
  monkeypatch.setattr(ann, "check_runs", lambda: (_ for _ in ()).throw(ann.ScannUnavailableError("no AVX")))
  ahead.check(runner)
  runner.cfg.index.kind = "scann"
  with pytest.raises(ann.ScannUnavailableError, match="no AVX"):
    ahead.check(runner)


@pytest.mark.parametrize("passages, needed", [(index.EXACT_BELOW - 1, False), (index.EXACT_BELOW, True)])
def test_whether_scann_will_be_needed_is_known_with_the_collection(runner, monkeypatch, passages, needed):
  monkeypatch.setattr(ann, "check_runs", lambda: (_ for _ in ()).throw(ann.ScannUnavailableError("no AVX")))
  ahead.check_index(runner)
  runner.workdir.execute(artifacts.Stage(name="collection", reads=(), config=(), run=lambda job: job.count(
    passages=passages)), runner.cfg)  # fmt: skip
  with pytest.raises(ann.ScannUnavailableError) if needed else contextlib.nullcontext():
    ahead.check_index(runner)
  monkeypatch.setattr(artifacts.Workdir, "is_done", lambda self, one, cfg: one.name == "index")
  ahead.check_index(runner)


def test_parquet_without_its_package_names_the_extra(runner, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  ahead.check(runner)
  runner.cfg.evaluate.parquet = True
  with pytest.raises(ModuleNotFoundError, match=r"Parquet needs pyarrow.*env\.sh datasets"):
    ahead.check(runner)
