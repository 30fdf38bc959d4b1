"""Each form of a set of texts comes back the same."""

import csv
import gzip
import io
import json
import sys

import pytest
import scipy.sparse

from xlj.data import csr as csr_lib
from xlj.data import errors
from xlj.data import writers
from xlj.documents import formats
from xlj.documents import store

TEXTS = [
  'a "quoted", text',
  "two\r\nlines\n",
  "tab\there",
  "",
  "\u2028 e\u0301",
]
NAMES = ["b|c", "a", "tab\tname\n", "é", "e\u0301"]
IDS = [[0, 1], [], [2], [1, 3], [4]]  # by first appearance
LABELS = [[NAMES[i] for i in row] for row in IDS]


def json_lines(rows):
  return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(delimiter, rows, end="\r\n"):
  out = io.StringIO()
  csv.writer(out, delimiter=delimiter, lineterminator=end).writerows(rows)
  return out.getvalue().encode()


def parquet(texts, labels, metadata=None, **columns):
  pa = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  found = pa.table({"text": texts, "labels": labels, **columns})
  out = io.BytesIO()
  parquet.write_table(found.replace_schema_metadata(metadata), out)
  return out.getvalue()


def cells(delimiter):
  rows = [["x", "labels", "text"]]
  rows += [["", json.dumps(y) if y else "", x] for x, y in zip(TEXTS, LABELS)]
  return table(delimiter, rows)


ROWS = [{"text": x, "labels": y} for x, y in zip(TEXTS, LABELS)]
FORMS = {
  "train.jsonl": lambda: json_lines(ROWS),
  "train.ndjson.gz": lambda: gzip.compress(json_lines(ROWS)),
  "trn.csv": lambda: cells(","),
  "Train.TSV.gz": lambda: gzip.compress(cells("\t")),
  "train.parquet": lambda: parquet(TEXTS, LABELS),
  "data/train-00000-of-00001.parquet": lambda: parquet(
    TEXTS, [json.dumps(row) for row in LABELS]
  ),
}


def rows_of(labels):
  return [
    labels.indices[a:b].tolist()
    for a, b in zip(labels.indptr, labels.indptr[1:])
  ]


def write(directory, files):
  for name, content in files.items():
    path = directory / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )


@pytest.mark.parametrize("name", FORMS)
def test_rows_of_any_form(tmp_path, name):
  write(tmp_path, {name: FORMS[name]()})
  assert store.has_documents(tmp_path, "train")
  found = store.open_documents(tmp_path)
  assert list(found.texts) == TEXTS
  assert found.label_names == NAMES
  assert rows_of(found.labels) == IDS
  assert found.ids is None
  (block,) = formats.stream(tmp_path / name)
  assert list(block.texts) == TEXTS and list(block.labels) == LABELS


def test_parts_are_read_in_order(tmp_path):
  for i, row in enumerate(ROWS):
    write(tmp_path, {f"train-{i:05}-of-00005.jsonl": json_lines([row])})
  assert list(store.open_documents(tmp_path).texts) == TEXTS
  (tmp_path / "train-00003-of-00005.jsonl").unlink()
  with pytest.raises(errors.DataError, match="found 4 parts .*, expected 5"):
    store.open_documents(tmp_path)


def test_cells_hold_names_between_bars_or_a_list(tmp_path):
  rows = ["labels,text", "a|b,x", "[3],y"]
  write(tmp_path, {"t.csv": "\n".join(rows)})
  (block,) = formats.stream(tmp_path / "t.csv")
  assert block.labels == [["a", "b"], [3]]
  write(tmp_path, {"t.csv": "label,text,id\n[a|b,x,\n,y,7\n"})
  (block,) = formats.stream(tmp_path / "t.csv")
  assert block.labels == [["[a|b"], []] and block.ids == [None, "7"]


def test_classes_of_datasets_are_names(tmp_path):
  classes = {"names": ["no", "yes"], "_type": "ClassLabel"}
  for feature, column, labels, expected in (
    (classes, "label", [1, -1], [["yes"], []]),
    ({"feature": classes}, "labels", [[1, 0], []], [["yes", "no"], []]),
    ([classes], "labels", [[-1], [0]], [[], ["no"]]),
  ):
    said = {"info": {"features": {column: feature}}}
    other = {} if column == "labels" else {column: labels}
    content = parquet(
      ["a", "b"],
      labels if column == "labels" else [None, None],
      {"huggingface": json.dumps(said)},
      **other,
    )
    write(tmp_path, {"t.parquet": content})
    (block,) = formats.stream(tmp_path / "t.parquet")
    assert block.labels == expected


LINES = "x one\n\nthree\tof it \r\n"
MATRIX = csr_lib.Csr.from_rows([[1, 2], [], [0]], 4)
PAIRED = {
  "train_text.txt": "one",
  "train_raw_texts.txt.gz": "split",
  "trn_X.txt": "split",
  "raw/trn_X.txt": "split",
  "trn.raw.txt": "npz",
  "X.trn.txt": "lists",
}


@pytest.mark.parametrize("name", PAIRED)
def test_lines_with_labels_beside_them(tmp_path, name):
  text = LINES.encode()
  write(tmp_path, {name: gzip.compress(text) if name[-2:] == "gz" else text})
  if PAIRED[name] == "one":
    features = csr_lib.Csr.from_rows([[0], [1], []], 2)
    writers.write_one_file(tmp_path / "train.txt", features, MATRIX)
  elif PAIRED[name] == "split":
    writers.write_matrix(tmp_path / "trn_X_Y.txt", MATRIX)
  elif PAIRED[name] == "npz":
    scipy.sparse.save_npz(tmp_path / "Y.trn.npz", MATRIX.to_scipy())
  else:
    write(tmp_path, {"Y.trn.txt": "1,2\n\n0\n"})
  place = "raw/Y.txt" if name.startswith("raw") else "Y.txt"
  if PAIRED[name] != "lists":
    write(tmp_path, {place: "p\nq \nr\np\n"})
  found = store.open_documents(tmp_path)
  assert list(found.texts) == ["x one", "", "three\tof it "]
  assert rows_of(found.labels) == [[1, 2], [], [0]]
  if PAIRED[name] != "lists":
    assert found.label_names == ["p", "q ", "r", "p"]
    assert found.num_labels == found.labels.num_columns == 4
  assert list(formats.stream(tmp_path / name))[0].labels == [None] * 3


def test_names_on_lines(tmp_path):
  write(
    tmp_path, {"train_raw_texts.txt": "a\nb\n", "train_labels.txt": "x y\n\n"}
  )
  found = store.open_documents(tmp_path)
  assert found.label_names == ["x", "y"] and rows_of(found.labels) == [
    [0, 1],
    [],
  ]


def test_tables_of_ids_and_of_labels(tmp_path):
  labels = "".join(
    f"{i}-n\tname {i}, other\twhat it is\t-1\n" for i in range(4)
  )
  write(tmp_path, {"train_ids.txt": "d1\t1952\tOne\nd2\t1953\tTwo\n"})
  write(tmp_path, {"train.txt": "2 3 4\n3 0:1\n1 2:1\n", "labels.txt": labels})
  write(tmp_path, {"filter_labels_train.txt": "0 2\n"})
  found = store.open_documents(tmp_path)
  assert list(found.texts) == ["One", "Two"] and list(found.ids) == ["d1", "d2"]
  assert found.label_names[3] == "name 3, other"
  assert found.label_texts[3] == "name 3, other\nwhat it is"
  assert rows_of(found.filter) == [[2], []]


def test_the_repository_s_json(tmp_path):
  rows = [
    {"uid": "A1", "title": "T", "content": "c", "target_ind": [2, 0]},
    {"uid": "A2", "title": "U", "content": "", "target_ind": []},
  ]
  labels = [{"title": t, "content": c} for t, c in ("xy", "zv", ("x", ""))]
  write(tmp_path, {"trn.json.gz": gzip.compress(json_lines(rows))})
  write(tmp_path, {"lbl.json.gz": gzip.compress(json_lines(labels))})
  found = store.open_documents(tmp_path)
  assert list(found.texts) == ["T\nc", "U"] and list(found.ids) == ["A1", "A2"]
  assert found.label_names == ["x", "z", "x"]
  assert list(found.label_texts) == ["x\ny", "z\nv", "x"]
  assert rows_of(found.labels) == [[0, 2], []]


def test_a_table_of_labels(tmp_path):
  write(tmp_path, {"train.jsonl": json_lines([{"text": "a", "labels": ["q"]}])})
  write(tmp_path, {"labels.csv": "label,text\np,first\nq,second\n"})
  found = store.open_documents(tmp_path)
  assert found.label_names == ["p", "q"] and rows_of(found.labels) == [[1]]
  assert list(found.label_texts) == ["first", "second"]


def test_labels_by_id_may_have_texts_alone(tmp_path):
  write(tmp_path, {"train.jsonl": json_lines([{"text": "a", "labels": [2]}])})
  labels = [{"label": i, "text": f"t{i}"} for i in (2, 0, 1)]
  write(tmp_path, {"labels.jsonl": json_lines(labels)})
  found = store.open_documents(tmp_path)
  assert found.label_names is None and found.num_labels == 3
  assert list(found.label_texts) == ["t0", "t1", "t2"]


def test_rows_held_out_stay_where_they_are(tmp_path):
  rows = [{"text": f"text {i % 90}", "labels": [i % 3]} for i in range(100)]
  found = []
  for name, count in ("few", 100), ("more", 150):
    rows += [{"text": f"new {i}", "labels": [0]} for i in range(count - 100)]
    write(tmp_path, {f"{name}/train.jsonl": json_lines(rows)})
    splits = [
      list(store.open_documents(tmp_path / name, split, holdout=0.3).texts)
      for split in ("train", "test")
    ]
    assert sorted(sum(splits, [])) == sorted(row["text"] for row in rows)
    assert not {*splits[0]} & {*splits[1]}
    found.append(splits)
  assert found[1][1][: len(found[0][1])] == found[0][1]
  assert 15 < len(found[0][1]) < 45
  write(tmp_path, {"few/test.jsonl": json_lines(rows)})
  with pytest.raises(errors.DataError, match="found a test split, and 0.3 of"):
    store.open_documents(tmp_path / "few", "test", holdout=0.3)


def test_a_test_split_alone_knows_the_labels_of_their_file(tmp_path):
  write(
    tmp_path, {"test.jsonl": json_lines([{"text": "a", "labels": ["n", "q"]}])}
  )
  write(tmp_path, {"labels.jsonl": json_lines([{"label": x} for x in "pq"])})
  found = store.open_documents(tmp_path, "test")
  assert found.label_names == ["p", "q"] and rows_of(found.labels) == [[1, 2]]
  assert found.num_labels == 2
  assert list(found.label_texts) == ["p", "q"]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  write(tmp_path, {"train.parquet": b"PAR1"})
  with pytest.raises(ImportError, match=r"pip install 'xlj-jax\[parquet\]'"):
    store.open_documents(tmp_path)
