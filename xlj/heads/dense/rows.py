"""What is stored of labels, and how it starts: rows, bias and wide path.

Labels are dealt out to `blocks` blocks of rows like cards, label i to block
`i % blocks`, and every device holds whole blocks (see `xlj.ops.layout`). So
if the labels are numbered by frequency, every device has its share of the
frequent ones.

Legend: N examples of the batch, n of this device, L labels (padded), D
embedding width, F features, B blocks, Z pairs of a block (padded).
"""

import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj import sharding
from xlj.ops import chunks
from xlj.ops import label_step
from xlj.ops import layout as layout_lib
from xlj.ops import rounding
from xlj.ops import row_optimizer
from xlj.ops import targets as targets_lib
from xlj.ops.pairs import label_pairs

P = jax.P
Params = dict[str, jax.Array]
# The parameters of the wide path, the fields of `LabelPairs`.
PAIRS = ("wide_starts", "wide_columns", "wide")
_INIT_ELEMENTS = 2**20  # initial weights made at a time


@dataclasses.dataclass(frozen=True)
class Rows:
  """Label rows, bias and wide path: their number, storage and start.

  Attributes:
    num_labels: Number of labels L.
    dim: Width D of the embeddings; 0 for a purely linear model.
    optimizer: How rows are stored, and rows and bias updated.
    blocks: Number of blocks that labels are dealt out to.
    use_bias: Whether labels have a bias.
    wide_features: Number of features F of the wide path; 0 for none.
    wide_pairs: Number of pairs Z of a block in the wide path, that of the block
      with most of them (see `xlj.ops.pairs.label_pairs`).
    kahan_labels: With compensation of rounding, the first so many labels have
      it, rounded up to a multiple of `blocks`; 0, or more than there are, for
      all.
    sampled: How many labels a step on rows that an encoder reads draws, beside
      those of the batch, in place of all (see `xlj.losses.sampled_softmax`); 0
      for all.
    init_scale: Standard deviation of the initial rows.
    init_bias: Initial bias of every label.
    cosine: Label rows count by their direction alone (they are normalised in
      the logits; the embeddings are expected to be).
    chunk_size: Rows of a chunk on each device; None to derive it.
    memory: Bytes of temporaries to derive it from; None for the default.
    keep_logits: The type that all logits of a step are kept in where the loss
      needs them twice, such as "float16": fewer products for more memory. None
      to form them again.
    skip_below: Chunks of labels in which no example's gradient of a logit is
      this large are left out of the gradients of embeddings and rows (Wijmans
      et al. 2025, "Cut your losses in large-vocabulary language models",
      section 4.3, where it is 2^-12). The gradient of an example's loss by its
      embedding is then wrong by at most this times the sum of the lengths of
      the rows left out, that of a row by this times the mean length of the
      embeddings. 0 leaves nothing out.
  """

  num_labels: int
  dim: int
  optimizer: row_optimizer.RowOptimizer
  blocks: int = 64
  use_bias: bool = True
  wide_features: int = 0
  wide_pairs: int = 0
  kahan_labels: int = 0
  sampled: int = 0
  init_scale: float = 0.0
  init_bias: float = 0.0
  cosine: bool = False
  chunk_size: int | None = None
  memory: int | None = None
  keep_logits: str | None = None
  skip_below: float = 0.0

  @property
  def layout(self) -> layout_lib.Layout:
    """Where each label's row is."""
    return self._layout(self.num_labels)

  def _layout(self, num_labels: int) -> layout_lib.Layout:
    """That of so many labels, on the devices in context."""
    empty = sharding.fill(self.blocks)
    return layout_lib.Layout(num_labels, self.blocks, empty)

  @property
  def num_rows(self) -> int:
    """Number of label rows including padding."""
    return self.layout.num_rows

  @property
  def kahan_layout(self) -> layout_lib.Layout:
    """That of the rows with compensation, where there is any."""
    if not 0 < self.kahan_labels < self.num_labels:
      return self.layout
    # All rows at the places of the first labels have it.
    places = self._layout(self.kahan_labels).rows_per_block
    return self._layout(places * self.blocks)

  def of_device(self) -> label_step.LabelRows:
    """What the pass over a device's rows needs to know, in this context."""
    compensated = self.optimizer.correction == "kahan"
    return label_step.LabelRows(
      layout=self.layout,
      format=self.optimizer.format,
      axes=sharding.axes(),
      unit=self.cosine,
      wide_rows=self.layout.rows_per_block if self.wide_features else 0,
      kahan_rows=self.kahan_layout.rows_per_block if compensated else 0,
      chunk_size=self.chunk_size,
      memory=self.memory,
      keep_logits=self.keep_logits,
      skip_below=self.skip_below,
    )

  def of_labels(self, ids: targets_lib.Array) -> jax.Array:
    """Rows of label ids; what is none, such as -1, is -1."""
    ids = jnp.asarray(ids)
    is_label = (ids >= 0) & (ids < self.layout.num_labels)
    return jnp.where(is_label, self.layout.row_of_label(ids), -1)

  def is_label(self) -> jax.Array:
    """Which rows hold a label, `[L]` bool, split like the rows."""

    def local():
      rows = jnp.arange(self.num_rows // sharding.num_shards())
      return self.layout.is_label(self.of_device().first_row() + rows)

    if not sharding.axes():
      return local()
    return jax.shard_map(local, in_specs=(), out_specs=sharding.LABELS)()

  # --- parameters ------------------------------------------------------------

  def init(self, key: jax.Array) -> Params:
    """Initial parameters, on the mesh in context if there is one.

    They do not depend on the mesh, and are made chunk by chunk.

    Args:
      key: Random key.

    Returns:
      Stored rows (see `xlj.ops.row_format`), `bias [L]` float32, and the fields
      of `LabelPairs` by the names of `PAIRS`, without a pair yet; as far as
      there are any.
    """
    seed = jax.random.bits(key)
    axes = sharding.axes()

    def local(seed):
      params = {}
      num_rows = self.num_rows // sharding.num_shards()
      if self.use_bias:
        params["bias"] = jnp.full((num_rows,), self.init_bias, jnp.float32)
      if self.dim:
        params |= self._init_rows(seed, num_rows)
      if self.wide_features:
        blocks = self.layout.num_blocks // sharding.num_shards()
        params |= jax.tree.map(
          lambda a: jnp.zeros((blocks, a.shape[1]), a.dtype),
          self._abstract_pairs(),
        )
      return chunks.mark_varying(params, axes)

    if not axes:
      return local(seed)
    return jax.shard_map(
      local, in_specs=sharding.REPLICATED, out_specs=self.specs()
    )(seed)

  def _init_rows(self, seed: jax.Array, num_rows: int) -> Params:
    """Stored normal rows of this shard."""
    first = self.of_device().first_row()

    def make(start, size):
      rows = jnp.asarray(first + start + jnp.arange(size), jnp.int32)
      bits = rounding.hash_bits(seed, 0, rows, jnp.arange(self.dim))
      # The middles of 2^23 intervals: exact in float32, never 0 or 1.
      uniform = ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
      normal = math.sqrt(2) * lax.erf_inv(2 * uniform - 1)
      return self.optimizer.format.encode(self.init_scale * normal, None)

    def write(start, size, stored):
      return jax.tree.map(
        lambda a, part: lax.dynamic_update_slice_in_dim(a, part, start, 0),
        stored,
        make(start, size),
      )

    abstract = self.optimizer.format.abstract(num_rows, self.dim)
    empty = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract)
    size = min(num_rows, max(1, _INIT_ELEMENTS // self.dim))
    return chunks.for_chunks(
      num_rows, size, write, chunks.mark_varying(empty, sharding.axes())
    )

  def init_optimizer(self, params: Params) -> row_optimizer.RowState:
    """Optimizer state for `params` (the wide path has none)."""
    kahan_rows = self.kahan_layout.num_rows
    return self.optimizer.init(without_wide(params), kahan_rows)

  def specs(self) -> dict[str, P]:
    """`PartitionSpec` of each parameter."""
    names = [*self._abstract(), *(PAIRS if self.wide_features else ())]
    return dict.fromkeys(names, sharding.LABELS)

  def optimizer_specs(self) -> Any:
    """`PartitionSpec` of each leaf of the optimizer state."""
    state = jax.eval_shape(self.init_optimizer, self._abstract())
    return self.optimizer.map_rows(
      lambda _: sharding.LABELS, state, sharding.REPLICATED
    )

  def _abstract(self) -> Any:
    """Shapes and types of the parameters without the wide path."""
    params = {}
    if self.use_bias:
      params["bias"] = jax.ShapeDtypeStruct((self.num_rows,), jnp.float32)
    if self.dim:
      params |= self.optimizer.format.abstract(self.num_rows, self.dim)
    return params

  def _abstract_pairs(self) -> dict[str, Any]:
    """Shapes and types of the wide path."""
    column = label_pairs.column_dtype(self.layout.rows_per_block)
    blocks = self.layout.num_blocks
    shape = blocks, max(1, self.wide_pairs)
    starts = blocks, self.wide_features + 1
    shapes = starts, shape, shape
    dtypes = jnp.int32, column, jnp.float32
    return dict(zip(PAIRS, map(jax.ShapeDtypeStruct, shapes, dtypes)))

  def decoded(self, params: Params) -> jax.Array:
    """The rows `[L, D]` as float32, row by row (see `Layout.by_row`)."""
    return self.optimizer.format.decode(params).astype(jnp.float32)

  def encoded(self, rows: jax.Array) -> Params:
    """Rows `[L, D]` float32 as they are stored, rounded to nearest."""
    return self.optimizer.format.encode(rows, None)

  # --- from the data ---------------------------------------------------------

  def at_prior(
    self, params: Params, counts: jax.Array, num_examples: int
  ) -> Params:
    """Parameters with the log odds of the labels as bias; see `Head`."""
    odds = (jnp.minimum(counts, num_examples) + 0.5) / (num_examples + 1)
    prior = jax.scipy.special.logit(odds)
    return params | {"bias": jnp.where(self.is_label(), prior, 0)}

  def add_to_rows(
    self, rows: jax.Array, ids: targets_lib.Array, x: jax.Array
  ) -> jax.Array:
    """Adds each example's vector to the rows of its labels; see `Head`."""

    @jax.shard_map(
      in_specs=(sharding.LABELS, sharding.BATCH, sharding.BATCH),
      out_specs=sharding.LABELS,
    )
    def run(rows, ids, x):
      ids, x = sharding.gather_batch((ids, x))
      columns = targets_lib.positives_in_chunk(
        self.of_labels(ids), self.of_device().first_row(), rows.shape[0]
      ).columns
      repeated = jnp.repeat(x, ids.shape[1], axis=0)
      return rows.at[columns.reshape(-1)].add(repeated, mode="drop")

    return run(rows, ids, x)

  def at_centroids(
    self, params: Params, sums: jax.Array, length: float
  ) -> Params:
    """Parameters with rows in the direction of their examples; see `Head`."""
    norm = jnp.linalg.norm(sums, axis=1, keepdims=True)
    unit = length * sums / jnp.maximum(norm, 1e-12)
    rows = jnp.where(norm > 0, unit, self.decoded(params))
    return params | self.encoded(rows)


def without_wide(params: Params) -> Params:
  """The parameters that the optimizer of rows updates."""
  return {name: value for name, value in params.items() if name not in PAIRS}


def of_pairs(pairs: label_pairs.LabelPairs) -> Params:
  """The parameters of a wide path."""
  return dict(zip(PAIRS, pairs))


def pairs(params: Params) -> label_pairs.LabelPairs:
  """The wide path of parameters that have one."""
  return label_pairs.LabelPairs(*(params[name] for name in PAIRS))
