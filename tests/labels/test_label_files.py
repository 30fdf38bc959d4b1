"""Labels in files are found by id or by name, whatever the name."""

import dataclasses

import pytest

from tests import test_run_directory
from xlj.data import errors
from xlj.labels import edit
from xlj.labels import files


def test_labels_are_found_by_their_exact_name_or_as_listed(tmp_path):
  run = test_run_directory.make_run(tmp_path)
  given = ["a", " a ", "ta\tb", "  lead", "line\u2028sep", "5x", "y", "y"]
  names = given + [f"label {i}" for i in range(len(given), run.num_ids)]
  run = dataclasses.replace(run, names=names)
  path = tmp_path / "labels"
  path.write_text("a\n a \nta\\tb\nlead\nline\\u2028sep\n 9 \n")
  assert files.read_ids(path, run) == [0, 1, 2, 3, 4, 9]
  path.write_text("a\ny\n")
  with pytest.raises(errors.DataError, match=r":2: .*name of labels \[6, 7\]"):
    files.read_ids(path, run)
  path.write_bytes(b"a\t\xe9\n")
  with pytest.raises(errors.DataError, match=":1: found byte 0xe9"):
    files.read_renames(path, run)
  path.write_text("a\t b\u2028 \n")
  run = edit.rename(run, files.read_renames(path, run))
  assert run.names[0] == " b\u2028 "
