"""One drawing of Matplotlib -> an `<svg>` element in the page's own colours and font, or a file that has them with it.

Matplotlib draws with sentinel colours, which CSS variables then replace, so that a drawing follows light and dark.
Drawings are as wide as a phone, and the page places them side by side: text then has the same size on every screen.
"""

import io
import logging
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from idistill_jax import config as config_lib

# Sentinel in the drawing -> what the page puts in its place.
COLOURS = {
  "#010101": "var(--ink)",
  "#020202": "var(--soft)",
  "#030303": "var(--line)",
  "#040404": "var(--initial)",
  "#050505": "var(--distilled)",
  "#060606": "var(--ranker)",
  "#070707": "var(--other)",
  "#080808": "var(--good)",
  "#090909": "var(--bad)",
}
INK, SOFT, LINE, INITIAL, DISTILLED, RANKER, OTHER, GOOD, BAD = COLOURS
# Inches; the page gives a drawing about 100 pixels for each.
NARROW, WIDE = 3.6, 4.4
_PIXELS_PER_POINT = 100 / 72
_STYLE: Any = {
  "svg.fonttype": "none",
  "svg.hashsalt": "idistill_jax",
  "text.parse_math": False,
  "font.size": 9.0,
  "axes.edgecolor": LINE,
  "axes.labelcolor": SOFT,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.titlecolor": INK,
  "axes.titlesize": 9.5,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.titlepad": 9.0,
  "axes.unicode_minus": True,
  "xtick.color": LINE,
  "ytick.color": LINE,
  "xtick.labelcolor": SOFT,
  "ytick.labelcolor": SOFT,
  "text.color": INK,
  "grid.color": LINE,
  "grid.linewidth": 0.6,
}


def drawn(draw: Callable[[Any], None], *, title: str, height: float, width: float = NARROW) -> str:
  import matplotlib
  from matplotlib.backends import backend_svg
  from matplotlib.figure import Figure

  # The page's font is not one that Matplotlib can look up; it only measures with its own.
  logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
  title = plain(title, 48)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    draw(axes)
    axes.set_title(title)
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    backend_svg.FigureCanvasSVG(figure).print_svg(out, metadata=nothing)
  return _for_page(out.getvalue(), title)


def _for_page(drawing: str, title: str) -> str:
  """The `<svg>` element alone, named for screen readers, ids its own, colours and font the page's."""
  root = ElementTree.fromstring(drawing)
  prefix = config_lib.digest(title)[:8]
  for parent in list(root.iter()):
    for child in [child for child in parent if child.tag.endswith(("}metadata", "}style"))]:
      parent.remove(child)
  for element in root.iter():
    element.tag = element.tag.partition("}")[2]
    element.attrib = {
      name.rpartition("}")[2]: _attribute(name, text, prefix) for name, text in element.attrib.items()
    }
  root.attrib = {"class": "figure", "role": "img", "aria-label": title, "viewBox": root.attrib["viewBox"]}
  return ElementTree.tostring(root, encoding="unicode")


def standalone(drawing: str, css: str) -> str:
  """A drawing as a file of its own, in the light colours of the page's `css`: for slides, papers and READMEs.

  Why not the variables themselves, which follow light and dark?  Browsers alone read them.
  """
  light = dict(re.findall(r"(--\w+): ([^;]+);", css.partition("@media")[0]))
  root = ElementTree.fromstring(re.sub(r"var\((--\w+)\)", lambda found: light[found[1]].replace('"', "'"), drawing))
  left, top, width, height = (float(one) for one in root.attrib["viewBox"].split())
  root.attrib = {
    "xmlns": "http://www.w3.org/2000/svg", "viewBox": root.attrib["viewBox"], "role": "img",
    "aria-label": root.attrib["aria-label"],
    "width": f"{width * _PIXELS_PER_POINT:.0f}", "height": f"{height * _PIXELS_PER_POINT:.0f}",
  }
  # A viewer's ground may be dark.
  root.insert(0, ElementTree.Element("rect", {
    "x": f"{left:g}", "y": f"{top:g}", "width": f"{width:g}", "height": f"{height:g}", "fill": light["--card"]}))
  return ElementTree.tostring(root, encoding="unicode") + "\n"


def slug(drawing: str) -> str:
  """A drawing's title as a file's name."""
  title = ElementTree.fromstring(drawing).attrib["aria-label"]
  return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _attribute(name: str, text: str, prefix: str) -> str:
  if name == "id":
    return f"{prefix}-{text}"
  if name.endswith("href"):
    return text.replace("#", f"#{prefix}-", 1)
  text = re.sub(r"url\(#", f"url(#{prefix}-", text)
  text = re.sub(r"(font: [^;]*?px|font-family:) [^;]*", r"\1 var(--font)", text)
  for sentinel, variable in COLOURS.items():
    text = text.replace(sentinel, variable)
  return text


def plain(text: str, longest: int) -> str:
  """A name cut to what has room, without characters that XML cannot hold."""
  shown = text if len(text) <= longest else text[: longest - 1] + "…"
  return "".join(c if c.isprintable() else "\ufffd" for c in shown)
