"""What an exported model loses of a run's accuracy, on rows held out."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any, Protocol

from absl import logging
import numpy as np

from xlj import config as config_lib
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import store
from xlj.evaluation import evaluate
from xlj.evaluation import metrics
from xlj.inference import predictor
from xlj.model import label_choice

FIGURES = ("P@1", "P@3", "P@5", "PSP@5")
_MOST = 20_000  # rows
_BLOCK = 1024  # rows at a time


class Answering(Protocol):
  """A run or an exported model."""

  def answers(
    self, features: Any, k: int | None, choice: label_choice.LabelChoice
  ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Scores and ids `[n, k]`, and what is wrong with rows."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
  """Rows that a run was not trained on.

  Attributes:
    data: The split that they are of.
    rows: Their numbers, ascending.
    about: Of its labels; arguments of `metrics.Ranking`.
  """

  data: store.Split
  rows: np.ndarray
  about: Mapping[str, Any]

  def features(self, rows: np.ndarray) -> Any:
    """The features of some of the rows, by their numbers."""
    features = self.data.features
    if isinstance(features, csr_lib.Csr):
      return features.take(rows)
    return features[rows]

  def figures(self, model: Answering) -> dict[str, float]:
    """The figures of a model, in percent, by the names of `FIGURES`.

    Args:
      model: It.

    Returns:
      Those that can be told: no PSP without counts of labels, and no P@k of
      more labels than there are.
    """
    ranking = metrics.Ranking(**self.about)
    choice, data = label_choice.ALL.without(self.data.filter), self.data
    k = min(ranking.width, ranking.num_labels)
    for start in range(0, len(self.rows), _BLOCK):
      rows = self.rows[start : start + _BLOCK]
      features = self.features(rows)
      _, ids, _ = model.answers(features, k, choice.take(rows))
      ranking.update(ids, data.labels.take(rows))
    data.check()
    found = ranking.compute()
    return {name: found[name] for name in FIGURES if name in found}


def held_out(
  run: predictor.Predictor, rows: str = "", data_dir: str | None = None
) -> HeldOut | None:
  """The rows to measure with.

  Args:
    run: The run.
    rows: Name of a split, or a file with features and labels; by default the
      rows of the training split that the run held out.
    data_dir: Directory of the data; by default that of training.

  Returns:
    The rows, evenly chosen where there are very many; None if the run held none
    out, or its data are not where they were, which is logged.

  Raises:
    ConfigError: There is no such split or file.
    DataError: It cannot be read.
  """
  config, some = run.config, None
  if rows:
    data = _named(run, rows, data_dir)
  elif not config.data.validation:
    logging.info(
      "There are no rows to measure with: %s held none out (data.validation is"
      " 0). Name some that it was not trained on, by --rows=validation or a"
      " FILE, or train with --config.data.validation=0.05",
      run.workdir,
    )
    return None
  else:
    try:
      data, some = splits.held_out(config, run.workdir, data_dir=data_dir)
    except (config_lib.ConfigError, store.DataError, OSError) as error:
      if data_dir is not None:
        raise
      logging.warning(
        "The rows that %s held out cannot be read, and nothing is measured; say"
        " where the data are, by --data_dir=DIR: %s",
        *(run.workdir, error),
      )
      return None
  if some is None:
    some = np.arange(data.num_rows)
  if len(some) > _MOST:
    some = some[np.linspace(0, len(some) - 1, _MOST).astype(int)]
  data = dataclasses.replace(data, labels=run.order.known(data.labels))
  ks = [k for k in (1, 3, 5) if k <= run.num_labels]
  about = evaluate.about_labels(run, data, ks, run.label_counts())
  about |= {"per_label": False, "deciles": None, "figures": "classification"}
  return HeldOut(data, some, about)


def _named(
  run: predictor.Predictor, rows: str, data_dir: str | None
) -> store.Split:
  """The split, or the file, of a name."""
  config = run.config
  if rows in discover.SPLITS:
    return splits.open_split(
      config,
      rows,
      data_dir=data_dir,
      num_features=run.num_features,
      num_labels=run.num_ids,
      encoding=run.run.encoding,
      label_names=run.label_names,
      feature_names=run.feature_names,
    )
  if not Path(rows).is_file():
    raise config_lib.ConfigError(
      f"rows is {rows}; give one of {', '.join(discover.SPLITS)}, or a file"
    )
  if config.data.text:
    raise config_lib.ConfigError(
      f"rows is the file {rows}, and {run.workdir} was trained on texts; give a"
      " split, such as --rows=test, and --data_dir=DIR where it is not that of"
      " training"
    )
  return store.open_file(
    rows,
    cache_dir=config.data.cache_dir or None,
    num_features=run.num_features,
    num_labels=run.num_ids,
    **splits.reading(config),
  )


def loss(before: Mapping[str, float], after: Mapping[str, float]) -> float:
  """The greatest loss of a figure, in points; 0 if none is less."""
  return max([0.0, *(before[name] - after[name] for name in after)])


def table(
  measured: Mapping[str, tuple[int, Mapping[str, float]]],
) -> list[str]:
  """Lines of a table.

  Args:
    measured: By what it is of, bytes and figures.

  Returns:
    A header, and a line for each.
  """
  _, first = next(iter(measured.values()))
  width = max(map(len, measured))
  lines = [f"{'':{width}} {'weights':>10} " + _cells(first)]
  for name, (size, figures) in measured.items():
    shown = [f"{figures[key]:7.2f}" for key in first]
    lines.append(f"{name:{width}} {size / 1e6:>7.1f} MB " + " ".join(shown))
  return lines


def _cells(names: Mapping[str, float]) -> str:
  return " ".join(f"{name:>7}" for name in names)
