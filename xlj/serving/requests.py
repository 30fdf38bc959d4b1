"""What clients send: its form, and what a model can make of it.

The form is checked while JSON is read, so that nothing deep or large becomes
an object first; NaN and infinity are no JSON. What fits the form is compared
with the model before anything waits or is computed.

Legend: n rows of a request, F features and L label ids of the model.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from xlj.data import csr as csr_lib
from xlj.data import numbering as numbering_lib
from xlj.documents import rows as documents
from xlj.serving import models as models_lib
from xlj.serving.packages import msgspec

# A text; {"text": ..., "title": ...}; {"items": [id or name]}; a vector; pairs;
# {"id or name": value}.
Row = (
  str
  | dict[str, float | str | list[int | str]]
  | list[float | tuple[int | str, float]]
)
Features = list[str] | csr_lib.Csr | np.ndarray
_LARGEST = float(np.finfo(np.float32).max)
_LONGEST_ID = 19  # digits
_TEXT_KEYS = {"text", "title"}


class Refused(Exception):
  """What a client is told instead of an answer.

  Attributes:
    status: Of HTTP.
    headers: That go with it.
  """

  def __init__(self, status: int, text: str, **headers: str):
    """Headers are named as in Python, `retry_after`."""
    super().__init__(text)
    self.status = status
    self.headers = {
      name.replace("_", "-"): value for name, value in headers.items()
    }


class Predict(msgspec.Struct, forbid_unknown_fields=True):
  """The k best labels of each row.

  Attributes:
    rows: Any number of them.
    k: Labels of each; by default 5, or all where there are fewer.
    allow: Label ids of which no others are to be answers.
    deny: Label ids that are not to be.
    threshold: Score that a label has to reach.
    min_probability: Calibrated probability that it has to reach.
    model: By default the only one, or the first.
  """

  rows: list[Row]
  k: int | None = None
  allow: list[int] | None = None
  deny: list[int] = []
  threshold: float | None = None
  min_probability: float | None = None
  model: str | None = None


class Embed(msgspec.Struct, forbid_unknown_fields=True):
  """The vectors of rows."""

  rows: list[Row]
  model: str | None = None


class Why(msgspec.Struct, forbid_unknown_fields=True):
  """What of a row speaks for labels; the n strongest features."""

  row: Row
  labels: list[int]
  n: int = 10
  model: str | None = None


class Reload(msgspec.Struct, forbid_unknown_fields=True):
  """A model in place of another; by default what its directory now holds."""

  dir: str | None = None


class Decoder:
  """Reads JSON of one form."""

  def __init__(self, form: Any):
    """Compiles it."""
    self._decoder = msgspec.json.Decoder(form)

  def __call__(self, body: bytes) -> Any:
    """The message.

    Raises:
      Refused: It is no JSON (400), or of another form (422).
    """
    try:
      return self._decoder.decode(body)
    except msgspec.ValidationError as error:
      raise Refused(422, f"{error}") from None
    except (ValueError, RecursionError) as error:
      raise Refused(400, f"the body is no JSON: {error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Rows that fit a model.

  Attributes:
    features: Texts, or `[n, F]`.
    length: Characters or features of the longest one.
  """

  features: Features
  length: int

  @property
  def form(self) -> str:
    """What they are; those of one form can be put together."""
    return type(self.features).__name__

  def alone(self, model: models_lib.Model) -> Any:
    """The only row, as what explains answers takes it."""
    if isinstance(self.features, csr_lib.Csr):
      ids, values = self.features.indices, self.features.values
      if model.numbering is not None:
        ids = model.numbering.features[ids]
      assert values is not None
      return dict(zip(ids.tolist(), values.tolist()))
    is_run = hasattr(model.answers, "run")
    if isinstance(self.features, np.ndarray) and is_run:
      return self.features  # [1, F]
    return self.features[0]

  def __len__(self) -> int:
    """How many, n."""
    return _count(self.features)


def _count(features: Features) -> int:
  if isinstance(features, csr_lib.Csr):
    return features.num_rows
  return len(features)


def together(parts: Sequence[Features]) -> Features:
  """The rows of several requests, of one form, as those of one."""
  if len(parts) == 1:
    return parts[0]
  rows: Any = parts
  if isinstance(parts[0], list):
    return [text for part in rows for text in part]
  if isinstance(parts[0], np.ndarray):
    return np.concatenate(rows)
  lengths = np.concatenate([np.diff(part.indptr) for part in rows])
  return csr_lib.Csr(
    np.concatenate([[0], np.cumsum(lengths)]),
    np.concatenate([part.indices for part in rows]),
    np.concatenate([part.values for part in rows]),
    rows[0].num_columns,
  )


def read_rows(rows: Sequence[Row], model: models_lib.Model) -> Rows:
  """Rows as the model takes them.

  Args:
    rows: At least one.
    model: That is asked.

  Returns:
    Texts, sparse rows, or dense ones for a model of dense features.

  Raises:
    Refused: 422, with the row, what is wrong there and what to give.
  """
  if not rows:
    raise Refused(422, "rows is empty; give at least one row")
  texts = [_text(row) for row in rows]
  if any(text is not None for text in texts):
    if model.input != "texts":
      raise Refused(
        422,
        f"row {_first(texts, False)} is a text; the model reads {model.form}",
      )
    if None in texts:
      raise Refused(
        422, f"row {_first(texts, True)} is no text, but others are"
      )
    found: Any = texts
    return Rows(found, max(map(len, found)))
  if model.input in ("dense", "images"):
    return _dense(rows, model)
  if model.input == "items":
    read = [_items(i, row, model) for i, row in enumerate(rows)]
  else:
    read = [_sparse(i, row, model) for i, row in enumerate(rows)]
  lengths = [len(ids) for ids, _ in read]
  indptr = np.zeros(len(rows) + 1, np.int64)
  np.cumsum(lengths, out=indptr[1:])
  flat = [i for ids, _ in read for i in ids]
  values = [v for _, row in read for v in row]
  csr = csr_lib.Csr(
    indptr,
    np.array(flat, np.int32),
    np.array(values, np.float32),
    model.num_features,
  )
  return Rows(csr, max(lengths))


def _text(row: Row) -> str | None:
  """The text of a row; None if it is none."""
  if isinstance(row, str):
    return row
  if not isinstance(row, dict) or not isinstance(row.get("text"), str):
    return None
  if row.keys() <= _TEXT_KEYS and isinstance(row.get("title", ""), str):
    return documents.text_of(row)
  return None


def _first(texts: Sequence[str | None], missing: bool) -> int:
  return next(i for i, text in enumerate(texts) if (text is None) == missing)


def _dense(rows: Sequence[Row], model: models_lib.Model) -> Rows:
  width = model.num_features
  for i, row in enumerate(rows):
    is_vector = isinstance(row, list) and not any(
      isinstance(value, tuple) for value in row
    )
    if not is_vector:
      raise Refused(422, f"row {i} is no vector; the model reads {model.form}")
    if len(row) != width:
      raise Refused(
        422, f"row {i} has {len(row)} numbers; the model reads {model.form}"
      )
  numbers = np.array(rows, np.float64)
  if (far := np.abs(numbers) > _LARGEST).any():
    row, feature = np.argwhere(far)[0].tolist()
    _refuse_value(row, feature, numbers[row, feature])
  return Rows(numbers.astype(np.float32), width)


def _items(
  number: int, row: Row, model: models_lib.Model
) -> tuple[list[int], list[float]]:
  """Items in their order, and the place of each from 1."""
  items = row.get("items") if isinstance(row, dict) else None
  if not isinstance(items, list) or len(row) > 1:
    raise Refused(
      422, f"row {number} is no sequence; the model reads {model.form}"
    )
  ids: list[int] = []
  for item in items:
    if isinstance(item, str) or not 0 <= item < model.num_features:
      raise Refused(
        422, f"row {number} has the item {item}; the model reads {model.form}"
      )
    ids.append(item)
  return ids, [float(place) for place in range(1, len(ids) + 1)]


def _sparse(
  number: int, row: Row, model: models_lib.Model
) -> tuple[list[int], list[float]]:
  """Ids, ascending, and values."""
  if found := _quickly(row, model):
    return found
  if isinstance(row, dict) and any(isinstance(v, list) for v in row.values()):
    items = row.get("items")  # a set, in no order
    if not isinstance(items, list) or len(row) > 1:
      raise Refused(
        422, f"row {number} has lists; the model reads {model.form}"
      )
    row = [(item, 1.0) for item in dict.fromkeys(items)]
  return _Sparse(number, model).read(row)


def _quickly(
  row: Any, model: models_lib.Model
) -> tuple[list[int], list[float]] | None:
  """What `_Sparse` reads of ids and numbers; None where it has to look."""
  if not isinstance(row, dict) or not row or model.numbering is not None:
    return None
  digits = "".join(row)
  if not (digits.isascii() and digits.isdecimal() and "" not in row):
    return None
  if len(digits) > _LONGEST_ID * len(row):  # some id is long
    return None
  ids, values = list(map(int, row)), list(row.values())
  if set(map(type, values)) != {float} or max(map(abs, values)) > _LARGEST:
    return None
  if ids != sorted(ids):
    order = sorted(range(len(ids)), key=ids.__getitem__)
    ids, values = [ids[i] for i in order], [values[i] for i in order]
  # Numbers from 0 on that ascend.
  if ids[-1] >= model.num_features or len(set(ids)) != len(ids):
    return None
  return ids, values


class _Sparse:
  """Reads one sparse row, of any form."""

  def __init__(self, number: int, model: models_lib.Model):
    self.number, self.model = number, model

  def read(self, row: Any) -> tuple[list[int], list[float]]:
    """Ids, ascending, and values."""
    if isinstance(row, dict):
      pairs = [(self._of_key(key), value) for key, value in row.items()]
    elif row and not isinstance(row[0], tuple):
      if len(row) != self.model.num_features or any(
        isinstance(value, tuple) for value in row
      ):
        raise Refused(
          422,
          f"row {self.number} is a list of {len(row)} values; the model reads"
          f" {self.model.form}",
        )
      pairs = [(i, value) for i, value in enumerate(row) if value]
    else:
      if any(not isinstance(pair, tuple) for pair in row):
        raise Refused(
          422, f"row {self.number} has pairs and numbers; give either"
        )
      pairs = [
        (self._of_name(i) if isinstance(i, str) else self._of_id(i), value)
        for i, value in row
      ]
    for i, value in pairs:
      if not isinstance(value, float):
        raise Refused(
          422, f"row {self.number} has a text as the value of feature {i}"
        )
      if abs(value) > _LARGEST:
        _refuse_value(self.number, i, value)
    if self.model.numbering is not None:
      pairs = _numbered(pairs, self.model.numbering)
    pairs.sort()
    ids = [i for i, _ in pairs]
    for one, other in zip(ids, ids[1:]):
      if one == other:
        raise Refused(422, f"row {self.number} has feature {one} twice")
    return ids, [value for _, value in pairs]

  def _of_key(self, key: str) -> int:
    """A key of digits is an id, any other a name."""
    if key.isascii() and key.isdecimal():
      return self._of_id(int(key) if len(key) <= _LONGEST_ID else -1, key)
    return self._of_name(key)

  def _of_id(self, feature: int, said: str = "") -> int:
    numbered = self.model.numbering is not None
    most = numbering_lib.MAX_ID if numbered else self.model.num_features
    if not 0 <= feature < most:
      raise Refused(
        422,
        f"row {self.number} has the feature {said[:40] or feature}; ids are"
        f" whole numbers from 0 to {most - 1}",
      )
    return feature

  def _of_name(self, name: str) -> int:
    found = self.model.features_by_name
    if found is None:
      raise Refused(
        422,
        f"row {self.number} names the feature {name[:40]!r}, and the model"
        " knows no names of features; give ids",
      )
    if name not in found:
      raise Refused(
        422,
        f"row {self.number} names the feature {name[:40]!r}, which the model"
        " does not know",
      )
    return found[name]


def _numbered(
  pairs: list[tuple[int, float]], numbering: numbering_lib.Numbering
) -> list[tuple[int, float]]:
  """By the numbers of the ids; what training had not counts for nothing."""
  ids = np.array([i for i, _ in pairs], np.int64)
  numbers = numbering_lib.find(numbering.features, ids).tolist()
  return [(n, value) for n, (_, value) in zip(numbers, pairs) if n >= 0]


def _refuse_value(row: int, feature: int, value: float) -> None:
  raise Refused(
    422, f"row {row} has {value:g} at feature {feature}, beyond float32"
  )


def check_labels(
  ids: Sequence[int], model: models_lib.Model, name: str
) -> np.ndarray:
  """Label ids, each of which the model has.

  Args:
    ids: Any number of them.
    model: That is asked.
    name: The field, for the message.

  Returns:
    int64.

  Raises:
    Refused: 422, with the first that it has not.
  """
  if not ids:
    return np.zeros(0, np.int64)
  try:
    found = np.array(ids, np.int64)
  except OverflowError:
    wrong = next(i for i in ids if not -(2**63) <= i < 2**63)
    raise Refused(422, f"{name} has {str(wrong)[:40]}, no label id") from None
  if model.numbering is not None:
    missing = numbering_lib.find(model.numbering.labels, found) < 0
    there = "training has no such label"
  else:
    missing = (found < 0) | (found >= model.num_ids)
    there = f"the model has ids 0 to {model.num_ids - 1}"
  if missing.any():
    raise Refused(422, f"{name} has the label id {found[missing][0]}; {there}")
  return found


def check_k(k: int | None, model: models_lib.Model) -> int:
  """How many labels.

  Raises:
    Refused: 422, where there are not so many.
  """
  if k is None:
    return min(5, model.num_labels)
  if not 1 <= k <= model.num_labels:
    raise Refused(
      422,
      f"k is {str(k)[:40]}; give a whole number from 1 to {model.num_labels},"
      " the labels of the model",
    )
  return k
