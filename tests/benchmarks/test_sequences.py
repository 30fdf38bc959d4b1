"""The loss over many items, of few, on all devices and on one."""

import numpy as np
import pytest

from tests import runs
from xlj import mesh
from xlj import sharding

sequences = runs.benchmark("sequences")


@pytest.mark.slow
def test_devices_do_not_matter(monkeypatch):
  found = [sequences.many_items(2048, 8)]
  monkeypatch.setattr(mesh, "make_mesh", sharding.one_device)
  found.append(sequences.many_items(2048, 1))
  assert 0 < found[0]["loss"] < np.log(2048)
  for name in ("loss", "gradient_norms"):
    np.testing.assert_allclose(*(each[name] for each in found), rtol=1e-5)
