"""Embeddings of another model, in .npy, to the best labels of each.

python examples/embeddings.py                     # generated: 3,000 labels
python examples/embeddings.py X.npy Y.npy NEW.npy

X holds the embeddings `[N, F]` of the training rows, Y `[N]` the label id of
each, NEW those of the rows to answer, whose labels and scores `[n, 5]` are
written beside the run. For dense features and more than 2,048 labels a map of
the embeddings is trained, with a unit row for each label. Very many labels are
searched by an index: see launch/export.py --index.
"""

from pathlib import Path
import sys
import tempfile

import numpy as np

import xlj


def generate() -> tuple[np.ndarray, np.ndarray]:
  """Embeddings `[N, 64]` around a centre for each label; some say little."""
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(np.arange(3000), 4))
  noise = rng.normal(size=(len(labels), 64)) * np.linspace(0, 2, 64)
  x = rng.normal(size=(3000, 64))[labels] + noise
  return x.astype(np.float32), labels


def main() -> None:
  """Trains, and answers."""
  workdir = Path(tempfile.mkdtemp())
  true = None
  if len(sys.argv) > 1:
    x, labels, new = (np.load(path) for path in sys.argv[1:])
  else:
    x, labels = generate()
    new, true, x, labels = x[:1000], labels[:1000], x[1000:], labels[1000:]
  run = xlj.train("xmc", x, labels, workdir=workdir)

  scores, ids = run.topk(new, k=5)
  answers = workdir / "answers.npz"
  np.savez(answers, scores=scores, ids=ids)
  print(f"the best labels of the first row: {ids[0]}; all are in {answers}")
  if true is not None:
    print(f"P@1 of {len(new)} new rows: {np.mean(ids[:, 0] == true):.3f}")


if __name__ == "__main__":
  main()
