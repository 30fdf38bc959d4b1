"""Files that appear whole, or not at all."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from xlj import files


def test_a_file_appears_when_it_is_whole(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("before")
  with files.replacing(path) as partial:
    partial.write_text("after")
    assert path.read_text() == "before"
  assert path.read_text() == "after"
  assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("before")
  with (
    pytest.raises(KeyError),
    files.replacing(path) as partial,
    partial.open("w") as file,
  ):
    file.write("half")
    raise KeyError
  assert path.read_text() == "before"
  assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
  path = tmp_path / "statistics"
  with files.replacing(path) as slow:
    slow.write_text("slow")
    with files.replacing(path) as fast:
      fast.write_text("fast")
    assert path.read_text() == "fast"
  assert path.read_text() == "slow"


def test_what_a_kill_left_is_removed(tmp_path):
  path = tmp_path / "config.json"
  code = (
    "import os, sys; from xlj import files\n"
    "with files.replacing(sys.argv[1]) as partial:\n"
    "  os.kill(os.getpid(), 9)"
  )
  subprocess.run([sys.executable, "-c", code, str(path)])
  (left,) = tmp_path.iterdir()
  # Of a living process, and of another machine, which may be at it.
  living = (
    tmp_path / f"config.json.{files.machine()}-{os.getppid()}-{8 * 'a'}.partial"
  )
  there = tmp_path / f"config.json.{12 * '0'}-1-{8 * 'a'}.partial"
  old = tmp_path / f"config.json.{12 * '0'}-1-{8 * 'b'}.partial"
  for other in (living, there, old):
    other.write_text("")
  os.utime(old, (1, 1))
  files.write_text(path, "{}\n")
  assert path.read_text() == "{}\n"
  assert left.name.endswith(".partial")
  assert set(tmp_path.iterdir()) == {path, living, there}


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
  (tmp_path / "there").mkdir()
  path, target = tmp_path / "link", tmp_path / "there" / "file"
  path.symlink_to("there/file")
  for text in ("made", "replaced"):  # at first it leads nowhere
    files.write_text(path, text)
    assert path.is_symlink() and target.read_text() == text
  assert set((tmp_path / "there").iterdir()) == {target}


def test_links_that_lead_nowhere_are_refused(tmp_path):
  path = tmp_path / "link"
  path.symlink_to(path)
  with pytest.raises(OSError, match="lead to themselves"):
    files.write_text(path, "")


def test_a_link_at_the_other_name_is_not_followed(tmp_path):
  path, victim = tmp_path / "file", tmp_path / "victim"
  victim.write_text("mine")
  (tmp_path / "file.partial").symlink_to(victim)
  files.write_text(path, "text")
  assert victim.read_text() == "mine" and path.read_text() == "text"


def test_permissions_are_those_of_the_file_or_of_new_ones(tmp_path):
  path, new = tmp_path / "file", tmp_path / "new"
  path.write_text("")
  path.chmod(0o640)
  before = os.umask(0o027)
  try:
    files.write_text(path, "text")
    path.chmod(0o604)
    files.write_text(path, "text")
    files.write_text(new, "text")
  finally:
    os.umask(before)
  assert stat.S_IMODE(path.stat().st_mode) == 0o604
  assert stat.S_IMODE(new.stat().st_mode) == 0o640


def test_a_pipe_with_a_name_is_written_to(tmp_path):
  path, found = tmp_path / "pipe", []
  os.mkfifo(path)
  reader = threading.Thread(target=lambda: found.append(path.read_text()))
  reader.start()
  files.write_text(path, "text")
  reader.join()
  assert found == ["text"] and path.is_fifo()


def device(directory, name):
  """A device of a directory of tests: those of the machine are not risked."""
  path = directory / name
  number = os.stat(f"/dev/{name}").st_rdev
  try:
    os.mknod(path, stat.S_IFCHR | 0o666, number)
    path.open("w").close()
  except OSError:
    pytest.skip("makes no devices here")
  return path


def test_a_device_is_written_to(tmp_path):
  path, link = device(tmp_path, "null"), tmp_path / "link"
  link.symlink_to(path)
  for name in (link, path):
    files.write_text(name, "text")
  assert link.is_symlink() and path.is_char_device()


def test_an_open_file_is_written_to(tmp_path):
  with (tmp_path / "file").open("w") as file:
    files.write_text(f"/dev/fd/{file.fileno()}", "text")
    assert os.fstat(file.fileno()).st_nlink == 1
  assert (tmp_path / "file").read_text() == "text"


def test_what_cannot_be_a_file_is_refused_by_name(tmp_path):
  with pytest.raises(IsADirectoryError, match=f"{tmp_path} is a directory"):
    files.write_text(tmp_path, "")
  path = tmp_path / "none" / "file"
  with pytest.raises(FileNotFoundError, match=f"{path.parent} does not exist"):
    files.write_text(path, "")
  with pytest.raises(ValueError, match="--out is gs://a/b, a bucket; give a"):
    files.local("gs://a/b", "--out")


def test_a_full_disk_is_named(tmp_path):
  path = device(tmp_path, "full")
  with pytest.raises(OSError, match=f"{path} cannot be written: No space"):
    files.write_text(path, "text")


def test_a_long_name_can_be_written(tmp_path):
  path = tmp_path / ("\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 127)
  files.write_text(path, "text")
  assert list(tmp_path.iterdir()) == [path]


def test_names_that_are_no_utf8_are_kept_in_texts(tmp_path):
  files.write_text(tmp_path / "file", "of " + os.fsdecode(b"/d\xe9"))
  assert (tmp_path / "file").read_bytes() == b"of /d\xe9"
