"""The language model example runs, and its two losses agree."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "lm_vocab.py"


@pytest.mark.slow
def test_both_losses_train_the_same_model(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("the cat sat on the mat\nand the dog saw it\n" * 20)
  args = ["--vocabulary=300", "--steps=8", "--batch=32", "--dim=16"]
  out = subprocess.run(
    [sys.executable, SCRIPT, f"--text={text}", "--chunk=128", *args],
    capture_output=True,
    text=True,
    check=True,
  )
  record = json.loads(out.stdout.splitlines()[-1])
  assert record["max_loss_difference"] < 1e-5
  assert record["max_weight_difference"] < 1e-4
