"""The artifact of the last release, which this version has to read.

It is made for a release, once, by: python -m tests.export.test_release
"""

import json
from pathlib import Path
import shutil
import tempfile

import numpy as np
import pytest

from tests.export import test_artifact
from xlj.export import artifact
from xlj.export import run as run_lib

DIRECTORY = Path(__file__).parent / "release"
ANSWERS = DIRECTORY / "answers.json"


def test_an_artifact_of_the_last_release_answers():
  pytest.importorskip("flatbuffers")
  found = run_lib.Artifact(DIRECTORY / artifact.FOLDER)
  rows = test_artifact.rows_for("spherical", 2)[1]
  scores, labels = found.topk(rows)
  wanted = json.loads(ANSWERS.read_text())
  np.testing.assert_allclose(scores, wanted["scores"], rtol=1e-4, atol=1e-4)
  np.testing.assert_array_equal(labels, wanted["labels"])


def main():
  """Makes it again, with what it answers now."""
  shutil.rmtree(DIRECTORY, ignore_errors=True)
  DIRECTORY.mkdir()
  with tempfile.TemporaryDirectory() as workdir:
    run = test_artifact.written_run("spherical", Path(workdir))
    artifact.write(run, DIRECTORY, run.config, test_artifact.K)
  found = run_lib.Artifact(DIRECTORY / artifact.FOLDER)
  scores, labels = found.topk(test_artifact.rows_for("spherical", 2)[1])
  answers = {"scores": scores.tolist(), "labels": labels.tolist()}
  ANSWERS.write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
  main()
