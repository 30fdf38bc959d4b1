"""Directories of small runs to export, which nobody has trained."""

import jax
import numpy as np
import scipy.sparse

from tests import dense_heads
from tests import meshes
from xlj import config as config_lib
from xlj import sharding
from xlj.checkpoint import checkpointer
from xlj.config import families
from xlj.data import csr as csr_lib
from xlj.data import label_order
from xlj.data import names as names_lib
from xlj.model import model as model_lib
from xlj.model import neighbours as neighbours_lib
from xlj.ops import layout as layout_lib

F, L, N = 12, 13, 9
COUNTS = np.random.default_rng(3).permutation(L) + 1
ORDER = label_order.LabelOrder.by_frequency(COUNTS)
IDF = np.linspace(0.5, 2, F).astype(np.float32)
_FIELDS = {
  "linear": {"family": "linear", "encoder.dim": 0},
  "network": {
    "family": "network",
    "encoder.dim": 4,
    "encoder.hidden": (5, 3),
    "encoder.activation": "relu",
    "encoder.input_scale": 1.5,
    "head.wide": True,
    "neighbours.count": 4,
  },
}


def rows(n=N, seed=5):
  """Sparse examples `[n, F]` with raw values."""
  rng = np.random.default_rng(seed)
  dense = rng.integers(1, 4, (n, F)) * (rng.random((n, F)) < 0.4)
  return scipy.sparse.csr_array(dense.astype(np.float32))


def write_run(workdir, kind, **fields):
  """Leaves the directory of a run; fields are of dotted names with __."""
  config = config_lib.base()
  named = {name.replace("__", "."): value for name, value in fields.items()}
  config.update_from_flattened_dict(
    {
      **_FIELDS[kind],
      "data.feature_norm": 1.0,
      "data.weighting": "log_tfidf",
      "data.l2": True,
      "head.blocks": 4,
      "eval.batch_size": 8,
      "data.validation": 0.0,
      "predict.propensity_power": 0.5,
      **named,
    }
  )
  facts = families.DataFacts(99, F, L, 2.0, 3.0, False, "counts", "0" * 8)
  config = config_lib.resolve(config, facts)
  rng = np.random.default_rng(1)
  layout = layout_lib.Layout(L, 4)
  weights = np.zeros((F, layout.num_rows), np.float32)
  of_label = layout.row_of_label(np.arange(L))
  weights[:, of_label] = rng.normal(size=(F, L)) * (rng.random((F, L)) < 0.6)
  wide = dense_heads.with_wide({}, weights, 4)
  if not config.head.wide:
    wide = {}
  else:
    config.head.wide_pairs = wide["wide"].shape[1]
  with meshes.mesh((1, 1)) as mesh:
    model = model_lib.Model(config)
    state = model.init(
      sharding.replicate(jax.random.key(0)),
      model.by_row(ORDER.data_ids, -1),
      model.by_row(COUNTS[ORDER.data_ids].astype(np.int32), 0),
      sharding.replicate(IDF),
    )
    bias = rng.normal(size=layout.num_rows).astype(np.float32)
    head = {**state.model["head"], **wide, "bias": bias}
    specs = sharding.named(mesh, model.head.specs())
    state.model["head"] = jax.device_put(head, specs)
    with checkpointer.Checkpointer(workdir / checkpointer.DIRECTORY) as keeper:
      keeper.save(1, state.model, state.training, {"step": 1}, {"P@1": 1.0})
  if config.neighbours.count:
    labels = [rng.choice(L, 2, replace=False).tolist() for _ in range(30)]
    neighbours_lib.Neighbours(
      csr_lib.Csr.from_scipy(rows(30, seed=8)),
      csr_lib.Csr.from_rows([sorted(row) for row in labels], L),
      **config.neighbours,
    ).save(workdir)
  names_lib.write_names(
    workdir / "labels.txt", [f"label {i}" for i in range(L)]
  )
  (workdir / config_lib.FILE).write_text(config_lib.to_json(config))
  return workdir
