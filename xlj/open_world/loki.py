"""The label at the least expected squared distance, instead of the likeliest.

Roberts et al. 2023, "Geometry-aware adaptation for pretrained models" (Loki):
`argmin_y sum_i p_i d(y, i)^2` over all labels y, of which those i that the
model was trained for have a probability. A label that no example was ever seen
of, and that has no row, is found between those that do. It needs no training,
and is for when near misses matter: the likeliest label is right most often.

No matrix of distances `[L, L]` is formed. Between embeddings the minimum is the
label nearest to the expected embedding; on a tree it takes O(L) an example.
A probability that is spread thinly over very many labels pulls all predictions
to the middle: sharpen it, or keep the best few (`sharpened`).

Legend: N examples (n of this device), D width of rows, E of embeddings, L label
rows, M labels to choose from, k predicted, c of the candidates.
"""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from xlj.open_world import label_tree
from xlj.ops import label_attention
from xlj.ops import label_distance
from xlj.ops import shards as shards_lib

P = jax.P
_NODES = 2**20  # numbers of a pass over the tree that are kept at a time


def expected_embedding(
  x: jax.Array,
  rows: jax.Array,
  bias: jax.Array | None,
  embeddings: jax.Array,
  *,
  temperature: float = 1.0,
  candidates: int = 0,
  num_labels: int | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """`sum_i p_i e_i`, p the softmax of the logits `x W^T + b`.

  Args:
    x: `[N, D]` examples.
    rows: `[L, D]` label rows.
    bias: `[L]`, or None; -inf leaves a row out.
    embeddings: `[L, E]` of the same labels, split like the rows.
    temperature: What logits are divided by.
    candidates: How many of the likeliest labels have a probability; 0 for all.
    num_labels: Rows from this one on are padding; None for no padding.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    `[N, E]` float32 (or wider), split like `x`.
  """
  scale = 1 / temperature
  if bias is not None:
    bias = bias * scale
  where: Any = {
    "bias": bias,
    "num_labels": num_labels,
    "placement": placement,
  }
  if not candidates:
    return label_attention.label_attend(x, rows, embeddings, scale, **where)
  return label_attention.label_attend_topk(
    x, rows, embeddings, scale, candidates, **where
  )


def nearest_labels(
  expected: jax.Array,
  embeddings: jax.Array,
  k: int,
  *,
  is_label: jax.Array | None = None,
  placement: shards_lib.Placement = shards_lib.AUTO,
) -> jax.Array:
  """The labels at the least expected squared Euclidean distance.

  `sum_i p_i |e_y - e_i|^2 = |e_y - sum_i p_i e_i|^2` and what does not depend
  on y.

  Args:
    expected: `[N, E]` of `expected_embedding`.
    embeddings: `[M, E]` of all labels that may be predicted, those without a
      row too.
    k: How many.
    is_label: `[M]` bool, False at padding; None for none.
    placement: Where rows and examples lie, and the size of chunks.

  Returns:
    int32 labels `[N, k]`, best first; -1 where there are fewer.
  """
  return label_distance.nearest(
    expected,
    embeddings,
    k,
    is_label=is_label,
    placement=placement,
  )


def sharpened(scores: jax.Array, temperature: float = 1.0) -> jax.Array:
  """Probabilities among the best labels: the softmax of their logits.

  Args:
    scores: `[N, c]` logits, -inf at padding.
    temperature: What they are divided by.

  Returns:
    `[N, c]`.
  """
  return jax.nn.softmax(scores / temperature)


def nearest_on_tree(
  tree: label_tree.LabelTree,
  ids: jax.Array,
  weights: jax.Array,
  k: int,
  *,
  is_label: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The labels at the least expected squared distance on a tree.

  Examples are taken a few at a time, so that what is kept of all nodes stays
  small. Each device takes its own.

  Args:
    tree: The tree, the same on all devices.
    ids: `[N, c]` int labels that have a probability; -1 is padding.
    weights: `[N, c]` their probabilities.
    k: How many.
    is_label: `[M]` bool, whether a label may be predicted; None for all.

  Returns:
    Expected squared distances `[N, k]`, ascending, and int32 labels `[N, k]`.
  """
  at_a_time = max(1, _NODES // len(tree.nodes))

  def local(tree, is_label, ids, weights):
    def one(example):
      squares = label_tree.expected_squares(tree, *(a[None] for a in example))[
        0
      ]
      if is_label is not None:
        squares = jnp.where(is_label, squares, jnp.inf)
      least, found = lax.top_k(-squares, k)
      return -least, found.astype(jnp.int32)

    return lax.map(one, (ids, weights), batch_size=at_a_time)

  split = P(_examples_axes(ids))
  if split != P(()):
    local = jax.shard_map(
      local, in_specs=(P(), P(), split, split), out_specs=(split, split)
    )
  return local(tree, is_label, ids, weights)


def _examples_axes(ids: jax.Array) -> tuple[str, ...]:
  """Mesh axes that examples are split over, as their type says."""
  if jax.sharding.get_abstract_mesh().manual_axes:
    return ()
  kind = jax.typeof(ids).sharding
  first = kind.spec[0] if kind.spec else None
  return (first,) if isinstance(first, str) else tuple(first or ())
