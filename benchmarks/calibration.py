"""How far probabilities of labels can be relied on, on rows of the test split.

Calibrates runs on the rows that `data.validation` held out, and measures on the
test rows, of which neither training nor calibrating has seen any: the expected
calibration error (ECE, 15 bins of as many labels each) of scores read as logits
and as the softmax of the labels of a row, and of the probabilities; and for a
precision asked for, that of the labels above the threshold found, and how many
rows get an answer.

  python launch/train.py --config=configs/xmc.py:bibtex \
    --config.data.dir=DIR --config.data.validation=0.1 --workdir=runs/bibtex
  python benchmarks/calibration.py --json=out.json runs/bibtex ...
"""

import argparse
import json
import pathlib
from typing import Any

import jax
import one_vs_all
import scipy.special

from xlj.config import splits
from xlj.evaluation import calibrate
from xlj.evaluation import evaluate
from xlj.evaluation import evaluator
from xlj.inference import calibration as calibration_lib
from xlj.inference import predictor

K = 5
PRECISIONS = (0.6, 0.7, 0.8, 0.9)
_FORMS = "{:.1f} / {:.1f} / {:.1f}"  # as logits, as a softmax, calibrated
_ASKED = "{:.1f} ({:.1f})"
COLUMNS = [
  ["set", None],
  ["rows held out / test", "{:,} / {:,}"],
  ["ECE of the best label, %", _FORMS],
  [f"ECE of the {K} best, %", _FORMS],
  ["log loss", "{:.3f} / {:.3f} / {:.3f}"],
  *([f"{round(100 * p)} % asked: reached (rows)", _ASKED] for p in PRECISIONS),
]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("workdirs", type=pathlib.Path, nargs="+")
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  names = " ".join(f"runs/{path.name}" for path in options.workdirs)
  origin = one_vs_all.origin_of(f"python benchmarks/calibration.py {names}")
  rows = [{"cells": measure(path)} for path in options.workdirs]
  if options.json:
    record = {
      "origin": origin | {"seeds": "one, of the config"},
      "columns": COLUMNS,
      "rows": rows,
    }
    options.json.write_text(json.dumps(record, indent=1) + "\n")
  print(json.dumps([row["cells"] for row in rows]))


def measure(workdir: pathlib.Path) -> list[Any]:
  """The cells of a run."""
  found = calibrate.calibrate(workdir)
  run = predictor.load(workdir)
  assert run.calibration is not None
  scores, ids, hits = test_rows(run)
  p = run.calibration.probabilities(scores, ids)
  forms = [scipy.special.expit(scores), scipy.special.softmax(scores, 1), p]
  eces = [
    [calibration_lib.ece(q[:, :k].ravel(), hits[:, :k].ravel()) for q in forms]
    for k in (1, K)
  ]
  losses = [calibration_lib.log_loss(q.ravel(), hits.ravel()) for q in forms]
  asked: list[Any] = []
  for precision in PRECISIONS:
    try:
      least = run.calibration.threshold(precision)
    except ValueError:
      asked.append("not borne out")
      continue
    asked.append(list(calibration_lib.reached(p, hits, least)))
  counts = [found.about["rows"], len(ids)]
  return [workdir.name, counts, *eces, losses, *asked]


def test_rows(run: predictor.Predictor) -> evaluator.Judged:
  """The best labels of the test rows."""
  data = splits.open_split(
    run.config, "test", num_features=run.num_features, num_labels=run.num_ids
  )
  kept: list[evaluator.Judged] = []
  with jax.set_mesh(run.mesh):
    evaluate.make_scorer(run, data, ks=(K,)).run(run.state, kept)
  return evaluator.of_all_processes(kept)


if __name__ == "__main__":
  main()
