"""Examples from Python: each form is read as it is meant, or refused."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from tests import runs
from xlj.data import csr as csr_lib
from xlj.data import numbering as numbering_lib
from xlj.model import examples

F = 12
X = np.zeros((3, F), np.float32)
X[0, 3], X[0, 7], X[2, 11] = 1.5, -2, 4
SPARSE = scipy.sparse.csr_array(X)


class Table:
  """What tables of pandas and polars have."""

  def to_numpy(self):
    return X.astype(object)


def config_of(**fields):
  config = runs.resolved()
  config.data.num_features, config.data.dense = F, False
  config.update_from_flattened_dict(fields)
  return config


def masked():
  return np.ma.masked_equal(X, 4)


def damaged(**changes):
  matrix = SPARSE.copy()
  for name, value in changes.items():
    setattr(matrix, name, np.asarray(value))
  return matrix


def with_value(value, kind=np.float64):
  changed = X.astype(kind)
  changed[2, 5] = value
  return changed


UNSORTED = scipy.sparse.csr_array(
  ([-2.0, 1.0, 0.5, 4.0], [7, 3, 3, 11], [0, 3, 3, 4]), shape=(3, F)
)
DICTS = [{7: -2, 3: np.float32(1.5)}, {}, {np.int64(11): jnp.float32(4)}]
FORMS = {
  "dicts": DICTS,
  "tuple of dicts": tuple(DICTS),
  "generator of dicts": (row for row in DICTS),
  "array of dicts": np.array(DICTS, object),
  "lists": X.tolist(),
  "tuples": tuple(map(tuple, X)),
  "list of arrays": list(X),
  "generator of rows": iter(X),
  "float64": X.astype(np.float64),
  "float16": X.astype(np.float16),
  "object": X.astype(object),
  "order of columns": np.asfortranarray(X),
  "matrix": np.asmatrix(X),
  "jax": jnp.asarray(X),
  "jax bfloat16": jnp.asarray(X, jnp.bfloat16),
  "table": Table(),
  "Csr": csr_lib.Csr.from_scipy(SPARSE),
  "sparse float64": SPARSE.astype(np.float64),
  "duplicates in no order": UNSORTED,
  "fewer columns": scipy.sparse.csr_array(X[:, :F]),
  **{
    name: getattr(scipy.sparse, f"{name}_array")(X)
    for name in ("csr", "csc", "coo", "dok", "lil", "bsr", "dia")
  },
  "csr_matrix": scipy.sparse.csr_matrix(X),
}


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_whose_meaning_is_plain_agree(form, dense):
  given = FORMS[form]
  if form.startswith("generator"):
    given = iter(DICTS if "dicts" in form else X)
  found = examples.of(config_of(**{"data.dense": dense}), given)
  if not dense:
    found.validate()
    found = found.to_scipy().toarray()
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, X)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_whole_numbers_are_numbers(dtype):
  ones = (X != 0).astype(dtype)
  for given in (ones, scipy.sparse.csr_array(ones)):
    found = examples.of(config_of(), given)
    np.testing.assert_array_equal(found.to_scipy().toarray(), X != 0)


@pytest.mark.parametrize(
  "given", [[], (), iter([]), np.zeros((0, F)), np.array([]), SPARSE[:0]]
)
def test_no_examples(given):
  assert examples.of(config_of(), given).shape == (0, F)


REFUSED = {
  "None": (None, "the features are None; give a SciPy matrix or an array"),
  "number": (3, "the features are 3; give"),
  "text": ("3:1", "the features are '3:1'; give .* a dict for each example"),
  "bytes": (b"3:1", "the features are of type bytes"),
  "one dict": ({3: 1.0}, r"are one dict; give a list of them: \[\{...\}\]"),
  "set": ({3, 4}, "of type set"),
  "flat list": ([1.0] * F, r"row 0 .* is 1.0; one example is \[features\]"),
  "lines": (["3:1", "4:1"], "row 0 of the features is '3:1'; give"),
  "None among dicts": ([{3: 1.0}, None], "row 0 of the features is of type d"),
  "ragged": ([[1.0] * F, [1.0]], "row 1 .* has 1 values and row 0 12"),
  "narrow lists": ([[3, 17]], "have 2 features, the model 12"),
  "text in lists": ([["a"] * F], "of type <U1"),
  "None in lists": ([[None] * F], "row 0 .* nan at feature 0"),
  "key of text": ([{3: 1.0}, {"3": 1.0}], "row 1 .* '3' as a feature id; ids"),
  "mixed keys": ([{3: 1.0, "4": 1.0}], "row 0 .* '4' as a feature id"),
  "key of float": ([{3.0: 1.0}], "row 0 .* 3.0 as .* whole numbers from 0 to"),
  "key of bool": ([{True: 1.0}], "row 0 .* True as a feature id"),
  "negative key": ([{}, {-1: 1.0}], "row 1 .* -1 as a feature id"),
  "large key": ([{F: 1.0}], "row 0 .* 12 as .* from 0 to 11"),
  "value beyond float64": (
    [{3: 10**400}],
    "inf at feature 3, which",
  ),
  "value of text": ([{3: "1"}], "row 0 .* has '1' at feature 3; give a number"),
  "value of None": ([{3: None}], "row 0 .* has None at feature 3"),
  "value complex": ([{3: 1j}], "row 0 .* of type complex at feature 3"),
  "NaN in dict": (
    [{}, {3: np.nan}],
    "row 1 .* nan at feature 3, .* finite",
  ),
  "large in dict": (
    [{3: 1e39}],
    r"1e\+39 at feature 3, .* float32",
  ),
  "wide": (np.ones((2, F + 1)), "have 13 features, the model 12; give the col"),
  "narrow": (np.ones((2, F - 1)), "have 11 features, the model 12"),
  "wide sparse": (scipy.sparse.csr_array((2, F + 1)), "13 .* the model 12"),
  "one row": (X[0], r"have shape \(12,\); one example is features\[None\]"),
  "3-d": (X[None], r"have shape \(1, 3, 12\); give"),
  "0-d": (np.float32(1), "the features are 1.0|have shape"),
  "complex": (X.astype(complex), "of type complex128"),
  "strings": (X.astype(str), "of type <U"),
  "dates": (np.zeros((1, F), "datetime64[s]"), "of type datetime64"),
  "masked": (masked(), "masked values; fill them"),
  "NaN": (with_value(np.nan), "row 2 .* nan at feature 5, which is not finite"),
  "infinity": (with_value(-np.inf), "row 2 .* -inf at feature 5"),
  "large": (with_value(1e39), "row 2 .* at feature 5, which is beyond float32"),
  "NaN in jax": (jnp.asarray(with_value(np.nan)), "row 2 .* nan at feature 5"),
  "NaN in csr": (scipy.sparse.csr_array(with_value(np.nan)), "row 2 .* nan at"),
  "inf in csc": (scipy.sparse.csc_array(with_value(np.inf)), "row 2 .* inf at"),
  "sum": (
    scipy.sparse.coo_array(([3e38, 3e38], ([1, 1], [4, 4])), shape=(3, F)),
    "row 1 .* at feature 4, which is beyond float32",
  ),
  "complex csr": (SPARSE.astype(complex), "of type complex128; give float32"),
  "1-d sparse": (scipy.sparse.coo_array(X[0]), r"\(12,\); .*reshape\(1, -1\)"),
  "negative column": (damaged(indices=[-1, 7, 11]), "damaged: "),
  "column beyond": (damaged(indices=[3, 7, 99]), "damaged: "),
  "descending rows": (damaged(indptr=[0, 3, 1, 3]), "damaged: "),
  "damaged Csr": (
    csr_lib.Csr(np.array([0, 1]), np.array([99]), np.ones(1), F),
    "Row 0 has a column outside",
  ),
  "NaN in Csr": (
    csr_lib.Csr(np.array([0, 0, 1]), np.array([3]), np.array([np.nan]), F),
    "Row 1 has a value that is not finite",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("dense", [False, True])
def test_what_cannot_be_meant_is_refused(case, dense):
  given, message = REFUSED[case]
  with pytest.raises(ValueError, match=message):
    examples.of(config_of(**{"data.dense": dense}), given)


@pytest.mark.parametrize(
  "shape,kind,message",
  [
    ((2, 2, 2, 3), np.uint8, None),
    ((2, 2, 2, 3), np.int64, None),
    ((2, 12), np.uint8, None),
    ((2, 3, 2, 2), np.uint8, r"\(2, 3, 2, 2\); give images \[n, 2, 2, 3\]"),
    ((2, 4, 4, 3), np.uint8, r"\(2, 4, 4, 3\); give images"),
    ((2, 2, 3), np.uint8, r"one example is features\[None\]; give images"),
    ((2, 2, 2, 3), np.float32, "float32 up to 1.0; .* from 0 to 255"),
  ],
)
def test_images_are_as_those_trained_on(shape, kind, message):
  fields = {"data.dense": True, "encoder.image": (2, 2, 3)}
  config = config_of(**fields, **{"encoder.input_scale": 1 / 255})
  given = np.ones(shape, kind)
  if message is None:
    assert examples.of(config, given).shape == (2, F)
    return
  with pytest.raises(ValueError, match=message):
    examples.of(config, given)


@pytest.mark.parametrize(
  "given",
  [[{2**70: 1.0}], [{-3: 1.0}], scipy.sparse.coo_array(np.array([1.0, 2.0]))],
)
def test_what_has_no_number_is_left_to_be_refused(given):
  known = np.array([5, 2**40])
  numbering = numbering_lib.Numbering(known, known)
  found = examples.numbered(given, numbering)
  with pytest.raises(ValueError, match="feature id|have shape"):
    examples.of(config_of(), found)


NAMES = [f"f{i}" for i in range(F)]


def test_names_of_features_are_ids(caplog):
  rows = [{"f3": 1.5, "f7": -2}, {}, {"f11": 4, "new": 1}]
  found = examples.named((row for row in rows), lambda: NAMES)
  np.testing.assert_array_equal(
    examples.of(config_of(), found).to_scipy().toarray(), X
  )
  assert "1 entries of features that training has not" in caplog.text
  with pytest.raises(ValueError, match="row 1 of the features has 3 beside na"):
    examples.named([{"f3": 1.0}, {3: 1.0}], lambda: NAMES)


@pytest.mark.parametrize(
  "given", [SPARSE, X, X.tolist(), [{3: 1.5}], ["a text"], {"f3"}, b"f3"]
)
def test_what_has_no_names_is_left_as_it_is(given):
  found = examples.named(given, lambda: pytest.fail("names are read"))
  assert found is given or found == given


def test_names_that_nobody_knows_are_left_to_be_refused():
  rows = examples.named([{"f3": 1.0}], lambda: None)
  with pytest.raises(ValueError, match="'f3' as a feature id"):
    examples.of(config_of(), rows)


def test_sequences_are_items_in_order():
  config = config_of(**{"data.sequences": "A", "encoder.type": "causal"})
  found = examples.of(config, [{"items": [7, 2, 7]}, {"items": np.array([])}])
  assert found.indices.tolist() == [7, 2, 7]
  assert found.indptr.tolist() == [0, 3, 3]
  for wrong, message in (
    (SPARSE, "the features are of type csr_array; give {"),
    ({"items": [1]}, "the features are of type dict; give {"),
    ([{3: 1.0}], "row 0 of the features is of type dict; give {"),
    ([{"items": [1]}, {"items": 3}], "row 1 of the features has 3; give {"),
    ([{"items": "13"}], "row 0 of the features has '13'"),
    ([{"items": [1, F]}], "row 0 of the features has 12 as a feature id"),
    ([{"items": [1, 2.0]}], "row 0 of the features has 2.0 as a feature id"),
  ):
    with pytest.raises(ValueError) as raised:
      examples.of(config, wrong)
    assert message in str(raised.value)
