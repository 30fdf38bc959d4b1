"""Which characters make words, in any script.

A word is a run of letters, digits and underscores (`\\w` of Python) with the
marks that belong to them: vowel signs of Devanagari, accents that are no part
of a letter, joiners. A letter of a script that is written without spaces
between words, such as Han, kana or Thai, is a word by itself, with its marks.
All else (punctuation, emoji, lone surrogates) parts words.
"""

import functools
import re
import unicodedata

import numpy as np

from xlj.text import word_loops

_POINTS = 0x110000
# Zero-width non-joiner and joiner: they shape letters on both sides of them.
_JOINERS = "\u200c\u200d"
# Blocks of scripts without spaces between words.
_UNSPACED = (
  (0x0E00, 0x0EFF),  # Thai, Lao
  (0x1000, 0x109F),  # Myanmar
  (0x1780, 0x17FF),  # Khmer
  (0x1950, 0x19DF),  # Tai Le, New Tai Lue
  (0x1A20, 0x1AAF),  # Tai Tham
  (0x2E80, 0x312F),  # Han radicals and signs, hiragana, katakana, bopomofo
  (0x31A0, 0x31FF),  # bopomofo, strokes, katakana
  (0x3400, 0x4DBF),  # Han
  (0x4E00, 0x9FFF),  # Han
  (0xA9E0, 0xA9FF),  # Myanmar
  (0xAA60, 0xAA7F),  # Myanmar
  (0xF900, 0xFAFF),  # Han
  (0xFF66, 0xFF9F),  # katakana of half width
  (0x1B000, 0x1B16F),  # kana
  (0x20000, 0x3FFFF),  # Han
)


@functools.cache
def kinds() -> np.ndarray:
  """uint8 [0x110000]: what each code point is to words, see `word_loops`."""
  out = np.zeros(_POINTS, np.uint8)
  for point in range(_POINTS):
    character = chr(point)
    if character.isalnum() or character == "_":
      out[point] = word_loops.LETTER
    elif unicodedata.category(character)[0] == "M" or character in _JOINERS:
      out[point] = word_loops.MARK
  for first, last in _UNSPACED:
    for point in range(first, last + 1):
      # Numbers have more than one digit.
      if chr(point).isalpha() or chr(point) == "〇":
        out[point] = word_loops.ALONE
  out.setflags(write=False)
  return out


def prepare(text: str, lowercase: bool) -> str:
  """A text as its words are looked up: lower case if asked for, then NFC.

  NFC sorts the marks of a letter, in the square of their number: after each 30
  of them comes a joiner of graphemes, as in the Stream-Safe Text Format of
  Unicode (UAX #15).
  """
  if lowercase:
    text = text.lower()
  if unicodedata.is_normalized("NFC", text):  # linear: in order, or known not
    return text
  text = _many_marks().sub("\\g<0>\u034f", text)
  return unicodedata.normalize("NFC", text)


@functools.cache
def _many_marks() -> re.Pattern[str]:
  marks = np.flatnonzero(kinds() == word_loops.MARK)
  return re.compile(f"[{''.join(map(chr, marks))}]{{30}}")
