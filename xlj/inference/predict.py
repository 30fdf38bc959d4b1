"""Labels the rows of a file, as a stream."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import sys
from typing import Any, IO, NamedTuple

from absl import logging
import jax
import numpy as np

import xlj
from xlj import config as config_lib
from xlj import files
from xlj.config import splits
from xlj.data import checks
from xlj.data import discover
from xlj.data import formats
from xlj.data import images
from xlj.data import names as names_lib
from xlj.data import npy
from xlj.data import numbering
from xlj.documents import formats as documents
from xlj.inference import calibration as calibration_lib
from xlj.inference import item_rows
from xlj.inference import label_files

STDOUT = "-"
ON_ERROR = ("stop", "skip")
_SHOWN = 5  # errors that are told
_NONE = np.zeros(0)


class Answer(NamedTuple):
  """The labels of a row, best first.

  Attributes:
    ids: `[m]`.
    scores: `[m]`.
    probabilities: `[m]`; None unless the run is calibrated.
    error: Why there are no labels.
  """

  ids: np.ndarray
  scores: np.ndarray
  probabilities: np.ndarray | None
  error: ValueError | None = None


def predict(
  workdir: str | Path,
  input_path: str,
  output_path: str,
  *,
  k: int | None = None,
  labels: str | None = None,
  which: str = "best",
  predict: Mapping[str, Any] | None = None,
  on_error: str = "stop",
  asked: label_files.Asked = label_files.NOTHING,
  threshold: float | None = None,
  min_probability: float | None = None,
  probes: int | None = None,
) -> int:
  """Writes the k best labels of each row of a file.

  The input is read, scored and written block by block, so that it may be of
  any size, or a pipe. A file appears under its name only when it is whole; a
  pipe, a device or standard output gets what is before an error.

  Args:
    workdir: Directory of the run, or of an exported model.
    input_path: Rows in any format of the data, with labels or without (they
      are not looked at); "-" is standard input.
    output_path: Ending in `.jsonl`: one `{"labels": [...], "scores": [...]}`
      per row, with `probabilities` if the run is calibrated, and `names` if
      they are known. Otherwise tab-separated
      `label:score` pairs (`name:score` if names are known), best first, a
      line per row: the score is what follows the last colon, and the name is
      written as `names.escaped` says. "-" is standard output. Where the model
      scored fewer than k labels of a row there are fewer.
    k: Labels per row; by default as many as `Predictor.topk` gives.
    labels: File with one label name per line; by default those of the run.
    which: "best" checkpoint by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them, such as `{"propensity_power": 0.0}`.
    on_error: What becomes of a row that cannot be read, or has no finite
      score: "stop" ends with its error, "skip" gives it an answer without
      labels, and tells how many there were.
    asked: Files of labels that may be answers; by default all may.
    threshold: Score that a label has to reach.
    min_probability: Probability of being right that a label has to reach.
    probes: How many lists of an exported model's index to look at; see
      `xlj.export.model.Exported`.

  Returns:
    Number of rows written.

  Raises:
    ConfigError: If the directory holds no finished checkpoint, or k is not
      possible.
    DataError: If the input cannot be read or does not fit the model.
    OSError: If the output cannot be written.
  """
  if on_error not in ON_ERROR:
    raise config_lib.ConfigError(
      f"on_error is {on_error!r}; use one of {ON_ERROR}"
    )
  if input_path == formats.STDIN and jax.process_count() > 1:
    raise config_lib.ConfigError(
      f"--input=- with {jax.process_count()} processes; all of them read the"
      " input, so give a file"
    )
  files.local(output_path, "--output")
  line = _json_line if output_path.endswith(".jsonl") else _tab_line
  count, skipped = 0, []
  # Opened first, or the model would be loaded and rows be scored for nothing.
  with _open(output_path if jax.process_index() == 0 else os.devnull) as output:
    run = xlj.load(workdir, which=which, predict=predict, probes=probes)
    if k is not None and not 1 <= k <= run.num_labels:
      raise config_lib.ConfigError(
        f"--k is {k}; the model has {run.num_labels} labels"
      )
    names = _names(run, labels)
    choices = label_files.Choices(asked, run)
    least = threshold, min_probability
    if min_probability is not None:
      calibration_lib.needed(run.calibration, run.workdir)
    for block in _answers(run, input_path, k, choices, *least):
      for answer in block:
        if answer.error is not None:
          skipped.append(answer.error)
          if on_error == "stop":
            output.flush()
            raise _told(answer.error, count, output_path)
        output.write(line(answer, names))
        count += 1
      output.flush()
    choices.check_end(count)
  if skipped:
    logging.warning(
      "%d of %d rows have an answer without labels: %s%s",
      *(len(skipped), count, "; ".join(map(str, skipped[:_SHOWN]))),
      "; ..." if len(skipped) > _SHOWN else "",
    )
  logging.info("Labelled %d rows of %s in %s", count, input_path, output_path)
  return count


def _answers(
  run: Any,
  path: str,
  k: int | None,
  choices: label_files.Choices,
  threshold: float | None,
  min_probability: float | None,
) -> Iterator[list[Answer]]:
  """The answers to the rows of a file.

  Yields:
    The rows of a block, in order.
  """
  row = 0
  beyond = checks.Beyond({"feature": run.num_features})
  for block in _blocks(run, path, beyond):
    if isinstance(block, formats.DataError):
      answers = [Answer(_NONE, _NONE, None, block)]
    else:
      choice = choices.of(row, block.features, block.labels)
      scores, ids, wrong = run.answers(block.features, k, choice, threshold)
      answers = _by_row(run, scores, ids, min_probability)
      for i, why in wrong.items():
        # Rows of any format have numbers, lines only those of text.
        error = ValueError(f"{path}: row {row + i + 1} (the first is 1): {why}")
        answers[i] = Answer(_NONE, _NONE, None, error)
    yield answers
    row += len(answers)
  for note in beyond.notes("feature"):
    logging.warning("%s: %s", path, note)


def _by_row(
  run: Any,
  scores: np.ndarray,
  ids: np.ndarray,
  min_probability: float | None,
) -> list[Answer]:
  """Scores and ids `[n, k]` without what is no label, or not likely enough."""
  probabilities = None
  if run.calibration is not None:
    least = min_probability or 0.0
    scores, ids, probabilities = run.calibration.passing(scores, ids, least)
  answers = []
  for i, found in enumerate(ids >= 0):
    p = None if probabilities is None else probabilities[i][found]
    answers.append(Answer(ids[i][found], scores[i][found], p))
  return answers


def _blocks(
  run: Any, path: str, beyond: checks.Beyond
) -> Iterator[formats.Rows | formats.DataError]:
  """The rows of a file, or images."""
  if run.input == "texts":
    return _texts(path)
  if run.input == "items":
    return item_rows.stream(path, beyond)
  is_json = documents.ending(path) in documents.JSON
  if run.input == "sparse" and run.numbering is None and is_json:
    return item_rows.stream_sets(path, beyond, run.feature_names)
  shape = tuple(run.config.encoder.image or ())
  if os.path.isdir(path) or path.lower().endswith(images.ENDINGS):
    if not shape:
      raise formats.DataError(
        path,
        "a directory" if os.path.isdir(path) else "an image",
        f"rows of {run.num_features} numbers, as the run was trained on",
        hint="a run reads images where encoder.image says their size",
      )
    return images.stream(path, shape)
  if path.endswith(".npy") and (found := npy.image_shape(path)) != shape:
    if found and shape:
      raise formats.DataError(
        path, f"images of {found}", f"{shape}, as the run was trained on"
      )
  numbers: Any = None if run.numbering is None else run.numbering.numbers()
  if run.config.data.get("named_labels"):
    numbers = {"label": numbering.Names(run.label_names)}
  return formats.stream_each(
    path,
    beyond=beyond,
    numbers=numbers,
    feature_names=run.feature_names if discover.is_table(path) else None,
    **splits.reading(run.config),
  )


def _texts(path: str) -> Iterator[formats.Rows | formats.DataError]:
  """The texts of a file in place of features."""
  for block in documents.stream(path):
    if isinstance(block, formats.DataError):
      yield block
    else:
      yield formats.Rows(np.array(block.texts, object), None)


def _told(error: ValueError, count: int, path: str) -> ValueError:
  """The error of a row with what became of those before it."""
  rows = "no row" if not count else "1 row" if count == 1 else f"{count} rows"
  if _is_stdout(path) or files.is_stream(path):
    where = f"{rows} before it {'is' if count == 1 else 'are'} answered"
  else:
    where = f"{path} was not written"
  error.args = (
    f"{error}; {where}. With --on_error=skip such rows get an answer without"
    " labels",
  )
  return error


# By label id, which are no places where they are large.
Names = Sequence[str] | Mapping[int, str]


def _names(run: Any, labels: str | None) -> Names | None:
  numbering = run.numbering
  if labels is not None:
    names = names_lib.read_names(labels, run.num_ids)
  else:
    names = run.label_names
  if names is None or numbering is None:
    return names
  return dict(zip(numbering.labels.tolist(), names))


Line = Callable[[Answer, Names | None], str]


def _json_line(answer: Answer, names: Names | None) -> str:
  row: dict[str, list] = {
    "labels": [int(i) for i in answer.ids],
    "scores": [round(float(s), 5) for s in answer.scores],
  }
  if answer.probabilities is not None:
    row["probabilities"] = [round(float(p), 5) for p in answer.probabilities]
  if names is not None:
    row["names"] = [names[i] for i in answer.ids]
  text = json.dumps(row, ensure_ascii=False, allow_nan=False)
  return text.translate(names_lib.LINE_ENDS) + "\n"


def _tab_line(answer: Answer, names: Names | None) -> str:
  cells = (
    f"{i if names is None else names_lib.escaped(names[i])}:{score:.5f}"
    for i, score in zip(answer.ids, answer.scores)
  )
  return "\t".join(cells) + "\n"


@contextlib.contextmanager
def _open(path: str) -> Iterator[IO[str]]:
  """Opens the output; a file gets its name when it is complete."""
  if _is_stdout(path):
    yield sys.stdout
    return
  with (
    files.replacing(path) as partial,
    partial.open("w", encoding="utf-8") as output,
  ):
    yield output


def _is_stdout(path: str) -> bool:
  # By its other name it would be opened anew, and cut off where it is a file.
  return path in (STDOUT, "/dev/stdout")
