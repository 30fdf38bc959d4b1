"""A tree whose nodes are labels: distances, and means over children.

Nodes are ordered by depth, so that a level is a slice: a pass up or down the
tree takes one sum over segments, or one gather, a level. It is unrolled: meant
for trees of up to some hundred levels, of any number of nodes.

Legend: L labels, M nodes (the labels, and a root above them if there were
several), m nodes of a level, N examples, k labels of an example, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from xlj.ops import label_gather
from xlj.ops import layout as layout_lib

P = jax.P


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelTree:
  """A rooted tree of labels with lengths of its edges.

  Attributes:
    nodes: `[M]` int32, the label of each place; L for a root that is none.
    places: `[M]` int32, the place of each label, and of that root.
    parents: `[M]` int32 by place: place of the parent in the level above.
    lengths: `[M]` float32 by place: of the edge to it; 0 for the root.
    bounds: Where levels start, and M.
    num_labels: L.
  """

  nodes: np.ndarray | jax.Array
  places: np.ndarray | jax.Array
  parents: np.ndarray | jax.Array
  lengths: np.ndarray | jax.Array
  bounds: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  num_labels: int = dataclasses.field(metadata={"static": True})

  def levels(self) -> list[slice]:
    """The places of each level, from the root down."""
    return [slice(a, b) for a, b in zip(self.bounds, self.bounds[1:])]


def from_parents(
  parents: np.ndarray,
  lengths: np.ndarray | None = None,
  root_length: float = 1.0,
) -> LabelTree:
  """The tree in which each label hangs below another.

  Args:
    parents: `[L]` ints, the parent of each label; -1 for none. Labels without
      one are put below a root that is no label if there are several.
    lengths: `[L]` of the edge from each label to its parent; None for ones.
    root_length: That of the edges to such a root.

  Returns:
    The tree.

  Raises:
    ValueError: A parent is no label, or labels are their own ancestors.
  """
  parents = np.asarray(parents)
  if parents.ndim != 1 or (parents.size and parents.dtype.kind not in "iu"):
    raise ValueError(
      f"parents are {parents.dtype} {parents.shape}; give whole numbers [L]"
    )
  num_labels = len(parents)
  parents = parents.astype(np.int64)
  if num_labels == 0 or parents.min() < -1 or parents.max() >= num_labels:
    raise ValueError(
      f"parents must be labels from 0 to {num_labels - 1}, or -1 for none"
    )
  is_root = parents < 0
  num_nodes = num_labels + (is_root.sum() != 1)
  root = num_labels if num_nodes > num_labels else int(is_root.argmax())
  above = np.append(parents, root)[:num_nodes]
  above[:num_labels][is_root] = root
  depths = _depths(above, root)
  by_label = np.ones(num_labels) if lengths is None else np.asarray(lengths)
  length = np.append(np.where(is_root, root_length, by_label), 0)[:num_nodes]
  length[root] = 0
  nodes = np.argsort(depths, kind="stable")
  places = np.argsort(nodes)
  bounds = np.append(0, np.cumsum(np.bincount(depths)))
  level_above = bounds[np.maximum(depths - 1, 0)]
  return LabelTree(
    nodes.astype(np.int32),
    places.astype(np.int32),
    (places[above] - level_above)[nodes].astype(np.int32),
    length[nodes].astype(np.float32),
    tuple(int(b) for b in bounds),
    num_labels,
  )


def _depths(above: np.ndarray, root: int) -> np.ndarray:
  """Edges from each node to the root, by doubling the steps."""
  depths = (np.arange(len(above)) != root).astype(np.int64)
  for _ in range(len(above).bit_length()):
    depths = depths + depths[above]
    above = above[above]
  inside = np.flatnonzero(above != root)
  if len(inside):
    raise ValueError(f"label {inside[0]} is among its own ancestors")
  return depths


def expected_squares(
  tree: LabelTree, ids: jax.Array, weights: jax.Array
) -> jax.Array:
  """`sum_i p_i d(y, i)^2` for all labels y: a pass up and one down the tree.

  In O(M) an example, whatever the number k of labels with weight. Each node
  passes on the mass, first and second moment of the distance of what is below
  it, and gets back those of what is not. Roberts et al. 2023 ("Geometry-aware
  adaptation for pretrained models") predict the label where this is least.

  Args:
    tree: The tree.
    ids: `[N, k]` int labels; -1 is padding.
    weights: `[N, k]` float.

  Returns:
    `[N, L]` float32 (or wider).
  """
  moments = _moments(tree, ids, weights)
  by_place = jnp.concatenate([m[2] for m in moments])  # [M, N]
  return by_place[jnp.asarray(tree.places)[: tree.num_labels]].T


def _moments(tree, ids, weights):
  """Mass and moments of the distance from each node, `[3, m, N]` a level."""
  levels = tree.levels()
  places = jnp.asarray(tree.places)
  index = jnp.where(ids < 0, places.shape[0], places[ids])
  example = jnp.broadcast_to(jnp.arange(ids.shape[0])[:, None], ids.shape)
  dtype = jnp.promote_types(weights.dtype, jnp.float32)
  shape = places.shape[0], ids.shape[0]
  mass = jnp.zeros_like(weights, shape=shape, dtype=dtype)
  mass = mass.at[index, example].add(weights.astype(dtype), mode="drop")
  zeros = jnp.zeros_like(mass)
  own = jnp.stack([mass, zeros, zeros])  # [3, M, N]
  below = [own[:, level] for level in levels]
  passed = [below[0]]  # of the root, which passes nothing on
  for depth in range(len(levels) - 1, 0, -1):
    up = _moved(below[depth], jnp.asarray(tree.lengths)[levels[depth], None])
    parents = jnp.asarray(tree.parents)[levels[depth]]
    below[depth - 1] = below[depth - 1].at[:, parents].add(up)
    passed.insert(1, up)
  for depth in range(1, len(levels)):
    parents = jnp.asarray(tree.parents)[levels[depth]]
    rest = below[depth - 1][:, parents] - passed[depth]
    length = jnp.asarray(tree.lengths)[levels[depth], None]
    below[depth] = below[depth] + _moved(rest, length)
  return below


def _moved(moments, length):
  """Moments `[3, m, N]` of distances that are longer by `[m, 1]`."""
  mass, first, second = moments
  return jnp.stack(
    [
      mass,
      first + length * mass,
      second + 2 * length * first + length**2 * mass,
    ]
  )


def distances(tree: LabelTree, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Lengths of the paths between pairs of labels, by climbing to where they
  meet.

  Args:
    tree: The tree.
    a: `[n]` ints, labels.
    b: `[n]` ints, labels.

  Returns:
    `[n]` float64.
  """
  places = np.asarray(tree.places)
  bounds = np.asarray(tree.bounds)
  parents, lengths = np.asarray(tree.parents), np.asarray(tree.lengths)
  depth = np.searchsorted(bounds, np.arange(len(places)), "right") - 1
  above = parents + bounds[np.maximum(depth - 1, 0)]
  a, b = places[np.asarray(a)], places[np.asarray(b)]
  total = np.zeros(len(a))
  while (a != b).any():
    # Of two nodes the one at the later place is not above the other.
    a, b = np.minimum(a, b), np.maximum(a, b)
    apart = a != b
    total += np.where(apart, lengths[b], 0)
    b = np.where(apart, above[b], b)
  return total


def num_below(tree: LabelTree) -> np.ndarray:
  """How many labels are below each label, `[L]` ints."""
  counts = np.ones(len(tree.nodes), np.int64)
  levels = tree.levels()
  for level, upper in zip(levels[:0:-1], levels[-2::-1]):
    np.add.at(counts[upper], np.asarray(tree.parents)[level], counts[level])
  return counts[np.asarray(tree.places)[: tree.num_labels]] - 1


def smooth(
  tree: LabelTree,
  rows: jax.Array,
  *,
  layout: layout_lib.Layout | None = None,
  least: float = 0.4,
  more: float = 0.4,
) -> jax.Array:
  """Label rows mixed with the mean of their children's, from the leaves up.

  `w_u <- (1 - a) w_u + a mean(children)`, where a grows with the number n of
  labels below: `a = least + more log(2 + n) / log(2 + L)` (CQ-DINO, 2025,
  arXiv 2503.18430; 0.4 and 0.4 there). Children have been mixed before. Not
  for a training step: a pass over all rows for each level.

  Args:
    tree: The tree.
    rows: `[L', D]` with `L' >= L`, split over devices or not.
    layout: Where the row of each label is; None for row i of label i.
    least: See above.
    more: See above.

  Returns:
    `[L', D]` of the type of `rows`, split like them.
  """
  relative = np.log(2 + num_below(tree)) / np.log(2 + tree.num_labels)
  share = least + more * relative
  if layout is None:
    layout = layout_lib.Layout(tree.num_labels)
  levels, nodes = tree.levels(), np.asarray(tree.nodes)
  for level, upper in zip(levels[:0:-1], levels[-2::-1]):
    parents = nodes[upper][np.asarray(tree.parents)[level]]
    is_label = parents < tree.num_labels
    children, parents = nodes[level][is_label], parents[is_label]
    counts = np.bincount(parents, minlength=tree.num_labels)
    keep = np.ones(rows.shape[0], np.float32)
    of_parents = layout.row_of_label(parents)
    keep[of_parents] = 1 - share[parents]
    rows = _mixed(
      rows,
      _split_like(layout.row_of_label(children), rows, -1),
      _split_like(of_parents, rows, -1),
      _split_like((share / np.maximum(counts, 1))[parents], rows, 0),
      _split_like(keep, rows, 0),
    )
  return rows


@jax.jit
def _mixed(rows, children, parents, weights, keep):
  """`keep * rows`, with weighted rows of the children added to the parents'."""
  found = label_gather.label_rows(rows, children[:, None])
  found = found.astype(jnp.float32) * weights[:, None, None]
  # What adds vectors to rows is the transpose of what looks rows up.
  wide = jnp.zeros_like(rows, dtype=jnp.float32)
  _, add = jax.vjp(
    lambda rows: label_gather.label_rows(rows, parents[:, None]), wide
  )
  return (keep[:, None] * rows + add(found)[0]).astype(rows.dtype)


def _split_like(a: np.ndarray, rows: jax.Array, fill: float) -> jax.Array:
  """An array `[n]` split like rows, with as many entries more as that takes."""
  kind = rows.sharding
  if not isinstance(kind, jax.NamedSharding) or not kind.spec:
    return jnp.asarray(a)
  a = np.pad(a, (0, -len(a) % kind.num_devices), constant_values=fill)
  return jax.device_put(a, jax.NamedSharding(kind.mesh, P(kind.spec[0])))
