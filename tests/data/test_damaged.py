"""Damaged files: read right, or refused by name, in little memory."""

import gzip
import io
import pathlib
import warnings
import zipfile

import numpy as np
import pytest
import scipy.sparse

from xlj.data import formats

ROWS, FEATURES, LABELS = 6, 5, 4
TEXT = b"6 5 4\n" + b"1,2 0:1 3:-0.5\n0 4:2e-3\n" * 3
HUGE = 10**12


def _saved(save, *arrays, **options):
  file = io.BytesIO()
  save(file, *arrays, **options)
  return file.getvalue()


def _seeds():
  """Good files by name: where they stand, and what they hold."""
  rng = np.random.default_rng(0)
  x = scipy.sparse.random_array((ROWS, FEATURES), density=0.5, rng=rng)
  y = scipy.sparse.csr_array((x.toarray()[:, :LABELS] > 0).astype(np.int8))
  ids = np.arange(ROWS) % LABELS
  save = scipy.sparse.save_npz
  return {
    "x.npy": _saved(np.save, x.toarray().astype(np.float32)),
    "images.npy": _saved(np.save, np.ones((ROWS, 2, 2, 3), np.uint8)),
    "y_ids.npy": _saved(np.save, ids),
    "y_padded.npy": _saved(np.save, np.stack([ids, np.full(ROWS, -1)], 1)),
    "y_indicator.npy": _saved(np.save, y.toarray()),
    "x.npz": _saved(save, x.tocsr()),
    "plain.npz": _saved(save, x.tocsr(), compressed=False),
    "y.npz": _saved(save, y),
    "csc.npz": _saved(save, x.tocsc()),
    "coo.npz": _saved(save, x.tocoo(), compressed=False),
    "train.txt": TEXT,
    "train.svm": TEXT.partition(b"\n")[2],
    "train.txt.gz": gzip.compress(TEXT, mtime=0),
  }


def _mutated(content, rng):
  """Up to four changes: bytes set, cut out, put in, doubled or swapped."""
  data = bytearray(content)
  for _ in range(rng.integers(1, 5)):
    kind, n = rng.integers(6), int(rng.integers(1, 9))
    # Most of what goes wrong is in headers, at either end.
    near = min(len(data), 160)
    start = int(rng.integers(near if rng.random() < 0.6 else len(data) + 1))
    start = len(data) - start if rng.random() < 0.3 else start
    if kind == 0:
      data[start : start + n] = rng.bytes(n)
    elif kind == 1:
      del data[start : start + n]
    elif kind == 2:
      data[start:start] = rng.bytes(n)
    elif kind == 3:
      data[start:start] = data[start : start + 8 * n]
    elif kind == 4:
      del data[len(data) - n :]
    else:  # one bit
      data[start : start + 1] = bytes(
        byte ^ (1 << n % 8) for byte in data[start : start + 1]
      )
    if not data:
      data = bytearray(b"0")
  return bytes(data)


def _read(path):
  """Reads a file as what its name says; returns how many rows there were."""
  if path.name.startswith("y"):
    return sum(block.num_rows for block in formats.stream_labels(path))
  rows = formats.stream_rows(path)
  return sum(block.features.shape[0] for block in rows)


def _raw_errors(directory, seed, count):
  """Of `count` damaged files those that end in another error than DataError."""
  rng = np.random.default_rng(seed)
  seeds, found = _seeds(), []
  for i in range(count):
    name = list(seeds)[i % len(seeds)]
    path = directory / name
    path.write_bytes(_mutated(seeds[name], rng))
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _read(path)
    except formats.DataError as error:
      if not str(error).startswith(str(path)):
        found.append(f"{i} {name}: {error}")
    except Exception as error:
      found.append(f"{i} {name}: {type(error).__name__}: {error}")
  return found


def test_good_files_are_read(tmp_path):
  for name, content in _seeds().items():
    (tmp_path / name).write_bytes(content)
    assert _read(tmp_path / name) == ROWS


def test_damage_is_refused_by_name(tmp_path):
  assert not _raw_errors(tmp_path, seed=0, count=650)


def _with_header(shape, descr="<i8", numbers=ROWS):
  """An array whose header claims what is not there."""
  header = {"descr": descr, "fortran_order": False, "shape": shape}
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + bytes(8 * numbers)


def _with_member(name, content, source="x.npz"):
  """An archive of which one member is another."""
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(_seeds()[source])) as old,
    zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new,
  ):
    for member in old.namelist():
      same = member != f"{name}.npy"
      new.writestr(member, old.read(member) if same else content)
  return out.getvalue()


def _patched(source, at, value):
  """An archive where a field of all of its local and central headers is set."""
  data = bytearray(_seeds()[source])
  for magic, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
    start = data.find(magic)
    while start >= 0:
      data[start + offset : start + offset + 2] = value.to_bytes(2, "little")
      start = data.find(magic, start + 4)
  return bytes(data)


CLAIMS = {
  "y_rows.npy": (_with_header((HUGE,)), "bytes are missing for int64 (1000000"),
  "y_wide.npy": (_with_header((ROWS, HUGE)), "bytes are missing for int64 (6,"),
  "y_nothing.npy": (
    _with_header((0, HUGE)),
    "an empty array (0, 10000000000",
  ),
  "y_type.npy": (_with_header((6,), ",i8"), "no readable array"),
  "y_none.npy": (_with_header((6,), "|V0"), "no readable array"),
  "y_label.npy": (
    _saved(np.save, np.array([HUGE])),
    "label 1000000000000",
  ),
  "y_u8.npy": (
    _saved(np.save, np.array([2**64 - 1], np.uint64)),
    "label 18446",
  ),
  "y_object.npy": (
    _saved(np.save, np.array([[1], [2, 3]], object), allow_pickle=True),
    "Python objects, which are never unpickled",
  ),
  "x_rows.npy": (_with_header((HUGE, 5), "<f4"), "bytes are missing for float"),
  "pointers.npz": (
    _with_member("indptr", _with_header((3 * 10**8,))),
    "damaged indptr (2399999824 bytes are missing",
  ),
  "indices.npz": (
    _with_member("indices", _with_header((HUGE,))),
    "damaged indices (7999999999",
  ),
  "shape.npz": (
    _with_member("shape", _saved(np.save, np.array([3 * 10**8, 5]))),
    "found 7 row pointers, expected 300000000 + 1 for its shape",
  ),
  "width.npz": (
    _with_member("shape", _saved(np.save, np.array([6, HUGE]))),
    "found 1000000000000 features, expected at most",
  ),
  "past.npz": (
    _with_member("indptr", _saved(np.save, np.array([0, 1, 2, 3, 4, 5, HUGE]))),
    "expected 1000000000000 as in indptr",
  ),
  "layout.npz": (
    _with_member("format", _saved(np.save, np.zeros(10**6, "S3"))),
    "found format of 1000000 |S3",
  ),
  "csc_rows.npz": (
    _with_member("indices", _with_header((HUGE,)), "csc.npz"),
    "damaged indices (7999999999",
  ),
  "password.npz": (_patched("x.npz", 6, 1), "is encrypted, password required"),
  "packing.npz": (_patched("x.npz", 8, 77), "compression method is not supp"),
  "digits.txt": (
    b"1 5 4\n1 " + b"9" * 4301 + b":1\n",
    ":2: found feature '9",
  ),
  "digits.svm": (b"9" * 4301 + b" 1:1\n", ":1: found label '9999999"),
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_compared_with_the_file(tmp_path, name):
  content, message = CLAIMS[name]
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(formats.DataError) as caught:
    _read(path)
  assert str(caught.value).startswith(str(path))
  assert message in str(caught.value)


if __name__ == "__main__":
  import sys
  import tempfile

  with tempfile.TemporaryDirectory() as where:
    found = _raw_errors(pathlib.Path(where), *map(int, sys.argv[1:3]))
  print(*found, f"{len(found)} raw errors", sep="\n")
