"""A trained run, restored for inference on whatever devices are here."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import hashlib
import math
import numbers
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xlj import config as config_lib
from xlj import sharding
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import numbering as numbering_lib
from xlj.data import weighting as weighting_lib
from xlj.heads import head as head_lib
from xlj.inference import answers as answers_lib
from xlj.inference import calibration as calibration_lib
from xlj.inference import contributions
from xlj.inference import explain
from xlj.inference import fusion as fusion_lib
from xlj.model import batches
from xlj.model import examples
from xlj.model import label_choice
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib
from xlj.runs import directory
from xlj.text import words as words_lib


def load(
  workdir: str | Path,
  *,
  which: str = "best",
  predict: Mapping[str, Any] | None = None,
) -> "Predictor":
  """Restores a trained run for prediction.

  Args:
    workdir: Directory of the run.
    which: "best" checkpoint by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them, such as `{"propensity_power": 0.0}`.

  Returns:
    A predictor; the devices need not be those that trained it.

  Raises:
    ConfigError: If the directory holds no finished checkpoint.
    CheckpointError: If none of its checkpoints is good.

  Example:
    >>> scores, ids = xlj.load("runs/bibtex").topk([{3: 1.0, 17: 0.5}], 5)
  """
  run = directory.load(workdir, which=which)
  config = config_lib.with_predict(run.config, predict or {})
  return Predictor(dataclasses.replace(run, config=config))


class Predictor:
  """The model of a run with its weighting; see `load`."""

  def __init__(self, run: directory.Run):
    """Takes over a run."""
    self.run = run
    self.workdir, self.config, self.mesh = run.workdir, run.config, run.mesh
    self.step, self.state, self.order = run.step, run.trees["model"], run.order
    with jax.set_mesh(run.mesh):
      self.model = run.model()
    self.weighting = self._weighting()
    self.neighbours = None
    if run.config.neighbours.count:
      rows = directory.neighbours(run.workdir, run.config)
      known = run.order.known(rows.labels)
      self.neighbours = dataclasses.replace(rows, labels=known)
    self.fusion = fusion_lib.load(self, load)
    self._topk = jax.jit(self._scored, static_argnums=2)
    self._embed = jax.jit(self.model.embed)
    self._confidence = jax.jit(self.model.confidence, static_argnums=2)

  def __repr__(self) -> str:
    """The run, and what of."""
    return (
      f"<Predictor of {self.workdir}, step {self.step}: {self.num_labels}"
      f" labels, {self.num_features} features, head {self.model.head.name!r},"
      f" devices {self.mesh.size}>"
    )

  @property
  def num_labels(self) -> int:
    """Number of labels L."""
    return self.run.num_labels

  @property
  def num_ids(self) -> int:
    """Number of label ids, those of deleted and merged labels included."""
    return self.run.num_ids

  @property
  def num_features(self) -> int:
    """Number of features F."""
    return self.config.data.num_features

  @property
  def input(self) -> str:
    """What it reads, "texts", "items", "images", "dense" or "sparse"."""
    if self.run.encoding is not None:
      return "texts"
    if self.config.data.sequences:
      return "items"
    if self.config.encoder.image:
      return "images"
    return "dense" if self.config.data.dense else "sparse"

  @property
  def numbering(self) -> numbering_lib.Numbering | None:
    """Of the ids, with `data.renumber`."""
    return self.run.numbering

  @functools.cached_property
  def label_names(self) -> list[str] | None:
    """Names by label id, `num_ids` of them; None if the labels have none.

    With `data.renumber` they are in the order of the ids.
    """
    return splits.label_names(
      self.config, self.workdir, numbering=self.run.numbering
    )

  @functools.cached_property
  def feature_names(self) -> list[str] | None:
    """Names by feature id; None if the data had none for each feature."""
    if self.run.encoding is not None:
      made = self.run.encoding.featurizer
      if isinstance(made, words_lib.Words) and not made.options.hashed:
        return made.feature_names()
      return None
    return splits.feature_names(self.config, self.workdir)

  def names(self, ids: Any) -> Any:
    """The names of labels, as the data had them.

    Args:
      ids: Label ids of any shape, such as the `[n, k]` of `topk`.

    Returns:
      A list of names, nested as `ids` are; None for -1, which is no label.

    Raises:
      ValueError: The labels have no names, or there is no such id.

    Example:
      >>> scores, ids = run.topk(features, 5)
      >>> run.names(ids[0])
      ['entity', 'physical entity', 'abstraction', 'object', 'whole']
    """
    names, ids = self.label_names, np.asarray(ids)
    numbering = self.run.numbering
    if names is None:
      raise ValueError(
        f"the labels of {self.workdir} have no names: there was no labels.txt"
        f" with the data, and is no {self.workdir / splits.NAMES_FILE}"
      )
    if numbering is not None and ids.dtype.kind in "iu":
      numbers = numbering_lib.find(numbering.labels, ids)
      if (wrong := ids[(numbers < 0) & (ids != -1)]).size:
        raise ValueError(f"label {wrong.flat[0]}: training has no such id")
      ids = numbers
    return answers_lib.names_of(names, ids)

  def label_counts(self) -> np.ndarray | None:
    """Training examples by label id, int64 `[num_ids]`; None if not counted.

    With `data.renumber` they are in the order of the ids.
    """
    if "label_counts" not in self.state["buffers"]:
      return None
    return self.order.by_data_id(self.run.counts())

  @functools.cached_property
  def calibration(self) -> calibration_lib.Calibration | None:
    """What makes probabilities of scores; None without, or of other scores.

    `xlj calibrate` leaves it in the directory of the run.
    """
    numbering = self.run.numbering
    label_ids = None if numbering is None else numbering.labels
    return calibration_lib.load(
      self.workdir, self.fingerprint, self.label_counts(), label_ids
    )

  @property
  def fingerprint(self) -> str:
    """What tells the scores from those of another model, or of other runs."""
    if self.fusion is None:
      return directory.fingerprint(self.run)
    weights = hashlib.sha256(self.fusion.weights.tobytes()).hexdigest()[:16]
    words = self.fusion.words.fingerprint
    return f"{directory.fingerprint(self.run)}-{words}-{weights}"

  def topk(
    self,
    features: batches.Features,
    k: int | None = None,
    *,
    exclude: label_choice.Labels | None = None,
    among: label_choice.Labels | None = None,
    threshold: float | None = None,
    min_probability: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k best labels of each example.

    As one of several processes, all of them have to ask the same.

    Args:
      features: n texts, if the run was trained on texts; or n examples with
        raw features, as in the data files: a sparse matrix of SciPy (of at most
        F columns) or `xlj.data.csr`, an array, table or lists `[n, F]`, images
        `[n, H, W, C]`, or for each example a dict from feature id to value, or
        from name if features have names; also from a generator.
      k: How many labels, at most the number of labels; by default 5,
        or all where there are fewer.
      exclude: Labels not to be returned, such as what a user has already: ids
        for all examples (`[3, 7]`), or for each of them (a list of lists,
        `[n, E]` with -1 as padding, or a sparse matrix `[n, num_ids]`).
      among: Labels of which no others are to be returned; likewise.
      threshold: Score that a label has to reach.
      min_probability: Probability of being right that a label has to reach,
        for runs that are calibrated; `calibration.threshold` gives the one for
        a precision.

    Returns:
      float32 scores `[n, k]`, descending (logits), and int32 label ids, int64
      with `data.renumber`. Where fewer than k labels may be returned, or were
      scored, as heads do that search, the last ones are -inf and -1.

    Raises:
      ValueError: k is no number of labels, features or labels are none that the
        model could read (it says what to give, and in which row something is
        wrong), or an example has no finite score.
    """
    numbering = self.run.numbering
    label_ids = None if numbering is None else numbering.labels
    choice = label_choice.choose(
      *(self.num_ids, exclude, among, label_ids, self.order)
    )
    scores, ids, wrong = self.answers(features, k, choice, threshold)
    answers_lib.refuse(wrong)
    if min_probability is not None:
      known = calibration_lib.needed(self.calibration, self.workdir)
      scores, ids, _ = known.passing(scores, ids, min_probability)
    return scores, ids

  def answers(
    self,
    features: batches.Features,
    k: int | None = None,
    choice: label_choice.LabelChoice = label_choice.ALL,
    threshold: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """The same; an example without a finite score does not cost the others.

    Args and errors are those of `answers_alone`. Where other runs help (see
    `inference.fusion`), examples are texts, and few labels have a score.

    Returns:
      As there.
    """
    if self.fusion is None:
      return self.answers_alone(features, k, choice, threshold)
    k = answers_lib.checked_k(k, threshold, self.num_labels)
    texts = examples.texts_of(features)
    scores, ids = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int32)]
    wrong: dict[int, str] = {}
    choice.check_rows(len(texts))
    size = self.config.eval.batch_size
    for start in range(0, len(texts), size):
      block = texts[start : start + size]
      rows = np.arange(start, start + len(block))
      found, features, failed = self.fusion.judge(
        self, block, choice.take(rows)
      )
      wrong |= {start + row: why for row, why in failed.items()}
      judged = features @ self.fusion.weights
      top, best = fusion_lib.topk(found, judged, len(block), k)
      top, best = answers_lib.reaching(threshold, top, best)
      scores.append(top)
      ids.append(best)
    return np.concatenate(scores), np.concatenate(ids), wrong

  def answers_alone(
    self,
    features: batches.Features,
    k: int | None = None,
    choice: label_choice.LabelChoice = label_choice.ALL,
    threshold: float | None = None,
  ) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """What the run itself answers, whoever else helps.

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
    if self.config.predict.exclude_seen:
      features = examples.named(features, lambda: self.feature_names)
      features = examples.of(self.config, features)
      choice = choice.without_seen(features, self.num_ids, self.order)
    each = "offset" not in self.model.head.can
    with jax.set_mesh(self.mesh):
      allowed = None if each else choice.by_row(self.model, self.order)
    scores, ids = [np.zeros((0, k), np.float32)], [np.zeros((0, k), np.int32)]
    wrong, start = {}, 0
    for count, inputs in self._host_batches(features):
      choice.check_rows(start + count, more=True)
      rows = batches.part_of(start, count, inputs)
      most = choice.most_named(each, slice(start, start + count))
      of_rows = neighbours_lib.with_neighbours(
        choice.of_rows(rows, self.order, _powers(most)[-1], each),
        *(self.neighbours, inputs, self.order),
      )
      with jax.set_mesh(self.mesh):
        inputs, of_rows = sharding.put_batch((inputs, of_rows))
        of_rows = dataclasses.replace(of_rows, allowed=allowed)
        found = self._topk(self.state, inputs, self._rounded(k), of_rows)
        top, best, finite = (sharding.whole(array)[:count] for array in found)
      top, best = top[:, :k], best[:, :k]
      # A search passes over scores that are no numbers.
      none = ~(top < np.inf).all(1) | (choice.is_free & (best[:, 0] < 0))
      for row in np.flatnonzero(~finite | none).tolist():
        wrong[start + row] = (
          answers_lib.NO_SCORE if finite[row] else answers_lib.OVERFLOW
        )
      top, best = answers_lib.reaching(threshold, top, best)
      scores.append(top)
      ids.append(self.run.to_data(best))
      start += count
    choice.check_rows(start)
    return np.concatenate(scores), np.concatenate(ids), wrong

  def warm_up(
    self, examples: int = 1, features: int | None = None, k: int | None = None
  ) -> None:
    """Compiles what `topk` will need, so that no answer has to wait for it.

    There is a program for each power of two of examples, of features of the
    longest row among them, and of labels; this takes a fraction of a second
    for each.

    Args:
      examples: How many there will be at most, at a time.
      features: How many a row will have at most, where they are sparse; by
        default four times the mean of the training rows.
      k: How many labels, as for `topk`; up to 8 share a program, and so do
        those up to each power of two beyond.

    Raises:
      ValueError: One of them is no such number.
    """
    for name, most in (("examples", examples), ("features", features)):
      if most is None and name == "features":
        continue
      if not isinstance(most, numbers.Integral) or most < 1:
        raise ValueError(f"{name} is {most!r}; give a whole number from 1 on")
    data, batch_size = self.config.data, self.config.eval.batch_size
    if features is None:
      features = math.ceil(4 * data.features_per_row)
    longest = max(1, min(features, self.num_features))
    for count in _powers(min(examples, batch_size)):
      if self.fusion is not None:  # which reads texts alone
        self.answers(["a text of some words"] * count, k)
        continue
      if data.dense:
        dtype = np.uint8 if self.config.encoder.image else np.float32
        self.answers(np.ones((count, self.num_features), dtype), k)
        continue
      for width in _powers(longest):
        row = list(range(min(width, longest)))
        rows = csr_lib.Csr.from_rows([row] * count, self.num_features)
        self.answers(rows, k)

  def embed(self, features: batches.Features) -> np.ndarray:
    """What the encoder makes of examples, the vectors that meet label rows.

    Args:
      features: n examples, as for `topk`.

    Returns:
      float32 `[n, D]`.

    Raises:
      ValueError: The model has no encoder, or other features.
    """
    if not self.config.encoder.dim:
      raise ValueError("the model has no encoder: encoder.dim is 0")
    found = [np.zeros((0, self.model.head.dim), np.float32)]
    for count, inputs in self.batches(features):
      with jax.set_mesh(self.mesh):
        x = sharding.whole(self._embed(self.state, inputs))
      found.append(x[:count].astype(np.float32))
    return _finite(np.concatenate(found))

  def confidence(
    self, features: batches.Features, by: str = "probability"
  ) -> np.ndarray:
    """How sure the model is that an example is of any label at all.

    Args:
      features: n examples, as for `topk`.
      by: One of the head's `confidences`: "probability", the largest of a
        softmax over the labels (for dense heads and "oltr"); "cosine" or
        "reachability" for "oltr".

    Returns:
      float32 `[n]`; `xlj.open_world.open_set` rejects with them.

    Raises:
      ValueError: It is not known by what, or the head has no such thing.
    """
    head_lib.check_confidence(self.model.head, by)
    found = [np.zeros(0, np.float32)]
    for count, inputs in self.batches(features):
      with jax.set_mesh(self.mesh):
        values = self._confidence(self.state, inputs, by)
        found.append(sharding.whole(values)[:count])
    return _finite(np.concatenate(found))

  def neighbours_of(self, label: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels most like one, and cosines; see `explain.neighbours_of`."""
    return explain.neighbours_of(self, label, n)

  def why(
    self, row: Any, labels: Sequence[int], n: int
  ) -> list[list[tuple[int, float]]]:
    """What features speak most for labels of an example; see `explain.why`."""
    return explain.why(self, row, labels, n)

  def near_rows(self, row: Any, n: int) -> list[contributions.NearRow]:
    """Training rows near to an example; see `explain.near_rows`."""
    return explain.near_rows(self, row, n)

  def _host_batches(
    self, features: batches.Features
  ) -> Iterator[tuple[int, model_lib.Inputs]]:
    """As `batches`, before they are on the devices."""
    if self.run.numbering is not None:
      features = examples.numbered(features, self.run.numbering)
    if self.run.encoding is not None:
      features = examples.of_texts(features, self.run.encoding.featurizer)
    if self.run.numbering is None:
      features = examples.named(features, lambda: self.feature_names)
    return batches.of_features(
      self.config, features, self.weighting, self.mesh.size
    )

  def batches(
    self, features: batches.Features
  ) -> Iterator[tuple[int, model_lib.Inputs]]:
    """What the model reads of the examples, in batches on the devices.

    Args:
      features: n examples, as for `topk`.

    Yields:
      How many rows of a batch are examples, the first ones, and the batch.

    Raises:
      ValueError: The features do not fit the model.
    """
    for count, inputs in self._host_batches(features):
      with jax.set_mesh(self.mesh):
        placed = sharding.put_batch(inputs)
      yield count, placed

  def _rounded(self, k: int) -> int:
    """k, or for fewer programs more; the first k are the same."""
    if self.config.head.prototypes > 1:  # k says which labels are scored
      return k
    return min(self.num_labels, max(8, _powers(k)[-1]))

  def _scored(
    self, state: dict[str, Any], inputs: model_lib.Inputs, k: int, choice: Any
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `Model.topk` finds, and whether the values of a row are finite."""
    finite = jnp.isfinite(inputs.feature_values).all(1)
    return *self.model.topk(state, inputs, k, choice), finite

  def _weighting(self) -> weighting_lib.Weighting | None:
    if self.config.data.dense:
      return None
    idf = sharding.whole(self.state["buffers"]["idf"])
    data = self.config.data
    return weighting_lib.Weighting(data.weighting, data.l2, idf)


def _finite(values: np.ndarray) -> np.ndarray:
  """The same `[n, ...]`; a row that is not finite is refused."""
  bad = ~np.isfinite(values).all(tuple(range(1, values.ndim)))
  if bad.any():
    row = int(np.argmax(bad))
    raise ValueError(
      f"row {row} of the examples (the first is 0): {answers_lib.NO_SCORE}"
    )
  return values


def _powers(most: int) -> list[int]:
  """Powers of two, up to the first that is not less than `most`."""
  return [1 << i for i in range(max(0, most - 1).bit_length() + 1)]
