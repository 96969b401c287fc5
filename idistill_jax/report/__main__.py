"""Several finished workdirs side by side: tables here, and a page with a plot.

    python -m idistill_jax.report runs/quickstart runs/seed1 --page=comparison.html
"""

import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence

from absl import app, flags
from rich import box, table
from rich import console as rich_console
from rich.text import Text

from idistill_jax.report import compare, page

# Characters that a cell has for itself; what is longer, as a path, is broken into lines.
_WIDEST_NAME, _WIDEST_RUN = 32, 18
_BETWEEN = 2

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
  for part in terminal_tables(compared, console.width):
    console.print(part, "")
  console.print(Text(compare.headline(compared)))
  for note in compare.notes(compared):
    console.print(Text(note))
  console.print(Text(f"Page: {_PAGE.value}"))


def terminal_tables(compared: compare.Comparison, width: int) -> Iterator[table.Table]:
  """Runs across and what they differ in and came to down, so many runs in a table as `width` characters hold.

  Why not runs down, as on the page: a terminal has no room for a column a setting and a measure, and shortens numbers.
  """
  names, *runs = compare.rows(compared)
  of_names = _width(names, _WIDEST_NAME)
  while runs:
    widths = list(itertools.accumulate((_BETWEEN + _width(run, _WIDEST_RUN) for run in runs), initial=of_names))
    fit = max(1, sum(one <= width for one in widths[1:]))
    shown, runs = runs[:fit], runs[fit:]
    made = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    made.add_column(Text(names[0]), overflow="fold", width=of_names)
    for run in shown:
      made.add_column(Text(run[0]), justify="right", overflow="fold", width=_width(run, _WIDEST_RUN))
    for line in zip(*(cells[1:] for cells in (names, *shown)), strict=True):
      made.add_row(*map(Text, line))
    yield made


def _width(cells: Sequence[str], widest: int) -> int:
  return min(widest, max(Text(cell).cell_len for cell in cells))


if __name__ == "__main__":
  app.run(main)
