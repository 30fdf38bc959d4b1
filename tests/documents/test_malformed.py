r"""Malformed and odd texts: refused with file and line, or kept as they are.

Each case is a file, the line of the error, and what the message says; or, where
nothing is wrong, the texts that come of it.
"""

import gzip
import io
import json

import pytest

from xlj.data import errors
from xlj.documents import formats
from xlj.documents import store

GOOD = b'{"text": "a", "labels": ["x"]}\n'
CSV = b"text,labels\n"
TWICE = (
  "found label 'x' twice in a row, expected each once; train with"
  " --config.data.duplicates=first to keep one of them"
)


def row(**fields):
  return GOOD + json.dumps(fields).encode() + b"\n"


# name of the case -> (name of the file, content, line, message)
REFUSED = {
  "empty file": ("train.jsonl", b"", None, "found no row, expected texts"),
  "no label anywhere": (
    "train.jsonl",
    b'{"text": "a", "labels": []}\n',
    None,
    "found no label in any row, expected labels",
  ),
  "cut JSON": (
    "train.jsonl",
    GOOD + GOOD[:20],
    2,
    'expected an object on each line, {"text": ..., "labels": [...]}',
  ),
  "two objects on a line": (
    "train.jsonl",
    GOOD + GOOD.strip() + GOOD,
    2,
    "found no JSON (Extra data, column 31)",
  ),
  "array": (
    "train.jsonl",
    b"[" + GOOD.strip() + b"," + GOOD.strip() + b"]\n",
    1,
    "found JSON that is an array, expected an object on each line,"
    ' {"text": ..., "labels": [...]}; jq -c \'.[]\' FILE > NAME.jsonl writes',
  ),
  "array on lines": (
    "train.json",
    b"[\n" + GOOD.strip() + b",\n" + GOOD + b"]\n",
    1,
    "jq -c '.[]' FILE > NAME.jsonl writes its elements on lines",
  ),
  "object on lines": (
    "train.json",
    b'{\n"text": "a"\n}\n',
    1,
    "jq -c . FILE > NAME.jsonl writes each object on a line",
  ),
  "number on a line": (
    "train.jsonl",
    GOOD + b"7\n",
    2,
    "found JSON that is no object",
  ),
  "nested JSON": (
    "train.jsonl",
    GOOD + b'{"text": ' + b"[" * 10**5 + b"\n",
    2,
    "found JSON that is nested too deeply, expected an object of a few fields",
  ),
  "field twice": (
    "train.jsonl",
    GOOD + b'{"text": "a", "text": "b", "label": "x"}\n',
    2,
    "found field 'text' twice in an object",
  ),
  "no text": (
    "train.jsonl",
    row(body="a", labels=["x"]),
    2,
    "found no text among the fields: body, labels, expected a field 'text'",
  ),
  "null text": (
    "train.jsonl",
    row(text=None, labels=[]),
    2,
    "found null as 'text'",
  ),
  "number as text": (
    "train.jsonl",
    row(text=3),
    2,
    "found a number as text, expected a text",
  ),
  "list as title": (
    "train.jsonl",
    row(title=["a"], text=""),
    2,
    "found a list as title",
  ),
  "object as id": (
    "train.jsonl",
    row(text="a", label="x", id={}),
    2,
    "found an object as id",
  ),
  "no labels": (
    "train.jsonl",
    row(text="a"),
    2,
    "found a row without 'labels' or 'label', expected the labels of each row;"
    " a row that has none says so: []",
  ),
  "labels in one text": (
    "train.jsonl",
    row(text="a", labels="x,y"),
    2,
    "found a text as 'labels', expected a list of names or of ids",
  ),
  "label and labels": (
    "train.jsonl",
    row(text="a", labels=["x"], label="y"),
    2,
    "found both 'label' and 'labels', expected one of them",
  ),
  "empty name": (
    "train.jsonl",
    row(text="a", labels=[""]),
    2,
    "found an empty name of a label, expected a name; [] is no label",
  ),
  "null as a label": (
    "train.jsonl",
    row(text="a", labels=[None]),
    2,
    "found null as a label, expected a name, or an id from 0",
  ),
  "bool as a label": (
    "train.jsonl",
    row(text="a", label=True),
    2,
    "found a bool as a label",
  ),
  "fraction as a label": (
    "train.jsonl",
    row(text="a", labels=[1.0]),
    2,
    "found a number as a label",
  ),
  "nan as a label": (
    "train.jsonl",
    row(text="a", label=float("nan")),
    2,
    "a number as a label",
  ),
  "list in labels": (
    "train.jsonl",
    row(text="a", labels=[["x"]]),
    2,
    "found a list as a label",
  ),
  "names, then ids": (
    "train.jsonl",
    row(text="a", labels=[3]),
    2,
    "found label 3 where rows before have names, expected names alone; an id is"
    " a number, a name is in quotation marks",
  ),
  "ids and names in a row": (
    "train.jsonl",
    b'{"text": "a", "labels": [3, "3"]}\n',
    1,
    "found label '3' where rows before have ids, expected ids alone",
  ),
  "negative id": (
    "train.jsonl",
    row(text="a", labels=[-1]),
    2,
    "found label -1, expected an id in [0, 2147483646]",
  ),
  "large id": (
    "train.jsonl",
    row(text="a", labels=[2**40]),
    2,
    "found label 1099511627776, expected an id in [0, 2147483646]; write large"
    " ids as names, in quotation marks",
  ),
  "huge id": (
    "train.jsonl",
    row(text="a", labels=[10**1000]),
    2,
    "found label of more than 64 bits, expected an id in",
  ),
  "endless id": (
    "train.jsonl",
    GOOD + b'{"text": "a", "label": ' + b"7" * 5000 + b"}\n",
    2,
    "found Exceeds the limit (4300 digits) for integer string conversion",
  ),
  "label twice": (
    "train.jsonl",
    row(text="a", labels=["x", "y", "x"]),
    2,
    TWICE,
  ),
  "not UTF-8": (
    "train.jsonl",
    GOOD + b'{"text": "caf\xe9", "label": "x"}\n',
    2,
    "found byte 0xe9, expected text in UTF-8; convert it: iconv -f LATIN1",
  ),
  "NUL": (
    "train.jsonl",
    GOOD + b'{"text": "a\0b", "label": "x"}\n',
    2,
    "found a NUL byte, expected text",
  ),
  "half a surrogate pair": (
    "train.jsonl",
    GOOD + rb'{"text": "a \ud800 b", "label": "x"}',
    2,
    r"found half a surrogate pair, '\ud800', in text, expected Unicode text;"
    " write the whole character, or U+FFFD in its place",
  ),
  "half a surrogate pair in a name": (
    "train.jsonl",
    GOOD + rb'{"text": "a", "label": "\udc9f"}',
    2,
    r"found half a surrogate pair, '\udc9f', in the name of a label",
  ),
  "UTF-16": (
    "train.jsonl",
    GOOD.decode().encode("utf-16"),
    None,
    "found text in UTF-16, expected text, plain or gzip; save it as UTF-8",
  ),
  "truncated gzip": (
    "train.jsonl.gz",
    gzip.compress(row(text="b" * 99, label="x") * 99)[:-40],
    None,
    "expected a complete gzip file; copy or download the file again",
  ),
  "no gzip": (
    "train.jsonl.gz",
    GOOD,
    None,
    "found a name that ends with .gz on content that is not gzip",
  ),
  "zip": ("train.csv", b"PK\x03\x04\xff", None, "found a zip archive"),
  "CSV without header": (
    "train.csv",
    b"3,good\n",
    1,
    "found columns 3, good, expected a first row that names the columns, one of"
    " them 'text'; cells end with a comma in .csv, with a tab in .tsv",
  ),
  "CSV with semicolons": (
    "train.csv",
    b"text;label\na;b\n",
    1,
    "found columns text;label, expected",
  ),
  "column twice": (
    "train.csv",
    b"text,text\na,b\n",
    1,
    "found column 'text' twice, expected each name once",
  ),
  "ragged row": (
    "train.csv",
    CSV + b'"a\nb",x\nc,x,y\n',
    4,
    "found 3 cells, expected 2, as many as columns are named; a cell with a",
  ),
  "short row": (
    "train.tsv",
    b"text\tlabel\na\n",
    2,
    "found 1 cells, expected 2",
  ),
  "quotation marks in a cell": (
    "train.csv",
    CSV + b'a,x\n"like "this"",x\n',
    3,
    "found no row of cells (',' expected after '\"'), expected cells as in RFC",
  ),
  "open quotation marks": (
    "train.csv",
    CSV + b'a,x\n"b,x\nc,x\n',
    3,
    "found no row of cells (quotation marks that nothing closes)",
  ),
  "carriage returns": (
    "train.csv",
    b"text,label\ra,x\r",
    1,
    "found no row of cells (a carriage return alone), expected cells as in RFC"
    " 4180; end lines with a newline",
  ),
  "blank beside a bar": (
    "train.csv",
    CSV + b"a,x | y\n",
    2,
    "found label 'x ' with a blank at an end, expected names between |, without"
    ' blanks: a|b; a name that has such a blank is written in a list, ["a "]',
  ),
  "list in a cell": (
    "train.csv",
    CSV + b"a,[x\n",
    2,
    "found labels '[x', expected a list in JSON",
  ),
  "empty name in a cell": (
    "train.csv",
    CSV + b"a,x||y\n",
    2,
    "found an empty name of a label",
  ),
  "CSV not UTF-8": (
    "train.csv",
    CSV + b"b,x\ncaf\xe9,x\n",
    3,
    "found byte 0xe9, expected text",
  ),
  "NUL in CSV": (
    "train.csv",
    CSV + b"b,x\na\0,x\n",
    3,
    "found a NUL byte, expected text",
  ),
  "no Parquet": (
    "train.parquet",
    b"PAR1" + bytes(50),
    None,
    "expected a whole one; copy or download the file again",
  ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path, case):
  name, content, line, message = REFUSED[case]
  if name.endswith("parquet"):
    pytest.importorskip("pyarrow")
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(errors.DataError) as caught:
    store.open_documents(tmp_path)
  where = f"{path}:{line}: " if line else f"{path}: "
  assert str(caught.value).startswith(where + "found ")
  assert message in str(caught.value)
  assert caught.value.line == line
  assert not list(tmp_path.glob(".xlj_cache/*/meta.json"))


OTHERS = {
  "label named twice": (
    {"labels.jsonl": '{"label": "x"}\n{"label": "y"}\n{"label": "x"}\n'},
    "labels.jsonl:3: found label 'x' again, as in line 1, expected each label"
    " once",
  ),
  "labels of two kinds": (
    {"labels.jsonl": '{"label": "x"}\n{"label": 1, "text": "y"}\n'},
    "labels.jsonl:2: found label 1, expected a name on each line, or an id",
  ),
  "missing id": (
    {"labels.jsonl": '{"label": 0, "text": "x"}\n{"label": 2, "text": "y"}\n'},
    "labels.jsonl: found 2 labels without one of id 1, expected each id from 0"
    " to 2",
  ),
  "two files of labels": (
    {"labels.jsonl": '{"label": "x"}\n', "lbl.json": '{"title": "x"}\n'},
    "found several files of labels: labels.jsonl, lbl.json, expected one",
  ),
  "id past the names": (
    {"train.jsonl": '{"text": "a", "labels": [2]}', "labels.txt": "x\ny\n"},
    "train.jsonl:1: found label 2, expected an id in [0, 1], as labels.txt has"
    " 2 labels",
  ),
  "id written as a name": (
    {"train.jsonl": '{"text": "a", "label": "1"}', "labels.txt": "x\ny\n"},
    "train.jsonl:1: found label '1', expected a name of labels.txt; an id is"
    " written without quotation marks, as [1]",
  ),
  "name of several labels": (
    {"labels.txt": "x\ny\nx\n"},
    "train.jsonl:1: found label 'x', the name of several labels of labels.txt,"
    " expected one label; write their ids",
  ),
  "two candidates": (
    {"train.csv": "text,label\n"},
    "found several candidates for the train split: train.csv, train.jsonl",
  ),
  "no texts": (
    {"train.jsonl": None, "train.txt": "1 0:1\n"},
    "found no texts of a train split among: train.txt, expected train.jsonl,"
    " train.csv, train.tsv, train.parquet, or train_text.txt with labels",
  ),
  "lines without labels": (
    {"train.jsonl": None, "train_text.txt": "a\n"},
    "train_text.txt: found texts without labels, expected labels beside them:"
    " train.txt (features and labels), trn_X_Y.txt, Y.trn.npz, or names in",
  ),
  "fewer lines than labels": (
    {"train.jsonl": None, "trn_X.txt": "a\n", "trn_X_Y.txt": "2 3\n1:1\n0:1\n"},
    "trn_X.txt: found 1 lines, expected 2, as many as rows in trn_X_Y.txt",
  ),
  "more lines than labels": (
    {"train.jsonl": None, "trn_X.txt": "a\nb\n", "trn_X_Y.txt": "1 3\n1:1\n"},
    "trn_X.txt:2: found more lines, expected 1, as many as rows in trn_X_Y.txt",
  ),
  "more labels than names": (
    {
      "train.jsonl": None,
      "trn_X.txt": "a\n",
      "trn_X_Y.txt": "1 3\n1:1\n",
      "Y.txt": "x\ny\n",
    },
    "trn_X.txt: found 3 labels beside it, expected 2, as Y.txt has",
  ),
  "table without a tab": (
    {"train.jsonl": None, "train_ids.txt": "a\tb\nc\n", "train.txt": "1 0:1\n"},
    "train_ids.txt:2: found a line without a tab, expected a table of ids",
  ),
  "filter where rows are held out": (
    {"filter_labels_train.txt": "0 0\n"},
    "filter_labels_train.txt: found rows by number, expected no such file where"
    " rows are held out",
  ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_refused_files(tmp_path, case):
  files, message = OTHERS[case]
  for name, content in {"train.jsonl": GOOD.decode(), **files}.items():
    if content is not None:
      (tmp_path / name).write_text(content)
  with pytest.raises(errors.DataError) as caught:
    store.open_documents(tmp_path, holdout=0.5 if "held out" in case else 0)
  assert message in str(caught.value)


def test_names_of_a_run_and_ids_of_a_file_are_not_mixed_up(tmp_path):
  (tmp_path / "test.jsonl").write_bytes(b'{"text": "a", "labels": [1]}\n')
  with pytest.raises(
    errors.DataError, match="test.jsonl:1: found label 1, exp"
  ):
    store.open_documents(tmp_path, "test", names=["x", "y"])
  (tmp_path / "test.jsonl").write_bytes(GOOD)
  with pytest.raises(errors.DataError, match="'x', expected an id in .0, 4.: "):
    store.open_documents(tmp_path, "test", num_labels=5)


LONG = "long \u00e9" * 10**6
KEPT = {
  "byte order mark": (b"\xef\xbb\xbf" + GOOD, ["a"], ["x"]),
  "carriage returns": (GOOD.replace(b"\n", b"\r\n") * 2, ["a", "a"], ["x"]),
  "no newline at the end": (GOOD.strip(), ["a"], ["x"]),
  "empty lines": (b"\n \n" + GOOD + b"\r\n\n", ["a"], ["x"]),
  "line ends of Unicode": (
    '{"text": "a\u2028b\x85c", "label": "\u2029"}'.encode(),
    ["a\u2028b\x85c"],
    ["\u2029"],
  ),
  "escapes": (
    rb'{"text": "\u0000\ud83c\udf89\r\n", "label": "\t"}',
    ["\0🎉\r\n"],
    ["\t"],
  ),
  "NFC and NFD": (
    '{"text": "e\u0301", "labels": ["\u00e9", "e\u0301"]}'.encode(),
    ["e\u0301"],
    ["\u00e9", "e\u0301"],
  ),
  "blanks": (b'{"text": " a ", "labels": [" ", "x "]}', [" a "], [" ", "x "]),
  "10 MB": (
    json.dumps({"text": LONG, "label": "x"}).encode() + b"\n" + GOOD,
    [LONG, "a"],
    ["x"],
  ),
  "other fields": (
    row(text="b", label="x", score=[1e999, {"deep": None}]),
    ["a", "b"],
    ["x"],
  ),
}


@pytest.mark.parametrize("case", KEPT)
def test_kept(tmp_path, case):
  content, texts, names = KEPT[case]
  (tmp_path / "train.jsonl").write_bytes(content)
  found = store.open_documents(tmp_path)
  assert list(found.texts) == texts
  assert found.label_names == names


def test_bad_rows_of_a_table_cost_no_other(tmp_path):
  path = tmp_path / "new.csv"
  path.write_bytes(b'text\na\n"b"b\nc,c\ncaf\xe9\nd\n')
  first, *wrong, last = formats.stream(path)
  assert first.texts == ["a"] and last.texts == ["d"] and last.lines == [6]
  assert [error.line for error in wrong] == [3, 4, 5]


def test_bad_lines_cost_no_other(tmp_path):
  path = tmp_path / "new.txt"
  path.write_bytes(b"a\n\0\nb\n\xff\n")
  a, nul, b, byte = formats.stream(path)
  assert (a.texts, b.texts, b.lines[0]) == (["a"], ["b"], 3)
  assert (nul.line, byte.line) == (2, 4)


def test_bad_rows_of_parquet_cost_no_other(tmp_path):
  pa = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  bad = pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False)
  out = io.BytesIO()
  parquet.write_table(pa.table({"text": bad, "label": ["x", "y", ""]}), out)
  (tmp_path / "new.parquet").write_bytes(out.getvalue())
  first, byte, empty = formats.stream(tmp_path / "new.parquet")
  assert first.texts == ["a"]
  assert "found in row 1 (from 0) bytes that are not UTF-8" in str(byte)
  assert "found in row 2 (from 0) an empty name of a label" in str(empty)


def test_a_name_without_an_ending_is_refused():
  with pytest.raises(errors.DataError, match="texts in .jsonl, .json, .ndjson"):
    list(formats.stream("texts.npz"))
