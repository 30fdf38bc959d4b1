"""Checkpoints on a bucket, where an emulator of one is installed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests import processes
from tests import runs


@pytest.mark.skipif(
  not all(map(importlib.util.find_spec, ("gcsfs", "gcp_storage_emulator"))),
  reason="pip install gcsfs gcp-storage-emulator",
)
def test_a_bucket_is_as_good_as_a_directory():
  port = processes.free_port()
  address = f"http://127.0.0.1:{port}"
  variables = {
    "STORAGE_EMULATOR_HOST": address,  # of gcsfs
    "TENSORSTORE_GCS_HTTP_URL": address,
    "PYTHONPATH": os.pathsep.join(
      [str(runs.ROOT), os.environ.get("PYTHONPATH", "")]
    ),
  }
  done = subprocess.run(
    [sys.executable, "-m", "tests.checkpoint.bucket", str(port)],
    env=os.environ | variables,
    cwd=runs.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0 and "good" in done.stdout, done.stderr[-3000:]
