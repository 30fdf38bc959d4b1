"""Labels that come to a run after its training, without more of it.

Legend: K new labels.
"""

import dataclasses

from absl import logging
import numpy as np

from xlj import config as config_lib
from xlj.data import errors
from xlj.data import label_order
from xlj.data import store
from xlj.labels import arrays
from xlj.labels import new_weights
from xlj.runs import directory

METHODS = ("prototype", "teen", "features", "naive_bayes")


def append(
  run: directory.Run,
  data: store.Split,
  *,
  method: str = "prototype",
  names: list[str] | None = None,
  share: float = 0.5,
  scale: float = 16.0,
) -> directory.Run:
  """A run with more labels: those of the data that have no row.

  Args:
    run: The run.
    data: Examples with the features of the run. Ids of labels are those of the
      run; what has a row already is left as it is, what has not is new, those
      of deleted labels included.
    method: "prototype", the mean of a label's examples, less that of all;
      "teen", the same, rows calibrated by known ones (`xlj.labels.teen`);
      "features":
      each row holds the features of the label itself, and is no example;
      "naive_bayes", means in closed form by the variance inside labels
      (`xlj.labels.naive_bayes`). Lengths and biases are such that logits have
      the mean and the spread of those of trained labels with about as many
      examples.
    names: Of the new labels, by ascending id; by default as texts have them.
    share: Of known labels in the rows of "teen".
    scale: Of cosines to known labels, for "teen".

  Returns:
    The run. Optimizers know nothing of the new rows yet.

  Raises:
    ConfigError: Labels cannot be appended to it, or not by that method.
    DataError: The data have no new label, or other features.
  """
  _check(run, method)
  if data.num_features != run.config.data.num_features:
    raise errors.DataError(
      data.name,
      f"{data.num_features} features",
      f"{run.config.data.num_features}, those of the run",
    )
  new = _new_ids(run, data)
  if not len(new):
    raise errors.DataError(
      data.name, "no label without a row", f"an id from {run.num_ids} on"
    )
  if names is None and data.encoding is not None:
    known = data.encoding.label_names
    names = known and [known[label] for label in new]
  if names is not None and len(names) != len(new):
    raise config_lib.ConfigError(
      f"{len(names)} names for {len(new)} new labels; give one each"
    )
  logging.info("Appending %d labels of %s", len(new), data.name)
  values, counts = new_weights.make(
    run, data, new, method=method, share=share, scale=scale
  )
  num_ids = max(run.num_ids, data.num_labels)
  heads = run.num_labels + np.arange(len(new))
  head_ids = np.full(num_ids, -1, np.int32)
  head_ids[: run.num_ids] = run.head_ids
  head_ids[new] = heads
  data_ids = np.concatenate([run.data_ids, new.astype(np.int32)])
  order = label_order.LabelOrder(data_ids, head_ids)
  none = np.full(len(new), -1)
  found = arrays.restructured(run, order, none, heads)
  found = arrays.with_values(found, heads, values, counts)
  return _named(found, new, names)


def _check(run: directory.Run, method: str) -> None:
  if method not in METHODS:
    raise config_lib.ConfigError(
      f"method is {method!r}; use one of {', '.join(METHODS)}"
    )
  if not run.config.encoder.dim and method not in ("prototype", "features"):
    raise config_lib.ConfigError(
      f"method {method!r} needs embeddings, and {run.workdir} has no encoder"
      " (encoder.dim is 0); use 'prototype' or 'features'"
    )


def _new_ids(run: directory.Run, data: store.Split) -> np.ndarray:
  """Ids of the data without a row, ascending."""
  ids = np.unique(data.labels.indices).astype(np.int64)
  known = ids < run.num_ids
  known[known] = run.head_ids[ids[known]] >= 0
  return ids[~known]


def _named(
  run: directory.Run, new: np.ndarray, names: list[str] | None
) -> directory.Run:
  """A run with names of its new labels, if its labels have any."""
  if run.names is None and names is None:
    return run
  found = list(run.names or map(str, range(run.num_ids)))
  found += map(str, range(len(found), run.num_ids))
  for label, name in zip(new.tolist(), names or ()):
    found[label] = name
  return dataclasses.replace(run, names=found)
