"""Programs of JAX that answer as a run does, also where no xlj is."""

import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.sparse

from tests import cases
from tests import meshes
from tests import runs
from tests.model import test_devices
from xlj import config as config_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.config import families
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.export import artifact
from xlj.export import export
from xlj.export import model as model_of_export
from xlj.export import run as run_lib
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib

pytest.importorskip("flatbuffers")  # which JAX serialises with

F, L, K = test_devices.F, test_devices.L, 6
# Heads with a bag of features; then other encoders.
CASES = {
  **test_devices.HEADS,
  "weighted": {
    "data__weighting": "log_tfidf",
    "data__l2": True,
    "head__wide": True,
    "neighbours__count": 4,
  },
  "transformer": {
    "encoder__type": "transformer",
    "encoder__sizes__positions": 16,
    "encoder__sizes__depth": 1,
    "encoder__sizes__buckets": 8,
  },
  "features": {"encoder__hidden": (5,)},
  "vit": {"encoder__type": "vit", "encoder__depth": 1},
  "resnet": {"encoder__type": "resnet", "encoder__depth": 1},
}
_DENSE = ("features", "vit", "resnet")


def written_run(name, workdir):
  """A predictor of a run that nobody has trained; leaves its directory."""
  fields = {"encoder__dim": 8, "family": "network", "neighbours__count": 0}
  fields |= {"eval__batch_size": 16, "head__blocks": 8, **CASES[name]}
  if fields.get("head__type") == "mhs":  # its groups are its blocks
    del fields["head__blocks"]
  dense = name in _DENSE
  width = 48 if dense else F
  facts = families.DataFacts(
    *(9_000, width, L, 1.0, 8.0, dense, "counts", "x"),
    image=(4, 4, 3) if dense else (),
  )
  config = runs.resolved(facts, **fields)
  if config.head.wide:
    config.head.wide_pairs = test_devices.pairs(config)[1].shape[1]
  rng = np.random.default_rng(1)
  order = label_order.LabelOrder.of(rng.permutation(L))
  with meshes.mesh((1, 1)):
    model = model_lib.Model(config)
    by_row = None, None
    if config.head.order != "none":
      counts = np.arange(L, 0, -1, dtype=np.int32)
      by_row = model.by_row(order.data_ids, -1), model.by_row(counts, 0)
    state = model.init(
      sharding.replicate(jax.random.key(3)),
      *by_row,
      sharding.replicate(np.linspace(0.5, 2, width).astype(np.float32)),
    )
    if config.head.wide:
      state = model.with_pairs(state, *test_devices.pairs(config))
    state = jax.tree.map(lambda a: _noised(a, rng), state)
    with checkpointer.Checkpointer(workdir / checkpointer.DIRECTORY) as keeper:
      keeper.save(1, state.model, state.training, {"step": 1}, {"P@1": 1.0})
  (workdir / config_lib.FILE).write_text(config_lib.to_json(config))
  if config.neighbours.count:
    ids = [rng.permutation(L)[:n].tolist() for n in rng.integers(1, 4, 30)]
    neighbours_lib.Neighbours(
      csr_lib.Csr.from_scipy(
        scipy.sparse.random_array((30, F), density=0.2, rng=4, dtype=np.float32)
      ),
      csr_lib.Csr.from_rows(list(map(sorted, ids)), L),
      **config.neighbours,
    ).save(workdir)
  return predictor.load(workdir)


def _noised(a, rng):
  """Parameters that are zeros at the start would not be missed."""
  if not jax.numpy.issubdtype(a.dtype, jax.numpy.floating):
    return a
  noise = 0.1 * rng.standard_normal(a.shape)
  return jax.device_put((a + noise).astype(a.dtype), a.sharding)


def rows_for(name, count=11):
  """Raw rows, as a run and as an artifact take them."""
  rng = np.random.default_rng(0)
  if name in _DENSE:
    rows = rng.random((count, 48), np.float32)
    return rows, rows
  ids = [rng.permutation(F)[:n].tolist() for n in rng.integers(1, 13, count)]
  if name == "transformer":
    indptr = np.cumsum([0, *map(len, ids)])
    flat = np.concatenate(ids).astype(np.int32)
    return csr_lib.Csr(indptr, flat, np.ones(len(flat), np.float32), F), ids
  rows = [{i: float(rng.integers(1, 5)) for i in sorted(row)} for row in ids]
  return rows, rows


def assert_same(found, expected):
  """Scores and ids of two."""
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("name", cases.some(CASES, ()))
def test_it_answers_as_the_run(name, tmp_path):
  run = written_run(name, tmp_path)
  artifact.write(run, tmp_path, run.config, K)
  ours, theirs = rows_for(name)
  found = run_lib.Artifact(tmp_path / artifact.FOLDER)
  assert found.about["platforms"] == list(artifact.PLATFORMS)
  assert_same(found.topk(theirs), run.topk(ours, K))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The best labels that a run finds, and its artifact."""
  root = tmp_path_factory.mktemp("model")
  run = written_run("weighted", root)
  artifact.write(run, root, run.config, K)
  return run.topk(rows_for("weighted")[0], K), root / artifact.FOLDER


def test_it_answers_where_no_xlj_is(written, tmp_path):
  expected, folder = written
  alone = shutil.copytree(folder, tmp_path / "alone")
  for program in alone.glob("*.bin"):  # says nothing of the machine
    assert b".py" not in program.read_bytes()
  code = (
    "import runpy, sys; sys.modules['xlj'] = None; sys.argv[1:] = ['--k=4'];"
    f" runpy.run_path({str(alone / 'run.py')!r}, run_name='__main__')"
  )
  rows = rows_for("weighted")[1]
  done = subprocess.run(
    [sys.executable, "-c", code],
    input="".join(json.dumps(row) + "\n" for row in rows),
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr
  found = [json.loads(line) for line in done.stdout.splitlines()]
  found = [[row[name] for row in found] for name in ("scores", "labels")]
  assert_same(found, [a[:, :4] for a in expected])


def test_rows_of_a_file_and_few_rows(written, tmp_path):
  (scores, ids), folder = written
  rows = rows_for("weighted")[1]
  matrix = scipy.sparse.dok_array((len(rows), F), dtype=np.float32)
  for i, row in enumerate(rows):
    for feature, value in row.items():
      matrix[i, feature] = value
  scipy.sparse.save_npz(tmp_path / "rows.npz", matrix.tocsr()[:2])
  found = run_lib.Artifact(folder)
  rows = run_lib.read_rows(tmp_path / "rows.npz")
  assert_same(found.topk(rows), (scores[:2], ids[:2]))
  for rows, message in (
    ([{1: 2.0}, {F: 1.0}], "row 1: feature 50; there are 0 to 49"),
    ([3], "row 0 is 3; give an object"),
    ([{1: 1e39}], "row 0: its values are too large"),
  ):
    with pytest.raises(ValueError, match=message):
      found.topk(rows)
  with pytest.raises(ValueError, match="up to 6 labels: export it again with"):
    found.topk([{}], 7)


def test_an_expired_artifact_is_made_again_by_one_command(written, tmp_path):
  expected, folder = written
  folder = shutil.copytree(folder, tmp_path / artifact.FOLDER)
  about = json.loads((folder / run_lib.ABOUT).read_text())
  for program in about["programs"]:
    (folder / program["file"]).write_bytes(b"of a time long ago")
  with pytest.raises(ValueError, match="made by JAX .* --refresh=") as refusal:
    run_lib.Artifact(folder)
  assert str(folder) in str(refusal.value)
  assert artifact.refresh(tmp_path) == folder
  rows = rows_for("weighted")[1]
  assert_same(run_lib.Artifact(folder).topk(rows), expected)
  about["calling_convention"] = 10**6
  (folder / run_lib.ABOUT).write_text(json.dumps(about))
  with pytest.raises(ValueError, match="calling convention 1000000, not"):
    run_lib.Artifact(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  """A run whose model is exported as an artifact, and the exported model."""
  workdir = tmp_path_factory.mktemp("run")
  run = written_run("spherical", workdir)
  manifest = export.export(workdir, workdir / "model", k=20)
  assert manifest["kind"] == "artifact"
  return run, workdir / "model"


def test_an_exported_model_answers_by_its_artifact(exported):
  run, directory = exported
  found = model_of_export.load(directory)
  rows = rows_for("spherical")[0]
  assert found.warm_up() is None
  scores, ids = run.topk(rows, K)
  some = {"threshold": float(np.median(scores))}
  assert_same(found.topk(rows, K, **some), run.topk(rows, K, **some))
  some = {"exclude": ids[:, :3], "among": range(60, -1, -1)}
  assert_same(found.topk(rows, K, **some), run.topk(rows, K, **some))
  assert_same(found.topk(rows[:1]), (scores[:1, :5], ids[:1, :5]))
  np.testing.assert_array_equal(found.label_counts(), run.label_counts())
  assert found.why(rows[0], [1, 2], 3) == [[], []]
  assert not len(found.neighbours_of(1, 3)[0])
  with pytest.raises(ValueError, match="--k, 77 for any question"):
    found.topk(rows, 21)
  with pytest.raises(ValueError, match="row 0: too many of them are left out"):
    found.topk(rows, K, exclude=found.topk(rows, 20)[1][0].tolist())
  with pytest.raises(ValueError, match="row 1 .* has 50 as a feature"):
    found.topk([{1: 1.0}, {F: 1.0}])


def test_what_is_made_again_is_in_the_manifest(exported):
  _, directory = exported
  before = (directory / artifact.FOLDER / run_lib.ABOUT).read_text()
  about = json.loads(before) | {"made": "2020-01-01"}
  path = directory / artifact.FOLDER / run_lib.ABOUT
  path.write_text(json.dumps(about))
  with pytest.raises(ValueError, match="artifact.json: found .* bytes"):
    model_of_export.load(directory)
  export.refresh(directory)
  made = model_of_export.Exported(directory, verify=True)
  assert made.manifest["kind"] == "artifact"


def test_weights_of_an_artifact_are_not_narrowed(exported):
  run, _ = exported
  for asked, message in (
    ({"dtype": "int8"}, "head.type='spherical' .* leave out --dtype"),
    ({"k": 78}, r"--k=78: it must be in \[1, 77\]"),
  ):
    with pytest.raises(config_lib.ConfigError, match=message):
      export.export(run.workdir, run.workdir / "other", **asked)
