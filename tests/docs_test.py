"""The documents do not lie: every command in them exists and its flags parse, every path that they name is there."""

import ast
import dataclasses
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "BUILD.md")
# An environment beside .venv, for what is nobody's requirement; what runs in it is told by its own documents.
BESIDE = re.compile(r"\.venv-[\w-]+")
COMMAND = re.compile(
  r'^(?:[A-Z][A-Z0-9_]*=(?:"[^"]*"|\S*) +)*'
  rf'(?:python3? -m \S+|{BESIDE.pattern}/bin/\S+|launch/\w+\.sh|source launch/\w+\.sh)(?: .*)?$'
)
LOOP = re.compile(r"^for (\w+) in ([\w. ]+); do$")
# What takes a stage and its flags.
ELSEWHERE = (
  *((f"launch/{where}.sh",) for where in ("local", "gpu", "docker", "slurm", "sky")),
  *((f"launch/{where}.sh", "run") for where in ("tpu", "gke")),
)
# Loads the package once, then parses each command in a child of its own, as absl's flags are global, and a benchmark
# may call one as another module does; a line each comes out: what is wrong, or nothing.
PARSE = """
import argparse, importlib, json, os, sys
from absl import flags

class Parsed(Exception):
  pass

def refuse(parser, message):
  raise ValueError(message)

def parse_and_do_no_more(parser, argv=None, parse=argparse.ArgumentParser.parse_args):
  parser.allow_abbrev = False
  parse(parser, argv)
  raise Parsed

def with_argparse(loaded, argv):
  argparse.ArgumentParser.error = refuse
  argparse.ArgumentParser.parse_args = parse_and_do_no_more
  try:
    loaded.main(argv)
  except Parsed:
    pass

def with_pip(argv):
  from pip._internal import commands
  from pip._internal.cli import parser
  parser.ConfigOptionParser.error = refuse
  commands.create_command(argv[0]).parse_args(argv[1:])

def with_absl(module, argv):
  # A benchmark, which comes in now: what the package's modules have defined is not there when it runs.
  for name in list(flags.FLAGS) if module not in sys.modules else ():
    if flags.FLAGS.find_module_defining_flag(name).startswith("idistill_jax.") and name not in shared:
      delattr(flags.FLAGS, name)
  importlib.import_module(module)
  sys.argv = [module, *argv]
  rest = flags.FLAGS(sys.argv)[1:]
  if flags.FLAGS["config"].value is not None:
    validation.validate(flags.FLAGS["config"].value)
  named = [word.lstrip("-").partition("=")[0] for word in argv if word.startswith("-")]
  theirs = {"idistill_jax.cli", module}
  foreign = [name for name in named
             if not name.startswith("config.") and flags.FLAGS.find_module_defining_flag(name) not in theirs]
  assert not foreign, f"no flag {foreign}"
  takes_words = {"idistill_jax.search", "idistill_jax.llm.cache", "idistill_jax.report.__main__"}
  assert bool(rest) == (module in takes_words), f"unexpected {rest}"

commands = json.load(sys.stdin)
for module in {module for module, _ in commands if module.startswith("idistill_jax")}:
  importlib.import_module(module)
validation = importlib.import_module("idistill_jax.validation")
shared = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["idistill_jax.cli"]}
for module, argv in commands:
  child = os.fork()
  if not child:
    wrong = ""
    try:
      if module == "pip":
        with_pip(argv)
      elif module in ("benchmarks.labelling", "venv"):
        with_argparse(importlib.import_module(module), argv)
      else:
        with_absl(module, argv)
    except BaseException as e:
      wrong = f"{type(e).__name__}: {e}".replace("\\n", " ")
    print(wrong, flush=True)
    os._exit(0)
  os.waitpid(child, 0)
"""


@dataclasses.dataclass(frozen=True)
class Command:
  where: str
  words: tuple[str, ...]


def commands_in(text: str, where: str) -> list[Command]:
  """Lines that are a command, `\\\\` continued; a `$ ` before it and a `  # remark` behind it are no part of it.  One
  of a loop `for x in 1 2; do` is one for each value."""
  found = []
  name, values = "", [""]
  for line in text.replace("\\\n", " ").splitlines():
    line = line.strip().removeprefix("$ ")
    if loop := LOOP.match(line):
      name, values = f"${loop[1]}", loop[2].split()
    elif line == "done":
      name, values = "", [""]
    elif COMMAND.match(line):
      for value in values:
        words = shlex.split(line.replace(name, value) if name else line, comments=True)
        while re.match(r"^[A-Z][A-Z0-9_]*=", words[0]):
          words = words[1:]
        found.append(Command(where, tuple(words)))
  return found


def code_blocks(markdown: str) -> str:
  """What stands between fences, and between single backticks."""
  fenced = re.findall(r"^ *```[a-z]*\n(.*?)^ *```", markdown, re.S | re.M)
  inline = re.findall(r"`([^`\n]+)`", re.sub(r"^ *```.*?^ *```", "", markdown, flags=re.S | re.M))
  return "\n".join([*fenced, *inline])


def docstrings() -> list[tuple[str, str]]:
  paths = [path for folder in ("idistill_jax", "configs", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
  return [(str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(path.read_text())) or "") for path in sorted(paths)]


def comments(script: str) -> str:
  return "\n".join(line.lstrip("# ") for line in script.splitlines() if line.startswith("#"))


def all_commands() -> list[Command]:
  found = []
  for name in DOCUMENTS:
    found += commands_in(code_blocks((ROOT / name).read_text()), name)
  for name, text in docstrings():
    found += commands_in(text, name)
  for path in sorted((ROOT / "launch").glob("*.sh")):
    found += commands_in(comments(path.read_text()), path.name)
  return found


def as_module(command: Command) -> tuple[str, tuple[str, ...]] | None:
  """(module, its arguments) that a command ends in; None for those that take no flags of ours."""
  words = command.words
  if BESIDE.match(words[0]):
    return ("pip", words[1:]) if words[0].endswith("/pip") else None
  if words[0].startswith("python"):
    module = {"idistill_jax.report": "idistill_jax.report.__main__"}.get(words[2], words[2])
    return module, words[3:]
  if words[:1] in ELSEWHERE or words[:2] in ELSEWHERE:
    stage, *flags = [word for word in words[1:] if word not in ("run", "--dry_run")] or [""]
    module = "idistill_jax.pipeline" if stage == "pipeline" else f"idistill_jax.stages.{stage}"
    return (module, tuple(flags)) if stage else None
  if words[0] == "launch/quickstart.sh":
    return "idistill_jax.pipeline", ("--config=configs/quickstart.py", "--workdir=runs/quickstart", *words[1:])
  return None


def test_commands_are_found() -> None:
  text = "```\n$ A=1 python -m idistill_jax.pipeline --x=1 \\\n  --y  # why\nls\n```\nand `launch/test.sh -k a` too"
  assert [command.words for command in commands_in(code_blocks(text), "t")] == [
    ("python", "-m", "idistill_jax.pipeline", "--x=1", "--y"),
    ("launch/test.sh", "-k", "a"),
  ]
  loop = "for n in 1 2; do\n  launch/test.sh tests/$n\ndone\nlaunch/test.sh $n"
  assert [command.words[1] for command in commands_in(loop, "t")] == ["tests/1", "tests/2", "$n"]
  found = all_commands()
  assert not [one for one in found if re.search(r"\$\w", "".join(one.words))], "a loop's variable has another name"
  assert {"README.md", "BUILD.md", "idistill_jax/pipeline.py"} <= {command.where for command in found}
  assert len(found) > 20


# Commands as they would look after something was renamed, each with the word that the error must hold.
STALE = (
  ("wrokdir", ("idistill_jax.pipeline", ("--wrokdir=x",))),
  ("lost", ("idistill_jax.pipeline", ("--config=configs/quickstart.py", "--config.ranker.lost=x"))),
  ("no_such_loss", ("idistill_jax.pipeline", ("--config=configs/quickstart.py", "--config.ranker.loss=no_such_loss"))),
  ("tinny", ("idistill_jax.pipeline", ("--config=configs/quickstart.py:tinny",))),
  ("top", ("idistill_jax.pipeline", ("--top=3",))),
  ("stray", ("idistill_jax.pipeline", ("stray",))),
  ("rank_lmm", ("benchmarks.labelling", ("--rank_lmm=x",))),
  ("many", ("benchmarks.labelling", ("--calls=many",))),
  ("passage", ("benchmarks.search", ("--passage=1000",))),
  ("peer_steps", ("benchmarks.search", ("--peer_steps=1",))),
  ("tinny", ("benchmarks.first_stages", ("--config=configs/scifact.py:tinny",))),
  ("--constrained", ("pip", ("install", "--constrained=constraints.txt", "einops"))),
  ("--without-pips", ("venv", ("--without-pips", "there"))),
)


def test_every_command_parses_and_a_stale_one_would_not() -> None:
  written = [(command.where, one) for command in all_commands() if (one := as_module(command))]
  # Many stand in several places.
  commands = list(dict.fromkeys(one for _, one in (*written, *STALE)))
  done = subprocess.run([sys.executable, "-W", "ignore", "-c", PARSE], input=json.dumps(commands), capture_output=True,
                        text=True, cwd=ROOT, timeout=300)  # fmt: skip
  assert done.returncode == 0, done.stderr
  wrong = dict(zip(commands, done.stdout.splitlines(), strict=True))
  assert not [f"{where}: {command}: {wrong[command]}" for where, command in written if wrong[command]]
  for word, command in STALE:
    assert word in wrong[command]


def test_scripts_and_tests_that_are_named_exist() -> None:
  for command in all_commands():
    script = command.words[1] if command.words[0] == "source" else command.words[0]
    if script.startswith("launch/"):
      path = ROOT / script
      assert path.exists(), f"{command.where}: {script}"
      assert script == "launch/env.sh" or path.stat().st_mode & 0o111, f"{script} is not executable"
    for word in command.words[1:]:
      if word.startswith("tests/"):
        assert (ROOT / word.partition("::")[0]).exists(), f"{command.where}: {word}"


def test_environments_that_are_named_are_made() -> None:
  found = all_commands()
  made = {command.words[3:] for command in found if command.words[1:3] == ("-m", "venv")}
  named = [(command.where, name) for command in found for name in BESIDE.findall(" ".join(command.words))]
  assert named and not [f"{where}: {name}" for where, name in named if (name,) not in made]


def test_extras_that_are_named_exist() -> None:
  extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
  for name in DOCUMENTS:
    text = (ROOT / name).read_text()
    for named in re.findall(r"(?:\.|idistill[-_]jax)\[([\w,-]+)\]", text):
      assert set(named.split(",")) <= extras, f"{name}: {named}"
    for command in commands_in(code_blocks(text), name):
      if command.words[:2] == ("source", "launch/env.sh"):
        assert set(command.words[2:]) <= extras, f"{name}: {command.words}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_lead_somewhere(name: str) -> None:
  text = (ROOT / name).read_text()
  for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
    assert (ROOT / target).exists(), f"{name} links to {target}"
  for target in re.findall(r"`((?:idistill_jax|configs|launch|tests)/[\w/.-]+)`", text):
    assert (ROOT / target).exists(), f"{name} names {target}"


def test_the_tree_of_the_package_is_whole() -> None:
  """BUILD.md glosses every module, and no module that is gone."""
  tree = (ROOT / "BUILD.md").read_text().partition("## The tree")[2].partition("\n## ")[0]
  glossed, folders = set(), []
  for line in code_blocks(tree).splitlines():
    if match := re.match(r"^( *)([\w.]+(?:/|\.py))(?:  |$)", line):
      depth = len(match[1]) // 2
      folders[depth:] = [match[2].rstrip("/")]
      glossed.add("/".join(folders))
  modules = {
    str(path.relative_to(ROOT)) for path in (ROOT / "idistill_jax").rglob("*.py") if path.name != "__init__.py"
  }
  assert modules - glossed == set(), "these are missing from the tree"
  assert {one for one in glossed if one.startswith("idistill_jax/") and one.endswith(".py")} - modules == set()
