"""Kinds of malformed input: each is refused with file, line and expectation."""

import gzip
import io
import zipfile

import numpy as np
import pytest
import scipy.sparse

from xlj.data import formats
from xlj.data import names
from xlj.data import store

GOOD = "2 5 4\n1,2 0:1 3:0.5\n0 4:2\n"

# name -> (content of train.txt, line of the error, what the message says)
TEXT = {
  "empty file": (
    "",
    None,
    "found an empty file, expected rows 'l1,l2 f:v ...', or a header",
  ),
  "header with a word": (
    "2 five 4\n",
    1,
    "found header '2 five 4', expected rows 'l1,l2 f:v ...', or a header "
    "'rows features labels'",
  ),
  "header with a negative number": ("2 -5 4\n1 0:1\n", 1, "header '2 -5 4'"),
  "header with too many numbers": ("2 5 4 1\n1 0:1\n", 1, "header '2 5 4 1'"),
  "header of the split form": (
    "2 5\n0:1\n1:1\n",
    1,
    "found features without labels, expected a header 'rows features labels'",
  ),
  "header with no rows": ("0 5 4\n", 1, "a header with 0 rows, expected at le"),
  "header with too many columns": (
    f"1 {2**31} 4\n0 1:1\n",
    1,
    "a header with 2147483648 features, expected at most 2147483647",
  ),
  "header alone": (
    "2 5 4\n",
    1,
    "found 0 rows, expected 2 as in the header; the file is cut short",
  ),
  "fewer rows than the header": (
    "3 5 4\n1 0:1\n2 1:1\n",
    3,
    "found 2 rows, expected 3 as in the header",
  ),
  "more rows than the header": (
    "1 5 4\n1 0:1\n\n2 1:1\n",
    4,
    "found more rows, expected 1 as in the header",
  ),
  "feature id too large": (
    "2 5 4\n1 0:1\n2 5:1\n",
    3,
    "found feature 5, expected an id in [0, 4]; are the ids counted from 1?",
  ),
  "label id too large": (
    "2 5 4\n1 0:1\n1,7 1:1\n",
    3,
    "found label 7, expected an id in [0, 3]",
  ),
  "labels where the header has none": (
    "1 5 0\n3 0:1\n",
    2,
    "found label 3, expected no labels",
  ),
  "feature id past 64 bits": (
    "1 5 4\n1 99999999999999999999:1\n",
    2,
    "found feature 99999999999999999999, expected an id of at most",
  ),
  "feature id past 32 bits without a header": (
    "1 4294967296:1\n",
    1,
    "found feature 4294967296, expected an id in [0, 2147483646]",
  ),
  "negative feature id": (
    "1 5 4\n1 -2:1\n",
    2,
    "found feature '-2', expected a feature id of digits; ids count from 0",
  ),
  "negative label id": (
    "1 5 4\n-1 2:1\n",
    2,
    "found label '-1', expected a label id of digits; ids count from 0 and",
  ),
  "feature twice in a row": (
    "2 5 4\n1 0:1\n1 3:1 2:1 3:4\n",
    3,
    "found feature 3 twice in a row, expected each id once",
  ),
  "label twice in a row": (
    "2 5 4\n1 0:1\n3,1,3 2:1\n",
    3,
    "found label 3 twice in a row, expected each id once",
  ),
  "not a number": (
    "1 5 4\n1 2:nan\n",
    2,
    "found value 'nan', expected a finite number in the range of float32",
  ),
  "infinite value": (
    "1 5 4\n1 2:-inf\n",
    2,
    "found value '-inf', expected a f",
  ),
  "value past float32": (
    "1 5 4\n1 2:1e39\n",
    2,
    "found value 1e+39 of feature 2, expected a finite number within float32",
  ),
  "value past float64": ("1 5 4\n1 2:1e999\n", 2, "found value inf of feature"),
  "value with a word": ("1 5 4\n1 2:0.5x\n", 2, "found value '0.5x', expected"),
  "value with two points": (
    "1 5 4\n1 2:0.5.1\n",
    2,
    "found value '0.5.1', exp",
  ),
  "no value": (
    "1 5 4\n1 2: 3:1\n",
    2,
    "found no value after the colon, expected a finite number",
  ),
  "no feature id": (
    "1 5 4\n1 :2\n",
    2,
    "found no feature id, expected a feature id of digits",
  ),
  "no colon": (
    "1 5 4\n1 2:1 3\n",
    2,
    "found '3', expected feature:value; a row is 'l1,l2 f:v f:v ...'",
  ),
  "two colons": ("1 5 4\n1 2:1:3\n", 2, "found value '1:3', expected"),
  "space between labels": ("1 5 4\n1, 2 3:1\n", 2, "found no label id, expe"),
  "labels with a word": ("2 5 4\n1\nsport 3:1\n", 3, "found label 'sport', e"),
  "label with a fraction": ("1 5 4\n1.0 3:1\n", 2, "found label '1.0', exp"),
  "query id": (
    "1 qid:7 3:1\n",
    1,
    "found feature 'qid', expected a feature id of digits; remove the query",
  ),
  "empty line between rows": (
    "1 0:1\n\n2 1:1\n",
    2,
    "found an empty line, expected a row; a row with neither labels nor",
  ),
  "no labels at all": (
    "2 5 4\n 0:1\n 1:1\n",
    None,
    "found no label in any row, expected labels",
  ),
  "lone carriage returns": ("1 5 4\n1 2:1\r2 3:1\n", 2, "found value '1\\r2'"),
  "NUL byte": ("2 5 4\n1 2:1\n\0\0\0\n", 3, "found a NUL byte, expected text"),
  "zip archive": (
    b"PK\x03\x04....",
    None,
    "found a zip archive, expected text",
  ),
  "PNG image": (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    None,
    "found a PNG image, expected text, plain or gzip; xlj images makes",
  ),
  "Parquet table": (
    b"PAR1\x15\x04\x15\x10",
    None,
    "found a Parquet table, expected text, plain or gzip; write its rows as",
  ),
  "UTF-16": ("1 5 4\n1 2:1\n".encode("utf-16"), None, "save it as UTF-8"),
  "letters of another alphabet": (
    "1 5 4\n1 \u0663:1\n",
    2,
    "expected a feature id of digits",
  ),
}


def write(path, content):
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return path


def refused(open_data, path, line, message):
  """Checks that DataError names the file, the line and what was expected."""
  with pytest.raises(formats.DataError) as caught:
    open_data()
  where = str(path) if line is None else f"{path}:{line}"
  assert str(caught.value).startswith(f"{where}: found ")
  assert ", expected " in str(caught.value)
  assert message in str(caught.value)
  assert caught.value.line == line


@pytest.mark.parametrize("name", TEXT)
def test_text(tmp_path, name):
  content, line, message = TEXT[name]
  path = write(tmp_path / "train.txt", content)
  cache = tmp_path / "cache"
  refused(
    lambda: store.open_split(tmp_path, cache_dir=cache), path, line, message
  )
  assert not list(cache.glob("*/meta.json"))


@pytest.mark.parametrize("name", ["BMW", "GIF89a", "%PDF", "Rar!", "BZh"])
def test_names_that_begin_as_other_files_do_are_names(tmp_path, name):
  path = write(tmp_path / "labels.txt", f"{name}\n\u00e9t\u00e9\n")
  assert names.read_names(path) == [name, "\u00e9t\u00e9"]


def test_the_table_is_about_what_is_malformed(tmp_path):
  write(tmp_path / "train.txt", GOOD)
  assert store.open_split(tmp_path, cache_dir=tmp_path / "c").num_rows == 2
  assert len(TEXT) >= 20


@pytest.mark.parametrize("far", [5, 20_000])
def test_line_numbers_are_right_in_later_blocks(tmp_path, far):
  rows = ["1 2:0.25 3:1"] * far
  rows[-2] = "1 2:0.25 x:1"
  path = write(tmp_path / "train.txt", "\n".join([f"{far} 5 4", *rows, ""]))
  refused(lambda: store.open_split(tmp_path), path, far, "found feature 'x'")
  rows[-2] = "1 9:1"
  write(path, "\n".join([f"{far} 5 4", *rows, ""]))
  refused(lambda: store.open_split(tmp_path), path, far, "found feature 9")


@pytest.mark.parametrize("kept", [40, 100])
def test_truncated_gzip(tmp_path, kept):
  rng = np.random.default_rng(0)
  rows = "".join(f"1 2:{value}\n" for value in rng.random(50))
  data = gzip.compress(f"50 5 4\n{rows}".encode())
  path = write(tmp_path / "train.txt.gz", data[:kept])
  refused(lambda: store.open_split(tmp_path), path, None, "damaged gzip after")


def test_gzip_with_a_flipped_bit(tmp_path):
  data = bytearray(gzip.compress(GOOD.encode()))
  data[-6] ^= 1  # in the checksum
  path = write(tmp_path / "train.txt.gz", bytes(data))
  refused(lambda: store.open_split(tmp_path), path, None, "a complete gzip")


def test_a_name_that_says_gzip_on_text(tmp_path):
  path = write(tmp_path / "train.txt.gz", GOOD)
  refused(
    lambda: store.open_split(tmp_path),
    path,
    None,
    "found a name that ends with .gz on content that is not gzip",
  )


def test_one_based_ids_with_a_zero(tmp_path):
  path = write(tmp_path / "train.svm", "1 1:1\n2 0:1\n")
  refused(
    lambda: store.open_split(tmp_path, zero_based=False, num_features=5),
    path,
    2,
    "found feature 0, expected an id in [1, 5]; are the ids counted from 0?",
  )


def test_sizes_other_than_asked_for(tmp_path):
  path = write(tmp_path / "test.txt", GOOD)
  refused(
    lambda: store.open_split(tmp_path, "test", num_features=6),
    path,
    1,
    "found a header with 5 features, expected 6",
  )
  refused(
    lambda: store.open_split(tmp_path, "test", num_labels=9),
    path,
    1,
    "found a header with 4 labels, expected 9",
  )


SPLIT_FORM = {
  "header of the one-file format": (
    "2 5 4\n0:1\n1:1\n",
    "2 4\n0:1\n1:1\n",
    ("X_Xf", 1, "found header '2 5 4', expected a header 'rows columns' of tw"),
  ),
  "no header": (
    "0:1\n1:1\n",
    "2 4\n0:1\n1:1\n",
    ("X_Xf", 1, "found no header '0:1', expected a header 'rows columns'"),
  ),
  "different numbers of rows": (
    "2 5\n0:1\n1:1\n",
    "3 4\n0:1\n1:1\n2:1\n",
    ("X_Y", None, "found 3 rows, expected 2, as many as in trn_X_Xf.txt"),
  ),
  "labels without values": (
    "2 5\n0:1\n1:1\n",
    "2 4\n0:1\n1,2\n",
    ("X_Y", 3, "found '1' without a value, expected label:value; after a head"),
  ),
  "labels of less than no relevance": (
    "2 5\n0:1\n1:1\n",
    "2 4\n0:1\n1:1 3:-0.5\n",
    ("X_Y", 3, "found value -0.5 of label 3, expected a relevance, 0 (absent)"),
  ),
  "label id too large": (
    "2 5\n0:1\n1:1\n",
    "2 4\n0:1\n4:1\n",
    ("X_Y", 3, "found label 4, expected an id in [0, 3]"),
  ),
  "label that is no number": (
    "2 5\n0:1\n1:1\n",
    "2 4\n0:1\na:1\n",
    ("X_Y", 3, "found label 'a', expected a label id of digits"),
  ),
}


@pytest.mark.parametrize("name", SPLIT_FORM)
def test_split_form(tmp_path, name):
  features, labels, (stem, line, message) = SPLIT_FORM[name]
  write(tmp_path / "trn_X_Xf.txt", features)
  write(tmp_path / "trn_X_Y.txt", labels)
  path = tmp_path / f"trn_{stem}.txt"
  refused(lambda: store.open_split(tmp_path), path, line, message)


PAIRS = {
  "row too large": ("0 1\n2 1\n", 2, "found row 2, expected a row in [0, 1]"),
  "label too large": ("0 1\n1 4\n", 2, "found label 4, expected a label in [0"),
  "three numbers": ("0 1\n1 2 3\n", 2, "found '1 2 3', expected a row and a l"),
  "one number": ("0\n1\n", 1, "found '0', expected a row and a label, 'row l"),
  "a word": ("0 1\n1 x\n", 2, "found row or label 'x', expected a row or lab"),
  "negative": ("0 -1\n", 1, "found row or label '-1', expected a row or label"),
  "empty line": ("0 1\n\n1 1\n", 2, "found an empty line, expected a row and"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_filter_pairs(tmp_path, name):
  content, line, message = PAIRS[name]
  write(tmp_path / "train.txt", GOOD)
  path = write(tmp_path / "filter_labels_train.txt", content)
  refused(lambda: store.open_split(tmp_path), path, line, message)


def csr(values=(1.0, 1.0), columns=(0, 2)):
  parts = (np.array(values), np.array(columns), np.array([0, 1, 2]))
  return scipy.sparse.csr_array(parts, shape=(2, 4))


def broken_csr(**arrays):
  out = csr()
  members = {
    "indices": out.indices,
    "indptr": out.indptr,
    "format": b"csr",
    "shape": out.shape,
    "data": out.data,
  }
  file = io.BytesIO()
  np.savez(file, **{**members, **arrays})
  return file.getvalue()


def saved(matrix):
  file = io.BytesIO()
  scipy.sparse.save_npz(file, matrix)
  return file.getvalue()


def rewritten(change):
  """An archive whose members' bytes are changed; None leaves one out."""
  out = io.BytesIO()
  with zipfile.ZipFile(io.BytesIO(saved(csr()))) as old:
    with zipfile.ZipFile(out, "w") as new:
      for member in old.namelist():
        content = change(member, old.read(member))
        if content is not None:
          new.writestr(member, content)
  return out.getvalue()


def without(name):
  return rewritten(lambda m, content: None if m == f"{name}.npy" else content)


def flipped():
  data = bytearray(broken_csr(data=np.array([1.5, 2.5])))
  data[data.index(np.array([1.5, 2.5]).tobytes())] ^= 1
  return bytes(data)


NPZ = {
  "not an archive": (b"hello", "found no readable zip archive"),
  "cut short": (saved(csr())[:-30], "found no readable zip archive"),
  "not CSR": (saved(csr().tobsr()), "found layout ['bsr'], expected a CSR"),
  "other arrays": (
    without("data"),
    "found an archive of _is_array.npy, format",
  ),
  "no layout": (without("format"), "expected a CSR matrix as scipy.sparse.sa"),
  "vector": (broken_csr(shape=(4,)), "found shape [4], expected [rows, colum"),
  "rows missing": (
    broken_csr(shape=(5, 4)),
    "found 3 row pointers, expected 5",
  ),
  "row pointers descend": (
    broken_csr(indptr=np.array([0, 3, 2])),
    "found row pointers that descend",
  ),
  "entries missing": (
    broken_csr(indices=np.array([1])),
    "found 1 indices and 2 data, expected as many of both",
  ),
  "ids with fractions": (
    broken_csr(indices=np.array([0.5, 1])),
    "found indices of type float64",
  ),
  "complex values": (
    broken_csr(data=np.array([1j, 2])),
    "found data of type complex128",
  ),
  "id too large": (
    broken_csr(indices=np.array([0, 4])),
    "in row 1 (from 0) feature 4, expected an id in [0, 3]",
  ),
  "id negative": (
    broken_csr(indices=np.array([0, -1])),
    "in row 1 (from 0) feature -1, expected an id in [0, 3]",
  ),
  "twice in a row": (
    broken_csr(indices=np.array([2, 2]), indptr=np.array([0, 0, 2])),
    "in row 1 (from 0) feature 2 twice in a row, expected each id once",
  ),
  "not finite": (
    saved(csr(values=(1.0, np.inf))),
    "in row 1 (from 0) value inf of feature 2, expected a finite number",
  ),
  "flipped bit": (flipped(), "damaged"),
  "bytes after the end": (
    rewritten(lambda m, content: content + b"x" * (m == "data.npy")),
    "found damaged data (there is more of it than its header says)",
  ),
}


@pytest.mark.parametrize("name", NPZ)
def test_npz_features(tmp_path, name):
  content, message = NPZ[name]
  path = write(tmp_path / "X.trn.npz", content)
  write(tmp_path / "Y.trn.npz", saved(csr()))
  refused(lambda: store.open_split(tmp_path), path, None, message)


def test_npz_labels(tmp_path):
  write(tmp_path / "X.trn.npz", saved(csr()))
  path = write(tmp_path / "Y.trn.npz", saved(csr(values=(1.0, -3.0))))
  refused(
    lambda: store.open_split(tmp_path),
    path,
    None,
    "in row 1 (from 0) value -3 of label 2, expected a relevance, 0 (abs",
  )


def npy(array, **options):
  file = io.BytesIO()
  np.save(file, array, **options)
  return file.getvalue()


NPY = {
  "not an array": (b"hello", "found no readable array"),
  "cut short": (npy(np.ones((2, 3)))[:-5], "found no readable array"),
  "three axes": (npy(np.ones((2, 3, 1))), "found float64 (2, 3, 1), expected"),
  "objects": (npy(np.array([[None]]), allow_pickle=True), "no readable array"),
  "complex": (npy(np.ones((2, 3), complex)), "found complex128 (2, 3), expec"),
  "empty": (npy(np.ones((0, 3))), "found an empty array (0, 3), expected a Nu"),
  "not a number": (
    npy(np.array([[1, 2], [3, np.nan]])),
    "in row 1 (from 0) value nan of feature 1, expected a finite number",
  ),
  "past float32": (npy(np.array([[1e39]])), "value 1e+39 of feature 0, expec"),
  "other number of rows": (npy(np.ones((3, 2))), "expected 3, as many as in X"),
}


@pytest.mark.parametrize("name", NPY)
def test_dense_features(tmp_path, name):
  content, message = NPY[name]
  path = write(tmp_path / "X.trn.npy", content)
  labels = write(tmp_path / "Y.trn.npz", saved(csr()))
  path = labels if "rows" in name else path
  refused(lambda: store.open_split(tmp_path), path, None, message)
