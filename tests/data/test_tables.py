"""Tables of features and labels: CSV, TSV, Parquet, Arrow."""

import json

import numpy as np
import pyarrow as pa
from pyarrow import feather
from pyarrow import ipc
from pyarrow import parquet
import pytest

from xlj import config as config_lib
from xlj.config import text
from xlj.data import errors
from xlj.data import formats
from xlj.data import store
from xlj.documents import store as documents

NAMES = [["b", "a|c"], [], ["c"], ["b"]]
IDS = [[0, 1], [], [2], [0]]
DENSE = [[0.0, 1.5], [2.0, -3.0], [4.0, 5.0], [6.0, 1e-3]]
ROWS = {
  "x": [row[0] for row in DENSE],
  "id": ["p", "q", "r", "s"],
  "y": [row[1] for row in DENSE],
}


def as_csv(columns, delimiter):
  def cell(value):
    value = json.dumps(value) if isinstance(value, list) else str(value)
    return '"' + value.replace('"', '""') + '"'

  rows = [columns, *zip(*columns.values())]
  return "".join(delimiter.join(map(cell, row)) + "\n" for row in rows)


def write(path, columns):
  if path.suffix in (".csv", ".tsv"):
    path.write_text(as_csv(columns, {".csv": ",", ".tsv": "\t"}[path.suffix]))
    return
  table = pa.table(columns)
  if path.suffix == ".parquet":
    parquet.write_table(table, path)
  elif path.suffix == ".feather":
    feather.write_feather(table, path)
  else:  # a stream, as `datasets` saves it
    with ipc.new_stream(path, table.schema) as out:
      out.write_table(table)


def rows_of(labels):
  ends = labels.indptr.tolist()
  return [labels.indices[a:b].tolist() for a, b in zip(ends, ends[1:])]


ENDINGS = (".csv", ".tsv", ".parquet", ".arrow", ".feather")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("labels", [NAMES, IDS])
def test_columns_of_numbers(tmp_path, ending, labels):
  write(tmp_path / f"train{ending}", ROWS | {"labels": labels})
  for _ in range(2):  # read, then mapped
    split = store.open_split(tmp_path)
    assert np.array_equal(split.features, np.float32(DENSE))
    assert rows_of(split.labels) == IDS
    names = ["b", "a|c", "c"] if labels is NAMES else None
    assert split.label_names == names
  assert store.table_features(tmp_path) == ["x", "y"]
  config = config_lib.base()
  config.data.dir = str(tmp_path)
  assert text.kind(config) == ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_label_of_each_row(tmp_path, ending):
  write(tmp_path / f"trn{ending}", ROWS | {"label": ["b", "a", "", "b"]})
  split = store.open_split(tmp_path)
  assert rows_of(split.labels) == [[0], [1], [], [0]]
  assert split.label_names == ["b", "a"]


@pytest.mark.parametrize("ending", ENDINGS[2:])
def test_lists_of_numbers(tmp_path, ending):
  write(tmp_path / f"train{ending}", {"embedding": DENSE, "labels": IDS})
  split = store.open_split(tmp_path)
  assert np.array_equal(split.features, np.float32(DENSE))
  assert store.table_features(tmp_path) is None
  sparse = {
    "indices": [[3, 1], [], [0], [3]],
    "values": [[1.0, 2.0], [], [3.0], [4.0]],
    "labels": IDS,
  }
  write(tmp_path / f"train{ending}", sparse)
  split = store.open_split(tmp_path)
  assert split.features.to_scipy().toarray().tolist() == [
    [0, 2, 0, 1],
    [0, 0, 0, 0],
    [3, 0, 0, 0],
    [0, 0, 0, 4],
  ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_other_tables_are_read_by_the_columns_of_training(tmp_path, ending):
  write(tmp_path / f"train{ending}", ROWS | {"labels": NAMES})
  turned = {"z": [7.0] * 4, "y": ROWS["y"], "labels": NAMES[::-1]}
  turned["x"] = ROWS["x"]
  write(tmp_path / f"test{ending}", turned)
  test = store.open_split(tmp_path, "test", num_labels=3, beyond=True)
  assert np.array_equal(test.features, np.float32(DENSE))
  assert rows_of(test.labels) == IDS[::-1]
  assert test.label_names == ["b", "a|c", "c"]
  del turned["x"]
  write(tmp_path / f"test{ending}", turned)
  with pytest.raises(errors.DataError, match="a column 'x', as training has"):
    store.open_split(tmp_path, "test")
  # Rows to predict from need no labels.
  new = tmp_path / f"new{ending}"
  write(new, {"y": [1.0], "x": [2.0]})
  (rows,) = formats.stream_rows(new, feature_names=["x", "y"])
  assert rows.features.tolist() == [[2, 1]] and rows.labels is None


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_table_with_texts_is_one_of_texts(tmp_path, ending):
  columns = ROWS | {"text": ["p", "q", "r", "s"], "labels": NAMES}
  write(tmp_path / f"train{ending}", columns)
  config = config_lib.base()
  config.data.dir = str(tmp_path)
  assert text.kind(config) == "words"
  found = documents.open_documents(tmp_path)
  assert list(found.texts) == columns["text"]
  assert rows_of(found.labels) == IDS
  (tmp_path / "train.svm").write_text("0 0:1\n")
  assert store.open_split(tmp_path).num_rows == 1  # features come first


CSV = "labels,x,y\n"
WRONG = {
  "a word": (CSV + "a,1,2\nb,1,two\n", ":3: found 'two' in column 'y', expect"),
  "a gap": (CSV + "a,1,2\n\nb,,2\n", ":4: found a missing or infinite value"),
  "infinity": (CSV + "a,1,inf\n", ":2: found a missing or infinite value in c"),
  "a cell less": (CSV + "a,1,2\nb,1\n", ":3: found 2 cells, expected 3"),
  "a cell open": (CSV + 'a,1,"2\n', ":2: found no row of cells"),
  "no label": ("x,y\n1,2\n", "found no column of labels, expected a column"),
  "labels twice": ("label,labels,x\na,b,1\n", ":1: found 'labels' and 'label'"),
  "x twice": ("label,x,x\na,b,1\n", ":1: found column 'x' twice"),
  "no feature": ("labels,id\na,1\n", ":1: found columns labels, id, expected"),
  "ids, then a name": (
    CSV + '[1],1,2\n"[""a""]",1,2\n',
    ":3: found label 'a', expected an id from 0",
  ),
  "names, then an id": (CSV + "a,1,2\n[3],1,2\n", ":3: found label 3, expecte"),
  "a label twice": (CSV + "a|a,1,2\n", ":2: found label 'a' twice in a row"),
  "a blank": (CSV + "a| b,1,2\n", ":2: found label ' b' with a blank"),
  "nothing": ("", "found an empty file, expected a row that names the columns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_cell_is_named(tmp_path, name):
  content, message = WRONG[name]
  (tmp_path / "train.csv").write_text(content)
  with pytest.raises(errors.DataError) as error:
    store.open_split(tmp_path)
  assert f"train.csv{':' if message[0] != ':' else ''}" in str(error.value)
  assert message in str(error.value)


COLUMNS = {"labels": [[0], [1]]}
WRONG_LISTS = {
  "lengths": ({"v": [[1.0, 2.0], [1.0]]}, "in row 1 (from 0) 1 features, exp"),
  "null": ({"v": [[1.0], None]}, "in row 1 (from 0) nothing in column 'v'"),
  "no number": ({"v": [["a"], ["b"]]}, "lists of object in column 'v'"),
  "nan": ({"v": [[1.0], [np.nan]]}, "in row 1 (from 0) a missing or infinite"),
  "values": (
    {"indices": [[1], [2]], "values": [[1.0], []]},
    "in row 1 (from 0) 1 indices and 0 values",
  ),
  "floats": (
    {"indices": [[1.0], [2.0]], "values": [[1.0], [1.0]]},
    "indices of float64",
  ),
  "below 0": (
    {"indices": [[1], [-2]], "values": [[1.0], [1.0]]},
    "in row 1 (from 0) feature -2",
  ),
  "text": ({"v": [1.0, 2.0], "w": ["a", "b"]}, "in row 0 (from 0) 'a' in colu"),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_what_is_wrong_in_a_list_is_named(tmp_path, name):
  columns, message = WRONG_LISTS[name]
  write(tmp_path / "train.parquet", COLUMNS | columns)
  with pytest.raises(errors.DataError) as error:
    store.open_split(tmp_path)
  assert message in str(error.value)


def test_a_bad_row_costs_no_other(tmp_path):
  path = tmp_path / "new.csv"
  path.write_text("x,y\n1,2\n3,x\n5,6\n7\n9,10\n")
  found = list(formats.stream_each(path))
  lines = [rows.line for rows in found if isinstance(rows, errors.DataError)]
  assert lines == [3, 5]
  good = [r.features for r in found if not isinstance(r, errors.DataError)]
  assert np.concatenate(good).tolist() == [[1, 2], [5, 6], [9, 10]]


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_damaged_tables(tmp_path, ending):
  (tmp_path / f"train{ending}").write_bytes(b"PAR1 and no more")
  with pytest.raises(errors.DataError, match="copy or download the file again"):
    store.open_split(tmp_path)
