"""Writes the model of a run as a directory of its own; see `xlj.export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from xlj.export import artifact as artifact_lib
from xlj.export import card
from xlj.export import compress
from xlj.export import index as index_lib
from xlj.export import measure
from xlj.export import model as model_lib
from xlj.export import reader
from xlj.export import tensors as tensors_lib
from xlj.inference import fusion
from xlj.inference import predictor
from xlj.model import neighbours as neighbours_lib
from xlj.report import recorded
from xlj.runs import directory
from xlj.runs import ownership

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
FEATURIZER = "featurizer"
MAX_LOSS = 0.2  # points
_ROUNDING = 1e-9  # of figures
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
  dtype: str = "auto",
  prune: float = 0.0,
  max_bytes: int = 0,
  max_loss: float | None = None,
  rows: str = "",
  data_dir: str | None = None,
  artifact: bool = False,
  k: int | None = None,
  index: float = 0.0,
  index_library: str = "xlj",
) -> dict[str, Any]:
  """Writes a model that answers without its run.

  Where there are held-out rows, the model is measured with them as it was
  written, and what loses too much is not kept.

  Args:
    workdir: Directory of the run.
    output: Directory of the model: missing, empty, or of an exported model,
      which is replaced file by file, the manifest at last.
    which: "best" checkpoint by the validation metric, or "last".
    predict: Fields of the section `predict` of the config that are not as the
      run has them.
    dtype: Of weights, one of `compress.DTYPES`; or "auto": the narrowest with
      which the loss is small enough. Without rows to measure with that is
      float32, or int8 with `max_bytes`, so that as few weights as can be are
      dropped.
    prune: Share of the sparse weights to drop, the smallest ones.
    max_bytes: Size of the file of weights, for which as many sparse weights as
      it takes are dropped; 0 for any.
    max_loss: Points of P@1, P@3, P@5 and PSP@5 that may be lost; by default
      0.2, where there are rows to measure with.
    rows: Those to measure with; see `measure.held_out`.
    data_dir: Directory of the data; by default that of training.
    artifact: Whether to write programs of JAX as well, with weights of their
      own, as they are; see `artifact`. Of a model that arrays alone do not say
      they are all that is written, and nothing is measured.
    k: How many labels they find, as for `artifact.check`.
    index: Share of the ten best labels that an index is to find; 0 for none.
      See `xlj.export.index`.
    index_library: Whose index.

  Returns:
    The manifest.

  Raises:
    ConfigError: There is no such run, its model cannot be exported, loses too
      much or is too large, or `output` holds something else.
    DataError: The rows cannot be read.
    OSError: A file cannot be written.
  """
  output = directory.resolve(output, "output")
  check_output(output)
  workdir = directory.resolve(workdir)
  _check_config(workdir, directory.load_config(workdir))
  _check_asked(dtype, prune, max_bytes, max_loss)
  run = predictor.load(workdir, which=which, predict=predict)
  is_artifact = arrays.kind(run) == "artifact"
  if is_artifact:
    _check_as_it_is(run, dtype, prune, max_bytes, max_loss)
  elif k is not None and not artifact:
    raise config_lib.ConfigError(f"k is {k}, which only an artifact reads")
  if is_artifact or artifact:
    artifact_lib.check(run, k)
  held = None if is_artifact else measure.held_out(run, rows, data_dir)
  if held is None and max_loss is not None:
    raise config_lib.ConfigError(
      f"max_loss is {max_loss:g}, and there are no rows that {workdir} was not"
      " trained on to measure a loss with; name some by --rows, or leave it out"
    )
  tensors = arrays.of_labels(run) if is_artifact else arrays.of(run)
  size = tensors_lib.file_bytes(tensors)
  if prune:
    tensors = compress.pruned(tensors, prune)
  if dtype != "auto":
    dtypes = [dtype]
  elif held is None:
    dtypes = ["int8" if max_bytes else "float32"]
  else:
    dtypes = [name for name in compress.DTYPES if name != "fp8"]
  with replacing(output) as partial:
    _copy(run, partial)
    if is_artifact or artifact:
      artifact_lib.write(run, partial, _config(run), k)
    manifest = _manifest(run)
    if held is None:
      _write_weights(partial, manifest, tensors, dtypes[0], max_bytes)
    else:
      most = MAX_LOSS if max_loss is None else max_loss
      table = {"the run": (size, held.figures(run))}
      _choose(partial, manifest, tensors, dtypes, max_bytes, held, table, most)
    if index:
      made = index_lib.write(partial, held, index, index_library)
      manifest["index"] = made
    found = recorded.read(workdir)
    files.write_text(partial / card.FILE, card.text(found, manifest))
    _write_manifest(partial, manifest)
  size = sum(file["bytes"] for file in manifest["files"].values())
  logging.info(
    "Wrote %s: %d labels, %s, %.1f MB",
    *(output, run.num_labels, manifest["dtype"], size / 1e6),
  )
  return manifest


def _check_asked(
  dtype: str, prune: float, max_bytes: int, max_loss: float | None
) -> None:
  """Refuses options that mean nothing."""
  if dtype not in ("auto", *compress.DTYPES):
    known = ", ".join(("auto", *compress.DTYPES))
    raise config_lib.ConfigError(f"dtype is {dtype!r}; use one of {known}")
  if not 0 <= prune < 1:
    raise config_lib.ConfigError(
      f"prune is {prune:g}; give the share of weights to drop, in [0, 1)"
    )
  if max_bytes < 0 or (max_bytes and prune):
    raise config_lib.ConfigError(
      f"max_bytes is {max_bytes} and prune {prune:g}; give a size above 0, or"
      " the share of weights to drop"
    )
  if max_loss is not None and not max_loss >= 0:
    raise config_lib.ConfigError(
      f"max_loss is {max_loss:g}; give points that may be lost, from 0 on"
    )


def _choose(
  partial: Path,
  manifest: dict[str, Any],
  tensors: tensors_lib.Tensors,
  dtypes: Sequence[str],
  max_bytes: int,
  held: measure.HeldOut,
  table: dict[str, tuple[int, dict[str, float]]],
  max_loss: float,
) -> None:
  """Writes weights of the first of some types that does not lose too much.

  Raises:
    ConfigError: They all do.
  """
  ((_, before),) = table.values()
  losses = {}
  for dtype in dtypes:
    _write_weights(partial, manifest, tensors, dtype, max_bytes)
    after = held.figures(model_lib.load(partial))
    table[dtype] = manifest["files"][WEIGHTS]["bytes"], after
    losses[dtype] = measure.loss(before, after)
    if losses[dtype] <= max_loss + _ROUNDING:
      break
  print(f"{len(held.rows):,} held-out rows of {held.data.name}, percent")
  print("\n".join(measure.table(table)), flush=True)
  if losses[dtype] > max_loss + _ROUNDING:
    each = ", ".join(f"{name} {value:.2f}" for name, value in losses.items())
    raise config_lib.ConfigError(
      f"the model loses more than {max_loss:g} points ({each}); nothing was"
      " written. Drop fewer weights (--prune, --max_bytes), use a wider"
      " --dtype, or allow more by --max_loss"
    )
  manifest["measured"] = {
    "rows": len(held.rows),
    "of": held.data.name,
    "before": dict(before),
    "after": dict(table[dtype][1]),
  }


def _write_weights(
  partial: Path,
  manifest: dict[str, Any],
  tensors: tensors_lib.Tensors,
  dtype: str,
  max_bytes: int,
) -> None:
  """Writes weights of a type, and what says so; there is a model then."""
  if max_bytes:
    share = compress.share_for(tensors, dtype, max_bytes)
    if share:
      logging.info(
        "max_bytes: %.1f %% of the sparse weights are dropped in %s",
        *(100 * share, dtype),
      )
      tensors = compress.pruned(tensors, share)
  (partial / WEIGHTS).unlink(missing_ok=True)
  tensors_lib.write(partial / WEIGHTS, compress.narrowed(tensors, dtype))
  manifest["dtype"] = dtype
  _write_manifest(partial, manifest)


def _write_manifest(partial: Path, manifest: dict[str, Any]) -> None:
  """Writes the manifest, with the files that are there now."""
  manifest["files"] = _files(partial)
  _save(partial, manifest)


def _save(directory: Path, manifest: dict[str, Any]) -> None:
  """Writes the manifest as it is."""
  text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
  files.write_text(directory / MANIFEST, text)


def check_output(output: Path) -> None:
  """Refuses a directory that holds anything but an exported model.

  Raises:
    ConfigError: Naming it.
  """
  if output.exists() and not output.is_dir():
    raise config_lib.ConfigError(f"{output} is a file; use another output")
  if not output.exists() or (output / MANIFEST).exists():
    return
  if not all(
    path.name == _PARTIAL or ownership.is_mark(path)
    for path in output.iterdir()
  ):
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


def _check_as_it_is(
  run: predictor.Predictor,
  dtype: str,
  prune: float,
  max_bytes: int,
  max_loss: float | None,
) -> None:
  """Refuses to narrow the weights of programs."""
  is_narrow = dtype not in ("auto", "float32") or prune or max_bytes
  if is_narrow or max_loss is not None:
    raise config_lib.ConfigError(
      f"{run.workdir} has head.type={run.config.head.type!r} and"
      f" encoder.type={run.config.encoder.type!r}, whose weights are exported"
      " as they are; leave out --dtype, --prune, --max_bytes and --max_loss"
    )


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
  """Gives a directory to write to, whose files then become those of another.

  Args:
    output: The other, that `check_output` has let pass. If the block raises, it
      stays as it was.

  Yields:
    An empty directory inside of it, which no other process writes.

  Raises:
    ConfigError: Another process exports to it.
    OSError: It cannot be written.
  """
  with ownership.owning(output):
    partial = output / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir()
    try:
      yield partial
      written = sorted(path.name for path in partial.iterdir())
      for name in sorted(written, key=lambda name: name == MANIFEST):
        if (output / name).is_dir():
          _remove(output / name)
        (partial / name).replace(output / name)
      for path in list(output.iterdir()):
        if path.name not in written and not ownership.is_mark(path):
          _remove(path)
    finally:
      shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
  """Removes a file, or a directory with all that is in it."""
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copy(run: predictor.Predictor, partial: Path) -> None:
  """Writes what the run has besides arrays, and what reads them alone."""
  if arrays.kind(run) != "artifact":
    shutil.copyfile(reader.__file__, partial / "reader.py")
  if (names := run.label_names) is not None:
    names_lib.write_names(partial / splits.NAMES_FILE, names)
  if run.run.encoding is not None:
    (partial / FEATURIZER).mkdir()
    run.run.encoding.featurizer.save(partial / FEATURIZER)
  elif (names := run.feature_names) is not None:
    names_lib.write_names(partial / splits.FEATURES_FILE, names)


def _manifest(run: predictor.Predictor) -> dict[str, Any]:
  """What a reader has to know, without what is said of the weights."""
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
    "input": run.input,
    "num_features": run.num_features,
    "num_labels": run.num_labels,
    "num_ids": run.num_ids,
    "weighting": weighting,
    "config": dict(checks.flatten(_config(run))),
    "neighbours": neighbours,
    "calibration": None if calibration is None else calibration.to_dict(),
    "measured": None,
    "index": None,
  }


def _config(run: predictor.Predictor) -> ml_collections.ConfigDict:
  """The config without places of this machine."""
  config = run.config.copy_and_resolve_references()
  places = [k for k, v in checks.flatten(config) if k in _PLACES and v]
  config.update_from_flattened_dict(dict.fromkeys(places, ""))
  return config


def refresh(directory: Path) -> None:
  """Makes the programs of an artifact again; no run is needed.

  Args:
    directory: Of an exported model, or its `artifact/`.

  Raises:
    ConfigError: There is no artifact, or it is not as it was written.
    OSError: A file cannot be read or written.
  """
  folder = artifact_lib.refresh(directory)
  model = folder.absolute().parent
  if (model / MANIFEST).exists():
    manifest = json.loads((model / MANIFEST).read_text())
    for name, entry in _files(model).items():
      if name.startswith(f"{folder.name}/"):
        manifest["files"][name] = entry
    _save(model, manifest)
  logging.info("Made the programs of %s again", folder)


def _files(partial: Path) -> dict[str, dict[str, Any]]:
  """Sizes and checksums of all files but the manifest."""
  found = {}
  for path in sorted(partial.rglob("*")):
    if path.is_file() and path != partial / MANIFEST:
      with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
      name = path.relative_to(partial).as_posix()
      found[name] = {"bytes": path.stat().st_size, "sha256": digest}
  return found
