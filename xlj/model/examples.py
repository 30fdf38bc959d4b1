"""Examples that a caller has in memory, looked at and brought to one form.

Files are looked at by their readers; this is the same for what comes from
Python. Rows are counted from 0.

Legend: n examples, F features of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
import dataclasses
import math
import numbers
from typing import Any, NoReturn, TYPE_CHECKING, TypeGuard

from absl import logging
import numpy as np
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import numbering as numbering_lib
from xlj.data import sequences
from xlj.documents import rows as documents

if TYPE_CHECKING:
  import ml_collections

Features = (
  csr_lib.Csr
  | Sequence[str]
  | np.ndarray
  | scipy.sparse.sparray
  | scipy.sparse.spmatrix
  | Iterable[Mapping[int, float]]
  | Iterable[Mapping[str, float]]
  | Iterable[Mapping[str, Sequence[int]]]
  | Iterable[Sequence[float]]
)
_FORMS = (
  "give a SciPy matrix or an array [n, {}], or a list with a dict for each"
  " example, from feature id to value"
)
_ITEMS = (
  'give {"items": [...]} for each sequence, ids of items with the oldest first'
)
_LARGEST = float(np.finfo(np.float32).max)


def of(
  config: ml_collections.ConfigDict, features: Features
) -> csr_lib.Csr | np.ndarray:
  """The examples as the model has them: sparse, or dense.

  Args:
    config: A resolved config.
    features: n examples with raw features. Sparse ones may have fewer columns
      than F, as a file may: features that no example has.

  Returns:
    Csr with F columns at most, or `[n, F]` for a model of dense features, of
    bytes or float32.

  Raises:
    ValueError: What is given are no examples of F finite numbers; it says what
      to give, and in which row something is wrong.
  """
  num_features = config.data.num_features
  rows = _of_any(features, config)
  if isinstance(rows, csr_lib.Csr):
    if rows.num_columns > num_features:
      _refuse_width(rows.num_columns, num_features)
    if not config.data.dense:
      return rows
    dense = np.zeros((rows.num_rows, num_features), np.float32)
    dense[:, : rows.num_columns] = rows.to_scipy().toarray()
    return dense
  if rows.shape[1] != num_features:
    _refuse_width(rows.shape[1], num_features)
  rows = _finite(rows)
  return rows if config.data.dense else _of_sparse(scipy.sparse.csr_array(rows))


def numbered(
  features: Features, numbering: numbering_lib.Numbering
) -> Features:
  """Examples whose features have large ids, by the numbers of these.

  Args:
    features: n examples. Ids are the keys of dicts, and the columns of SciPy
      matrices; readers have numbered a `Csr`, and arrays have a column for
      each number.
    numbering: Of the training split.

  Returns:
    The examples without features that training has not.
  """
  total = left = 0
  found: Any = features
  if scipy.sparse.issparse(found) and np.ndim(found) == 2:
    table: Any = scipy.sparse.coo_array(found)
    columns = numbering_lib.find(numbering.features, np.asarray(table.col))
    keep = columns >= 0
    total, left = len(keep), int(np.sum(keep))
    found = scipy.sparse.csr_array(
      (table.data[keep], (table.row[keep], columns[keep])),
      (table.shape[0], len(numbering.features)),
    )
  elif _has_rows(features):
    rows: list[Any] = list(features)
    if all(isinstance(row, Mapping) for row in rows):
      ids = {key for row in rows for key in row if _is_id(key)}
      ids = {key for key in ids if 0 <= key < numbering_lib.MAX_ID}
      listed = np.array([*ids], np.int64)
      of = numbering_lib.find(numbering.features, listed).tolist()
      number: dict[Any, Any] = dict(zip(listed.tolist(), of))
      total = sum(map(len, rows))
      rows = [
        {
          number.get(key, key): value
          for key, value in row.items()
          if number.get(key) != -1
        }
        for row in rows
      ]
      left = sum(map(len, rows))
    found = rows
  _say_left_out(total - left)
  return found


def named(
  features: Features, names: Callable[[], Sequence[str] | None]
) -> Features:
  """Examples whose features have names, by the ids of these.

  Args:
    features: n examples; names are the keys of dicts.
    names: Gives the name of each feature, or None if they have none.

  Returns:
    The examples without features that training has not.

  Raises:
    ValueError: An example has names, and ids too.
  """
  if not _has_rows(features):
    return features
  rows: list[Any] = list(features)
  if not all(isinstance(row, Mapping) for row in rows):
    return rows
  sets = [_of_set(row) for row in rows]
  given = {key for row in sets for key in row if isinstance(key, str)}
  if not given or (every := names()) is None:
    return rows
  rows = sets
  for i, row in enumerate(rows):
    for key in row:
      if not isinstance(key, str):
        raise ValueError(
          f"row {i} of the features has {_name(key)} beside names of features;"
          " give names alone, or ids alone"
        )
  ids = {name: i for i, name in enumerate(every) if name in given}
  found = [{ids[k]: v for k, v in row.items() if k in ids} for row in rows]
  _say_left_out(sum(map(len, rows)) - sum(map(len, found)))
  return found


def _of_set(row: Mapping[Any, Any]) -> Mapping[Any, Any]:
  """`{"items": [...]}` as features of value 1; other rows as they are."""
  if set(row) != {"items"} or not isinstance(row["items"], list | tuple):
    return row
  return dict.fromkeys(row["items"], 1.0)


def of_texts(features: Any, featurizer: Callable[[list[str]], Any]) -> Any:
  """The features of examples that are texts; others are left as they are.

  Args:
    features: n texts in a list or any other sequence, dicts with a "text" and
      perhaps a "title", or examples of numbers.
    featurizer: Of the run.

  Returns:
    `[n, F]`, or `features`.

  Raises:
    ValueError: Some are texts, and some are not.
  """
  if isinstance(features, str):
    raise ValueError("the features are one text; give a list of them: [text]")
  if isinstance(features, csr_lib.Csr) or scipy.sparse.issparse(features):
    return features
  if hasattr(features, "to_list"):  # a column of pandas or polars
    features = features.to_list()
  if getattr(features, "dtype", np.dtype(object)).kind in "buif":
    return features
  if not isinstance(features, Iterable):
    return features
  rows = [
    documents.text_of(row)
    if isinstance(row, Mapping) and "text" in row
    else row
    for row in features
  ]
  if rows and not any(isinstance(row, str) for row in rows):
    return rows
  for i, row in enumerate(rows):
    if not isinstance(row, str):
      raise ValueError(
        f"row {i} of the features is {_name(row)}; give texts, as row"
        f" {next(i for i, r in enumerate(rows) if isinstance(r, str))} is"
      )
  return featurizer(rows)


def _has_rows(features: Any) -> TypeGuard[Iterable[Any]]:
  """Whether rows come one after the other, such as dicts in a list."""
  return isinstance(features, Iterable) and not (
    isinstance(features, csr_lib.Csr | Mapping | str | bytes | Set)
    or hasattr(features, "__array__")
    or scipy.sparse.issparse(features)
  )


def _say_left_out(count: int) -> None:
  """Warns of entries of features that the model does not know."""
  if count:
    logging.warning(
      "%d entries of features that training has not count for nothing", count
    )


def texts_of(features: Any) -> list[str]:
  """The texts of examples.

  Raises:
    ValueError: They are none.
  """
  found: Any = of_texts(features, lambda rows: rows)
  if not isinstance(found, list) or not all(isinstance(r, str) for r in found):
    raise ValueError("the examples are no texts; give a list of them: [text]")
  return found


def _of_any(
  features: Any, config: ml_collections.ConfigDict
) -> csr_lib.Csr | np.ndarray:
  """Csr, or numbers `[n, columns]`."""
  num_features = config.data.num_features
  forms = _FORMS.format(num_features)
  if isinstance(features, csr_lib.Csr):
    # It names rows, too.
    in_order = config.encoder.type in ("transformer", "causal")
    features.validate(in_order=in_order)
    return features
  if config.data.sequences:
    return _of_items(features, num_features)
  if scipy.sparse.issparse(features):
    return _of_sparse(features)
  if hasattr(features, "to_numpy"):  # a table of pandas or polars
    features = features.to_numpy()
  if isinstance(features, np.ma.MaskedArray) and np.ma.is_masked(features):
    raise ValueError("the features have masked values; fill them first")
  if hasattr(features, "__array__"):
    array = np.asarray(features)
    if array.dtype != object or array.ndim != 1:
      return _of_array(array, config)
    features = array.tolist()
  if isinstance(features, Mapping):
    raise ValueError("the features are one dict; give a list of them: [{...}]")
  if isinstance(features, str | bytes | set | frozenset) or not isinstance(
    features, Iterable
  ):
    raise ValueError(f"the features are {_name(features)}; {forms}")
  rows = list(features)
  if all(isinstance(row, Mapping) for row in rows):
    return _of_dicts([_of_set(row) for row in rows], num_features)
  for i, row in enumerate(rows):
    if isinstance(row, str | bytes | Mapping | set) or not hasattr(
      row, "__len__"
    ):
      one = "; one example is [features]" if _is_number(row) else ""
      raise ValueError(f"row {i} of the features is {_name(row)}{one}; {forms}")
    if len(row) != len(rows[0]):
      raise ValueError(
        f"row {i} of the features has {len(row)} values and row 0"
        f" {len(rows[0])}; {forms}"
      )
  return _of_array(np.asarray(rows), config)


def _of_array(
  array: np.ndarray, config: ml_collections.ConfigDict
) -> np.ndarray:
  """Numbers `[n, columns]` of an array of any type and shape."""
  num_features = config.data.num_features
  image = tuple(config.encoder.image or ())
  if not array.size and len(array.shape) == 1:
    array = array.reshape(0, num_features)
  forms = _FORMS.format(num_features)
  if image:
    forms = f"give images [n, {', '.join(map(str, image))}]"
  if array.dtype.name == "bfloat16":
    array = array.astype(np.float32)
  if array.dtype == object:
    try:
      array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
      raise ValueError(f"the features are no numbers ({error})") from error
  if array.dtype.kind not in "buif":
    raise ValueError(f"the features are of type {array.dtype}; {forms}")
  if array.ndim > 2 and image and array.shape[1:] in (image, _flat(image)):
    array = array.reshape(len(array), math.prod(image))
  elif array.ndim == 4 and not image:
    array = array.reshape(len(array), math.prod(array.shape[1:]))
  if array.ndim != 2:
    one = ""
    if array.ndim in (1, len(image)):
      one = "; one example is features[None]"
    raise ValueError(f"the features have shape {array.shape}{one}; {forms}")
  is_bytes = image and config.encoder.input_scale == 1 / 255
  if is_bytes and array.dtype.kind == "f" and array.size and array.max() <= 1:
    raise ValueError(
      f"the images are of {array.dtype} up to {array.max()}; the model reads"
      " numbers from 0 to 255, as its training data had them"
    )
  return array


def _flat(image: tuple[int, ...]) -> tuple[int, ...] | None:
  """The shape of an image without its axis of channels, if that has one."""
  return image[:2] if image[-1] == 1 else None


def _of_sparse(matrix: Any) -> csr_lib.Csr:
  """A SciPy matrix of any form."""
  if len(matrix.shape) != 2:
    raise ValueError(
      f"the sparse features have shape {matrix.shape}; give [n, F], for one"
      " example features.reshape(1, -1)"
    )
  if matrix.dtype.kind not in "buif":
    raise ValueError(
      f"the sparse features are of type {matrix.dtype}; give float32"
    )
  if hasattr(matrix, "check_format"):
    try:  # SciPy's own conversions believe what a matrix says.
      matrix.check_format(full_check=True)
    except ValueError as error:
      raise ValueError(f"the sparse features are damaged: {error}") from error
  found = matrix
  if getattr(matrix, "format", "") != "csr":
    found = scipy.sparse.csr_array(matrix)
  # Before entries that are there twice are added up, and after.
  _check_entries(found, found.data)
  with np.errstate(over="ignore"):
    rows = csr_lib.Csr.from_scipy(found)
  _check_entries(rows, rows.values)
  return rows


def _of_items(features: Features, num_items: int) -> csr_lib.Csr:
  """Sequences of items, in their order."""
  if not _has_rows(features):
    raise ValueError(f"the features are {_name(features)}; {_ITEMS}")
  rows: list[Any] = list(features)
  for i, row in enumerate(rows):
    if not isinstance(row, Mapping) or set(row) != {"items"}:
      raise ValueError(f"row {i} of the features is {_name(row)}; {_ITEMS}")
    if not isinstance(row["items"], list | tuple | np.ndarray):
      given = _name(row["items"])
      raise ValueError(f"row {i} of the features has {given}; {_ITEMS}")
    for item in row["items"]:
      if not _is_id(item) or not 0 <= item < num_items:
        _refuse_id(i, item, num_items)
  return sequences.features([[*row["items"]] for row in rows], num_items)


def _of_dicts(
  examples: Sequence[Mapping[int, float]], num_features: int
) -> csr_lib.Csr:
  """A dict from feature id to value for each example."""
  ids = []
  for i, row in enumerate(examples):
    try:
      ids.append(sorted(row))
    except TypeError:
      _refuse_id(i, next(k for k in row if not _is_id(k)), num_features)
    for key in ids[-1]:
      if not _is_id(key) or not 0 <= key < num_features:
        _refuse_id(i, key, num_features)
      if not _is_number(row[key]):
        raise ValueError(
          f"row {i} of the features has {_name(row[key])} at feature {key};"
          " give a number"
        )
  values = [
    [_float(row[k]) for k in order] for row, order in zip(examples, ids)
  ]
  flat = np.array([v for row in values for v in row], np.float64)
  indptr = np.cumsum([0, *map(len, ids)], dtype=np.int64)
  flat_ids = np.array([k for row in ids for k in row], np.int32)
  rows = csr_lib.Csr(indptr, flat_ids, flat, num_features)
  _check_entries(rows, flat)
  return dataclasses.replace(rows, values=flat.astype(np.float32))


def _check_entries(rows: Any, values: np.ndarray | None) -> None:
  """Refuses values of the entries of rows that float32 does not hold."""

  def place(entry: int) -> tuple[int, int]:
    row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
    return row, int(rows.indices[entry])

  if values is not None:
    _refuse_infinite(values, place)


def _finite(rows: np.ndarray) -> np.ndarray:
  """The same as bytes or float32."""
  if rows.dtype == np.uint8:
    return rows  # The encoder makes floats of them on the device.
  _refuse_infinite(rows.reshape(-1), lambda entry: divmod(entry, rows.shape[1]))
  return rows.astype(np.float32)


def _refuse_infinite(
  values: np.ndarray, place: Callable[[int], tuple[int, int]]
) -> None:
  """Refuses numbers that float32 does not hold.

  Args:
    values: Any numbers.
    place: Row and feature of one of them, by its place.

  Raises:
    ValueError: With the first one, its row and feature.
  """
  with np.errstate(over="ignore"):
    bad = ~np.isfinite(values.astype(np.float32))
  if bad.any():
    entry = int(np.argmax(bad))
    row, feature = place(entry)
    why = "beyond float32" if np.isfinite(values[entry]) else "not finite"
    raise ValueError(
      f"row {row} of the features has {values[entry]} at feature {feature},"
      f" which is {why}"
    )


def _refuse_id(row: int, key: Any, num_features: int) -> NoReturn:
  raise ValueError(
    f"row {row} of the features has {_name(key)} as a feature id; ids are whole"
    f" numbers from 0 to {num_features - 1}"
  )


def _refuse_width(num_columns: int, num_features: int) -> NoReturn:
  raise ValueError(
    f"the examples have {num_columns} features, the model {num_features}; give"
    " the columns that its training data had"
  )


def _is_id(key: Any) -> bool:
  return isinstance(key, numbers.Integral) and not isinstance(key, bool)


def _float(value: Any) -> float:
  try:
    return float(value)
  except OverflowError:  # A whole number beyond float64, of either sign.
    return float("inf")


def _is_number(value: Any) -> bool:
  """Whether it is one real number, of Python, NumPy or JAX."""
  if isinstance(value, numbers.Real | np.bool_):
    return True
  return (
    np.shape(value) == ()
    and getattr(value, "dtype", np.dtype(object)).kind in "buif"
  )


def _name(value: Any) -> str:
  """A value or what it is, in words."""
  if value is None or _is_number(value) or isinstance(value, str):
    return repr(value)[:40]
  return f"of type {type(value).__name__}"
