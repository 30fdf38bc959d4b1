"""Loops over code points, words and n-grams, compiled for CPUs.

The words of all texts lie in one array, a space before the first and one after
each. So an n-gram of words, or of characters in a word with the space at its
ends, is a piece of that array.

Legend: R texts, n code points, W words, E n-grams, V terms (known n-grams).
"""

import numpy as np

from xlj import processors

# Kinds of code points.
OTHER, LETTER, ALONE, MARK = range(4)
_SPACE = np.uint32(32)

# 64-bit FNV-1a (Fowler, Noll, Vo) over code points in the place of bytes, and
# then the finalizer of MurmurHash3 (Appleby), as its low bits alone are weak.
_PRIME = np.uint64(0x100000001B3)
_OF_WORDS = np.uint64(0xCBF29CE484222325)
_OF_CHARACTERS = np.uint64(0xAF63BD4C8601B7DF)
_SHIFT, _ONE = np.uint64(33), np.uint64(1)
_MIX_1 = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)


@processors.compiled
def split(points, starts, kinds, out, begins, rows):
  """Writes the words of texts, and returns how much: code points and words.

  Args:
    points: uint32 [n], code points of all texts.
    starts: int64 [R + 1], where each text begins.
    kinds: uint8 [0x110000], kind of each code point.
    out: uint32 [2 n + 1], gets the words.
    begins: int64 [n + 1], gets where each word begins, and the end.
    rows: int64 [R + 1], gets the first word of each text, and W.
  """
  out[0] = _SPACE
  at, num = 1, 0
  for row in range(len(starts) - 1):
    rows[row] = num
    inside = OTHER  # what the word is made of, if there is one
    for i in range(starts[row], starts[row + 1] + 1):
      kind = OTHER  # also what is after the end
      if i < starts[row + 1]:
        kind = kinds[points[i]]
      if kind == MARK and inside == OTHER:
        continue
      if kind != MARK:
        if inside != OTHER and (kind != LETTER or inside != LETTER):
          out[at] = _SPACE
          at += 1
          inside = OTHER
        if kind == OTHER:
          continue
        if inside == OTHER:
          begins[num] = at
          num += 1
        inside = kind
      out[at] = points[i]
      at += 1
  rows[-1] = num
  begins[num] = at
  return at, num


@processors.compiled
def list_ngrams(
  points, begins, rows, kinds, words, chars, first, last, hashes, ends
):
  """Lists the n-grams of each text, and returns how many there are.

  Two words that stand alone by script, one after the other, are an n-gram too
  where single words are.

  Args:
    points: uint32 [n], words as `split` writes them.
    begins: int64 [W + 1].
    rows: int64 [R + 1].
    kinds: uint8 [0x110000], as for `split`.
    words: lengths of n-grams of words, lowest and highest; 0 for none.
    chars: lengths of n-grams of characters; a shorter word is one n-gram.
    first: int64 [E], gets where each n-gram begins.
    last: int64 [E], gets where it ends.
    hashes: uint64 [E], gets its hash.
    ends: int64 [R + 1], gets 0 and where the n-grams of each text end.
  """
  e = 0
  ends[0] = 0
  for row in range(len(rows) - 1):
    stop = rows[row + 1]
    for word in range(rows[row], stop):
      # All that begin here are the beginning of the longest.
      hashed, at = _OF_WORDS, begins[word]
      high = words[1]
      if high == 1 and word + 1 < stop:
        pair = points[begins[word]], points[begins[word + 1]]
        if kinds[pair[0]] == ALONE and kinds[pair[1]] == ALONE:
          high = 2
      for other in range(word, min(word + high, stop)):
        end = begins[other + 1] - 1
        while at < end:
          hashed = (hashed ^ np.uint64(points[at])) * _PRIME
          at += 1
        if other - word + 1 >= words[0]:
          first[e], last[e], hashes[e] = begins[word], end, _mixed(hashed)
          e += 1
      if chars[1] == 0:
        continue
      end = begins[word + 1]
      low = min(chars[0], end - begins[word] + 1)
      for begin in range(begins[word] - 1, end - low + 1):
        hashed = _OF_CHARACTERS
        for at in range(begin, min(begin + chars[1], end)):
          hashed = (hashed ^ np.uint64(points[at])) * _PRIME
          if at - begin + 1 >= low:
            first[e], last[e], hashes[e] = begin, at + 1, _mixed(hashed)
            e += 1
    ends[row + 1] = e
  return e


@processors.compiled
def hash_terms(points, starts, num_words, hashes):
  """Writes the hash of each term, of which the first are n-grams of words."""
  for term in range(len(hashes)):
    hashed = _OF_WORDS if term < num_words else _OF_CHARACTERS
    for at in range(starts[term], starts[term + 1]):
      hashed = (hashed ^ np.uint64(points[at])) * _PRIME
    hashes[term] = _mixed(hashed)


@processors.compiled
def _mixed(hashed):
  hashed = (hashed ^ (hashed >> _SHIFT)) * _MIX_1
  hashed = (hashed ^ (hashed >> _SHIFT)) * _MIX_2
  return hashed ^ (hashed >> _SHIFT)


@processors.compiled
def enter(hashes, num, slots):
  """Enters terms, known to differ, into an empty open-addressing table."""
  mask = np.uint64(len(slots) - 1)
  for term in range(num):
    slot = hashes[term] & mask
    while slots[slot] >= 0:
      slot = (slot + _ONE) & mask
    slots[slot] = term


@processors.compiled
def look_up(
  points, first, last, hashes, begin, slots, terms, starts, known, num, add, ids
):
  """Finds the terms of n-grams from `begin` on; returns where it stopped.

  Args:
    points: uint32 [n], the words.
    first: int64 [E], where an n-gram begins.
    last: int64 [E], where it ends.
    hashes: uint64 [E], its hash.
    begin: the first n-gram to look up.
    slots: int32, a power of two of them: a term, or -1 for none.
    terms: uint32, code points of the terms.
    starts: int64 [V + 1], where each term begins.
    known: uint64 [V], its hash.
    num: how many terms there are.
    add: whether an unknown n-gram becomes a term; where there is no room for
      it, the loop stops before it.
    ids: int32 [E], gets the term of each n-gram, -1 for unknown.

  Returns:
    The n-gram that it stopped before, and how many terms there are now.
  """
  mask = np.uint64(len(slots) - 1)
  for e in range(begin, len(ids)):
    slot = hashes[e] & mask
    length = last[e] - first[e]
    found = -1
    while slots[slot] >= 0:
      term = slots[slot]
      if known[term] == hashes[e] and starts[term + 1] - starts[term] == length:
        found = term
        for i in range(length):
          if terms[starts[term] + i] != points[first[e] + i]:
            found = -1
            break
        if found >= 0:
          break
      slot = (slot + _ONE) & mask
    if found < 0 and add:
      end = starts[num] + length
      if num == len(known) or 2 * num >= len(slots) or end > len(terms):
        return e, num
      for i in range(length):
        terms[starts[num] + i] = points[first[e] + i]
      starts[num + 1], known[num], slots[slot] = end, hashes[e], num
      found = num
      num += 1
    ids[e] = found
  return len(ids), num


@processors.compiled
def count(ids, ends, counts, indptr):
  """Counts the ids of each text, in place; those below 0 are left out.

  Args:
    ids: int32 [E]; gets the ids that a text has, in ascending order.
    ends: int64 [R + 1], where the ids of each text begin and end.
    counts: float32 [E], gets how often the text has each.
    indptr: int64 [R + 1], gets where those of each text begin and end now.
  """
  at = 0
  indptr[0] = 0
  for row in range(len(ends) - 1):
    ids[ends[row] : ends[row + 1]].sort()
    for e in range(ends[row], ends[row + 1]):
      if ids[e] < 0:
        continue
      if at > indptr[row] and ids[at - 1] == ids[e]:
        counts[at - 1] += 1
      else:
        ids[at] = ids[e]
        counts[at] = 1
        at += 1
    indptr[row + 1] = at
