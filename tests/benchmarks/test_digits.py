"""The digits benchmark: its data, and that the product head keeps up."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import digits
from tests import runs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "digits.py"


def test_numbers_are_made_of_their_digits():
  train, test = digits.pools()
  assert len(train.values) + len(test.values) == 1797
  images, labels = test.numbers(np.random.default_rng(0), 50, 3)
  own = {}
  for image, value in zip(test.images, test.values):
    own.setdefault(image.tobytes(), set()).add(value)
  for image, label in zip(images, labels):
    for part, value in zip(image.reshape(3, 64), f"{label:03}"):
      assert int(value) in own[part.tobytes()]
  shared = {image.tobytes() for image in train.images} & own.keys()
  assert not shared


@pytest.mark.slow
def test_the_product_head_learns_as_the_full_softmax_does(tmp_path):
  file = tmp_path / "out.json"
  job = runs.launch(SCRIPT, "--seeds=1", "--epochs=4", f"--json={file}")
  status, out, err = runs.finish(job, timeout=None)
  assert not status, err
  results = json.loads(out.splitlines()[-1])
  assert results == json.loads(file.read_text())
  assert results["product"]["mean"] > results["dense"]["mean"] - 0.01 > 0.8
  assert results["dense"]["head_parameters"] == 128 * 257  # padded labels
  assert results["product"]["head_parameters"] == 20 * 257
