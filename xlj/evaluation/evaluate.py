"""Scores a trained run on a split: table, JSON, report."""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from xlj import files
from xlj.config import splits
from xlj.config import text
from xlj.config import training as training_config
from xlj.data import statistics
from xlj.data import store
from xlj.documents import store as documents
from xlj.evaluation import evaluator
from xlj.evaluation import metrics
from xlj.inference import calibration as calibration_lib
from xlj.inference import label_files
from xlj.inference import predictor
from xlj.model import batches
from xlj.model import label_choice
from xlj.report import recorded
from xlj.report import report
from xlj.synthetic import topics as synthetic


def evaluate(
  workdir: str | Path,
  *,
  data_dir: str | None = None,
  split: str = "test",
  which: str = "best",
  ks: Sequence[int] = (),
  predict: Mapping[str, Any] | None = None,
  asked: label_files.Asked = label_files.NOTHING,
) -> dict[str, float]:
  """Scores a run, prints a table and one line of JSON, renews the report.

  Beside the model stand the popularity baseline and, on generated data, the
  best score that anything can reach. A head whose loss is a negative
  log-likelihood also gets the mean loss of the split and its perplexity. A run
  that is calibrated gets the `ECE` of the labels that metrics look at, and for
  the precision that it was calibrated for the `precision` that labels of at
  least `min_probability` reach, and how many rows are `answered`.

  Args:
    workdir: Directory of the run.
    data_dir: Directory of the data; by default that of the training.
    split: Which split to score.
    which: "best" checkpoint by the validation metric, or "last".
    ks: Cut-offs of the metrics; by default those of the config.
    predict: Fields of the section `predict` of the config that are not as the
      run has them, such as `{"propensity_power": 0.0}`.
    asked: Files of labels that may be answers; by default all may. Others are
      no positives either, nothing is compared with, and the report stays.

  Returns:
    The metrics by name, in percent or, of recommendation, as fractions, and
    `loss` and `perplexity` if there are, and what is told of probabilities.

  Raises:
    ConfigError: If the directory holds no finished checkpoint, or `data_dir`
      does not go with its config.
    DataError: If the split cannot be read or does not fit the model.
  """
  run = predictor.load(workdir, which=which, predict=predict)
  data = splits.open_split(
    run.config,
    split,
    data_dir=data_dir,
    num_features=run.num_features,
    num_labels=run.num_ids,
    numbering=run.run.numbering,
    encoding=run.run.encoding,
    label_names=run.label_names,
    feature_names=run.feature_names,
  )
  logging.info(
    "Scoring %d rows with the checkpoint of step %d", data.num_rows, run.step
  )
  choices = label_files.Choices(asked, run)
  choice = choices.of(0, data.features, data.labels)
  choices.check_end(data.num_rows)
  start = time.monotonic()
  counts = run.label_counts()
  about = about_labels(run, data, ks, counts)
  kept: list[evaluator.Judged] | None = None
  if run.calibration is not None and not asked:
    kept = []
  loss: dict[str, float] = {}
  if run.fusion is not None:
    texts = texts_of(run, split, data_dir)
    ranking = metrics.Ranking(**about)
    score_answers(run, texts, data, ranking, choice, kept)
    seconds = time.monotonic() - start
  else:
    with jax.set_mesh(run.mesh):
      scorer = make_scorer(run, data, ks=ks, choice=choice)
      ranking = scorer.run(run.state, kept)
      seconds = time.monotonic() - start
      loss = scorer.loss(run.state)
  data.check()
  if run.calibration is not None and kept is not None:
    loss |= _of_probabilities(run.calibration, kept)
  by_name = {"xlj": ranking.compute()}
  directory = data_dir or run.config.data.dir
  if counts is not None and not asked:
    known = dataclasses.replace(data, labels=run.order.known(data.labels))
    by_name |= _baselines(known, directory, split, counts, about)
  values = by_name["xlj"] | loss
  if jax.process_index() == 0:
    deciles = [] if counts is None else ranking.deciles()
    baselines = {k: v for k, v in by_name.items() if k != "xlj"}
    found = {
      "split": split,
      "step": run.step,
      "metrics": values,
      "baselines": baselines,
      "deciles": deciles,
    }
    try:
      figures = run.config.eval.figures
      _print(by_name, loss, data.num_rows, seconds, figures)
    finally:  # also where nobody reads what is printed
      if not asked:
        _write(Path(workdir), found)
  return values


def make_scorer(
  run: predictor.Predictor,
  data: store.Split,
  *,
  ks: Sequence[int] = (),
  rows: np.ndarray | None = None,
  choice: label_choice.LabelChoice = label_choice.ALL,
) -> evaluator.Evaluator:
  """What scores models like that of a run; the mesh in context is the run's.

  Args:
    run: The run.
    data: A split.
    ks: Cut-offs of the metrics; by default those of the config.
    rows: Rows of the split to score; by default all.
    choice: Labels that may be answers.

  Returns:
    The evaluator.
  """
  rows, widths = batches.by_length(run.config, data, rows)
  return evaluator.Evaluator(
    run.model,
    data,
    run.weighting,
    run.order,
    batch_size=run.config.eval.batch_size,
    rows=rows,
    widths=widths,
    choice=choice,
    neighbours=run.neighbours,
    **about_labels(run, data, ks, run.label_counts()),
  )


def texts_of(
  run: predictor.Predictor, split: str, data_dir: str | None
) -> documents.Texts:
  """The texts of a split; of the training data unless a directory is given."""
  place = data_dir or run.config.data.dir
  return text.documents(run.config, place, split, run.run.encoding).texts


def score_answers(
  run: predictor.Predictor,
  texts: documents.Texts,
  data: store.Split,
  ranking: metrics.Ranking,
  choice: label_choice.LabelChoice = label_choice.ALL,
  kept: list[evaluator.Judged] | None = None,
) -> None:
  """Scores what a run answers together with others; see `inference.fusion`.

  Args:
    run: The run.
    texts: Of a split.
    data: The split.
    ranking: Gets the sums over its rows.
    choice: Labels that may be answers.
    kept: Gets the predictions, batch by batch.
  """
  allowed = choice.without(data.filter)
  k, size = min(ranking.width, run.num_labels), run.config.eval.batch_size
  for first in range(0, data.num_rows, size):
    rows = np.arange(first, min(first + size, data.num_rows))
    scores, ids, _ = run.answers(texts[rows], k, allowed.take(rows))
    labels = choice.kept(data.labels.take(rows), rows)
    if kept is not None:
      kept.append(evaluator.judged(scores, ids, labels))
    fill = (0, 0), (0, ranking.width - k)
    ranking.update(np.pad(ids, fill, constant_values=-1), labels)


def _of_probabilities(
  calibration: calibration_lib.Calibration, kept: Sequence[evaluator.Judged]
) -> dict[str, float]:
  """How far probabilities can be relied on."""
  scores, ids, hits = evaluator.of_all_processes(kept)
  # The ids are places here, with `data.renumber` too.
  p = dataclasses.replace(calibration, label_ids=None).probabilities(
    scores, ids
  )
  found = {"ECE": calibration_lib.ece(p[ids >= 0], hits[ids >= 0])}
  if (target := calibration.about.get("target")) is not None:
    least = target["min_probability"]
    precision, answered = calibration_lib.reached(p, hits, least)
    found |= {
      "min_probability": least,
      "precision": precision,
      "answered": answered,
    }
  return found


def about_labels(
  run: predictor.Predictor,
  data: store.Split,
  ks: Sequence[int] = (),
  counts: np.ndarray | None = None,
) -> dict[str, Any]:
  """What metrics know of the labels; nothing of each of too many.

  Args:
    run: A run.
    data: The split to score.
    ks: Cut-offs; by default those of the config.
    counts: `label_counts` of the run; None for what needs none.

  Returns:
    Arguments of `metrics.Ranking`.
  """
  config = run.config
  training_config.check_cutoffs(ks, run.num_ids)
  about: dict[str, Any] = {
    "num_labels": max(run.num_ids, data.num_labels),
    "ks": tuple(ks) or tuple(config.eval.ks),
    "figures": config.eval.figures,
  }
  if counts is None:
    return about | {"per_label": False}
  groups = statistics.label_groups(counts).group
  # What the model does not know is as rare as can be.
  unknown = (0, about["num_labels"] - len(counts))
  counts = np.pad(counts, unknown)
  return about | {
    "propensities": statistics.propensities(
      counts,
      config.data.num_rows,
      config.data.propensity_a,
      config.data.propensity_b,
    ),
    "deciles": np.pad(groups + 1, unknown, constant_values=10),
    "label_counts": counts,
  }


def _baselines(
  data: store.Split,
  data_dir: str,
  split: str,
  counts: np.ndarray,
  about: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
  """What to compare with."""
  popular = evaluator.popularity(data, counts, metrics.Ranking(**about))
  found = {"popularity": popular.compute()}
  path = Path(data_dir) / synthetic.ORACLE_FILE
  if data_dir and split == "test" and path.exists():
    oracle = synthetic.load_oracle(data_dir)
    best = metrics.Ranking(**about)
    best.update(oracle.labels, data.labels)
    found["best possible"] = best.compute()
  return found


def _write(workdir: Path, found: Mapping[str, Any]) -> None:
  """Leaves the figures for the report, and renews it, where that can be."""
  text = json.dumps(found, indent=2) + "\n"
  try:
    files.write_text(workdir / recorded.EVALUATION_FILE, text)
    path = report.write_report(workdir)
  except OSError as error:
    logging.warning(
      "The figures are printed alone; the report was not renewed: %s", error
    )
    return
  logging.info("Wrote %s", path)


def _print(
  by_name: Mapping[str, Mapping[str, float]],
  loss: Mapping[str, float],
  num_rows: int,
  seconds: float,
  figures: str,
) -> None:
  """The table, and as the last line the model's figures as JSON."""
  names = list(by_name)
  width = max(len(metric) for metric in by_name["xlj"])
  unit, digits = recorded.unit(figures)
  print(f"{num_rows:,} rows in {seconds:.1f} s, {unit}")
  print(" " * width, *(f"{name:>14}" for name in names))
  for metric in by_name["xlj"]:
    cells = (f"{by_name[name][metric]:14.{digits}f}" for name in names)
    print(f"{metric:<{width}}", *cells)
  for name, value in loss.items():
    print(f"{name}: {value:.4f}")
  values = {**by_name["xlj"], **loss}
  rounded = {k: round(v, digits + 2) for k, v in values.items()}
  print(json.dumps(rounded), flush=True)
