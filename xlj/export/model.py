"""An exported model, loaded at once, which answers on the host without JAX.

Legend: n examples, F features, L label rows, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import names as names_lib
from xlj.export import explain
from xlj.export import host_loops
from xlj.export import reader
from xlj.export import scores as scores_lib
from xlj.inference import answers as answers_lib
from xlj.inference import contributions
from xlj.model import examples
from xlj.model import label_choice
from xlj.search import exact
from xlj.search import index as index_lib

if TYPE_CHECKING:
  import ml_collections

  from xlj.inference import calibration as calibration_lib
  from xlj.inference import predictor as predictor_lib
  from xlj.search import external as external_lib
  from xlj.text import features as features_lib

FEATURIZER = "featurizer"  # directories
ARTIFACT = "artifact"
INDEX = "index"
_MARKS = (reader.MANIFEST, reader.WEIGHTS)
_NUMBERS = {int, float}


def load(
  directory: str | Path,
  *,
  which: str = "best",
  predict: Mapping[str, Any] | None = None,
  probes: int | None = None,
) -> Exported | predictor_lib.Predictor:
  """Opens a trained run, or an exported model, for prediction.

  Args:
    directory: Of the run, or of the model that `xlj export` has written.
    which: "best" checkpoint of a run by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them, such as `{"propensity_power": 0.0}`.
    probes: Of an exported model; see `Exported`.

  Returns:
    A `Predictor` of the run; the devices need not be those that trained it. Of
    an exported model an `Exported`, whose arrays are mapped.

  Raises:
    ConfigError: The directory holds no finished checkpoint.
    CheckpointError: None of its checkpoints is good.
    ValueError: A file of an exported model is missing, not as it was written,
      or of a newer format; it names the file and says what to do.

  Example:
    >>> scores, ids = xlj.load("runs/bibtex").topk([{3: 1.0, 17: 0.5}], 5)
  """
  is_path = isinstance(directory, str | os.PathLike)  # or `predictor` refuses
  if is_path and any(Path(directory, name).exists() for name in _MARKS):
    if predict or which != "best":
      raise ValueError(
        f"{directory} is an exported model, whose checkpoint and fields of"
        " predict are those that it was exported with; export the run again,"
        " with --checkpoint and --predict.FIELD"
      )
    return Exported(directory, probes=probes)
  if probes is not None:
    raise ValueError(
      f"probes is {probes}, and {directory} is no exported model with an index;"
      " make one by xlj export --index=0.95"
    )
  from xlj.inference import predictor  # which imports JAX

  return predictor.load(directory, which=which, predict=predict)


class Exported:
  """An exported model of any kind.

  Attributes:
    workdir: Where it was read from.
    manifest: What it says of itself; see `xlj.export`.
    num_labels: Number of label rows L.
    num_ids: Number of label ids.
    num_features: F.
    input: "texts", "items", "images", "sparse" or "dense" features.
    order: Which label has which row.
    numbering: None; as a run without `data.renumber` has it.
  """

  numbering = None

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    verify: bool = False,
    probes: int | None = None,
  ):
    """Opens a model.

    Args:
      directory: That `xlj export` has written.
      verify: Whether to read all of it and compare checksums; sizes are
        compared always.
      probes: How many lists of the index to look at (of another library's:
        candidates), where the model was exported with one; 0 for as many as its
        manifest says. By default all labels are looked at.

    Raises:
      ValueError: See `load`.
      OSError: It cannot be read.
    """
    self.workdir = Path(directory)
    self.manifest = reader.read_manifest(directory, verify)
    self.num_labels: int = self.manifest["num_labels"]
    self.num_ids: int = self.manifest["num_ids"]
    self.num_features: int = self.manifest["num_features"]
    self.input: str = self.manifest["input"]
    self._tensors = reader.read_tensors(self.workdir / reader.WEIGHTS)
    self.order = self._order()
    self._scores: Any
    if self.manifest["kind"] == "artifact":
      from xlj.export import artifact_scores  # which imports JAX

      where = self.workdir / ARTIFACT
      made = artifact_scores.ArtifactScores(where, self.manifest, self.order)
      self._scores = made
    else:
      self._scores = scores_lib.Scores(self.manifest, self._tensors)
    if probes is not None:
      found = self._index(probes)  # refuses what is no `scores.Scores`
      self._scores.index = found  # pyrefly: ignore[missing-attribute]

  def __repr__(self) -> str:
    """The model, and what of."""
    return (
      f"<Exported of {self.workdir}, {self.manifest['kind']}:"
      f" {self.num_labels} labels, {self.num_features} features,"
      f" {self.manifest['dtype']}>"
    )

  @functools.cached_property
  def config(self) -> ml_collections.ConfigDict:
    """The config of the run that it was made of."""
    import ml_collections

    found = ml_collections.ConfigDict()
    for name, value in self.manifest["config"].items():
      *sections, field = name.split(".")
      section = found
      for part in sections:
        if part not in section:
          section[part] = ml_collections.ConfigDict()
        section = section[part]
      section[field] = value
    return found

  @functools.cached_property
  def featurizer(self) -> features_lib.Featurizer | None:
    """What makes features of texts; None if it reads features."""
    if self.input != "texts":
      return None
    if self.manifest["config"]["data.text"] == "words":
      from xlj.text import words

      return words.Words.load(self.workdir / FEATURIZER)
    from xlj.config import text  # which imports JAX

    return text.load(self.config, self.workdir / FEATURIZER)

  @functools.cached_property
  def label_names(self) -> list[str] | None:
    """Names by label id, `num_ids` of them; None if the labels have none."""
    return self._names(reader.LABELS, self.num_ids)

  @functools.cached_property
  def feature_names(self) -> list[str] | None:
    """Names by feature id; None if there are none."""
    if (made := self.featurizer) is None:
      return self._names(reader.FEATURES, self.num_features)
    options: Any = getattr(made, "options", None)
    if options is None or options.hashed:
      return None
    return made.feature_names()  # pyrefly: ignore[missing-attribute]

  def names(self, ids: Any) -> Any:
    """The names of labels, nested as ids `[...]` are; None for -1.

    Raises:
      ValueError: The labels have no names, or there is no such id.
    """
    if self.label_names is None:
      raise ValueError(
        f"the labels of {self.workdir} have no names: there is no"
        f" {self.workdir / reader.LABELS}"
      )
    return answers_lib.names_of(self.label_names, np.asarray(ids))

  def label_counts(self) -> np.ndarray | None:
    """Training examples by label id, int64 `[num_ids]`; None if not known."""
    counts = self._tensors.get("label_counts")
    if counts is None:
      return None
    return self.order.by_data_id(counts.astype(np.int64))

  def topk(
    self,
    features: examples.Features,
    k: int | None = None,
    *,
    exclude: label_choice.Labels | None = None,
    among: label_choice.Labels | None = None,
    threshold: float | None = None,
    min_probability: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k best labels of each example.

    Args:
      features: n examples, as for `xlj.inference.predictor.Predictor.topk`.
      k: How many labels, at most the number of labels.
      exclude: Labels not to be returned, likewise.
      among: Labels of which no others are to be returned, likewise.
      threshold: Score that a label has to reach.
      min_probability: Probability that it has to reach, where the run was
        calibrated before it was exported.

    Returns:
      float32 scores `[n, k]`, descending, and label ids; -inf and -1 where
      there are fewer labels.

    Raises:
      ValueError: Something does not fit the model; it says what.
    """
    choice = label_choice.choose(self.num_ids, exclude, among, order=self.order)
    scores, ids, wrong = self.answers(features, k, choice, threshold)
    answers_lib.refuse(wrong)
    if min_probability is not None:
      from xlj.inference import calibration

      known = calibration.needed(self.calibration, self.workdir)
      scores, ids, _ = known.passing(scores, ids, min_probability)
    return scores, ids

  def answers(
    self,
    features: examples.Features,
    k: int | None = None,
    choice: label_choice.LabelChoice = label_choice.ALL,
    threshold: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The same; an example without a finite score does not cost the others.

    Args:
      features: As for `topk`.
      k: As there.
      choice: Labels that may be returned.
      threshold: As there.

    Returns:
      Scores and ids as there, and by row, from 0, what is wrong with those
      whose scores mean nothing.

    Raises:
      ValueError: If k, the features or the labels do not fit the model.
    """
    k = answers_lib.checked_k(k, threshold, self.num_labels)
    if self.manifest["config"].get("predict.exclude_seen"):
      features = examples.named(features, lambda: self.feature_names)
      features = examples.of(self.config, features)
      choice = choice.without_seen(features, self.num_ids, self.order)
    rows, status = self._read(features)
    count = rows.shape[0]
    choice.check_rows(count)
    asked = self._asked(choice, count)
    scores, found = self._scores.topk(rows, k, asked)
    wrong, best = {}, scores[:, 0]
    if status.any() or not np.isfinite(best).all():
      bad = (status != host_loops.FINE) | (best == np.inf)
      if choice.is_free:
        bad |= best == -np.inf
      for row in np.flatnonzero(bad).tolist():
        is_fine = status[row] == host_loops.FINE
        wrong[row] = answers_lib.NO_SCORE if is_fine else answers_lib.OVERFLOW
    scores, found = answers_lib.reaching(threshold, scores, found)
    return scores, self.order.to_data(found), wrong

  def neighbours_of(self, label: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels most like one, and cosines; as of a `Predictor`."""
    row = self._row_of(label)
    if self.manifest["kind"] == "artifact":  # which has no label rows here
      return np.zeros(0, np.int32), np.zeros(0, np.float32)
    found = explain.cosines_of_labels(self._scores, self._tensors, row)
    rows, cosines = contributions.nearest(found, n, row)
    return self.order.to_data(rows), cosines

  def why(
    self, row: Any, labels: Sequence[int], n: int
  ) -> list[list[tuple[int, float]]]:
    """What features speak most for labels of an example; as of a `Predictor`.

    Args:
      row: One example: a text, or anything that `topk` takes.
      labels: Ids.
      n: How many features at most, for each label.
    """
    rows = np.array([self._row_of(label) for label in labels], np.int64)
    if not len(rows) or self.manifest["kind"] == "artifact":
      return [[] for _ in labels]
    x = self._read_alone(row)
    ids, found = explain.why(self._scores, self._tensors, x, rows)
    return [contributions.largest(ids, each, n) for each in found]

  def near_rows(self, row: Any, n: int) -> list[contributions.NearRow]:
    """Training rows near to an example; as of a `Predictor`."""
    if "neighbours.labels" not in self._tensors:
      return []
    x = self._read_alone(row)
    assert isinstance(x, csr_lib.Csr)  # They have sparse features.
    found = explain.cosines_of_rows(self._tensors, x)
    starts, labels = (
      self._tensors[f"neighbours.{name}"] for name in ("label_starts", "labels")
    )
    return [
      contributions.NearRow(
        int(r),
        float(c),
        self.order.to_data(labels[starts[r] : starts[r + 1]]).tolist(),
      )
      for r, c in zip(*contributions.nearest(found, n))
    ]

  @functools.cached_property
  def calibration(self) -> calibration_lib.Calibration | None:
    """What makes probabilities of scores; None if it was not calibrated."""
    saved = self.manifest["calibration"]
    if saved is None:
      return None
    from xlj.inference import calibration  # which imports more of SciPy

    return calibration.Calibration.from_dict(saved, self.label_counts())

  def embed(self, features: examples.Features) -> np.ndarray:
    """What the encoder makes of examples, float32 `[n, D]`.

    Raises:
      ValueError: The model has no encoder, or other features.
    """
    if "label_rows" not in self._tensors:
      kind = self.manifest["kind"]
      raise ValueError(f"an exported model of kind {kind!r} has no embeddings")
    rows, status = self._read(features)
    x = self._scores.embed(rows)
    bad = ~np.isfinite(x).all(1) | (status != host_loops.FINE)
    answers_lib.refuse(
      dict.fromkeys(np.flatnonzero(bad).tolist(), answers_lib.NO_SCORE)
    )
    return x

  def warm_up(
    self, examples: int = 1, features: int | None = None, k: int | None = None
  ) -> None:
    """Loads the compiled loops, so that no answer has to wait for them.

    The first time after an install they are compiled, which takes seconds.

    Args:
      examples: Nothing depends on it, nor on the others, as there is one
        program for all of them.
      features: See there.
      k: How many labels.
    """
    del examples, features
    of: dict[str, Any] = {"texts": "a text", "items": {"items": [0]}}
    if self.input in ("dense", "images"):
      self.topk(np.zeros((1, self.num_features), np.float32), k)
    else:
      self.topk([of.get(self.input, {0: 1.0})], k)

  # --- features --------------------------------------------------------------

  def _read_alone(self, row: Any) -> csr_lib.Csr | np.ndarray:
    """What the model reads of one example."""
    x, _ = self._read(contributions.alone(row))
    contributions.check_alone(x.shape[0])
    return x

  def _read(
    self, features: examples.Features
  ) -> tuple[csr_lib.Csr | np.ndarray, np.ndarray]:
    """Weighted rows, or dense ones, and the status of each."""
    if self.featurizer is not None:
      features = examples.of_texts(features, self.featurizer)
    is_sparse = self.input not in ("dense", "images")
    rows = _quick(features) if is_sparse else None
    if checked := rows is None:
      features = examples.named(features, lambda: self.feature_names)
      rows = examples.of(self.config, features)
    if not isinstance(rows, csr_lib.Csr):
      rows = rows.astype(np.float32, copy=False)
      return rows, np.zeros(len(rows), np.uint8)
    rows, status = self._scores.weighted(rows)
    if status.any() and not checked:
      examples.of(self.config, features)  # refuses what is no feature
    return rows, status

  @property
  def label_rows(self) -> exact.Rows | None:
    """Those that alone make the scores; None if there is more."""
    if self.manifest["kind"] == "artifact":
      return None
    return self._scores.label_rows

  # --- parts -----------------------------------------------------------------

  def _index(self, probes: int) -> index_lib.Index | external_lib.External:
    """The index, which looks at so many lists or candidates."""
    if (said := self.manifest.get("index")) is None or self.label_rows is None:
      raise ValueError(
        f"probes is {probes}, and {self.workdir} has no index; export it again,"
        " with --index=0.95"
      )
    place, library = self.workdir / INDEX, said.get("library", "xlj")
    if library != "xlj":
      from xlj.search import external

      other = external.load(place / f"labels.{library}", self.label_rows)
      exact.check_number("probes", probes, None, least=0)
      return dataclasses.replace(other, effort=probes or said["probes"])
    found = index_lib.load(place, self.label_rows)
    exact.check_number("probes", probes, found.num_lists, least=0)
    return dataclasses.replace(found, probes=probes or said["probes"])

  def _order(self) -> label_order.LabelOrder:
    """Which label has which row."""
    ids = self._tensors.get("label_ids")
    if ids is None:
      return label_order.LabelOrder.identity()
    rows = np.full(self.num_ids, -1, np.int32)
    rows[ids] = np.arange(len(ids), dtype=np.int32)
    return label_order.LabelOrder(ids, rows)

  def _asked(
    self, choice: label_choice.LabelChoice, count: int
  ) -> scores_lib.Asked:
    """The rows of labels that may be answers, as the loops take them."""
    asked = scores_lib.Asked()
    if choice.is_free:
      return asked
    among: Any = choice.among
    if (allowed := choice.allowed) is not None:
      if among is not None:
        among = scipy.sparse.csr_array(among.multiply(allowed[None]))
        among.eliminate_zeros()
      elif 2 * np.count_nonzero(allowed) < len(allowed):
        only = np.sort(self._rows(np.flatnonzero(allowed)))
        first = np.zeros(count, np.int64)
        asked = asked._replace(
          among=True, first=first, last=first + len(only), only=only
        )
      else:
        denied = self._rows(np.flatnonzero(~allowed))
        asked = asked._replace(denied=denied)
    if among is not None:
      starts, only = among.indptr.astype(np.int64), self._rows(among.indices)
      # In the order of rows, as of equal scores the first row is best.
      for first, last in zip(starts[:-1], starts[1:]):
        only[first:last].sort()
      asked = asked._replace(
        among=True, first=starts[:-1], last=starts[1:], only=only
      )
    if choice.exclude is not None:
      exclude: Any = choice.exclude
      asked = asked._replace(
        of_excluded=exclude.indptr.astype(np.int64),
        excluded=self._rows(exclude.indices),
      )
    return asked

  def _row_of(self, label: int) -> int:
    """The row of a label; refuses what is no id of one."""
    ids = np.asarray(label)
    if ids.shape or ids.dtype.kind not in "iu":
      raise ValueError(f"label {label!r}: label ids are whole numbers")
    if not 0 <= ids < self.num_ids:
      raise ValueError(f"label {label}: there are ids 0 to {self.num_ids - 1}")
    row = int(self.order.to_head(ids))
    if row < 0:
      raise ValueError(f"label {label} has been deleted")
    return row

  def _rows(self, ids: np.ndarray) -> np.ndarray:
    """The rows of labels, -1 for those that have none."""
    return self.order.to_head(ids.astype(np.int32)).astype(np.int32)

  def _names(self, file: str, count: int) -> list[str] | None:
    """The names in a file of the model, if it is there."""
    path = self.workdir / file
    if not path.exists():
      return None
    return names_lib.read_names(path, count, table=False)


def _quick(features: Any) -> csr_lib.Csr | None:
  """Rows of a usual form, made without looking at values one by one.

  Ids and values are left to be checked.

  Args:
    features: Rows of any form.

  Returns:
    The rows; None if they are of another form, or wrong.
  """
  if isinstance(features, csr_lib.Csr):
    is_one = len(features.indptr) == 2 and features.indptr[0] == 0
    is_whole = is_one and features.indptr[1] == len(features.indices)
    return features if is_whole else None
  if not isinstance(features, list) or not features:
    return None
  ids: list[int] = []
  values: list[float] = []
  starts = [0]
  for row in features:
    if type(row) is not dict:
      return None
    ids += row
    values += row.values()
    starts.append(len(ids))
  if not set(map(type, ids)) <= {int} or not set(map(type, values)) <= _NUMBERS:
    return None
  try:
    with np.errstate(over="ignore"):
      return csr_lib.Csr(
        np.array(starts, np.int64),
        np.array(ids, np.int32),
        np.array(values, np.float32),
        0,
      )
  except OverflowError:
    return None
