"""Labels that are added to a model while it answers.

python examples/new_labels.py                        # generated notes
python examples/new_labels.py FILE.jsonl NEW.jsonl   # {"text", "labels"}

A model answers from a directory that a link, CURRENT, leads to. Examples of
labels that it has never seen become rows of a new model, without training. The
link is turned, and the new model is loaded and warmed up beside the old one,
which answers until then. A server does the last step when it is told to, by
`POST /models/NAME/reload` or SIGHUP: see docs/serving.md.
"""

import json
from pathlib import Path
import random
import sys
import tempfile
from typing import Any

import numpy as np

import xlj
from xlj.export import export
from xlj.labels import append
from xlj.labels import files
from xlj.labels import runs

TOPICS = {
  "cooking": "boil pan recipe oven salt dough butter slice",
  "travel": "train ticket hotel border map luggage coast ferry",
  "music": "chord drum melody concert choir violin record tempo",
  "garden": "soil seed prune hedge bloom compost weed shade",
  "health": "sleep doctor vitamin fever pulse muscle rest diet",
}


def generate(path: Path, labels: list[str], num_rows: int) -> Path:
  """Writes notes, each on one topic with a word of any other."""
  rng = random.Random(0)
  every = " ".join(TOPICS.values()).split()
  with path.open("w") as file:
    for i in range(num_rows):
      label = labels[i % len(labels)]
      words = rng.sample(TOPICS[label].split(), 4) + rng.sample(every, 1)
      row = {"text": " ".join(words), "labels": [label]}
      file.write(json.dumps(row) + "\n")
  return path


def read(path: Path) -> tuple[list[str], list[list[str]]]:
  """Texts, and the labels of each."""
  rows = [json.loads(line) for line in path.open()]
  return [row["text"] for row in rows], [row["labels"] for row in rows]


def turn(link: Path, target: Path) -> None:
  """Lets a link lead elsewhere, at once."""
  made = link.with_name("NEXT")
  made.symlink_to(target)
  made.replace(link)


def score(model: Any, texts: list[str], labels: list[list[str]]) -> float:
  """P@1 of what a model answers."""
  names = model.names(model.topk(texts, k=1)[1])
  return float(np.mean([name in true for (name,), true in zip(names, labels)]))


def main() -> None:
  """Trains, appends labels, and replaces the model that answers."""
  work = Path(tempfile.mkdtemp())
  if len(sys.argv) > 1:
    old, new = map(Path, sys.argv[1:])
  else:
    old = generate(work / "old.jsonl", [*TOPICS][:-1], 400)
    new = generate(work / "new.jsonl", [*TOPICS][-1:], 40)
  texts, labels = read(new)

  xlj.train("text", *read(old), workdir=work / "run")
  export.export(work / "run", work / "model")
  turn(work / "CURRENT", work / "model")
  answers = xlj.load(work / "CURRENT")
  print(f"P@1 of new labels before: {score(answers, texts, labels):.3f}")

  run = runs.load(work / "run")
  run = append.append(run, files.read_examples(new, run))
  runs.save(run, work / "longer")
  export.export(work / "longer", work / "longer_model")
  turn(work / "CURRENT", work / "longer_model")

  loaded = xlj.load(work / "CURRENT")
  loaded.warm_up()
  answers = loaded  # until here the old one has answered
  print(f"P@1 of new labels after: {score(answers, texts, labels):.3f}")
  print(f"P@1 of all others: {score(answers, *read(old)):.3f}")


if __name__ == "__main__":
  main()
