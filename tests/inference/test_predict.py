"""Rows of a file to labels in a file, or in what is no file."""

import json
import os
import threading

import numpy as np
import pytest
import scipy.sparse

from tests import test_files
from tests.inference import test_predictor
from xlj.data import errors
from xlj.data import formats
from xlj.inference import label_files
from xlj.inference import predict as predict_lib
from xlj.inference import predictor

GOOD = "0:1 3:2\n", "1:1\n", "2:4 11:1\n"
HUGE = "10:3e38\n"  # Beyond float32 when it is weighted.


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return test_predictor.write_run(tmp_path_factory.mktemp("run"), dense=False)


@pytest.fixture
def predict(workdir, tmp_path):
  """Predicts from lines of text; gives the lines that come out."""

  def run(lines, output="out.tsv", **options):
    source, path = tmp_path / "in.txt", tmp_path / output
    source.write_text("".join(lines))
    count = predict_lib.predict(workdir, str(source), str(path), **options)
    found = path.read_text().splitlines()
    assert len(found) == count
    return found

  return run


def test_rows_before_a_bad_one_are_printed(predict, workdir, tmp_path, capsys):
  expected = predict(GOOD, k=2)
  source = tmp_path / "in.txt"
  # Two are wrong: the first one is told.
  source.write_text("".join((*GOOD, "0:1 x\n", GOOD[0], "9:1 9:1\n")))
  with pytest.raises(errors.DataError) as caught:
    predict_lib.predict(workdir, str(source), "-", k=2)
  assert capsys.readouterr().out.splitlines() == expected
  assert caught.value.line == 4
  assert str(caught.value).startswith(f"{source}:4: found 'x'")
  assert str(caught.value).endswith(
    "; 3 rows before it are answered. With --on_error=skip such rows get an"
    " answer without labels"
  )


def test_labels_have_probabilities_where_they_are_known(predict, workdir):
  plain = [json.loads(line) for line in predict(GOOD, "out.jsonl", k=3)]
  assert "probabilities" not in plain[0]
  tabs = predict(GOOD, k=3)
  path = test_predictor.calibrated(workdir)
  try:
    assert predict(GOOD, k=3) == tabs
    found = [json.loads(line) for line in predict(GOOD, "out.jsonl", k=3)]
    for row, before in zip(found, plain):
      p = row.pop("probabilities")
      assert row == before
      logits = np.array(row["scores"]) / 2
      np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits)), atol=2e-5)
    likely = predict((*GOOD, "x\n"), k=3, min_probability=1, on_error="skip")
    assert likely == [""] * 4
  finally:
    path.unlink()
  with pytest.raises(ValueError, match="min_probability needs probabilities"):
    predict(GOOD, k=3, min_probability=0.5)


def test_a_failed_file_is_not_written(predict, tmp_path):
  path = tmp_path / "out.tsv"
  for before in ((), (path,)):
    with pytest.raises(errors.DataError, match=f"{path} was not written"):
      predict((*GOOD, "x\n"))
    assert set(tmp_path.iterdir()) == {tmp_path / "in.txt", *before}
    path.write_text("before")
  assert path.read_text() == "before"


@pytest.mark.parametrize("header", [False, True])
def test_bad_rows_are_skipped_in_their_places(header, predict, caplog):
  bad = ["x\n", "0:nan\n", "0:1 0:1\n", "0:1:2\n", "0:1 \0\n", "1:1e99\n", HUGE]
  if not header:
    bad.insert(2, "\n")  # elsewhere it is a row without features
  lines, places = [GOOD[0]], [0]
  for i, line in enumerate(bad):  # alone and together, the last row too
    lines += [line, GOOD[1 + i % 2], line, line]
    places.append(len(lines) - 3)
  lines.insert(0, f"{len(lines)} 12\n" if header else " \n")
  good = predict([" \n", *GOOD], k=2)
  expected = [""] * (len(lines) - header)
  for i, place in enumerate(places):
    expected[place + 1 - header] = good[1 + (i and 1 + (i - 1) % 2)]
  if not header:
    expected[0] = good[0]
  found = predict(lines, k=2, on_error="skip")
  assert found == expected
  rows = f"{3 * len(bad)} of {len(found)}"
  assert f"{rows} rows have an answer without labels: " in caplog.text
  assert "in.txt:3: found label 'x', expected" in caplog.text
  found = predict(lines, "out.jsonl", k=2, on_error="skip")
  assert json.loads(found[-1]) == {"labels": [], "scores": []}


@pytest.mark.parametrize("layout", ["csr", "csc", "coo"])
def test_bad_rows_of_a_matrix_are_skipped_too(
  layout, predict, workdir, tmp_path, caplog
):
  good = predict([*GOOD, " \n"], k=2)
  source, path = tmp_path / "X.npz", tmp_path / "out.tsv"
  indptr = [0, 1, 3, 4, 5, 7, 7]  # bad, good, bad, good, bad, good
  ids, values = [1, 0, 3, 2, 1, 2, 11, 0], [np.nan, 1, 2, np.inf, 1, 4, 1e39]
  if layout == "csr":  # an id twice, which the others would add up
    indptr, values = [0, 1, 3, 5, 6, 8, 8], [np.nan, 1, 2, 9, 9, 1, 4, 1e39]
    ids = [1, 0, 3, 2, 2, 1, 2, 11]
  matrix = scipy.sparse.csr_matrix(
    (np.array(values), np.array(ids[: len(values)]), indptr), shape=(6, 12)
  )
  scipy.sparse.save_npz(source, matrix.asformat(layout))
  predict_lib.predict(workdir, str(source), str(path), k=2, on_error="skip")
  assert path.read_text().split("\n")[:-1] == [
    *("", good[0], "", good[1], "", good[3])
  ]
  assert "3 of 6 rows have an answer without labels: " in caplog.text
  with pytest.raises(errors.DataError, match=r"in row 0 \(from 0\) value nan"):
    predict_lib.predict(workdir, str(source), str(path), k=2)


@pytest.mark.parametrize("bad", [[0], [5], [0, 1, 5], [2, 3], list(range(6))])
def test_bad_rows_of_dense_features_have_their_places(bad, tmp_path):
  rows = np.arange(12.0).reshape(6, 2)
  rows[bad, 1] = np.nan
  np.save(tmp_path / "X.npy", rows)
  found = []
  for block in formats.stream_each(tmp_path / "X.npy", num_features=2):
    if isinstance(block, errors.DataError):
      assert f"in row {len(found)} (from 0) value nan of feat" in str(block)
      found.append(None)
    else:
      found += np.asarray(block.features).tolist()
  expected = [None if i in bad else row for i, row in enumerate(rows.tolist())]
  assert found == expected


def test_all_rows_may_be_bad(predict):
  assert predict(["x\n"] * 50, on_error="skip") == [""] * 50


def test_rows_that_a_header_does_not_count_end_it(predict):
  with pytest.raises(errors.DataError, match=":5: found more rows.* 3 as in"):
    predict(("3 12\n", *GOOD, GOOD[0]))
  with pytest.raises(errors.DataError, match="found 3 rows, expected 4 as in"):
    predict(("4 12\n", *GOOD), on_error="skip")


def test_a_row_without_a_finite_score_is_refused(predict):
  with pytest.raises(ValueError, match=r"row 3 \(the first is 1\): the values"):
    predict((*GOOD[:2], HUGE))


def test_the_output_is_looked_at_first(predict, tmp_path):
  with pytest.raises(FileNotFoundError, match="none does not exist; make it"):
    predict_lib.predict(tmp_path / "nothing", "-", str(tmp_path / "none" / "x"))
  with pytest.raises(IsADirectoryError, match="is a directory"):
    predict_lib.predict(tmp_path / "nothing", "-", str(tmp_path))
  with pytest.raises(ValueError, match="--output is gs://a/b, a bucket"):
    predict_lib.predict(tmp_path / "nothing", "-", "gs://a/b")


def test_a_full_disk_is_named(predict, tmp_path):
  path = test_files.device(tmp_path, "full")
  with pytest.raises(OSError, match=f"{path} cannot be written: No space"):
    predict(GOOD, path)


def test_a_pipe_gets_the_rows_before_a_bad_one(predict, workdir, tmp_path):
  expected = predict(GOOD)
  path, found = tmp_path / "pipe", []
  os.mkfifo(path)
  reader = threading.Thread(target=lambda: found.append(path.read_text()))
  reader.start()
  source = tmp_path / "in.txt"
  source.write_text("".join((*GOOD, "x\n")))
  with pytest.raises(errors.DataError, match="3 rows before it are answered"):
    predict_lib.predict(workdir, str(source), str(path))
  reader.join()
  assert found[0].splitlines() == expected


def test_fewer_labels_than_asked_for_are_fewer(predict, monkeypatch):
  answers = predictor.Predictor.answers

  def few(self, *asked):  # As heads that search do.
    scores, ids, wrong = answers(self, *asked)
    scores[:, 1:], ids[:, 1:] = -np.inf, -1
    return scores, ids, wrong

  first = [line.split("\t")[0] for line in predict(GOOD, k=4)]
  monkeypatch.setattr(predictor.Predictor, "answers", few)
  assert predict(GOOD, k=4) == first
  for line in predict(GOOD, "out.jsonl", k=4):
    row = json.loads(line, parse_constant=pytest.fail)
    assert len(row["labels"]) == len(row["scores"]) == 1


def ids_of(line):
  return [int(cell.split(":")[0]) for cell in line.split("\t") if cell]


def test_files_say_which_labels_may_be_answers(predict, tmp_path):
  rows = *GOOD, "4:1\n"
  everything = [ids_of(line) for line in predict(rows, k=test_predictor.L)]

  def asked(**texts):
    for name, text in texts.items():
      if text not in label_files.OF_ROWS:
        (tmp_path / name).write_text(text)
        texts[name] = str(tmp_path / name)
    return {"asked": label_files.Asked(**texts), "k": test_predictor.L}

  def expected(keep):
    return [[i for i in ids if keep(n, i)] for n, ids in enumerate(everything)]

  for texts, keep in (
    ({"exclude": "3\n5\n"}, lambda n, i: i not in (3, 5)),
    ({"among": "3\n5\n"}, lambda n, i: i in (3, 5)),
    (
      {"exclude_rows": "1,2\n\n0\n11 12\n"},
      lambda n, i: i not in ([1, 2], [], [0], [11, 12])[n],
    ),
    (
      {"among_rows": "1,2\n\n0\n3\n", "exclude": "2\n"},
      lambda n, i: i in ([1], [], [0], [3])[n],
    ),
    # The third row has feature 2 and 11, which are labels, too.
    (
      {"exclude_rows": "features"},
      lambda n, i: i not in ([0, 3], [1], [2, 11], [4])[n],
    ),
  ):
    found = [ids_of(line) for line in predict(rows, **asked(**texts))]
    assert found == expected(keep), texts
  seen = "3,5 0:1 3:2\n", " 1:1\n"
  found = [ids_of(x) for x in predict(seen, **asked(exclude_rows="labels"))]
  assert found == [[i for i in everything[0] if i not in (3, 5)], everything[1]]


def test_a_name_of_several_labels_stands_for_all(tmp_path):
  path = tmp_path / "labels.txt"
  path.write_text("one\n3\ntwo\n")
  names = ["one", "two", "one", "0"]
  assert label_files.read(path, 4, None, names).tolist() == [0, 2, 3, 1]
  path.write_text("²\n", encoding="utf-8")  # a digit, and no number
  with pytest.raises(errors.DataError, match="expected a label"):
    label_files.read(path, 4, None, names)


@pytest.mark.parametrize(
  "name, text, message",
  [
    ("exclude", "1\n13\n", ":2: found '13', expected a label: an id below 13"),
    ("among", "one\n", "; the run has no names"),
    ("among", "", ": found no labels, expected some to choose"),
    ("exclude_rows", "1\nx\n\n", ":2: found 'x', expected label ids below 13"),
    ("among_rows", "1\n", ": found 1 lines, expected a line for each row"),
    ("among_rows", "1\n" * 4, ": found 4 lines, expected 3, one for each row"),
  ],
)
def test_files_that_do_not_fit_are_refused(
  predict, tmp_path, name, text, message
):
  path = tmp_path / "labels.txt"
  path.write_text(text)
  with pytest.raises(errors.DataError) as caught:
    predict(GOOD, asked=label_files.Asked(**{name: str(path)}))
  assert str(caught.value).startswith(str(path)) and message in str(
    caught.value
  )


def test_features_that_the_model_lacks_count_for_nothing(predict, caplog):
  expected = predict(["0:1 3:2\n", "1:1\n"])
  assert predict(["0:1 3:2 12:5 9999:1\n", "1:1 12:3\n"]) == expected
  assert "in.txt: 3 entries of 2 features that training has not" in caplog.text


def test_rows_of_labels_are_a_file_or_what_the_input_has(predict):
  with pytest.raises(ValueError, match="no such file; give one with a line"):
    predict(GOOD, asked=label_files.Asked(exclude_rows="label"))
