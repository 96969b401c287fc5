"""What a workdir says of itself while it is being made."""

import io
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from rich import console as rich_console

from idistill_jax import config, processes, status
from idistill_jax.llm import cache, session
from idistill_jax.train import pieces, windows
from idistill_jax.workdir import artifacts, configs, seconds

KEPT = """
import sys, time, types
from idistill_jax import config
from idistill_jax.workdir import artifacts, seconds

def run(job):
  now = time.monotonic()
  seconds.time = types.SimpleNamespace(monotonic=lambda: now + 8)
  job.keep("")
  print("kept", flush=True)
  time.sleep(600)

artifacts.Workdir(sys.argv[1]).execute(artifacts.Stage(name="scores", reads=(), config=(), run=run),
                                       config.Config(name="x"))
"""


@pytest.fixture
def workdir(tmp_path) -> artifacts.Workdir:
  """Labels are done, the ranker is in training, and one of its steps was torn by a kill."""
  cfg, made = config.Config(name="x"), artifacts.Workdir(tmp_path)

  def labels(job: artifacts.Job) -> None:
    job.count(lists=7, dollars=0.25)
    job.drop("refused", "q1")

  made.execute(artifacts.Stage(name="labels", reads=(), config=(), run=labels), cfg)
  training = tmp_path / ".train_ranker-0123"
  training.mkdir()
  line = json.dumps({"step": 12, "loss": 0.5, "tokens_per_second": 2345})
  (training / "metrics.jsonl").write_text(line + "\n")
  return made


def of(workdir: artifacts.Workdir) -> dict[str, status.State]:
  return {one.stage: one for one in status.states(workdir)}


def test_done_begun_and_to_do(workdir):
  found = of(workdir)
  assert found["labels"].state == "done" and found["labels"].dollars == 0.25
  assert found["labels"].note == "lists 7, dropped 1"
  assert found["train_ranker"].state == "stopped" and "step 12, loss 0.5, 2,345 tokens/s" in found["train_ranker"].note
  assert found["train_ranker"].seconds is None, "no attempt of it has kept anything"
  assert found["export"].state == "to do"


@pytest.mark.parametrize("title", ["data[v2]", "x[/b]", "[bold]", "\\[red]"])
def test_what_a_workdir_says_is_shown_as_it_stands(workdir, title):
  stage = artifacts.Stage(name="collection", reads=(), config=(), run=lambda job: job.count(title=title, passages=4))
  workdir.execute(stage, config.Config(name="x"))
  shown = io.StringIO()
  rich_console.Console(file=shown, width=200).print(status.show(status.states(workdir)))
  assert f"title {title}, passages 4" in shown.getvalue()


def test_hours_of_accelerators_are_counted_by_kind(workdir, monkeypatch):
  stage = lambda name: artifacts.Stage(name=name, reads=(), config=(), run=lambda job: None, together=True)
  workdir.execute(stage("scores"), config.Config(name="x"))
  assert workdir.manifest("scores")["computed_on"] == {"processes": 1, "devices": 8, "kind": "cpu"}
  assert workdir.manifest("labels")["computed_on"] is None and not of(workdir)["scores"].device_hours
  for name, kind in (("scores", "H100"), ("index", "v5e"), ("train_direct", "v5e")):
    workdir.execute(stage(name), config.Config(name="x"))
    path = workdir.folder(name) / artifacts.MANIFEST
    on = {"processes": 2, "devices": 8, "kind": kind}
    # As of an earlier version, which had no device_seconds.
    said = {name: value for name, value in json.loads(path.read_text()).items() if name != "device_seconds"}
    path.write_text(json.dumps(said | {"seconds": 900.0, "computed_on": on}))
  shown = io.StringIO()
  rich_console.Console(file=shown, width=200).print(status.show(status.states(workdir)))
  lines = shown.getvalue().splitlines()
  assert any(line.split()[0] == "scores" and "2.00 device-hours of H100" in line for line in lines if line.split())
  assert any("2.00 device-hours of H100, 4.00 device-hours of v5e" in line for line in lines)


def test_hours_of_accelerators_are_those_that_each_attempt_had(workdir, monkeypatch):
  """Of one that is under way, or ended, as of one that is done; the second attempt has other devices than the first."""
  now, found = 0.0, []
  monkeypatch.setattr(seconds, "time", types.SimpleNamespace(monotonic=lambda: now))

  def run(job: artifacts.Job) -> None:
    nonlocal now
    now += 1800
    job.keep("")
    found.append(of(workdir)["scores"])
    if len(found) == 1:
      raise InterruptedError

  stage = artifacts.Stage(name="scores", reads=(), config=(), run=run, together=True)
  monkeypatch.setattr(processes, "hardware", lambda: {"processes": 2, "devices": 8, "kind": "v5e"})
  with pytest.raises(InterruptedError):
    workdir.execute(stage, config.Config(name="x"))
  assert (found[0].state, found[0].device_hours) == ("running", {"v5e": 4})
  assert (of(workdir)["scores"].state, of(workdir)["scores"].device_hours) == ("stopped", {"v5e": 4})
  monkeypatch.setattr(processes, "hardware", lambda: {"processes": 1, "devices": 2, "kind": "H100"})
  manifest = workdir.execute(stage, config.Config(name="x"))
  assert (manifest["seconds"], manifest["device_seconds"]) == (3600, {"v5e": 8 * 1800, "H100": 2 * 1800})
  assert found[1].device_hours == of(workdir)["scores"].device_hours == {"v5e": 4, "H100": 1}
  assert of(workdir)["scores"].state == "done"


def test_who_is_at_a_stage_and_what_a_kill_cost(workdir, tmp_path):
  """Killed: a run that has kept something, and neither says that it ends nor gives back its lock."""
  run = subprocess.Popen([sys.executable, "-c", KEPT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
  try:
    assert run.stdout.readline() == "kept\n"
    assert of(workdir)["scores"].state == "running" and of(workdir)["scores"].seconds > 7
  finally:
    run.kill()
    run.communicate()
  found = of(workdir)["scores"]
  assert found.state == "stopped" and found.seconds > 7
  # Another attempt goes on counting.
  stage = artifacts.Stage(name="scores", reads=(), config=(), run=lambda job: None)
  assert workdir.execute(stage, config.Config(name="x"))["seconds"] > 7


def test_what_ended_attempts_took_is_part_of_the_cost(workdir):
  (workdir.root / ".train_ranker-0123" / "seconds").write_text("90.5")
  found = of(workdir)
  assert found["train_ranker"].seconds == 90.5
  assert sum(one.seconds or 0 for one in found.values()) == 90.5 + found["labels"].seconds


def test_a_torn_line_is_no_step(workdir):
  with open(workdir.root / ".train_ranker-0123" / "metrics.jsonl", "a") as file:
    file.write('{"step": 13, "lo')
  note = of(workdir)["train_ranker"].note
  assert "step" not in note and note.startswith("last written")


def test_a_stage_made_anew_is_begun(workdir):
  (workdir.root / ".labels-4567").mkdir()
  assert of(workdir)["labels"].state == "stopped"


def test_pieces_and_answers_so_far(workdir, tmp_path):
  scores = pieces.Pieces(tmp_path / ".scores-0123" / artifacts.PIECES, "0 score pairs", 3 * pieces.LEAST, np.full(1, 7))
  claimed = next(next(scores.rounds()))
  assert "score pairs 0 of 3 pieces; last written 0:00:0" in of(workdir)["scores"].note
  scores.finish(claimed, np.zeros(len(claimed)))
  assert "score pairs 1 of 3 pieces; last written" in of(workdir)["scores"].note
  # Who makes them: a process of the run, a helper, and one that is at work of which all is done.
  job = artifacts.Job(cfg=configs.load(workdir.root), out=tmp_path / ".scores-0123", inputs={}, cache=tmp_path)
  facts = {"texts": 100, "tokens": 5000, "room": 6250, "seconds": 2.0}
  windows.add_piece(job, "score pairs", (1, 3), **facts)
  line = windows.path(job.out, 0).read_text()
  assert json.loads(line)["fill"] == 0.8
  windows.path(job.out, 1).write_text(line.replace("score pairs", "encode queries"))
  (job.out / "windows-00000-box-77.jsonl").write_text(line.replace("50.0", "75.5") + '{"torn')
  (job.out / "windows-00000-box-78.jsonl").write_text(line.replace("50.0", "75.5"))
  assert ("score pairs 1 of 3 pieces; 00000-box-78: 75.5 texts/s, 2,500 tokens/s; "
          "00000: 50.0 texts/s, 2,500 tokens/s; last written") in of(workdir)["scores"].note

  cfg = configs.load(workdir.root)
  cfg.labels.model, cfg.labels.dollars_per_million_input_tokens = "mine", 2.0
  cfg.labels.dollars_per_million_output_tokens = 10.0
  workdir.write(artifacts.CONFIG, config.as_json(cfg))
  (workdir.root / ".labels-4567").mkdir()
  assert not of(workdir)["labels"].note
  with cache.AnswerCache(workdir.cache / session.CACHE) as answers:
    answers.put_rows([(f"{i}", "openai", model, "{}", "q", "[]", "", "stop", 300_000, 10_000, 0.0, None)
                      for i, model in enumerate(["mine", "mine", "another"])])
    assert of(workdir)["labels"].note == "2 answers of its model so far"
  # What tells of the time is no work.
  (workdir.root / ".labels-4567" / "seconds").write_text("9")
  assert of(workdir)["labels"].seconds == 9 and of(workdir)["labels"].note == "2 answers of its model so far"
  # Their dollars are in the column and the sum, and there once, whichever stages the model has answered.
  assert of(workdir)["labels"].dollars == pytest.approx(1.4)
  (workdir.root / ".answer-4567").mkdir()
  assert of(workdir)["answer"].dollars == 0 and of(workdir)["labels"].dollars == pytest.approx(1.4)
  stage = artifacts.Stage(name="answer", reads=(), config=(), run=lambda job: job.count(dollars=0.3))
  workdir.execute(stage, cfg)
  assert of(workdir)["answer"].dollars == 0.3 and of(workdir)["labels"].dollars == pytest.approx(1.1)
  shown = io.StringIO()
  rich_console.Console(file=shown, width=200).print(status.show(status.states(workdir)))
  assert [line.split()[-1] for line in shown.getvalue().splitlines() if line.split()[:1] == ["all"]] == ["1.40"]


def test_a_folder_without_a_run_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"python -m idistill_jax\.pipeline"):
    status.states(artifacts.Workdir(tmp_path))


def test_what_a_kill_left_of_a_finished_stage_is_not_begun(workdir):
  """Between the renames and the sweep, in a bucket between the last file and the sweep."""
  for left in ("replaced", "taken", workdir.manifest("labels")["key"]):
    (workdir.root / f".labels-{left}").mkdir()
  assert of(workdir)["labels"].state == "done"
  # The control, and of two attempts the later one tells how far it is, whatever their names.
  for name, took in (("9999", "1"), ("0000", "2")):
    folder = workdir.root / f".labels-{name}"
    folder.mkdir()
    (folder / seconds.FILE).write_text(took)
    os.utime(folder / seconds.FILE, (int(took), int(took)))
    os.utime(folder, (int(took), int(took)))
  found = of(workdir)["labels"]
  assert found.state == "stopped" and found.seconds == 2
