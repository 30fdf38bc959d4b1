"""A config that states the facts about its data: resolved without reading any.

Legend: N examples of the batch, K features and P labels of an example.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from xlj import config as config_lib
from xlj import sharding
from xlj.config import heads
from xlj.heads import head as head_lib
from xlj.model import model as model_lib
from xlj.ops import layout as layout_lib

MAX_LABELS = 2**31 - 1  # of int32
# What chunks of labels may take on accelerators, unless the config says so: as
# `xlj.ops.chunks` has it, which sees a CPU here.
CHUNK_BYTES = 2**29
# Batches are padded to such widths, see `xlj.data.padding`.
_FEATURE_MULTIPLE = 8
_DEFAULT_LABELS = 8


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Resolves a config that holds the facts about its data.

  Args:
    config: See `facts`.

  Returns:
    A config without open fields, `data.max_features` and `data.max_labels`
    being the widths of a batch.

  Raises:
    ConfigError: If a fact is missing, there are too many labels, or what the
      head costs depends on the data.
  """
  found = facts(config)
  config = config_lib.resolve(config, found)
  head = heads.make(config)
  if "plan" not in head.can:
    raise config_lib.ConfigError(head_lib.refusal(head, "plan"))
  data = config.data
  if data.num_labels > MAX_LABELS:
    raise config_lib.ConfigError(
      f"data.num_labels is {data.num_labels:,}; label ids are int32, so a head"
      f" with a row for each label holds at most {MAX_LABELS:,}: use a"
      " multi-head encoding, which writes a label as a few digits"
    )
  if not data.dense and not data.max_features:
    per_row = math.ceil(found.features_per_row)
    data.max_features = -(-per_row // _FEATURE_MULTIPLE) * _FEATURE_MULTIPLE
  data.max_labels = data.max_labels or _DEFAULT_LABELS
  settings, per_row = config.head, found.features_per_row
  if settings.wide and not settings.wide_pairs:
    settings.wide_pairs = _most_pairs(config, found, found.labels_per_row)
  if settings.transitions and not settings.transition_pairs:
    settings.transition_pairs = _most_pairs(config, found, per_row)
  config.head.chunk_bytes = config.head.chunk_bytes or CHUNK_BYTES
  return config


def _most_pairs(
  config: ml_collections.ConfigDict,
  found: config_lib.DataFacts,
  per_feature: float,
) -> int:
  """How many pairs of a block can meet: all, or what the rows bring.

  Args:
    config: The config.
    found: The facts about the data.
    per_feature: Labels that meet a feature of a row.

  Returns:
    The number.
  """
  blocks, data = config.head.blocks, config.data
  triples = data.num_rows * found.features_per_row * per_feature
  rows_per_block = layout_lib.Layout(data.num_labels, blocks).rows_per_block
  return min(data.num_features * rows_per_block, math.ceil(triples / blocks))


def facts(config: ml_collections.ConfigDict) -> config_lib.DataFacts:
  """The facts about a data set that its config states.

  Args:
    config: With `data.num_rows`, `data.num_features` and `data.num_labels`,
      and, for sparse features, `data.features_per_row` or `data.max_features`.

  Returns:
    The facts.

  Raises:
    ConfigError: If one is missing.
  """
  data = config.data
  for name in ("num_rows", "num_features", "num_labels"):
    value = data[name]
    if value is None or value < 1:
      said = "not set" if value is None else f"{value}"
      raise config_lib.ConfigError(
        f"data.{name} is {said}; no data is read to make a plan, so give"
        f" --config.data.{name}=NUMBER, or use --config=billion"
      )
  per_row = data.features_per_row or data.max_features
  if data.dense:
    per_row = data.num_features
  if not per_row:
    raise config_lib.ConfigError(
      "data.features_per_row is not set; give"
      " --config.data.features_per_row=NUMBER, or data.dense=True"
    )
  return config_lib.DataFacts(
    num_rows=data.num_rows,
    num_features=data.num_features,
    num_labels=data.num_labels,
    labels_per_row=float(data.max_labels or 1),
    features_per_row=float(per_row),
    dense=bool(data.dense),
    kind="dense" if data.dense else "normalised",
    fingerprint=data.fingerprint or "",
  )


def batch(config: ml_collections.ConfigDict) -> model_lib.Inputs:
  """Shapes, dtypes and shardings of a batch, on the mesh in context.

  Args:
    config: Resolved by `resolve`.

  Returns:
    Abstract inputs.
  """
  where = jax.NamedSharding(sharding.mesh(), sharding.BATCH)
  n, data = config.train.batch_size, config.data
  n += sharding.fill(n)

  def array(*shape: int, dtype: Any = jnp.float32) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

  width = data.num_features if data.dense else data.max_features
  # Every item of a sequence has a label, the one that comes next.
  labels = width if config.encoder.type == "causal" else data.max_labels
  return model_lib.Inputs(
    feature_ids=None if data.dense else array(n, width, dtype=jnp.int32),
    feature_values=array(n, width),
    label_ids=array(n, labels, dtype=jnp.int32),
    weights=array(n),
    rows=array(n, dtype=jnp.int32),
  )
