"""A dry run tells of every config what it would do, and does none of it."""

import copy
import dataclasses
import math
import pathlib

import config_test
import pytest
import transformers

from idistill_jax import amounts, cli, config, dry_run, flow, pipeline
from idistill_jax.workdir import artifacts

# What is published of the collections that configs launched elsewhere name (a tenth of TFDS's train is dev), and what
# follows from it.
AMOUNTS = {
  "nq": ("21,015,324 passages", "79,133 training and 3,610 test", "1,582,660 pairs", "64.6 GB", "1,000 calls",
         "7,220 calls", "$2.74"),
  "nq:slice": ("100,000 passages", "500 training and 500 test", "307 MB", "500 calls", "1,000 calls"),
  "trivia_qa": ("21,015,324 passages", "78,860 training and 11,313 test", "375 steps of 8", "$1.12", "$8.60"),
  "msmarco": ("8,841,823 passages", "13.6 GB", "nobody is asked", "10,000 rankings"),
  "my_corpus": ("2,100 queries in 3 styles", "$0.42", "63 steps of 16"),
}


def told(cfg: config.Config, root: pathlib.Path) -> list[str]:
  return dry_run.described(cli.Runner(cfg, artifacts.Workdir(root), ()), flow.STAGES.values())


@pytest.fixture
def collected(monkeypatch):
  """Makes a collection folder that is done with the config, wherever its files are."""

  def make(root: pathlib.Path, cfg: config.Config, **counts) -> None:
    stage = dataclasses.replace(flow.STAGES["collection"], fingerprint=None, run=lambda job: job.count(**counts))
    monkeypatch.setitem(flow.STAGES, "collection", stage)
    artifacts.Workdir(root).execute(stage, cfg)

  return make


@pytest.mark.parametrize("name", config_test.VARIANTS)
def test_every_config_is_told_stage_by_stage_and_nothing_is_done(name, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)  # no data lies here
  cfg = config_test.load(name)
  found = told(cfg, tmp_path / "w")
  assert [one.partition(":")[0] for one in found] == list(flow.STAGES)
  for stage, said in zip(flow.STAGES.values(), found, strict=True):
    assert stage.asked_for(cfg) == ("writes" in said)
  dry_run.show(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), ()), flow.STAGES.values())
  shown = capsys.readouterr().out
  assert all(amount in shown for amount in AMOUNTS.get(name, ())) and "dollars not known" not in shown
  # Whoever may be asked is asked within a budget.
  assert cfg.labels.provider == "replay" or cfg.collection.rankings or cfg.labels.max_dollars is not None
  assert not list(tmp_path.iterdir())


def test_files_that_are_missing_are_named(tmp_path, monkeypatch):
  cfg = config_test.load("my_corpus")
  cfg.collection.path = str(tmp_path / "corpus.jsonl")
  assert f"{cfg.collection.path} (NOT THERE)" in told(cfg, tmp_path / "w")[0]
  (tmp_path / "corpus.jsonl").touch()
  assert "NOT THERE" not in "".join(told(cfg, tmp_path / "w"))


def test_weights_that_cannot_be_used_are_named_before_anything_is_done(tmp_path):
  cfg = config_test.load("my_corpus")
  cfg.collection.path = str(tmp_path / "corpus.jsonl")
  (tmp_path / "corpus.jsonl").touch()
  cfg.encoder.weights = str(tmp_path / "model")
  said = f"weights {cfg.encoder.weights} (NOT USABLE: encoder.weights: no folder"
  assert all(said in told(cfg, tmp_path / "w")[place] for place in (0, 2))
  (tmp_path / "model").mkdir()
  assert "config.json is missing" in told(cfg, tmp_path / "w")[2]
  with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
    pipeline.run(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), ()))
  assert not (tmp_path / "w").exists()
  cfg.encoder.weights = "owner/name"
  assert "weights owner/name," in told(cfg, tmp_path / "w")[0]


def test_an_estimate_of_the_pipeline_tells_at_most_what_is_asked_and_what_must_run_first(tmp_path, capsys):
  cfg = config_test.load("nq:slice")
  pipeline.estimate(cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), ()))
  said = capsys.readouterr().out
  assert "queries:" not in said and not list(tmp_path.iterdir())
  labels, answer = said.partition("labels:")[2].split("answer:")
  for part, calls in ((labels, "500 calls"), (answer, "1,000 calls")):
    assert calls in part and "tokens in and" in part and "python -m idistill_jax.stages.collection" in part


@pytest.fixture
def finished(tmp_path, monkeypatch) -> tuple[config.Config, artifacts.Workdir]:
  """Of a pipeline whose stages write nothing, and what they read from outside, which the config names, is not there."""
  cfg, workdir = config_test.load("nq:slice"), artifacts.Workdir(tmp_path / "w")
  for name, stage in flow.STAGES.items():
    made = dataclasses.replace(stage, fingerprint=None, run=lambda job: job.count(
      passages=9, queries={"train": 300, "test": 200}))  # fmt: skip
    monkeypatch.setitem(flow.STAGES, name, made)
    if made.asked_for(cfg):
      workdir.execute(made, cfg)
  for name in ("labels", "answer"):
    monkeypatch.setattr(flow.module(name), "_counted", lambda *of, name=name: f"{name} is counted")
  return cfg, workdir


def estimated(cfg: config.Config, workdir: artifacts.Workdir, capsys) -> dict[str, str]:
  pipeline.estimate(cli.Runner(cfg, workdir, ()))
  labels, answer = capsys.readouterr().out.partition("labels:")[2].split("\nanswer:")
  return {"labels": labels, "answer": answer}


def test_an_estimate_of_the_pipeline_is_given_where_a_change_makes_anew_what_is_read(finished, capsys):
  cfg, workdir = finished
  cfg.evaluate.rerank_depth = 7
  found = estimated(cfg, workdir, capsys)
  assert "done with this config: nothing is asked" in found["labels"]
  assert "400 calls" in found["answer"] and "is counted" not in found["answer"]
  assert "evaluate: made anew: evaluate.rerank_depth was 20, is 7\n  python -m" in found["answer"]
  assert "collection" not in found["answer"], "which stays as it is"


def test_an_estimate_of_the_pipeline_does_not_count_folders_that_are_made_anew(finished, capsys):
  cfg, workdir = finished
  cfg.labels.list_size = 9
  found = estimated(cfg, workdir, capsys)
  # The control: what labels are made of is as the config has it.
  assert "labels is counted" in found["labels"] and "at most" not in found["labels"]
  cfg.encoder.passage_tokens -= 1
  found = estimated(cfg, workdir, capsys)["labels"]
  assert "is counted" not in found and "300 lists of 9" in found and "candidates: made anew" in found
  # Of another collection, not even how many lists there are is known.
  cfg.collection.max_passages = 77
  found = estimated(cfg, workdir, capsys)["labels"]
  assert "500 lists of 9" in found and "at most" in found
  assert found.index("collection: made anew: collection.max_passages was") < found.index("candidates: made anew: ")


def test_an_estimate_of_the_pipeline_has_nothing_to_count_where_nobody_is_asked(finished, capsys):
  cfg, workdir = finished
  cfg.encoder.passage_tokens -= 1
  assert "to count it" in estimated(cfg, workdir, capsys)["answer"]
  cfg.answer.systems, cfg.collection.rankings = "none", "rankings.jsonl"
  found = estimated(cfg, workdir, capsys)
  assert found["answer"].strip() == "nobody is asked"
  assert found["labels"].strip() == "500 rankings made elsewhere at most: nobody is asked"


def test_a_stages_own_estimate_counts_what_its_run_would_read_and_names_what_a_pipeline_would_not(finished, capsys):
  cfg, workdir = finished
  said = lambda: (flow.module("labels").print_estimate(cli.Runner(cfg, workdir, ())), capsys.readouterr().out)[1]
  assert said() == "done with this config: nothing is asked\n"
  cfg.labels.list_size = 9
  assert said() == "labels is counted\n"
  cfg.encoder.passage_tokens -= 1
  first, note = said().splitlines()
  assert first == "labels is counted" and note.startswith(
    "counted of the folders that are there, of which a pipeline makes anew first: candidates (encoder.passage_tokens")


def test_what_reuse_takes_over_is_told_as_the_run_then_does_it(finished, tmp_path, capsys, caplog):
  caplog.set_level("INFO")
  cfg, theirs = finished
  mine, other, taken = artifacts.Workdir(tmp_path / "mine"), copy.deepcopy(cfg), f"taken over from {theirs.root}"
  # What is there already, of another config, does not stay.
  other.collection.max_passages = 77
  cli.Runner(other, mine, []).run(flow.STAGES["collection"])
  cfg.evaluate.rerank_depth = 7
  runner = cli.Runner(cfg, mine, [theirs])
  stages = [stage for stage in flow.STAGES.values() if stage.asked_for(cfg)]
  told = dict(one.splitlines()[0].split(": ", 1) for one in dry_run.described(runner, stages))
  anew = dict.fromkeys(("evaluate", "export", "answer", "report"), "to do")
  assert told == {stage.name: taken for stage in stages} | anew
  pipeline.estimate(runner)
  labels, answer = capsys.readouterr().out.split("\nanswer:")
  assert f"{taken}: nothing is asked" in labels and "calls" not in labels
  command = f"python -m idistill_jax.stages.collection --config=... --workdir={mine.root} --reuse={theirs.root}\n"
  assert f"collection: {taken}\n  {command}" in answer and "evaluate: to do\n" in answer
  for stage in stages:
    assert runner.run(stage) == (stage.name in anew)
    assert (f"{stage.name}: {taken}, nothing changed" in caplog.messages) == (stage.name not in anew)


def test_a_missing_key_is_named_where_it_is_asked_with(tmp_path, monkeypatch):
  pytest.importorskip("openai")
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  cfg = config_test.load("my_corpus")
  cfg.labels.provider, cfg.labels.base_url, cfg.labels.model = "openai", None, "m"
  of = {one.partition(":")[0]: one for one in told(cfg, tmp_path)}
  assert all("openai m (NOT USABLE: no API key: set the environment variable OPENAI_API_KEY" in of[stage]
             for stage in ("queries", "labels"))
  monkeypatch.setenv("OPENAI_API_KEY", "not-a-real-key")
  assert "no API key" not in "".join(told(cfg, tmp_path))


def test_what_has_run_gives_the_sizes(tmp_path, collected):
  cfg = config_test.load("scifact")
  found = lambda: "\n".join(told(cfg, tmp_path))
  assert "queries, 100 places deep" not in found()
  collected(tmp_path, cfg, passages=5183, queries={"train": 809, "test": 300})
  assert "5,183 passages" in found() and "300 queries, 100 places deep" in found() and "8.0 MB" not in found()
  assert "800 calls" in found() and "collection: done" in found()
  # What is made anew may come out larger than it was.
  cfg.collection.train_fraction = 0.5
  assert "5,183 passages" not in found() and "809" not in found()
  assert "collection: made anew: collection.train_fraction was none, is 0.5" in found()


def test_what_a_changed_flag_makes_anew_is_told_stage_by_stage_and_the_run_says_the_same(tmp_path, caplog):
  caplog.set_level("INFO")
  runner = lambda: cli.Runner(cfg, artifacts.Workdir(tmp_path), ())
  cfg = config.Config(name="t")
  stages = [dataclasses.replace(stage, fingerprint=None, run=lambda job: job.count(passages=9, queries={"train": 9}))
            for stage in flow.STAGES.values() if stage.name != "queries"]  # fmt: skip
  states = lambda: [one.splitlines()[0] for one in dry_run.described(runner(), stages)]
  for stage in stages:
    runner().run(stage)
  assert states() == [f"{stage.name}: done" for stage in stages] and "is replaced" not in caplog.text
  cfg.ranker.epochs += 1
  found = states()
  assert found[:4] == [f"{stage.name}: done" for stage in stages[:4]]
  assert found[4:6] == ["train_ranker: made anew: ranker.epochs was 1, is 2",
                        "scores: made anew: ranker.epochs was 1, is 2; as train_ranker is made anew"]
  assert found[7] == "index: made anew: as train_retriever is made anew"
  for stage in stages:
    runner().run(stage)
  said = [one for one in caplog.messages if "is replaced" in one]
  for ahead, one in zip(found[4:], said, strict=True):
    name, _, why = ahead.partition(": made anew: ")
    # By then what it reads has been made.
    why = why.replace(" made anew", " made anew since")
    assert one == f"{name}: its folder in {tmp_path} is replaced: {why}; run with another --workdir to keep it"
  assert states() == [f"{stage.name}: done" for stage in stages]


def test_a_folder_on_this_machine_says_how_wide_embeddings_are(tmp_path, collected):
  cfg = config_test.load("scifact")
  collected(tmp_path / "run", cfg, passages=1000, queries={"train": 8, "test": 3})
  transformers.BertConfig(hidden_size=96, num_attention_heads=4).save_pretrained(tmp_path / "model")
  for weights, width in ((str(tmp_path / "model"), 96), (str(tmp_path / "none"), amounts.WIDTH)):
    cfg.encoder.weights = weights
    assert f"1,000 embeddings of {width} float32" in "".join(told(cfg, tmp_path / "run"))


@pytest.mark.parametrize(("counts", "learned"), [
  ({"queries": {"train": 40}, "lists": 18}, 18),  # those of its own, as the quickstart's
  ({"queries": {"train": 40}, "lists": 0}, 40),
  ({"queries": {"train": 5000}, "lists": 0}, 1000),  # no more than the config asks for
  ({"queries": {"train": 40}, "lists": 0, "rankings": 31}, 31),
])
def test_training_learns_from_no_more_lists_than_there_are(tmp_path, collected, counts, learned):
  cfg = config_test.load("quickstart")
  assert cfg.labels.lists == 1000
  collected(tmp_path, cfg, passages=400, **counts)
  said = {one.partition(":")[0]: one for one in told(cfg, tmp_path)}
  assert f"{learned:,} lists of" in said["labels"] and f"{learned:,} recorded answers" in said["labels"]
  for name, trained in (("train_direct", cfg.direct), ("train_ranker", cfg.ranker)):
    steps = math.ceil(learned * trained.epochs / trained.lists_per_batch)
    assert f"{learned:,} lists of" in said[name] and f", {steps:,} steps of" in said[name]


@pytest.mark.parametrize("teacher, lists, pairs, learned", [
  ("ranker", "all", 40, 40), ("ranker", "unlabelled", 22, 22), ("both", "unlabelled", 22, 40), ("llm", "all", 40, 18)])
def test_what_is_scored_and_learned_from_follows_the_teacher(tmp_path, collected, teacher, lists, pairs, learned):
  cfg = config_test.load("quickstart")
  cfg.retriever.teacher, cfg.scores.lists = teacher, lists
  cfg.retriever.trainings, cfg.retriever.lists_per_batch = 3, 20
  collected(tmp_path, cfg, passages=400, queries={"train": 40}, lists=18)
  said = {one.partition(":")[0]: one for one in told(cfg, tmp_path)}
  assert f" {pairs * cfg.scores.depth:,} pairs" in said["scores"]
  assert f" {learned} lists of" in said["train_retriever"]
  assert f", {3 * math.ceil(learned / 20)} steps of 20 lists" in said["train_retriever"]


def test_lists_are_no_longer_than_what_is_found(tmp_path):
  cfg = config_test.load("nq:slice")
  cfg.candidates.depth, cfg.labels.list_size = 10, 25
  assert "lists of 10" in next(one for one in told(cfg, tmp_path) if one.startswith("labels"))


def test_the_readers_own_prices_count(tmp_path):
  cfg = config_test.load("nq:slice")
  cfg.answer.dollars_per_million_input_tokens, cfg.answer.dollars_per_million_output_tokens = 1.0, 0.0
  cfg.labels.dollars_per_million_input_tokens, cfg.labels.max_dollars = None, None
  answer = next(one for one in told(cfg, tmp_path) if one.startswith("answer"))
  # 1,000 prompts of five passages.
  assert "$1.10" in answer and "dollars not known" in told(cfg, tmp_path)[3]


def test_what_a_run_refuses_of_a_collection_that_is_done_is_told(tmp_path, capsys):
  data = tmp_path / "data"
  (data / "qrels").mkdir(parents=True)
  (data / "corpus.jsonl").write_text('{"_id": "p", "text": "one"}\n')
  (data / "queries.jsonl").write_text('{"_id": "q", "text": "a"}\n{"_id": "r", "text": "b"}\n')
  (data / "qrels" / "test.tsv").write_text("q\tp\t1\n")
  cfg = config_test.load("quickstart:tiny")
  cfg.collection = config.Collection(source="beir", path=str(data))
  runner = cli.Runner(cfg, artifacts.Workdir(tmp_path / "w"), ())
  for made in (False, True):
    cfg.evaluate.main_measure = "ndcg@10"
    pipeline.print_refusal(runner)
    assert ("REFUSED: a run ends after the stage collection: evaluate.main_measure is 'ndcg@10'"
            in capsys.readouterr().out) == made
    cfg.evaluate.main_measure = None
    runner.workdir.execute(flow.STAGES["collection"], cfg)
  pipeline.print_refusal(runner)
  assert not capsys.readouterr().out, "what suits is not spoken of"
  cfg.evaluate.relevant_from = 3
  pipeline.print_refusal(runner)
  assert "set --config.evaluate.relevant_from=1" in capsys.readouterr().out
