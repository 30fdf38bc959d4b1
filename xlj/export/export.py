"""Writes the model of a run as a directory of its own; see `xlj.export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import datetime
import hashlib
import json
from pathlib import Path
import shutil
from typing import Any

from absl import logging
import ml_collections

import xlj
from xlj import config as config_lib
from xlj import files
from xlj.config import checks
from xlj.config import splits
from xlj.data import names as names_lib
from xlj.export import arrays
from xlj.export import reader
from xlj.export import tensors as tensors_lib
from xlj.inference import fusion
from xlj.inference import predictor
from xlj.model import neighbours as neighbours_lib
from xlj.runs import directory

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FEATURIZER = "featurizer"
_PARTIAL = ".partial"
# Fields that say where something lies on this machine.
_PLACES = (
  "checkpoint.dir",
  "data.cache_dir",
  "data.dir",
  "encoder.pretrained",
  "text.pretrained",
  "train.start_from",
)


def export(
  workdir: str | Path,
  output: str | Path,
  *,
  which: str = "best",
  predict: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes a model that answers without its run.

  Args:
    workdir: Directory of the run.
    output: Directory of the model: missing, empty, or of an exported model,
      which is replaced file by file, the manifest at last.
    which: "best" checkpoint by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them.

  Returns:
    The manifest.

  Raises:
    ConfigError: There is no such run, its model cannot be exported, or `output`
      holds something else.
    OSError: A file cannot be written.
  """
  output = directory.resolve(output, "output")
  check_output(output)
  workdir = directory.resolve(workdir)
  _check_config(workdir, directory.load_config(workdir))
  run = predictor.load(workdir, which=which, predict=predict)
  _check_model(run)
  tensors = arrays.of(run)
  with replacing(output) as partial:
    tensors_lib.write(partial / WEIGHTS, tensors)
    _copy(run, partial)
    manifest = _manifest(run, "float32")
    manifest["files"] = _files(partial)
    files.write_text(
      partial / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    )
  size = sum(file["bytes"] for file in manifest["files"].values())
  logging.info(
    "Wrote %s: %d labels, %.1f MB", output, run.num_labels, size / 1e6
  )
  return manifest


def check_output(output: Path) -> None:
  """Refuses a directory that holds anything but an exported model.

  Raises:
    ConfigError: Naming it.
  """
  if output.exists() and not output.is_dir():
    raise config_lib.ConfigError(f"{output} is a file; use another output")
  if not output.exists() or (output / MANIFEST).exists():
    return
  if any(path.name != _PARTIAL for path in output.iterdir()):
    raise config_lib.ConfigError(
      f"{output} is not empty, and holds no exported model ({MANIFEST}); use"
      " another output"
    )


def _check_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
  """Refuses runs whose answers are not those of arrays."""
  if (workdir / fusion.FILE).exists():
    words = workdir / fusion.WORDS
    raise config_lib.ConfigError(
      f"{workdir} answers together with {words} ({fusion.FILE}), which no"
      " exported model does; export that run on words alone, by"
      f" --workdir={words}, or use the directory of the run as it is"
    )
  if config.data.renumber:
    raise config_lib.ConfigError(
      f"{workdir} has numbered its ids (data.renumber is True), which no"
      " exported model does; use the directory of the run as it is"
    )


def _check_model(run: predictor.Predictor) -> None:
  """Refuses models that have no kind."""
  if arrays.kind(run) == "artifact":
    raise config_lib.ConfigError(
      f"{run.workdir} has head.type={run.config.head.type!r} and"
      f" encoder.type={run.config.encoder.type!r}; what can be exported are"
      " dense label rows, after a bag of features or without an encoder; use"
      " the directory of the run as it is"
    )


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
  """Gives a directory to write to, whose files then become those of another.

  Args:
    output: The other, that `check_output` has let pass. If the block raises, it
      stays as it was.

  Yields:
    An empty directory inside of it.
  """
  existed = output.exists()
  partial = output / _PARTIAL
  shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
  partial.mkdir(parents=True)
  try:
    yield partial
    written = sorted(path.name for path in partial.iterdir())
    for name in sorted(written, key=lambda name: name == MANIFEST):
      if (output / name).is_dir():
        shutil.rmtree(output / name)
      (partial / name).replace(output / name)
    for path in output.iterdir():
      if path.name not in written:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  finally:
    shutil.rmtree(partial, ignore_errors=True)
    if not existed and not any(output.iterdir()):
      output.rmdir()


def _copy(run: predictor.Predictor, partial: Path) -> None:
  """Writes what the run has besides arrays, and what reads them alone."""
  shutil.copyfile(reader.__file__, partial / "reader.py")
  if (names := run.label_names) is not None:
    names_lib.write_names(partial / splits.NAMES_FILE, names)
  if run.run.encoding is not None:
    (partial / FEATURIZER).mkdir()
    run.run.encoding.featurizer.save(partial / FEATURIZER)
  elif (names := run.feature_names) is not None:
    names_lib.write_names(partial / splits.FEATURES_FILE, names)


def _manifest(run: predictor.Predictor, dtype: str) -> dict[str, Any]:
  """What a reader has to know, without the files."""
  weighting = {"kind": "none", "l2": False}
  if run.weighting is not None:
    weighting = run.weighting.to_dict()
  neighbours = None
  if run.neighbours is not None:
    kept = run.neighbours
    neighbours = {
      "count": kept.count,
      "weight": kept.weight,
      "temperature": kept.temperature,
      "small": neighbours_lib.SMALL,
    }
  calibration = run.calibration  # None if it is of another checkpoint
  return {
    "format": FORMAT,
    "xlj": xlj.__version__,
    "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "kind": arrays.kind(run),
    "input": _input(run),
    "num_features": run.num_features,
    "num_labels": run.num_labels,
    "num_ids": run.num_ids,
    "weighting": weighting,
    "dtype": dtype,
    "config": _config(run),
    "neighbours": neighbours,
    "calibration": None if calibration is None else calibration.to_dict(),
  }


def _input(run: predictor.Predictor) -> str:
  """What the model reads."""
  if run.run.encoding is not None:
    return "texts"
  if run.config.encoder.image:
    return "images"
  return "dense" if run.config.data.dense else "sparse"


def _config(run: predictor.Predictor) -> dict[str, Any]:
  """The fields of the config by name, without places of this machine."""
  fields = dict(checks.flatten(run.config))
  return {k: "" if k in _PLACES and v else v for k, v in fields.items()}


def _files(partial: Path) -> dict[str, dict[str, Any]]:
  """Sizes and checksums of all files."""
  found = {}
  for path in sorted(partial.rglob("*")):
    if path.is_file():
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      name = path.relative_to(partial).as_posix()
      found[name] = {"bytes": path.stat().st_size, "sha256": digest}
  return found
