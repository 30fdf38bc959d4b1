"""Fewer bits and fewer weights: how far off, how many, how large."""

import numpy as np
import pytest

from xlj import config as config_lib
from xlj.export import compress
from xlj.export import reader
from xlj.export import tensors as tensors_lib

F, L, D = 6, 50, 4


def tensors():
  """A network with a wide path; a feature and a row have nothing but zeros."""
  rng = np.random.default_rng(0)
  counts = np.array([9, 0, 20, 1, 30, 2])
  rows = rng.normal(size=(L, D)).astype(np.float32) * 10.0 ** rng.integers(
    -3, 3, (L, 1)
  ).astype(np.float32)
  rows[3] = 0
  columns = [np.sort(rng.choice(L, n, replace=False)) for n in counts]
  values = rng.normal(size=counts.sum()).astype(np.float32)
  values[29] = 0  # all that feature 3 has
  return {
    "bias": rng.normal(size=L).astype(np.float32),
    "label_rows": tensors_lib.Made(
      rows.shape, rows.dtype, lambda a, b: rows[a:b]
    ),
    "starts": np.concatenate([[0], np.cumsum(counts)]),
    "labels": np.concatenate(columns).astype(np.uint16),
    "values": values,
  }


@pytest.fixture(scope="module")
def full(tmp_path_factory):
  return written(tensors(), tmp_path_factory.mktemp("full"))


def written(made, directory):
  """Arrays as they are read again."""
  path = directory / "weights.safetensors"
  tensors_lib.write(path, made)
  assert path.stat().st_size == tensors_lib.file_bytes(made)
  return reader.read_tensors(path)


# Of int8 half a step; of the others half of the last bit.
@pytest.mark.parametrize(
  ("dtype", "of_greatest", "of_itself"),
  [
    ("int8", 0.5 / 127, 0),
    ("fp8", 2.0**-10 / 448, 2.0**-4),
    ("bfloat16", 0, 2.0**-8),
    ("float32", 0, 0),
  ],
)
def test_numbers_are_near(full, dtype, of_greatest, of_itself, tmp_path):
  found = written(compress.narrowed(tensors(), dtype), tmp_path)
  np.testing.assert_array_equal(found["bias"], full["bias"])
  own = reader.decoded(found["label_rows"], found.get("label_rows.scale"))
  wanted = full["label_rows"]
  most = np.abs(wanted).max(1, keepdims=True)
  bound = of_greatest * most + of_itself * np.abs(wanted)
  assert (np.abs(own - wanted) <= bound * (1 + 1e-5)).all()
  counts = np.diff(full["starts"])
  scale = found.get("scale")
  each = None if scale is None else np.repeat(scale, counts)
  own, wanted = reader.decoded(found["values"], each), full["values"]
  for part in map(slice, full["starts"][:-1], full["starts"][1:]):
    if part.stop > part.start:
      bound = of_greatest * np.abs(wanted[part]).max()
      bound = bound + of_itself * np.abs(wanted[part])
      assert (np.abs(own - wanted)[part] <= bound * (1 + 1e-5)).all()


def test_the_smallest_weights_are_dropped(full):
  found = compress.pruned(tensors(), 0.5)
  kept = np.abs(full["values"]) > np.median(np.abs(full["values"]))
  np.testing.assert_array_equal(found["values"], full["values"][kept])
  np.testing.assert_array_equal(found["labels"], full["labels"][kept])
  for feature, (first, last) in enumerate(
    zip(found["starts"][:-1], found["starts"][1:])
  ):
    part = slice(*full["starts"][feature : feature + 2])
    wanted = full["values"][part][kept[part]]
    np.testing.assert_array_equal(found["values"][first:last], wanted)


@pytest.mark.parametrize("dtype", compress.DTYPES)
def test_a_file_is_as_small_as_was_asked(dtype):
  size = tensors_lib.file_bytes(compress.narrowed(tensors(), dtype))
  assert compress.share_for(tensors(), dtype, size) == 0
  share = compress.share_for(tensors(), dtype, size - 20)
  smaller = compress.narrowed(compress.pruned(tensors(), share), dtype)
  assert tensors_lib.file_bytes(smaller) <= size - 20
  with pytest.raises(config_lib.ConfigError, match=r"max_bytes is 600, and .*"):
    compress.share_for(tensors(), dtype, 600)


def test_a_model_without_sparse_weights_has_none_to_drop():
  dense = {"label_rows": tensors()["label_rows"]}
  with pytest.raises(config_lib.ConfigError, match="head.wide is False"):
    compress.pruned(dense, 0.5)
