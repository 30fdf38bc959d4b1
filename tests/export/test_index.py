"""Networks whose label rows alone make the scores, and indexes of them."""

import json

import numpy as np
import pytest

from tests.export import models
import xlj
from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import store
from xlj.export import export
from xlj.export import index as index_lib
from xlj.export import measure
from xlj.inference import predictor

ALONE = {"head__wide": False, "neighbours__count": 0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return models.write_run(tmp_path_factory.mktemp("run"), "network", **ALONE)


@pytest.fixture
def held(monkeypatch):
  """Rows to measure with, which no file has."""
  labels = csr_lib.Csr.from_rows([[i % models.L] for i in range(40)], models.L)
  rows = csr_lib.Csr.from_scipy(models.rows(40, seed=7))
  data = store.Split(rows, labels, None, "held", "0")
  about = {"ks": [1], "num_labels": models.L}
  found = measure.HeldOut(data, np.arange(40), about)
  monkeypatch.setattr(measure, "held_out", lambda *_: found)
  monkeypatch.setattr(measure.HeldOut, "figures", lambda *_: {"P@1": 50.0})
  return found


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_label_rows_are_searched_as_they_are_stored(run, tmp_path, dtype):
  export.export(run, tmp_path / "model", dtype=dtype)
  model = xlj.load(tmp_path / "model")
  assert (
    model.label_rows.values.dtype.itemsize == {"f": 4, "b": 2, "i": 1}[dtype[0]]
  )
  rows, tolerance = models.rows(70), {"float32": 1e-4}.get(dtype, 0.1)
  restored = predictor.load(run)
  each = [[i % models.L] for i in range(70)]
  for asked in (
    {"k": models.L},
    {"k": 3, "exclude": [1, 4]},
    {"k": 3, "exclude": each, "among": [0, 3, 4, 7, 9, 11]},
    {"k": 2, "among": each},
  ):
    found = model.topk(rows, **asked)
    wanted = restored.topk(rows, **asked)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found[1] >= 0, wanted[1] >= 0)
    if dtype == "float32":
      np.testing.assert_array_equal(found[1], wanted[1])


def test_an_index_is_built_and_used_when_asked_for(run, held, tmp_path):
  manifest = export.export(run, tmp_path / "model", dtype="int8", index=0.8)
  said = manifest["index"]
  assert said["recall"] >= 0.8 and said["k"] == 10
  assert 1 <= said["probes"] <= said["lists"] == 4
  assert "index/codes.npy" in manifest["files"]
  exact = xlj.load(tmp_path / "model").topk(held.data.features, 10)
  index = xlj.load(tmp_path / "model", probes=0).topk(held.data.features, 10)
  hits = (index[1][:, :, None] == exact[1][:, None, :]).any(1)
  assert hits.mean() == pytest.approx(said["recall"])
  every = xlj.load(tmp_path / "model", probes=4).topk(held.data.features, 10)
  np.testing.assert_array_equal(every[1], exact[1])
  with pytest.raises(ValueError, match=r"probes is 5; it must be .* \[0, 4\]"):
    xlj.load(tmp_path / "model", probes=5)
  with pytest.raises(ValueError, match="is no exported model with an index"):
    xlj.load(run, probes=1)
  with pytest.raises(config_lib.ConfigError, match="name some by --rows"):
    index_lib.write(tmp_path / "model", None, 0.95)


@pytest.mark.parametrize("library", ["faiss", "usearch"])
def test_the_index_may_be_of_another_library(run, held, tmp_path, library):
  manifest = export.export(
    run, tmp_path / "model", dtype="float32", index=0.9, index_library=library
  )
  said = manifest["index"]
  assert said["library"] == library and said["recall"] >= 0.9
  exact = xlj.load(tmp_path / "model").topk(held.data.features, 10)
  index = xlj.load(tmp_path / "model", probes=0).topk(held.data.features, 10)
  hits = (index[1][:, :, None] == exact[1][:, None, :]).any(1)
  assert hits.mean() == pytest.approx(said["recall"])


def test_what_has_no_index_is_refused(run, tmp_path, held):
  export.export(run, tmp_path / "model", dtype="fp8")
  with pytest.raises(ValueError, match="has no index; export it again, with"):
    xlj.load(tmp_path / "model", probes=1)
  with pytest.raises(config_lib.ConfigError, match="index is for networks"):
    index_lib.write(tmp_path / "model", held, 0.95)
  with pytest.raises(config_lib.ConfigError, match="index is 95; give the"):
    index_lib.write(tmp_path / "model", held, 95.0)
  assert (
    json.loads((tmp_path / "model" / "manifest.json").read_text())["index"]
    is None
  )
