"""Names of labels: kept exactly, or refused with file and line."""

import gzip
import json

import numpy as np
import pytest

from xlj.data import errors
from xlj.data import names
from xlj.data import tokens
from xlj.inference import predict

# All that a line may hold, and blanks where editors take them off.
ODD = [
  "naïve Bayes", "日本,語", "a:b", 'with"quote', "x, y", "back\\slash",
  "back\\tslash", "zero\u200bwidth", "ta\tb", "  lead", "trail  ", "", "  ",
  "a\rb", "end\r", "nel\x85", "line\u2028sep", "v\vf\f", "twice", "twice",
  "NaN", "\N{SLIGHTLY SMILING FACE}", "-1",
]  # fmt: skip


def from_cell(cell):
  """A label or name of a cell `name:score`, as docs/running.md says."""
  name, _, _ = cell.rpartition(":")
  return json.loads('"' + name.replace('"', '\\"') + '"')


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_are_kept_as_they_are(end, tmp_path):
  path = tmp_path / "labels.txt"
  odd = [name for name in ODD if name + end != "end\r\n"]
  path.write_bytes("".join(name + end for name in odd).encode("utf-8-sig"))
  assert names.label_names(tmp_path, len(odd)) == odd
  path.write_bytes(path.read_bytes() + b"\n\n")
  assert names.label_names(tmp_path, len(odd)) == odd
  names.write_names(tmp_path / "copy", ODD)
  assert names.read_names(tmp_path / "copy", len(ODD), table=False) == ODD


def test_only_where_every_line_has_a_tab_it_is_a_table(tmp_path):
  path = tmp_path / "labels.txt"
  path.write_text("1\ta\tx\n2\tb\n")
  assert names.read_names(path) == ["a", "b"]
  assert names.read_names(path, table=False) == ["1\ta\tx", "2\tb"]
  path.write_text("1\ta\tx\n2 b\n")
  assert names.read_names(path) == ["1\ta\tx", "2 b"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
  ("content", "line", "message"),
  [
    ("a\nb\nné\n".encode("latin-1"), 3, "byte 0xe9, expected text in UTF-8"),
    ("a\nb\nc\n".encode("utf-16"), None, "UTF-16"),
    ("a\nb\nc\n".encode("utf-16-le"), 1, "a NUL byte"),
    (b"a\nb\n", 2, "2 names, expected 3, .*an empty line is a name"),
    (b"a\nb\nc\n\nd\n", 4, "5 names, .*--config.data.num_labels=5"),
    (b"a\nb\nc\n \n", 4, "4 names"),
    (b"a\rb\rc\r", 1, "1 names, .* not with a carriage return"),
    (b"", 1, "0 names, expected 3"),
  ],
)
def test_other_names_are_refused_with_their_line(
  content, line, message, zipped, tmp_path
):
  path = tmp_path / ("labels.txt.gz" if zipped else "labels.txt")
  path.write_bytes(gzip.compress(content) if zipped else content)
  with pytest.raises(errors.DataError, match=message) as caught:
    names.label_names(tmp_path, 3)
  assert caught.value.line == line and caught.value.path == str(path)


def test_predictions_can_be_parsed_back():
  ids, scores = np.arange(len(ODD)), np.linspace(2, -2, len(ODD))
  answer = predict.Answer(ids, scores, None)
  line = predict._tab_line(answer, ODD)
  assert len(line.splitlines()) == 1
  cells = line.removesuffix("\n").split("\t")
  assert [from_cell(cell) for cell in cells] == ODD
  line = predict._json_line(answer, ODD)
  assert len(line.splitlines()) == 1
  assert json.loads(line)["names"] == ODD


def test_words_of_any_bytes_stay_apart(tmp_path):
  (tmp_path / "a.train.txt").write_bytes(b"caf\xe9 caf\xe8 \xc3\xa9\n")
  assert sorted(tokens.words(tmp_path)) == [
    "<eos>", r"caf\xe8", r"caf\xe9", "é",
  ]  # fmt: skip
