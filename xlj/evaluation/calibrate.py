"""Fits the probabilities of a run's labels to rows that it has not seen."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import logging
import jax
import numpy as np

from xlj import config as config_lib
from xlj import files
from xlj.config import splits
from xlj.data import store
from xlj.evaluation import evaluate
from xlj.evaluation import evaluator
from xlj.evaluation import metrics
from xlj.inference import calibration as calibration_lib
from xlj.inference import fusion as fusion_lib
from xlj.inference import predictor

HELD_OUT = "held_out"  # in place of a split: rows that training has left out
PLACES = fusion_lib.PLACES  # best labels of each row that count


def calibrate(
  workdir: str | Path,
  *,
  rows: str = HELD_OUT,
  data_dir: str | None = None,
  which: str = "best",
  precision: float | None = None,
) -> calibration_lib.Calibration:
  """Leaves `calibration.json` in the directory of a run, and tells of it.

  Args:
    workdir: Directory of the run.
    rows: `HELD_OUT`, or a split that the run was not trained on.
    data_dir: Directory of the data; by default that of the training.
    which: "best" checkpoint by the validation metric, or "last".
    precision: Share of labels that are to be right, for which a threshold is
      told and noted.

  Returns:
    The calibration.

  Raises:
    ConfigError: There are no such rows, or the run has no checkpoint.
    DataError: They cannot be read or do not fit the model.
    ValueError: They are too few.
  """
  run = predictor.load(workdir, which=which)
  about: dict[str, Any] = {
    "model": run.fingerprint,
    "step": run.step,
    "split": rows,
    "labels_per_row": min(PLACES, run.num_labels),
  }
  judged, counts = _judged(run, rows, data_dir)
  try:
    found = calibration_lib.fit(*judged, counts, about)
  except ValueError as error:
    raise ValueError(f"{rows} of {workdir}: {error}") from None
  if precision is not None:
    found = _aimed(found, judged, precision)
  if jax.process_index() == 0:
    path = run.workdir / calibration_lib.FILE
    files.write_text(path, json.dumps(found.to_dict(), indent=2) + "\n")
    logging.info("Wrote %s", path)
    _print(found)
  return found


def _judged(
  run: predictor.Predictor, rows: str, data_dir: str | None
) -> tuple[evaluator.Judged, np.ndarray | None]:
  """The best labels of rows, and the training rows of all labels."""
  counts, config = run.label_counts(), run.config
  if rows == HELD_OUT and run.fusion is not None:
    *found, counts = fusion_lib.load_held_out(run.workdir)
    return evaluator.Judged(*found), counts
  chosen = None
  if rows == HELD_OUT:
    if not config.data.validation:
      raise config_lib.ConfigError(
        f"{run.workdir} was trained on all rows (data.validation is 0), so that"
        " none are left to calibrate on; name a split that it has not seen, by"
        " --rows=test or --rows=validation (with --data_dir=DIR one of other"
        " data), or train a run that leaves rows out, by"
        " --config.data.validation=0.1"
      )
    data, chosen = splits.held_out(config, run.workdir, data_dir=data_dir)
    if counts is not None:
      counts = _without(counts, data, chosen, run)
  else:
    data = splits.open_split(
      config,
      rows,
      data_dir=data_dir,
      num_features=run.num_features,
      num_labels=run.num_ids,
      numbering=run.run.numbering,
      encoding=run.run.encoding,
      label_names=run.label_names,
      feature_names=run.feature_names,
    )
  kept: list[evaluator.Judged] = []
  ks = (min(PLACES, run.num_labels),)
  if run.fusion is None:
    with jax.set_mesh(run.mesh):
      scorer = evaluate.make_scorer(run, data, ks=ks, rows=chosen)
      scorer.run(run.state, kept)
  else:
    texts = evaluate.texts_of(run, rows, data_dir)
    size = max(run.num_ids, data.num_labels)
    ranking = metrics.Ranking(num_labels=size, ks=ks, per_label=False)
    evaluate.score_answers(run, texts, data, ranking, kept=kept)
  data.check()
  return evaluator.of_all_processes(kept), counts


def _without(
  counts: np.ndarray,
  data: store.Split,
  chosen: np.ndarray,
  run: predictor.Predictor,
) -> np.ndarray:
  """Counts of labels as if held-out rows had never been counted.

  A label that only held-out rows have would look like one that was learned.
  What is left is scaled to all rows, whose counts predictions go by.
  """
  labels = run.order.known(data.labels.take(chosen)).indices
  left = counts - np.bincount(labels, minlength=len(counts))
  return np.maximum(left, 0) * data.num_rows / (data.num_rows - len(chosen))


def _aimed(
  found: calibration_lib.Calibration,
  judged: evaluator.Judged,
  precision: float,
) -> calibration_lib.Calibration:
  """Notes the threshold for a precision, if the rows bear one out."""
  try:
    least = found.threshold(precision)
  except ValueError as error:
    if not 0 < precision < 1:
      raise
    logging.warning("No threshold is noted: %s", error)
    return found
  p = found.probabilities(judged.scores, judged.ids)
  reached, answered = calibration_lib.reached(p, judged.hits, least)
  target = {
    "asked": precision,
    "min_probability": least,
    "precision": reached,
    "answered": answered,
  }
  about = dict(found.about) | {"target": target}
  return dataclasses.replace(found, about=about)


def _print(found: calibration_lib.Calibration) -> None:
  """What was found, and as the last line the same as JSON."""
  about, terms = found.about, ["score"]
  terms += ["place"] if found.place else []
  terms += ["label counts"] if len(found.buckets) else []
  print(
    f"{about['rows']:,} rows ({about['split']}), {about['labels_per_row']} best"
    f" labels of each; probabilities by {', '.join(terms)}"
  )
  for name, unit in (("ECE", " %"), ("log_loss", "")):
    before, after = about[name]
    print(f"{name}: {before:.4f}{unit} before, {after:.4f}{unit} now")
  if (target := about.get("target")) is not None:
    print(
      f"precision {target['asked']:g}: --min_probability="
      f"{target['min_probability']:.4f}; of these rows"
      f" {target['answered']:.1f} % get an answer, and"
      f" {target['precision']:.1f} % of its labels are right"
    )
  print(json.dumps(dict(about)), flush=True)
