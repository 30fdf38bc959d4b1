"""Cached data sets: what is found, what is kept, and what cannot go wrong."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from xlj.data import cache
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import entries
from xlj.data import formats
from xlj.data import ingest
from xlj.data import store
from xlj.data import writers

X = csr_lib.Csr.from_rows([[0, 3], [], [1]], 5, [[1, 0.5], [], [2]])
Y = csr_lib.Csr.from_rows([[1, 2], [0], []], 4)
PAIRS = csr_lib.Csr.from_rows([[0], [], [2, 3]], 4)
DENSE = np.arange(6, dtype=np.float32).reshape(3, 2)

_BESIDE = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
REAL = pathlib.Path(os.environ.get("XLJ_DATA", _BESIDE))


def one_file(directory, name="train.txt"):
  writers.write_one_file(directory / name, X, Y)
  return directory / name


def assert_same(matrix, expected):
  assert matrix.shape == expected.shape
  np.testing.assert_array_equal(matrix.indptr, expected.indptr)
  np.testing.assert_array_equal(matrix.indices, expected.indices)
  if expected.values is not None:
    np.testing.assert_array_equal(matrix.values, expected.values)
  matrix.validate()


def settle(path):
  """Makes a file old enough for its hash to be remembered."""
  past = time.time() - 60
  os.utime(path, (past, past))


LAYOUTS = {
  "exact": {"train.txt": "one"},
  "gzip": {"train.txt.gz": "one"},
  "short": {"trn.txt": "one"},
  "capitals": {"Train.TXT": "one"},
  "set first": {"bibtex_train.txt": "one"},
  "set last": {"trn_bibtex.txt": "one"},
  "svmlight": {"train.svm": "svm"},
  "svmlight gzip": {"trn.libsvm.gz": "svm"},
  "exact wins": {"train.txt": "one", "train_half.txt": "other"},
  "text beside": {"a_train.txt": "one", "train_text.txt": "", "trn_X.txt": ""},
  "split form": {"trn_X_Xf.txt": "x", "trn_X_Y.txt": "y"},
  "split form gzip": {"trn_X_Xf.txt.gz": "x", "trn_X_Y.txt.gz": "y"},
  "pecos": {"X.trn.npz": "x", "Y.trn.npz": "y"},
  "npz": {"trn_X_Xf.npz": "x", "trn_X_Y.npz": "y"},
  "mixed": {"train_X.npz": "x", "train_Y.txt": "y"},
  "dense": {"X.trn.npy": "dense", "Y.trn.npz": "y"},
  "dense text": {"X.trn.npy": "dense", "Y.trn.txt": "y"},
  "filter": {"train.txt": "one", "filter_labels_train.txt.gz": "pairs"},
}


def create(directory, files):
  for name, what in files.items():
    path = directory / name
    if what == "one":
      one_file(directory, name)
    elif what == "svm":
      writers.write_svmlight(path, X, Y)
    elif what == "pairs":
      writers.write_pairs(path, PAIRS)
    elif what == "dense":
      np.save(path, DENSE)
    elif what in ("x", "y"):
      npz = name.endswith(".npz")
      write = writers.write_npz if npz else writers.write_matrix
      write(path, X if what == "x" else Y)
    else:
      path.write_text("anything\n")


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
  create(tmp_path, LAYOUTS[name])
  split = store.open_split(tmp_path, num_features=None, num_labels=None)
  labels = Y
  if "svmlight" in name:  # sizes from the data
    x = csr_lib.Csr(X.indptr, X.indices, X.values, 4)
    labels = csr_lib.Csr(Y.indptr, Y.indices, None, 3)
    assert_same(split.features, x)
  elif "dense" in name:
    np.testing.assert_array_equal(split.features, DENSE)
    assert split.features.dtype == np.float32
  else:
    assert_same(split.features, X)
  assert_same(split.labels, labels)
  assert split.labels.values is None
  assert split.name == f"{tmp_path.name}/train"
  sizes = (split.num_rows, split.num_features, split.num_labels)
  assert sizes == (3, split.features.shape[1], labels.num_columns)
  if name == "filter":
    assert_same(split.filter, PAIRS)
  else:
    assert split.filter is None


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ([], "found no train split among: no files, expected one of train.txt; "),
    (["test.txt"], "found no train split among: test.txt, expected one of"),
    (
      ["train.txt", "train.txt.gz"],
      "candidates for the train split: train.txt",
    ),
    (["train.txt", "trn_X_Xf.txt"], "train.txt, trn_X_Xf.txt, expected one"),
    (["a_train.txt", "b_train.txt"], "a_train.txt, b_train.txt, expected one"),
    (["trn_X_Xf.txt"], "found no file of labels, expected one label file"),
    (
      ["X.trn.npz", "Y.trn.npz", "Y.trn.txt"],
      "found Y.trn.npz, Y.trn.txt, exp",
    ),
  ],
)
def test_what_cannot_be_decided_is_refused(tmp_path, names, message):
  for name in names:
    (tmp_path / name).touch()
  with pytest.raises(formats.DataError) as caught:
    store.open_split(tmp_path)
  assert str(caught.value).startswith(f"{tmp_path}: found ")
  assert message in str(caught.value)


def test_no_such_directory_or_split(tmp_path):
  with pytest.raises(formats.DataError, match="found no such directory"):
    store.open_split(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="split is 'tset', expected one of"):
    store.open_split(tmp_path, "tset")


def test_has_split(tmp_path):
  create(tmp_path, {"train.txt": "one", "dev.txt": "one"})
  has = [discover.has_split(tmp_path, split) for split in discover.SPLITS]
  assert has == [True, False, True]


def test_second_open_reads_nothing(tmp_path, monkeypatch):
  path = one_file(tmp_path)
  settle(path)
  first = store.open_split(tmp_path)

  def never(*args):
    raise AssertionError("the source was read again")

  monkeypatch.setattr(ingest, "ingest", never)
  monkeypatch.setattr(cache, "_hash", never)
  second = store.open_split(tmp_path)
  assert second.fingerprint == first.fingerprint
  assert_same(second.features, X)


def test_a_fresh_file_is_hashed_again(tmp_path):
  # It could still change within the same tick of its time stamp.
  path = one_file(tmp_path)
  first = store.open_split(tmp_path)
  facts = path.stat()
  path.write_bytes(path.read_bytes().replace(b":2", b":3"))
  os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
  second = store.open_split(tmp_path)
  assert second.fingerprint != first.fingerprint
  assert second.features.values[-1] == 3


def test_changed_content_is_another_entry(tmp_path):
  path = one_file(tmp_path)
  settle(path)
  first = store.open_split(tmp_path)
  path.write_bytes(path.read_bytes().replace(b":2", b":3"))
  second = store.open_split(tmp_path)
  assert second.fingerprint != first.fingerprint
  assert second.features.values[-1] == 3


def test_same_content_elsewhere_is_the_same_entry(tmp_path):
  shared = tmp_path / "cache"
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  one_file(tmp_path / "a")
  one_file(tmp_path / "b", "trn.txt")
  one = store.open_split(tmp_path / "a", cache_dir=shared)
  other = store.open_split(tmp_path / "b", cache_dir=shared)
  assert one.cache_dir == other.cache_dir
  assert other.name == "b/train"


def test_options_are_part_of_the_key(tmp_path):
  writers.write_svmlight(tmp_path / "train.svm", X, Y)
  plain = store.open_split(tmp_path)
  wide = store.open_split(tmp_path, num_features=9)
  assert plain.num_features == 4
  assert wide.num_features == 9


def test_read_only_source_uses_the_cache_of_the_user(tmp_path, monkeypatch):
  source = tmp_path / "source"
  source.mkdir()
  one_file(source)
  source.chmod(0o555)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  split = store.open_split(source)
  assert split.cache_dir.parent == tmp_path / "home" / "xlj"
  assert [path.name for path in source.iterdir()] == ["train.txt"]
  source.chmod(0o755)


def test_nowhere_to_write_is_an_error(tmp_path):
  one_file(tmp_path)
  locked = tmp_path / "locked"
  locked.mkdir(mode=0o555)
  with pytest.raises(formats.DataError, match="give one with cache_dir"):
    store.open_split(tmp_path, cache_dir=locked)


def _arrays(split):
  return sorted(split.cache_dir.glob("*.npy"))


@pytest.mark.parametrize("index", range(5))
def test_a_shortened_array_is_written_again(tmp_path, index):
  one_file(tmp_path)
  path = _arrays(store.open_split(tmp_path))[index]
  os.truncate(path, path.stat().st_size - 1)
  assert_same(store.open_split(tmp_path).features, X)
  store.verify(store.open_split(tmp_path))


def _flip(path):
  data = bytearray(path.read_bytes())
  data[-1] ^= 64
  path.write_bytes(bytes(data))


@pytest.mark.parametrize("index", range(5))
def test_a_damaged_array_is_written_again(tmp_path, index):
  one_file(tmp_path)
  _flip(_arrays(store.open_split(tmp_path))[index])
  split = store.open_split(tmp_path)
  assert_same(split.features, X)
  assert_same(split.labels, Y)


def test_verify_finds_damage_in_large_sets(tmp_path, monkeypatch):
  monkeypatch.setattr(entries, "_CHECKED_BYTES", 0)
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  store.verify(split)
  path = split.cache_dir / "features.values.npy"
  _flip(path)
  with pytest.raises(formats.DataError, match="features.values.npy: found che"):
    store.verify(store.open_split(tmp_path))


def test_a_half_removed_entry_is_written_again(tmp_path):
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  (split.cache_dir / cache.META).unlink()
  assert_same(store.open_split(tmp_path).labels, Y)


@pytest.mark.parametrize(
  "damage",
  [
    lambda text: text[: len(text) // 2],
    lambda text: "",
    lambda text: "[]",
    lambda text: "[" * 100_000,
    lambda text: text.replace('"num_features": 5', '"num_features": 6'),
    lambda text: text.replace('"num_features": 5', '"num_features": "5"'),
    lambda text: text.replace('"num_features": 5,', ""),
    lambda text: text.replace('"arrays": {', '"arrays": {"x": null, '),
    lambda text: text.replace("num_rows", "n\xe9"),
  ],
)
def test_an_entry_with_another_description_is_made_anew(
  damage, tmp_path, caplog
):
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  path = split.cache_dir / cache.META
  text = path.read_text()
  path.write_bytes(damage(text).encode("latin-1"))
  assert path.read_text("latin-1") != text
  with caplog.at_level("WARNING", logger="absl"):
    assert_same(store.open_split(tmp_path).labels, Y)
  assert path.read_text() == text
  (line,) = caplog.messages
  assert line.endswith(f"{path} is not as written")


def test_headers_of_arrays_are_not_believed(tmp_path):
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  for path in split.cache_dir.glob("*.npy"):
    with path.open("r+b") as file:
      file.write(b"x" * 20)
  assert_same(store.open_split(tmp_path).labels, Y)


def test_a_refused_file_leaves_nothing_behind(tmp_path):
  (tmp_path / "train.txt").write_text("1 5 4\n1 9:1\n")
  with pytest.raises(formats.DataError):
    store.open_split(tmp_path)
  assert not list((tmp_path / cache.DIRECTORY).iterdir())


def test_what_killed_processes_leave_is_removed(tmp_path):
  one_file(tmp_path)
  root = tmp_path / cache.DIRECTORY
  old, new = root / "a.1.tmp", root / "a.2.tmp"
  old.mkdir(parents=True)
  new.mkdir()
  os.utime(old, (0, 0))
  store.open_split(tmp_path)
  assert not old.exists()
  assert new.exists()


_RACE = """
import pathlib, sys, time
from xlj.data import store
directory = pathlib.Path(sys.argv[1])
(directory / f"ready{sys.argv[2]}").touch()
while not (directory / "go").exists():
  time.sleep(0.001)
split = store.open_split(directory)
print(split.fingerprint, split.features.indices.sum())
"""


def test_processes_may_race(tmp_path):
  rng = np.random.default_rng(0)
  rows = [sorted(rng.choice(500, 40, replace=False)) for _ in range(3000)]
  matrix = csr_lib.Csr.from_rows(rows, 500)
  writers.write_one_file(tmp_path / "train.txt", matrix, matrix)
  workers = [
    subprocess.Popen(
      [sys.executable, "-c", _RACE, str(tmp_path), str(index)],
      env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(3)
  ]
  deadline = time.monotonic() + 60
  while len(list(tmp_path.glob("ready*"))) < len(workers):
    assert time.monotonic() < deadline
    time.sleep(0.01)
  (tmp_path / "go").touch()
  found = {worker.communicate(timeout=60)[0] for worker in workers}
  assert [worker.returncode for worker in workers] == [0, 0, 0]
  assert len(found) == 1
  assert found.pop().split()[1] == str(matrix.indices.sum())
  left = [path.suffix for path in (tmp_path / cache.DIRECTORY).iterdir()]
  assert ".tmp" not in left


def test_dense_float32_is_not_copied(tmp_path):
  create(tmp_path, {"X.trn.npy": "dense", "Y.trn.npz": "y"})
  split = store.open_split(tmp_path)
  assert not (split.cache_dir / "features.npy").exists()
  np.save(tmp_path / "X.trn.npy", np.asfortranarray(DENSE.astype(np.float64)))
  split = store.open_split(tmp_path)
  assert (split.cache_dir / "features.npy").exists()
  assert split.features.dtype == np.float32
  np.testing.assert_array_equal(split.features, DENSE)


def test_maps_are_read_only(tmp_path):
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  with pytest.raises(ValueError, match="read-only"):
    split.features.values[0] = 1


def test_open_file_without_labels(tmp_path):
  writers.write_matrix(tmp_path / "new.txt", X)
  split = store.open_file(tmp_path / "new.txt", num_features=5, num_labels=4)
  assert_same(split.features, X)
  assert split.labels.shape == (3, 4)
  assert split.labels.nnz == 0
  assert split.name == "new.txt"


def test_open_file_with_files_by_name(tmp_path):
  create(tmp_path, {"a.npz": "x", "b.txt": "y", "c.txt": "pairs"})
  split = store.open_file(
    tmp_path / "a.npz",
    labels=tmp_path / "b.txt",
    filter_pairs=tmp_path / "c.txt",
  )
  assert_same(split.features, X)
  assert_same(split.labels, Y)
  assert_same(split.filter, PAIRS)


def test_open_file_refuses_standard_input():
  with pytest.raises(formats.DataError, match="stream_rows reads it"):
    store.open_file("-")


def test_label_names(tmp_path):
  assert store.label_names(tmp_path, 2) is None
  (tmp_path / "labels.txt").write_text("first one\r\n2nd\r\n")
  assert store.label_names(tmp_path, 2) == ["first one", "2nd"]
  with pytest.raises(formats.DataError) as caught:
    store.label_names(tmp_path, 3)
  message = f"{tmp_path / 'labels.txt'}:2: found 2 names, expected 3, one for"
  assert message in str(caught.value)


def test_label_names_from_columns(tmp_path):
  path = tmp_path / "Y.txt.gz"
  path.write_bytes(gzip.compress(b"01-n\tentity\tall\n02-v\ttake 5\tdo\n"))
  assert store.label_names(tmp_path) == ["entity", "take 5"]
  path.write_bytes(gzip.compress(b"a\t1\nb\t2\n"))
  assert store.label_names(tmp_path) == ["a", "b"]
  path.write_bytes(gzip.compress(b"a1\t1\nb1\t2\n"))
  assert store.label_names(tmp_path) == ["a1", "b1"]


def test_meta_describes_the_arrays(tmp_path):
  one_file(tmp_path)
  split = store.open_split(tmp_path)
  meta = json.loads((split.cache_dir / cache.META).read_text())
  assert meta["arrays"]["features.indices"]["shape"] == [3]
  assert (meta["num_rows"], meta["num_features"]) == (3, 5)


COUNTS = {  # set -> train rows, test rows, features, labels, has names
  "bibtex": (4880, 2515, 1836, 159, True),
  "delicious": (12920, 3185, 500, 983, True),
  "wordnet_hypernym": (77277, 7575, 23249, 19766, True),
  "citeulike_tags": (20739, 5205, 20000, 46405, True),
  "acl_authors": (92495, 9763, 37016, 97275, True),
  "gowalla": (29858, 29858, 40981, 40981, False),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_sets(tmp_path, name):
  directory = REAL / name
  if not directory.is_dir():
    pytest.skip(f"{directory} is absent; set XLJ_DATA to the data sets")
  train_rows, test_rows, num_features, num_labels, has_names = COUNTS[name]
  for split_name, num_rows in (("train", train_rows), ("test", test_rows)):
    split = store.open_split(directory, split_name, cache_dir=tmp_path)
    assert split.num_rows == num_rows
    assert (split.num_features, split.num_labels) == (num_features, num_labels)
    split.features.validate()
    split.labels.validate()
  if name == "gowalla":
    assert split.filter.nnz == 810_128
    # train.txt.gz, not train_half.txt.gz, whose rows are twice as many.
    assert split.features.nnz == 810_128
  if name == "delicious":
    assert (split.labels.row_lengths == 0).sum() == 4
  names = store.label_names(directory, num_labels)
  assert (names is not None) == has_names
  if name == "wordnet_hypernym":
    assert names[:2] == ["entity", "breathe, take a breath, respire, suspire"]


def test_a_reader_of_a_new_ending_may_yield_dense_rows(tmp_path, monkeypatch):
  monkeypatch.setitem(discover.ARRAYS, ".dat", "npy")
  create(tmp_path, {"Y.trn.npz": "y"})
  with open(tmp_path / "X.trn.dat", "wb") as file:
    np.save(file, DENSE)
  split = store.open_split(tmp_path, num_features=None, num_labels=None)
  np.testing.assert_array_equal(split.features, DENSE)
  assert_same(split.labels, Y)
