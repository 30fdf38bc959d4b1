"""Exported models: their files, and what is in them, against the run."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse

from tests.export import models
from xlj import config as config_lib
from xlj.data import csr as csr_lib
from xlj.data import names as names_lib
from xlj.data import weighting as weighting_lib
from xlj.export import export
from xlj.export import tensors as tensors_lib
from xlj.inference import predictor


@pytest.fixture(scope="module", params=["linear", "network"])
def exported(request, tmp_path_factory):
  """The kind, a run and its exported model."""
  root = tmp_path_factory.mktemp(request.param)
  run = models.write_run(root, request.param)
  export.export(run, root / "model")
  return request.param, run, root / "model"


def scores(model):
  """The logits `[n, L]` of `models.rows()`, by label, in float64."""
  manifest = json.loads((model / export.MANIFEST).read_text())
  found = safetensors.numpy.load_file(model / export.WEIGHTS)
  weighting = weighting_lib.Weighting(**manifest["weighting"], idf=found["idf"])
  raw = models.rows()
  x = weighting(csr_lib.Csr.from_scipy(raw)).to_scipy().astype(np.float64)
  logits = np.tile(found["bias"].astype(np.float64), (x.shape[0], 1))
  by_feature = found["values"], found["labels"], found["starts"]
  logits += x @ scipy.sparse.csr_array(by_feature, (models.F, models.L))
  if manifest["kind"] == "network":
    config = manifest["config"]
    h = config["encoder.input_scale"] * (x @ found["encoder.table"])
    h = np.maximum(h + found["encoder.bias"], 0)
    for i in range(len(config["encoder.hidden"])):
      name = f"encoder.layers.{i}"
      h = np.maximum(h @ found[f"{name}.kernel"] + found[f"{name}.bias"], 0)
    logits += h @ found["label_rows"].T
    logits += near(x, found, manifest["neighbours"])
  by_label = np.zeros_like(logits)
  by_label[:, found["label_ids"]] = logits
  return by_label


def near(x, found, settings):
  """What labels of near training rows gain."""
  names = "values", "rows", "starts"
  kept = scipy.sparse.csr_array(
    tuple(found[f"neighbours.{name}"] for name in names)
  )
  length = np.sqrt(x.multiply(x).sum(1))
  cosines = (x @ kept).toarray() / np.maximum(length, 1e-30)[:, None]
  ends = found["neighbours.label_starts"]
  gain = np.zeros((len(cosines), models.L))
  for i, row in enumerate(cosines):
    best = np.argsort(-row, kind="stable")[: settings["count"]]
    share = np.exp((row[best] - row[best[0]]) / settings["temperature"])
    share *= (row[best[0]] > 0) / share.sum()
    for m, s in zip(best, share):
      gain[i, found["neighbours.labels"][ends[m] : ends[m + 1]]] += s
  return settings["weight"] * np.log1p(gain / settings["small"])


def test_the_arrays_are_those_of_the_run(exported):
  kind, run, model = exported
  loaded = predictor.load(run)
  top, ids = loaded.topk(models.rows(), models.L)
  np.testing.assert_allclose(
    np.take_along_axis(scores(model), ids, 1), top, rtol=2e-5, atol=2e-5
  )
  manifest = json.loads((model / export.MANIFEST).read_text())
  assert manifest["kind"] == kind
  assert manifest["input"] == "sparse"
  assert names_lib.read_names(model / "labels.txt") == loaded.label_names


def test_the_manifest_lists_all_other_files(exported):
  model = exported[-1]
  files = json.loads((model / export.MANIFEST).read_text())["files"]
  found = {p.name for p in model.iterdir()} - {export.MANIFEST}
  assert found == set(files)
  for name, file in files.items():
    data = (model / name).read_bytes()
    assert file["bytes"] == len(data)
    assert file["sha256"] == hashlib.sha256(data).hexdigest()


def test_an_exported_model_is_replaced_and_nothing_else_is(exported, tmp_path):
  run, output = exported[1], tmp_path / "model"
  export.export(run, output)
  (output / "stale.txt").write_text("of an earlier version")
  export.export(run, output)
  assert not (output / "stale.txt").exists()
  with pytest.raises(config_lib.ConfigError, match="holds no exported model"):
    export.export(run, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_fails_leaves_what_was_there(exported, tmp_path):
  for output in (exported[-1], tmp_path / "new"):
    before = sorted(output.iterdir()) if output.exists() else None
    with pytest.raises(OSError, match="full"):
      with export.replacing(output) as partial:
        (partial / export.WEIGHTS).write_text("half")
        raise OSError("full")
    after = sorted(output.iterdir()) if output.exists() else None
    assert after == before


def test_what_cannot_be_exported_is_refused(tmp_path):
  run = models.write_run(tmp_path, "network")
  (run / "fusion.json").write_text("{}")
  with pytest.raises(config_lib.ConfigError, match="--workdir=.*words"):
    export.export(run, tmp_path / "model")


def test_tensors_are_read_by_safetensors_and_are_aligned(tmp_path):
  rng = np.random.default_rng(0)
  made = rng.normal(size=(70, 3)).astype(np.float32)
  tensors = {
    "bytes": np.arange(5, dtype=np.uint8),
    "made": tensors_lib.Made(made.shape, made.dtype, lambda a, b: made[a:b]),
    "none": np.zeros((0, 4), np.int64),
    "one": np.array(7, np.int32),
    "wide": np.arange(3),
  }
  path = tmp_path / "x.safetensors"
  tensors_lib.write(path, tensors)
  found = safetensors.numpy.load_file(path)
  assert found.keys() == tensors.keys()
  for name, array in tensors.items():
    wanted = made if name == "made" else array
    assert found[name].dtype == wanted.dtype
    np.testing.assert_array_equal(found[name], wanted)
  size = int.from_bytes(path.read_bytes()[:8], "little")
  assert (8 + size) % 64 == 0
