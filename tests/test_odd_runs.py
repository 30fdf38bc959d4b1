"""Run directories of strangers: what is odd in them is refused by name."""

import json
import math
import random

import numpy as np
import pytest

from tests import runs
from xlj import config as config_lib
from xlj.data import errors
from xlj.data import label_order
from xlj.report import progress
from xlj.report import recorded
from xlj.report import report
from xlj.runs import label_corrections

CONFIG = config_lib.to_json(runs.resolved(head__type="mhc"))
ODD = (
  *(None, True, -1, 0, 1.5, 10**30, 1e400, math.nan, "", "x", "3", 2**31),
  *([], [1], [None], {}, {"a": 1}, "\0"),
)


def places(value, at=()):
  """The path of each thing inside of a JSON value."""
  pairs = value.items() if isinstance(value, dict) else ()
  pairs = enumerate(value) if isinstance(value, list) else pairs
  for key, inside in pairs:
    yield *at, key
    yield from places(inside, (*at, key))


def changed(text, rng):
  """A JSON text with something else in a place, or nothing."""
  value = json.loads(text)
  for _ in range(rng.choice((1, 1, 2))):
    *outer, key = rng.choice(list(places(value)))
    inside = value
    for name in outer:
      inside = inside[name]
    if rng.random() < 0.2:
      del inside[key]
    else:
      inside[key] = rng.choice(ODD)
    if not value:
      break
  return json.dumps(value).encode()


def damaged(data, rng):
  """Bytes with some of them lost, changed or added."""
  i = rng.randrange(len(data))
  more = rng.choice((b"\xff", b"9" * 5_000, b"[", b'"', b"{", b"\n", b"\0"))
  return rng.choice((data[:i], data[:i] + data[i + 9 :], data[:i] + more, more))


@pytest.mark.parametrize(
  "data, message",
  [
    (b"", "is not a JSON config"),
    (b"[]", r"is not a JSON config but \[\]"),
    (b"[" * 100_000, "is not a JSON config"),
    (b'{"seed": ' + b"9" * 5_000 + b"}", "is not a JSON config"),
    (b'{"data": "\xe9"}', "is not a JSON config"),
    (b'{"version": 5}', "version is 5; this xlj reads 1 to 4"),
    (
      b'{"version": 3, "encoder": {"type": "causal"}}',
      "knew positions, not distances",
    ),
    (b'{"version": "x"}', "version is 'x'"),
    (b'{"version": -1}', "version is -1"),
    (b'{"seed": 0, "seed": 1}', "has 'seed' twice"),
    (b'{"version": 3}', "checkpoint.every has no value; the file is not"),
    (b'{"version": 3, "seed": null}', "seed is null; it must have a value"),
    (b'{"version": 3, "seed": {}}', "seed is {}; it must be a whole number"),
    (b'{"version": 3, "seed": [1]}', r"seed is \(1,\); it must be a whole"),
    (b'{"version": 3, "seed": "1"}', "seed is '1'; it must be a whole number"),
    (b'{"version": 3, "head": 3}', "no config field 'head'; did you mean"),
    (b'{"version": 3, "head": {"typ": "x"}}', "did you mean 'head.type'"),
    (b'{"version": 3, "head.type": "mhc"}', "no section or field 'head.type'"),
    (b'{"version": 3, "head": {"type": "x"}}', "head.type is 'x'; use one of"),
    (b'{"version": 3, "eval": {"ks": 5}}', "eval.ks is 5; it must be whole"),
    (b'{"version": 3, "oltr": {"reach": NaN}}', "oltr.reach is nan; it must"),
  ],
)
def test_odd_configs_are_refused_by_name(data, message, tmp_path):
  path = tmp_path / "config.json"
  path.write_bytes(data)
  with pytest.raises(config_lib.ConfigError, match=message) as refusal:
    config_lib.load(path)
  assert str(refusal.value).startswith(str(path))


def test_what_is_no_file_is_no_config(tmp_path):
  with pytest.raises(config_lib.ConfigError, match="cannot be read"):
    config_lib.load(tmp_path)


def test_a_mark_that_editors_write_is_passed_over(tmp_path):
  path = tmp_path / "config.json"
  path.write_bytes(b"\xef\xbb\xbf" + CONFIG.encode())
  assert config_lib.load(path).head.type == "mhc"


def test_mutated_configs_load_or_are_refused(tmp_path):
  rng = random.Random(21)
  path = tmp_path / "config.json"
  refused = 0
  for make in (changed, damaged):
    text = CONFIG if make is changed else CONFIG.encode()
    for _ in range(60):
      path.write_bytes(make(text, rng))
      try:
        config_lib.check(config_lib.load(path))
      except config_lib.ConfigError as error:
        refused += 1
        assert str(error).startswith(str(path)) and len(str(error)) < 2_000
  assert refused > 80


def test_mutated_lists_and_logs_of_labels_are_refused_by_name(tmp_path):
  rng = random.Random(21)
  corrections = label_corrections.LabelCorrections()
  corrections.add(1, np.arange(5), np.arange(5))
  corrections.save(tmp_path)
  path = tmp_path / label_corrections.FILE
  good = path.read_bytes()
  order = tmp_path / "label_order.txt"
  for _ in range(60):
    path.write_bytes(damaged(good, rng))
    order.write_bytes(damaged(b"0\n2 3\n1\n", rng))
    with pytest.raises(ValueError, match="is damaged") as refusal:
      label_corrections.LabelCorrections.load(tmp_path, 9)
    assert str(refusal.value).startswith(str(path))
    try:
      label_order.LabelOrder.from_file(order, 5, 3)
    except errors.DataError as error:
      assert str(error).startswith(str(order))


def test_a_report_shows_what_can_be_read(tmp_path, monkeypatch):
  # Drawing takes most of the time.
  monkeypatch.setattr(report.figures, "line_chart", _points)
  monkeypatch.setattr(report.figures, "bar_chart", _points)
  rng = random.Random(21)
  line = {"step": 1, "time": 2.0, "kind": "train", "loss": 1.0}
  decile = {"decile": 1, "min_count": 1, "max_count": 9, "P@1": 1.0}
  metrics = {"P@1": 1.0, "PSP@3": 2.0}
  evaluation = {
    "metrics": metrics,
    "split": "test",
    "step": 3,
    "deciles": [decile, decile | {"P@3": 2.0, "P@5": 3.0}],
    "baselines": {"other": metrics},
  }
  good = {
    config_lib.FILE: CONFIG,
    recorded.EVALUATION_FILE: json.dumps(evaluation),
    recorded.MACHINE_FILE: '{"devices": "cpu x 1", "cores": 2, "versions": {}}',
    progress.METRICS_FILE: json.dumps(line),
  }
  for name, text in good.items():
    (tmp_path / name).write_text(text)
  for name, text in good.items():
    for _ in range(12):
      made = (
        changed(text, rng)
        if rng.random() < 0.7
        else damaged(text.encode(), rng)
      )
      (tmp_path / name).write_bytes(made + b"\n" + text.encode())
      report.write_report(tmp_path)
      (tmp_path / name).write_bytes(made)
      report.write_report(tmp_path)
    (tmp_path / name).write_text(text)
  assert "P@1" in report.write_report(tmp_path).read_text()


def _points(name, *args, **kwargs):
  """Stands for a chart: its numbers add up."""
  for values in args[-1].values():
    np.sum(np.asarray(values, np.float64))
  return f"<p>{name}</p>"
