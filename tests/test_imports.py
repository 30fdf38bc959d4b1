"""The direction of imports: nothing imports what is above it."""

import ast
from importlib import metadata
from pathlib import Path
import re
import subprocess
import sys
import tomllib

from xlj.distributed import jax_private

ROOT = Path(__file__).parents[1]
_LABEL_LAYER = {"sharding", "ops", "heads.head"}
# What each room of xlj may import, besides its own modules.
ALLOWED = {
  "__main__": {"shell", "commands", "distributed"},
  "files": set(),
  "processors": set(),
  "shell": set(),
  "sharding": set(),
  "mesh": {"sharding"},
  "ops": {"sharding"},
  "ops.kernels": {"ops"},
  "ops.pairs": {"ops", "processors"},
  "losses": {"ops"},
  "encoders": {"ops"},
  "heads.head": {"ops"},
  "heads.dense": _LABEL_LAYER | {"ops.kernels", "ops.pairs", "losses"},
  "heads.product": _LABEL_LAYER,
  "heads.cascade": _LABEL_LAYER | {"losses", "heads.dense"},
  "heads.oltr": _LABEL_LAYER | {"losses", "heads.dense"},
  "heads.prototypes": _LABEL_LAYER | {"losses", "heads.dense"},
  "heads.spherical": _LABEL_LAYER | {"losses", "heads.dense"},
  "heads": {
    "heads.head", "heads.dense", "heads.product", "heads.cascade",
    "heads.oltr", "heads.prototypes", "heads.spherical",
  },
  "data": {"files", "processors"},
  "documents": {"files", "data"},
  "text": {
    "files", "processors", "sharding", "ops", "encoders", "data", "documents",
  },
  "search": {"files", "processors", "data"},
  "synthetic": {"data"},
  "distributed": set(),
  "checkpoint": {"distributed"},
  "report": {"files", "shell", "processors"},
  "config": {
    "ops", "losses", "encoders", "data", "documents", "text", "synthetic",
    "heads.head", "heads.dense", "heads.product", "heads.cascade", "heads.oltr",
    "heads.prototypes", "heads.spherical",
  },
  "model": {
    "files", "sharding", "ops", "losses", "encoders", "heads.head", "data",
    "documents", "text", "config",
  },
  "runs": {
    "files", "sharding", "mesh", "data", "documents", "text", "checkpoint",
    "report", "config", "model",
  },
  "inference": {
    "files", "shell", "sharding", "ops", "heads.head", "heads.dense", "data",
    "documents", "text", "config", "model", "runs",
  },
  "evaluation": {
    "files", "sharding", "data", "documents", "text", "synthetic",
    "distributed", "report", "config", "model", "inference",
  },
  "export": {
    "files", "processors", "sharding", "ops", "ops.pairs", "heads.dense",
    "data", "documents", "text", "search", "report", "config", "model", "runs",
    "inference", "evaluation",
  },
  "serving": {
    "files", "data", "documents", "text", "model", "inference", "export",
  },
  "open_world": {
    "sharding", "ops", "heads.head", "heads.dense", "heads.oltr", "data",
    "config", "model", "inference",
  },
  "planning": {
    "sharding", "ops", "encoders", "heads.head", "heads.dense",
    "heads.prototypes", "config", "model",
  },
  "training": {
    "files", "shell", "sharding", "mesh", "ops", "heads.head", "heads.dense",
    "data", "documents", "text", "distributed", "checkpoint", "report",
    "config", "model", "planning", "runs", "inference", "evaluation",
  },
  "averaging": {
    "files", "mesh", "ops", "heads.head", "heads.dense", "data", "checkpoint",
    "config", "model", "runs", "inference", "evaluation",
  },
  "labels": {
    "sharding", "ops", "heads.head", "heads.dense", "data", "config", "model",
    "runs", "text", "inference", "training",
  },
  "commands": {
    "files", "shell", "mesh", "data", "synthetic", "distributed", "report",
    "config", "planning", "runs", "text", "inference", "evaluation", "export",
    "serving", "training", "averaging", "labels",
  },
}  # fmt: skip
# Inside a room: modules may import those of the lines above theirs. Those that
# are not named may import all that are, and nothing in the room imports them.
FLOORS = {
  "ops": (
    "platform precision",
    "chunks feature_rows label_sample layout normalize rounding targets tiles",
    "loss row_format shards choice",
    "batch_topk topk label_gather row_optimizer",
    "label_ranking",
  ),
  "ops.pairs": ("host_loops segment_sums", "host_call"),
  "ops.kernels": (
    "exponentials problem",
    "blocks call",
    "gradient positives statistics update",
  ),
  "losses": (
    "logistic softmax",
    "decoupled_softmax separable",
    "bce",
  ),
  "data": (
    "csr errors frames parse",
    "numbering",
    "cache checks label_pairs lines mapped strict sampler",
    "cells",
    "arrow",
    "discover",
    "names npy order row_split text verification writers",
    "entries",
    "arrays interactions label_lists tables",
    "formats",
    "ingest",
    "sequences tokens user_items",
    "store",
    "padding statistics",
  ),
  "export": (
    "card host_loops near_rows reader run tensors",
    "arrays artifact compress scores",
    "artifact_scores explain",
    "measure model",
    "index",
  ),
  "search": ("loops", "exact", "external index"),
  "text": (
    "word_loops",
    "characters",
    "tokens words",
    "vectors",
    "features",
  ),
  "commands": ("helping", "launching", "processes"),
  "heads.dense": ("block_sample rows", "kernels tied wide"),
  "heads.product": ("mixed_radix", "distribution", "search", "topk"),
}
# The label layer can be used alone.
LABEL_LAYER = ("ops", "losses", "heads")
NOT_FOR_THE_LABEL_LAYER = {"grain", "orbax", "absl", "ml_collections"}


def room_and_module(name):
  """The room of `xlj.a.b`, and the rest of its name."""
  parts = name.split(".")[1:]
  for size in (2, 1):
    room = ".".join(parts[:size])
    if room in ALLOWED:
      return room, ".".join(parts[size:])
  raise AssertionError(f"say in {__file__} what {name} may import")


def imports_of(path):
  """Full names of what a file imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def modules():
  """Name and imports of each module of xlj."""
  for path in sorted((ROOT / "xlj").rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts).removesuffix(".__init__")
    if name != "xlj":
      yield name, imports_of(path)


def floor_of(room, module):
  """The line of a module in its room; that after the last if not named."""
  lines = FLOORS.get(room, ())
  named = [i for i, line in enumerate(lines) if module in line.split()]
  return named[0] if named else len(lines)


def test_imports_go_down():
  wrong = []
  for name, imports in modules():
    room, module = room_and_module(name)
    for other in imports:
      if not other.startswith("xlj."):
        continue
      there, rest = room_and_module(other)
      if there != room:
        if there not in ALLOWED[room]:
          wrong.append(f"{name} imports {other}")
      elif room in FLOORS and module:
        if floor_of(room, rest.split(".")[0]) >= floor_of(room, module):
          wrong.append(f"{name} imports {other}, which is not below it")
  assert not wrong, "\n".join(wrong)


def test_the_label_layer_imports_no_part_of_the_framework():
  wrong = [
    name
    for name, imports in modules()
    if name.split(".")[1] in LABEL_LAYER
    and {i.split(".")[0] for i in imports} & NOT_FOR_THE_LABEL_LAYER
  ]
  assert not wrong


def test_the_label_layer_loads_alone():
  code = (
    "import sys, xlj, xlj.heads, xlj.heads.dense, xlj.losses, xlj.ops;"
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


def test_the_rooms_have_no_cycle():
  left = dict(ALLOWED)
  while left:
    free = [room for room, edges in left.items() if not edges & left.keys()]
    assert free, f"a cycle among {sorted(left)}"
    for room in free:
      del left[room]


def test_the_top_level_is_small_and_files_are_short():
  files = list((ROOT / "xlj").rglob("*.py"))
  top = [f.name for f in files if f.parent == ROOT / "xlj"]
  top.remove("__main__.py")  # which nothing but xlj itself imports
  assert len(top) <= 6, top
  long = {
    str(f.relative_to(ROOT)): count
    for f in files
    if (count := len(f.read_text().splitlines())) > 560
  }
  assert not long


# --- packages ----------------------------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages(requirements):
  """Normalized names of the packages that requirements name."""
  names = [re.match(r"[\w.-]+", text).group() for text in requirements]
  return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


def imported_packages(nodes, owners):
  """Packages that import statements among nodes need; `owners` of modules."""
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add(node.module)
  names = {name.split(".")[0] for name in names}
  names -= sys.stdlib_module_names | {"xlj", "configs"}
  return packages(owners.get(name, [name])[0] for name in names)


def test_what_is_imported_is_declared_and_nothing_else():
  always, sometimes = set(), set()
  owners = metadata.packages_distributions()
  for folder in ("xlj", "launch", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      tree = ast.parse(path.read_text())
      always |= imported_packages(tree.body, owners)
      sometimes |= imported_packages(ast.walk(tree), owners)
  declared = packages(PROJECT["dependencies"])
  extras = PROJECT["optional-dependencies"]
  optional = packages(
    x for name in extras if name != "test" for x in extras[name]
  )
  assert always <= declared, always - declared
  assert sometimes <= declared | optional, sometimes - declared - optional
  assert declared <= sometimes, declared - sometimes


def test_every_extra_has_the_same_limits_of_jax():
  extras = PROJECT["optional-dependencies"].values()
  everything = [
    *PROJECT["dependencies"],
    *(x for extra in extras for x in extra),
  ]
  limits = [
    re.sub(r"^jax(\[\w+\])?", "", x) for x in everything if x[:3] == "jax"
  ]
  assert limits == [jax_private.SUPPORTED] * 3
