"""Tokens of what a training reads: made once, by all who have the stage, and the same as if one made them all."""

import json
import pathlib
import signal
import tempfile

import bucket as bucket_lib
import jobs
import numpy as np
import pytest
from etils import epath

from idistill_jax import config
from idistill_jax.data import pack, tokenize
from idistill_jax.hf import folders
from idistill_jax.train import pieces, tokens
from idistill_jax.workdir import artifacts

# Some with no word, some longer than the cut.
TEXTS = ["merge " * (n % 9) for n in range(60)]
ROWS = np.arange(1, 60, 2)
CUT = 6


def a_job(folder: pathlib.Path, shared: str | None = None) -> artifacts.Job:
  return artifacts.Job(cfg=config.Config(name="t"), out=folder, cache=folder, inputs={},
                       shared=None if shared is None else epath.Path(shared))


class Counting:
  """Makes tokens, and counts of how many texts."""

  def __init__(self, weights: str):
    self.tokenizer = tokenize.Tokenizer(folders.resolve(weights))
    self.counts: list[int] = []

  def __call__(self, texts):
    made = self.tokenizer.table(texts, CUT)
    self.counts.append(len(made))
    return made


def made(job: artifacts.Job, table: Counting, rows: np.ndarray = ROWS) -> tokens.TokensOfRows:
  return tokens.of_rows(job, "passages of lists", TEXTS, rows, table, ids=table.tokenizer.ids,
                        between=table.tokenizer.between)


def assert_whole(found: tokens.TokensOfRows, tokenizer: tokenize.Tokenizer) -> None:
  whole = tokenizer.table(TEXTS, CUT)
  for row in ROWS.tolist():
    assert found[row].tolist() == whole[row].tolist()
  shuffled = np.random.default_rng(0).permutation(ROWS)
  assert found.lengths_of(shuffled).tolist() == whole.lengths_of(shuffled).tolist()
  assert found.lengths_of(int(ROWS[3])) == len(whole[int(ROWS[3])])
  assert isinstance(found.made, np.memmap), "no process holds them all"


def test_those_of_some_rows_are_those_of_the_texts_there(tmp_path, tiny_weights):
  job, table = a_job(tmp_path), Counting(tiny_weights)
  assert_whole(made(job, table), table.tokenizer)
  cut = [len(text.split()) + 2 for text in TEXTS[1::2]]
  assert job.counts == {"passages of lists cut": {
    "at": CUT, "texts": sum(n > CUT for n in cut), "of": 30, "longest": max(cut)}}
  # Ids of this vocabulary fit into two bytes.
  assert made(job, table).made.dtype["ids"].base == np.uint16


def test_no_texts_have_no_tokens(tmp_path, tiny_weights):
  job = a_job(tmp_path)
  found = made(job, Counting(tiny_weights), np.zeros(0, np.int64))
  assert len(found.made) == 0 and found.lengths_of(np.zeros(0, np.int64)).tolist() == [] and not job.counts


def test_tokens_of_other_texts_are_made_anew_though_a_look_at_some_tells_nothing(tmp_path, tiny_weights, monkeypatch):
  monkeypatch.setattr(pack, "SAMPLE", 4)
  monkeypatch.setattr(tokens, "_LOOKED_AT", 4)
  others = ROWS.copy()
  others[1] += 1
  table = Counting(tiny_weights)
  whole = table.tokenizer.table(TEXTS, CUT)
  for rows in (ROWS, others):
    assert made(a_job(tmp_path), table, rows)[int(rows[1])].tolist() == whole[rows[1]].tolist()


def test_a_training_that_is_begun_again_makes_what_is_missing(tmp_path, tiny_weights, monkeypatch):
  monkeypatch.setattr(pieces, "LEAST", 10)
  first, second, third = (Counting(tiny_weights) for _ in range(3))

  def killed(texts):
    if len(first.counts) == 2:
      raise InterruptedError
    return first(texts)

  killed.tokenizer = first.tokenizer
  with pytest.raises(InterruptedError):
    made(a_job(tmp_path), killed)
  # A look at some of them, to know whose they are, and a piece each.
  assert first.counts == [16, 10]
  assert_whole(made(a_job(tmp_path), second), first.tokenizer)
  assert second.counts == [16, 10, 10]
  # What `status` tells meanwhile.
  written = {str(path): path.stat().st_mtime for path in tmp_path.rglob("*")}
  assert pieces.finished(written) == {"tokens of passages of lists": (3, 3)}
  assert_whole(made(a_job(tmp_path), third), first.tokenizer)
  assert third.counts == [16]


def test_tokens_of_other_texts_are_not_taken_for_these(tmp_path, tiny_weights, monkeypatch):
  made(a_job(tmp_path), Counting(tiny_weights))
  monkeypatch.setitem(globals(), "TEXTS", ["sort " + text for text in TEXTS])
  table = Counting(tiny_weights)
  assert_whole(made(a_job(tmp_path), table), table.tokenizer)


@pytest.mark.parametrize("kind", ["folder", "gs"])
def test_a_committed_stage_has_none_left(tmp_path, tiny_weights, monkeypatch, kind):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  found: list[pathlib.Path] = []

  def run(job: artifacts.Job) -> None:
    made(job, Counting(tiny_weights))
    found.extend(job.out.rglob("*.half"))
    (job.out / "model").write_text("m")

  with bucket_lib.running("gs") as server:
    home = artifacts.Workdir(f"{server.url}/run" if kind == "gs" else tmp_path / "run")
    home.execute(artifacts.Stage(name="train_ranker", reads=(), config=(), run=run), config.Config(name="t"))
    assert len(found) == 1 and found[0].is_relative_to(home.root)
    there = home.folder("train_ranker")
    assert {path.name for path in there.iterdir()} == {"model", artifacts.MANIFEST}
    assert not list(tmp_path.rglob("*.half"))


TOKENISES = """
import json, os, signal
import jobs, tokens_test
from idistill_jax import processes
from idistill_jax.train import pieces

args = jobs.parser().parse_args()
pieces.LEAST = 2
launch = args.coordinator and processes.Launch(
  coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
with processes.joined(launch):
  folder = args.folder / f"machine {args.process}" if os.environ["SHARED"] else args.folder
  table, finish = tokens_test.Counting(os.environ["WEIGHTS"]), pieces.Pieces.finish

  def finishing(self, piece, *made):
    finish(self, piece, *made)
    # Else whoever is first there would make them all.
    if launch and len(table.counts) == 2:
      processes.meet("a piece each")
    if os.environ["KILLED"] == str(args.process) and len(table.counts) == 3:
      os.kill(os.getpid(), signal.SIGKILL)

  pieces.Pieces.finish = finishing
  found = tokens_test.made(tokens_test.a_job(folder, os.environ["SHARED"] or None), table)
  tokens_test.assert_whole(found, table.tokenizer)
  print("counts", json.dumps(table.counts[1:]))
"""


def shares(job: jobs.Job) -> list[int]:
  """Of how many texts each process made the tokens."""
  return [sum(json.loads(job.said(number).partition("counts ")[2].splitlines()[0]))
          for number in range(len(job.processes))]


@pytest.mark.parametrize("kind", ["folder", "gs"])
def test_each_process_of_a_job_reads_and_tokenises_its_own_share(tmp_path, tiny_weights, monkeypatch, kind):
  """Of a folder that both see, and of two machines that have only a bucket in common."""
  monkeypatch.setenv("WEIGHTS", tiny_weights)
  monkeypatch.setenv("KILLED", "nobody")
  with bucket_lib.running("gs") as server:
    monkeypatch.setenv("SHARED", f"{server.url}/tokens" if kind == "gs" else "")
    with jobs.started(tmp_path, 2, "-c", TOKENISES, str(tmp_path)) as job:
      job.succeed(120)
  counts = shares(job)
  assert sum(counts) == len(ROWS) and min(counts) > 0, counts
  left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name.endswith(".half")]
  assert len(left) == 1, "of the first, until its stage is committed"


def test_what_a_killed_process_made_is_taken_up_by_another_number_of_them(tmp_path, tiny_weights, monkeypatch):
  monkeypatch.setenv("WEIGHTS", tiny_weights)
  monkeypatch.setenv("SHARED", "")
  monkeypatch.setenv("KILLED", "1")
  with jobs.started(tmp_path, 2, "-c", TOKENISES, str(tmp_path), patience=20) as job:
    assert job.wait()[1] == -signal.SIGKILL
  made_before = 2 * len([path for path in tmp_path.rglob("*.npy") if not path.name.startswith(".")])
  monkeypatch.setenv("KILLED", "nobody")
  with jobs.started(tmp_path, 1, "-c", TOKENISES, str(tmp_path)) as job:
    job.succeed(120)
  assert 4 <= made_before < len(ROWS) + 1 and shares(job) == [len(ROWS) - made_before]
