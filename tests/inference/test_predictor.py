"""Prediction from a run's directory, against brute force."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import scipy.sparse

from tests import cases
from tests import dense_heads
from tests import meshes
from tests import processes
from tests import runs
from xlj import config as config_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.config import families
from xlj.config import splits
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import names as names_lib
from xlj.data import writers
from xlj.evaluation import evaluate
from xlj.evaluation import metrics
from xlj.inference import answers
from xlj.inference import calibration as calibration_lib
from xlj.inference import predictor
from xlj.model import model as model_lib

F, L, BATCH, K = 12, 13, 8, 3
COUNTS = np.random.default_rng(3).permutation(L) + 1
ORDER = label_order.LabelOrder.by_frequency(COUNTS)
IDF = np.linspace(0.5, 2, F).astype(np.float32)


def write_run(workdir, dense, hidden=()):
  """Leaves the directory of a linear run, or of one with dense features."""
  config = config_lib.base()
  config.family = "network" if dense else "linear"
  config.encoder.dim = 4 if dense else 0
  config.encoder.hidden = hidden
  config.data.feature_norm = 1.0
  if dense:
    config.encoder.input_scale = 1.0
  else:
    config.data.weighting, config.data.l2 = "tfidf", True
  config.head.blocks = 8
  config.eval.batch_size = BATCH
  config.predict.propensity_power = 0.0
  facts = families.DataFacts(99, F, L, 2.0, 3.0, dense, "counts", "0" * 8)
  config = config_lib.resolve(config, facts)
  if not dense:
    config.head.wide_pairs = F * -(-L // 8)
  # Trained on other devices than those that predict.
  with meshes.mesh((1, 1)) as mesh:
    model = model_lib.Model(config)
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(ORDER.data_ids, -1),
      model.by_row(COUNTS[ORDER.data_ids].astype(np.int32), 0),
      sharding.replicate(IDF),
    )
    if not dense:
      rng = np.random.default_rng(1)
      weights = rng.normal(size=(F, model.head.num_rows))
      head = dense_heads.with_wide(state.model["head"], weights, 8)
      specs = sharding.named(mesh, model.head.specs())
      state.model["head"] = jax.device_put(head, specs)
    directory = workdir / checkpointer.DIRECTORY
    with checkpointer.Checkpointer(directory) as keeper:
      for step, score in ((1, 2.0), (2, 1.0)):
        keeper.save(
          step, state.model, state.training, {"step": step}, {"P@1": score}
        )
  (workdir / config_lib.FILE).write_text(config_lib.to_json(config))
  return workdir


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
  return predictor.load(write_run(tmp_path_factory.mktemp("run"), dense=False))


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
  return predictor.load(write_run(tmp_path_factory.mktemp("run"), dense=True))


@pytest.mark.parametrize("num_rows", cases.some([0, 9], {9}))
def test_embeddings_are_as_wide_as_the_last_layer(num_rows, tmp_path):
  run = predictor.load(write_run(tmp_path, dense=True, hidden=(6, 5)))
  x = run.embed(make_features(num_rows))
  assert x.shape == (num_rows, 5) and x.dtype == np.float32


def make_features(num_rows):
  rng = np.random.default_rng(2)
  values = rng.integers(1, 5, (num_rows, F)).astype(np.float32)
  return values * (rng.uniform(size=values.shape) < 0.4)


def brute_force(run, features):
  """Scores and data ids of the K best, by sorting all labels."""
  weighted = features * IDF
  norm = np.linalg.norm(weighted, axis=1, keepdims=True)
  weighted = weighted / np.maximum(norm, 1e-12)
  rows = run.model.head.layout.row_of_label(ORDER.to_head(np.arange(L)))
  head = jax.tree.map(np.asarray, run.state["head"])
  wide = dense_heads.wide(head, run.model.head.num_rows)
  z = weighted @ wide[:, rows] + head["bias"][rows]
  ids = np.argsort(-z, axis=1)[:, :K]
  return np.take_along_axis(z, ids, 1), ids


def calibrated(workdir):
  """Leaves a calibration in the directory of a run; it says `scores / 2`."""
  one = np.ones(1)
  model = predictor.load(workdir).fingerprint
  found = calibration_lib.Calibration(
    one / 2, 0 * one, 0.0, one[1:], one / 2, one / 2, {"model": model}
  )
  path = workdir / calibration_lib.FILE
  path.write_text(json.dumps(found.to_dict()))
  return path


def test_labels_that_are_not_likely_enough_are_no_answers(tmp_path, caplog):
  features = make_features(9)
  workdir = write_run(tmp_path, dense=False)
  run = predictor.load(workdir)
  assert run.calibration is None
  with pytest.raises(ValueError, match="calibrate it by .*cal.*--workdir"):
    run.topk(features, K, min_probability=0.5)
  calibrated(workdir)
  run = predictor.load(workdir)
  scores, ids = run.topk(features, K)
  p = run.calibration.probabilities(scores, ids)
  np.testing.assert_allclose(p, 1 / (1 + np.exp(-scores / 2)), rtol=1e-6)
  least = float(np.median(p[:, 0]))
  wanted = p >= least
  likely = run.topk(features, K, min_probability=least)
  np.testing.assert_array_equal(likely[0], np.where(wanted, scores, -np.inf))
  np.testing.assert_array_equal(likely[1], np.where(wanted, ids, -1))
  # Of the same arrays at another step it counts, of others it does not.
  assert predictor.load(workdir, which="last").calibration is not None
  other = tmp_path / "other"
  other.mkdir()
  path = write_run(other, dense=True) / calibration_lib.FILE
  path.write_text((workdir / calibration_lib.FILE).read_text())
  fields = {"propensity_power": 0.5}
  for where, predict in ((workdir, fields), (other, {})):
    assert not caplog.text
    assert predictor.load(where, predict=predict).calibration is None
    assert "is of another checkpoint" in caplog.text
    caplog.clear()


# No batch, less than one per device, a batch, and several with a rest.
@pytest.mark.parametrize("num_rows", [0, 1, 8, 19])
def test_any_number_of_examples(num_rows, linear):
  features = make_features(num_rows)
  got = linear.topk(features, K)
  expected = brute_force(linear, features)
  assert got[0].shape == got[1].shape == (num_rows, K)
  assert got[0].dtype == np.float32 and got[1].dtype == np.int32
  np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
  np.testing.assert_array_equal(got[1], expected[1])


def test_all_forms_of_features_agree(linear):
  features = make_features(3)
  as_scipy = scipy.sparse.csr_matrix(features)
  forms = [
    as_scipy,
    scipy.sparse.coo_array(features),
    csr_lib.Csr.from_scipy(scipy.sparse.csr_array(features)),
    [{i: row[i] for i in np.flatnonzero(row)[::-1]} for row in features],
    features.astype(np.float64),
  ]
  expected = linear.topk(features, K)
  for form in forms:
    got = linear.topk(form, K)
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


def test_what_a_row_has_is_no_answer(linear, tmp_path):
  run = predictor.load(linear.workdir, predict={"exclude_seen": True})
  features = make_features(11)
  seen = [np.flatnonzero(row).tolist() for row in features]
  scores, ids = linear.topk(features, L, exclude=seen)
  assert not any(set(row) & set(of) for row, of in zip(ids.tolist(), seen))
  dicts = [{int(i): row[i] for i in np.flatnonzero(row)} for row in features]
  for form in (features, scipy.sparse.csr_array(features), iter(dicts)):
    got = run.topk(form, L)
    np.testing.assert_allclose(got[0], scores, rtol=1e-6)
    np.testing.assert_array_equal(got[1], ids)
  more = [*range(0, L, 2)]
  _, fewer = run.topk(features, L, exclude=more)
  also = [sorted({*of, *more}) for of in seen]
  np.testing.assert_array_equal(
    fewer, linear.topk(features, L, exclude=also)[1]
  )
  with pytest.raises(ValueError, match="of 2 examples, and there are 11"):
    run.topk(features, exclude=[[1], [2]])
  # Positives that a row has are missed, as those of filter_labels_test.txt.
  labels = csr_lib.Csr.from_rows([[i % F, F] for i in range(11)], L)
  rows = csr_lib.Csr.from_scipy(scipy.sparse.csr_array(features))
  writers.write_one_file(tmp_path / "test.txt", rows, labels)
  found = evaluate.evaluate(
    linear.workdir, data_dir=str(tmp_path), predict={"exclude_seen": True}
  )
  ranking = metrics.Ranking(L, ks=(1, 3, 5))
  ranking.update(ids, labels)
  assert found["Recall@5"] == pytest.approx(ranking.compute()["Recall@5"])
  pairs = [f"{row} {i}\n" for row, of in enumerate(seen) for i in of]
  (tmp_path / "filter_labels_test.txt").write_text("".join(pairs))
  assert found == evaluate.evaluate(linear.workdir, data_dir=str(tmp_path))


def test_no_examples_in_any_form(linear, dense):
  for run in (linear, dense):
    for nothing in ([], np.zeros((0, F)), scipy.sparse.csr_array((0, F))):
      scores, ids = run.topk(nothing, K)
      assert scores.shape == ids.shape == (0, K)


def test_fewer_features_than_the_model_has_are_no_error(linear):
  features = make_features(2)
  features[:, 9:] = 0
  fewer = scipy.sparse.csr_array(features[:, :9])
  np.testing.assert_array_equal(
    linear.topk(fewer, K)[1], linear.topk(features, K)[1]
  )


def test_features_and_k_that_do_not_fit_are_refused(linear, dense):
  wide = np.zeros((1, F + 1), np.float32)
  for run in (linear, dense):
    for form in (wide, scipy.sparse.csr_array(wide)):
      with pytest.raises(ValueError, match="have 13 features, the model 12"):
        run.topk(form, K)
    with pytest.raises(ValueError, match="12"):
      run.topk([{F: 1.0}], K)
    for k in (0, -1, L + 1, 5.0, True, "5", np.float32(2), [3]):
      wrong = re.escape(f"k is {k!r}; it must be a whole number in [1, 13]")
      with pytest.raises(ValueError, match=wrong):
        run.topk(make_features(1), k)
    assert run.topk(make_features(1), np.int16(2))[1].shape == (1, 2)


def test_what_else_does_not_fit_is_refused(dense):
  features = make_features(2)
  for threshold in (np.nan, "1", [1.0]):
    with pytest.raises(ValueError, match="threshold is .*; give a score"):
      dense.topk(features, K, threshold=threshold)
  for examples in (0, -3, 2.5, "3", None):
    with pytest.raises(ValueError, match="examples is .* a whole number"):
      dense.warm_up(examples)
  features[1] = 3e38
  for run in (dense.embed, dense.confidence):
    with pytest.raises(ValueError, match="row 1 of the examples .* not finite"):
      run(features)


def test_every_label_can_be_asked_for(linear):
  _, ids = linear.topk(make_features(2), L)
  np.testing.assert_array_equal(np.sort(ids, axis=1), [np.arange(L)] * 2)


def test_a_model_of_dense_features_takes_sparse_ones(dense):
  features = make_features(5)
  expected = dense.topk(features, K)
  got = dense.topk(scipy.sparse.csr_array(features), K)
  np.testing.assert_allclose(got[0], expected[0], atol=1e-6)
  np.testing.assert_array_equal(got[1], expected[1])


def test_label_counts_are_by_the_ids_of_the_data(linear):
  np.testing.assert_array_equal(linear.label_counts(), COUNTS)
  assert linear.num_labels == L and linear.num_features == F


def test_ids_have_the_names_of_the_run(linear):
  with pytest.raises(ValueError, match="have no names: .*labels.txt"):
    linear.names([0])
  names = [f" {i}\t" for i in range(L)]
  names_lib.write_names(linear.workdir / splits.NAMES_FILE, names)
  run = predictor.load(linear.workdir)
  scores, ids = run.topk(make_features(2), K)
  assert run.names(ids) == [[names[i] for i in row] for row in ids]
  assert run.names([[0, -1]]) == [[names[0], None]]
  assert run.names(ids[0, 0]) == names[ids[0, 0]]
  assert run.names(ids[:0]) == [] and run.names([]) == []
  with pytest.raises(ValueError, match=f"label {L}: there are ids 0 to 12"):
    run.names([0, L])
  with pytest.raises(ValueError, match="label ids are whole numbers"):
    run.names(scores)


def test_the_best_checkpoint_or_the_last_is_loaded(linear):
  assert linear.step == 1
  assert predictor.load(linear.workdir, which="last").step == 2


def test_what_is_no_run_is_refused(linear, tmp_path):
  with pytest.raises(config_lib.ConfigError, match="use 'best' or 'last'"):
    predictor.load(linear.workdir, which="newest")
  for path in (None, 3, b"run"):
    with pytest.raises(config_lib.ConfigError, match="workdir is .*; give a p"):
      predictor.load(path)
  text = (linear.workdir / config_lib.FILE).read_text()
  (tmp_path / config_lib.FILE).write_text(text)
  (tmp_path / checkpointer.DIRECTORY).mkdir()
  with pytest.raises(config_lib.ConfigError, match="no finished checkpoint"):
    predictor.load(tmp_path)


def test_by_default_five_labels_or_all_that_there_are(linear, monkeypatch):
  features = make_features(2)
  np.testing.assert_array_equal(
    linear.topk(features)[1], linear.topk(features, 5)[1]
  )
  monkeypatch.setattr(answers, "DEFAULT_K", L + 1)
  assert linear.topk(features)[1].shape == (2, L)


def test_labels_to_leave_out_or_to_choose_among(linear):
  rng = np.random.default_rng(5)
  x = rng.random((11, F)).astype(np.float32)  # two batches
  scores, ids = linear.topk(x, L)
  z = np.empty((11, L), np.float32)
  np.put_along_axis(z, ids, scores, 1)
  own = [rng.permutation(L)[: n % 4].tolist() for n in range(11)]
  seen = np.zeros((11, L), bool)
  for n, labels in enumerate(own):
    seen[n, labels] = True
  few = np.isin(np.arange(L), [1, 4, 5, 11])
  for asked, keep in (
    ({"exclude": own}, ~seen),
    ({"among": own}, seen),
    ({"exclude": np.flatnonzero(few)}, np.tile(~few, (11, 1))),
    ({"among": np.flatnonzero(few), "exclude": own}, few & ~seen),
    ({"among": few.nonzero()[0], "threshold": 0.1}, few & (z >= 0.1)),
  ):
    found, found_ids = linear.topk(x, L, **asked)
    expected = np.where(keep, z, -np.inf)
    best = -np.sort(-expected, 1)
    np.testing.assert_allclose(found, best, rtol=1e-6)
    for n in range(11):
      own_ids = found_ids[n][found_ids[n] >= 0]
      assert set(own_ids) == set(np.flatnonzero(keep[n])), asked
  with pytest.raises(ValueError, match="of 3 examples, and there are 8 at"):
    linear.topk(x, exclude=own[:3])
  with pytest.raises(ValueError, match="of 12 examples, and there are 11;"):
    linear.topk(x, exclude=[*own, []])


ONE_OF_TWO = """
import sys
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
import xlj
run = xlj.load(sys.argv[1])
x = np.random.default_rng(0).random((8, run.num_features)).astype(np.float32)
_, best = run.topk(x, 3)
_, ids = run.topk(x, 3, exclude=[*best[:4].tolist(), [], [], [], []])
for n in range(4):
  assert not {*ids[n]} & {*best[n]}, (ids, best)
np.testing.assert_array_equal(ids[4:], best[4:])
"""


@pytest.mark.slow
def test_a_process_whose_rows_leave_out_none_answers_with_one_that_does(
  linear,
):
  address = f"127.0.0.1:{processes.free_port()}"
  env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(runs.ROOT)}
  env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
  job = [
    subprocess.Popen(
      [sys.executable, "-c", ONE_OF_TWO, linear.workdir, address, str(i)],
      env=env,
    )
    for i in range(2)
  ]
  try:
    assert [process.wait(120) for process in job] == [0, 0]
  finally:
    for process in job:
      process.kill()


def test_a_few_programs_answer_whatever_is_asked(tmp_path):
  run = predictor.load(write_run(tmp_path, dense=False))
  run.warm_up(examples=5, features=F, k=K)
  count = run._topk._cache_size()
  assert count == 2 * 1  # 8 devices share 8 rows at least; widths 8 and 16
  rng = np.random.default_rng(5)
  for _ in range(12):
    features = make_features(rng.integers(1, 9))
    scores, ids = run.topk(features, rng.integers(1, 9))
    expected = run.topk(features, L)
    width = ids.shape[1]
    np.testing.assert_array_equal(ids, expected[1][:, :width])
    np.testing.assert_array_equal(scores, expected[0][:, :width])
  # All L labels are programs of their own.
  assert run._topk._cache_size() <= count + 2


def test_a_predictor_says_what_it_is_of(linear):
  assert repr(linear) == (
    f"<Predictor of {linear.workdir}, step 1: 13 labels, 12 features, head"
    f" 'dense', devices {jax.device_count()}>"
  )
