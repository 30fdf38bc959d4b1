"""The training split, and what is decided from it before training starts."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

from absl import logging
import ml_collections
import numpy as np
import scipy.sparse

from xlj import config as config_lib
from xlj.config import splits
from xlj.data import clusters
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import label_pairs
from xlj.data import order as order_lib
from xlj.data import pipeline
from xlj.data import sampler as sampler_lib
from xlj.data import statistics
from xlj.data import store
from xlj.data import transitions
from xlj.data import weighting as weighting_lib
from xlj.model import batches as batches_lib
from xlj.model import neighbours as neighbours_lib
from xlj.ops import layout as layout_lib
from xlj.runs import directory
from xlj.text import features as features_lib
from xlj.training import room

_SAMPLE_ROWS = 4096  # that the size of features is taken from
_MOST_SHUFFLED = 2**25  # rows whose order is made in memory
_SAMPLE_ENTRIES = 2**25  # of dense ones, or images would fill the memory


@dataclasses.dataclass(frozen=True)
class Data:
  """A training split and what is known about it.

  Attributes:
    split: The training file.
    rows: Rows to train on.
    valid_split: What validation reads, the same but for sequences.
    valid_rows: Rows of it, held out for validation; may be empty.
    stats: Counts of labels and features.
    weighting: Of the features; None when they are dense.
    order: The head's numbers of the labels.
    sampler: Of the rows to train on, if not that of the pipeline.
    names: Of all label ids; None if they have none.
    pairs: Of a feature and a label, where they have just been found.
    neighbours: The training rows that predictions listen to, if they do.
  """

  split: store.Split
  rows: np.ndarray
  valid_split: store.Split
  valid_rows: np.ndarray
  stats: statistics.Statistics
  weighting: weighting_lib.Weighting | None
  order: label_order.LabelOrder
  sampler: order_lib.Orders | None = None
  names: list[str] | None = None
  pairs: label_pairs.Pairs | None = None
  neighbours: neighbours_lib.Neighbours | None = None

  def batches(
    self, config: ml_collections.ConfigDict
  ) -> order_lib.ShuffledBatches:
    """The rows of each training batch."""
    return pipeline.shuffled(
      self.split,
      config.train.batch_size,
      config.seed + config.train.shuffle,
      self.rows,
      self.sampler,
    )


def prepare(
  config: ml_collections.ConfigDict, workdir: Path | None = None
) -> tuple[ml_collections.ConfigDict, Data]:
  """Opens the training split and resolves the config against it.

  Args:
    config: A config that says in `data` where the data is.
    workdir: Of the run. If there is one in it that goes on, what was decided
      from the data stays; where it has lost or won labels (see `xlj.labels`),
      `head.order` names a file in it.

  Returns:
    The resolved config and the data.

  Raises:
    ConfigError: If the config cannot be run.
    DataError: If the data are not right, or have no features.
  """
  was = begun = None if workdir is None else directory.begun(workdir)
  encoding = known = None
  if workdir is not None and was is not None:
    encoding = directory.encoding(workdir, was)
    known = splits.label_names(was, workdir) if was.data.named_labels else None
  split = splits.open_split(config, encoding=encoding, label_names=known)
  if not split.num_features:
    raise store.DataError(
      split.name,
      "rows without features",
      "features in some row, or a header that says how many there are",
    )
  num_labels = config.data.num_labels if config.data.num_ids else None
  about = facts(split)
  if num_labels is not None:
    about = dataclasses.replace(about, num_labels=num_labels)
  stats = weighting = None

  def measure(config: ml_collections.ConfigDict) -> config_lib.Measured:
    nonlocal stats, weighting
    by_label = config.head.order != "none"
    stats = statistics.load_or_compute(
      split, split.cache_dir, by_label=by_label
    )
    weighting = weighting_lib.fit(
      config.data.weighting or "auto", stats, l2=config.data.l2, smooth=True
    )
    return config_lib.Measured(
      weighting.kind, weighting.l2, *_size(split, weighting)
    )

  asked = config.train
  own = None if begun is None else workdir
  names = splits.label_names(
    *(config, own, config.data.num_ids or split.num_labels, split.numbering),
    split.label_names,
  )
  if names is not None and begun is None:
    _tell_repeated(names)
  if begun is not None:
    config, begun = config_lib.reopened(config, begun)
  room.check(
    config, lambda c: config_lib.resolve(c, about, begun=begun), split, workdir
  )
  splits.check_others(
    config,
    split.num_features,
    config.data.num_ids or split.num_labels,
    split.numbering,
    split.encoding,
    split.label_names,
  )
  config = config_lib.resolve(config, about, measure, begun)
  if workdir is None or was is None:
    _check_length(asked, config)
  elif config_lib.is_longer(was, config):
    with directory.keeper(workdir, config, read_only=True) as keeper:
      if keeper.latest_step() == was.train.num_steps:
        # Its rates may have fallen to nothing.
        config.optim.from_step = was.train.num_steps
  assert stats is not None
  if split.own_validation and config.data.validation:
    raise config_lib.ConfigError(
      f"data.validation is {config.data.validation}, and of interactions items"
      " are held out, not users; give data.interactions.validation instead"
    )
  rows, valid_rows = pipeline.holdout(
    split.num_rows, float(config.data.validation), config.seed
  )
  valid_split = split
  if config.data.sequences or (
    split.own_validation and config.data.interactions.validation
  ):
    valid_split = splits.open_split(config, "validation")
    valid_rows = np.arange(valid_split.num_rows)
  if config.data.dense:
    weighting = None
  if workdir is not None and config.data.num_ids:
    order = directory.edited_order(workdir, config)
  else:
    order = _order(config, split, rows, stats, weighting, own)
  sampler: order_lib.Order | sampler_lib.ByLabel | None = None
  seed = config.seed + config.train.shuffle
  if config.tail.sampler != "instance":
    sampler = sampler_lib.ByLabel(
      order.known(split.labels.take(rows)),
      config.tail.sampler,
      seed,
    )
  elif config.head.by_example and len(rows) <= _MOST_SHUFFLED:
    # Examples are trained on as fast as their order would be made one by one.
    sampler = order_lib.Order(len(rows), seed, whole=True)
  visited: order_lib.Orders | None = sampler
  if config.train.by_length:
    visited = order_lib.ByLength(
      sampler or order_lib.Order(len(rows), seed),
      batches_lib.lengths(split, rows),
      config.train.batch_size,
      seed,
    )
  data = Data(
    *(split, rows, valid_split, valid_rows, stats, weighting, order, visited),
    names=names,
  )
  if (field := pairs_field(config)) and not config.head[field]:
    found = find_pairs(config, data)
    config.head[field] = found.columns.shape[1]
    data = dataclasses.replace(data, pairs=found)
  return config, data


def pairs_field(config: ml_collections.ConfigDict) -> str:
  """What in `head` says how many weights of pairs a block has; "" for none."""
  if config.head.transitions:
    return "transition_pairs"
  return "wide_pairs" if config.head.wide else ""


def _check_length(
  asked: ml_collections.ConfigDict, config: ml_collections.ConfigDict
) -> None:
  """Warns where the epochs asked for are not those that the steps make."""
  epochs = config_lib.num_epochs(config)
  if asked.num_steps and asked.epochs not in (None, epochs):
    logging.warning(
      "train.num_steps=%d decides: it is %g epochs, and train.epochs=%g does"
      " not count",
      *(asked.num_steps, epochs, asked.epochs),
    )


def neighbours(
  config: ml_collections.ConfigDict, data: Data
) -> neighbours_lib.Neighbours:
  """The training rows that predictions listen to; see `xlj.model.neighbours`.

  Args:
    config: A resolved config; `neighbours.count` is not 0.
    data: Of training, weighted as the run has learned it.

  Returns:
    The rows.
  """
  assert isinstance(data.split.features, csr_lib.Csr)
  assert data.weighting is not None
  return neighbours_lib.Neighbours(
    data.weighting(data.split.features.take(data.rows)),
    data.order.known(data.split.labels.take(data.rows)),
    **config.neighbours,
  )


def of_label_texts(data: Data, asked: str) -> Data:
  """The texts of labels as if they were the training rows.

  Args:
    data: Of training on texts.
    asked: Which field needs them, for the message.

  Returns:
    The data, with a row for each label that has a text.

  Raises:
    ConfigError: No label has one.
  """
  split = features_lib.label_split(data.split)
  if split is None:
    raise config_lib.ConfigError(
      f"{asked} needs texts of labels, and none has one: add labels.jsonl of"
      ' {"label": ..., "text": ...} to the data, or leave it out'
    )
  return dataclasses.replace(data, split=split, rows=np.arange(split.num_rows))


def find_pairs(
  config: ml_collections.ConfigDict, data: Data
) -> label_pairs.Pairs:
  """The pairs of a feature and a label that meet in the training rows.

  Args:
    config: A resolved config with a wide path.
    data: Of training.

  Returns:
    The pairs that the config keeps.
  """
  if data.pairs is not None:
    return data.pairs
  head, features = config.head, data.split.features
  assert isinstance(features, csr_lib.Csr) and data.weighting is not None
  layout = layout_lib.Layout(config.data.num_labels, head.blocks)
  shape = layout.blocks, layout.rows_per_block
  of_head = data.order.to_head(np.arange(data.split.num_labels))
  row_of_label = np.where(of_head < 0, -1, layout.row_of_label(of_head))
  if head.transitions:
    found = _transitions(config, data, row_of_label, shape)
  else:
    found = label_pairs.find(
      features,
      data.split.labels,
      row_of_label,
      shape,
      rows=data.rows,
      weighting=data.weighting,
      limits=label_pairs.Limits(
        head.wide_evidence * config.data.feature_norm**2,
        head.wide_work,
        head.wide_per_feature,
        head.wide_per_label,
      ),
    )
  logging.info(
    "%d pairs of a feature and a label meet; %d have a weight",
    *(found.found, found.kept),
  )
  width = found.columns.shape[1]
  field = pairs_field(config)
  if head[field] not in (0, width):
    raise config_lib.ConfigError(
      f"head.{field} is {head[field]}, and the training rows have {width};"
      " leave it open in a new run"
    )
  return found


def _transitions(
  config: ml_collections.ConfigDict,
  data: Data,
  row_of_label: np.ndarray,
  shape: tuple[int, int],
) -> label_pairs.Pairs:
  """The pairs of items of which one came after the other, and their weights."""
  head, features = config.head, data.split.features
  assert isinstance(features, csr_lib.Csr)  # They are sequences.
  found = transitions.weights(
    features.take(data.rows),
    data.split.labels.take(data.rows),
    decay=head.transitions_decay,
    smoothing=head.transitions_smoothing,
    longest=config.encoder.sizes.positions,
  )
  by_row = scipy.sparse.csr_array(
    (head.transitions * found.data, row_of_label[found.indices], found.indptr),
    shape=(features.num_columns, shape[0] * shape[1]),
  )
  starts, columns, weights = label_pairs.by_block(by_row, shape)
  return label_pairs.Pairs(starts, columns, found.nnz, weights)


def _order(
  config: ml_collections.ConfigDict,
  split: store.Split,
  rows: np.ndarray,
  stats: statistics.Statistics,
  weighting: weighting_lib.Weighting | None,
  workdir: Path | None,
) -> label_order.LabelOrder:
  """How the head numbers the labels; in the run of `workdir`, if there is."""
  head, counts = config.head, stats.label_counts
  if counts is None or head.order == "none":
    return label_order.LabelOrder.identity()
  if head.order == "identity":
    return label_order.LabelOrder.of(np.arange(split.num_labels))
  if head.order == "frequency":
    return label_order.LabelOrder.by_frequency(counts)
  if head.order != "clusters":
    path: str | Path = head.order
    if workdir is not None and (workdir / directory.ORDER_FILE).exists():
      path = workdir / directory.ORDER_FILE
    return label_order.LabelOrder.from_file(path, split.num_labels)
  number = (head.groups or head.lengths)[-1]
  logging.info("Clustering %d labels into %d groups", len(counts), number)
  # Of the rows that are trained on: validation tells nothing then.
  features = split.features
  if isinstance(features, csr_lib.Csr):
    features = features.take(rows)
  else:
    features = features[rows]
  centroids = clusters.centroids(features, split.labels.take(rows), weighting)
  groups = clusters.balanced(centroids, number, config.seed)
  return label_order.LabelOrder.by_groups(groups, number, counts)


def _tell_repeated(names: list[str]) -> None:
  """Says in the log that names are those of several labels."""
  found = [name for name, n in collections.Counter(names).items() if n > 1]
  if found:
    first = names.index(found[0])
    logging.warning(
      "Names that several labels have: %d, such as %r of %d and %d; ids tell"
      " these apart",
      *(len(found), found[0], first, names.index(found[0], first + 1)),
    )


def _size(
  split: store.Split, weighting: weighting_lib.Weighting
) -> tuple[float, float, float]:
  """What `Measured` says of the size of weighted rows, from some of them."""
  features, count = split.features, _SAMPLE_ROWS
  if not isinstance(features, csr_lib.Csr):
    count = min(count, max(1, _SAMPLE_ENTRIES // split.num_features))
  rows = np.unique(np.linspace(0, split.num_rows - 1, count).astype(np.int64))
  if isinstance(features, csr_lib.Csr):
    sample: Any = weighting(features.take(rows)).to_scipy()
    per_row = sample.nnz / len(rows)
  else:
    sample = np.asarray(features[rows])
    per_row = float(np.count_nonzero(sample) / len(rows))
  squares = sample**2
  second, fourth = squares.sum(1), (squares**2).sum(1)  # by row
  some = fourth > 0
  spread = np.log(second[some] ** 2 / fourth[some])
  norm = float(np.sqrt(second.mean())) or 1.0
  return norm, per_row, float(np.exp(spread.mean())) if some.any() else 1.0


def facts(split: store.Split) -> config_lib.DataFacts:
  """What the config's rules need to know about a training split."""
  features = split.features
  sparse = isinstance(features, csr_lib.Csr)
  return config_lib.DataFacts(
    num_rows=split.num_rows,
    num_features=split.num_features,
    num_labels=split.num_labels,
    labels_per_row=split.labels.nnz / split.num_rows,
    features_per_row=features.nnz / split.num_rows
    if isinstance(features, csr_lib.Csr)
    else split.num_features,
    dense=not sparse,
    kind=statistics.feature_kind(features),
    fingerprint=split.fingerprint,
    image=split.image,
    text=split.encoding.kind if split.encoding else "",
    label_text=features_lib.label_texts_tell(split),
    named_labels=split.label_names is not None,
    own_validation=split.own_validation,
  )
