"""One attempt at a stage: of which code it is, what it takes, and that what it leaves outlives it."""

import contextlib
import pathlib
from collections.abc import Callable

from idistill_jax import processes
from idistill_jax.workdir import coded, files, remade, seconds


def work(name: str, run: Callable[[], None], *, together: bool, out: pathlib.Path, spent: seconds.Spent,
         keep: Callable[[str], None], always: Callable[[], None]) -> dict[str, int]:
  """Runs a stage; returns the sizes of the record files that it wrote.

  together: whether in all processes; otherwise in the first, which the others wait for.  out: its working folder.
  keep: makes a file of that, or all (""), outlive this machine.  always: is called at the end, however that comes.
  """
  try:
    if processes.is_first():
      coded.note(out, name)
      keep(coded.FILE)
    with spent.kept(lambda: keep(seconds.FILE)) if processes.is_first() else contextlib.nullcontext():
      if together:
        run()
        return files.sizes_of_all(out, f"the end of {name}")
      processes.once(run, f"the stage {name}")
      return files.sizes(out)
  except BaseException:
    # By the first process alone, which would have committed them: another one's end may come when it already has.
    if processes.is_first():
      remade.remove(out)
    raise
  finally:
    if processes.is_first():
      always()
      keep("")
