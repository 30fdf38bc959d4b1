"""Where the row of a label is: labels dealt out to blocks like cards.

Label i is in block `i % blocks`, at place `i // blocks` of it. A device holds
whole blocks, so the rows of labels do not depend on the devices, and each of
them gets its share of any range of labels, the most frequent ones in
particular. With one block, row i is label i. Where devices do not divide the
blocks, as many empty ones follow as make the devices' shares equal.
"""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Ids = TypeVar("Ids", jax.Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows for `num_labels` labels in `blocks` blocks of equal size.

  Example:
    Layout(5, 2): row 0 1 2 3 4 5 holds label 0 2 4 1 3 -

  Attributes:
    num_labels: Number of labels.
    blocks: Number of blocks that they are dealt out to.
    empty: Number of blocks behind those.
  """

  num_labels: int
  blocks: int = 1
  empty: int = 0

  @property
  def num_blocks(self) -> int:
    """Blocks in all, empty ones included."""
    return self.blocks + self.empty

  @property
  def rows_per_block(self) -> int:
    """Rows of a block, padding included."""
    return -(-self.num_labels // self.blocks)

  @property
  def num_rows(self) -> int:
    """Rows in all, padding included."""
    return self.rows_per_block * self.num_blocks

  def row_of_label(self, labels: Ids) -> Ids:
    """Rows of labels, both integers `[...]`."""
    return labels % self.blocks * self.rows_per_block + labels // self.blocks

  def label_of_row(self, rows: Ids) -> Ids:
    """Labels of rows; at least `num_labels` for a padding row."""
    block, place = rows // self.rows_per_block, rows % self.rows_per_block
    if self.empty:  # Their places count as behind the last one of others.
      place = place + (block >= self.blocks) * (self.rows_per_block - place)
    return place * self.blocks + block  # pyrefly: ignore[bad-return]

  def by_row(self, values: jax.Array, fill: float) -> jax.Array:
    """`[num_labels, ...]` values by label as `[num_rows, ...]` by row.

    Args:
      values: By label.
      fill: For padding rows.

    Returns:
      By row.
    """
    labels = self.label_of_row(jnp.arange(self.num_rows))
    return values.at[labels].get(mode="fill", fill_value=fill)

  def is_label(self, rows: jax.Array) -> jax.Array:
    """Whether rows, which may lie behind the last block, hold a label."""
    inside = rows < self.num_rows
    return inside & (self.label_of_row(rows) < self.num_labels)
