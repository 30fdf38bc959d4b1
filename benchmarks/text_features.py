"""Texts to features: rows a second beside scikit-learn, on the same texts.

Generates texts (or takes the lines of a file), and counts their words with xlj
and with scikit-learn's `CountVectorizer`, and weighs the counts as its
`TfidfVectorizer` does: fitted on all rows, which are then transformed. Both use
one thread, so that seconds are those of the processor. The two take turns in
one process, after a small turn that compiles; medians count. The results have
to be equal. The last row has what encoders read, tokens in order of byte pairs
learned before, beside counts of words by a vectorizer fitted before.

  python benchmarks/text_features.py --rows=50000 --json=out.json
  python benchmarks/text_features.py --texts=FILE
"""

import argparse
import json
import pathlib
import re
import statistics as python_statistics
import time
from typing import Any

import numpy as np
import one_vs_all
import scipy.sparse
from sklearn.feature_extraction import text as sklearn_text
from sklearn.pipeline import make_union

from xlj.data import statistics as statistics_lib
from xlj.data import weighting as weighting_lib
from xlj.text import tokens as tokens_lib
from xlj.text import words as words_lib

NUM_WORDS = 50_000
_LEARNED = 20_000  # texts that tokens are learned from
SETTINGS = {
  "single words": words_lib.Options(ngrams=(1, 1), char_ngrams=(0, 0)),
  "words and pairs": words_lib.Options(ngrams=(1, 2), char_ngrams=(0, 0)),
  "the default": words_lib.Options(),
}
COLUMNS = [
  ["", None],
  ["features", "{:,}"],
  ["xlj, rows/s", "{:,.0f}"],
  ["scikit-learn, rows/s", "{:,.0f}"],
  ["ratio", "{:.1f}"],
]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--rows", type=int, default=50_000)
  parser.add_argument("--texts", type=pathlib.Path, help="a file of lines")
  parser.add_argument("--turns", type=int, default=3)
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  command = "python benchmarks/text_features.py"
  if options.texts:
    texts = options.texts.read_text().splitlines()
    command += f" --texts={options.texts.name}"
  else:
    texts = generate(options.rows)
    command += f" --rows={options.rows}"
  origin = one_vs_all.origin_of(command) | {"seeds": "one, of the texts"}
  rows = compare(texts, options.turns)
  for row in rows:
    shown = [
      show.format(cell) if show else cell
      for cell, (_, show) in zip(row["cells"], COLUMNS)
    ]
    print(": ".join(shown[:1] + [", ".join(shown[1:])]))
  record = {"origin": origin, "columns": COLUMNS, "rows": rows}
  if options.json:
    options.json.write_text(json.dumps(record, indent=1) + "\n")
  print(json.dumps({row["cells"][0]: row["cells"][-1] for row in rows}))


def generate(rows: int) -> list[str]:
  """Texts of 5 to 60 words, of which few are frequent, with punctuation."""
  rng = np.random.default_rng(0)
  letters = np.array(list("etaoinshrdlcumwfgypbvk"))
  names = np.array(
    [
      "".join(rng.choice(letters, rng.integers(2, 11)))
      for _ in range(NUM_WORDS)
    ]
  )
  lengths = rng.integers(5, 61, rows)
  drawn = rng.zipf(1.3, lengths.sum()) % NUM_WORDS
  pieces = np.split(names[drawn], np.cumsum(lengths)[:-1])
  return [", ".join(" ".join(p).capitalize().split(" e")) for p in pieces]


def compare(texts: list[str], turns: int) -> list[dict[str, Any]]:
  rows = []
  for name, options in SETTINGS.items():
    for weighted in (False, True):
      rows.append(time_both(name, options, weighted, texts, turns))
  return [*rows, time_tokens(texts, turns)]


def time_both(
  name: str,
  options: words_lib.Options,
  weighted: bool,
  texts: list[str],
  turns: int,
) -> dict[str, Any]:
  found, speed = in_turns(
    {
      "xlj": lambda texts: with_xlj(texts, options, weighted),
      "scikit-learn": lambda texts: with_scikit_learn(texts, options, weighted),
    },
    *(texts, turns),
  )
  check_equal(found["xlj"], found["scikit-learn"])
  what = f"{name}, {'tf-idf' if weighted else 'counts'}"
  return row_of(what, found["xlj"].shape[1], speed)


def time_tokens(texts: list[str], turns: int) -> dict[str, Any]:
  tokens = tokens_lib.Tokens.train(texts[:_LEARNED], size=16_384)
  words = sklearn_text.CountVectorizer(token_pattern=r"\b\w+\b").fit(texts)
  systems = {"xlj": tokens, "scikit-learn": words.transform}
  _, speed = in_turns(systems, texts, turns)
  return row_of("tokens in order", tokens.num_features, speed)


def row_of(what: str, width: int, speed: dict[str, float]) -> dict[str, Any]:
  ratio = speed["xlj"] / speed["scikit-learn"]
  return {"cells": [what, width, *speed.values(), ratio]}


def in_turns(
  systems: dict[str, Any], texts: list[str], turns: int
) -> tuple[dict[str, Any], dict[str, float]]:
  """What systems make of the texts, and how many of them in a second."""
  seconds: dict[str, list[float]] = {system: [] for system in systems}
  found = {}
  for system in systems:
    systems[system](texts[:1000])
  for _ in range(turns):
    for system, features in systems.items():
      start = time.process_time()
      found[system] = features(texts)
      seconds[system].append(time.process_time() - start)
  speed = {
    system: len(texts) / python_statistics.median(times)
    for system, times in seconds.items()
  }
  return found, speed


def with_xlj(
  texts: list[str], options: words_lib.Options, weighted: bool
) -> scipy.sparse.sparray:
  counts = words_lib.fit(texts, options)(texts)
  if not weighted:
    return counts.to_scipy()
  statistics = statistics_lib.Statistics(
    num_rows=counts.num_rows,
    label_counts=None,
    document_frequency=statistics_lib.column_counts(counts),
    feature_kind="counts",
  )
  weighting = weighting_lib.fit("tfidf", statistics, smooth=True)
  return weighting(counts).to_scipy()


def with_scikit_learn(
  texts: list[str], options: words_lib.Options, weighted: bool
) -> scipy.sparse.sparray:
  """Its vectorizers' counts, or weights of their union's terms."""
  made: list[Any] = [
    sklearn_text.CountVectorizer(
      token_pattern=r"\b\w+\b", ngram_range=options.ngrams, dtype=np.float32
    )
  ]
  if options.char_ngrams[1]:
    made.append(
      sklearn_text.CountVectorizer(
        # By itself it takes what is between spaces, punctuation too.
        preprocessor=lambda text: " ".join(re.findall(r"\w+", text.lower())),
        analyzer="char_wb",
        ngram_range=options.char_ngrams,
        dtype=np.float32,
      )
    )
  counts = made[0] if len(made) == 1 else make_union(*made)
  found = counts.fit_transform(texts)
  if weighted:
    found = sklearn_text.TfidfTransformer().fit_transform(found)
  return scipy.sparse.csr_array(found)


def check_equal(ours: Any, peers: Any) -> None:
  if ours.shape != peers.shape or abs(ours - peers).max() > 1e-5:
    raise AssertionError(f"The features differ: {ours.shape}, {peers.shape}")


if __name__ == "__main__":
  main()
