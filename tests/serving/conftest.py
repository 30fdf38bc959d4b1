import pytest

from tests.export import models
from tests.serving import servers
from xlj.export import export

NAMES = ("<script>alert(1)</script>", '"quoted", & more', "a\\b", "ü😀\x01")


def write_run(workdir):
  """A linear run of 12 features and 13 labels, with names."""
  models.write_run(workdir, "linear", data__weighting="tfidf")
  names = [*NAMES, *(f"label {i}" for i in range(len(NAMES), models.L))]
  (workdir / "labels.txt").write_text("".join(f"{name}\n" for name in names))
  return workdir


@pytest.fixture(scope="package")
def run_dir(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def exported(run_dir, tmp_path_factory):
  """The same run, exported."""
  directory = tmp_path_factory.mktemp("exported") / "model"
  export.export(run_dir, directory)
  return directory


@pytest.fixture(scope="package")
def server(run_dir, exported):
  """Without a token; tests leave it as it is."""
  with servers.running({"first": run_dir, "exported": exported}) as made:
    yield made
