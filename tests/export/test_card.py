"""The card of an exported model, from what a run has left."""

import json

import pytest

from xlj.export import card
from xlj.report import recorded

MANIFEST = {
  "xlj": "1.2",
  "made": "2030-01-02T03:04:05+00:00",
  "kind": "linear",
  "input": "texts",
  "num_features": 1234,
  "num_labels": 5678,
  "dtype": "int8",
  "measured": {
    "rows": 99,
    "of": "d/train",
    "before": {"P@1": 60.0},
    "after": {"P@1": 59.9},
  },
  "config": {"data.num_rows": 4321, "head.loss": "bce", "data.l2": True},
}
DECILE = {"decile": 1, "labels": 7, "min_count": 3, "max_count": 9}
DECILE |= {"P@1": 1.5, "P@5": 2.5, "MacroRecall@5": 3.5, "Coverage@5": 4.5}


@pytest.fixture
def run(tmp_path):
  (tmp_path / recorded.EVALUATION_FILE).write_text(
    json.dumps({"metrics": {"P@1": 61.25}, "deciles": [DECILE]})
  )
  (tmp_path / recorded.MACHINE_FILE).write_text(
    json.dumps({"devices": "X", "cpu": "Y", "cores": 2})
  )
  return tmp_path


def test_a_card_has_facts_and_figures(run):
  text = card.text(recorded.read(run), MANIFEST)
  for line in (
    "| this model | 59.90 |",
    "| P | 61.25 |",
    "| 1 | 3 to 9 | 7 | 1.50 | 2.50 | 3.50 | 4.50 |",
    "- training rows: 4,321",
    "- `head.loss`: bce",
    'rows = ["a text"]',
  ):
    assert line in text.splitlines()
  assert text.startswith("---\n") and "1,234 features" in text
  for field in ("license", "Intended use", "Licence of the model"):
    assert f"{field}: {card.FILL_IN}" in text


def test_a_card_of_a_run_without_figures_says_so(tmp_path):
  text = card.text(recorded.read(tmp_path), MANIFEST | {"measured": None})
  assert "Nothing was measured" in text
