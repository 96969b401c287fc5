"""Program: the docstrings of this interpreter's standard library -> one JSON object on standard output.

    {"passages": [{"id": ..., "title": ..., "text": ...}, ...], "not_importable": [module, ...]}

One passage per public module, function, class, method or property with a docstring of at least 8 words, cut
at 120 words; id and title are the qualified name.  Of objects with one docstring the first wins, in
alphabetical order of modules and names.  Uses the standard library alone, and is meant to run as
`python -I -S docstrings.py`: what is found depends on what else is imported.
"""

import contextlib
import importlib
import inspect
import json
import pkgutil
import sys
import types
from collections.abc import Iterator
from typing import Any

MIN_WORDS = 8
MAX_WORDS = 120

# Games, tests, installers, graphics and single platforms.
_NOT_A_LIBRARY = frozenset(
  (
    "antigravity",
    "this",
    "idlelib",
    "lib2to3",
    "test",
    "turtledemo",
    "turtle",
    "tkinter",
    "pip",
    "ensurepip",
    "distutils",
    "pydoc_data",
    "msilib",
    "winreg",
    "_pyrepl",
    "__main__",
    "venv",
    "nt",
    "posix",
  )
)
# Removed by Python 3.13: a collection that means the same on every version leaves them out.
_REMOVED = frozenset(
  (
    "aifc",
    "asynchat",
    "asyncore",
    "audioop",
    "cgi",
    "cgitb",
    "chunk",
    "crypt",
    "imghdr",
    "imp",
    "mailcap",
    "nis",
    "nntplib",
    "ossaudiodev",
    "pipes",
    "smtpd",
    "sndhdr",
    "spwd",
    "sunau",
    "telnetlib",
    "uu",
    "xdrlib",
  )
)
_SKIPPED_SUBMODULES = frozenset(("__main__", "test", "tests"))
_WINDOWS_SUBMODULES = frozenset(
  ("asyncio.windows_events", "asyncio.windows_utils", "multiprocessing.popen_spawn_win32")
)


class Extraction:
  """Collects passages; remembers ids and texts, so that nothing appears twice."""

  def __init__(self) -> None:
    self.passages: list[dict[str, str]] = []
    self.not_importable: list[str] = []
    self._ids: set[str] = set()
    self._texts: set[str] = set()

  def run(self) -> None:
    for name, module in self._modules():
      self._add(name, module)
      exported = getattr(module, "__all__", None) or [
        other for other in vars(module) if not other.startswith("_")
      ]
      for attribute in sorted(set(map(str, exported))):
        found = getattr(module, attribute, None)
        if _belongs(name, found):
          self._add_with_members(f"{name}.{attribute}", found)

  def _modules(self) -> Iterator[tuple[str, types.ModuleType]]:
    """Public modules, each followed by its public submodules.

    A generator, since importing a submodule sets a name in its parent: the parent is looked at before that.
    """
    for name in sorted(sys.stdlib_module_names - _NOT_A_LIBRARY - _REMOVED):
      if name.startswith("_"):
        continue
      module = self._import(name)
      if module is None:
        continue
      yield name, module
      # The modules in `encodings` are codecs: their docstrings name a character set, one like another.
      path = [] if name == "encodings" else getattr(module, "__path__", [])
      for short in sorted(info.name for info in pkgutil.iter_modules(path)):
        full = f"{name}.{short}"
        if short.startswith("_") or short in _SKIPPED_SUBMODULES or full in _WINDOWS_SUBMODULES:
          continue
        submodule = self._import(full)
        if submodule is not None:
          yield full, submodule

  def _import(self, name: str) -> types.ModuleType | None:
    try:
      return importlib.import_module(name)
    except Exception:  # Modules for another system fail in many ways.
      self.not_importable.append(name)
      return None

  def _add_with_members(self, qualified: str, found: Any) -> None:
    self._add(qualified, found)
    if not inspect.isclass(found) or issubclass(found, BaseException):
      return
    for member, value in sorted(vars(found).items()):
      if member.startswith("_"):
        continue
      function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
      if (
        callable(function)
        or isinstance(function, property)
        or inspect.ismethoddescriptor(function)
        or inspect.isgetsetdescriptor(function)
      ):
        self._add(f"{qualified}.{member}", function)

  def _add(self, qualified: str, found: Any) -> None:
    words = _docstring(found).split()
    text = " ".join(words).lower()
    if len(words) < MIN_WORDS or qualified in self._ids or text in self._texts:
      return
    self._ids.add(qualified)
    self._texts.add(text)
    self.passages.append({"id": qualified, "title": qualified, "text": " ".join(words[:MAX_WORDS])})


def _belongs(module: str, found: Any) -> bool:
  """Whether a module's attribute is a function or class of its own package, C helper `_package` included."""
  if inspect.ismodule(found) or not callable(found):
    return False
  home = getattr(found, "__module__", None) or module
  if home == "builtins":
    return module == "builtins"
  return home.split(".")[0].lstrip("_") == module.split(".")[0].lstrip("_")


def _docstring(found: Any) -> str:
  """An object's own docstring: a class does not speak through its base."""
  doc = vars(found).get("__doc__") if inspect.isclass(found) else getattr(found, "__doc__", None)
  return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def main() -> None:
  extraction = Extraction()
  with contextlib.redirect_stdout(sys.stderr):  # Some modules print when they are imported.
    extraction.run()
  json.dump({"passages": extraction.passages, "not_importable": extraction.not_importable}, sys.stdout)


if __name__ == "__main__":
  main()
