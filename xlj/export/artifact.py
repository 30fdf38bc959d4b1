"""A model's top-k as programs of JAX, for processes without xlj.

`artifact/` in the directory of an exported model needs nothing around it:

* `topk_K_by_R.bin`, serialised by `jax.export`: the K best labels of rows, R at
  a time, of any number of them that R divides. It is plain XLA for one device,
  the same for all of `PLATFORMS`.
* `weights.safetensors`: what the programs take besides rows, the leaves of the
  model's state by their path (see `xlj.export.tensors`)
* `artifact.json`: what it was made with and when, and what the programs take,
  in their order, and give
* `config.json`: of the run; with the weights, all that the programs are made of
* `run.py`: answers rows by JAX and NumPy alone

A JAX reads what those of the six months before it have made, and those of the
three weeks after it
(https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees).

Legend: n rows, K features of one (padded), F features, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
import datetime
import json
from pathlib import Path
import shutil
from typing import Any

import jax
from jax import export
from jax import lax
import jax.numpy as jnp
import ml_collections
import numpy as np

import xlj
from xlj import config as config_lib
from xlj import files
from xlj import sharding
from xlj.config import encoders
from xlj.export import near_rows
from xlj.export import run as run_lib
from xlj.export import tensors as tensors_lib
from xlj.inference import predictor
from xlj.model import model as model_lib
from xlj.ops import choice as choice_lib
from xlj.ops.pairs import label_pairs

FOLDER = "artifact"
PLATFORMS = ("cpu", "cuda", "tpu")
_MOST = 100  # labels, if it is not said how many
_ROWS = 1, 64  # at a time: for one row that waits, and for many
_KEPT = datetime.timedelta(days=180)  # that newer versions of JAX read it
_LOCATIONS = "jax_traceback_in_locations_limit"

_Shapes = dict[str, jax.ShapeDtypeStruct]


def check(run: predictor.Predictor, k: int | None = None) -> int:
  """Refuses a number of labels that cannot be found.

  Args:
    run: A run.
    k: How many labels the programs are to find; by default 100, or all if there
      are fewer.

  Returns:
    How many.

  Raises:
    ConfigError: k is no number of labels.
  """
  most = run.num_labels
  k = min(_MOST, most) if k is None else k
  if not 1 <= k <= most:
    raise config_lib.ConfigError(f"--k={k}: it must be in [1, {most}]")
  return k


def write(
  run: predictor.Predictor,
  directory: Path,
  config: ml_collections.ConfigDict,
  k: int | None = None,
) -> None:
  """Writes `artifact/` into the directory of an exported model.

  Args:
    run: The run.
    directory: Of the model.
    config: Of the run, without places of this machine.
    k: As for `check`.

  Raises:
    ConfigError: As there, or a package is missing.
    OSError: A file cannot be written.
  """
  k = check(run, k)
  folder = directory / FOLDER
  folder.mkdir()
  weights = _weights(run)
  tensors_lib.write(folder / run_lib.WEIGHTS, weights)
  files.write_text(folder / config_lib.FILE, config_lib.to_json(config))
  shapes = {
    name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()
  }
  _write_programs(folder, config, shapes, k)


def refresh(directory: Path) -> Path:
  """Makes the programs of an artifact again, of its own weights and config.

  Args:
    directory: Of the exported model, or its `artifact/`.

  Returns:
    The directory of the artifact.

  Raises:
    ConfigError: There is no artifact, or it is not as it was written.
    OSError: A file cannot be read or written.
  """
  folder = directory
  if not (folder / run_lib.ABOUT).exists():
    folder = directory / FOLDER
  try:
    about = run_lib.read_about(folder)
    weights = run_lib.read_tensors(folder / run_lib.WEIGHTS)
  except ValueError as error:
    raise config_lib.ConfigError(str(error)) from None
  config = config_lib.load(folder / config_lib.FILE)
  shapes = {
    name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()
  }
  _write_programs(folder, config, shapes, about["k"])
  return folder


def _weights(run: predictor.Predictor) -> dict[str, np.ndarray]:
  """All that programs take besides rows, as one device has it."""
  saved = _flat(_needed(run.config, run.model.saved().model))
  found = {
    # Where there are several devices, empty rows may follow.
    name: sharding.whole(a)[tuple(map(slice, saved[name].shape))]
    for name, a in _flat(_needed(run.config, run.state)).items()
  }
  if run.order.data_ids is not None:
    found["label_ids"] = run.order.data_ids.astype(np.int32)
  if run.neighbours is not None:
    found |= near_rows.arrays(run.neighbours, run.order)
  return found


def _needed(config: ml_collections.ConfigDict, state: Any) -> dict[str, Any]:
  """What top-k reads of the state of a model."""
  buffers = []
  if not config.data.dense and config.data.weighting.endswith("tfidf"):
    buffers.append("idf")
  if config.predict.propensity_power or config.data.sequences:
    buffers.append("label_counts")
  if config.encoder.tied and "label_ids" in state["buffers"]:
    buffers.append("label_ids")  # among whose rows items are found
  return {**state, "buffers": {b: state["buffers"][b] for b in buffers}}


def _flat(tree: Any) -> dict[str, Any]:
  """Leaves by name, as in "encoder.layers.0.kernel"."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _write_programs(
  folder: Path, config: ml_collections.ConfigDict, weights: _Shapes, k: int
) -> None:
  """Writes the programs, what they are, and what runs them."""
  now = datetime.datetime.now(datetime.UTC)
  programs = []
  made: Any = None
  for rows in _ROWS:
    made = _program(config, weights, k, rows)
    try:
      data = made.serialize()
    except ImportError as error:
      raise config_lib.ConfigError(
        f"an artifact needs a package ({error}): pip install 'xlj-jax[export]'"
      ) from None
    name = f"topk_{k}_by_{rows}.bin"
    with files.replacing(folder / name) as partial:
      partial.write_bytes(data)
    programs.append({"file": name, "rows": rows})
  in_order = encoders.reads_in_order(config)
  about = {
    "format": run_lib.FORMAT,
    "xlj": xlj.__version__,
    "jax": jax.__version__,
    "calling_convention": made.calling_convention_version,
    "made": now.isoformat(timespec="seconds"),
    "expires": (now + _KEPT).date().isoformat(),
    "platforms": made.platforms,
    "k": k,
    "input": "dense" if config.data.dense else "sparse",
    "num_features": config.data.num_features,
    "in_order": in_order,  # rows are tokens, of which the first ones are read
    "longest": encoders.longest(config) if in_order else None,
    "programs": programs,
    "weights": [_described(name, weights[name]) for name in sorted(weights)],
    "rows": [
      _described(name, a)
      for name, a in zip(_inputs(config), made.in_avals[len(weights) :])
    ],
    "results": [
      _described(name, a)
      for name, a in zip(("scores", "labels", "finite"), made.out_avals)
    ],
  }
  text = json.dumps(about, indent=2) + "\n"
  files.write_text(folder / run_lib.ABOUT, text)
  with files.replacing(folder / "run.py") as partial:
    shutil.copyfile(run_lib.__file__, partial)


def _described(name: str, a: Any) -> dict[str, Any]:
  shape = [n if isinstance(n, int) else str(n) for n in a.shape]
  return {"name": name, "shape": shape, "dtype": np.dtype(a.dtype).name}


def _inputs(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """What a program takes of rows."""
  return ("values",) if config.data.dense else ("ids", "values")


# --- programs ----------------------------------------------------------------


def _program(
  config: ml_collections.ConfigDict, weights: _Shapes, k: int, rows: int
) -> export.Exported:
  """Traces and lowers top-k for any number of rows that `rows` divides.

  What depends on their number, such as how many labels are scored at a time,
  has to know it: `rows` at a time are answered, as if those were all.
  """
  topk = _topk(config, k, rows)
  width = f"{config.data.num_features}" if config.data.dense else "f"
  limits = ()
  if encoders.reads_in_order(config):
    limits = (f"f <= {encoders.longest(config)}",)
  shape = export.symbolic_shape(f"{rows}*b, {width}", constraints=limits)
  dtypes = {"ids": jnp.int32, "values": jnp.float32}
  inputs = [jax.ShapeDtypeStruct(shape, dtypes[n]) for n in _inputs(config)]
  make = export.export(jax.jit(topk, keep_unused=True), platforms=PLATFORMS)
  before = getattr(jax.config, _LOCATIONS)
  jax.config.update(_LOCATIONS, 0)  # or it would name files of this machine
  try:
    return make(weights, *inputs)
  finally:
    jax.config.update(_LOCATIONS, before)


def _topk(
  config: ml_collections.ConfigDict, k: int, rows: int
) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """The function of weights and rows that a program is made of."""
  with jax.set_mesh(sharding.one_device()):
    model = model_lib.Model(config)
    specs = _needed(config, model.shardings().model)
    specs = jax.tree.map(lambda where: where.spec, specs)
    mesh = jax.sharding.get_abstract_mesh()
  names, tree = list(_flat(specs)), jax.tree.structure(specs)

  def some(weights: dict[str, jax.Array], inputs: dict[str, jax.Array]) -> Any:
    """The best labels of so many rows, where heads find a mesh."""
    state = jax.tree.unflatten(tree, [weights[name] for name in names])
    choice = choice_lib.Choice()
    if config.neighbours.count:
      extra = near_rows.gains(config, weights, **inputs)
      choice = choice_lib.Choice(extra=extra)
    with jax.sharding.use_abstract_mesh(mesh):
      batch = model_lib.Inputs(
        inputs.get("ids"),
        inputs["values"],
        jnp.full((rows, 1), -1, jnp.int32),
        jnp.zeros(rows),
      )
      state = jax.tree.map(jax.sharding.reshard, state, specs)
      batch, choice = jax.tree.map(
        lambda a: jax.sharding.reshard(a, sharding.BATCH), (batch, choice)
      )
      found = model.topk(state, batch, k, choice)
      return jax.sharding.reshard(found, sharding.REPLICATED)

  def topk(weights: dict[str, jax.Array], *given: jax.Array) -> Any:
    inputs = dict(zip(_inputs(config), given))
    if not config.data.dense:
      idf = weights.get("buffers.idf")
      ids, values = given
      inputs["values"] = _weighted(config, ids, values, idf)
    finite = jnp.isfinite(inputs["values"]).all(1)
    blocks = jax.tree.map(lambda a: a.reshape(-1, rows, a.shape[1]), inputs)
    with label_pairs.portable():
      found = lax.map(lambda block: some(weights, block), blocks)
    scores, labels = (a.reshape(-1, a.shape[-1]) for a in found)
    if "label_ids" in weights:
      ids = weights["label_ids"][labels]
      labels = jnp.where(labels < 0, -1, ids)
    return scores, labels, finite

  return topk


def _weighted(
  config: ml_collections.ConfigDict,
  ids: jax.Array,
  values: jax.Array,
  idf: jax.Array | None,
) -> jax.Array:
  """Values `[n, K]` of raw features as `xlj.data.weighting` has them."""
  if config.data.weighting.startswith("log"):
    values = jnp.copysign(jnp.log1p(jnp.abs(values)), values)
  if idf is not None:
    values = values * idf[ids]
  if config.data.l2:
    largest = jnp.abs(values).max(1, keepdims=True)  # whose square may overflow
    values = values / jnp.where(largest > 0, largest, 1)
    norms = jnp.sqrt(jnp.square(values).sum(1, keepdims=True))
    values = values / jnp.where(norms > 0, norms, 1)
  return values
