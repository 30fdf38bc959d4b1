"""Exported models: their files, and what is in them, against the run."""

import hashlib
import json
import types

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
from xlj.export import measure
from xlj.export import tensors as tensors_lib
from xlj.inference import predictor


@pytest.fixture(scope="module", params=["linear", "network"])
def exported(request, tmp_path_factory):
  """The kind, a run and its exported model."""
  root = tmp_path_factory.mktemp(request.param)
  run = models.write_run(root, request.param)
  export.export(run, root / "model")
  return request.param, run, root / "model"


linear = pytest.mark.parametrize("exported", ["linear"], indirect=True)


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


@linear
def test_an_exported_model_is_replaced_and_nothing_else_is(exported, tmp_path):
  run, output = exported[1], tmp_path / "model"
  export.export(run, output)
  (output / "stale.txt").write_text("of an earlier version")
  export.export(run, output)
  assert not (output / "stale.txt").exists()
  with pytest.raises(config_lib.ConfigError, match="holds no exported model"):
    export.export(run, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


@linear
def test_what_fails_leaves_what_was_there(exported, tmp_path):
  for output in (exported[-1], tmp_path / "new"):
    before = sorted(output.iterdir()) if output.exists() else None
    with pytest.raises(OSError, match="full"):
      with export.replacing(output) as partial:
        (partial / export.WEIGHTS).write_text("half")
        raise OSError("full")
    after = sorted(output.iterdir()) if output.exists() else None
    assert after == before


def test_two_exports_at_a_time_do_not_mix(tmp_path):
  with export.replacing(tmp_path / "model"):
    with pytest.raises(config_lib.ConfigError, match="model"):
      with export.replacing(tmp_path / "model"):
        raise AssertionError("both have it")
  assert not (tmp_path / "model").exists()


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


class Measured:
  """Rows with which models have figures that are known."""

  def __init__(self, losses):
    self.losses, self.rows = losses, range(10)
    self.data = types.SimpleNamespace(name="rows of a test")

  def figures(self, model):
    manifest = getattr(model, "manifest", None)
    lost = self.losses[manifest["dtype"]] if manifest else 0
    return {"P@1": 50.0 - lost}


@linear
@pytest.mark.parametrize(
  ("losses", "dtype"),
  [
    ({"int8": 0.2}, "int8"),
    ({"int8": 0.3, "bfloat16": 0.1}, "bfloat16"),
    ({"int8": 0.3, "bfloat16": 0.3, "float32": 0.0}, "float32"),
  ],
)
def test_weights_are_as_narrow_as_the_loss_allows(
  losses, dtype, exported, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(measure, "held_out", lambda *_: Measured(losses))
  made = export.export(exported[1], tmp_path / "model")
  assert made["dtype"] == dtype
  assert made["measured"]["after"]["P@1"] == 50.0 - losses[dtype]
  assert capsys.readouterr().out.count(" MB ") == 1 + len(losses)


@linear
def test_what_loses_too_much_is_not_written(exported, tmp_path, monkeypatch):
  lost = Measured({"int8": 0.4})
  monkeypatch.setattr(measure, "held_out", lambda *_: lost)
  output = tmp_path / "model"
  with pytest.raises(config_lib.ConfigError, match=r"0.2 points \(int8 0.40\)"):
    export.export(exported[1], output, dtype="int8")
  assert not output.exists()
  export.export(exported[1], output, dtype="int8", max_loss=0.5)


@linear
def test_rows_of_a_file_measure_the_loss(exported, tmp_path):
  _, run, _ = exported
  _, ids = predictor.load(run).topk(models.rows(), 1)
  x = models.rows()
  lines = []
  for row, (label,) in enumerate(ids):
    part = slice(*x.indptr[row : row + 2])
    pairs = zip(x.indices[part], x.data[part])
    lines.append(" ".join([str(label), *(f"{i}:{v:g}" for i, v in pairs)]))
  file = tmp_path / "rows.txt"
  file.write_text("\n".join(lines) + "\n")
  made = export.export(
    run, tmp_path / "model", dtype="bfloat16", rows=str(file), max_loss=30
  )
  assert made["measured"]["before"]["P@1"] == 100
  assert made["measured"]["rows"] == models.N
  card = (tmp_path / "model" / "README.md").read_text()
  assert "| the run | 100.00 |" in card and "weights are bfloat16" in card


def test_a_run_without_its_data_is_exported_unmeasured(tmp_path, caplog):
  run = models.write_run(tmp_path, "linear", data__validation=0.1)
  made = export.export(run, tmp_path / "model")
  assert made["dtype"] == "float32" and made["measured"] is None
  assert "say where the data are" in caplog.text
  with pytest.raises(config_lib.ConfigError, match="no directory"):
    export.export(run, tmp_path / "model", data_dir=str(tmp_path / "none"))


@linear
def test_a_bound_needs_rows(exported, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="max_loss is 1, and there"):
    export.export(exported[1], tmp_path / "model", max_loss=1)


@linear
@pytest.mark.parametrize(
  ("asked", "why"),
  [
    ({"dtype": "int4"}, "dtype is 'int4'; use one of auto, int8"),
    ({"prune": 1.0}, "prune is 1; give the share"),
    ({"max_bytes": 9, "prune": 0.5}, "max_bytes is 9 and prune 0.5"),
    ({"max_loss": -1.0}, "max_loss is -1; give points"),
    ({"rows": "testing"}, "rows is testing; give one of"),
  ],
)
def test_options_that_mean_nothing_are_refused(asked, why, exported, tmp_path):
  with pytest.raises(config_lib.ConfigError, match=why):
    export.export(exported[1], tmp_path / "model", **asked)
