"""Labels the rows of a file, as a stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import sys
from typing import Any, IO

from absl import logging
import jax
import numpy as np

from xlj import config as config_lib
from xlj import files
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import formats
from xlj.data import names as names_lib
from xlj.inference import predictor

STDOUT = "-"


def predict(
  workdir: str | Path,
  input_path: str,
  output_path: str,
  *,
  k: int | None = None,
  labels: str | None = None,
  which: str = "best",
  predict: Mapping[str, Any] | None = None,
) -> int:
  """Writes the k best labels of each row of a file.

  The input is read, scored and written block by block, so that it may be of
  any size, or a pipe. A file appears under its name only when it is whole.

  Args:
    workdir: Directory of the run.
    input_path: Rows in any format of the data, with labels or without (they
      are not looked at); "-" is standard input.
    output_path: Ending in `.jsonl`: one `{"labels": [...], "scores": [...]}`
      per row, with `names` if they are known. Otherwise tab-separated
      `label:score` pairs (`name:score` if names are known), best first, a
      line per row: the score is what follows the last colon, and the name is
      written as `names.escaped` says. "-" is standard output.
    k: Labels per row; by default as many as `Predictor.topk` gives.
    labels: File with one label name per line; by default those of the run.
    which: "best" checkpoint by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them, such as `{"propensity_power": 0.0}`.

  Returns:
    Number of rows written.

  Raises:
    ConfigError: If the directory holds no finished checkpoint, or k is not
      possible.
    DataError: If the input cannot be read or does not fit the model.
  """
  run = predictor.load(workdir, which=which, predict=predict)
  if k is not None and not 1 <= k <= run.num_labels:
    raise config_lib.ConfigError(
      f"--k is {k}; the model has {run.num_labels} labels"
    )
  if input_path == formats.STDIN and jax.process_count() > 1:
    raise config_lib.ConfigError(
      f"--input=- with {jax.process_count()} processes; all of them read the"
      " input, so give a file"
    )
  names = _names(run, labels)
  line = _json_line if output_path.endswith(".jsonl") else _tab_line
  count = 0
  first = jax.process_index() == 0
  with _open(output_path if first else os.devnull) as output:
    for features in _blocks(run, input_path):
      scores, ids = run.topk(features, k)
      output.writelines(
        line(row_ids, row_scores, names)
        for row_ids, row_scores in zip(ids, scores)
      )
      output.flush()
      count += len(ids)
  logging.info("Labelled %d rows of %s in %s", count, input_path, output_path)
  return count


def _blocks(
  run: predictor.Predictor, path: str
) -> Iterator[csr_lib.Csr | np.ndarray]:
  rows = formats.stream_rows(
    path, num_features=run.num_features, **splits.reading(run.config)
  )
  for block in rows:
    yield block.features


def _names(
  run: predictor.Predictor, labels: str | None
) -> Sequence[str] | None:
  if labels is not None:
    return names_lib.read_names(labels, run.num_ids)
  return run.label_names


Line = Callable[[np.ndarray, np.ndarray, Sequence[str] | None], str]


def _json_line(
  ids: np.ndarray, scores: np.ndarray, names: Sequence[str] | None
) -> str:
  row = {
    "labels": [int(i) for i in ids],
    "scores": [round(float(s), 5) for s in scores],
  }
  if names is not None:
    row["names"] = [names[i] for i in ids]
  text = json.dumps(row, ensure_ascii=False)
  return text.translate(names_lib.LINE_ENDS) + "\n"


def _tab_line(
  ids: np.ndarray, scores: np.ndarray, names: Sequence[str] | None
) -> str:
  cells = (
    f"{i if names is None else names_lib.escaped(names[i])}:{score:.5f}"
    for i, score in zip(ids, scores)
  )
  return "\t".join(cells) + "\n"


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[str]]:
  """Opens the output; a file gets its name when it is complete."""
  if path == STDOUT:
    yield sys.stdout
    return
  if path == os.devnull:
    with open(path, "w") as output:
      yield output
    return
  with (
    files.replacing(path) as partial,
    partial.open("w", encoding="utf-8") as output,
  ):
    yield output
