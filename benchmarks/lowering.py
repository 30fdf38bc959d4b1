"""Which programs of xlj lower for CUDA and TPU: every head, loss and row type.

  python benchmarks/lowering.py --json=lowering.json

Training steps and searches are traced for accelerators on abstract meshes of
1, 8 and 256 devices, and lowered for each platform; nothing is compiled or
run, and no such device has to be there. A program may not call this process,
compute in float64, or have a shape that is not known beforehand; a combination
that a config refuses is told with the reason. Sizes are such that a loop over
examples, labels or features would run thousands of times, and loops are
counted.

Prints a line for each head and type of rows, and writes a table of them as
`render_tables.py` has it.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import datetime
import json
import pathlib
import subprocess
from typing import Any

import ml_collections

from xlj import config as config_lib
from xlj.config import checks
from xlj.config import families
from xlj.config import heads
from xlj.model import model as model_lib
from xlj.planning import lowering

EXAMPLES, FEATURES, LABELS = 1792, 70_001, 50_021
WIDTH = 24  # features of an example
IMAGE = 32, 32, 3
DTYPES = ("float32", "bfloat16", "float8")
# Fields beside `head.type`, by what a row of the table calls it.
HEADS: dict[str, dict[str, Any]] = {
  "dense": {},
  "dense, unit rows": {"head.cosine": True, "head.max_norm": 2.0},
  "dense, linear weights too": {"head.wide": True, "head.wide_pairs": 2**18},
  "dense, linear weights alone": {
    "family": "linear",
    "head.by_example": False,
    "head.wide_pairs": 2**18,
  },
  "dense, by example": {
    "family": "linear",
    "head.by_example": True,
    "head.loss": "bce",
    "head.wide_pairs": 2**18,
  },
  "dense, several rows a label": {"head.prototypes": 2},
  "mhc": {"head.type": "mhc"},
  "mhs": {"head.type": "mhs"},
  "mhp": {"head.type": "mhp"},
  "oltr": {"head.type": "oltr"},
  "spherical": {"head.type": "spherical", "head.use_bias": False},
}
ENCODERS: dict[str, dict[str, Any]] = {
  "bag": {"encoder.hidden": (32,)},
  "resnet": {"encoder.image": IMAGE},
  "vit": {"encoder.image": IMAGE},
  "transformer": {
    "encoder.sizes.width": 16,
    "encoder.sizes.depth": 2,
    "encoder.sizes.hidden": 32,
  },
  "causal": {"data.sequences": "not read"},
  "causal, tied": {
    "encoder.type": "causal",
    "encoder.tied": True,
    "data.sequences": "not read",
  },
}


COLUMNS = (
  ("", None),
  ("losses", None),
  ("programs with rows of float32 / bfloat16 / float8", None),
  ("arrays updated in place", None),
  ("longest loop of a known length", "{:,}"),
  ("calls of libraries", None),
  ("faults", None),
)


@dataclasses.dataclass(frozen=True)
class Found:
  """What the programs of a config are.

  Attributes:
    programs: How many there are.
    calls: What they call beside operations of StableHLO.
    longest: The most often that a loop runs, of those whose number is known.
    updated: Least number of arrays that a step updates in place.
    faults: What is wrong with any.
  """

  programs: int
  calls: tuple[str, ...]
  longest: int
  updated: int
  faults: tuple[str, ...]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--json", type=pathlib.Path, help="file to write")
  options = parser.parse_args()
  records = []
  for record in of_heads():
    records.append(record)
    print(json.dumps(record), flush=True)
  for record in of_encoders():
    records.append(record)
    print(json.dumps(record), flush=True)
  if options.json:
    kept = {"origin": origin(), "columns": COLUMNS, "rows": rows_of(records)}
    options.json.write_text(json.dumps(kept, indent=1) + "\n")
  if any(record["faults"] for record in records):
    raise SystemExit("some programs are not for accelerators alone")


def origin() -> dict[str, Any]:
  """Where the table comes from."""
  commit = subprocess.run(
    ["git", "rev-parse", "--short=8", "HEAD"],
    cwd=pathlib.Path(__file__).parent,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout.strip()
  return {
    "machine": "lowered for CUDA and TPU, not compiled or run",
    "cores": None,
    "commit": commit or None,
    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    "seeds": "none",
    "load": "no times measured",
    "command": "python benchmarks/lowering.py",
  }


def rows_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Rows of the table: one for each head, over its types of rows."""
  rows = []
  for name in dict.fromkeys(r["what"] for r in records):
    found = [r for r in records if r["what"] == name]
    losses = list(dict.fromkeys(loss for r in found for loss in r["losses"]))
    updated = [r["updated"] for r in found if r["updated"]]
    cells = [
      name,
      ", ".join(losses),
      " / ".join(str(r["programs"] or "refused") for r in found),
      ", ".join(dict.fromkeys(map(str, updated))),
      max(r["longest_loop"] for r in found),
      ", ".join(dict.fromkeys(call for r in found for call in r["calls"])),
      "; ".join(dict.fromkeys(fault for r in found for fault in r["faults"])),
    ]
    rows.append({"cells": cells})
  return rows


def of_heads() -> Iterator[dict[str, Any]]:
  """Yields what is found of each head and row type, over all its losses."""
  for name, fields in HEADS.items():
    kind = heads.HEADS[fields.get("head.type", "dense")]
    for dtype in DTYPES:
      lowered, refused = {}, {}
      for loss in kind.losses:
        more = {"head.loss": loss}
        if dtype != DTYPES[0]:
          more["head.dtype"] = dtype
        try:
          config = make(fields | more)
        except checks.ConfigError as error:
          refused[loss] = str(error)
          continue
        lowered[loss] = look(config, search=not lowered)
      yield record(name, dtype, lowered, refused)


def of_encoders() -> Iterator[dict[str, Any]]:
  """Yields what is found of each encoder, under the dense head."""
  for name in ENCODERS:
    found = look(encoder_config(name))
    yield record(f"encoder {name}", DTYPES[0], {"softmax": found}, {})


def record(
  name: str, dtype: str, lowered: dict[str, Found], refused: dict[str, str]
) -> dict[str, Any]:
  """A line of the table."""
  found = list(lowered.values())
  return {
    "what": name,
    "rows": dtype,
    "losses": list(lowered),
    "refused": refused,
    "programs": sum(f.programs for f in found),
    "calls": sorted({call for f in found for call in f.calls}),
    "longest_loop": max((f.longest for f in found), default=0),
    "updated": min((f.updated for f in found), default=0),
    "faults": sorted({fault for f in found for fault in f.faults}),
  }


def look(config: ml_collections.ConfigDict, search: bool = True) -> Found:
  """Lowers the programs of a config for each platform and mesh.

  Args:
    config: Resolved.
    search: Whether to lower the search of labels too.

  Returns:
    What they are.
  """
  texts, updated, model = [], [], model_lib.Model(config)
  for shape in lowering.MESHES:
    step = lowering.step(model, config, shape)
    traced = [step]
    if search:
      traced.append(lowering.topk(model, config, shape))
    for program in traced:
      for platform in lowering.PLATFORMS:
        text = lowering.text(program, (platform,))
        texts.append(text)
        if program is step:
          updated.append(lowering.updated(text))
  known = [n for text in texts for n in lowering.loops(text) if n is not None]
  return Found(
    len(texts),
    tuple(sorted({call for text in texts for call in lowering.calls(text)})),
    max(known, default=0),
    min(updated),
    tuple(sorted({f for text in texts for f in lowering.faults(text)})),
  )


def encoder_config(name: str) -> ml_collections.ConfigDict:
  """The config of one of `ENCODERS`."""
  return make({"encoder.type": name, "head.loss": "softmax"} | ENCODERS[name])


def make(fields: dict[str, Any]) -> ml_collections.ConfigDict:
  """A resolved config of data that are only described.

  Args:
    fields: By dotted name.

  Returns:
    The config.
  """
  config = config_lib.base()
  given = {"family": "embedding"} | fields
  encoder = given.get("encoder.type", "bag")
  is_image = encoder in ("resnet", "vit")
  if given["family"] != "linear":
    given = {"encoder.dim": 16} | given
  config.update_from_flattened_dict(
    {
      "train.batch_size": EXAMPLES,
      "data.feature_norm": 1.0,
      "data.max_labels": 1,
      "data.max_features": 0 if is_image else WIDTH,
      "predict.propensity_power": 0.0,
    }
    | given
  )
  facts = families.DataFacts(
    num_rows=99_991,
    num_features=IMAGE[0] * IMAGE[1] * IMAGE[2] if is_image else FEATURES,
    num_labels=LABELS,
    labels_per_row=1.0,
    features_per_row=float(WIDTH),
    dense=is_image,
    kind="dense" if is_image else "counts",
    fingerprint="",
    image=IMAGE if is_image else (),
  )
  return config_lib.resolve(config, facts)


if __name__ == "__main__":
  main()
