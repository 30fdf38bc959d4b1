"""Labels that are deleted, merged or renamed.

Legend: K labels that are edited, or groups of M labels.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from xlj import config as config_lib
from xlj.data import label_order
from xlj.labels import arrays
from xlj.labels import label_edit
from xlj.labels import runs
from xlj.runs import directory


class Label(NamedTuple):
  """What `listed` says of an id.

  Attributes:
    id: Its id.
    name: Its name; "" without one.
    count: Training examples.
    state: "", "deleted", or "merged into I".
  """

  id: int
  name: str
  count: int
  state: str


def delete(
  run: directory.Run, ids: Sequence[int] | np.ndarray
) -> directory.Run:
  """A run without some labels.

  They are not predicted any more, and no loss, statistic or optimizer knows
  them: labels from behind take their places. In data their ids count as
  nothing. The logits of other labels stay as they are.

  Args:
    run: The run.
    ids: Label ids.

  Returns:
    The run.

  Raises:
    ConfigError: An id has no row of its own, or no label would be left.
  """
  gone = np.unique(runs.heads_of(run, ids))
  if len(gone) == run.num_labels:
    raise config_lib.ConfigError("all labels would be deleted; keep one")
  return _without(run, gone, {})


def merge(run: directory.Run, into: Mapping[int, int]) -> directory.Run:
  """A run where some labels mean the same as others.

  The row of a label becomes the mean of those merged, by their numbers of
  training examples, and so does the bias, plus the entropy of their shares:
  where all of them are the same but for the log of their frequencies, it is the
  log of the sum of those. In data the merged ids count as the label that
  stays.

  Args:
    run: The run.
    into: Label id to the one that it is merged into.

  Returns:
    The run.

  Raises:
    ConfigError: An id has no row of its own, or is to stay and to go.
  """
  for gone, kept in into.items():
    if kept in into:
      raise config_lib.ConfigError(
        f"label {gone} is merged into {kept}, which is merged into"
        f" {into[kept]}; name the label that stays"
      )
  heads = runs.heads_of(run, list(into))
  targets = runs.heads_of(run, list(into.values()))
  groups: dict[int, list[int]] = {}
  for head, target in zip(heads.tolist(), targets.tolist()):
    groups.setdefault(target, [target]).append(head)
  members = np.concatenate([np.asarray(group) for group in groups.values()])
  sizes = np.asarray([len(group) for group in groups.values()])
  counts = run.counts()[members]
  values, counts = _merged(arrays.values(run, members), counts, sizes)
  run = arrays.with_values(run, np.asarray(list(groups)), values, counts)
  return _without(run, heads, dict(zip(heads.tolist(), targets.tolist())))


def _merged(
  values: dict[str, np.ndarray], counts: np.ndarray, sizes: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Means of groups, of which the members follow each other.

  Args:
    values: `[M, ...]` of all members.
    counts: int `[M]`.
    sizes: int `[K]`, members of each group.

  Returns:
    `[K, ...]`, and the sums of counts `[K]`.
  """
  starts = np.cumsum(sizes) - sizes
  group = np.repeat(np.arange(len(sizes)), sizes)
  totals = np.add.reduceat(counts, starts)
  # Where no label of a group has an example, all count alike.
  share = np.where(
    totals[group] > 0, counts / np.maximum(totals[group], 1), 1 / sizes[group]
  )
  out = {}
  for name, a in values.items():
    weighted = share.reshape(-1, *[1] * (a.ndim - 1)) * a
    out[name] = np.add.reduceat(weighted, starts, 0).astype(np.float32)
  if "bias" in out:
    entropy = -share * np.log(np.maximum(share, 1e-30))
    out["bias"] += np.add.reduceat(entropy, starts).astype(np.float32)
  return out, totals


def _without(
  run: directory.Run, gone: np.ndarray, instead: Mapping[int, int]
) -> directory.Run:
  """A run without some of the head's labels.

  Args:
    run: The run.
    gone: int `[K]`, distinct numbers.
    instead: What labels that are gone mean; both numbers are those before.

  Returns:
    The run.
  """
  sources, targets = label_edit.swaps(run.num_labels, gone)
  left = run.num_labels - len(gone)
  table = arrays.renumbering(run.num_labels, left, sources, targets)
  for head, target in instead.items():
    table[head] = table[target]
  data_ids = run.data_ids.copy()
  data_ids[targets] = data_ids[sources]
  head_ids = np.where(run.head_ids < 0, -1, table[run.head_ids])
  order = label_order.LabelOrder(data_ids[:left], head_ids.astype(np.int32))
  return arrays.restructured(run, order, sources, targets)


def rename(run: directory.Run, names: Mapping[int, str]) -> directory.Run:
  """A run with other names of some labels.

  Args:
    run: The run; if its labels have no names, those not given become their ids.
    names: By label id.

  Returns:
    The run.

  Raises:
    ConfigError: There is no such id, or a name is empty or more than a line.
  """
  found = list(run.names or map(str, range(run.num_ids)))
  for label, name in names.items():
    if not 0 <= label < run.num_ids:
      raise config_lib.ConfigError(
        f"label {label}: there are ids 0 to {run.num_ids - 1}"
      )
    if not name.strip() or {*name} & {*"\t\n\r"}:
      raise config_lib.ConfigError(
        f"label {label}: a name is one line without tabs, not {name!r}"
      )
    found[label] = name
  return dataclasses.replace(run, names=found)


def listed(run: directory.Run) -> Iterator[Label]:
  """Every id of a run, in order."""
  counts = run.order.by_data_id(run.counts())
  for label, head in enumerate(run.head_ids.tolist()):
    state = ""
    if head < 0:
      state = "deleted"
    elif (own := int(run.data_ids[head])) != label:
      state = f"merged into {own}"
    name = run.names[label] if run.names is not None else ""
    yield Label(label, name, int(counts[label]), state)
