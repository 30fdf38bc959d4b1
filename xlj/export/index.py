"""The index of an exported network: which labels are looked at.

Legend: L label rows.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
from typing import Any

import numpy as np

from xlj import config as config_lib
from xlj.export import measure
from xlj.export import model as model_lib
from xlj.search import external
from xlj.search import index as index_lib

LIBRARIES = ("xlj", "faiss", "usearch")  # whose index there may be
_K = 10  # best labels whose recall is measured
_MOST = 1000  # rows to measure it with


def write(
  directory: str | os.PathLike[str],
  held: measure.HeldOut | None,
  recall: float,
  library: str = "xlj",
) -> Mapping[str, Any]:
  """Builds and writes the index of a model.

  Args:
    directory: Of the model; gets `index/`.
    held: Rows to measure with.
    recall: Share of the best labels that is to be found.
    library: Whose index: one of `LIBRARIES`.

  Returns:
    What the manifest says of it.

  Raises:
    ConfigError: There are no rows to measure with, or the model has no label
      rows that alone make its scores.
    ImportError: The library is not installed.
  """
  if not 0 < recall <= 1:
    raise config_lib.ConfigError(
      f"index is {recall:g}; give the share of the best labels that is to be"
      " found, such as 0.95"
    )
  model = model_lib.Exported(directory)
  if (rows := model.label_rows) is None:
    raise config_lib.ConfigError(
      "index is for networks whose label rows alone make the scores, without"
      " sparse weights (head.wide), neighbours (neighbours.count) and fp8;"
      " leave it out"
    )
  if held is None:
    raise config_lib.ConfigError(
      "index needs rows to measure its recall with, and the run held none out;"
      " name some by --rows"
    )
  some = held.rows
  if len(some) > _MOST:
    some = some[np.linspace(0, len(some) - 1, _MOST).astype(int)]
  x = model.embed(held.features(some))
  k = min(_K, len(rows))
  place, said = Path(directory, model_lib.INDEX), {"library": library, "k": k}
  if library == "xlj":
    index = index_lib.build(rows).tune(x, recall, k)
    index.save(place)
    said |= {"lists": index.num_lists, "probes": index.probes}
  else:
    place.mkdir()
    path = place / f"labels.{library}"
    external.write(path, rows)
    index = external.load(path, rows).tune(x, recall, k)
    said |= {"probes": index.effort}
  return {**said, "recall": index.recall}
