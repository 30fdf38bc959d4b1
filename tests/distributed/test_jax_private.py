"""What is taken from JAX without a public name is there."""

import ast

import jax
from jax._src import distributed
import pytest

from tests import runs
from xlj.distributed import jax_private


def test_jax_has_the_names():
  assert jax_private.client() is None
  assert jax_private.process_id() == 0
  jax_private.num_processes()
  clusters = jax_private.clusters()
  assert any("slurm" in cluster.__module__ for cluster in clusters)
  for cluster in clusters:
    assert isinstance(cluster.opt_in_only_method, bool)
    for name in (
      "is_env_present",
      "get_coordinator_address",
      "get_process_count",
      "get_process_id",
      "get_local_process_id",
    ):
      assert callable(getattr(cluster, name))


def test_a_name_that_is_gone_is_said_with_the_version(monkeypatch):
  monkeypatch.delattr(distributed, "global_state")
  with pytest.raises(ImportError) as caught:
    jax_private.client()
  for word in (f"jax {jax.__version__}", "global_state", jax_private.SUPPORTED):
    assert word in str(caught.value)


def test_no_other_module_takes_private_names():
  for path in (runs.ROOT / "xlj").rglob("*.py"):
    if path.name != "jax_private.py":
      nodes = list(ast.walk(ast.parse(path.read_text())))
      names = [n.module for n in nodes if isinstance(n, ast.ImportFrom)]
      names += [n.attr for n in nodes if isinstance(n, ast.Attribute)]
      assert not any("_src" in (name or "").split(".") for name in names), path
