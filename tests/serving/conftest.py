import pytest

from tests.inference import test_predictor
from tests.serving import servers

NAMES = ("<script>alert(1)</script>", '"quoted", & more', "a\\b", "ü😀\x01")


def write_run(workdir):
  """A linear run of 12 features and 13 labels, with names."""
  test_predictor.write_run(workdir, dense=False)
  names = [*NAMES, *(f"label {i}" for i in range(len(NAMES), 13))]
  (workdir / "labels.txt").write_text("".join(f"{name}\n" for name in names))
  return workdir


@pytest.fixture(scope="package")
def run_dir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def server(run_dir):
  """Without a token; tests leave it as it is."""
  with servers.running({"first": run_dir}) as made:
    yield made
