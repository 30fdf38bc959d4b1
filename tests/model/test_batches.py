"""What the model reads: of batches of a split, and of a caller's examples."""

import numpy as np
import pytest

from tests import runs
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import pipeline
from xlj.data import store
from xlj.model import batches

F, L = 12, 13
COUNTS = np.random.default_rng(3).permutation(L) + 1
ORDER = label_order.LabelOrder.by_frequency(COUNTS)


def make_config(**fields):
  config = runs.resolved(eval__batch_size=8)
  config.data.num_features, config.data.dense = F, False
  config.data.update(fields)
  return config


def test_inputs_have_the_labels_of_the_head():
  labels = np.array([[0, 5, -1], [12, -1, -1]])
  inputs = batches.to_inputs(
    pipeline.Batch(None, np.zeros((2, F)), labels, np.ones(2), np.arange(2)),
    ORDER,
  )
  np.testing.assert_array_equal(ORDER.to_data(inputs.label_ids), labels)
  assert (inputs.label_ids == -1).sum() == 3


def test_one_pass_meets_every_row_once():
  matrix = csr_lib.Csr.from_rows([[i % L] for i in range(21)], L)
  split = store.Split(matrix, matrix, None, "made", "0")
  found = list(batches.of_split(split, None, ORDER, batch_size=8))
  assert [len(inputs.rows) for inputs in found] == [8, 8, 8]
  rows = np.concatenate([inputs.rows for inputs in found])
  np.testing.assert_array_equal(rows, [*range(21), -1, -1, -1])


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_few_shapes_of_any_number_of_examples(num_devices):
  features = np.ones((19, F), np.float32)
  found = list(batches.of_features(make_config(), features, None, num_devices))
  assert [count for count, _ in found] == [8, 8, 3]
  for count, inputs in found:
    size, width = inputs.feature_values.shape
    assert width == 16 and size >= count and size % num_devices == 0
    assert inputs.feature_values.sum() == count * F


def test_bytes_stay_bytes_and_images_become_rows():
  config = make_config(dense=True)
  images = np.full((3, 2, 2, 3), 7, np.uint8)
  ((count, inputs),) = batches.of_features(config, images, None, 1)
  assert count == 3 and inputs.feature_ids is None
  assert inputs.feature_values.dtype == np.uint8
  assert inputs.feature_values.shape == (4, F)
