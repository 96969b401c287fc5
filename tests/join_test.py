"""Workers that join a stage under way: they make its pieces and nothing else, and go when it is done."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from idistill_jax import artifacts, cli, join, processes, records
from idistill_jax import config as config_lib
from idistill_jax.data import example, similarity, tables
from idistill_jax.stages import candidates
from idistill_jax.train import inference, pieces

PASSAGES = [records.Passage(id=f"p{i}", title="", text=f"how to {word} number {i}")
            for i, word in enumerate(["merge", "sort", "open", "close"] * 10)]  # fmt: skip
QUERIES = [records.Query(id="q0", text="merge two lists", split="train")]


@pytest.fixture
def home(tmp_path, tiny_weights) -> artifacts.Workdir:
  """A workdir whose candidates are to be made."""
  encoder = config_lib.Encoder(weights=tiny_weights, query_tokens=16, passage_tokens=16, row_tokens=32,
                               tokens_per_step=256)  # fmt: skip
  made = artifacts.Workdir(tmp_path / "run")
  cfg = config_lib.Config(name="joined", encoder=encoder)
  cli.save_config(cfg, made)

  def collection(job: artifacts.Job) -> None:
    example.write_records(job.out, tables.PASSAGES, PASSAGES)
    example.write_records(job.out, tables.QUERIES, QUERIES)

  made.execute(artifacts.Stage(name="collection", reads=(), config=(), run=collection), cfg)
  return made


def under_way(home: artifacts.Workdir) -> pathlib.Path:
  """What a run leaves that was killed when it had begun to encode."""
  made = home.root / f".candidates-{home.key(candidates.STAGE, cli.load_config(home.root))}" / artifacts.PIECES
  made.mkdir(parents=True)
  return made


def finished(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  return pieces.finished(str(path) for path in folder.rglob("*"))


def test_what_a_helper_made_is_not_made_again_and_it_commits_nothing(home, monkeypatch):
  cfg = cli.load_config(home.root)
  folder = under_way(home)
  join.work(home, candidates.STAGE)
  assert finished(folder) == {"encode passages": (1, 1), "encode queries": (1, 1)}
  assert home.manifest("candidates") is None
  assert [path.name for path in folder.parent.iterdir()] == [artifacts.PIECES]
  # The run that goes on computes nothing.
  monkeypatch.setattr(inference.Forward, "_outputs", lambda *_: pytest.fail("a piece is made again"))
  home.execute(candidates.STAGE, cfg)
  monkeypatch.undo()
  found = similarity.load(home.folder("candidates")).passages_PxE
  np.testing.assert_array_equal(found, inference.load_retriever(cfg, None).encode_passages(
    [passage.full_text for passage in PASSAGES]))  # fmt: skip


def test_nothing_is_joined_that_is_not_under_way(home):
  with pytest.raises(ValueError, match="the stage candidates is not under way"):
    join.work(home, candidates.STAGE)
  home.execute(candidates.STAGE, cli.load_config(home.root))
  with pytest.raises(ValueError, match="the stage candidates is not under way"):
    join.work(home, candidates.STAGE)


def test_what_was_begun_after_the_commit_is_swept(home):
  cfg = cli.load_config(home.root)
  under_way(home)
  home.sweep(candidates.STAGE, cfg)
  assert list(home.root.glob(".candidates-*")), "the stage was not done, so its pieces stay"
  home.execute(candidates.STAGE, cfg)
  under_way(home)
  home.sweep(candidates.STAGE, cfg)
  assert not list(home.root.glob(".candidates-*"))


def test_it_watches_for_stages_to_join_until_it_is_told_to_end(home):
  watching = subprocess.Popen([sys.executable, "-m", "idistill_jax.join", f"--workdir={home.root}"],
                              env=os.environ | {"XLA_FLAGS": ""}, stderr=subprocess.PIPE, text=True)  # fmt: skip
  try:
    time.sleep(3)
    folder = under_way(home)
    until = time.monotonic() + 120
    while finished(folder).get("encode queries") != (1, 1):
      assert watching.poll() is None and time.monotonic() < until
      time.sleep(0.2)
    # Scores and index are still to come.
    home.execute(candidates.STAGE, cli.load_config(home.root))
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(60) == processes.TERMINATED
  finally:
    watching.kill()
  assert "candidates: joins" in watching.stderr.read()
