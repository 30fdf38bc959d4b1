"""Sets of texts: what is found, what is kept, what a cache makes of it."""

import gzip
import json
import subprocess
import sys

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from xlj.data import errors
from xlj.documents import formats
from xlj.documents import store

ROWS = [
  {"text": "one", "labels": ["b", "a"], "id": "x1"},
  {"title": "Two", "text": "zwei\n\u2028 deux", "labels": []},
  {"text": "", "labels": ["c"], "id": 7},
  {"text": "vier 🎉", "label": "a"},
]
TEXTS = ["one", "Two\nzwei\n\u2028 deux", "", "vier 🎉"]


def write_jsonl(path, rows):
  text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
  opened = gzip.open if path.suffix == ".gz" else open
  with opened(path, "wb") as file:
    file.write(text.encode())


def rows_of(labels):
  return [
    labels.indices[a:b].tolist()
    for a, b in zip(labels.indptr, labels.indptr[1:])
  ]


@pytest.mark.parametrize("name", ["train.jsonl", "trn.json.gz"])
def test_rows_come_back_as_they_are(tmp_path, name):
  write_jsonl(tmp_path / name, ROWS)
  for _ in range(2):  # written, then mapped
    found = store.open_documents(tmp_path)
    assert list(found.texts) == TEXTS
    assert found.label_names == ["b", "a", "c"]
    assert rows_of(found.labels) == [[0, 1], [], [2], [1]]
    assert list(found.ids) == ["x1", "", "7", ""]
    assert list(found.label_texts) == found.label_names
    found.labels.validate()
    (note,) = found.notes
    assert note == f"1 rows have an empty text, the first in {name}:3"


def test_texts_by_slice_and_array(tmp_path):
  write_jsonl(tmp_path / "train.jsonl", ROWS)
  texts = store.open_documents(tmp_path).texts
  assert texts[-1] == TEXTS[-1]
  assert texts[np.int64(1)] == TEXTS[1]
  assert texts[1:3] == TEXTS[1:3]
  assert texts[::-2] == TEXTS[::-2]
  assert texts[3:1] == []
  assert texts[np.array([2, 0, -1, 0])] == ["", "one", TEXTS[3], "one"]
  assert texts[[]] == []
  for wrong in (4, np.array([4]), np.array([0.5]), np.array([True])):
    with pytest.raises(IndexError):
      texts[wrong]


def test_a_test_split_has_the_labels_of_the_training_split(tmp_path):
  write_jsonl(tmp_path / "train.jsonl", ROWS)
  test = [{"text": "q", "labels": ["new", "a"]}, {"text": "r", "label": "d"}]
  write_jsonl(tmp_path / "test.jsonl", test)
  train = store.open_documents(tmp_path)
  for names in (None, train.label_names):
    found = store.open_documents(tmp_path, "test", names=names)
    assert found.label_names == train.label_names
    assert found.num_labels == 3
    assert found.labels.num_columns == 5
    assert rows_of(found.labels) == [[1, 3], [4]]
    assert found.notes == (
      "2 entries of 2 labels that training has not; they count as missed:"
      " 'new' (test.jsonl:1); 'd' (test.jsonl:2)",
    )


def test_ids_stay_ids(tmp_path):
  write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "labels": [5, 0]}])
  write_jsonl(tmp_path / "test.jsonl", [{"text": "b", "labels": [7, 2]}])
  train = store.open_documents(tmp_path)
  assert train.label_names is None and train.label_texts is None
  assert train.num_labels == train.labels.num_columns == 6
  test = store.open_documents(tmp_path, "test", num_labels=6)
  assert rows_of(test.labels) == [[2, 7]]
  assert test.notes[0].endswith("they count as missed: 7 (test.jsonl:1)")


def test_a_file_of_labels_gives_names_texts_and_order(tmp_path):
  write_jsonl(tmp_path / "train.jsonl", ROWS)
  labels = [{"label": "a", "text": "first"}, {"label": "z"}]
  write_jsonl(tmp_path / "labels.jsonl", labels)
  found = store.open_documents(tmp_path)
  assert found.label_names == ["a", "z", "b", "c"]
  assert list(found.label_texts) == ["first", "z", "b", "c"]
  assert rows_of(found.labels) == [[0, 2], [], [3], [0]]
  assert found.notes[0] == (
    "2 labels that labels.jsonl has not: 'b' (train.jsonl:1); 'c'"
    " (train.jsonl:3)"
  )


def test_the_fingerprint_of_texts_is_their_own(tmp_path):
  found = []
  for name, rows in (
    ("a", ROWS),
    ("b", [{"text": text, "labels": ["other"]} for text in TEXTS]),
    ("c", [{"text": text, "labels": ["other"]} for text in TEXTS[::-1]]),
  ):
    (tmp_path / name).mkdir()
    write_jsonl(tmp_path / name / "train.jsonl", rows)
    found.append(store.open_documents(tmp_path / name))
  first, same, other = (one.texts.fingerprint for one in found)
  assert first == same != other
  assert found[0].fingerprint != found[1].fingerprint


def test_a_bad_row_costs_no_other(tmp_path):
  lines = ['{"text": "a"}', "{", '{"text": 3}', '{"text": "b", "label": "c"}']
  (tmp_path / "new.jsonl").write_text("\n".join(lines))
  first, brace, number, last = formats.stream(tmp_path / "new.jsonl")
  assert first.texts == ["a"] and first.labels == [None]
  assert isinstance(brace, errors.DataError) and brace.line == 2
  assert str(number).endswith(":3: found a number as text, expected a text")
  assert last.labels == [["c"]] and last.lines == [4]


_OPEN = """
import sys
from xlj.documents import store
found = store.open_documents(sys.argv[1])
print(found.fingerprint, found.num_rows, found.texts[-1] == "text 1999")
"""


def test_processes_share_a_cache(tmp_path):
  rows = [{"text": f"text {i}", "label": i % 7} for i in range(2000)]
  write_jsonl(tmp_path / "train.jsonl", rows)
  command = [sys.executable, "-c", _OPEN, str(tmp_path)]
  started = [
    subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for _ in range(3)
  ]
  found = {process.communicate()[0] for process in started}
  fingerprint = store.open_documents(tmp_path).fingerprint
  assert found == {f"{fingerprint} 2000 True\n"}
  assert len(list(tmp_path.glob(".xlj_cache/*/meta.json"))) == 1


def test_a_damaged_cache_is_written_again(tmp_path):
  write_jsonl(tmp_path / "train.jsonl", ROWS)
  path = store.open_documents(tmp_path).cache_dir / "texts.data.npy"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)
  assert list(store.open_documents(tmp_path).texts) == TEXTS


_TEXT = strategies.text(strategies.characters(codec="utf-8"), max_size=20)
_NAMES = strategies.lists(_TEXT.filter(len), max_size=4, unique=True)


@hypothesis.given(
  rows=strategies.lists(strategies.tuples(_TEXT, _NAMES), min_size=1),
  escape=strategies.booleans(),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_any_unicode_comes_back(tmp_path_factory, rows, escape):
  hypothesis.assume(any(names for _, names in rows))
  root = tmp_path_factory.mktemp("any")
  lines = [
    json.dumps({"text": text, "labels": names}, ensure_ascii=escape) + "\n"
    for text, names in rows
  ]
  (root / "train.jsonl").write_bytes("".join(lines).encode())
  found = store.open_documents(root)
  assert list(found.texts) == [text for text, _ in rows]
  assert found.label_names is not None
  for numbers, (_, names) in zip(rows_of(found.labels), rows):
    assert {found.label_names[i] for i in numbers} == {*names}
