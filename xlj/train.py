"""The training loop: data, model, steps, validation, checkpoints."""

from collections.abc import Mapping
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from absl import logging
import jax
import ml_collections
import numpy as np

from xlj import checkpoint
from xlj import config as config_lib
from xlj import evaluator
from xlj import families
from xlj import label_order
from xlj import machine
from xlj import mesh as mesh_lib
from xlj import model as model_lib
from xlj import progress
from xlj import report
from xlj import sharding
from xlj import splits
from xlj.data import clusters
from xlj.data import csr as csr_lib
from xlj.data import padding
from xlj.data import pipeline
from xlj.data import statistics
from xlj.data import store
from xlj.data import weighting as weighting_lib


@dataclasses.dataclass(frozen=True)
class Data:
  """A training split and what is known about it.

  Attributes:
    split: The training file.
    rows: Rows to train on.
    valid_rows: Rows held out for validation; may be empty.
    stats: Counts of labels and features.
    weighting: Of the features; None when they are dense.
    order: The head's numbers of the labels.
  """

  split: store.Split
  rows: np.ndarray
  valid_rows: np.ndarray
  stats: statistics.Statistics
  weighting: weighting_lib.Weighting | None
  order: label_order.LabelOrder


def train(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
  """Trains a model, or continues the run that `workdir` holds.

  Args:
    config: A config (see `xlj.config.base`); fields left None are decided
      from the data.
    workdir: Directory of the run: config, checkpoints, metrics, report.

  Raises:
    ConfigError: If the config cannot be run, or is not that of the run that
      `workdir` holds.
    DataError: If the data cannot be read.
    FloatingPointError: If the loss is not finite.
  """
  workdir = Path(workdir).absolute()
  mesh = mesh_lib.make_mesh(tuple(config.mesh.shape) or None)
  config, data = prepare(config)
  _claim(workdir, config)
  with jax.set_mesh(mesh):
    model = model_lib.Model(config)
    with checkpoint.Checkpointer(
      workdir, keep=config.checkpoint.keep, best_metric=config.eval.metric
    ) as keeper:
      state = _start(model, keeper, config, data)
      _loop(model, keeper, state, config, data, workdir)
  if jax.process_index() == 0:
    report.write_report(workdir)


def prepare(
  config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Data]:
  """Opens the training split and resolves the config against it.

  Args:
    config: A config that says in `data` where the data is.

  Returns:
    The resolved config and the data.
  """
  split = splits.open_split(config)
  config = config_lib.resolve(config, facts(split))
  rows, valid_rows = pipeline.holdout(
    split.num_rows, float(config.data.validation), config.seed
  )
  by_label = config.head.order != "none"
  stats = statistics.load_or_compute(split, split.cache_dir, by_label=by_label)
  weighting = None
  if config.data.dense:
    config.data.weighting, config.data.l2 = "none", False
  else:
    weighting = weighting_lib.fit(
      config.data.weighting, stats, l2=config.data.l2, smooth=True
    )
    config.data.weighting, config.data.l2 = weighting.kind, weighting.l2
  _scale(config, split, weighting)
  order = _order(config, split, rows, stats, weighting)
  return config, Data(split, rows, valid_rows, stats, weighting, order)


def _order(
  config: ml_collections.ConfigDict,
  split: store.Split,
  rows: np.ndarray,
  stats: statistics.Statistics,
  weighting: weighting_lib.Weighting | None,
) -> label_order.LabelOrder:
  """How the head numbers the labels."""
  head, counts = config.head, stats.label_counts
  if counts is None or head.order == "none":
    return label_order.LabelOrder.identity()
  if head.order == "identity":
    return label_order.LabelOrder.of(np.arange(split.num_labels))
  if head.order == "frequency":
    return label_order.LabelOrder.by_frequency(counts)
  if head.order != "clusters":
    return label_order.LabelOrder.from_file(head.order, split.num_labels)
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


def _scale(
  config: ml_collections.ConfigDict,
  split: store.Split,
  weighting: weighting_lib.Weighting | None,
) -> None:
  """Fills in the size of the features that the encoder will see.

  Adam moves every weight by about the learning rate, however small the
  features are; features of norm 1 would move an embedding too slowly. They are
  scaled up to the norm that as many ones would have.
  """
  rows = np.unique(np.linspace(0, split.num_rows - 1, 4096).astype(np.int64))
  features = split.features
  if isinstance(features, csr_lib.Csr):
    sample = features.take(rows)
    sample = sample if weighting is None else weighting(sample)
    norms = statistics.row_norms(sample)
    per_row = sample.nnz / sample.num_rows
  else:
    block = np.asarray(features[rows])
    norms = np.linalg.norm(block, axis=1)
    per_row = float(np.count_nonzero(block) / len(block))
  data, encoder = config.data, config.encoder
  data.feature_norm = float(np.sqrt(np.mean(np.square(norms)))) or 1.0
  data.features_per_row = per_row
  if encoder.input_scale is None:
    encoder.input_scale = max(1.0, per_row) ** 0.5 / data.feature_norm


def facts(split: store.Split) -> families.DataFacts:
  """What the config's rules need to know about a training split."""
  features = split.features
  sparse = isinstance(features, csr_lib.Csr)
  return families.DataFacts(
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
  )


def _claim(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Writes the config into the directory, or checks that it is the same."""
  path = workdir / config_lib.FILE
  if path.exists():
    config_lib.check_same_run(config_lib.load(path), config, workdir)
    return
  if jax.process_index() == 0:
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(config_lib.to_json(config))
    facts = json.dumps(machine.facts(jax.devices()), indent=2)
    (workdir / report.MACHINE_FILE).write_text(facts + "\n")


def _start(
  model: model_lib.Model,
  keeper: checkpoint.Checkpointer,
  config: ml_collections.ConfigDict,
  data: Data,
) -> model_lib.State:
  """The newest checkpoint's state, or a fresh one."""
  step = keeper.latest_step()
  if step is not None:
    logging.info("Continuing from the checkpoint of step %d", step)
    abstract = model.abstract()
    trees = keeper.restore(step, abstract.model, abstract.training)
    return model_lib.State(*trees, step=sharding.replicate(np.int32(step)))
  counts = data.stats.label_counts
  if counts is not None:
    counts = data.order.by_head_id(counts).astype(np.int32)
  state = model.init(
    sharding.replicate(jax.random.key(config.seed)),
    sharding.replicate(data.order.data_ids),
    sharding.replicate(counts),
    sharding.replicate(_idf(config, data.weighting)),
  )
  if config.head.init == "centroid":
    state = _at_centroids(model, state, config, data)
  return state


def _idf(
  config: ml_collections.ConfigDict, weighting: weighting_lib.Weighting | None
) -> np.ndarray:
  """Inverse document frequencies `[F]` to keep with the model."""
  if weighting is None or weighting.idf is None:
    return np.ones(config.data.num_features, np.float32)
  return weighting.idf


def _at_centroids(
  model: model_lib.Model,
  state: model_lib.State,
  config: ml_collections.ConfigDict,
  data: Data,
) -> model_lib.State:
  """The state with each label row at the mean direction of its examples."""
  logging.info("Starting the label rows at the centroids of their examples")
  add = jax.jit(model.add_to_centroids, donate_argnums=0)
  rows = model.zero_rows()
  for batch in pipeline.eval_batches(
    data.split,
    data.weighting,
    batch_size=config.eval.batch_size,
    rows=data.rows,
    process=evaluator.this_process(),
  ):
    inputs = sharding.put_batch(evaluator.to_inputs(batch, data.order))
    rows = add(rows, state.model, inputs)
  start = jax.jit(
    model.start_at_centroids,
    out_shardings=model.shardings(),
    donate_argnums=(0, 1),
  )
  return start(rows, state)


def _loop(
  model: model_lib.Model,
  keeper: checkpoint.Checkpointer,
  state: model_lib.State,
  config: ml_collections.ConfigDict,
  data: Data,
  workdir: Path,
) -> None:
  """Runs the steps that are left.

  The order matters: the state is validated and saved before the batch of the
  next step is taken, so a restored run sees exactly the batches that the
  interrupted one had not seen.
  """
  start, stop = int(state.step), config.train.num_steps
  batch_size, first = config.train.batch_size, jax.process_index() == 0
  validator = _validator(model, config, data)
  step_fn = jax.jit(model.train_step, donate_argnums=0)
  batches = pipeline.train_batches(
    data.split,
    data.weighting,
    batch_size=batch_size,
    seed=config.seed,
    start_step=start,
    rows=data.rows,
    widths=padding.plan(
      data.split,
      batch_size=batch_size,
      rows=data.rows,
      max_features=config.data.max_features,
      max_labels=config.data.max_labels,
    ),
    process=evaluator.this_process(),
    num_threads=config.data.threads,
  )
  bar = progress.Progress(
    stop, initial_step=start, examples_per_step=batch_size, enabled=first
  )
  writer = progress.MetricWriter(workdir, resume_step=start, enabled=first)
  with bar, writer:
    for step in range(start + 1, stop + 1):
      batch = sharding.put_batch(evaluator.to_inputs(next(batches), data.order))
      state, metrics = step_fn(state, batch)
      bar.update(step, metrics)
      if step % config.train.log_every == 0 or step == stop:
        _check_finite(metrics, step)
        writer.write(step, "train", metrics)
      scores = None
      if validator and (step % config.eval.every == 0 or step == stop):
        scores = validator.run(state.model).compute()
        writer.write(step, "eval", scores)
      if step % config.checkpoint.every == 0 or step == stop:
        _check_finite(metrics, step)
        keeper.save(
          step,
          state.model,
          state.training,
          {"step": step, "examples": step * batch_size},
          scores,
        )


def _validator(
  model: model_lib.Model, config: ml_collections.ConfigDict, data: Data
) -> evaluator.Evaluator | None:
  if not len(data.valid_rows):
    return None
  counts = data.stats.label_counts
  return evaluator.Evaluator(
    model,
    data.split,
    data.weighting,
    data.order,
    batch_size=config.eval.batch_size,
    num_labels=config.data.num_labels,
    ks=config.eval.ks,
    rows=data.valid_rows,
    propensities=None
    if counts is None
    else statistics.propensities(
      counts,
      data.stats.num_rows,
      config.data.propensity_a,
      config.data.propensity_b,
    ),
    per_label=counts is not None,
  )


def _check_finite(metrics: Mapping[str, Any], step: int) -> None:
  loss = float(metrics["loss"])
  if not math.isfinite(loss):
    raise FloatingPointError(
      f"the loss is {loss} at step {step}; lower optim.*.learning_rate, then"
      " run the same command again: it continues from the last checkpoint"
    )
