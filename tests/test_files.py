"""Files that appear whole, or not at all."""

import pytest

from xlj import files


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_when_it_is_whole(tmp_path, shared):
  path = tmp_path / "report.html"
  path.write_text("before")
  with files.replacing(path, shared=shared) as partial:
    partial.write_text("after")
    assert path.read_text() == "before"
  assert path.read_text() == "after"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_what_was_there(tmp_path, shared):
  path = tmp_path / "report.html"
  path.write_text("before")
  with (
    pytest.raises(KeyError),
    files.replacing(path, shared=shared) as partial,
    partial.open("w") as file,
  ):
    file.write("half")
    raise KeyError
  assert path.read_text() == "before"
  assert list(tmp_path.iterdir()) == [path]


def test_writers_of_a_shared_file_do_not_meet(tmp_path):
  path = tmp_path / "statistics"
  with files.replacing(path, shared=True) as slow:
    slow.write_text("slow")
    with files.replacing(path, shared=True) as fast:
      fast.write_text("fast")
    assert path.read_text() == "fast"
  assert path.read_text() == "slow"


def test_a_kill_leaves_one_name(tmp_path):
  path = tmp_path / "config.json"
  (tmp_path / "config.json.partial").write_text("half of what a kill left")
  files.write_text(path, "{}\n")
  assert path.read_text() == "{}\n"
  assert list(tmp_path.iterdir()) == [path]
