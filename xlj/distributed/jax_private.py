"""All that xlj takes from JAX without a public name, in one place.

There is no public way to this process's number before any device is known, to
the coordination service's keys and values (Orbax takes them from here as well),
or to what JAX knows about clusters before it starts.
"""

import importlib
import operator
from typing import Any

import jax

SUPPORTED = ">=0.10.2,<0.13"  # as in pyproject.toml


def client() -> Any:
  """The client of the coordination service; None in a single process."""
  return _get("jax._src.distributed", "global_state.client")


def process_id() -> int:
  """Number of this process; 0 before JAX has started."""
  return _get("jax._src.distributed", "global_state.process_id")


def num_processes() -> int:
  """How many processes there are, if there is a client."""
  return _get("jax._src.distributed", "global_state.num_processes")


def clusters() -> list[Any]:
  """JAX's descriptions of clusters, in the order it tries them."""
  return _get("jax._src.clusters", "ClusterEnv._cluster_types")


def _get(module: str, name: str) -> Any:
  try:
    return operator.attrgetter(name)(importlib.import_module(module))
  except (ImportError, AttributeError) as error:
    raise ImportError(
      f"jax {jax.__version__} has no {module}.{name}, which xlj needs; install"
      f" jax{SUPPORTED}"
    ) from error
