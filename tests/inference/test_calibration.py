"""Probabilities of labels, and what scores make them."""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.special

from xlj.data import errors
from xlj.inference import calibration as calibration_lib

COUNTS = np.array([1, 2, 3, 50, 60, 70, 900, 1000])


def answers(rows, seed=0, by_count=0.0, place=-0.5):
  """Scores, ids and hits of rows of labels right with known probabilities."""
  rng = np.random.default_rng(seed)
  scores = -np.sort(-rng.normal(0, 3, (rows, 6)), 1).astype(np.float32)
  ids = np.argsort(rng.random((rows, 8)), 1)[:, :6]
  logits = 0.6 * scores - 0.7 + place * np.log1p(np.arange(6))
  logits += by_count * (COUNTS[ids] > 40)
  p = scipy.special.expit(logits)
  return scores, ids, rng.random(p.shape) < p, p


def test_known_probabilities_are_found():
  found = calibration_lib.fit(*answers(8000)[:3], COUNTS, {"of": "x"})
  scores, ids, hits, p = answers(2000, seed=1)
  assert found.slopes == pytest.approx([0.6], abs=0.03)
  assert found.biases == pytest.approx([-0.7], abs=0.08)
  assert found.place == pytest.approx(-0.5, abs=0.08)
  made = found.probabilities(scores, ids)
  assert made.dtype == np.float32
  np.testing.assert_allclose(made, p, atol=0.02)
  before, after = found.about["ECE"]
  assert before > 5 > 1 > after
  assert found.about["log_loss"][1] < found.about["log_loss"][0]
  assert (found.about["rows"], found.about["of"]) == (8000, "x")
  assert calibration_lib.ece(made[hits], hits[hits]) > 10  # of the right alone


def test_labels_with_few_rows_have_weights_of_their_own_where_it_pays():
  scores, ids, hits, _ = answers(8000, by_count=2.0)
  found = calibration_lib.fit(scores, ids, hits, COUNTS)
  rare, frequent = (
    float(found.probabilities(np.zeros((1, 1)), np.array([[label]]))[0, 0])
    for label in (0, 7)
  )
  assert frequent > rare + 0.3
  assert not len(calibration_lib.fit(scores, ids, hits).buckets)  # no counts
  # By numbers that are no places.
  saved = found.to_dict()
  sparse = calibration_lib.Calibration.from_dict(
    saved, COUNTS, np.arange(8) * 10**9
  )
  np.testing.assert_array_equal(
    sparse.probabilities(scores[:9], ids[:9] * 10**9),
    found.probabilities(scores[:9], ids[:9]),
  )
  with pytest.raises(ValueError, match="needs the training rows of labels"):
    calibration_lib.Calibration.from_dict(saved)


def test_a_higher_score_is_never_less_likely():
  scores, ids, hits, _ = answers(500)
  found = calibration_lib.fit(scores, ids, ~hits, COUNTS)  # as wrong as can be
  assert (found.slopes >= 0).all() and found.place <= 0
  p = found.probabilities(scores, np.zeros_like(ids))
  assert (np.diff(p, axis=1) <= 1e-6).all()


def test_a_threshold_holds_on_other_rows():
  found = calibration_lib.fit(*answers(4000)[:3])
  scores, ids, hits, _ = answers(4000, seed=1)
  p = found.probabilities(scores, ids)
  answered = []
  for target in (0.5, 0.7, 0.9):
    least = found.threshold(target)
    precision, share = calibration_lib.reached(p, hits, least)
    assert 100 * target - 1 <= precision <= 100 * target + 3
    answered.append(share)
  assert answered == sorted(answered, reverse=True)
  with pytest.raises(ValueError, match=r"0.9999, and the 4000 .* at most; ask"):
    found.threshold(0.9999)
  for wrong in (0, 1, 90, math.nan):
    with pytest.raises(ValueError, match="give a share of labels between"):
      found.threshold(wrong)


def test_labels_that_do_not_pass_leave_the_rest_in_order():
  found = calibration_lib.fit(*answers(4000, by_count=4.0)[:3], COUNTS)
  scores = np.array([[3.0, 2.0, 1.0, -np.inf], [-9.0, -9.5, -10.0, -11.0]])
  ids = np.array([[0, 7, 1, -1], [3, 2, 1, 0]])
  p = found.probabilities(scores, ids)
  assert p[0, 1] > p[0, 0] and p[0, 3] == 0
  kept, left, of_them = found.passing(scores, ids, float(p[0, 1]))
  none = [-1] * 3
  assert left.tolist() == [[7, *none], [-1, *none]]
  assert kept.tolist() == [[2.0, *[-np.inf] * 3], [-np.inf] * 4]
  assert of_them[0, 0] == p[0, 1] and (of_them > 0).sum() == 1
  for wrong in (80, -0.1, math.nan):
    with pytest.raises(ValueError, match="min_probability is .*from 0 to 1"):
      found.passing(scores, ids, wrong)


def test_what_is_saved_is_read_again(tmp_path, caplog):
  scores, ids, hits, _ = answers(400)
  found = calibration_lib.fit(scores, ids, hits, COUNTS, {"model": "a"})
  path = tmp_path / calibration_lib.FILE
  assert calibration_lib.load(tmp_path, "a", COUNTS) is None
  path.write_text(json.dumps(found.to_dict(), allow_nan=False))
  again = calibration_lib.load(tmp_path, "a", COUNTS)
  for field in dataclasses.fields(found):
    np.testing.assert_equal(
      getattr(again, field.name), getattr(found, field.name)
    )
  assert not caplog.text
  assert calibration_lib.load(tmp_path, "b", COUNTS) is None
  assert f"{path} is of another checkpoint" in caplog.text
  for wrong in (
    "{",
    "[]",
    json.dumps(found.to_dict() | {"format": 2}),
    json.dumps(found.to_dict() | {"biases": [0, 0]}),
    json.dumps(found.to_dict() | {"precisions": []}),
    json.dumps(found.to_dict() | {"slopes": [math.nan]}),
    json.dumps({"format": 1}),
  ):
    path.write_text(wrong)
    with pytest.raises(errors.DataError, match="again by xlj calibrate"):
      calibration_lib.load(tmp_path, "a", COUNTS)


@pytest.mark.parametrize("right", [True, False])
def test_rows_that_are_all_right_or_wrong_have_finite_weights(right):
  scores, ids, hits, _ = answers(100)
  hits[:] = right
  found = calibration_lib.fit(scores, ids, hits, COUNTS)
  assert np.isfinite([*found.slopes, *found.biases, found.place]).all()
  p = found.probabilities(scores, ids)
  assert (abs(p - right) < 0.1).all()
  # However many labels were asked for.
  first = found.probabilities(scores[:, :1], ids[:, :1])
  np.testing.assert_array_equal(p[:, :1], first)


def test_few_rows_are_refused():
  with pytest.raises(ValueError, match="29 held-out rows; give 30 at least"):
    calibration_lib.fit(*answers(29)[:3])
  scores, ids, hits, _ = answers(40)
  with pytest.raises(ValueError, match="no held-out row has a label"):
    calibration_lib.fit(scores, np.full_like(ids, -1), hits, COUNTS)
