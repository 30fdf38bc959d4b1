"""Which logical axis lives on which mesh axes; the only place that names them.

Label rows, and the examples of a batch, are split over all devices; everything
that does not grow with the number of labels is replicated.
"""

from typing import Any

import jax
import optax

P = jax.P

AXES = ("data", "label")
REPLICATED = P()
BATCH = P(AXES)  # leading axis: examples
LABELS = P(AXES)  # leading axis: label rows
LABELS_LAST = P(None, AXES)  # feature-major weights `[F, L]`


def named(mesh: jax.sharding.Mesh, specs: Any) -> Any:
  """Turns a tree of `PartitionSpec` into a tree of `NamedSharding`."""
  return jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec),
    specs,
    is_leaf=lambda leaf: isinstance(leaf, P),
  )


def replicated_like(tree: Any) -> Any:
  """A tree of `REPLICATED` with the structure of `tree`."""
  return jax.tree.map(lambda _: REPLICATED, tree)


def optimizer_specs(
  tx: optax.GradientTransformation, params: Any, param_specs: Any
) -> Any:
  """Specs of an optimizer state: moments like their parameter, rest replicated.

  Args:
    tx: The optimizer.
    params: Abstract or real parameters.
    param_specs: Tree of `PartitionSpec` with the structure of `params`.

  Returns:
    Tree of `PartitionSpec` with the structure of `tx.init(params)`.
  """
  return optax.tree_utils.tree_map_params(
    tx,
    lambda _, spec: spec,
    jax.eval_shape(tx.init, params),
    param_specs,
    transform_non_params=lambda _: REPLICATED,
  )


def put_batch(mesh: jax.sharding.Mesh, batch: Any) -> Any:
  """Assembles global arrays from this process's rows of a batch.

  Args:
    mesh: The mesh whose devices hold the batch.
    batch: Tree of numpy arrays, each with this process's examples leading.

  Returns:
    The same tree of global `jax.Array`, sharded by `BATCH`.
  """
  target = jax.NamedSharding(mesh, BATCH)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(target, x), batch
  )
