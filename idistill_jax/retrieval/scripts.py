"""Ranges of characters, for classes of regular expressions, of scripts in which letters are no words of spaces."""

HAN_AND_KANA = (
  "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
  "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Syllables.
HANGUL = "\uac00-\ud7a3"
CJK = HAN_AND_KANA + HANGUL
