"""Which labels may be answers, as those who ask say it: by ids of the data.

Legend: n examples, E labels that are named for an example, L label ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set, Sized
import dataclasses
from typing import Any, TYPE_CHECKING

import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import numbering as numbering_lib

if TYPE_CHECKING:  # Who answers on the host alone does without JAX.
  import jax

  from xlj.model import model as model_lib
  from xlj.ops import choice as choice_lib

# Ids for all examples `[E]`; or for each: lists, `[n, E]` with -1 as padding,
# or a sparse matrix `[n, L]`.
Labels = (
  Sequence[int]
  | Set[int]
  | Sequence[Sequence[int]]
  | np.ndarray
  | csr_lib.Csr
  | scipy.sparse.sparray
  | scipy.sparse.spmatrix
)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelChoice:
  """Label ids that may be answers; all of them by default.

  Attributes:
    allowed: bool `[L]`, for all examples; None for all.
    exclude: `[n, L]` labels that an example may not have.
    among: `[n, L]` labels of which an example may have no others.
  """

  allowed: np.ndarray | None = None
  exclude: scipy.sparse.csr_array | None = None
  among: scipy.sparse.csr_array | None = None

  @property
  def is_free(self) -> bool:
    """Whether all labels may be answers."""
    return self.allowed is None and self.num_rows is None

  @property
  def num_rows(self) -> int | None:
    """Of how many examples it speaks; None if of all alike."""
    rows = self.exclude if self.among is None else self.among
    return None if rows is None else len(rows.indptr) - 1

  def without(self, exclude: csr_lib.Csr | None) -> LabelChoice:
    """The same with more labels that examples may not have."""
    if exclude is None:
      return self
    more = _pattern(exclude.to_scipy())
    if self.exclude is not None:
      more = _pattern(self.exclude + more)
    return dataclasses.replace(self, exclude=more)

  def without_seen(
    self, features: Any, num_ids: int, order: label_order.LabelOrder
  ) -> LabelChoice:
    """The same without the features of examples, which have the ids of labels.

    Args:
      features: Csr `[n, F]`.
      num_ids: L.
      order: Of the head's labels; a merged label stands for all of its ids.

    Returns:
      The choice.

    Raises:
      ValueError: It speaks of other examples than n.
    """
    self.check_rows(features.num_rows)
    return self.without(order.known(features.as_labels(num_ids)))

  def check_rows(self, num_examples: int, more: bool = False) -> None:
    """Refuses what speaks of more or fewer examples than there are.

    Args:
      num_examples: n, or how many there are so far.
      more: Whether there may be more.

    Raises:
      ValueError: With both numbers.
    """
    given = self.num_rows
    if given is None or given == num_examples or more and given > num_examples:
      return
    raise ValueError(
      f"exclude or among is of {given} examples, and there are"
      f" {num_examples}{' at least' if more else ''}; give labels for each of"
      " them, or ids for all"
    )

  def take(self, rows: np.ndarray) -> LabelChoice:
    """The choice of some of the examples that it speaks of."""
    named: dict[str, Any] = {
      name: None if labels is None else labels[rows]
      for name, labels in (("exclude", self.exclude), ("among", self.among))
    }
    return LabelChoice(self.allowed, **named)

  def kept(self, labels: csr_lib.Csr, rows: np.ndarray) -> csr_lib.Csr:
    """The true labels of some examples that may be answers.

    Args:
      labels: `[m, L]`, or wider where no model knows the rest: that stays
        unless the answers are of some labels alone.
      rows: `[m]` numbers of the examples.

    Returns:
      As wide as `labels`.
    """
    if self.is_free:
      return labels
    every: Any = _pattern(labels.to_scipy())
    named: Any = self.exclude if self.among is None else self.among
    width = named.shape[1] if self.allowed is None else len(self.allowed)
    found, beyond = every[:, :width], every[:, width:]
    if self.exclude is not None:
      found = found - found.multiply(self.exclude[rows])
    if self.among is not None:
      found = found.multiply(self.among[rows])
    if self.allowed is not None:
      found = found.multiply(self.allowed[None])
    if self.among is not None or self.allowed is not None:
      beyond = 0 * beyond
    found = _pattern(scipy.sparse.hstack([found, beyond]))
    return csr_lib.Csr.from_scipy(found, values=False)

  def by_row(
    self, model: model_lib.Model, order: label_order.LabelOrder
  ) -> jax.Array | None:
    """Which rows may be chosen, on the mesh in context; None for all."""
    from xlj import sharding

    if self.allowed is None:
      return None
    layout = model.layout
    numbers = order.to_head(np.flatnonzero(self.allowed).astype(np.int32))
    rows = np.zeros(layout.num_rows, bool)
    rows[layout.row_of_label(numbers[numbers >= 0])] = True
    return sharding.put_rows(len(rows), lambda numbers: rows[numbers])

  def most_named(self, each: bool = False, rows: slice = slice(None)) -> int:
    """How many labels `of_rows` names at most for one of some examples."""
    longest = [
      0 if found is None else int(np.diff(found.indptr)[rows].max(initial=0))
      for found in (self.exclude, self.among)
    ]
    fewer = 0
    if each and self.allowed is not None:
      fewer = min(int(self.allowed.sum()), int((~self.allowed).sum()))
    return max(1, longest[0] + fewer, longest[1])

  def of_rows(
    self,
    rows: np.ndarray,
    order: label_order.LabelOrder,
    width: int,
    each: bool = False,
  ) -> choice_lib.Choice:
    """The choice of some examples, on the host, but for `allowed`.

    Args:
      rows: int `[m]` numbers of examples; negative ones have no labels.
      order: The head's numbers of the labels.
      width: Of the result, `most_named` or more; in all processes the same.
      each: Whether to tell each example what `allowed` says, for heads without
        rows that all examples could be forbidden at once.

    Returns:
      Of the head's labels.
    """
    from xlj.ops import choice as choice_lib

    exclude, among = self._of(np.maximum(rows, 0), each)
    named = exclude if among is None else among
    if named is None:
      return choice_lib.Choice()
    named = csr_lib.Csr.from_scipy(_pattern(named), values=False)
    ids: Any = order.to_head(named.pad(width).ids)
    ids[rows < 0] = -1
    return choice_lib.Choice(ids, only=among is not None)

  def _of(self, rows: np.ndarray, each: bool) -> tuple[Any, Any]:
    """What some examples may not have, or what alone they may have."""
    exclude: Any = None if self.exclude is None else self.exclude[rows]
    among: Any = None if self.among is None else self.among[rows]
    if each and self.allowed is not None:
      fewer = 2 * self.allowed.sum() < len(self.allowed)
      ids = np.flatnonzero(self.allowed if fewer else ~self.allowed)
      alike = rows_of([ids] * len(rows), len(self.allowed))
      if among is not None:
        among = among.multiply(self.allowed[None])
      elif fewer:
        among = alike
      else:
        exclude = alike if exclude is None else exclude + alike
    if among is not None and exclude is not None:
      return None, among - among.multiply(_pattern(exclude))
    return exclude, among


ALL = LabelChoice()
_NO_LIST = (
  "is not a list of label ids; give ids for all examples, such as [3, 7], or a"
  " list of them for each example, or a sparse matrix with a column for each"
  " label id"
)


def choose(
  num_ids: int,
  exclude: Labels | None = None,
  among: Labels | None = None,
  label_ids: np.ndarray | None = None,
  order: label_order.LabelOrder | None = None,
) -> LabelChoice:
  """Reads what labels may be answers.

  Args:
    num_ids: L.
    exclude: Labels that may not be.
    among: Labels of which no others may be.
    label_ids: What is given for them, ascending, where that is not 0 to L - 1;
      a sparse matrix has a column for each.
    order: Of the head's labels, where some have several ids: each of them
      stands for all. By default ids are of different labels.

  Returns:
    The choice; of ids that are the same label, examples have the first.

  Raises:
    ValueError: An id is none of the model's, or they are not in one of the
      forms of `Labels`; it says what to pass.
  """
  if exclude is None and among is None:
    return ALL
  allowed = np.ones(num_ids, bool)
  order = order or label_order.LabelOrder.identity()
  rows: dict[str, Any] = {}
  for name, given in (("exclude", exclude), ("among", among)):
    if given is None:
      continue
    found = _read(given, num_ids, name, label_ids)
    if not isinstance(found, np.ndarray):
      known = order.known(csr_lib.Csr.from_scipy(found, values=False))
      rows[name] = _pattern(known.to_scipy())
      continue
    found = order.first(found)
    found = found[found >= 0]
    if name == "exclude":
      allowed[found] = False
    else:
      chosen = np.zeros(num_ids, bool)
      chosen[found] = True
      allowed &= chosen
  if len({found.shape[0] for found in rows.values()}) > 1:
    raise ValueError(
      f"exclude is of {rows['exclude'].shape[0]} examples, among of"
      f" {rows['among'].shape[0]}; give both for the same ones"
    )
  if order.is_edited:
    first = order.first(np.arange(num_ids))
    allowed = (first < 0) | allowed[first]
  return LabelChoice(None if allowed.all() else allowed, **rows)


def rows_of(
  ids: Sequence[Sequence[int] | np.ndarray], num_ids: int
) -> scipy.sparse.csr_array:
  """Lists of ids, one for each example, as a sparse matrix `[n, L]`."""
  lengths = [len(row) for row in ids]
  indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  flat = np.concatenate([np.asarray(row, np.int64) for row in ids] or [[]])
  ones = np.ones(len(flat), np.float32)
  shape = len(ids), num_ids
  return _pattern(scipy.sparse.csr_array((ones, flat, indptr), shape))


def within(rows: csr_lib.Csr, num_ids: int) -> scipy.sparse.csr_array:
  """Where rows are not 0, `[n, L]`, without columns that are no labels."""
  entries = rows.to_scipy().tocoo()
  inside = entries.col < num_ids
  found = entries.data[inside], (entries.row[inside], entries.col[inside])
  shape = rows.num_rows, num_ids
  return _pattern(scipy.sparse.coo_array(found, shape=shape))


def _read(
  given: Any, num_ids: int, name: str, label_ids: np.ndarray | None
) -> np.ndarray | scipy.sparse.csr_array:
  """Ids for all examples, or rows; checked."""
  if isinstance(given, csr_lib.Csr):
    given = given.to_scipy()
  if scipy.sparse.issparse(given):
    if given.shape[1] != num_ids:
      raise ValueError(
        f"{name} has {given.shape[1]} columns; give one for each of the"
        f" {num_ids} label ids"
      )
    return _pattern(scipy.sparse.csr_array(given))
  if isinstance(given, Set):
    given = list(given)
  sized = isinstance(given, Sized) and getattr(given, "ndim", 1)
  if not sized or isinstance(given, Mapping):
    raise ValueError(f"{name} {_NO_LIST}")
  nested = len(given) and np.ndim(given[0]) == 1
  if not nested:
    return _ids(given, num_ids, name, label_ids)
  rows = [
    _ids(row, num_ids, f"{name}[{i}]", label_ids) for i, row in enumerate(given)
  ]
  return rows_of(rows, num_ids)


def _ids(
  given: Any, num_ids: int, name: str, label_ids: np.ndarray | None
) -> np.ndarray:
  """Ids without padding; checked."""
  ids = np.asarray(given)
  if not ids.size:
    return np.zeros(0, np.int64)
  if ids.ndim != 1 or ids.dtype.kind not in "iu":
    raise ValueError(f"{name} {_NO_LIST}")
  ids = ids[ids != -1].astype(np.int64)
  if label_ids is not None:
    numbers = numbering_lib.find(label_ids, ids)
    if len(wrong := ids[numbers < 0]):
      raise ValueError(
        f"{name} has the label id {wrong[0]}, which training has not"
      )
    return numbers
  wrong = ids[(ids < 0) | (ids >= num_ids)]
  if len(wrong):
    raise ValueError(
      f"{name} has the label id {wrong[0]}; the model has ids 0 to"
      f" {num_ids - 1}"
    )
  return ids


def _pattern(rows: Any) -> scipy.sparse.csr_array:
  """Where a matrix is not 0, as ones, each once, ascending in a row."""
  # A copy, for it may be the caller's, or a memory map that is read only.
  rows = scipy.sparse.csr_array(rows, copy=True)
  rows.sum_duplicates()
  rows.eliminate_zeros()
  rows.data = np.ones(rows.nnz, np.float32)
  return rows
