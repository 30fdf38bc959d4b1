"""Words: scikit-learn's counts and weights, any text, saved and read again."""

import dataclasses
import functools
import io
import re
import unicodedata

import numpy as np
import pytest
from sklearn.feature_extraction import text as sklearn_text

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import statistics as statistics_lib
from xlj.data import weighting as weighting_lib
from xlj.text import words as words_lib

TEXTS = [
  "The draw of air into, and out of, THE lungs; the lungs' air",
  "an entity_2 that has 3.5 lungs, and a shadow",
  "",
  "Ein Ärgernis: STRASSE, Straße, ÅNGSTRÖM, ångstro\u0308m",
  "ΟΔΟΣ Σίσυφος σ ΑΣ Σ., ǅ ﬁn ½ x²",
  "Мама мыла раму. Раму мыла мама",
  "كتاب الكتاب، كتاب ١٢٣",
  "שלום, עולם! שלום",
  "한국어 문장은 띄어 쓴다 한국어",
  "a a a b a b, the the",
  "mail@host.org https://x.y/z?q=1 C++ don't re-do",
]
MARKED = [
  "हिन्दी में लिखा हुआ वाक्य, हिन्दी",  # vowel signs are marks
  "தமிழ் மொழி தமிழ்",
  "می‌خواهم کتاب",  # a joiner in a word
  "x\u0323\u0307 e\u0301 \u0301 \u0301a",  # no letter is x with two dots
  "我们 在北京abc东西。北京2026年",
  "今日はカタカナです。",
  "ภาษาไทยที่ดี",  # a tone mark after its letter
  "İstanbul, istanbul",  # lower case has a dot as a mark
  "👍🏽 ok ❤️ 👩‍👩‍👧 ok",
]
# Without characters, unless a test has them.
options_of = functools.partial(
  words_lib.Options, ngrams=(1, 1), char_ngrams=(0, 0)
)
_UNSPACED = "[\u0e01-\u0e30\u0e32-\u0e46\u3041-\u30ff\u4e00-\u9fff]"


def tokens(text):
  """Our rule of words, as regular expressions say it."""
  marks = "".join(
    re.escape(c)
    for c in set(text)
    if unicodedata.category(c)[0] == "M" or c in "\u200c\u200d"
  )
  marks = f"[{marks}]" if marks else "(?!)"
  word = rf"(?:(?!{_UNSPACED})\w)"
  return re.findall(rf"{_UNSPACED}{marks}*|{word}(?:{word}|{marks})*", text)


def nfc(text):
  return unicodedata.normalize("NFC", text)


def counted(words, texts):
  """What a featurizer says, as names and counts of each text."""
  names = words.feature_names()
  found = words(texts)
  found.validate()
  rows = np.split(np.arange(found.nnz), found.indptr[1:-1])
  return [
    {names[found.indices[e]]: found.values[e] for e in row} for row in rows
  ]


@pytest.mark.parametrize(
  "options, peers",
  [
    ({}, {}),
    ({"lowercase": False}, {"lowercase": False}),
    ({"ngrams": (1, 3), "min_df": 2}, {"ngram_range": (1, 3), "min_df": 2}),
    ({"ngrams": (2, 2), "max_df": 0.2}, {"ngram_range": (2, 2), "max_df": 0.2}),
    ({"max_features": 3}, {"max_features": 3}),
  ],
)
def test_counts_are_those_of_scikit_learn(options, peers):
  words = words_lib.fit(TEXTS, options_of(**options))
  peer = sklearn_text.CountVectorizer(
    token_pattern=r"\b\w+\b", strip_accents=nfc, **peers
  )
  expected = peer.fit_transform(TEXTS)
  found = words(TEXTS)
  found.validate()
  assert words.feature_names() == list(peer.get_feature_names_out())
  assert words.num_features == found.num_columns == expected.shape[1]
  np.testing.assert_array_equal(found.to_scipy().toarray(), expected.toarray())
  other = ["the lungs of a mama", "unknown"]
  np.testing.assert_array_equal(
    words(other).to_scipy().toarray(), peer.transform(other).toarray()
  )


@pytest.mark.parametrize("lengths", [(1, 1), (2, 4), (3, 3), (6, 9)])
def test_characters_are_those_of_scikit_learn(lengths):
  texts = TEXTS + MARKED
  options = options_of(ngrams=(1, 2), char_ngrams=lengths)
  words = words_lib.fit(texts, options)
  of_words = sklearn_text.CountVectorizer(
    tokenizer=tokens, token_pattern=None, strip_accents=nfc, ngram_range=(1, 2)
  )
  of_chars = sklearn_text.CountVectorizer(
    preprocessor=lambda text: " ".join(tokens(nfc(text.lower()))),
    analyzer="char_wb",
    ngram_range=lengths,
  )
  expected = [p.fit_transform(texts).toarray() for p in (of_words, of_chars)]
  names = list(of_words.get_feature_names_out())
  names += [f"~{name}" for name in of_chars.get_feature_names_out()]
  assert words.feature_names() == names
  np.testing.assert_array_equal(
    words(texts).to_scipy().toarray(), np.concatenate(expected, 1)
  )


def test_weights_are_those_of_scikit_learn():
  words = words_lib.fit(TEXTS, options_of())
  counts = words(TEXTS)
  statistics = statistics_lib.Statistics(
    num_rows=len(TEXTS),
    label_counts=None,
    document_frequency=statistics_lib.column_counts(counts),
    feature_kind=statistics_lib.feature_kind(counts),
  )
  weighting = weighting_lib.fit("tfidf", statistics, smooth=True)
  peer = sklearn_text.TfidfVectorizer(
    token_pattern=r"\b\w+\b", strip_accents=nfc
  )
  expected = peer.fit_transform(TEXTS).toarray()
  found = weighting(counts).to_scipy().toarray()
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_words_of_scripts():
  words = words_lib.fit(MARKED, options_of())
  assert counted(words, [MARKED[0]]) == [
    {"हिन्दी": 2, "में": 1, "लिखा": 1, "हुआ": 1, "वाक्य": 1}
  ]
  assert counted(words, ["me\u0301 e\u0301 é", "北京!", "ที่", "👍🏽 ok"]) == [
    {"é": 2}, {"北": 1, "京": 1, "北 京": 1}, {"ที่": 1}, {"ok": 1}
  ]  # fmt: skip


def test_hashed_terms_fall_into_buckets():
  texts = TEXTS + MARKED
  whole = options_of(ngrams=(1, 2), char_ngrams=(2, 3))
  named = words_lib.fit(texts, whole)(texts).to_scipy()
  options = dataclasses.replace(whole, hashed=2**30)
  hashed = words_lib.fit(iter([]), options)
  assert hashed.num_features == 2**30
  found = hashed(texts)
  found.validate()
  # So many that no two terms share one: the columns in another order.
  _, place = np.unique(found.indices, return_inverse=True)
  assert place.max() + 1 == named.shape[1]
  sums = np.bincount(place, found.values)
  np.testing.assert_array_equal(np.sort(sums), np.sort(named.sum(0)))
  few = words_lib.fit(
    [], options_of(ngrams=(1, 2), char_ngrams=(2, 3), hashed=5)
  )
  found = few(texts)
  found.validate()
  np.testing.assert_array_equal(found.to_scipy().sum(1), named.sum(1))


def hash_of(name, basis):
  mask = 2**64 - 1
  for character in name:
    basis = (basis ^ ord(character)) * 0x100000001B3 & mask
  for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
    basis = (basis ^ basis >> 33) * factor & mask
  return basis ^ basis >> 33


def test_buckets_are_the_same_everywhere():
  buckets = 10**9 + 7
  words = words_lib.fit(
    [], options_of(ngrams=(1, 2), char_ngrams=(2, 2), hashed=buckets)
  )
  expected = [hash_of(name, 0xCBF29CE484222325) for name in ("né", "x", "né x")]
  for name in (" n", "né", "é ", " x", "x "):
    expected.append(hash_of(name, 0xAF63BD4C8601B7DF))
  found = words(["Né, X"])
  assert found.indices.tolist() == sorted(h % buckets for h in expected)
  with pytest.raises(ValueError, match="are buckets of terms"):
    words.feature_names()


ODD = {
  "empty": "",
  "null": "a\0b",
  "lone surrogates": "a\ud800b \udfff",
  "only marks": "\u0301\u200d\ufe0f",
  "last code point": "\U0010ffff x",
  "white space": "\u2028a\u3000b\x85\t",
  "right to left": "\u202eabc\u202c שלום",
}


def test_odd_texts():
  words = words_lib.fit(ODD.values(), options_of())
  assert counted(words, list(ODD.values())) == [
    {}, {"a": 1, "b": 1}, {"a": 1, "b": 1}, {}, {"x": 1}, {"a": 1, "b": 1},
    {"abc": 1, "שלום": 1},
  ]  # fmt: skip
  assert words([]).shape == (0, words.num_features)
  with pytest.raises(TypeError, match="one str; give a list"):
    words("a text")


def test_marks_without_end():
  marks = "\u0301\u0323"
  words = words_lib.fit(["o" + marks, "o" + marks * 10**5], options_of())
  first, second = sorted(words.feature_names(), key=len)
  assert first == "ọ\u0301"
  assert second.count("\u034f") == 2 * 10**5 // 30


def test_long_texts():
  size = 2 * 10**6
  texts = ["word " * size, "w" * size, "é" * size, "中" * size]
  words = words_lib.fit(texts, options_of(ngrams=(1, 2)))
  found = words([*texts, "a"])
  assert found.row_lengths.tolist() == [2, 1, 1, 2, 0]
  assert found.values.tolist()[:2] == [size, size - 1]
  assert words(["w" * size + "w", "w" * size]).nnz == 1


def test_neither_blocks_nor_order_matter(monkeypatch):
  rng = np.random.default_rng(0)
  texts = [
    " ".join(f"w{n}" for n in rng.geometric(0.01, rng.integers(40)))
    for _ in range(3000)
  ]
  options = options_of(
    ngrams=(1, 2), char_ngrams=(3, 3), min_df=2, max_features=3000
  )
  words = words_lib.fit(texts, options)
  whole = words(texts)
  monkeypatch.setattr(words_lib, "_BLOCK_TEXTS", 7)
  monkeypatch.setattr(words_lib, "_START", 1)  # room for one term at first
  for given in (iter(texts), texts[::-1], np.array(texts)):
    assert words_lib.fit(given, options).fingerprint() == words.fingerprint()
  found = csr_lib.concatenate([words(texts[:1]), words(texts[1:])])
  for name in ("indptr", "indices", "values"):
    np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


@pytest.mark.parametrize(
  "options",
  [
    options_of(ngrams=(1, 2), char_ngrams=(2, 3)),
    options_of(hashed=100, lowercase=False),
  ],
)
def test_saved_words_count_alike(options, tmp_path):
  texts = TEXTS + MARKED
  words = words_lib.fit(texts, options)
  words.save(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == [words_lib.FILE]
  loaded = words_lib.Words.load(tmp_path)
  assert loaded.options == options
  assert loaded.num_features == words.num_features
  assert loaded.fingerprint() == words.fingerprint()
  expected, found = words(texts), loaded(texts)
  for name in ("indptr", "indices", "values"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  if not options.hashed:
    assert loaded.feature_names() == words.feature_names()


def test_letters_are_those_of_the_python_that_fitted(tmp_path, monkeypatch):
  words = words_lib.fit(["a-b"], options_of())
  words.save(tmp_path)
  kinds = words_lib.characters.kinds().copy()
  kinds[ord("-")] = kinds[ord("a")]
  monkeypatch.setattr(words_lib.characters, "kinds", lambda: kinds)
  assert words_lib.fit(["a-b"], options_of()).feature_names() == ["a-b"]
  assert words_lib.Words.load(tmp_path)(["a-b"]).nnz == 2


def test_fingerprints_differ():
  made = [
    words_lib.fit(["a b", "b"], options_of()),
    words_lib.fit(["a b", "c"], options_of()),
    words_lib.fit(["ab b"], options_of()),
    words_lib.fit(["a b"], options_of(lowercase=False)),
    words_lib.fit([], options_of(hashed=2)),
    words_lib.fit([], options_of(hashed=3)),
  ]
  assert len({words.fingerprint() for words in made}) == len(made)


def test_damaged_files_are_refused(tmp_path):
  words = words_lib.fit(TEXTS, options_of())
  words.save(tmp_path)
  path = tmp_path / words_lib.FILE
  good = path.read_bytes()
  for bad in (b"", good[:1000], good[:-1], good[:900] + b"?" + good[901:]):
    path.write_bytes(bad)
    with pytest.raises(errors.DataError, match=r"words\.npz: found a damaged"):
      words_lib.Words.load(tmp_path)
  with np.load(io.BytesIO(good)) as arrays:
    kept = dict(arrays)
  for name, value, message in (
    ("version", np.array(2), "found version 2, expected 1; use a newer xlj"),
    ("lengths", kept["lengths"][1:], "damaged"),
    ("kinds", kept["kinds"][1:], "damaged"),
    ("options", np.frombuffer(b'{"x": 1}', np.uint8), "damaged"),
  ):
    np.savez(path, **kept | {name: value})
    with pytest.raises(errors.DataError, match=message):
      words_lib.Words.load(tmp_path)
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"words\.npz"):
    words_lib.Words.load(tmp_path)


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"ngrams": (2, 1)}, r"ngrams is \(2, 1\); give the lowest"),
    ({"ngrams": (0, 2)}, r"ngrams is \(0, 2\)"),
    ({"char_ngrams": (-1, 2)}, "char_ngrams is"),
    ({"ngrams": (0, 0)}, "ngrams and char_ngrams are both none"),
    ({"min_df": 0}, "min_df is 0; it must be at least 1"),
    ({"max_df": 0.0}, r"max_df is 0.0; give a share in \(0, 1\]"),
    ({"max_df": 2.0}, r"max_df is 2.0; give a share in \(0, 1\]"),
    ({"max_features": -1}, "max_features is -1; give 0 to 2147483647"),
    ({"hashed": 2**31}, "hashed is 2147483648; give 0 to 2147483647"),
    ({"hashed": 9, "min_df": 2}, "hashed is 9, .*: leave min_df at 1"),
  ],
)
def test_options_that_cannot_be(fields, message):
  with pytest.raises(ValueError, match=message):
    options_of(**fields)


def test_no_term_is_left():
  message = r"No term is left of 3 in 2 texts; lower min_df \(9\) or"
  with pytest.raises(ValueError, match=message):
    words_lib.fit(["a b", "c"], options_of(min_df=9))
  with pytest.raises(ValueError, match="No term is left of 0 in 0 texts"):
    words_lib.fit([], options_of())
