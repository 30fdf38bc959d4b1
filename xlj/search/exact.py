"""The rows with the largest inner products, all of them looked at.

Rows are streamed in pieces that fit a cache, so that nothing `[n, L]` is made,
and rows may be memory maps of files larger than memory. A processor has a part
of the rows, or of the examples where these are many. With one example it is
memory that is waited for, and rows of half the bytes take half the time; with
hundreds it is arithmetic, which BLAS does faster than a loop.

Legend: n examples, D width, L rows, E rows that are named for an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent import futures
import dataclasses
import functools
import math
import numbers
from typing import Any

import numpy as np
import scipy.sparse

from xlj import processors
from xlj.data import csr as csr_lib

DTYPES = ("float32", "bfloat16", "int8")
_EXAMPLES = 256  # looked at together
_ALONE = 2**22  # products that one processor has sooner than others are woken
_MANY = 128  # examples from which on products by BLAS are faster,
_PRODUCTS = 2**24  # and how many of these
_BLOCK = 2**13  # rows whose products BLAS makes at a time
_GATHERED = 2**14  # rows of a choice that are copied at a time

# Numbers of rows for all examples `[E]`; or for each a row of a matrix `[n, L]`
# or a list.
Named = (
  Sequence[int]
  | Set[int]
  | Sequence[Sequence[int] | np.ndarray]
  | np.ndarray
  | csr_lib.Csr
  | scipy.sparse.sparray
  | scipy.sparse.spmatrix
)
Heaps = tuple[np.ndarray, np.ndarray, np.ndarray]
# For each example: where what it names starts, where it ends, and numbers.
Denied = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Label rows as they are stored; arrays may be memory maps.

  The score of row l for an example is `scale[l] (values[l] . x) + bias[l]`.

  Attributes:
    values: `[L, D]` float32, bfloat16 (or uint16, its bits) or int8.
    scale: float32 `[L]`; None for 1.
    bias: float32 `[L]`; None for 0.
  """

  values: np.ndarray
  scale: np.ndarray | None = None
  bias: np.ndarray | None = None

  def __post_init__(self) -> None:
    """Checks types and shapes."""
    values = self.values
    if values.dtype.name == "bfloat16":
      values = values.view(np.uint16)
    if values.ndim != 2 or values.dtype not in (np.float32, np.uint16, np.int8):
      raise ValueError(
        f"rows are {values.dtype} {values.shape}; give [L, D] of float32,"
        " bfloat16 (or uint16, its bits) or int8"
      )
    object.__setattr__(self, "values", _fixed(values))
    for name in ("scale", "bias"):
      given = getattr(self, name)
      if given is None:
        continue
      if given.shape != (len(self),):
        raise ValueError(f"{name} is {given.shape}; give one of {len(self)}")
      object.__setattr__(self, name, _fixed(given, np.float32))

  def __len__(self) -> int:
    """L."""
    return len(self.values)

  @property
  def dim(self) -> int:
    """D."""
    return self.values.shape[1]

  @property
  def nbytes(self) -> int:
    """Size of all arrays."""
    arrays = (self.values, self.scale, self.bias)
    return sum(a.nbytes for a in arrays if a is not None)

  def part(self, which: slice | np.ndarray) -> Rows:
    """Some of the rows; a slice copies nothing."""
    scale, bias = (
      None if a is None else a[which] for a in (self.scale, self.bias)
    )
    return Rows(self.values[which], scale, bias)

  def widened(self) -> np.ndarray:
    """Float32 `[L, D]`, with the scale and without the bias."""
    out = np.empty(self.values.shape, np.float32)
    loops().widen(*self.arrays()[:2], out)
    return out

  def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, scale and bias; what there is not is empty."""
    none = _fixed(np.zeros(0, np.float32))
    scale = none if self.scale is None else self.scale
    return self.values, scale, none if self.bias is None else self.bias


def stored(
  rows: np.ndarray, dtype: str = "float32", bias: np.ndarray | None = None
) -> Rows:
  """Rows in another type, rounded to the nearest.

  Args:
    rows: float32 `[L, D]`.
    dtype: One of `DTYPES`; int8 has a scale for each row, its largest number
      over 127.
    bias: float32 `[L]`.

  Returns:
    The rows, of which `topk` is exact.

  Raises:
    ValueError: There is no such type.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
  if dtype == "float32":
    return Rows(np.asarray(rows, np.float32), None, bias)
  kind = {"bfloat16": np.uint16, "int8": np.int8}[dtype]
  values, scale = np.empty(rows.shape, kind), None
  if dtype == "int8":
    scale = np.empty(len(rows), np.float32)
  for start in range(0, len(rows), _GATHERED):
    part = slice(start, start + _GATHERED)
    piece = np.ascontiguousarray(rows[part], np.float32)
    if scale is None:
      bits = piece.view(np.uint32)  # to the nearest, of two the even one
      values[part] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    else:
      largest = np.abs(piece).max(1, initial=0)
      scale[part] = np.where(largest > 0, largest / 127, 1)
      values[part] = np.rint(piece / scale[part, None])
  return Rows(values, scale, bias)


def topk(
  x: np.ndarray,
  rows: Rows,
  k: int,
  *,
  exclude: Named | None = None,
  among: Named | None = None,
  threshold: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The k rows with the highest scores for each example.

  They are exact for rows as they are stored: examples are float32, products
  are added in float32, and so are scores. A row's score may differ in the last
  bits from that in another batch.

  Args:
    x: `[n, D]`.
    rows: L of them.
    k: How many, from 1 to L.
    exclude: Rows that are not to be returned: their numbers, for all examples
      (`[3, 7]`) or for each (a list of lists, `[n, E]` with -1 as padding, or a
      sparse matrix `[n, L]`).
    among: Rows of which no others are to be; likewise.
    threshold: Score that a row has to reach.

  Returns:
    float32 scores `[n, k]`, descending, and int64 numbers of rows; of equal
    scores the lower number is first. Where there are fewer, -inf and -1.

  Raises:
    ValueError: With what does not fit.

  Example:
    >>> rows = exact.stored(label_rows, "bfloat16", bias)
    >>> scores, ids = exact.topk(x, rows, 10, exclude=[3, 7])
  """
  x = queries(x, rows.dim)
  check_number("k", k, len(rows))
  floor = floor_of(threshold)
  denied = denied_of(exclude, len(x), len(rows))
  if among is None:
    return _best(x, rows, k, floor, denied)
  starts, stops, named = denied_of(among, len(x), len(rows), "among")
  if _are_for_all(among):
    heaps = empty(len(x), k)
    _scan_named(x, rows, named, floor, denied, heaps)
    return ordered(heaps)
  heaps = empty(len(x), k)
  for n in range(len(x)):
    one = slice(n, n + 1)
    _scan_named(
      *(x[one], rows, named[starts[n] : stops[n]], floor),
      *(of_examples(denied, one), tuple(a[one] for a in heaps)),
    )
  return ordered(heaps)


def _best(
  x: np.ndarray, rows: Rows, k: int, floor: np.float32, denied: Denied
) -> tuple[np.ndarray, np.ndarray]:
  """All rows, shared out."""
  none = np.zeros(0, np.int64)

  def task(examples: slice, part: slice, heaps: Heaps) -> None:
    few = rows.part(part) if part.stop - part.start < len(rows) else rows
    few_denied = of_examples(denied, examples)
    loops().scan(
      *(x[examples], *few.arrays(), part.start, none, floor, few_denied),
      *heaps,
    )

  def task_by_blas(examples: slice, _: slice, heaps: Heaps) -> None:
    few_denied = of_examples(denied, examples)
    for first, scale, bias, products in _products(x[examples], rows):
      loops().keep(
        *(products, scale, bias, first, none, floor, few_denied), *heaps
      )

  if len(x) < _MANY or x.size * len(rows) < _PRODUCTS:
    heaps = shared_out(task, len(x), len(rows), rows.dim, k)
  else:  # each product has all processors: only examples are shared out
    heaps = shared_out(task_by_blas, len(x), 1, rows.values.size, k)
  return ordered(heaps)


def _products(
  x: np.ndarray, rows: Rows
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
  """Inner products of examples and rows by BLAS, a block of rows at a time.

  Args:
    x: float32 `[n, D]`.
    rows: L of them.

  Yields:
    The number of a block's first row, scales and biases as in `Rows.arrays`,
    and float32 products `[n, block]`, in a buffer that is used again.
  """
  values, scale, bias = rows.arrays()
  size = min(_BLOCK, len(rows))
  out = np.empty((len(x), size), np.float32)
  wide = np.empty((size, rows.dim), np.float32)
  for block in _slices(len(rows), size):
    few = values[block]
    if few.dtype != np.float32:
      loops().widen(few, scale[:0], wide[: len(few)])
      few = wide[: len(few)]
    with np.errstate(invalid="ignore", over="ignore"):
      products = np.matmul(x, few.T, out=out[:, : len(few)])
    yield block.start, scale[block], bias[block], products


def _scan_named(
  x: np.ndarray,
  rows: Rows,
  named: np.ndarray,
  floor: np.float32,
  denied: Denied,
  heaps: Any,
) -> None:
  """The rows that are named, copied in pieces."""
  for start in range(0, len(named), _GATHERED):
    ids = named[start : start + _GATHERED]
    few = rows.part(ids).arrays()
    loops().scan(x, *few, 0, ids, floor, denied, *heaps)


def rescored(
  x: np.ndarray,
  numbers: np.ndarray,
  rows: Rows,
  k: int,
  floor: np.float32,
  denied: Denied,
) -> tuple[np.ndarray, np.ndarray]:
  """The best of candidates.

  Args:
    x: `[n, D]`, of `queries`.
    numbers: int64 `[n, S]` rows to look at, each once; -1 is none.
    rows: L of them.
    k: How many are returned.
    floor: Of `floor_of`.
    denied: Of `denied_of`.

  Returns:
    As `topk`.
  """

  def task(examples: slice, _: slice, heaps: Heaps) -> None:
    loops().rescore(
      *(x[examples], numbers[examples], *rows.arrays(), floor),
      *(of_examples(denied, examples), *heaps),
    )

  work = numbers.shape[1] * rows.dim
  return ordered(shared_out(task, len(x), 1, work, k))


def shared_out(
  task: Callable[[slice, slice, Heaps], None],
  num_examples: int,
  size: int,
  work: int,
  k: int,
) -> Heaps:
  """Runs a search on all processors.

  Args:
    task: Puts the best of a part of what is searched into heaps of some
      examples; is given both, and the heaps.
    num_examples: n.
    size: What is searched has so many parts.
    work: Products of a part and an example.
    k: Places of a heap.

  Returns:
    Heaps of all examples.
  """
  heaps = empty(num_examples, k)
  blocks = list(_slices(num_examples, _EXAMPLES))
  threads = processors.usable()
  if num_examples * size * work < _ALONE:
    threads = 1
  count = 1 if len(blocks) >= threads else min(threads, size)
  parts = list(_slices(size, math.ceil(size / max(1, count))))
  jobs, others = [], []
  for examples in blocks:
    own = tuple(a[examples] for a in heaps)
    for i, part in enumerate(parts):
      if i:
        places = min(k, own[0].shape[1])
        others.append((own, empty(len(own[0]), places)))
      jobs.append((examples, part, others[-1][1] if i else own))
  if threads == 1 or len(jobs) < 2:
    for job in jobs:
      task(*job)
  else:
    first, *rest = jobs
    waiting = [_threads().submit(task, *job) for job in rest]
    task(*first)
    for one in waiting:
      one.result()
  for own, other in others:
    loops().merge(*other, *own)
  return heaps


def empty(num_examples: int, k: int) -> Heaps:
  """Heaps without rows: scores, numbers and sizes."""
  return (
    np.empty((num_examples, k), np.float32),
    np.full((num_examples, k), -1),
    np.zeros(num_examples, np.int64),
  )


def ordered(heaps: Heaps) -> tuple[np.ndarray, np.ndarray]:
  """Scores and numbers of heaps, the best first."""
  loops().sort(*heaps)
  return heaps[:2]


def queries(x: np.ndarray, dim: int) -> np.ndarray:
  """Examples as the loops read them; refuses other shapes."""
  x = np.asarray(x)
  if x.ndim != 2 or x.shape[1] != dim:
    raise ValueError(f"x is {x.shape}; give [n, {dim}], as wide as the rows")
  return _fixed(x, np.float32)


def check_number(
  name: str, given: int, most: int | None, least: int = 1
) -> None:
  """Refuses what is no whole number within bounds; a name is for the error."""
  is_whole = isinstance(given, numbers.Integral) and not isinstance(given, bool)
  if is_whole and given >= least and (most is None or given <= most):
    return
  bounds = f"from {least} on" if most is None else f"in [{least}, {most}]"
  raise ValueError(f"{name} is {given!r}; it must be a whole number {bounds}")


def floor_of(threshold: float | None) -> np.float32:
  """What a score has to be above, to reach a threshold."""
  if threshold is None:
    return np.float32(-np.inf)
  if threshold != threshold:
    raise ValueError(f"threshold is {threshold!r}; give a score, or None")
  floor = np.float32(threshold)
  if float(floor) < float(threshold):
    return floor
  return np.nextafter(floor, np.float32(-np.inf))


def denied_of(
  named: Named | None, num_examples: int, num_rows: int, name: str = "exclude"
) -> Denied:
  """What examples name, as the loops read it: ascending numbers of rows.

  Args:
    named: For all examples, or each.
    num_examples: n.
    num_rows: L.
    name: What it is, for errors.

  Returns:
    See `loops.scan`.

  Raises:
    ValueError: Other examples or rows are named than there are.
  """
  nobody = np.zeros(num_examples, np.int64)
  if named is None:
    return nobody, nobody, nobody[:0]
  if _are_for_all(named):
    every: Any = named
    ids = np.unique(np.asarray(list(every), np.int64))
    ids = ids[ids != -1]
    _check_numbers(ids, num_rows, name)
    return nobody, np.full(num_examples, len(ids)), ids
  indptr, ids = _by_example(named)
  if len(indptr) - 1 != num_examples:
    raise ValueError(
      f"{name} is of {len(indptr) - 1} examples, and there are {num_examples}"
    )
  _check_numbers(ids, num_rows, name)
  ones, shape = np.ones(len(ids), bool), (num_examples, num_rows)
  once: Any = scipy.sparse.csr_array((ones, ids, indptr), shape)
  once.sum_duplicates()  # and sorts
  indptr = once.indptr.astype(np.int64)
  return indptr[:-1], indptr[1:], once.indices.astype(np.int64)


def _by_example(named: Any) -> tuple[np.ndarray, np.ndarray]:
  """Where the numbers of each example start and end, and they."""
  if hasattr(named, "indptr"):
    return named.indptr.astype(np.int64), named.indices.astype(np.int64)
  if scipy.sparse.issparse(named):
    return _by_example(named.tocsr())
  lists = [np.asarray(one, np.int64).reshape(-1) for one in named]
  lists = [one[one != -1] for one in lists]
  indptr = np.cumsum([0, *map(len, lists)], dtype=np.int64)
  return indptr, np.concatenate([np.zeros(0, np.int64), *lists])


def _are_for_all(named: Any) -> bool:
  """Whether these are numbers, and not lists of them for each example."""
  if hasattr(named, "indptr") or scipy.sparse.issparse(named):
    return False
  if isinstance(named, np.ndarray):
    return named.ndim == 1 and named.dtype != object
  return all(np.ndim(one) == 0 for one in named)


def _check_numbers(ids: np.ndarray, num_rows: int, name: str) -> None:
  if len(ids) and not 0 <= ids.min() <= ids.max() < num_rows:
    wrong = ids[(ids < 0) | (ids >= num_rows)][0]
    raise ValueError(f"{name} has {wrong}; there are rows 0 to {num_rows - 1}")


def of_examples(denied: Denied, examples: slice) -> Denied:
  """What some of the examples name."""
  starts, stops, ids = denied
  return starts[examples], stops[examples], ids


def _slices(total: int, size: int) -> Iterable[slice]:
  for start in range(0, total, max(1, size)):
    yield slice(start, min(start + size, total))


def _fixed(array: np.ndarray, dtype: Any = None) -> np.ndarray:
  """A view that nobody writes to; so loops are compiled once for a type."""
  array = np.ascontiguousarray(array, dtype).view(np.ndarray)
  array.flags.writeable = False
  return array


def check_tuning(x: np.ndarray, recall: float) -> None:
  """Refuses what no search can be tuned with."""
  if not 0 < recall <= 1:
    raise ValueError(f"recall is {recall!r}; give a share, such as 0.95")
  if not len(x):
    raise ValueError("x has no examples; give some hundreds")


def smallest(reaches: Callable[[int], bool], most: int) -> int:
  """The smallest setting of a search that is good enough.

  Args:
    reaches: Whether a setting is; if it is, larger ones are.
    most: The largest setting, which is returned if none is good enough.

  Returns:
    From 1 to `most`.
  """
  high = 1
  while high < most and not reaches(high):
    high = min(2 * high, most)
  low = high // 2 + 1
  while low < high:
    middle = (low + high) // 2
    if reaches(middle):
      high = middle
    else:
      low = middle + 1
  return high


def recall(found: np.ndarray, true: np.ndarray) -> float:
  """The share of the true rows `[n, k]`, -1 is none, that are found."""
  hits = (found[:, :, None] == true[:, None, :]).any(1) & (true >= 0)
  return float(hits.sum() / max(1, (true >= 0).sum()))


@functools.cache
def loops() -> Any:
  """The compiled loops; importing the compiler takes a while."""
  from xlj.search import loops

  return loops


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(processors.usable(), "xlj-search")
