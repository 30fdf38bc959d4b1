"""Texts with labels to a model that answers.

python examples/texts.py               # generated notes
python examples/texts.py FILE.jsonl    # {"text": "...", "labels": ["a", "b"]}

A fifth of the rows is kept to see what the model makes of texts that are new to
it. From a shell the same is `--config=configs/text.py`; see docs/text.md.
"""

import json
from pathlib import Path
import random
import sys
import tempfile

import numpy as np

import xlj

TOPICS = {
  "cooking": "boil pan recipe oven salt dough butter slice",
  "travel": "train ticket hotel border map luggage coast ferry",
  "music": "chord drum melody concert choir violin record tempo",
  "garden": "soil seed prune hedge bloom compost weed shade",
  "money": "loan budget invoice tax rent savings bank price",
  "health": "sleep doctor vitamin fever pulse muscle rest diet",
}


def generate(num_rows: int = 400) -> list[dict]:
  """Notes on a topic or two, each with a word or two of any others."""
  rng = random.Random(0)
  every = " ".join(TOPICS.values()).split()
  rows = []
  for _ in range(num_rows):
    labels = rng.sample([*TOPICS], rng.choice([1, 1, 2]))
    words = [w for name in labels for w in rng.sample(TOPICS[name].split(), 3)]
    words += rng.sample(every, 2)
    rng.shuffle(words)
    rows.append({"text": " ".join(words), "labels": labels})
  return rows


def main() -> None:
  """Trains on four fifths of the rows, and answers the others."""
  if len(sys.argv) > 1:
    rows = [json.loads(line) for line in Path(sys.argv[1]).open()]
  else:
    rows = generate()
  random.Random(1).shuffle(rows)
  texts, labels = ([row[key] for row in rows] for key in ("text", "labels"))
  count = len(rows) // 5
  workdir = tempfile.mkdtemp()
  run = xlj.train("text", texts[count:], labels[count:], workdir=workdir)

  scores, ids = run.topk(texts[:count], k=3)
  names = run.names(ids)
  for i in range(3):
    answers = ", ".join(f"{n} {s:.2f}" for n, s in zip(names[i], scores[i]))
    print(f"{texts[i]!r} has {labels[i]}: {answers}")
  right = np.mean([best[0] in true for best, true in zip(names, labels)])
  print(f"P@1 of {count} new texts: {right:.3f}; the run is in {workdir}")


if __name__ == "__main__":
  main()
