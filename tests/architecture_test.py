"""The rules of the house, read off the source: what may import what, how long things are, which knobs are read."""

import ast
import dataclasses
import functools
import pathlib
import re
import sys
import tomllib
import typing
from collections.abc import Iterator

import pytest

from idistill_jax import config as config_lib
from idistill_jax import flow
from idistill_jax.llm import session

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "idistill_jax"

# Top to bottom: a module imports its own layer and those below.
LAYERS = (
  ("status",),
  ("pipeline", "serve", "join"),
  ("upsert", "suited"),
  ("search",),
  ("stages",),
  ("compile_for", "ahead"),
  ("report", "train", "hf", "dry_run", "amounts", "flow", "fingerprints"),
  ("models", "data", "retrieval", "llm"),
  ("chips",),
  ("sharding", "losses", "records", "progress", "recipes", "costs"),
  ("cli",),
  ("workdir",),
  ("processes",),
  ("validation", "peers", "experiments"),
  ("config", "extras", "by_row", "ids", "machine", "multiply"),
)
# Of rooms with many modules, in the same way.
WITHIN = {
  "workdir": (
    ("anew", "configs", "outdated"),
    ("artifacts",),
    ("attempt", "begun", "foreign", "manifests"),
    ("store",),
    ("bucket", "coded", "inputs", "seconds", "shared"),
    ("leases", "outside", "sent"),
    ("databases", "files", "locks", "remade", "remote", "sealed"),
  ),
}
WITHOUT_JAX = (
  *("progress", "config", "validation", "peers", "processes", "workdir", "records", "cli", "llm", "ids", "by_row"),
  *("machine", "flow", "fingerprints", "experiments", "report", "dry_run", "amounts", "status", "suited", "pipeline"),
)
JAX_STACK = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
LONGEST_FILE, LONGEST_FUNCTION = 300, 60
# Files and functions (`path::name`) that are longer, each with its reason.
LONGER: dict[str, str] = {
  "idistill_jax/config.py": "every field of every stage, with its default, in one place",
}
VAGUE_NAMES = {"utils", "util", "common", "base", "helpers", "misc", "manager", "handler"}
# Distribution -> what it is imported as, where the two differ.
IMPORTED_AS = {
  "absl-py": "absl", "orbax-checkpoint": "orbax", "protobuf": "google.protobuf", "google-crc32c": "google_crc32c",
  "pystemmer": "Stemmer", "pytrec-eval-terrier": "pytrec_eval", "ir-measures": "ir_measures",
  "ir-datasets": "ir_datasets", "google-genai": "google.genai", "google-generativeai": "google.generativeai",
}  # fmt: skip


# -- Reading the source --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Module:
  name: str
  path: pathlib.Path
  tree: ast.Module

  @property
  def top(self) -> str:
    """The part of the name that `LAYERS` lists; "" for the package itself."""
    return self.name.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


@functools.cache
def modules() -> dict[str, Module]:
  found = {}
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    found[name] = Module(name, path, ast.parse(path.read_text()))
  return found


def imports(nodes: typing.Iterable[ast.AST], known: typing.Container[str]) -> Iterator[str]:
  """Dotted names of the modules that import statements among `nodes` name."""
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "imports are absolute here"
      for alias in node.names:
        whole = f"{node.module}.{alias.name}"
        yield whole if whole in known else str(node.module)


def all_imports(module: Module) -> set[str]:
  return set(imports(ast.walk(module.tree), modules()))


def imports_at_start(module: Module) -> set[str]:
  """Only what runs when the module is imported."""

  def nodes(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
      yield node
      for block in ("body", "orelse", "finalbody"):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
          yield from nodes(getattr(node, block, []))

  return set(imports(nodes(module.tree.body), modules()))


# -- Imports -------------------------------------------------------------------------------------------------------


Layers = typing.Sequence[typing.Sequence[str]]


def layer(name: str, layers: Layers) -> int:
  return next(i for i, names in enumerate(layers) if name in names)


def points_up(importer: str, imported: str, layers: Layers = LAYERS) -> bool:
  return layer(imported, layers) < layer(importer, layers)


def ours(names: typing.Iterable[str]) -> list[Module]:
  return [modules()[name] for name in names if name in modules() and name != PACKAGE]


def test_imports_point_down() -> None:
  tops = {module.top for module in modules().values()} - {""}
  assert tops == {name for names in LAYERS for name in names}, "LAYERS and the tree name different things"
  wrong = [
    f"{module.name} imports {imported.name}"
    for module in modules().values() if module.top
    for imported in ours(all_imports(module))
    if points_up(module.top, imported.top)
  ]  # fmt: skip
  assert not wrong
  assert points_up("data", "train") and not points_up("train", "data")


@pytest.mark.parametrize("room", WITHIN)
def test_imports_within_a_room_point_down(room: str) -> None:
  within = {module.name.rpartition(".")[2]: module for module in modules().values()
            if module.name.startswith(f"{PACKAGE}.{room}.")}  # fmt: skip
  assert sorted(within) == sorted(name for names in WITHIN[room] for name in names)
  wrong = [
    f"{name} imports {imported}"
    for name, module in within.items()
    for imported, other in within.items()
    if other in ours(all_imports(module)) and points_up(name, imported, WITHIN[room])
  ]
  assert not wrong
  assert points_up("files", "artifacts", WITHIN["workdir"])


def test_no_stage_imports_another() -> None:
  for module in modules().values():
    if module.top == "stages":
      assert not [other.name for other in ours(all_imports(module)) if other.top == "stages"], module.name


def cycle(graph: dict[str, set[str]]) -> list[str]:
  """Nodes that remain when nodes without successors are taken away again and again."""
  left = {node: set(after) & set(graph) - {node} for node, after in graph.items()}
  while free := [node for node, after in left.items() if not after & set(left)]:
    for node in free:
      del left[node]
  return sorted(left)


def test_no_cycles() -> None:
  assert cycle({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == ["a", "b", "c"]
  assert not cycle({"a": {"b"}, "b": set(), "c": {"a"}})
  files = {module.name: {other.name for other in ours(all_imports(module))} for module in modules().values()}
  # A package's __init__ gathers its own modules.
  files = {name: {after for after in found if not name.startswith(f"{after}.")} for name, found in files.items()}
  assert not cycle(files)
  folders: dict[str, set[str]] = {}
  for module in modules().values():
    folders.setdefault(module.top, set()).update(other.top for other in ours(all_imports(module)))
  del folders[""]
  assert not cycle(folders)


def reached(start: str) -> set[str]:
  """Everything that importing `start` imports, as far as our own source tells."""
  seen: set[str] = set()
  todo = [start]
  while todo:
    name = todo.pop()
    if name in seen:
      continue
    seen.add(name)
    if name in modules():
      todo += imports_at_start(modules()[name])
      parent = name.rpartition(".")[0]
      todo += [parent] if parent else []
  return seen


def test_light_parts_import_no_jax() -> None:
  for module in modules().values():
    if module.top in WITHOUT_JAX:
      heavy = {name for name in reached(module.name) if name.partition(".")[0] in JAX_STACK}
      assert not heavy, f"{module.name} imports {sorted(heavy)}"
  assert "jax" in {name.partition(".")[0] for name in reached(f"{PACKAGE}.train.loop")}


# -- Dependencies --------------------------------------------------------------------------------------------------


def declared(project: dict[str, typing.Any], extras: typing.Iterable[str]) -> dict[str, str]:
  """Distribution -> import name."""
  wanted = list(project["dependencies"])
  for extra in extras:
    wanted += project["optional-dependencies"][extra]
  names = [re.split(r"[^A-Za-z0-9_.-]", one)[0].lower() for one in wanted]
  return {name: IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def test_dependencies_are_what_is_imported() -> None:
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  known = declared(project, [
    "retrieval", "report", "llm", "gemini-legacy", "hf", "torch", "datasets", "serve", "tpu-compile", "gcs", "s3",
    "tensorboard"])
  source = "\n".join(module.path.read_text() for module in modules().values())
  unused = [name for name, module in known.items() if module not in source]
  assert not unused, f"pyproject.toml asks for {unused}, which no module imports"
  found = {name for module in modules().values() for name in all_imports(module)}
  undeclared = {
    name for name in found
    if name.partition(".")[0] not in {*sys.stdlib_module_names, PACKAGE}
    and not any((name + ".").startswith(module + ".") for module in known.values())
    and name not in ("google", "tensorflow_datasets")  # of the extra `tfds`, whose other packages that one imports
  }  # fmt: skip
  assert not undeclared, f"pyproject.toml lacks {sorted(undeclared)}"


def test_messages_name_extras_that_are_there_and_what_installs_them_from_a_clone() -> None:
  """The package is on no index, so that its name and an extra in brackets would install nothing."""
  there = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
  place, named = {"install": 0, "needed": 1, "sdk": 1}, set()
  for module in modules().values():
    assert not re.search(r"idistill[_-]jax\[", module.path.read_text()), module.name
    for node in ast.walk(module.tree):
      called = getattr(node.func, "attr", None) if isinstance(node, ast.Call) else None
      if called in place and len(node.args) > place[called] and isinstance(node.args[place[called]], ast.Constant):
        named.add(node.args[place[called]].value)
  assert {"hf", "llm", "report", "retrieval", "serve"} <= named <= set(there)


# -- Size and names ------------------------------------------------------------------------------------------------


def test_files_and_functions_are_short() -> None:
  long = {}
  for module in modules().values():
    path = str(module.path.relative_to(ROOT))
    lines = len(module.path.read_text().splitlines())
    if lines > LONGEST_FILE:
      long[path] = lines
    for node in ast.walk(module.tree):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = (node.end_lineno or 0) - node.lineno + 1
        if lines > LONGEST_FUNCTION:
          long[f"{path}::{node.name}"] = lines
  assert not {name: lines for name, lines in long.items() if name not in LONGER}
  assert not set(LONGER) - set(long), "these are short now: take them off the list"


def test_names_say_what_is_inside() -> None:
  assert not [name for name in modules() if VAGUE_NAMES & set(name.split("."))]


def test_every_module_says_what_it_does() -> None:
  silent = [module.name for module in modules().values() if module.tree.body and not ast.get_docstring(module.tree)]
  assert not silent


MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home|work|Users|opt|mnt)/\w")


def test_no_machine_path() -> None:
  assert MACHINE_PATH.search('open("/home/me/x")') and not MACHINE_PATH.search("https://host/home/x/work/y")
  texts = [path for folder in (PACKAGE, "configs", "launch", "tests") for path in (ROOT / folder).rglob("*")]
  for path in [*texts, ROOT / "README.md", ROOT / "BUILD.md", ROOT / ".ci/run"]:
    if path.suffix in (".py", ".sh", ".md", ".txt", ".j2") and path != pathlib.Path(__file__):
      found = MACHINE_PATH.search(path.read_text())
      assert not found, f"{path}: {found}"


# -- Config --------------------------------------------------------------------------------------------------------


def sections() -> dict[str, type]:
  """Name in Config -> section class; `optim` is shared by two of them."""
  found = {"": config_lib.Config}
  for cls in (config_lib.Config, config_lib.Ranker):
    for name, hint in typing.get_type_hints(cls).items():
      if dataclasses.is_dataclass(hint):
        found[name] = typing.cast(type, hint)
  return found


def fields_read(tree: ast.AST) -> set[tuple[str, str]]:
  """(section class, field) of every read `<something that holds the section>.<field>`.

  Something that holds it: an attribute of the section's name, a parameter annotated with its class, or a variable
  that one of the two was assigned to.
  """
  of_name = {name: cls.__name__ for name, cls in sections().items() if name} | {"cfg": "Config"}
  holders: dict[str, set[str]] = {}

  def classes(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Name):
      return holders.get(node.id, {"Config"} if node.id == "cfg" else set())
    if isinstance(node, ast.Attribute):
      named = {of_name[node.attr]} if node.attr in of_name else set()
      return named | holders.get(f".{node.attr}", set())
    return set()

  for node in ast.walk(tree):
    if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
      named = {one.strip().rpartition(".")[2] for one in ast.unparse(node.annotation).split("|")}
      if named := named & {cls.__name__ for cls in sections().values()}:
        name = node.arg if isinstance(node, ast.arg) else ast.unparse(node.target).removeprefix("self")
        holders.setdefault(name, set()).update(named)
  for _ in range(2):
    for node in ast.walk(tree):
      if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
        pairs = zip(target.elts, value.elts, strict=True) if (
          isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)) else [(target, value)]
        for left, right in pairs:
          if isinstance(left, (ast.Name, ast.Attribute)) and classes(right):
            name = left.id if isinstance(left, ast.Name) else f".{left.attr}"
            holders.setdefault(name, set()).update(classes(right))
  read = {
    (cls, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute) for cls in classes(node.value)
  }
  # Who reads a field of a section reads it of the sections that inherit it.
  kinds = {cls.__name__: cls for cls in sections().values()}
  return read | {
    (kind.__name__, field) for cls, field in read if cls in kinds
    for kind in kinds.values() if issubclass(kind, kinds[cls])
  }


def behind_properties() -> dict[tuple[str, str], set[str]]:
  """(section class, property) -> fields that it reads."""
  found = {}
  for cls in modules()[f"{PACKAGE}.config"].tree.body:
    for function in cls.body if isinstance(cls, ast.ClassDef) else ():
      if isinstance(function, ast.FunctionDef):
        own = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
        found[cls.name, function.name] = {node.attr for node in own if ast.unparse(node.value) == "self"}
  return found


def test_every_knob_is_read() -> None:
  # `validate` reads fields too; what nothing else reads does nothing.
  read = set().union(*(fields_read(m.tree) for m in modules().values() if m.top not in ("config", "validation")))
  behind = behind_properties().items()
  read |= {(cls, field) for (cls, name), fields in behind if (cls, name) in read for field in fields}
  dead = [
    f"{cls.__name__}.{field.name}"
    for cls in set(sections().values()) for field in dataclasses.fields(cls)
    if (cls.__name__, field.name) not in read
  ]  # fmt: skip
  assert not dead
  control = fields_read(
    ast.parse("def f(one: config.Optim | config.Mesh, cfg):\n  x = cfg.ranker\n  return one.b1, x.loss, y.epochs")
  )
  assert control >= {("Optim", "b1"), ("Ranker", "loss")} and not {one for one in control if one[1] == "epochs"}


def reads_leniently(tree: ast.AST) -> list[str]:
  """Reads of a config that would pass over a missing field."""
  calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
  lenient = re.compile(r"^(?:getattr|hasattr)\((?:\w+\.)*_?cfg\b|^(?:\w+\.)*_?cfg\b[\w.]*\.get\(")
  return [call for call in calls if lenient.search(call)]


def test_no_lenient_read_of_a_config() -> None:
  assert len(reads_leniently(ast.parse("getattr(job.cfg, 'x'); cfg.labels.get('y'); getattr(e, 'cfg')"))) == 2
  assert not [(m.name, found) for m in modules().values() if (found := reads_leniently(m.tree))]


# -- Stages --------------------------------------------------------------------------------------------------------

STAGE_MODULES = sorted(path.stem for path in (ROOT / PACKAGE / "stages").glob("*.py") if path.stem != "__init__")


def test_the_flow_has_every_stage_after_what_it_reads() -> None:
  names = list(flow.STAGES)
  assert sorted(names) == STAGE_MODULES
  for place, stage in enumerate(flow.STAGES.values()):
    assert {*stage.reads, *stage.reads_if} <= set(names[:place]), stage.name
  assert {*flow.STAGES["report"].reads, *flow.STAGES["report"].reads_if} == set(names) - {"report"}
  # A reader that fails, of a quota, withholds the report and no model.
  assert names[-2:] == ["answer", "report"]


@pytest.mark.parametrize("name", STAGE_MODULES)
def test_stage(name: str) -> None:
  module, stage = flow.module(name), flow.STAGES[name]
  assert callable(module.run) and hasattr(module, "print_estimate") == (name in session.ASKING)
  assert stage.command in (module.__doc__ or ""), "its docstring gives its command"
  # A section that is read but not in the key would leave a stale folder after a change.
  read = {field for cls, field in fields_read(modules()[module.__name__].tree) if cls == "Config"}
  read &= {field.name for field in dataclasses.fields(config_lib.Config)}
  # Which devices do the work changes nothing about what comes out.
  read -= {"mesh"}
  assert read <= set(stage.config), f"{name} reads {sorted(read - set(stage.config))} beside its key"
  # The same for folders.
  opened = set(re.findall(r"job\.inputs\[\"(\w+)\"\]", modules()[module.__name__].path.read_text()))
  assert opened <= {*stage.reads, *stage.reads_if}
  # Another's would run it in this one's place.
  assert f'cli.main(flow.STAGES["{name}"]' in modules()[module.__name__].path.read_text()
