"""Exported models answer as their runs do, and say what is wrong with them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse

from tests.export import models
import xlj
from xlj.data import csr as csr_lib
from xlj.export import export
from xlj.export import host_loops
from xlj.export import model as model_lib
from xlj.export import reader
from xlj.export import scores as scores_lib
from xlj.inference import answers
from xlj.inference import label_files
from xlj.inference import predict
from xlj.inference import predictor
from xlj.text import words

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=["linear", "network"])
def pair(request, tmp_path_factory):
  """A run, and the directory of its exported model."""
  root = tmp_path_factory.mktemp(request.param)
  run = models.write_run(root, request.param)
  export.export(run, root / "model")
  return predictor.load(run), root / "model"


@pytest.fixture
def interpreted(monkeypatch):
  """Loops that are not compiled, which takes seconds for each type."""
  for name, loop in list(vars(host_loops).items()):
    if hasattr(loop, "py_func"):
      monkeypatch.setattr(host_loops, name, loop.py_func)


def assert_same(found, wanted):
  np.testing.assert_allclose(found[0], wanted[0], **CLOSE)
  np.testing.assert_array_equal(found[1], wanted[1])


def test_answers_are_those_of_the_run(pair):
  run, directory = pair
  model = xlj.load(directory)
  assert isinstance(model, model_lib.Exported)
  rows = models.rows(150)  # enough for threads
  one_each = [[i % models.L] for i in range(150)]
  several = [sorted({i % 5, i % models.L, 12}) for i in range(150)]
  for asked in (
    {},
    {"k": models.L},
    {"k": 3, "threshold": float(np.median(run.topk(rows, 3)[0]))},
    {"exclude": [1, 4]},
    {"exclude": range(1, models.L)},
    {"exclude": one_each, "among": [0, 3, 7, 9]},
    {"among": several, "k": 4},
    {"among": several, "exclude": [12], "k": 4},
  ):
    asked = {k: [*v] if isinstance(v, range) else v for k, v in asked.items()}
    assert_same(model.topk(rows, **asked), run.topk(rows, **asked))
  of_run = predictor.load(run.workdir, predict={"exclude_seen": True})
  model.manifest["config"]["predict.exclude_seen"] = True
  assert_same(model.topk(rows), of_run.topk(rows))
  assert_same(model.topk(rows, exclude=[1]), of_run.topk(rows, exclude=[1]))
  assert (model.num_labels, model.num_ids) == (run.num_labels, run.num_ids)
  assert (model.input, model.num_features) == (run.input, run.num_features)
  assert model.names([[0, -1]]) == run.names([[0, -1]])
  np.testing.assert_array_equal(model.label_counts(), run.label_counts())


def test_rows_of_any_form(pair):
  run, directory = pair
  model = xlj.load(directory)
  rows = models.rows(3)
  wanted = run.topk(rows, 3)
  dicts = [
    dict(zip(row.indices.tolist(), row.data.tolist()))
    for row in (rows[i : i + 1].tocsr() for i in range(3))
  ]
  for form in (dicts, iter(dicts), rows.toarray(), rows.tocoo()):
    assert_same(model.topk(form, 3), wanted)
  for wrong in (
    [{models.F: 1.0}],
    [{-1: 1.0}],
    [{0: float("nan")}],
    [{0: 1.0, 2**40: 1.0}],
    [{0: 1e300}],
    [{"a": 1.0}],
    [{0: "b"}],
    [{True: 1.0}],
  ):
    with pytest.raises(ValueError) as theirs:
      run.topk(wrong)
    with pytest.raises(ValueError) as ours:
      model.topk(wrong)
    assert str(ours.value) == str(theirs.value)


def test_a_row_without_finite_scores_does_not_cost_the_others(pair):
  _, directory = pair
  path = directory / reader.MANIFEST
  manifest = json.loads(path.read_text())
  unscaled = manifest | {"weighting": {"kind": "tfidf", "l2": False}}
  path.write_text(json.dumps(unscaled))
  model = xlj.load(directory)
  path.write_text(json.dumps(manifest))
  large = float(np.finfo(np.float32).max)
  rows = [{0: 1.0}, {models.F - 1: large}, {}, {0: large, 1: large, 2: large}]
  with np.errstate(all="ignore"):
    _, ids, wrong = model.answers(rows, 2)
  assert set(wrong) == {1, 3}
  assert wrong[1] == answers.OVERFLOW and wrong[3] == answers.NO_SCORE
  assert (ids[[0, 2]] >= 0).all()


def test_why_and_what_is_near(pair):
  run, directory = pair
  model = xlj.load(directory)
  row = {0: 1.0, 3: 2.0, 7: 1.0}
  for label in (0, 5):
    for found, wanted in zip(
      model.neighbours_of(label, 4), run.neighbours_of(label, 4)
    ):
      np.testing.assert_allclose(found, wanted, **CLOSE)
  for found, wanted in zip(model.why(row, [2, 3], 3), run.why(row, [2, 3], 3)):
    assert [f for f, _ in found] == [f for f, _ in wanted]
    values = [[value for _, value in each] for each in (found, wanted)]
    np.testing.assert_allclose(*values, **CLOSE)
  as_csr = csr_lib.Csr.from_rows([[0, 3, 7]], models.F, [[1.0, 2.0, 1.0]])
  for form in ([row], as_csr):  # as a server has them
    assert model.why(form, [2, 3], 3) == model.why(row, [2, 3], 3)
    assert model.near_rows(form, 3) == model.near_rows(row, 3)
  with pytest.raises(ValueError, match="2 examples; give one alone"):
    model.why([row, row], [2], 3)
  ours, theirs = model.near_rows(row, 3), run.near_rows(row, 3)
  assert [r[::2] for r in ours] == [r[::2] for r in theirs]
  with pytest.raises(ValueError, match="there are ids 0 to 12"):
    model.neighbours_of(models.L, 2)


def test_the_command_predicts_with_either(pair, tmp_path):
  run, directory = pair
  lines = ["0,1 0:1 3:2.5", "2 7:1", "1 11:3 2:1"]
  (tmp_path / "rows.txt").write_text("\n".join(lines) + "\n")
  (tmp_path / "no.txt").write_text("label 3\n4\n")
  asked = label_files.Asked(exclude=str(tmp_path / "no.txt"))
  found = []
  for workdir in (run.workdir, directory):
    out = tmp_path / f"{len(found)}.jsonl"
    args = str(workdir), str(tmp_path / "rows.txt"), str(out)
    predict.predict(*args, k=3, asked=asked)
    found.append([json.loads(line) for line in out.read_text().splitlines()])
  for ours, theirs in zip(*found, strict=True):
    np.testing.assert_allclose(
      ours.pop("scores"), theirs.pop("scores"), atol=2e-5
    )
    assert ours == theirs and not {3, 4} & {*ours["labels"]}
  with pytest.raises(ValueError, match="is an exported model"):
    xlj.load(directory, which="last")


def test_the_reader_needs_neither_xlj_nor_what_else_it_needs(pair, tmp_path):
  _, directory = pair
  rows = models.rows(6)
  k, lines = 4, []
  for i in range(6):
    row = rows[i : i + 1].tocsr()
    pairs = zip(map(str, row.indices.tolist()), row.data.tolist())
    lines.append(json.dumps(dict(pairs)))
  script = (
    (directory / "reader.py").read_text()
    if (directory / "reader.py").exists()
    else open(reader.__file__).read()
  )
  (directory / "reader.py").write_text(script)
  blocked = "import sys, runpy\n" + "".join(
    f"sys.modules[{name!r}] = None\n"
    for name in ("xlj", "jax", "numba", "safetensors", "absl")
  )
  code = (
    f"{blocked}sys.argv = ['reader.py', '--k={k}']\n"
    "runpy.run_path('reader.py', run_name='__main__')"
  )
  done = subprocess.run(
    [sys.executable, "-I", "-c", code],
    cwd=directory,
    input="\n".join(lines),
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  found = [json.loads(line) for line in done.stdout.splitlines()]
  model = xlj.load(directory)
  wanted = model.topk(rows, k)
  assert_same(
    ([f["scores"] for f in found], [f["labels"] for f in found]), wanted
  )
  assert [f["names"] for f in found] == model.names(wanted[1])


def test_loading_imports_no_jax():
  code = (
    "import sys, xlj; xlj.load\n"
    "print({'jax', 'ml_collections', 'orbax', 'tokenizers'} & {*sys.modules})"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "set()"


def test_texts(tmp_path, interpreted):
  model = models.write_run(tmp_path / "run", "linear")
  export.export(model, tmp_path / "model")
  options = words.Options(ngrams=(1, 1), char_ngrams=(0, 0))
  text = "a b c d e f g h i j k l"
  made = words.fit([text], options)
  (tmp_path / "model" / "featurizer").mkdir()
  made.save(tmp_path / "model" / "featurizer")
  path = tmp_path / "model" / reader.MANIFEST
  manifest = json.loads(path.read_text())
  manifest["input"], manifest["config"]["data.text"] = "texts", "words"
  path.write_text(json.dumps(manifest))
  loaded = xlj.load(tmp_path / "model")
  assert loaded.feature_names == text.split()
  assert_same(
    loaded.topk(["a C c ü", {"text": "l"}]),
    loaded.topk([{0: 1, 2: 2}, {11: 1}]),
  )
  assert_same(loaded.topk([{"c": 2, "l": 1}]), loaded.topk([{2: 2, 11: 1}]))


def test_labels_of_equal_scores_are_in_the_order_of_rows(interpreted):
  rng = np.random.default_rng(0)
  for count, k in ((1, 1), (5, 5), (200, 7), (200, 200), (130, 64)):
    z = rng.integers(0, max(2, count // 4), count).astype(np.float32)
    only = np.flatnonzero(rng.random(count) < 0.7)
    for among, rows in ((False, np.arange(count)), (True, only)):
      scores, found = np.empty(k, np.float32), np.empty(k, np.int32)
      host_loops.best(z, among, rows, scores, found)
      wanted = rows[np.argsort(-z[rows], kind="stable")][:k]
      np.testing.assert_array_equal(found[: len(wanted)], wanted)
      np.testing.assert_array_equal(scores[: len(wanted)], z[wanted])
      assert (found[len(wanted) :] == -1).all()
      assert (scores[len(wanted) :] == -np.inf).all()


def stored(numbers, dtype):
  """Numbers `[R, C]` as they are stored, their scale, and what they are."""
  if dtype == "bfloat16":
    bits = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    return bits, None, reader.decoded(bits)
  largest = np.abs(numbers).max(1).astype(np.float32)
  if dtype == "int8":
    scale = largest / 127
    codes = np.round(numbers / scale[:, None]).astype(np.int8)
  else:
    scale, table = largest / 448, reader.float8_table()
    distance = np.abs(numbers[..., None] / scale[:, None, None] - table)
    codes = np.nanargmin(distance, -1).astype(np.uint8)
  return codes, scale, reader.decoded(codes, scale)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8"])
def test_shorter_numbers(dtype, interpreted):
  rng = np.random.default_rng(2)
  dim, num_features, num_labels = 3, 6, 8
  table, label_rows, weights = (
    rng.normal(size=shape).astype(np.float32)
    for shape in (
      (num_features, dim),
      (num_labels, dim),
      (num_features, num_labels),
    )
  )
  tensors, exact = {"bias": np.zeros(num_labels, np.float32)}, {}
  for name, numbers in (
    ("encoder.table", table),
    ("label_rows", label_rows),
    ("values", weights),
  ):
    codes, scale, exact[name] = stored(numbers, dtype)
    tensors[name] = codes.ravel() if name == "values" else codes
    if scale is not None:
      tensors["scale" if name == "values" else f"{name}.scale"] = scale
  tensors["starts"] = np.arange(num_features + 1) * num_labels
  tensors["labels"] = np.tile(
    np.arange(num_labels, dtype=np.uint16), num_features
  )
  manifest = {
    "num_labels": num_labels,
    "num_features": num_features,
    "weighting": {"kind": "none", "l2": False},
    "neighbours": None,
    "config": {
      "encoder.activation": "",
      "encoder.hidden": [],
      "encoder.input_scale": 1.0,
      "encoder.scale": 2.0,
    },
  }
  x = scipy.sparse.random_array(
    (4, num_features), density=0.5, rng=rng, dtype=np.float32
  )
  h = x @ exact["encoder.table"]
  h *= 2 / np.sqrt((h * h).sum(1, keepdims=True) + 1e-6)
  wanted = h @ exact["label_rows"].T + x @ exact["values"]
  scores = scores_lib.Scores(manifest, tensors)
  rows, _ = scores.weighted(csr_lib.Csr.from_scipy(x))
  found, ids = scores.topk(rows, num_labels, scores_lib.Asked())
  np.testing.assert_allclose(
    np.take_along_axis(wanted, ids, 1), found, rtol=1e-5, atol=1e-5
  )
  assert (np.diff(found) <= 0).all()


def damage(directory, name):
  """Changes a copy of a model; returns what the message is to say."""
  weights, manifest = directory / reader.WEIGHTS, directory / reader.MANIFEST
  if name == "truncated":
    weights.write_bytes(weights.read_bytes()[:-4])
    return rf"{weights}: found \d+ bytes, expected \d+; copy"
  if name == "missing":
    weights.unlink()
    return f"{weights}: no such file"
  if name == "no manifest":
    manifest.unlink()
    return f"{manifest}: no such file; give a directory that xlj export"
  if name == "damaged manifest":
    manifest.write_text("{")
    return f"{manifest}: a damaged file"
  if name == "newer":
    said = json.loads(manifest.read_text()) | {"format": 2}
    manifest.write_text(json.dumps(said))
    return "found format 2, expected 1 at most; use a newer xlj"
  raw = bytearray(weights.read_bytes())
  if name == "header":
    raw[9] ^= 255
    weights.write_bytes(raw)
    return f"{weights}: a damaged file"
  raw[-1] ^= 255
  weights.write_bytes(raw)
  return f"{weights}: found the sha256"


@pytest.mark.parametrize("pair", ["linear"], indirect=True)
@pytest.mark.parametrize(
  "name",
  ["truncated", "missing", "no manifest", "damaged manifest", "newer"]
  + ["header", "one bit"],
)
def test_damaged_models_are_refused(name, pair, tmp_path):
  directory = tmp_path / "model"
  shutil.copytree(pair[1], directory)
  (directory / "README.md").write_text("filled in")
  wanted = damage(directory, name)
  with pytest.raises(ValueError, match=wanted):
    model_lib.Exported(directory, verify=name == "one bit")
  if name != "one bit":
    with pytest.raises(ValueError, match=wanted):
      xlj.load(directory)
