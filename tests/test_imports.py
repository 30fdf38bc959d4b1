"""The direction of imports: nothing imports what is above it."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]
# What each part of xlj may import of xlj, besides its own modules.
ALLOWED = {
  "mesh": {"sharding"},
  "splits": {"config", "data"},
  "sharding": set(),
  "families": {"ops"},
  "config_check": set(),
  "config": {"config_check", "families"},
  "optim": set(),
  "label_order": {"data"},
  "distributed": set(),
  "machine": set(),
  "pairs": set(),
  "metrics": {"pairs"},
  "open_set": set(),
  "weibull": set(),
  "openmax": {
    "evaluator", "model", "predictor", "sharding", "splits", "weibull", "data",
    "heads", "ops",
  },
  "progress": set(),
  "page": set(),
  "figures": set(),
  "report": {"figures", "page", "progress"},
  "checkpoint": {"distributed"},
  "launching": {"config", "distributed"},
  "local": set(),
  "ops": {"sharding"},
  "losses": {"ops"},
  "encoders": {"ops", "sharding"},
  "heads": {"ops", "losses", "sharding"},
  "data": set(),
  "make_head": {"optim", "ops", "losses", "heads"},
  "example_memory": {"sharding", "ops"},
  "flips": set(),
  "suspects": {"data"},
  "model": {
    "example_memory", "make_head", "optim", "sharding", "ops", "losses",
    "encoders",
  },
  "evaluator": {
    "distributed", "label_order", "metrics", "model", "pairs", "sharding",
    "data",
  },
  "predictor": {
    "checkpoint", "config", "label_order", "mesh", "model", "sharding",
    "splits", "data",
  },
  "first_stage": {"checkpoint", "config", "model"},
  "stopping": set(),
  "preparation": {"config", "families", "label_order", "splits", "data"},
  "train": {
    "checkpoint", "config", "config_check", "distributed", "evaluator",
    "machine", "make_head", "mesh", "model", "preparation", "progress",
    "report", "sharding", "splits",
    "stopping", "flips", "suspects", "data", "first_stage",
  },
  "planning": {"config", "encoders", "families", "model", "sharding", "ops"},
  "plan": {"config", "config_check", "model", "planning"},
  "evaluate": {
    "evaluator", "metrics", "predictor", "report", "splits", "data",
  },
  "predict": {"config", "predictor", "splits", "data"},
  "average": {"ops"},
  "labels": {
    "checkpoint", "config", "flips", "label_order", "machine", "mesh",
    "model", "predictor", "preparation", "report", "sharding", "splits",
    "data", "heads", "ops",
  },
  "soups": {
    "average", "checkpoint", "config", "config_check", "evaluate",
    "evaluator", "flips", "mesh", "model", "predictor", "splits", "data",
  },
}  # fmt: skip
# The label layer can be used alone.
LABEL_LAYER = ("ops", "losses", "heads")
NOT_FOR_THE_LABEL_LAYER = {"grain", "orbax", "absl", "ml_collections"}


def part_of(path):
  relative = path.relative_to(ROOT / "xlj")
  return relative.parts[0].removesuffix(".py")


def imports_of(path):
  """Top-level packages, and parts of xlj, that a file imports."""
  packages, parts = set(), set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      first, *rest = name.split(".")
      packages.add(first)
      if first == "xlj" and rest:
        parts.add(rest[0])
  return packages, parts


FILES = sorted(
  path
  for path in (ROOT / "xlj").rglob("*.py")
  if path != ROOT / "xlj" / "__init__.py"
)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  part = part_of(path)
  assert part in ALLOWED, f"say in {__file__} what {part} may import"
  packages, parts = imports_of(path)
  forbidden = parts - ALLOWED[part] - {part}
  assert not forbidden, f"{path} may not import {forbidden} of xlj"
  if part in LABEL_LAYER:
    assert not packages & NOT_FOR_THE_LABEL_LAYER


def test_the_label_layer_loads_alone():
  code = (
    "import sys, xlj, xlj.heads.dense, xlj.losses.softmax, xlj.ops.reference;"
    "print({'grain', 'orbax', 'ml_collections'} & set(sys.modules))"
  )
  out = subprocess.run(
    [sys.executable, "-c", code],
    check=True,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert out.stdout.strip() == "set()"


def test_the_allowed_edges_have_no_cycle():
  left = dict(ALLOWED)
  while left:
    free = [part for part, edges in left.items() if not edges & left.keys()]
    assert free, f"a cycle among {sorted(left)}"
    for part in free:
      del left[part]
