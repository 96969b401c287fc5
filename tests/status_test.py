"""What a workdir says of itself while it is being made."""

import json

import pytest

from idistill_jax import artifacts, cli, config, status


@pytest.fixture
def workdir(tmp_path) -> artifacts.Workdir:
  """Labels are done, the ranker is in training, and one of its steps was torn by a kill."""
  cfg, made = config.Config(name="x"), artifacts.Workdir(tmp_path)
  cli.save_config(cfg, made)

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
  assert found["train_ranker"].state == "begun" and "step 12, loss 0.5, 2,345 tokens/s" in found["train_ranker"].note
  assert found["train_ranker"].seconds is None, "no attempt of it has ended"
  assert found["export"].state == "to do"


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
  assert of(workdir)["labels"].state == "begun"


def test_a_folder_without_a_run_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"python -m idistill_jax\.pipeline"):
    status.states(artifacts.Workdir(tmp_path))
