"""Makes a data set with missing, wrong or long-tailed labels from another one.

The test split and the names of labels are copied; nothing of them changes.

  xlj corrupt --data_dir=DIR --output_dir=OUT --seed=0 \\
    --mode=single_positive                      one label of each row is left
    --mode=missing --share=0.5                  labels are forgotten
    --mode=noise --share=0.4 [--asymmetric]     labels are replaced
    --mode=long_tail --imbalance=100            rows are left out

OUT/corruption.json says what was done, OUT/corruption.npz holds the rows that
were kept and their labels as they were (`rows`, `indptr`, `indices`).
"""

import json
from pathlib import Path
import shutil
from typing import Any
import uuid

from absl import flags
from absl import logging
import numpy as np

from xlj import files
from xlj.commands import launching
from xlj.data import csr as csr_lib
from xlj.data import discover
from xlj.data import errors
from xlj.data import names
from xlj.data import store
from xlj.data import writers
from xlj.synthetic import corrupt

_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory of a data set.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string(
  "output_dir",
  None,
  "Directory of the new one; it must not exist.",
  required=True,
)
_MODE = flags.DEFINE_enum(
  "mode",
  None,
  ["single_positive", "missing", "noise", "long_tail"],
  "What to do to the labels of the training split.",
  required=True,
)
_SEED = flags.DEFINE_integer("seed", 0, "Of all choices.", 0)
_SHARE = flags.DEFINE_float(
  "share", 0.5, "Of the labels that are missing, or wrong.", 0, 1
)
_ASYMMETRIC = flags.DEFINE_bool(
  "asymmetric", False, "Whether a wrong label is always the most similar one."
)
_IMBALANCE = flags.DEFINE_float(
  "imbalance", 100, "First label's rows over the last one's.", 1
)


def main() -> None:
  """Writes the data set."""
  source = Path(_DATA_DIR.value)
  output = files.local(_OUTPUT_DIR.value, "--output_dir")
  if output.exists():
    raise FileExistsError(f"{output} exists; name a directory that does not")
  train = store.open_split(source)
  rows, labels = _corrupted(train)
  if not len(rows):
    raise ValueError(f"no row of {source} is left; change the flags")
  partial = output.with_name(f"{output.name}.{uuid.uuid4().hex}.partial")
  partial.mkdir(parents=True)
  try:
    _write(partial, train, rows, labels, source)
    partial.rename(output)
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _corrupted(train: store.Split) -> tuple[np.ndarray, csr_lib.Csr]:
  """The rows that are kept, and their labels."""
  mode, seed, share = _MODE.value, _SEED.value, _SHARE.value
  labels, rows = train.labels, np.arange(train.num_rows)
  if mode == "single_positive":
    return rows, corrupt.single_positive(labels, seed)
  if mode == "missing":
    return rows, corrupt.missing(labels, share, seed)
  if mode == "long_tail":
    rows = corrupt.long_tail(labels, _IMBALANCE.value, seed)
    return rows, labels.take(rows)
  if not _ASYMMETRIC.value:
    return rows, corrupt.symmetric_noise(labels, share, seed)
  # Generated rows are not from files: there are none here.
  assert isinstance(train.features, csr_lib.Csr | np.ndarray)
  partner = corrupt.partners(train.features, labels)
  return rows, corrupt.asymmetric_noise(labels, partner, share, seed)


def _write(
  directory: Path,
  train: store.Split,
  rows: np.ndarray,
  labels: csr_lib.Csr,
  source: Path,
) -> None:
  """Writes the training split, and copies everything else."""
  if isinstance(train.features, csr_lib.Csr):
    features = train.features.take(rows)
    writers.write_one_file(directory / "train.txt", features, labels)
  else:
    kept = np.asarray(train.features)[rows]
    kept = kept.reshape(len(kept), *(train.image or (-1,)))
    np.save(directory / "X.trn.npy", kept)
    writers.write_npz(directory / "Y.trn.npz", labels)
  for path in _others(source):
    shutil.copyfile(path, directory / path.name)
  clean = train.labels.take(rows)
  np.savez_compressed(
    directory / "corruption.npz",
    rows=rows,
    indptr=clean.indptr,
    indices=clean.indices,
  )
  facts: dict[str, Any] = {
    "mode": _MODE.value,
    "seed": _SEED.value,
    "source": str(source.absolute()),
    "fingerprint": train.fingerprint,
    "rows": [train.num_rows, len(rows)],
    "labels": [train.labels.nnz, labels.nnz],
  }
  if _MODE.value in ("missing", "noise"):
    facts["share"] = _SHARE.value
  if _MODE.value == "noise":
    facts["asymmetric"] = _ASYMMETRIC.value
  if _MODE.value == "long_tail":
    facts["imbalance"] = _IMBALANCE.value
  text = json.dumps(facts, indent=2)
  (directory / "corruption.json").write_text(text + "\n")
  logging.info(
    "%d of %d rows and %d labels on them (%d before)",
    *(len(rows), train.num_rows, labels.nnz, train.labels.nnz),
  )


def _others(source: Path) -> list[Path]:
  """The files of other splits, and of names."""
  found = [source / name for name in names.FILES]
  found += [source / f"{name}.gz" for name in names.FILES]
  found = [path for path in found if path.is_file()]
  for split in discover.SPLITS:
    if split != "train":
      try:
        found += discover.find(source, split).all()
      except errors.DataError:
        if split == "test":
          raise
  return found


def run() -> None:
  """Runs the command."""
  launching.run(main)
