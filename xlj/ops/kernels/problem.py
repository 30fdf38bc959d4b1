"""What the kernels of a label step are compiled for, and their tiles.

Tiles. A kernel multiplies an `[n, w]` tile of examples with an `[s, w]` tile of
label rows, w being D rounded up to a power of two, and uses the `[n, s]` logits
at once. One of the two tiles stays, while the kernel goes through all of the
others: the examples stay in the passes over labels (statistics, gradient of the
examples), the rows in the update. For an H200, whose multiprocessors have 2^16
registers of 4 bytes, at most 255 a thread, and 227 KiB of shared memory:

- The tile that stays has 128 rows: those passing by come from the second-level
  cache, which gives about 25 bytes a cycle to each multiprocessor. For two
  products with 2,048 multiplications a cycle they need 2,048 / 128 = 16.
- 8 warps are 256 threads, so 128 x 128 logits take 64 registers of each, and a
  gradient accumulated over 128 x w takes w / 2. With 128 registers at most, two
  blocks fit on a multiprocessor, and one multiplies while the other takes
  exponentials: 16 a cycle, which at w = 64 takes as long as two products. The
  tile passing by is as large as that allows, or, where the gradient is too
  large anyway, as can be without running out of registers.
- Shared memory: 2 bytes x w for a row of a tile in bfloat16, 4 in float32; one
  tile that stays, and one for each stage of loading: 192 KiB at most.

Registers, occupancy and instructions were read off the compiler's output for
that device; no time was measured.

Legend: N examples, D width, l label rows of this device.
"""

import dataclasses

import numpy as np

from xlj.ops import layout as layout_lib
from xlj.ops import row_format

MODES = ("never", "auto", "interpret")  # when a step runs kernels
LOSSES = ("softmax", "bce")
MAX_DIM = {"float32": 128, "bfloat16": 256, "float8": 256}
_STAYING = 128  # rows of the tile that stays
_MIN_WIDTH = 16  # of matrix instructions
_PROGRAMS = 528  # 4 for each of 132 multiprocessors


@dataclasses.dataclass(frozen=True)
class Tile:
  """Sizes of one kernel, powers of two, at least 16.

  Attributes:
    examples: Examples of a tile.
    rows: Label rows of a tile.
    warps: Groups of 32 threads that work on it.
    stages: How many tiles are being loaded or used at a time.
  """

  examples: int
  rows: int
  warps: int = 8
  stages: int = 2


@dataclasses.dataclass(frozen=True)
class Tiles:
  """Sizes of all kernels.

  Attributes:
    statistics: Of the pass for log-sum-exp.
    gradient: Of the pass for the gradient of the examples.
    update: Of the update of label rows.
    positives: Examples of a program that looks up their positives.
    programs: How many programs a pass over labels is split into, about.
  """

  statistics: Tile
  gradient: Tile
  update: Tile
  positives: int = 16
  programs: int = _PROGRAMS


# By type and width of rows: the size of the tile passing by in statistics, in
# the gradient, and in the update.
_PASSING_BY = {
  ("bfloat16", 64): (128, 128, 64),
  ("bfloat16", 128): (128, 64, 32),
  ("bfloat16", 256): (128, 64, 64),
  ("float8", 64): (128, 128, 32),
  ("float8", 128): (128, 32, 64),
  ("float8", 256): (128, 64, 32),
  ("float32", 64): (128, 32, 32),
  ("float32", 128): (64, 64, 64),
}


def tiles_for(width: int, dtype: str, loss: str, has_bias: bool) -> Tiles:
  """Sizes for an H200.

  Args:
    width: D rounded up to a power of two.
    dtype: Of stored rows, one of `row_format.DTYPES`.
    loss: One of LOSSES.
    has_bias: Whether labels have a bias.

  Returns:
    The sizes.
  """
  statistics, gradient, update = _PASSING_BY[dtype, max(width, 64)]
  if loss == "bce":  # Sums up losses in the same pass.
    gradient = min(gradient, 64)
  if has_bias:  # Sums up its gradient as well.
    update = min(update, 32)
  return Tiles(
    Tile(_STAYING, statistics),
    Tile(_STAYING, gradient),
    Tile(update, _STAYING),
  )


@dataclasses.dataclass(frozen=True)
class Problem:
  """Everything about a step that is known when it is traced.

  Attributes:
    num_examples: N.
    num_rows: Label rows l of this device.
    dim: D.
    loss: One of LOSSES.
    format: How rows are stored.
    layout: Which rows, of all devices, hold labels.
    has_bias: Whether labels have a bias.
    stochastic: Whether rows are rounded stochastically.
    tiles: Sizes of the kernels.
    interpret: Whether kernels are interpreted instead of compiled.
  """

  num_examples: int
  num_rows: int
  dim: int
  loss: str
  format: row_format.RowFormat
  layout: layout_lib.Layout
  has_bias: bool
  stochastic: bool
  tiles: Tiles
  interpret: bool

  @property
  def width(self) -> int:
    """D rounded up to what the kernels can hold."""
    return width_of(self.dim)

  def example_tiles(self, tile: Tile) -> int:
    """Number of tiles that cover the examples."""
    return -(-self.num_examples // tile.examples)

  def row_tiles(self, tile: Tile) -> int:
    """Number of tiles that cover the label rows."""
    return -(-self.num_rows // tile.rows)

  def split(self, tile: Tile) -> tuple[int, int]:
    """How a pass over labels is split among programs.

    Args:
      tile: Of its kernel.

    Returns:
      Number of parts, none of which is empty, and tiles of rows of each but
      the last, which may have fewer.
    """
    row_tiles = self.row_tiles(tile)
    parts = max(1, self.tiles.programs // self.example_tiles(tile))
    each = -(-row_tiles // min(parts, row_tiles))
    return -(-row_tiles // each), each

  def all_rows_count(self, tile: Tile) -> bool:
    """Whether every row of every tile is there and holds a label."""
    padding = self.layout.num_rows - self.layout.num_labels
    return self.num_rows % tile.rows == 0 and not padding


def width_of(dim: int) -> int:
  """The power of two that rows of `dim` numbers take up in a kernel."""
  return max(_MIN_WIDTH, 2 ** int(np.ceil(np.log2(dim))))


def refusal(
  *,
  platform: str,
  loss: str,
  dtype: str,
  num_rows: int,
  dim: int,
) -> str | None:
  """Why the kernels cannot do a step, if so.

  They do plain stochastic gradient descent, with weight decay if need be, whose
  rows have no other state, for rows as they are in the logits (not normalised)
  and all logits of a label being products with its row.

  Args:
    platform: Of the device that is to run them, such as "gpu".
    loss: Name of the loss.
    dtype: Of stored rows.
    num_rows: Label rows l of a device.
    dim: D.

  Returns:
    A reason, or None if they can.
  """
  if platform not in ("gpu", "cuda"):
    return f"the kernels are compiled for CUDA, not for {platform}"
  if loss not in LOSSES:
    return f"the kernels know the losses {LOSSES}, not {loss!r}"
  if dtype not in row_format.DTYPES:
    return f"the kernels know rows of {row_format.DTYPES}, not {dtype!r}"
  if not 0 < dim <= MAX_DIM[dtype]:
    return (
      f"the kernels are for {dtype} rows of 1 to {MAX_DIM[dtype]} numbers, not "
      f"{dim}"
    )
  return _refuse_size(num_rows, dim, dtype)


def _refuse_size(num_rows: int, dim: int, dtype: str) -> str | None:
  """Why the kernels cannot address so many rows, if so.

  The compiler of kernels computes offsets, in elements, with 64 bits where an
  array has more than 2**32 bytes, from row numbers of 32 bits; else it computes
  them with 32 bits, of which the first counts as a sign. For elements of one
  byte there is a gap: offsets past 2**31 in arrays that are not past 2**32.
  """
  limit = 2**31 - 2**10  # A tile beyond the last row must have numbers as well.
  if num_rows > limit:
    return f"the kernels count rows of a device up to {limit}, not {num_rows}"
  num_bytes = num_rows * dim
  if dtype == "float8" and 2**31 < num_bytes <= 2**32:
    return (
      f"{num_rows} rows of {dim} bytes are between 2 and 4 GiB on a device, "
      "where offsets of single bytes would overflow"
    )
  return None
