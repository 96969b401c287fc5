"""A text that somebody else wrote -> one line that may stand in a prompt: it cannot pose as part of its form."""

import re
import unicodedata

# As a prompt has them, and what looks or normalises like them.
_SQUARE, _SQUARE_END = "[［﹇【〔〖〘〚⟦⁅❲", "]］﹈】〕〗〙〛⟧⁆❳"
_ANGLE, _ANGLE_END = "<＜﹤〈⟨‹❬", ">＞﹥〉⟩›❭"
_OPENING = re.compile(f"[{re.escape(_SQUARE + _ANGLE)}]")
# No form holds a bracket within, so that none can hide in another.
_FORM = re.compile(
  r"""
  # Labels, as an answer has them, marked up or not, and brackets that HTML writes in another way.
  \[ [\s\\*_`"']* (?: (?:passage|document|doc|text)s? [\s#:_-]* )? \#? \d [\d\s,;:>.–—\\*_`"'-]* \]
  | & (?: \#0*91 | \#x0*5b | lsqb | lbrack ) ;? [\s\\*_`"']* \d
  | < \s* /? \s* (?:query|passages?) \b [^][<>]* >?  # fences
  | < \| [^][<>|]{1,64} \| > | </? (?:s|bos|eos|sys|think|(?:start|end)_of_\w{1,20}) >  # chat templates
  | \[ /? (?:inst|system_prompt|available_tools|tool_calls|tool_results) \]
  """,
  re.IGNORECASE | re.VERBOSE,
)
# Default-ignorable code points (Unicode 16) that `str.isprintable` takes for printable.
_UNSEEN = re.compile(
  "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def quote(text: str) -> str:
  """One line without invisible characters, in which neither fences, bracketed numbers nor chat tokens occur.

  `[3]` becomes `(3)` and `</passages>` becomes `(/passages)`: the words stay, the form goes.  A form is recognised
  in whatever width, style and brackets it is written; all other text stays as it is, and is not normalised.
  """
  line = " ".join(text.split())
  # Each prompt quotes each of its passages, most of which are ASCII without a bracket.
  if not line.isprintable() or (not line.isascii() and _UNSEEN.search(line)):
    line = " ".join(line.translate(_VISIBLE).split())
  plain = line
  if not line.isascii() and _OPENING.search(line):
    plain = line.translate(_PLAIN)
  if not any(sign in plain for sign in "[<&"):
    return line
  forms = list(_FORM.finditer(plain))
  if not forms:
    return line
  # The place in the line of each character of the plain one.
  places = range(len(line)) if plain is line else [i for i, char in enumerate(line) for _ in _PLAIN[ord(char)]]
  characters = list(line)
  for form in forms:
    characters[places[form.start()]] = "("
    if form[0][-1] in "]>":
      characters[places[form.end() - 1]] = ")"
  return "".join(characters)


class _Visible(dict[int, str]):
  """What `str.translate` puts in place of each character, filled as characters come up."""

  def __missing__(self, code: int) -> str:
    char = chr(code)
    category = unicodedata.category(char)
    # Format characters hide or reorder text; a lone surrogate cannot be sent at all.
    hidden = category in ("Cf", "Cs") or _UNSEEN.match(char)
    self[code] = " " if category == "Cc" else "" if hidden else char
    return self[code]


class _Plain(dict[int, str]):
  """The same for what a character is recognised as: of common width and style, without marks upon it."""

  def __missing__(self, code: int) -> str:
    normal = unicodedata.normalize("NFKC", chr(code).translate(_BRACKETS))
    self[code] = "".join(char for char in normal if unicodedata.category(char) not in ("Mn", "Me"))
    return self[code]


_BRACKETS = str.maketrans(dict.fromkeys(_SQUARE, "[") | dict.fromkeys(_SQUARE_END, "]")
                          | dict.fromkeys(_ANGLE, "<") | dict.fromkeys(_ANGLE_END, ">"))
_VISIBLE, _PLAIN = _Visible(), _Plain()
