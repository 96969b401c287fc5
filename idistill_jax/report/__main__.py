"""Several finished workdirs side by side: a table here, and a page with a plot.

    python -m idistill_jax.report runs/quickstart runs/seed1 --page=comparison.html
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags
from rich import box, table
from rich import console as rich_console
from rich.text import Text

from idistill_jax.report import compare, page

_PAGE = flags.DEFINE_string("page", "comparison.html", "Where the page is written.")


def main(argv: Sequence[str]) -> None:
  if len(argv) < 2:
    raise app.UsageError("name at least one workdir: python -m idistill_jax.report runs/quickstart runs/seed1")
  try:
    compared = compare.gather_runs(argv[1:])
    pathlib.Path(_PAGE.value).write_text(page.render_comparison(compared), encoding="utf-8")
  except (ValueError, OSError, ImportError) as e:
    sys.exit(f"{type(e).__name__}: {e}")
  console = rich_console.Console()
  console.print(terminal_table(compared))
  console.print(Text(compare.headline(compared)))
  for note in compare.notes(compared):
    console.print(Text(note))
  console.print(Text(f"Page: {_PAGE.value}"))


def terminal_table(compared: compare.Comparison) -> table.Table:
  header, *lines = compare.rows(compared)
  made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
  for place, name in enumerate(header):
    made.add_column(Text(name), justify="left" if place == 0 else "right")
  for line in lines:
    made.add_row(*map(Text, line))
  return made


if __name__ == "__main__":
  app.run(main)
